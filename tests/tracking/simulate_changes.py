"""How well detectors of change points find a step in a history of commits, and how often they see one without any.

python -m tests.tracking.simulate_changes --series 500

A series is some commits of some rounds each; noise is that of simulate_verdict, in the order in which the processes
run, and what stays with a commit, drifts, or recurs in each first round. Detectors that are no dependency of the
project take part where they are installed: `pip install ruptures` and `pip install --no-deps apache-otava`, which needs
scipy. They are asked twice: as they come, for the medians of the commits, and "confirmed", where `changes.confirm` has
the last word on what they found. Prints tables in Markdown, progress on stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from asv import step_detect
from asv_bench_gpu import changes
from asv_bench_gpu.calibrate import upper_bound

from tests.tracking import simulate_verdict

Array = np.ndarray
#: The first commits of new levels, given times of the shape [commits, rounds].
Detector = Callable[[Array], list[int]]
LENGTHS = (10, 30, 60)
STEPS_PERCENT = (1, 2, 3, 5, 10)
FURTHER = (0, 1, 2, 5)


def _in_order(noise: simulate_verdict.Noise) -> simulate_verdict.Noise:
    """Noise of the shape [series, commits, rounds], from a history's first process to its last."""

    def ordered(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
        return noise(rng, (shape[0], shape[1] * shape[2], 1)).reshape(shape)

    return ordered


one_sided = _in_order(simulate_verdict.one_sided)


def wild_start(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """One-sided, and the first round of each commit five times as far off, as recorded on an H200."""
    return one_sided(rng, shape) * np.where(np.arange(shape[2]) == 0, 5, 1)


def drifting(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """One-sided, and 1 % slower from the first commit to the last."""
    return one_sided(rng, shape) + 0.01 * np.linspace(0, 1, shape[1])[:, None]


def staying(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """One-sided, and 0.3 % that all rounds of a commit share: its day, its build, where its buffers lie."""
    return one_sided(rng, shape) + 0.003 * rng.standard_normal((*shape[:2], 1))


NOISES: dict[str, simulate_verdict.Noise] = {
    "one-sided": one_sided,
    "first rounds wild": wild_start,
    "heavy tails": _in_order(simulate_verdict.heavy),
    "drifting by 1 %": drifting,
    "0.3 % stays with a commit": staying,
}


def asv_steps(times: Array) -> list[int]:
    """The steps that asv's regression page is built from."""
    return [start for start, *_ in step_detect.detect_steps(np.median(times, axis=1).tolist())[1:]]


def otava(times: Array) -> list[int]:
    """Apache Otava as it comes, but in one window: with several, 0.8.0 fails on some series of 26 commits and more."""
    from otava.analysis import compute_change_points

    found, _ = compute_change_points(np.median(times, axis=1), window_len=2 * len(times))
    return sorted(point.index for point in found)


def ruptures(times: Array) -> list[int]:
    """PELT for shifts of the mean, with that of six noise estimates and penalties that did best here."""
    from ruptures import Pelt

    logs = np.log(np.median(times, axis=1))
    noise = np.std(np.diff(logs)) / math.sqrt(2)
    search = Pelt("l2", min_size=1, jump=1).fit(logs / max(noise, 1e-9))
    return list(search.predict(pen=5 * math.log(len(logs)))[:-1])


#: Name -> the modules it takes, and the detector.
LIBRARIES: dict[str, tuple[tuple[str, ...], Detector]] = {
    "asv": (("asv",), asv_steps),
    "Otava": (("otava", "scipy"), otava),
    "ruptures": (("ruptures",), ruptures),
}
PLAIN = "neighbouring commits"
OURS = "every boundary, confirmed"
DETECTORS = (*itertools.chain.from_iterable((name, f"{name}, confirmed") for name in LIBRARIES), PLAIN, OURS)


def missing() -> list[str]:
    """Libraries that cannot take part."""
    return [name for name, (modules, _) in LIBRARIES.items() if not all(map(importlib.util.find_spec, modules))]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is simulated, and how it is judged."""

    series: int = 500
    rounds: int = 10
    before: int = 20
    family: int = 350
    margin_percent: float = changes.MARGIN_PERCENT
    family_alpha: float = changes.FAMILY_ALPHA
    seed: int = 0
    detectors: tuple[str, ...] = DETECTORS

    def confirm(self, times: Array, cuts: list[int]) -> list[int]:
        """Those of the cuts that stand, in one of ``family`` such series."""
        tests = self.family * changes.tests([len(rounds) for rounds in times])
        level = self.family_alpha / max(tests, 1)
        logs = changes.logarithms(times)
        return [cut.at for cut in changes.confirm(logs, cuts, margin_percent=self.margin_percent, level=level)]


def neighbours(times: Array, setting: Setting) -> list[int]:
    """The plain rule: each commit against the one before, by the same test, and each series for itself."""
    level = setting.family_alpha / max(len(times) - 1, 1)
    logs = changes.logarithms(times)
    margin = setting.margin_percent
    return [
        at
        for at in range(1, len(logs))
        if changes.confirm(logs[at - 1 : at + 1], [1], margin_percent=margin, level=level)
    ]


def detectors(setting: Setting) -> dict[str, Detector]:
    """Those asked for that can take part."""

    def confirmed(detect: Detector) -> Detector:
        return lambda times: setting.confirm(times, detect(times))

    found: dict[str, Detector] = {}
    for name, (_, detect) in LIBRARIES.items():
        if name not in missing():
            found |= {name: detect, f"{name}, confirmed": confirmed(detect)}
    found[PLAIN] = lambda times: neighbours(times, setting)
    found[OURS] = confirmed(lambda times: list(range(1, len(times))))
    return {name: detect for name, detect in found.items() if name in setting.detectors}


def histories(setting: Setting, noise: str, commits: int, step_percent: float = 0.0) -> Array:
    """Times of the shape [series, commits, rounds]; from commit ``before`` on, larger by the step."""
    rng = np.random.default_rng(setting.seed)
    logs = NOISES[noise](rng, (setting.series, commits, setting.rounds)).astype(float)
    logs[:, setting.before :] += math.log1p(step_percent / 100)
    return np.exp(logs)


def false_alarms(setting: Setting, noise: str, commits: int) -> dict[str, int]:
    """In how many series without a step each detector sees one."""
    series = histories(setting, noise, commits)
    return {name: sum(bool(detect(times)) for times in series) for name, detect in detectors(setting).items()}


@dataclasses.dataclass(frozen=True)
class Detection:
    """What became of a step.

    Attributes:
        found: share of series with a change at the step, or at the commit before or after it.
        elsewhere: share of those in which it is not at the step itself.
        further: share of series with another change than that.
    """

    found: float
    elsewhere: float
    further: float


def detections(setting: Setting, step_percent: float, further: int) -> dict[str, Detection]:
    """How each detector does when the step is ``further`` commits old."""
    series = histories(setting, "one-sided", setting.before + 1 + further, step_percent)
    outcomes = {}
    for name, detect in detectors(setting).items():
        offsets = [[at - setting.before for at in detect(times)] for times in series]
        near = [min((abs(offset) for offset in one), default=2) for one in offsets]
        found = sum(offset <= 1 for offset in near)
        others = sum(len(one) > (offset <= 1) for one, offset in zip(offsets, near, strict=True))
        outcomes[name] = Detection(found / len(series), near.count(1) / max(found, 1), others / len(series))
    return outcomes


def tables(setting: Setting, noises: list[str]) -> Iterator[str]:
    """The report."""
    numbers = {name: value for name, value in dataclasses.asdict(setting).items() if name != "detectors"}
    yield ", ".join(f"{name} {value}" for name, value in numbers.items())
    for name in missing():
        yield f"{name} is not installed, and takes no part"
    yield from _alarm_table(setting, noises)
    yield from _detection_table(setting)


def _alarm_table(setting: Setting, noises: list[str]) -> Iterator[str]:
    found = {}
    for noise in noises:
        for commits in LENGTHS:
            found[noise, commits] = _timed(f"{noise}, {commits} commits", false_alarms, setting, noise, commits)
    lengths = ", ".join(map(str, LENGTHS))
    yield f"\nNo step: series with a change in %, of {lengths} commits (0: at most {_zero(setting):.2f})\n"
    yield from _rows(
        setting,
        noises,
        lambda name, noise: ", ".join(
            f"{100 * found[noise, commits][name] / setting.series:.3g}" for commits in LENGTHS
        ),
    )


def _rows(setting: Setting, columns: list[str], cell: Callable[[str, str], str]) -> Iterator[str]:
    """A table in Markdown, a row for each detector; ``cell`` is given a detector and a column."""
    yield f"| detector | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    for name in detectors(setting):
        yield f"| {name} | {' | '.join(cell(name, column) for column in columns)} |"


def _zero(setting: Setting) -> float:
    """What a share in percent is below, with 95 % confidence, when no series of all had it."""
    return 100 * upper_bound(0, setting.series)


def _detection_table(setting: Setting) -> Iterator[str]:
    steps = {f"{sign * step:+d} %": sign * step for sign in (1, -1) for step in STEPS_PERCENT}
    found = {}
    for label, step in steps.items():
        for further in FURTHER:
            found[label, further] = _timed(f"{step} %, {further} further", detections, setting, step, further)
    ages = ", ".join(map(str, FURTHER))
    yield f"\nOne step after {setting.before} commits: series in which it is found in %, after {ages} further commits\n"
    yield from _rows(
        setting,
        [*steps],
        lambda name, step: ", ".join(f"{100 * found[step, further][name].found:.0f}" for further in FURTHER),
    )
    yield f"\nAfter {FURTHER[-1]} further commits: found at a neighbouring commit, and changes besides the step, in %\n"

    def besides(name: str, step: str) -> str:
        outcome = found[step, FURTHER[-1]][name]
        return f"{100 * outcome.elsewhere:.0f}, {100 * outcome.further:.0f}"

    yield from _rows(setting, [*steps], besides)


def _timed(label: str, simulate, *arguments):
    started = time.monotonic()
    outcome = simulate(*arguments)
    print(f"{label}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return outcome


def main() -> None:
    """Run what the command line asks for."""
    default = Setting()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--series", type=int, default=default.series, help="for each figure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="of each commit (%(default)s)")
    parser.add_argument("--before", type=int, default=default.before, help="commits before the step (%(default)s)")
    parser.add_argument("--family", type=int, default=default.family, help="series judged together (%(default)s)")
    parser.add_argument("--margin-percent", type=float, default=default.margin_percent, help="(%(default)s)")
    parser.add_argument("--family-alpha", type=float, default=default.family_alpha, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    parser.add_argument("--noise", choices=NOISES, nargs="+", default=[*NOISES], help="without a step (all)")
    parser.add_argument("--detectors", choices=DETECTORS, nargs="+", default=DETECTORS, help="(all)")
    arguments = vars(parser.parse_args())
    noises = arguments.pop("noise")
    for line in tables(Setting(**arguments), noises):
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""How often the verdict is wrong, and how often it sees a slowdown, under noise of several kinds.

python -m tests.tracking.simulate_verdict --comparisons 10000

A comparison is two processes a round, each timing every benchmark. Noise is the logarithm of a time over its typical
one, in the order in which the processes run; which of a round's two is base's follows from the order asked for. Counts
of rounds above a limit are all that `verdict.judge` looks at, so they are counted here for many comparisons at once;
test_simulate_verdict shows that the outcome is the same. Prints tables in Markdown, progress on stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from asv_bench_gpu import verdict
from asv_bench_gpu.calibrate import Looks, upper_bound

Array = np.ndarray
#: Noise of the shape [comparisons, processes, keys].
Noise = Callable[[np.random.Generator, tuple[int, int, int]], Array]
#: Share of the variance that a process's benchmarks have in common.
SHARED = 0.8
SLOWDOWNS_PERCENT = (1, 2, 3, 5, 10)
BATCH = 100


def _in_common(one: Noise) -> Noise:
    """Noise of which a part is the process's, and the rest each benchmark's own."""

    def both(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
        process = one(rng, (*shape[:2], 1))
        return math.sqrt(SHARED) * process + math.sqrt(1 - SHARED) * one(rng, shape)

    return both


def normal(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Independent, 0.5 %."""
    return 0.005 * rng.standard_normal(shape, np.float32)


def heavy(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Student's t with 2 degrees of freedom: its variance is infinite."""
    return 0.003 * rng.standard_t(2, shape)


def one_sided(rng: np.random.Generator, shape: tuple[int, int, int], chance: float | Array = 0.3) -> Array:
    """As seen on an H200: within 0.2 %, but three processes in ten 0.5 to 1.8 % slow."""
    late = rng.random(shape, np.float32) < chance
    return 0.2 * normal(rng, shape) + late * (0.005 + 0.013 * rng.random(shape, np.float32))


def warming(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """One-sided, and nearly always slow in the first minute."""
    return one_sided(rng, shape, 0.3 + 0.6 * np.exp(-np.arange(shape[1]) / 6)[:, None])


def bimodal(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Fast or 1.5 % slower, one time in two."""
    return 0.2 * normal(rng, shape) + 0.015 * (rng.random(shape, np.float32) < 0.5)


def drifting(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Some percent faster or slower from the first process to the last, along a line."""
    slope = 0.03 * rng.standard_normal((shape[0], 1, shape[2]), np.float32)
    return 0.5 * normal(rng, shape) + slope * np.linspace(0, 1, shape[1], dtype=np.float32)[:, None]


def autocorrelated(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """0.5 %; neighbouring processes correlate by 0.5, the worst where order alternates."""
    fresh = normal(rng, shape)
    for step in range(1, shape[1]):
        fresh[:, step] = 0.5 * fresh[:, step - 1] + math.sqrt(0.75) * fresh[:, step]
    return fresh


def lasting(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Bimodal, and a mode lasts for five processes on average."""
    switches = (rng.random(shape, np.float32) < 0.2).cumsum(axis=1) % 2
    start = rng.random((shape[0], 1, shape[2]), np.float32) < 0.5
    return 0.2 * normal(rng, shape) + 0.015 * (switches ^ start)


def uneven(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """As recorded on an H200: benchmarks differ (0.13 %, one in ten 0.6 %), have little in common, and start wild."""
    scale = 0.0013 * np.exp(1.25 * rng.standard_normal((shape[0], 1, shape[2]), np.float32))
    first_round = np.where(np.arange(shape[1]) < 2, 5, 1)[:, None]
    return first_round * scale * rng.standard_normal(shape, np.float32)


NOISES: dict[str, Noise] = {
    "normal": _in_common(normal),
    "normal, nothing in common": normal,
    "heavy tails": _in_common(heavy),
    "one-sided": _in_common(one_sided),
    "one-sided, warming up": _in_common(warming),
    "bimodal": _in_common(bimodal),
    "drifting": _in_common(drifting),
    "as recorded": uneven,
    "autocorrelated": _in_common(autocorrelated),
    "bimodal, lasting": _in_common(lasting),
}
#: Noise that stays with base or head from round to round: what the verdict takes for a property of the code.
SIDED: dict[str, Noise] = {
    "autocorrelated within a side": _in_common(autocorrelated),
    "bimodal, lasting within a side": _in_common(lasting),
}


def log_ratios(rng: np.random.Generator, name: str, shape: tuple[int, int, int], order: str) -> Array:
    """Noise of log(head / base) for identical code, [comparisons, rounds, keys].

    Args:
        rng: source of chance.
        name: of the noise.
        shape: comparisons, rounds, keys.
        order: "alternating": base, head, head, base, ...; "random": a fair coin says which is first in a round.
    """
    comparisons, rounds, keys = shape
    if name in SIDED:
        return SIDED[name](rng, shape) - SIDED[name](rng, shape)
    noise = NOISES[name](rng, (comparisons, 2 * rounds, keys))
    later = noise[:, 1::2] - noise[:, ::2]
    base_first = np.arange(rounds) % 2 == 0 if order == "alternating" else rng.random((comparisons, rounds)) < 0.5
    return np.where(np.broadcast_to(base_first, (comparisons, rounds))[..., None], later, -later)


class Tally:
    """Comparisons whose outcome is as asked, and the rounds they took."""

    def __init__(self) -> None:
        self.hits: list[Array] = []
        self.rounds: list[Array] = []

    def add(self, hits: Array, rounds: Array | None = None) -> None:
        """Count more comparisons."""
        self.hits.append(hits)
        if rounds is not None:
            self.rounds.append(rounds[hits])

    @property
    def rate(self) -> float:
        """Share of the comparisons."""
        return float(np.concatenate(self.hits).mean())

    @property
    def bound(self) -> float:
        """The rate is not above this, with 95 % confidence (Clopper and Pearson)."""
        hits = np.concatenate(self.hits)
        return upper_bound(int(hits.sum()), len(hits))

    def took(self, quantile: float) -> float:
        """Quantile of the rounds."""
        rounds = np.concatenate(self.rounds)
        return float(np.quantile(rounds, quantile, method="higher")) if len(rounds) else math.nan


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compared, and how it is judged."""

    comparisons: int = 10_000
    keys: int = 100
    rounds: int = verdict.MAX_ROUNDS
    margin_percent: float = 2.0
    family_alpha: float = 0.01
    order: str = "alternating"
    seed: int = 0


def simulate(name: str, setting: Setting) -> dict[str, Tally]:
    """Everything that is asked about one kind of noise.

    Returns:
        "fail, last look", "fail, any look", "pass, any look" for code on the margin (the last for one key, the others
        passing); "fail", "pass" for identical code; "slower by 3 %" and so on, a fail for a slowdown of one key.
    """
    tallies: dict[str, Tally] = {}

    def add(what: str, hits: Array, rounds: Array | None = None) -> None:
        tallies.setdefault(what, Tally()).add(hits, rounds)

    limit = math.log1p(setting.margin_percent / 100)
    rng = np.random.default_rng([setting.seed, *name.encode()])
    for start in range(0, setting.comparisons, BATCH):
        shape = (min(BATCH, setting.comparisons - start), setting.rounds, setting.keys)
        ratios = log_ratios(rng, name, shape, setting.order)

        def looks(above: Array) -> Looks:
            return Looks.of(above, setting.keys, setting.family_alpha)

        on_margin = looks(ratios > 0)
        add("fail, last look", on_margin.fails[:, -1].any(axis=1))
        add("fail, any look", on_margin.fails.any(axis=(1, 2)))
        add("pass, any look", on_margin.passes[:, :, 0].any(axis=1))
        identical = looks(ratios > limit)
        fails, passes, rounds = identical.family().first()
        add("fail", fails, rounds)
        add("pass", passes, rounds)
        for percent in SLOWDOWNS_PERCENT:
            slower = looks(ratios[:, :, :1] + math.log1p(percent / 100) > limit)
            identical.fails[:, :, :1], identical.passes[:, :, :1] = slower.fails, slower.passes
            fails, passes, rounds = identical.family().first()
            add(f"slower by {percent} %", fails, rounds)
    return tallies


def tables(setting: Setting, names: list[str]) -> Iterator[str]:
    """The report."""
    found = {}
    for name in names:
        started = time.monotonic()
        found[name] = simulate(name, setting)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    def wrong(tally: Tally) -> str:
        return f"{100 * tally.rate:.3f} (< {100 * tally.bound:.3f})"

    def found_after(tally: Tally) -> str:
        took = f" ({tally.took(0.5):.0f}, {tally.took(0.95):.0f})" if tally.rate > 0.005 else ""
        return f"{100 * tally.rate:.1f}{took}"

    yield ", ".join(f"{field.name} {getattr(setting, field.name)}" for field in dataclasses.fields(setting))
    yield "\nEverything on the margin: wrong verdicts in % (and their 95 % upper bound)\n"
    yield "| noise | any key fails, last look | any key fails, any look | a key passes, any look |\n|---|---|---|---|"
    for name, tallies in found.items():
        cells = " | ".join(wrong(tallies[what]) for what in ("fail, last look", "fail, any look", "pass, any look"))
        yield f"| {name} | {cells} |"
    yield f"\nMargin {setting.margin_percent:g} %, until the first verdict: outcomes in %, and rounds (median, 95 %)\n"
    slower = [f"slower by {percent} %" for percent in SLOWDOWNS_PERCENT]
    yield f"| noise | same: fails | same: passes | {' | '.join(f'one key {what}: fails' for what in slower)} |"
    yield f"|---|---|---|{'---|' * len(slower)}"
    for name, tallies in found.items():
        cells = " | ".join(found_after(tallies[what]) for what in ("pass", *slower))
        yield f"| {name} | {wrong(tallies['fail'])} | {cells} |"


def main() -> None:
    """Run what the command line asks for."""
    default = Setting()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--comparisons", type=int, default=default.comparisons, help="per kind of noise (%(default)s)")
    parser.add_argument("--keys", type=int, default=default.keys, help="benchmarks (%(default)s)")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="the most, all looked at (%(default)s)")
    parser.add_argument("--margin-percent", type=float, default=default.margin_percent, help="(%(default)s)")
    parser.add_argument("--family-alpha", type=float, default=default.family_alpha, help="(%(default)s)")
    parser.add_argument("--order", choices=["alternating", "random"], default=default.order, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    parser.add_argument("--noise", choices=[*NOISES, *SIDED], nargs="+", default=[*NOISES, *SIDED], help="(all)")
    arguments = vars(parser.parse_args())
    names = arguments.pop("noise")
    for line in tables(Setting(**arguments), names):
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""How often would the gate be wrong on this machine? Measured with two builds of the same code.

A commit is compared with its twin, another commit of the same tree: whatever differs is noise, of the machine or of
the build. The rounds are kept like those of any comparison. Then many comparisons are drawn from them, with
replacement, and each is judged as `asv_bench_gpu.gate` would judge it, until the first verdict: a "fail" is a false
alarm. Once one benchmark is slower, it is a detection: where the twin was measured slower, too, by work that was really
done (`asv_bench_gpu.clock.slowed_timing`), with those times, else with times that are multiplied. A round is drawn as a
whole, so what its benchmarks have in common is kept; what neighbouring rounds have in common is not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asv_bench_gpu import journal, project, typed, verdict
from asv_bench_gpu.compare import Found, Session
from asv_bench_gpu.policy import Policy, blaming
from asv_bench_gpu.project import Project, UsageError

Array = npt.NDArray[Any]

SLOWDOWNS_PERCENT = (1, 2, 3, 5, 10)
#: Those that are measured by default: the one that a gate should not miss.
MEASURED_PERCENT = (3,)
_SUFFIX = ".calibration"  # not ".json": asv reads every one of these below a machine
_BATCH = 100
_NOISIEST = 10


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of comparisons, and between which rates it lies with 95 % confidence on either side.

    The bounds (Clopper and Pearson) say what the number of draws leaves open, not what more rounds would have shown.
    """

    share: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, trials: int) -> Rate:
        """``hits`` of ``trials``."""
        return cls(hits / trials, 1 - upper_bound(trials - hits, trials), upper_bound(hits, trials))


@dataclasses.dataclass(frozen=True)
class Rates:
    """What became of the comparisons.

    Attributes:
        false_alarms: share of those of the same code that fail.
        passes: share of those of the same code that pass; the rest is undecided.
        detections: slowdown of one benchmark in percent -> share of comparisons that fail.
        measured: slowdowns whose times were measured; those of the others were multiplied.
    """

    false_alarms: Rate
    passes: Rate
    detections: dict[int, Rate]
    measured: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.detections:
            raise ValueError("expected slowdowns")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is known of the gate on a machine.

    Attributes:
        machine, commit: where, and of which code.
        margins, family_alpha, max_rounds: of the gate, as for `asv_bench_gpu.verdict.judge`.
        benchmarks: how many can be measured on the machine, and are judged together.
        rounds: how many were measured.
        comparisons: how many were drawn, for each rate.
        rates: what became of them.
        record: where the rounds are kept; the calibration lies beside them.
        environment: asv's name for Python and the packages that were used.
        versions: of the benchmarks.
        noisiest: of the benchmarks, those that were above their margins most often, in the same code -> in which share
            of the rounds. They keep comparisons from passing: give them a suite with a wider margin, or less noise.
    """

    machine: str
    commit: str
    margins: dict[str, float]
    family_alpha: float
    max_rounds: int
    benchmarks: int
    rounds: int
    comparisons: int
    rates: Rates
    record: str
    environment: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    noisiest: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read what `calibrate` wrote.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            return typed.build(cls, typed.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UsageError(f"damaged calibration {path}: {error}; calibrate again") from error

    def in_words(self) -> str:
        """What a gate's reader must know."""
        found = [percent for percent, rate in self.rates.detections.items() if rate.low >= 0.95]
        slowdown = f"{min(found)} %" if found else f"more than {max(self.rates.detections)} %"
        alarms = f"{100 * self.rates.false_alarms.high:.2f} %"
        if self.rates.false_alarms.high > self.family_alpha:
            alarms += f", which is MORE than the {100 * self.family_alpha:g} % of the policy"
        return f"false alarms at most {alarms}; least slowdown found with 95 %: {slowdown} ({self.rounds} rounds)"


@dataclasses.dataclass
class Looks:
    """What each look at each comparison says: [comparisons, rounds, keys] or [comparisons, rounds], bool."""

    fails: Array
    passes: Array

    @classmethod
    def of(cls, above: Array, keys: int, family_alpha: float) -> Looks:
        """Judge whether each round is ``above`` the margin, as one of ``keys`` benchmarks."""
        rounds = np.arange(1, above.shape[1] + 1)[:, None]
        to_fail = np.array(verdict.exceptions_allowed(family_alpha / keys, len(rounds)))[1:, None]
        to_pass = np.array(verdict.exceptions_allowed(family_alpha, len(rounds)))[1:, None]
        count = above.cumsum(axis=1, dtype=np.int16)
        return cls(rounds - count <= to_fail, count <= to_pass)

    def family(self) -> Looks:
        """The verdict on all keys, of which those that have passed are not looked at again."""
        passed = np.logical_or.accumulate(self.passes, axis=1)
        fails = self.fails.copy()
        fails[:, 1:] &= ~passed[:, :-1]
        return Looks(np.any(fails, axis=2), np.all(passed, axis=2))

    def first(self) -> tuple[Array, Array, Array]:
        """Whether a caller who stops at the first verdict gets a fail, a pass, and after how many rounds."""
        decided = self.fails | self.passes
        stop = np.where(decided.any(axis=1), decided.argmax(axis=1), decided.shape[1] - 1)
        at_stop = np.arange(len(stop)), stop
        return self.fails[at_stop], self.passes[at_stop], stop + 1


def calibrate(
    config: Path,
    policy: Path,
    commit: str = "HEAD",
    *,
    rounds: int = 60,
    comparisons: int = 10_000,
    slowdowns_percent: Sequence[int] = MEASURED_PERCENT,
    machine: str | None = None,
    timeout_seconds: float = 900.0,
) -> Calibration:
    """Measure a commit against its twin, and draw comparisons from the rounds.

    Args:
        config: asv.conf.json of the project.
        policy: file with the gate's policy.
        commit: the code.
        rounds: how many to measure.
        comparisons: how many to draw for each rate.
        slowdowns_percent: of `SLOWDOWNS_PERCENT`, those to measure.
        machine, timeout_seconds: as for `asv_bench_gpu.compare.compare`.

    Raises:
        UsageError: as for `asv_bench_gpu.gate.gate`; or rounds are missing, unverified or disturbed.
    """
    with blaming(policy):
        rules = Policy.read(policy)
    with project.locked(config) as conf:
        commit = project.resolve_one(conf, commit, argument="COMMIT")
        opened = project.prepare(conf, bench=None, machine=machine, timeout_seconds=timeout_seconds)
        with blaming(policy):
            margins = rules.matched(opened).margins()
            if not margins:
                raise UsageError("expected a [[suite]]: only times need a calibration")
        session = Session(
            opened,
            commit,
            _twin(conf, commit),
            margins,
            {},
            rules.family_alpha,
            rules.max_rounds,
            slowdowns_percent,
            twin=True,
        )
        log_ratios, slowed = _log_ratios(session, rounds)
        calibration = Calibration(
            machine=opened.machine,
            commit=commit,
            margins=margins,
            family_alpha=rules.family_alpha,
            max_rounds=rules.max_rounds,
            benchmarks=len(log_ratios),
            rounds=rounds,
            comparisons=comparisons,
            rates=draw(log_ratios, margins, comparisons, rules.family_alpha, rules.max_rounds, slowed),
            record=str(session.record),
            environment=opened.environment.name,
            versions=_versions(opened, margins),
            noisiest=_noisiest(log_ratios, margins),
        )
        name = session.record.name.removesuffix(journal.PAIRS_SUFFIX) + _SUFFIX
        with journal.replacing(session.record.with_name(name)) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(calibration), indent=1), encoding="utf-8")
        return calibration


def known(opened: Project, rules: Policy) -> Calibration | None:
    """The calibration of this gate on this machine that has most rounds.

    Raises:
        UsageError: a file is damaged.
    """
    folder = Path(opened.conf.results_dir, opened.machine, "comparisons")
    margins = rules.matched(opened).margins()
    gate = margins, rules.family_alpha, rules.max_rounds, opened.environment.name, _versions(opened, margins)
    found = map(Calibration.read, sorted(folder.glob(f"*{_SUFFIX}")))
    of_gate = [
        one for one in found if (one.margins, one.family_alpha, one.max_rounds, one.environment, one.versions) == gate
    ]
    return max(of_gate, key=lambda calibration: calibration.rounds, default=None)


def _versions(opened: Project, margins: Mapping[str, float]) -> dict[str, str]:
    """Of the benchmarks to which ``margins`` apply."""
    places = opened.places()
    return {name: opened.benchmarks[name]["version"] for name in sorted({places[key][0] for key in margins})}


def draw(
    log_ratios: Mapping[str, Array],
    margins: Mapping[str, float],
    comparisons: int,
    family_alpha: float,
    max_rounds: int,
    slowed: Mapping[int, Mapping[str, Array]] | None = None,
) -> Rates:
    """Draw comparisons from rounds, given by benchmark, and judge each until the first verdict.

    Args:
        log_ratios: of the same code.
        margins, family_alpha, max_rounds: as for `asv_bench_gpu.verdict.judge`.
        comparisons: how many to draw for each rate.
        slowed: slowdown in percent -> log ratios of all benchmarks when slower by that.
    """
    keys = len(log_ratios)
    measured = np.column_stack([*log_ratios.values()])
    limits = np.log1p(np.array([margins[key] for key in log_ratios]) / 100)
    slow = {percent: np.column_stack([of[key] for key in log_ratios]) for percent, of in (slowed or {}).items()}
    rng = np.random.default_rng(0)
    fails = passes = 0
    detected = dict.fromkeys(SLOWDOWNS_PERCENT, 0)
    for start in range(0, comparisons, _BATCH):
        number = min(_BATCH, comparisons - start)
        over = measured[rng.integers(len(measured), size=(number, max_rounds))] - limits
        looks = Looks.of(over > 0, keys, family_alpha)
        failing, passing, _ = looks.family().first()
        fails += int(failing.sum())
        passes += int(passing.sum())
        # Benchmarks take turns in being the slower one.
        at = np.arange(number), slice(None), np.arange(start, start + number) % keys
        for percent in detected:
            if percent in slow:
                rounds = rng.integers(len(slow[percent]), size=(number, max_rounds))
                above = (slow[percent][rounds] - limits)[at] > 0
            else:
                above = over[at] + np.log1p(percent / 100) > 0
            slower = Looks.of(above[..., None], keys, family_alpha)
            looks.fails[at], looks.passes[at] = slower.fails[..., 0], slower.passes[..., 0]
            detected[percent] += int(looks.family().first()[0].sum())
    return Rates(
        Rate.of(fails, comparisons),
        Rate.of(passes, comparisons),
        {percent: Rate.of(hits, comparisons) for percent, hits in detected.items()},
        sorted(slow),
    )


def _noisiest(log_ratios: Mapping[str, Array], margins: Mapping[str, float]) -> dict[str, float]:
    """The most noisy first; see `Calibration`."""
    shares = {key: float(np.mean(ratios > math.log1p(margins[key] / 100))) for key, ratios in log_ratios.items()}
    worst = sorted(shares, key=lambda key: -shares[key])[:_NOISIEST]
    return {key: shares[key] for key in worst if shares[key]}


def upper_bound(hits: int, trials: int) -> float:
    """The largest rate at which ``hits`` or fewer of ``trials`` still have a probability of 5 %."""
    if hits == trials:
        return 1.0
    counts = np.arange(hits + 1)
    logs = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in counts])
    low, high = hits / trials, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        at_most = np.exp(logs + counts * math.log(rate) + (trials - counts) * math.log1p(-rate)).sum()
        low, high = (rate, high) if at_most > 0.05 else (low, rate)
    return high


def _log_ratios(session: Session, rounds: int) -> tuple[dict[str, Array], dict[int, dict[str, Array]]]:
    """By benchmark that can be measured here, log(head / base) of rounds 1 and later; round 0 is the warm-up.

    Also those of each slowdown, from the rounds in which it was measured for all of them.
    """
    found = []
    for pair in session.pairs(rounds):
        for what, message in session.problems(pair).items():
            raise UsageError(f"no calibration, {what}: {message.strip()}")
        if pair.base.round:
            found.append((Found.of(pair.base), Found.of(pair.head)))
        project.say(f"round {pair.base.round}/{rounds}, {pair.base.seconds + pair.head.seconds:.1f} s")
    if session.comparison.unsettled:
        raise UsageError(f"no calibration, the machine did not settle: {session.comparison.unsettled}")
    keys = [key for key in session.margins if key not in session.comparison.skipped]
    same = {key: np.log([head.values[key] / base.values[key] for base, head in found]) for key in keys}
    slowed = {}
    for percent in session.slowdowns_percent:
        whole = [(base, head) for base, head in found if all(percent in head.slowed.get(key, {}) for key in keys)]
        if whole:
            slowed[percent] = {
                key: np.log([head.slowed[key][percent] / base.values[key] for base, head in whole]) for key in keys
            }
    return same, slowed


def _twin(conf: Any, commit: str) -> str:
    """Another commit of the same tree, on no branch; always the same one, so that rounds can be added."""
    identity = {"NAME": "asv-gpu", "EMAIL": "asv-gpu@localhost", "DATE": "2000-01-01T00:00:00Z"}
    environ = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in identity.items()}
    command = ["git", "-C", conf.repo, "commit-tree", f"{commit}^{{tree}}", "-p", commit, "-m", "Twin, to calibrate"]
    made = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environ})
    return made.stdout.strip()

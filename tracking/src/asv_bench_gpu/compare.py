"""Compare two commits in pairs of fresh processes, as many as the verdict needs.

Each round builds and installs both commits, one after the other, and runs `asv_bench_gpu.worker` for each in a fresh
process, which verifies before it measures. A coin decides which commit is first. Round 0 warms the machine up and gives
what needs no clock: quantities, and which benchmarks run the same compiled code in both commits, so that their times
tell nothing; its times are discarded. After every further round `asv_bench_gpu.verdict` looks at all of the others. A
benchmark that has passed is not measured again; the first that fails, or the last that passes, ends the comparison.
Finished rounds are kept: the same comparison goes on after an interruption, and a finished one is not measured again. A
round in which something else slowed the GPU down does not count and is repeated; on a machine that does not settle
nothing is decided.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from asv_bench_gpu import canary, journal, project, verdict
from asv_bench_gpu.journal import Pair, Round
from asv_bench_gpu.project import Project, UsageError
from asv_bench_gpu.verdict import Verdict

FAMILY_ALPHA = 0.01
MARGIN_PERCENT = 3.0

#: "invalid": data are missing or unverified.
EXIT_CODES = {"pass": 0, "fail": 1, "invalid": 2, "undecided": 3}
SIDES = ("base", "head")
#: How often a round is measured until it is undisturbed.
ATTEMPTS = 5
_UNVERIFIED = "nothing was verified: a setup_cache must return what verify() does"
_WORST_FIRST: list[Verdict] = ["fail", "undecided", "pass"]


@dataclasses.dataclass(frozen=True)
class Row(verdict.Row):
    """The verdict on one benchmark's time, and what it is about.

    Attributes:
        margin_percent: by how much head may be slower.
        base_seconds, head_seconds: median over rounds; None without any.
        identical: both commits run the same compiled code (`asv_bench_gpu.fingerprint`): this passes, and is not timed.
    """

    margin_percent: float
    base_seconds: float | None
    head_seconds: float | None
    identical: bool = False


@dataclasses.dataclass(frozen=True)
class Quantity:
    """The verdict on a number that needs no clock and must not grow: one measurement decides.

    Attributes:
        verdict: "fail" if head's is larger than ``limit``.
        base, head: the number of each commit; None of base where it is new.
        limit: head's may not be larger.
        unit: of the numbers.
    """

    verdict: Verdict
    base: float | None
    head: float
    limit: float
    unit: str


@dataclasses.dataclass
class Comparison:
    """What is known of two commits.

    Attributes:
        machine: name of the machine.
        base, head: full hashes.
        family_alpha, max_rounds: as for `asv_bench_gpu.verdict.judge`.
        record: where the rounds are kept.
        rounds: how many were judged.
        rows: times by benchmark, the worst first.
        quantities: by benchmark, the worst first.
        waivers: benchmark -> why it has another limit than its like.
        calibration: what is known of the gate's rates of error.
        skipped: benchmark -> why neither commit can be measured here.
        new: benchmark -> why base cannot be measured, where head can, and a policy allows that: a time is not compared,
            another number has a limit of its own.
        removed: benchmark -> why a policy accepts that head cannot be measured, where base can, and what head says.
        problems: what went wrong where -> a message; then there is no verdict.
        unsettled: what disturbed the last round `ATTEMPTS` times; then nothing passes.
    """

    machine: str
    base: str
    head: str
    family_alpha: float
    max_rounds: int
    record: str
    rounds: int = 0
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    quantities: dict[str, Quantity] = dataclasses.field(default_factory=dict)
    waivers: dict[str, str] = dataclasses.field(default_factory=dict)
    calibration: str = ""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    new: dict[str, str] = dataclasses.field(default_factory=dict)
    removed: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    unsettled: str = ""

    @property
    def verdict(self) -> Literal["pass", "fail", "undecided", "invalid"]:
        """Over everything: "pass" only if there is something and all of it passes."""
        if self.problems:
            return "invalid"
        verdicts = [row.verdict for row in self.rows.values()] + [row.verdict for row in self.quantities.values()]
        of_all = verdict.together(verdicts)
        return "undecided" if of_all == "pass" and self.unsettled else of_all

    @property
    def exit_code(self) -> int:
        """0 pass, 1 slower, 2 missing or unverified, 3 undecided."""
        return EXIT_CODES[self.verdict]


def compare(
    config: Path,
    base: str,
    head: str,
    *,
    margin_percent: float = MARGIN_PERCENT,
    family_alpha: float = FAMILY_ALPHA,
    max_rounds: int = verdict.MAX_ROUNDS,
    bench: str | None = None,
    machine: str | None = None,
    timeout_seconds: float = 900.0,
) -> Comparison:
    """Is ``head`` slower than ``base``?

    Args:
        config: asv.conf.json of the project.
        base, head: commits; the same one twice shows what noise alone does.
        margin_percent, family_alpha, max_rounds: as for `asv_bench_gpu.verdict.judge`.
        bench: regular expression, matched with `asv_bench_gpu.project.key`; by default every ``gputime_*``, with it
            every benchmark whose figures are seconds.
        machine: as for `asv_bench_gpu.runner.run`.
        timeout_seconds: limit for one process.

    Raises:
        UsageError: no such commit, benchmark or file; numbers with which no verdict is possible; or another command is
            measuring in this checkout.
    """
    with project.locked(config) as conf:
        commits = project.resolve_one(conf, base, argument="BASE"), project.resolve_one(conf, head, argument="HEAD")
        opened = project.prepare(conf, bench=bench, machine=machine, timeout_seconds=timeout_seconds)
        wanted = {"unit": "seconds"} if bench else {"type": "gputime"}
        margins = {
            key: margin_percent
            for key, (name, _) in opened.places().items()
            if wanted.items() <= opened.benchmarks[name].items()
        }
        if not margins:
            raise UsageError(f"--bench: expected benchmarks that give seconds, got {', '.join(opened.benchmarks)}")
        return measure(opened, *commits, margins=margins, family_alpha=family_alpha, max_rounds=max_rounds)


def measure(
    opened: Project,
    base: str,
    head: str,
    *,
    margins: Mapping[str, float],
    limits: Mapping[str, float] | None = None,
    new: Mapping[str, float] | None = None,
    removed: Mapping[str, str] | None = None,
    family_alpha: float,
    max_rounds: int,
) -> Comparison:
    """Compare two commits until there is a verdict on all benchmarks together, or rounds are used up.

    Args:
        opened: the project.
        base, head: full hashes.
        margins: benchmark, spelt as `asv_bench_gpu.project.key` does -> by how many percent it may be slower.
        limits: benchmark -> by how much its number may be larger.
        new: benchmark that base may say it cannot measure -> how large head's number may be then.
        removed: benchmark that head must say it cannot measure -> why that is accepted.
        family_alpha, max_rounds: as for `asv_bench_gpu.verdict.judge`.

    Raises:
        UsageError: numbers with which no verdict is possible, or a damaged record.
    """
    session = Session(opened, base, head, margins, limits or {}, family_alpha, max_rounds, new=new, removed=removed)
    session.run()
    return session.comparison


class Session:
    """The state of one comparison; arguments are as for `measure`.

    With ``slowdowns_percent``, head's times are measured with each of these slowdowns, too. A ``twin`` has base's code,
    and is timed all the same: to find out about noise.
    """

    def __init__(
        self,
        opened: Project,
        base: str,
        head: str,
        margins: Mapping[str, float],
        limits: Mapping[str, float],
        family_alpha: float,
        max_rounds: int,
        slowdowns_percent: Sequence[int] = (),
        *,
        twin: bool = False,
        new: Mapping[str, float] | None = None,
        removed: Mapping[str, str] | None = None,
    ):
        self.project = opened
        self.slowdowns_percent = slowdowns_percent
        self.same_code_counts = not twin and base != head
        #: Of what is not timed, because nothing can be slower.
        self.identical: dict[str, Row] = {}
        #: Of what is judged, in the rounds until it passed.
        self.times: dict[str, list[verdict.Pair]] = {}
        self.places = opened.places()
        self.margins = margins
        self.limits = limits
        self.new = new or {}
        self.removed = removed or {}
        self.judge = functools.partial(
            verdict.judge, margin_percent=margins, family_alpha=family_alpha, max_rounds=max_rounds
        )
        try:
            self.judge(dict.fromkeys(margins, ()))
        except ValueError as error:
            raise UsageError(str(error)) from error
        # What makes a round one of this comparison. The margin does not: the bounds of a ratio are the same for all.
        self.identity = hashlib.sha256(
            json.dumps(
                [base, head, opened.environment.name, max_rounds, self._versions(margins), self._versions(limits)]
            ).encode()
        ).hexdigest()
        name = f"{base[:8]}-{head[:8]}-{self.identity[:8]}{journal.PAIRS_SUFFIX}"
        self.record = Path(opened.conf.results_dir, opened.machine, "comparisons", name)
        self.comparison = Comparison(opened.machine, base, head, family_alpha, max_rounds, str(self.record))

    def run(self) -> None:
        """Look at pairs until there is a verdict, a problem, or no further round."""
        for pair in self.pairs(self.comparison.max_rounds if self.margins else 0):
            clear = False
            self.comparison.problems = self.problems(pair)
            if pair.base.round and not self.comparison.problems:
                clear = self._judge(pair) != "undecided"
            for what, message in self.comparison.problems.items():
                project.say(f"FAILED {what}: {message.strip()}")
            if clear or self.comparison.problems or not self._judged():
                return

    def pairs(self, last: int) -> Iterator[Pair]:
        """Rounds 0 to ``last``, from the record or measured; the machine is warmed up before the first of these.

        It ends early, and the comparison is unsettled, where a round is disturbed in every attempt.
        """
        recorded = self._recorded()
        warm = False
        for number in range(last + 1):
            of_number = (pair for pair in recorded if pair.base.round == number)
            # The first that counts: what a later warm-up finds takes nothing back.
            pair = next((pair for pair in of_number if not self.problems(pair) and not self._disturbances(pair)), None)
            if not pair:
                if number and not warm:
                    yield self._measure(0)
                warm = True
                pair = self._undisturbed(number)
            if not pair:
                return
            if number == 0 and not self.problems(pair):
                self._begin(pair)
            yield pair

    def _recorded(self) -> list[Pair]:
        """The finished pairs, oldest first."""
        recorded = project.recorded(journal.standing_pairs, self.record)
        commits = [self.comparison.base, self.comparison.head]
        for pair in recorded:
            if [pair.base.commit, pair.head.commit] != commits:
                raise UsageError(f"damaged record: {self.record}: a pair is of other commits; remove the file")
        return recorded

    def _undisturbed(self, number: int) -> Pair | None:
        """Measure a round until it counts; None, and the comparison is unsettled, if it never does."""
        for _ in range(ATTEMPTS):
            pair = self._measure(number)
            disturbances = self._disturbances(pair)
            if not disturbances:
                return pair
            project.say(f"round {number} does not count: {', '.join(disturbances)}")
        self.comparison.unsettled = ", ".join(disturbances)
        return None

    def _measure(self, number: int) -> Pair:
        """Both commits, in the order that a coin says, which is the same whenever the round is measured again."""
        selected: dict[str, list[int]] = {}
        for name, index in (self.places[key] for key in self._keys(number)):
            selected.setdefault(name, []).append(index)
        base_first = random.Random(f"{self.identity} {number}").random() < 0.5  # noqa: S311  (a coin, no secret)
        rounds = {}
        for side in SIDES if base_first else SIDES[::-1]:
            commit = getattr(self.comparison, side)
            label = f"round {number}, {side} {commit[:8]}"
            slowdowns = self.slowdowns_percent if side == "head" and number else ()
            rounds[side] = self.project.measure(commit, number, selected, label, slowdowns_percent=slowdowns)
        pair = Pair(**rounds)
        journal.append(self.record, pair)
        return pair

    def _keys(self, number: int) -> list[str]:
        """What a round measures."""
        if not number:
            return [*self.margins, *self.limits]
        return [key for key in self.margins if not self._has_passed(key)]

    def _has_passed(self, key: str) -> bool:
        """Whether a benchmark need not be measured again: it runs the same code, or was judged not to be slower."""
        row = self.comparison.rows.get(key)
        return row is not None and row.verdict == "pass"

    def _judged(self) -> list[str]:
        """Whose times are judged together. Round 0 decides: who belongs to the family must not depend on its times."""
        comparison = self.comparison
        left_out = comparison.skipped | comparison.new | comparison.removed | self.identical
        return [key for key in self.margins if key not in left_out]

    def problems(self, pair: Pair) -> dict[str, str]:
        """Why there is no verdict with this pair: what is wrong or missing -> a message.

        What neither commit could measure here in round 0 is no problem, unless it is everything; nor what base could
        not, where it may be new; nor what head could not, where it was removed.
        """
        number, rounds = pair.base.round, {"base": pair.base, "head": pair.head}
        failed = {
            f"{side} {entry.commit[:8]}, {entry.failed}": entry.message
            for side, entry in rounds.items()
            if entry.failed
        }
        if failed:
            return failed
        versions = {name: benchmark["version"] for name, benchmark in self.project.benchmarks.items()}
        stale = {
            f"{name} of {side}": f"its version is {figures.version}, expected {versions[name]}: the suite has changed"
            for side, entry in rounds.items()
            for name, figures in entry.figures.items()
            if name in versions and figures.version != versions[name]
        }
        if stale:
            return stale
        found = {side: Found.of(entry) for side, entry in rounds.items()}
        unverified = {
            f"{side} {entry.commit[:8]}, verification": _UNVERIFIED
            for side, entry in rounds.items()
            if found[side].values and not entry.verified
        }
        if unverified:
            return unverified
        if number:
            skipped, new, removed = self.comparison.skipped, self.comparison.new, self.comparison.removed
        else:
            skipped, new, removed = self._absent(**found)
        absent = {"base": skipped | new, "head": skipped | removed}
        problems = {
            f"{key} of {side}": found[side].why_missing(key)
            for key in self._keys(number)
            for side in SIDES
            if key not in found[side].values and key not in absent[side]
        }
        if not number:
            # A number that is new has a limit, a time that is new has nothing.
            for what, keys, of in (
                ("every time", self.margins, skipped | new | removed),
                ("every quantity", self.limits, skipped | removed),
            ):
                if keys and keys.keys() <= of.keys():
                    problems[what] = f"not measured here: {of[next(iter(keys))]}"
            problems |= {
                f"{key} of head": "its removal was accepted, but head measures it"
                for key in self.removed
                if key in found["head"].values
            }
        return problems | {
            f"{key} of {side}": f"skipped in round 0, but measured now; to start over, remove {self.record}"
            for side in SIDES
            for key in absent[side]
            if number and key in found[side].values
        }

    def _absent(self, base: Found, head: Found) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """What neither commit can measure; what only base cannot, being new; what only head, being removed: why."""
        skipped = {key: reason for key, reason in base.skipped.items() if key in head.skipped}
        new = {key: reason for key, reason in base.skipped.items() if key in self.new and key in head.values}
        removed = {
            key: f"{self.removed[key]}: {reason}"
            for key, reason in head.skipped.items()
            if key in self.removed and key in base.values
        }
        return skipped, new, removed

    def _disturbances(self, pair: Pair) -> list[str]:
        """What slowed the GPU down in a round; it does not matter to the warm-up."""
        if not pair.base.round:
            return []
        found: set[str] = set()
        for entry in (pair.base, pair.head):
            for state in entry.device_states:
                if state:
                    found.update(state.disturbances())
                elif "driver" in entry.facts:
                    found.add("the state of the GPU is unknown")
            if "gpu" in entry.facts and not entry.canary:
                found.add("no canary was timed")
        return sorted(found.union(canary.moved([pair.base.canary, pair.head.canary])))

    def _begin(self, pair: Pair) -> None:
        """Take from round 0 what needs no clock: what cannot be measured here, or need not be, and the quantities."""
        comparison = self.comparison
        base, head = Found.of(pair.base), Found.of(pair.head)
        skipped, comparison.new, comparison.removed = self._absent(base, head)
        comparison.skipped = {key: skipped[key] for key in self._keys(0) if key in skipped}
        quantities = {}
        for key, increase in self.limits.items():
            if key not in comparison.skipped | comparison.removed:
                before, now = base.values.get(key), head.values[key]
                limit = self.new[key] if before is None else before + increase
                unit = self.project.benchmarks[self.places[key][0]]["unit"]
                quantities[key] = Quantity("fail" if now > limit else "pass", before, now, limit, unit)
        if self.same_code_counts:
            untimed = vars(verdict.Row("pass", None, None, None, 0, 0, "the same compiled code in both commits"))
            self.identical = {
                key: Row(**untimed, margin_percent=margin, base_seconds=None, head_seconds=None, identical=True)
                for key, margin in self.margins.items()
                if head.code.get(key) and head.code[key] == base.code.get(key)
            }
        comparison.rows = dict(self.identical)
        comparison.quantities = _worst_first(quantities, lambda quantity: quantity.head - (quantity.base or 0))

    def _judge(self, pair: Pair) -> Verdict:
        """Look at all rounds, of which this is the next."""
        comparison = self.comparison
        base, head = Found.of(pair.base), Found.of(pair.head)
        for key in self._judged():
            if not self._has_passed(key):
                self.times.setdefault(key, []).append((base.values.get(key), head.values.get(key)))
        rows = {
            key: Row(
                **vars(row),
                margin_percent=self.margins[key],
                base_seconds=_median(before for before, _ in self.times[key]),
                head_seconds=_median(now for _, now in self.times[key]),
            )
            for key, row in self.judge(self.times).rows.items()
        }
        comparison.rounds += 1
        comparison.rows = _worst_first(rows, lambda row: row.ratio or math.inf) | self.identical
        comparison.problems = {key: row.reason for key, row in rows.items() if row.missing}
        counts = Counter(row.verdict for row in rows.values())
        seconds = pair.base.seconds + pair.head.seconds
        project.say(
            f"round {comparison.rounds}/{comparison.max_rounds}, {seconds:.1f} s: "
            f"{counts['pass']} pass, {counts['fail']} fail, {counts['undecided']} undecided"
        )
        return verdict.together(row.verdict for row in rows.values())

    def _versions(self, keys: Iterable[str]) -> list[list[str]]:
        return [[key, self.project.benchmarks[self.places[key][0]]["version"]] for key in sorted(keys)]


@dataclasses.dataclass
class Found:
    """What a round found, by benchmark."""

    values: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    slowed: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, entry: Round) -> Found:
        """Read a round."""
        found = cls()
        for name, figures in entry.figures.items():
            keys = [project.key(name, combination) for combination in project.combinations(figures.params)]
            found.values.update(
                (key, value) for key, value in zip(keys, figures.values, strict=True) if value is not None
            )
            for reason, indices in figures.skipped.items():
                found.skipped.update((keys[index], reason) for index in indices)
            found.errors.update((keys[int(index)], message) for index, message in figures.errors.items())
            found.code.update((keys[int(index)], code) for index, code in figures.code.items())
            found.slowed.update((keys[int(index)], slowed) for index, slowed in figures.slowed.items())
        return found

    def why_missing(self, key: str) -> str:
        """Why there is no figure."""
        return self.errors.get(key) or self.skipped.get(key) or "its suite does not have it"


Judged = TypeVar("Judged", Row, Quantity)


def _worst_first(judged: dict[str, Judged], badness: Callable[[Judged], float]) -> dict[str, Judged]:
    return dict(sorted(judged.items(), key=lambda item: (_WORST_FIRST.index(item[1].verdict), -badness(item[1]))))


def _median(times: Iterable[float | None]) -> float | None:
    known = [seconds for seconds in times if seconds is not None]
    return statistics.median(known) if known else None

"""What has become slower or faster in the recorded history, by which commit, and what of that is known.

A series is the times of one benchmark with its parameters, on one machine in one set-up, commit by commit: another
torch, triton or GPU is another series, and figures of another version of the benchmark do not count.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from asv_bench_gpu import changes
from asv_bench_gpu.policy import Accepted
from asv_bench_gpu.project import UsageError
from asv_bench_gpu.report.data import Commit, Figure, History, Measurement

#: Of a slowdown: known and accepted; gone in the newest commit; or neither. A change for the better is "faster".
Standing = Literal["open", "acknowledged", "recovered", "faster"]
#: The full hashes of the commits after one and up to another.
Between = Callable[[str, str], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Change:
    """One benchmark's time changed at one commit.

    Attributes:
        benchmark: asv's name.
        key: with its parameters, as asv spells them.
        machine, environment: where.
        before: the last commit measured before; the cause lies after it.
        commit: the first one measured with the new time.
        ratio: time after / before; above 1, slower.
        low, high: its bounds.
        chance: at most this probable is it that noise shows as much anywhere in the history.
        before_seconds, after_seconds: median over the rounds of the commits between two changes.
        standing: what is known of it.
        reason: of the acknowledgement, or "".
    """

    benchmark: str
    key: str
    machine: str
    environment: str
    before: Commit
    commit: Commit
    ratio: float
    low: float
    high: float
    chance: float
    before_seconds: float
    after_seconds: float
    standing: Standing
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """All changes, and what they were looked for in.

    Attributes:
        changes: open slowdowns first, in each group the largest first.
        series: how many there are.
        blind: how many of them have too few commits or rounds to show a change.
        tests: how many tests were possible.
        margin_percent: smaller changes are not looked for.
        family_alpha: greatest probability that anything is listed of a history without larger changes.
        unmatched: acknowledgements of what is not there, unless only a part of the benchmarks was looked at.
        problems: what of the record could not be read.
    """

    changes: list[Change]
    series: int
    blind: int
    tests: int
    margin_percent: float
    family_alpha: float
    unmatched: list[str]
    problems: list[str]

    def count(self, standing: Standing) -> int:
        """How many changes are of this standing."""
        return sum(change.standing == standing for change in self.changes)

    @property
    def open_commits(self) -> int:
        """How many commits have an open slowdown."""
        return len({change.commit.hash for change in self.changes if change.standing == "open"})

    @property
    def exit_code(self) -> int:
        """2 if there is nothing to look at, or something is missing; else 1 if a slowdown is open, else 0."""
        if self.problems or self.blind == self.series:
            return 2
        return 1 if self.count("open") else 0


@dataclasses.dataclass(frozen=True)
class _Key:
    """What makes a series."""

    machine: str
    setup: tuple[tuple[str, str], ...]
    benchmark: str
    key: str


_Points = list[tuple[Commit, Figure]]


def find(
    history: History,
    acknowledged: Sequence[tuple[Accepted, str]],
    between: Between,
    *,
    bench: str | None = None,
    margin_percent: float = changes.MARGIN_PERCENT,
    family_alpha: float = changes.FAMILY_ALPHA,
) -> Findings:
    """Look for changes in every series of times.

    Args:
        history: what is recorded.
        acknowledged: slowdowns that are known, and the full hash of each one's commit.
        between: asks git about commits.
        bench: regular expression; only benchmarks that match, spelt with their parameters.
        margin_percent, family_alpha: as for `changes.find`.

    Raises:
        UsageError: an argument is not as above, or no recorded time matches ``bench``.
    """
    series = _series(history, bench)
    if bench and not series:
        raise UsageError(f"--bench: no recorded time matches {bench!r}")
    rounds = {key: [figure.samples for _, figure in points] for key, points in series.items()}
    try:
        found = changes.find(rounds, margin_percent=margin_percent, family_alpha=family_alpha)
    except ValueError as error:
        raise UsageError(str(error)) from error
    listed = [
        change for key, steps in found.steps.items() for change in _changes(key, series[key], steps, margin_percent)
    ]
    listed, unmatched = _acknowledge(listed, acknowledged, functools.cache(between))
    rank = ("open", "acknowledged", "recovered", "faster").index
    return Findings(
        changes=sorted(listed, key=lambda change: (rank(change.standing), -max(change.ratio, 1 / change.ratio))),
        series=len(series),
        blind=len(found.blind),
        tests=found.tests,
        margin_percent=margin_percent,
        family_alpha=family_alpha,
        unmatched=[] if bench else unmatched,
        problems=history.problems,
    )


def _series(history: History, bench: str | None) -> dict[_Key, _Points]:
    """The times that have a figure of each round, by series, oldest commit first."""
    try:
        wanted = re.compile(bench or "")
    except re.error as error:
        raise UsageError(f"--bench: expected a regular expression, got {bench!r}: {error}") from error
    series: dict[_Key, _Points] = {}
    for measurement in history.measurements:
        for key, figure in _times(history, measurement):
            if wanted.search(key.key):
                series.setdefault(key, []).append((measurement.commit, figure))
    return series


def _times(history: History, measurement: Measurement) -> Iterable[tuple[_Key, Figure]]:
    for name, result in measurement.results.items():
        benchmark = history.benchmarks[name]
        if benchmark.unit != "seconds":
            continue
        for labels, key in zip(benchmark.combinations(), benchmark.keys, strict=True):
            figure = result.figures.get(labels)
            if figure is not None and figure.samples and min(figure.samples) > 0:
                yield _Key(measurement.machine, measurement.setup, name, key), figure


def _changes(key: _Key, points: _Points, steps: list[changes.Step], margin_percent: float) -> Iterable[Change]:
    """The steps of a series in words of commits."""
    starts = [0, *(step.at for step in steps), len(points)]
    levels = [
        statistics.median(sample for _, figure in points[start:end] for sample in figure.samples)
        for start, end in itertools.pairwise(starts)
    ]
    for step, (before, after) in zip(steps, itertools.pairwise(levels), strict=True):
        standing: Standing = "faster"
        if step.ratio > 1:
            standing = "recovered" if levels[-1] <= before * (1 + margin_percent / 100) else "open"
        yield Change(
            benchmark=key.benchmark,
            key=key.key,
            machine=key.machine,
            environment=dict(key.setup).get("environment", ""),
            before=points[step.at - 1][0],
            commit=points[step.at][0],
            ratio=step.ratio,
            low=step.low,
            high=step.high,
            chance=step.chance,
            before_seconds=before,
            after_seconds=after,
            standing=standing,
        )


def _acknowledge(
    listed: list[Change], acknowledged: Sequence[tuple[Accepted, str]], between: Between
) -> tuple[list[Change], list[str]]:
    """Mark the slowdowns that are known; also returns, in words, the entries that match none.

    An entry names the commit at which the change is listed, or any other since the one measured before.
    """
    unmatched = []
    for number, (entry, commit) in enumerate(acknowledged, start=1):
        matching = [
            index
            for index, change in enumerate(listed)
            if change.ratio > 1
            and re.search(entry.benchmarks, change.key)
            and commit in between(change.before.hash, change.commit.hash)
        ]
        for index in matching:
            listed[index] = dataclasses.replace(listed[index], standing="acknowledged", reason=entry.reason)
        if not matching:
            unmatched.append(f"acknowledged[{number}]: no slowdown of {entry.benchmarks} by {commit[:8]} is found")
    return listed, unmatched

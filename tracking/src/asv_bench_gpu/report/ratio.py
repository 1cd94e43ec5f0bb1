"""Subject against baseline: per shape, over all shapes, and since when. Pure functions on loaded results."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Sequence

from asv_bench_gpu.report.data import Benchmark, Commit, Figure, Measurement, Refusal
from asv_bench_gpu.report.site import RatioSpec, SiteError

Shape = tuple[str, str]  # group, x


class Verdict(enum.Enum):
    """How the subject stands against the baseline on one shape."""

    FASTER = "faster"
    EQUAL = "equal"
    SLOWER = "slower"
    UNJUDGED = "unjudged"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One shape.

    Attributes:
        shape: (group, x).
        subject, baseline: the figures compared.
        floor: what nothing can beat, if measured.
        margin_percent: differences up to this count as equal; few rounds alone cannot tell less from noise.
    """

    shape: Shape
    subject: Figure
    baseline: Figure
    floor: Figure | None = None
    margin_percent: float = 0.0

    @property
    def ratio(self) -> float:
        """Median over median; above 1 the subject is slower."""
        return self.subject.value / self.baseline.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ratio's extremes when either side lies anywhere between its quartiles; None when unknown."""
        subject, baseline = self.subject, self.baseline
        if min(subject.rounds, baseline.rounds) < 2:
            return None
        if subject.low is None or subject.high is None or not baseline.low or not baseline.high:
            return None
        return subject.low / baseline.high, subject.high / baseline.low

    @property
    def verdict(self) -> Verdict:
        """Equal where the interquartile ranges overlap or the margin is not exceeded; unjudged without ranges."""
        if self.interval is None:
            return Verdict.UNJUDGED
        low, high = self.interval
        within_margin = abs(math.log(self.ratio)) <= math.log1p(self.margin_percent / 100)
        if low <= 1 <= high or within_margin:
            return Verdict.EQUAL
        return Verdict.FASTER if high < 1 else Verdict.SLOWER


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """All shapes of one measurement, in the benchmark's order.

    Attributes:
        of: the measurement.
        found: shape -> Comparison.
        missing: shape -> why there is no comparison.
    """

    of: Measurement
    found: dict[Shape, Comparison]
    missing: dict[Shape, str]

    def count(self, verdict: Verdict) -> int:
        """How many shapes have this verdict."""
        return sum(comparison.verdict is verdict for comparison in self.found.values())


@dataclasses.dataclass(frozen=True)
class Point:
    """One commit in the history of the ratio, over the shapes common to all commits.

    Attributes:
        of: the measurement.
        mean: geometric mean of the ratios.
        low, high: the smallest and the largest ratio.
        not_above_one: shapes with a ratio of at most 1.
        shapes: shapes looked at.
    """

    of: Measurement
    mean: float
    low: float
    high: float
    not_above_one: int
    shapes: int


@dataclasses.dataclass(frozen=True)
class Since:
    """Shapes whose verdict has held since the same commit."""

    costs: bool
    commit: Commit
    shapes: list[Shape]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean that treats twice as fast and twice as slow alike.

    >>> round(geometric_mean([0.5, 2.0]), 12)
    1.0
    """
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))


def compare(measurement: Measurement, benchmark: Benchmark, spec: RatioSpec) -> Comparisons:
    """Every shape of ``benchmark`` in ``measurement``.

    Raises:
        SiteError: the benchmark's parameters are not the three that ``spec`` names.
    """
    wanted = (spec.group_param, spec.x_param, spec.series_param)
    if sorted(benchmark.param_names) != sorted(wanted):
        raise SiteError(f"{benchmark.name} has parameters {benchmark.param_names}, the site names {wanted}")
    result = measurement.results[benchmark.name]
    found: dict[Shape, Comparison] = {}
    missing: dict[Shape, str] = {}
    position = {name: benchmark.param_names.index(name) for name in wanted}
    for group in benchmark.params[position[spec.group_param]]:
        for x in benchmark.params[position[spec.x_param]]:
            sides: list[Figure | None] = []
            reasons: list[str] = []
            for series in (spec.subject, spec.baseline, spec.floor):
                chosen = {spec.group_param: group, spec.x_param: x, spec.series_param: series}
                key = tuple(str(chosen[name]) for name in benchmark.param_names)
                figure = result.figures.get(key)
                if figure is not None and figure.value <= 0:
                    figure = None
                if figure is None:
                    reasons.append(f"{series}: {result.missing.get(key, 'no figure')}")
                sides.append(figure)
            subject, baseline, floor = sides
            if subject is not None and baseline is not None:
                found[group, x] = Comparison((group, x), subject, baseline, floor, spec.margin_percent)
            else:
                missing[group, x] = "; ".join(reasons[:2] if spec.floor is None else reasons)
    return Comparisons(measurement, found, missing)


def history(series: Sequence[Comparisons]) -> list[Point]:
    """The ratio commit by commit, over the shapes that every commit has; empty when there is none."""
    common = set.intersection(*(set(entry.found) for entry in series)) if series else set()
    if not common:
        return []
    points = []
    for entry in series:
        ratios = [entry.found[shape].ratio for shape in entry.found if shape in common]
        points.append(
            Point(
                of=entry.of,
                mean=geometric_mean(ratios),
                low=min(ratios),
                high=max(ratios),
                not_above_one=sum(ratio <= 1 for ratio in ratios),
                shapes=len(ratios),
            )
        )
    return points


def since(series: Sequence[Comparisons], refusals: Sequence[Refusal] = ()) -> list[Since]:
    """Since when today's verdict has held, shape by shape, grouped by commit.

    Walking back from the newest commit, a shape's run ends at a commit where the answer differs, where the shape
    has no figure or no verdict, or which has no figures at all (``refusals``): what was not shown does not count.

    Returns:
        Groups of shapes; those where the subject costs something last, the newest commit first.
    """
    if not series:
        return []
    barriers = [refusal.commit.order for refusal in refusals]
    groups: dict[tuple[bool, str], Since] = {}
    newest = series[-1]
    for shape, comparison in newest.found.items():
        if comparison.verdict is Verdict.UNJUDGED:
            continue
        costs = comparison.verdict is Verdict.SLOWER
        first = newest
        for entry in reversed(series[:-1]):
            earlier = entry.found.get(shape)
            if earlier is None or earlier.verdict is Verdict.UNJUDGED:
                break
            if (earlier.verdict is Verdict.SLOWER) is not costs:
                break
            if any(entry.of.commit.order < order < first.of.commit.order for order in barriers):
                break
            first = entry
        group = groups.setdefault((costs, first.of.commit.hash), Since(costs, first.of.commit, []))
        group.shapes.append(shape)
    ordered = sorted(groups.values(), key=lambda group: group.commit.order, reverse=True)
    return sorted(ordered, key=lambda group: group.costs)


def per_commit(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One measurement per commit: where a commit was measured in several set-ups, the latest one."""
    latest: dict[str, Measurement] = {}
    for measurement in sorted(measurements, key=lambda m: m.started):
        latest[measurement.commit.hash] = measurement
    return sorted(latest.values(), key=lambda m: m.commit.order)

"""The front page and that of changes: results in, HTML out. What is said here is computed, never written by hand."""

from __future__ import annotations

import dataclasses
import itertools
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from asv_bench_gpu.report import figures, text
from asv_bench_gpu.report.asv_pages import Published
from asv_bench_gpu.report.data import Benchmark, Figure, History, Labels, Measurement, Refusal
from asv_bench_gpu.report.findings import Findings
from asv_bench_gpu.report.ratio import (
    Comparison,
    Comparisons,
    Point,
    Since,
    Verdict,
    compare,
    geometric_mean,
    history,
    per_commit,
    since,
)
from asv_bench_gpu.report.site import Site, SiteError, TableSpec

_TEMPLATES = Path(__file__).with_name("templates")


@dataclasses.dataclass(frozen=True)
class RatioSection:
    """The question answered on one machine.

    Attributes:
        number: tells the machines' sections apart in addresses and file names.
        head: today's comparisons.
        series: comparisons of every commit, oldest first.
        points: the history of the geometric mean.
        changes: index in ``points`` -> what changed in the set-up just before it.
        since: since when today's verdicts have held.
        newer: newer commits that have no figures.
        reference: the figure drawn as a line, if any.
        heat_map, times, history: the figures, None where there is nothing to draw.
    """

    number: int
    head: Comparisons
    series: list[Comparisons]
    points: list[Point]
    changes: dict[int, str]
    since: list[Since]
    newer: list[Refusal]
    reference: Figure | None
    heat_map: figures.Written | None
    times: figures.Written | None
    history: figures.Written | None

    @property
    def measurement(self) -> Measurement:
        """What the newest figures were measured on."""
        return self.head.of

    @property
    def ordered(self) -> list[Comparison]:
        """Today's comparisons, the slowest ratio first."""
        return sorted(self.head.found.values(), key=lambda comparison: comparison.ratio, reverse=True)

    @property
    def mean(self) -> float:
        """Geometric mean of today's ratios over every shape."""
        return geometric_mean(comparison.ratio for comparison in self.head.found.values())

    @property
    def rounds(self) -> tuple[int, int]:
        """The smallest and the largest number of rounds behind a figure."""
        return _range_of_rounds(f for c in self.head.found.values() for f in (c.subject, c.baseline))

    def count(self, name: str) -> int:
        """How many shapes have the verdict called ``name``."""
        return self.head.count(Verdict(name))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        text: what stands there.
        reason: why there is no value, or "".
        kind: "" or the verdict of a ratio.
    """

    text: str
    reason: str = ""
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: its labels and its values."""

    labels: Labels
    cells: list[Cell]


@dataclasses.dataclass(frozen=True)
class TableBlock:
    """One table on one machine, ready to be written.

    Attributes:
        measurement: what it was measured on.
        row_heads: names of the leading columns.
        columns: heads of the value columns.
        column_param: what the columns are values of, or "".
        rows: the rows, in the benchmark's order.
        unit: to be named in the caption when cells do not carry it.
        widest: the widest spread between rounds, None when the benchmark keeps no samples.
        rounds: smallest and largest number of rounds behind a cell.
        links: asv's graph of each benchmark.
        gaps: reason -> how many cells it leaves empty.
        verdicts: verdict -> how many ratios have it; empty without ratios.
    """

    measurement: Measurement
    row_heads: list[str]
    columns: list[str]
    column_param: str
    rows: list[Row]
    unit: str
    widest: float | None
    rounds: tuple[int, int]
    links: list[tuple[str, str]]
    gaps: dict[str, int]
    verdicts: dict[str, int]

    @property
    def single(self) -> bool:
        """Whether there is one value only, for which a table would be too much."""
        return len(self.rows) == 1 and len(self.columns) == 1

    @property
    def groups(self) -> list[list[Row]]:
        """The rows, those with the same first label together."""
        return [list(rows) for _, rows in itertools.groupby(self.rows, key=lambda row: row.labels[:1])]


@dataclasses.dataclass(frozen=True)
class TableSection:
    """A table of the site file: one block per machine, or the reason there is none."""

    spec: TableSpec
    anchor: str
    blocks: list[TableBlock]
    absent: str


def ratio_sections(history_: History, site: Site, folder: Path) -> list[RatioSection]:
    """Answer the site's question on every machine that has figures for it, and draw the figures into ``folder``."""
    spec = site.ratio
    benchmark = history_.benchmarks.get(spec.benchmark)
    if benchmark is None:
        return []
    sections: list[RatioSection] = []
    for machine in history_.machines_with([spec.benchmark]):
        compared = [compare(m, benchmark, spec) for m in per_commit(history_.on(machine, spec.benchmark))]
        series = [entry for entry in compared if entry.found]
        if not series:
            continue
        head = series[-1]
        refusals = [refusal for refusal in history_.refusals if refusal.machine == machine]
        reference = None
        if spec.reference is not None and spec.reference in head.of.results:
            reference = head.of.results[spec.reference].figures.get(())
        names = figures.Names(spec.subject, spec.baseline, spec.floor, spec.x_param, spec.reference_label)
        groups, xs = figures.shapes_of(head)
        points = history(series)
        changes = setup_changes(points)
        number = len(sections) + 1
        sections.append(
            RatioSection(
                number=number,
                head=head,
                series=series,
                points=points,
                changes=changes,
                since=since(series, refusals),
                newer=[refusal for refusal in refusals if refusal.commit.order > head.of.commit.order],
                reference=reference,
                heat_map=figures.heat_map(folder, f"ratio-{number}", head, groups, xs, names),
                times=figures.times(folder, f"times-{number}", head, groups, xs, names, reference),
                history=figures.history(folder, f"history-{number}", points, changes) if points else None,
            )
        )
    return sections


def table_sections(history_: History, site: Site) -> list[TableSection]:
    """The site's other tables, each on every machine that has figures for it."""
    sections = []
    for number, spec in enumerate(site.tables, start=1):
        machines = history_.machines_with(spec.benchmarks.values())
        if spec.any_machine:
            machines = machines[:1]
        blocks = [_block(history_, site, spec, machine) for machine in machines]
        known = [name for name in spec.benchmarks.values() if name in history_.benchmarks]
        absent = "" if blocks else "No figures yet." if known else "This benchmark has not been run yet."
        sections.append(TableSection(spec, f"table-{number}", blocks, absent))
    return sections


def render(site: Site, history_: History, sections: Sequence[RatioSection], tables: Sequence[TableSection],
           published: Published, project: str) -> str:  # fmt: skip
    """The front page as HTML."""
    latest = _latest(history_)
    skipped = _skipped(history_, latest)
    context = {
        "site": site,
        "project": project,
        "history": history_,
        "sections": sections,
        "tables": tables,
        "published": published,
        "graph": graph_link,
        "plural": text.plural,
        "dash": text.DASH,
        "rounds": rounds_text,
        "shape_lines": shape_lines,
        "latest": latest,
        "skipped": skipped,
    }
    return _environment().get_template("index.html.j2").render(context)


def render_changes(found: Findings, published: Published, project: str, commit_url: str) -> str:
    """The page of changes as HTML.

    Args:
        found: what changed.
        published: whether there are graphs to link to.
        project: its name.
        commit_url: address of a commit but for its hash; anything else if commits have none.
    """
    context = {
        "found": found,
        "published": published,
        "project": project,
        "commit_url": commit_url if commit_url.startswith(("https://", "http://")) else "",
        "graph": graph_link,
        "plural": text.plural,
    }
    return _environment().get_template("changes.html.j2").render(context)


def _environment() -> jinja2.Environment:
    """What fills the templates in. Everything that comes from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ratio=text.ratio,
        percent=text.percent,
        micro=text.microseconds,
        quantity=text.quantity,
        probability=text.probability,
        day=lambda moment: moment[:10],
    )
    return environment


def setup_changes(points: Sequence[Point]) -> dict[int, str]:
    """Where the machine's software or hardware changed between neighbouring commits, and to what."""
    changes = {}
    for index, (before, after) in enumerate(itertools.pairwise(points), start=1):
        new = sorted(set(after.of.setup) - set(before.of.setup))
        if before.of.setup != after.of.setup:
            changes[index] = ", ".join(f"{key} {value}" for key, value in new) or "another set-up"
    return changes


def graph_link(benchmark: str) -> str:
    """asv's graph of ``benchmark``, from the front page."""
    return f"asv/index.html#{urllib.parse.quote(benchmark)}"


def rounds_text(rounds: tuple[int, int]) -> str:
    """How many rounds are behind the figures of a block."""
    low, high = rounds
    if high == 0:
        return "one value each, no rounds"
    return text.plural(high, "round") if low == high else f"{low} to {high} rounds"


def shape_lines(shapes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Shapes grouped for reading: (group, its x values)."""
    grouped: dict[str, list[str]] = {}
    for group, x in shapes:
        grouped.setdefault(group, []).append(x)
    return [(group, ", ".join(xs)) for group, xs in grouped.items()]


def _block(history_: History, site: Site, spec: TableSpec, machine: str) -> TableBlock:
    named = {label: history_.benchmarks[name] for label, name in spec.benchmarks.items() if name in history_.benchmarks}
    measurement = max(
        (m for benchmark in named.values() for m in history_.on(machine, benchmark.name)),
        key=lambda m: (m.commit.order, m.started),
    )
    first = next(iter(named.values()))
    for benchmark in named.values():
        if benchmark.param_names != first.param_names:
            raise SiteError(f"{benchmark.name} and {first.name} have different parameters: make two tables")
    series = site.ratio.series_param if spec.ratio else None
    for name in (spec.columns, series):
        if name is not None and name not in first.param_names:
            raise SiteError(f"{first.name} has no parameter {name!r}")
    # The compared series stand below each other, so their parameter comes last.
    row_params = [name for name in first.param_names if name not in (spec.columns, series)]
    row_params += [series] if series is not None else []
    columns = _columns(named.values(), spec.columns)
    units = {benchmark.unit for benchmark in named.values()}
    unit = units.pop() if len(units) == 1 and not units & {"bytes"} else ""

    def figure_at(benchmark: Benchmark, combination: Labels, column: str) -> Figure | str:
        chosen = dict(zip(row_params, combination, strict=True))
        if spec.columns is not None:
            chosen[spec.columns] = column
        key = tuple(chosen[name] for name in benchmark.param_names)
        result = measurement.results.get(benchmark.name)
        if result is None:
            return "not measured"
        return result.figures.get(key) or result.missing.get(key, "no such combination")

    rows: list[Row] = []
    used: list[Figure] = []
    gaps: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    many = len(spec.benchmarks) > 1
    combinations = dict.fromkeys(c for b in named.values() for c in _row_combinations(b, row_params))
    for combination, (label, benchmark) in itertools.product(combinations, named.items()):
        found = [figure_at(benchmark, combination, column) for column in columns]
        figures_ = [figure for figure in found if isinstance(figure, Figure)]
        used.extend(figures_)
        for reason in found:
            if isinstance(reason, str):
                gaps[reason] = gaps.get(reason, 0) + 1
        if figures_:
            # Beside other quantities, bytes are counts as well: the label says what is counted.
            shown = "µs" if unit == "seconds" else "" if many and benchmark.unit == "bytes" else benchmark.unit
            cells = [_cell(figure, shown) for figure in found]
            rows.append(Row((*combination, label) if many else combination, cells))
        if series is not None and combination[-1] == site.ratio.baseline:
            subject = (*combination[:-1], site.ratio.subject)
            ours = [figure_at(benchmark, subject, column) for column in columns]
            compared = [
                _compared(one, other, site.ratio.margin_percent) for one, other in zip(ours, found, strict=True)
            ]
            for cell in compared:
                if cell.kind:
                    verdicts[cell.kind] = verdicts.get(cell.kind, 0) + 1
            if any(cell.kind for cell in compared):
                labels = (*combination[:-1], f"{site.ratio.subject} / {site.ratio.baseline}")
                rows.append(Row((*labels, label) if many else labels, compared))
    spreads = [figure.spread for figure in used if figure.spread is not None]
    return TableBlock(
        measurement=measurement,
        row_heads=[*row_params, *(["quantity"] if many else [])],
        columns=columns if spec.columns is not None else [first.unit],
        column_param=spec.columns or "",
        rows=rows,
        unit={"seconds": "µs", "unit": ""}.get(unit, unit),
        widest=max(spreads, default=None),
        rounds=_range_of_rounds(used),
        links=[(label or benchmark.name, graph_link(benchmark.name)) for label, benchmark in named.items()],
        gaps=gaps,
        verdicts={kind.value: verdicts[kind.value] for kind in Verdict if kind.value in verdicts},
    )


def _cell(figure: Figure | str, unit: str) -> Cell:
    if isinstance(figure, str):
        return Cell(text.DASH, reason=figure)
    return Cell(text.microseconds(figure.value) if unit == "µs" else text.quantity(figure.value, unit))


def _compared(subject: Figure | str, baseline: Figure | str, margin_percent: float) -> Cell:
    if isinstance(subject, str) or isinstance(baseline, str) or min(subject.value, baseline.value) <= 0:
        return Cell(text.DASH, reason="one of the two has no figure")
    comparison = Comparison(("", ""), subject, baseline, margin_percent=margin_percent)
    mark = figures.MARKS.get(comparison.verdict, "")
    return Cell(mark + text.ratio(comparison.ratio), kind=comparison.verdict.value)


def _columns(benchmarks: Any, param: str | None) -> list[str]:
    if param is None:
        return [""]
    columns: dict[str, None] = {}
    for benchmark in benchmarks:
        columns.update(dict.fromkeys(benchmark.params[benchmark.param_names.index(param)]))
    return list(columns)


def _row_combinations(benchmark: Benchmark, names: Sequence[str]) -> list[Labels]:
    return list(itertools.product(*(benchmark.params[benchmark.param_names.index(name)] for name in names)))


def _range_of_rounds(figures_: Any) -> tuple[int, int]:
    counts = [figure.rounds for figure in figures_]
    return (min(counts), max(counts)) if counts else (0, 0)


def _latest(history_: History) -> list[Measurement]:
    """The newest measurement of every machine."""
    newest: dict[str, Measurement] = {}
    for measurement in history_.measurements:
        newest[measurement.machine] = measurement
    return [newest[machine] for machine in sorted(newest)]


def _skipped(history_: History, latest: Sequence[Measurement]) -> list[tuple[Measurement, str, str, int, int]]:
    """What has no figure on a machine's newest commit: (measurement, benchmark, reason, how many, of how many)."""
    found = []
    for measurement in latest:
        for name, benchmark in history_.benchmarks.items():
            total = len(benchmark.combinations())
            result = measurement.results.get(name)
            if result is None:
                found.append((measurement, name, "not measured", total, total))
                continue
            counts: dict[str, int] = {}
            for reason in result.missing.values():
                counts[reason] = counts.get(reason, 0) + 1
            found.extend((measurement, name, reason, count, total) for reason, count in counts.items())
    return found

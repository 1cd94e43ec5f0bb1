"""Figures as SVG: reproducible to the byte, in a light and a dark version, and legible without colour vision."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from asv_bench_gpu.report import text
from asv_bench_gpu.report.data import Figure
from asv_bench_gpu.report.ratio import Comparisons, Point, Shape, Verdict

# The browser's own interface font; DejaVu, which the layout was computed with, is wider than any of these.
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# What stands before a ratio that is neither faster nor slower.
MARKS = {Verdict.EQUAL: "≈", Verdict.UNJUDGED: "?"}

# Where the colours of `Theme.scale` stand: closer around 1, where a few percent are to be seen.
_STOPS = (0.0, 0.22, 0.4, 0.5, 0.6, 0.78, 1.0)


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours. Blue is faster and orange slower, which every common kind of colour vision tells apart."""

    suffix: str
    ground: str
    ink: str
    muted: str
    grid: str
    subject: str
    baseline: str
    floor: str
    scale: tuple[str, ...]


LIGHT = Theme("", "#ffffff", "#1c2128", "#656d76", "#e4e7eb", "#0b62b0", "#c2570c", "#8a929b",
              ("#08519c", "#4f93c9", "#bcd9ee", "#f7f7f5", "#fbd3a6", "#ee9547", "#a8480a"))  # fmt: skip
DARK = Theme("-dark", "#161b22", "#e6edf3", "#9198a1", "#2b323b", "#58a6ff", "#f0883e", "#7d8590",
             ("#6cb6ff", "#3b82c4", "#245587", "#2a2f37", "#85501c", "#b96a24", "#ffa657"))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Written:
    """A figure on disk.

    Attributes:
        light, dark: file names.
        width, height: in CSS pixels, so that the page does not jump while it loads.
    """

    light: str
    dark: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Names:
    """What the figures call things."""

    subject: str
    baseline: str
    floor: str | None
    x: str
    reference: str | None = None


def heat_map(folder: Path, name: str, comparisons: Comparisons, groups: Sequence[str], xs: Sequence[str],
             names: Names) -> Written:  # fmt: skip
    """The ratio over groups (rows) and x (columns), one annotated cell per shape."""
    logs = np.full((len(groups), len(xs)), np.nan)
    for row, group in enumerate(groups):
        for column, x in enumerate(xs):
            found = comparisons.found.get((group, x))
            if found is not None:
                logs[row, column] = math.log2(found.ratio)
    known = np.abs(logs[np.isfinite(logs)])
    largest = float(known.max()) if known.size else 0.0
    # Beyond twice or half, the colour saturates and the number tells: one extreme shape must not hide the others.
    reach = min(max(largest, math.log2(1.25)), 1.0)

    def draw(theme: Theme) -> Canvas:
        canvas = Canvas(figsize=(10.6, 1.15 + 0.42 * len(groups)), layout="constrained")
        axes = canvas.add_subplot()
        colours = LinearSegmentedColormap.from_list("ratio", list(zip(_STOPS, theme.scale, strict=True)))
        norm = TwoSlopeNorm(0.0, -reach, reach)
        image = axes.imshow(logs, cmap=colours, norm=norm, aspect="auto")
        for row, group in enumerate(groups):
            for column, x in enumerate(xs):
                found = comparisons.found.get((group, x))
                if found is None:
                    axes.text(column, row, "n/a", ha="center", va="center", color=theme.muted, fontsize=8.5)
                    continue
                colour = _ink_on(colours(norm(logs[row, column])))
                mark = MARKS.get(found.verdict, "")
                axes.text(column, row, mark + text.ratio(found.ratio), ha="center", va="center",
                          color=colour, fontsize=9.5)  # fmt: skip
        axes.set_xticks(range(len(xs)), _escape(xs))
        axes.set_yticks(range(len(groups)), _escape(groups))
        axes.set_xlabel(_escape([names.x])[0])
        axes.tick_params(length=0, pad=6)
        axes.set_xticks(np.arange(-0.5, len(xs)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(groups)), minor=True)
        axes.grid(which="minor", color=theme.ground, linewidth=2)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)
        bar = canvas.colorbar(image, ax=axes, fraction=0.025, pad=0.012, aspect=22,
                              extend="both" if largest > reach else "neither")  # fmt: skip
        ticks = _ratio_ticks(reach)
        bar.set_ticks([math.log2(tick) for tick in ticks], labels=[f"{tick:g}{text.TIMES}" for tick in ticks])
        bar.ax.minorticks_off()
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
        return canvas

    return _write(folder, name, draw)


def times(folder: Path, name: str, comparisons: Comparisons, groups: Sequence[str], xs: Sequence[str],
          names: Names, reference: Figure | None) -> Written:  # fmt: skip
    """Time against x, one panel per group, with a band between the quartiles of the rounds."""
    columns = min(3, max(1, len(groups)))
    rows = math.ceil(len(groups) / columns)
    positions = _positions(xs)

    def draw(theme: Theme) -> Canvas:
        canvas = Canvas(figsize=(10.6, 0.75 + 2.25 * rows), layout="constrained")
        canvas.set_layout_engine("constrained", hspace=0.06, wspace=0.03)
        panels = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        styles: list[tuple[str, str, str, str, Any]] = [
            ("baseline", names.baseline, theme.baseline, "s", "-"),
            ("subject", names.subject, theme.subject, "o", "-"),
        ]
        if names.floor is not None:
            styles.insert(0, ("floor", names.floor, theme.floor, "", (0, (4, 2))))
        for index, panel in enumerate(panels.flat):
            if index >= len(groups):
                panel.set_visible(False)
                continue
            for side, legend, colour, marker, line in styles:
                points = [
                    (positions[x], figure)
                    for x in xs
                    if (found := comparisons.found.get((groups[index], x))) is not None
                    and (figure := getattr(found, side)) is not None
                ]
                at = [x for x, _ in points]
                micro = [figure.value * 1e6 for _, figure in points]
                low = [(figure.value if figure.low is None else figure.low) * 1e6 for _, figure in points]
                high = [(figure.value if figure.high is None else figure.high) * 1e6 for _, figure in points]
                panel.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
                panel.plot(at, micro, color=colour, marker=marker, markersize=4, linewidth=1.6,
                           linestyle=line, label=_escape([legend])[0])  # fmt: skip
            if reference is not None and reference.value > 0:
                panel.axhline(reference.value * 1e6, color=theme.muted, linewidth=1, linestyle=(0, (1, 2)),
                              label=_escape([names.reference or ""])[0])  # fmt: skip
            panel.set_title(_escape([groups[index]])[0], loc="left", fontsize=10, fontweight="bold")
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.xaxis.set_major_locator(FixedLocator([positions[x] for x in xs][:: 2 if len(xs) > 8 else 1]))
            panel.xaxis.set_minor_locator(NullLocator())
            shown = {positions[x]: x for x in xs}
            panel.xaxis.set_major_formatter(FuncFormatter(lambda at, _, shown=shown: shown.get(at, "")))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.grid(which="major", color=theme.grid, linewidth=0.8)
            panel.set_axisbelow(True)
            panel.tick_params(which="both", length=0)
            panel.spines[["top", "right"]].set_visible(False)
        first = panels[0][0]
        first.yaxis.set_major_locator(FixedLocator(_one_two_five(*first.get_ylim())))
        handles, labels = first.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=10)
        canvas.supxlabel(_escape([names.x])[0], fontsize=10, color=theme.ink)
        canvas.supylabel("µs", fontsize=10, color=theme.ink, rotation=0)
        return canvas

    return _write(folder, name, draw)


def history(folder: Path, name: str, points: Sequence[Point], changes: dict[int, str]) -> Written:
    """Geometric mean of the ratio with its extremes, and how many shapes are at most 1, commit by commit.

    ``changes`` says before which points the set-up changed, and to what.
    """

    def draw(theme: Theme) -> Canvas:
        canvas = Canvas(figsize=(10.6, 4.2), layout="constrained")
        upper, lower = canvas.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (2.4, 1)})
        at = list(range(len(points)))
        low, high = [point.low for point in points], [point.high for point in points]
        if len(points) > 1:
            upper.fill_between(at, low, high, color=theme.subject, alpha=0.16, linewidth=0)
        else:
            upper.vlines(at, low, high, color=theme.subject, alpha=0.35, linewidth=8)
        upper.plot(at, [point.mean for point in points], color=theme.subject, marker="o", markersize=5, linewidth=1.8)
        upper.axhline(1, color=theme.ink, linewidth=1)
        for x, what in changes.items():
            upper.axvline(x - 0.5, color=theme.muted, linewidth=1, linestyle=(0, (1, 2)))
            upper.annotate(
                _escape([what])[0],
                (x - 0.5, 1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(4, -3),
                va="top",
                fontsize=8.5,
                color=theme.muted,
            )
        upper.set_yscale("log")
        upper.set_ylim(min(*low, 0.8) / 1.08, max(*high, 1.25) * 1.08)
        bottom, top = upper.get_ylim()
        reach = max(abs(math.log2(bottom)), abs(math.log2(top)))
        upper.yaxis.set_major_locator(FixedLocator([t for t in _ratio_ticks(reach) if bottom <= t <= top]))
        upper.yaxis.set_minor_locator(NullLocator())
        upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{text.TIMES}"))
        upper.set_ylabel("ratio")
        last = points[-1]
        upper.annotate(text.ratio(last.mean), (at[-1], last.mean), textcoords="offset points", xytext=(8, 0),
                       va="center", color=theme.subject, fontweight="bold")  # fmt: skip
        lower.bar(at, [point.not_above_one for point in points], width=0.55, color=theme.subject)
        lower.set_ylim(0, last.shapes)
        lower.set_yticks([0, last.shapes])
        lower.set_ylabel("shapes ≤ 1")
        step = math.ceil(len(points) / 12)
        ticks = sorted(range(len(points) - 1, -1, -step))
        for x in at if len(points) <= 24 else ticks:
            lower.annotate(
                str(points[x].not_above_one),
                (x, points[x].not_above_one),
                textcoords="offset points",
                xytext=(0, 2),
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=theme.muted,
                annotation_clip=False,
            )
        lower.set_xticks(ticks, [f"{points[i].of.commit.short}\n{points[i].of.commit.date}" for i in ticks])
        lower.set_xlim(-0.6, max(len(points), 6) - 0.4)  # one commit alone is no reason for one huge bar
        for axes in (upper, lower):
            axes.grid(axis="y", color=theme.grid, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(which="both", length=0)
            axes.spines[["top", "right"]].set_visible(False)
        return canvas

    return _write(folder, name, draw)


def shapes_of(comparisons: Comparisons) -> tuple[list[str], list[str]]:
    """Groups and x values that have at least one figure, in the benchmark's order."""
    every: list[Shape] = [*comparisons.found, *comparisons.missing]
    groups = {group for group, _ in comparisons.found}
    xs = {x for _, x in comparisons.found}
    order_x = sorted(xs, key=lambda x: (_number(x) is None, _number(x) or 0.0, x))
    ordered = sorted(groups, key=[group for group, _ in every].index)
    return ordered, order_x


def _write(folder: Path, name: str, draw: Any) -> Written:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    width = height = 0
    for theme in (LIGHT, DARK):
        with _settings(theme):
            canvas = draw(theme)
            FigureCanvasAgg(canvas)
            buffer = io.BytesIO()
            # A date would make two builds of the same results differ.
            canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            width, height = (int(inches * 96) for inches in canvas.get_size_inches())
        svg = re.sub(r"font: ([^;\"]*?)(\d+(?:\.\d+)?px) [^;\"]*", rf"font: \1\2 {_FONT}", buffer.getvalue().decode())
        path = folder / f"{name}{theme.suffix}.svg"
        path.write_text(svg, encoding="utf-8")
        written.append(path.name)
    return Written(written[0], written[1], width, height)


@contextmanager
def _settings(theme: Theme) -> Iterator[None]:
    settings = {
        "svg.hashsalt": "asv_bench_gpu",
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.parse_math": False,  # names come from data and may hold a "$"
        "axes.unicode_minus": False,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
    }
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": "agg", **settings}):
        yield


def _escape(names: Sequence[str]) -> list[str]:
    """Names fit for a figure: no control characters, which XML cannot hold, and short enough to leave room."""
    clean = ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in names]
    return [name if len(name) <= 40 else f"{name[:39]}…" for name in clean]


def _positions(xs: Sequence[str]) -> dict[str, float]:
    numbers = {x: _number(x) for x in xs}
    if all(number is not None and number > 0 for number in numbers.values()):
        return {x: number for x, number in numbers.items() if number is not None}
    return {x: 2.0**index for index, x in enumerate(xs)}


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _ratio_ticks(reach: float) -> list[float]:
    candidates = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8) if reach > 1.2 else (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2)
    return [tick for tick in candidates if abs(math.log2(tick)) <= reach + 1e-9]


def _one_two_five(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


def _ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever contrasts more with ``colour`` (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"

"""The project-specific part of the pages: a small TOML file, read and checked."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any


class SiteError(ValueError):
    """The site file is missing, malformed, or names what the results do not have."""


@dataclasses.dataclass(frozen=True)
class RatioSpec:
    """Which benchmark answers the front page's question, and how its parameters are to be read.

    Attributes:
        question: what the page answers, as a question that "yes" answers when the subject is slower.
        method: how it was measured, short enough for a caption.
        benchmark: asv name of the benchmark.
        series_param: the parameter whose values are compared.
        subject, baseline: values of ``series_param``; the ratio is subject / baseline, lower is better.
        floor: value of ``series_param`` that nothing can beat, or None.
        x_param, group_param: the remaining two parameters; one shape is one (group, x).
        reference: asv name of a benchmark without parameters drawn as a line, or None.
        reference_label: what that line is called.
        margin_percent: differences up to this count as equal.
    """

    question: str
    method: str
    benchmark: str
    series_param: str
    subject: str
    baseline: str
    x_param: str
    group_param: str
    floor: str | None = None
    reference: str | None = None
    reference_label: str = "reference"
    margin_percent: float = 0.0


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """One table of the page.

    Attributes:
        title: heading.
        text: one sentence that says what the numbers mean.
        method: how it was measured, short enough for a caption.
        benchmarks: label -> asv name; labels become a leading column when there is more than one.
        columns: the parameter whose values become the columns; None for one column of values.
        any_machine: the numbers do not depend on the machine, so the newest ones stand for all.
        ratio: add the ratio of the subject to the baseline, as `RatioSpec` names them.
    """

    title: str
    text: str
    method: str
    benchmarks: dict[str, str]
    columns: str | None = None
    any_machine: bool = False
    ratio: bool = False


@dataclasses.dataclass(frozen=True)
class Site:
    """What a site file says.

    Attributes:
        title, lead: heading of the page and the sentence under it.
        method_details: how it was measured, one entry per paragraph.
        ratio: the question on top of the page.
        tables: the other tables, in order.
    """

    title: str
    lead: str
    method_details: list[str]
    ratio: RatioSpec
    tables: list[TableSpec]

    def benchmarks(self) -> list[str]:
        """Every benchmark that the site names."""
        names = [self.ratio.benchmark]
        if self.ratio.reference is not None:
            names.append(self.ratio.reference)
        for table in self.tables:
            names.extend(table.benchmarks.values())
        return names


def load(path: Path) -> Site:
    """Read and check the site file at ``path``.

    Raises:
        SiteError: no such file, not TOML, a key missing, unknown or of the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SiteError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SiteError(f"{path}: {error}") from error
    try:
        _check(
            data,
            dict.fromkeys(("title", "lead"), str),
            {"method_details": list, "table": list},
            {"ratio": dict},
        )
        tables = [_table(entry, number) for number, entry in enumerate(data.get("table", []), start=1)]
        return Site(
            title=data["title"],
            lead=data["lead"],
            method_details=[str(paragraph) for paragraph in data.get("method_details", [])],
            ratio=_ratio(data["ratio"]),
            tables=tables,
        )
    except SiteError as error:
        raise SiteError(f"{path}: {error}") from None


def _ratio(data: dict[str, Any]) -> RatioSpec:
    required = (
        "question",
        "method",
        "benchmark",
        "series_param",
        "subject",
        "baseline",
        "x_param",
        "group_param",
    )
    optional = ("floor", "reference", "reference_label")
    types = {**dict.fromkeys(optional, str), "margin_percent": float}
    _check(data, dict.fromkeys(required, str), types, where="[ratio]: ")
    return RatioSpec(**data)


def _table(data: Any, number: int) -> TableSpec:
    where = f"[[table]] {number}: "
    if not isinstance(data, dict):
        raise SiteError(f"{where}expected a table")
    _check(
        data,
        {"title": str, "text": str, "method": str},
        {"benchmark": str, "benchmarks": dict, "columns": str, "any_machine": bool, "ratio": bool},
        where=where,
    )
    if ("benchmark" in data) == ("benchmarks" in data):
        raise SiteError(f"{where}give either 'benchmark' or 'benchmarks'")
    benchmarks = data.get("benchmarks", {"": data.get("benchmark", "")})
    if not benchmarks or not all(isinstance(name, str) for name in benchmarks.values()):
        raise SiteError(f"{where}'benchmarks' maps labels to benchmark names")
    return TableSpec(
        title=data["title"],
        text=data["text"],
        method=data["method"],
        benchmarks=benchmarks,
        columns=data.get("columns"),
        any_machine=data.get("any_machine", False),
        ratio=data.get("ratio", False),
    )


def _check(
    data: dict[str, Any],
    required: dict[str, type],
    optional: dict[str, type],
    sections: dict[str, type] | None = None,
    where: str = "",
) -> None:
    known = {**required, **optional, **(sections or {})}
    missing = [key for key in (*required, *(sections or {})) if key not in data]
    if missing:
        raise SiteError(f"{where}missing {', '.join(missing)}")
    for key, value in data.items():
        if key not in known:
            raise SiteError(f"{where}unknown key {key!r}")
        if not isinstance(value, known[key]):
            raise SiteError(f"{where}{key!r} must be of type {known[key].__name__}")

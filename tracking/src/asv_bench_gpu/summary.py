"""For readers: a comparison as JSON, text that is read in ten seconds, Markdown, JUnit's XML; a history's changes."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from xml.etree import ElementTree

from tabulate import tabulate

from asv_bench_gpu.calibrate import Calibration
from asv_bench_gpu.compare import Comparison, Judged, Quantity, Row
from asv_bench_gpu.report.findings import Change, Findings
from asv_bench_gpu.report.text import gist, plural, probability, quantity

#: Rows of a table, unless more than that do not pass.
_ROWS = 15
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(comparison: Comparison) -> str:
    """Everything, for programs."""
    outcome = {"verdict": comparison.verdict, "exit_code": comparison.exit_code}
    return json.dumps({**outcome, **dataclasses.asdict(comparison)}, indent=2)


def text(comparison: Comparison) -> str:
    """For a terminal."""
    return "\n\n".join([_headline(comparison), *_body(comparison, "simple")])


def markdown(comparison: Comparison) -> str:
    """For a pull request or the summary of a job."""
    return html.escape("\n\n".join([f"### {_headline(comparison)}", *_body(comparison, "pipe")]), quote=False) + "\n"


def junit(comparison: Comparison) -> str:
    """For programs that show tests: a benchmark is a test; undecided, as well as missing, is an error."""
    outcomes = {"pass": None, "fail": "failure", "undecided": "error"}
    cases: dict[str, tuple[str | None, str]] = {}
    for name, row in comparison.rows.items():
        cases[name] = outcomes[row.verdict], f"{_meaning(row)}: {row.reason}"
    for name, number in comparison.quantities.items():
        cases[name] = outcomes[number.verdict], f"{_number(number.base)} {number.unit} became {number.head:g}"
    absences = comparison.skipped | comparison.new | comparison.removed
    absent = {name: ("skipped", reason) for name, reason in absences.items()}
    cases = absent | cases  # a number that is new has a verdict all the same
    cases |= {name: ("error", message) for name, message in comparison.problems.items()}
    if comparison.unsettled:
        cases["the machine"] = "error", f"did not settle: {comparison.unsettled}"

    suite = ElementTree.Element("testsuite", name=f"asv-gpu {comparison.base[:8]}..{comparison.head[:8]}")
    for name, (outcome, message) in cases.items():
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(name.partition("(")[0]), name=_xml(name))
        if outcome:
            ElementTree.SubElement(case, outcome, message=_xml(gist(message))).text = _xml(message)
    counts = Counter(child.tag for test in suite for child in test)
    suite.attrib |= {"tests": str(len(suite)), "failures": str(counts["failure"])}
    suite.attrib |= {"errors": str(counts["error"]), "skipped": str(counts["skipped"])}
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def rates(calibration: Calibration) -> str:
    """A calibration, for a terminal."""
    found = {"same code: false alarm": calibration.rates.false_alarms, "same code: pass": calibration.rates.passes}
    for percent, rate in calibration.rates.detections.items():
        how = "measured" if percent in calibration.rates.measured else "multiplied"
        found[f"one benchmark slower by {percent} % ({how}): found"] = rate
    shares = {name: (rate.share, rate.low, rate.high) for name, rate in found.items()}
    table = tabulate(
        [(name, *(f"{100 * share:.2f} %" for share in of)) for name, of in shares.items()],
        headers=["", "share", "at least", "at most"],
        disable_numparse=True,
    )
    noisiest = "".join(f"\n{100 * share:.0f} %  {key}" for key, share in calibration.noisiest.items())
    return (
        f"{calibration.commit[:8]} on {calibration.machine}: {calibration.comparisons} comparisons of "
        f"{calibration.benchmarks} benchmarks in at most {calibration.max_rounds} rounds, "
        f"drawn from {calibration.rounds} rounds, "
        f"where a wrong verdict may have a probability of {calibration.family_alpha:g}\n\n{table}\n\n"
        "Bounds with 95 % confidence, for these rounds: others would give other shares."
        + (f"\n\nAbove its margin in the same code, in so many of the rounds:{noisiest}" if noisiest else "")
    )


def changes_as_json(found: Findings) -> str:
    """What changed in a history, for programs."""
    return json.dumps({"exit_code": found.exit_code, **dataclasses.asdict(found)}, indent=2)


def changes(found: Findings) -> str:
    """What changed in a history, for a terminal: all that is open, and of the others as many as there is room for."""
    parts = [_standing(found)]
    number = max(_ROWS, found.count("open"))
    if found.changes:
        shown = [_change_cells(change) for change in found.changes[:number]]
        parts.append(tabulate(shown, headers="keys", disable_numparse=True))
    if len(found.changes) > number:
        parts.append(f"and {len(found.changes) - number} more that are not open")
    parts.append(
        f"looked for changes by more than {found.margin_percent:g} % in {found.series} series, by {found.tests} tests; "
        f"probability that noise lists anything at most {found.family_alpha:g}"
    )
    if found.blind:
        parts.append(f"{found.blind} of the series have too few commits or rounds to show a change")
    parts += [*found.unmatched, *(f"not read: {problem}" for problem in found.problems)]
    return "\n\n".join(parts)


def _standing(found: Findings) -> str:
    """Whether a slowdown is open, in one line."""
    if found.open_commits:
        return f"OPEN: {plural(found.count('open'), 'slowdown')} by {plural(found.open_commits, 'commit')}"
    if found.blind == found.series:
        return "UNKNOWN: nothing is recorded that could show a change"
    if found.problems:
        return "UNKNOWN: part of the record could not be read"
    return "NONE OPEN: no slowdown that is neither acknowledged nor gone"


def _change_cells(change: Change) -> dict[str, str]:
    return {
        "standing": change.standing.upper() if change.standing == "open" else change.standing,
        "commit": change.commit.short,
        "after/before": _ratio(change.ratio),
        "interval": f"{_ratio(change.low)} to {_ratio(change.high)}",
        "noise": probability(change.chance),
        "before": _time(change.before_seconds),
        "after": _time(change.after_seconds),
        "machine": change.machine,
        "benchmark": change.key,
        "reason": change.reason,
    }


def _headline(comparison: Comparison) -> str:
    """The verdict in one line."""
    if comparison.problems:
        return "INVALID: no verdict, because something is missing or unverified"
    parts = ["the machine did not settle"] if comparison.unsettled else []
    if rows := comparison.rows.values():
        counts = Counter(row.verdict for row in rows)
        parts.append(f"{counts['fail']} of {len(rows)} benchmarks slower than their margin")
        parts += [f"{counts['undecided']} undecided"] if counts["undecided"] else []
    if quantities := comparison.quantities.values():
        failing = sum(number.verdict == "fail" for number in quantities)
        parts.append(f"{failing} of {len(quantities)} quantities larger than they may be")
    return f"{comparison.verdict.upper()}: {', '.join(parts)}"


def _body(comparison: Comparison, style: str) -> Iterator[str]:
    """Paragraphs and tables."""
    yield (
        f"base {comparison.base[:8]}, head {comparison.head[:8]} on {comparison.machine}: "
        f"{comparison.rounds} of at most {comparison.max_rounds} rounds, "
        f"probability of a wrong verdict at most {comparison.family_alpha:g}"
    )
    if comparison.problems:
        yield "\n".join(f"- {what}: {gist(message)}" for what, message in comparison.problems.items())
    if comparison.unsettled:
        yield f"disturbed in every attempt at a further round: {comparison.unsettled}"
    timed = {key: row for key, row in comparison.rows.items() if not row.identical}
    if timed:
        yield from _table(timed, _time_cells, comparison.waivers, style)
    if identical := len(comparison.rows) - len(timed):
        yield f"{identical} run the same compiled code in both commits, so they were not timed"
    changed = {key: number for key, number in comparison.quantities.items() if number.base != number.head}
    if changed:
        yield from _table(changed, _quantity_cells, comparison.waivers, style)
    new = [reason for key, reason in comparison.new.items() if key not in comparison.quantities]
    not_compared = {
        "not measured in either commit": map(gist, comparison.skipped.values()),
        "new in head, not compared": map(gist, new),
        "removed from head": comparison.removed.values(),
    }
    for what, reasons in not_compared.items():
        for reason, count in Counter(reasons).items():
            yield f"{count} {what}: {reason}"
    if comparison.calibration:
        yield f"calibration: {comparison.calibration}"


def _table(
    judged: Mapping[str, Judged], cells: Callable[[Judged], dict[str, str]], waivers: Mapping[str, str], style: str
) -> Iterator[str]:
    """All that do not pass, and of the others the worst, as far as there is room; then a line about the rest."""
    number = max(_ROWS, sum(row.verdict != "pass" for row in judged.values()))
    shown = [
        {"verdict": row.verdict.upper() if row.verdict != "pass" else row.verdict, **cells(row), "benchmark": key}
        | ({"waived": waivers[key]} if key in waivers else {})
        for key, row in list(judged.items())[:number]
    ]
    if style == "pipe":
        shown = [{column: cell.replace("|", r"\|") for column, cell in row.items()} for row in shown]
    yield tabulate(shown, headers="keys", tablefmt=style, disable_numparse=True)
    if len(judged) > number:
        yield f"and {len(judged) - number} more that pass, each better than the last one shown"


def _time_cells(row: Row) -> dict[str, str]:
    return {
        "head/base": _ratio(row.ratio),
        "interval": f"up to {_ratio(row.high)}" if row.low is None else f"{_ratio(row.low)} to {_ratio(row.high)}",
        "base": _time(row.base_seconds),
        "head": _time(row.head_seconds),
        "meaning": _meaning(row),
    }


def _quantity_cells(number: Quantity) -> dict[str, str]:
    return {
        "base": _number(number.base),
        "head": f"{number.head:g}",
        "allowed": f"{number.limit:g}",
        "unit": number.unit,
    }


def _meaning(row: Row) -> str:
    """What a verdict says about head."""
    if row.verdict == "fail":
        return f"slower by more than {row.margin_percent:g} %"
    if row.verdict == "undecided":
        return f"unclear whether {row.margin_percent:g} % slower"
    return "faster" if row.high is not None and row.high < 1 else f"not {row.margin_percent:g} % slower"


def _ratio(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "new" if value is None else f"{value:g}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else quantity(seconds, "seconds")


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NO_XML.sub("?", text)

"""Comparisons whose rounds are scripted, and some of real commits with a clock that has no noise."""

import dataclasses
import fcntl
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from asv_bench_gpu import compare, journal, project
from asv_bench_gpu.device import State
from asv_bench_gpu.journal import Figures, Round

from tests.tracking.processes import wait_for
from tests.tracking.tiny_project import CLOCKED_SUITE, MACHINE, SAME, TRACK, VALUE

BASE, HEAD = "b" * 40, "a" * 40
#: Two benchmarks pass from round 3 on and fail from round 4 on, and round 6 is the last.
SMALL = {"family_alpha": 0.25, "max_rounds": 6}


class Scripted:
    """Stands for `project.Project`: what a round finds is what ``figures`` says.

    ``figures`` maps a benchmark to a function of the side and the round's number; it returns a figure, a reason to skip
    it (str) or an exception.
    """

    def __init__(self, folder):
        self.conf = types.SimpleNamespace(results_dir=str(folder))
        self.environment = types.SimpleNamespace(name="environment")
        self.machine = MACHINE
        self.figures = {"same": lambda side, number: 1e-6, "other": lambda side, number: 2e-6}
        self.failures = {}
        #: (side, round) -> why the clocks are held down, attempt by attempt
        self.throttled = {}
        #: (side, round) -> the canary after it, attempt by attempt; at rest it is 1
        self.canaries = {}
        #: (side, round) -> comparisons with the reference
        self.verified = {}
        #: benchmark -> fingerprint of its code, by side and round
        self.codes = {}
        self.measured = []
        self.versions = {}

    @property
    def benchmarks(self):
        return {name: {"version": self.versions.get(name, "1"), "unit": "registers"} for name in self.figures}

    def places(self):
        return {name: (name, 0) for name in self.figures}

    def measure(self, commit, number, selected, label, slowdowns_percent=()):
        assert not slowdowns_percent
        side = "base" if commit == BASE else "head"
        self.measured.append((number, side, sorted(selected)))
        entry = Round(commit, number, "2026-01-01T00:00:00+00:00", 1.0)
        failure = self.failures.get((side, number))
        if failure:
            if isinstance(failure, BaseException):
                raise failure
            return dataclasses.replace(entry, failed=failure, message=f"first line\n{failure} of {side}")
        figures = {}
        for name in selected:
            found = self.figures[name](side, number)
            figures[name] = of = Figures(self.versions.get(name, "1"), [], [None])
            if isinstance(found, str):
                of.skipped[found] = [0]
            elif isinstance(found, Exception):
                of.errors["0"] = f"Traceback\n{found}"
            else:
                of.values[0] = found
                if code := self.codes.get(name, lambda *_: None)(side, number):
                    of.code["0"] = code
        reasons = [next(self.throttled.get((side, number), iter([])), "")]
        calm = State(1980, 3201, 41, 123.4, [], 0)
        state = dataclasses.replace(calm, throttle_reasons=list(filter(None, reasons)))
        return dataclasses.replace(
            entry,
            verified=self.verified.get((side, number), 1),
            figures=figures,
            device_before=calm,
            device_during=[calm, state],
            device_after=calm,
            canary={"clock": [1.0, next(self.canaries.get((side, number), iter([])), 1.0)]},
        )

    def compare(self, base=BASE, head=HEAD, *, margins=None, limits=None, **options):
        if margins is None:
            margins = dict.fromkeys((name for name in self.figures if name not in (limits or {})), 3.0)
        return compare.measure(self, base, head, margins=margins, limits=limits, **{**SMALL, **options})

    def rounds(self):
        """Numbers of the rounds measured since the last call, and who was first in each."""
        rounds = [
            (number, [side for _, side, _ in group])
            for number, group in itertools.groupby(self.measured, lambda measured: measured[0])
        ]
        self.measured.clear()
        assert all(sorted(sides) == ["base", "head"] for _, sides in rounds)
        return [number for number, _ in rounds], [sides[0] for _, sides in rounds]


@pytest.fixture
def scripted(tmp_path):
    return Scripted(tmp_path)


def slower_by(percent):
    return lambda side, number: 1e-6 * (1 + percent / 100 * (side == "head"))


def test_identical_times_pass_after_the_fewest_rounds_there_can_be(scripted):
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.exit_code, comparison.rounds) == ("pass", 0, 3)
    assert scripted.rounds()[0] == [0, 1, 2, 3]
    assert {key: (row.ratio, row.low, row.high) for key, row in comparison.rows.items()} == {
        "same": (1.0, None, 1.0),
        "other": (1.0, None, 1.0),
    }


@pytest.mark.parametrize(
    ("percent", "verdict", "exit_code"),
    [
        pytest.param(-10, "pass", 0, id="faster"),
        pytest.param(2.9, "pass", 0, id="within-the-margin"),
        pytest.param(3.1, "fail", 1, id="beyond-the-margin"),
        pytest.param(900, "fail", 1, id="ten-times"),
    ],
)
def test_one_benchmark_decides(scripted, percent, verdict, exit_code):
    scripted.figures["odd"] = slower_by(percent)
    comparison = scripted.compare(margins={"same": 3, "odd": 3})
    assert (comparison.verdict, comparison.exit_code) == (verdict, exit_code)
    row = comparison.rows["odd"]
    assert row.verdict == verdict
    assert row.ratio == pytest.approx(1 + percent / 100)
    assert (row.base_seconds, row.head_seconds) == (1e-6, pytest.approx(row.ratio * 1e-6))


def test_rounds_that_disagree_leave_it_undecided_after_the_last(scripted):
    scripted.figures["odd"] = lambda side, number: 1e-6 * (1.1 if side == "head" and number % 2 else 1)
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.exit_code, comparison.rounds) == ("undecided", 3, 6)
    assert comparison.rows["odd"].verdict == "undecided"


def once_slower(side, number):
    return 1e-6 * (1.1 if side == "head" and number == 1 else 1)


def test_what_has_passed_is_not_measured_again(scripted):
    scripted.figures["odd"] = once_slower
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.rounds) == ("pass", 6)
    assert {key: row.rounds for key, row in comparison.rows.items()} == {"odd": 6, "same": 3, "other": 3}
    asked = {number: selected for number, _, selected in scripted.measured}
    assert asked == {number: ["odd", "other", "same"] if number < 4 else ["odd"] for number in range(7)}
    scripted.measured.clear()
    assert (scripted.compare(), scripted.measured) == (comparison, [])


def test_what_has_passed_does_not_fail_later(scripted):
    scripted.figures |= {
        "odd": once_slower,
        "late": lambda side, number: 1e-6 * (9 if side == "head" and number > 3 else 1),
    }
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.rounds, comparison.rows["late"].ratio) == ("pass", 6, 1)


def test_interrupted_after_some_have_passed_it_goes_on_with_the_others(scripted):
    scripted.figures["odd"] = once_slower
    scripted.failures["head", 5] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        scripted.compare()
    scripted.failures.clear()
    scripted.measured.clear()
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.rows["same"].rounds) == ("pass", 3)
    asked = {number: selected for number, _, selected in scripted.measured}
    # After an interruption the machine is cold.
    assert asked == {0: ["odd", "other", "same"], 5: ["odd"], 6: ["odd"]}


def test_within_a_smaller_margin_rounds_that_lack_a_benchmark_are_measured_again(scripted):
    scripted.figures |= {"odd": once_slower, "slow": slower_by(2)}
    assert scripted.compare().verdict == "pass"
    scripted.measured.clear()
    comparison = scripted.compare(margins=dict.fromkeys(scripted.figures, 1))
    assert (comparison.verdict, comparison.rows["slow"].rounds) == ("fail", 5)
    assert {number: selected for number, _, selected in scripted.measured if number} == {
        number: ["odd", "slow"] for number in (4, 5)
    }


def test_the_warm_up_does_not_count(scripted):
    scripted.figures["same"] = lambda side, number: 1e-6 if number else 5e-6 * (1 + 9 * (side == "head"))
    comparison = scripted.compare()
    assert comparison.verdict == "pass"
    assert comparison.rows["same"].head_seconds == 1e-6


def test_each_benchmark_has_its_margin(scripted):
    scripted.figures |= {"strict": slower_by(4), "lenient": slower_by(4)}
    comparison = scripted.compare(margins={"strict": 3, "lenient": 5})
    assert {key: (row.margin_percent, row.verdict) for key, row in comparison.rows.items()} == {
        "strict": (3, "fail"),
        "lenient": (5, "pass"),
    }


def same_code(side, number):
    return "code"


def test_the_same_code_passes_and_is_not_timed(scripted):
    scripted.figures["odd"] = slower_by(50)
    assert scripted.compare().verdict == "fail"
    scripted.codes["odd"] = same_code
    scripted.versions["odd"] = "2"
    scripted.measured.clear()
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.exit_code, comparison.rounds) == ("pass", 0, 3)
    row = comparison.rows["odd"]
    assert (row.verdict, row.identical, row.ratio, row.rounds, row.head_seconds) == ("pass", True, None, 0, None)
    assert {key: row.identical for key, row in comparison.rows.items()} == {"same": False, "other": False, "odd": True}
    asked = {number: selected for number, _, selected in scripted.measured}
    assert asked == {0: ["odd", "other", "same"]} | {number: ["other", "same"] for number in (1, 2, 3)}
    scripted.measured.clear()
    assert (scripted.compare(), scripted.measured) == (comparison, [])


def test_the_same_code_is_no_part_of_the_family(scripted):
    # One benchmark alone can fail after fewer rounds than one of two hundred.
    scripted.figures |= {f"more {number}": lambda side, number: 1e-6 for number in range(200)}
    scripted.figures["odd"] = slower_by(50)
    options = {"family_alpha": 0.01, "max_rounds": 40}
    assert (scripted.compare(**options).verdict, scripted.rounds()[0][-1]) == ("fail", 16)
    scripted.codes = {name: same_code for name in scripted.figures if name != "odd"}
    scripted.versions["odd"] = "2"
    assert (scripted.compare(**options).verdict, scripted.rounds()[0][-1]) == ("fail", 9)


def test_where_all_code_is_the_same_the_warm_up_is_enough(scripted):
    scripted.codes = dict.fromkeys(scripted.figures, same_code)
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.rounds, scripted.rounds()[0]) == ("pass", 0, [0])
    assert (scripted.compare(), scripted.measured) == (comparison, [])


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(lambda side, number: side, id="another"),
        pytest.param(lambda side, number: "code" if side == "head" else None, id="unknown-in-base"),
        pytest.param(lambda side, number: "code" if side == "base" else None, id="unknown-in-head"),
        pytest.param(lambda side, number: None, id="unknown"),
        pytest.param(lambda side, number: "code" if number else side, id="the-same-only-later"),
    ],
)
def test_code_that_is_not_known_to_be_the_same_is_judged_by_its_times(scripted, code):
    scripted.figures["odd"] = slower_by(50)
    scripted.codes["odd"] = code
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.rows["odd"].identical) == ("fail", False)


def test_a_commit_with_itself_is_judged_by_its_times(scripted):
    scripted.codes = dict.fromkeys(scripted.figures, same_code)
    comparison = scripted.compare(head=BASE)
    assert (comparison.verdict, comparison.rounds) == ("pass", 3)
    assert not any(row.identical for row in comparison.rows.values())


@pytest.mark.parametrize("value", [RuntimeError("lost"), "not here"], ids=["error", "skipped"])
def test_the_same_code_does_not_stand_in_for_a_figure(scripted, value):
    scripted.codes = dict.fromkeys(scripted.figures, same_code)
    scripted.figures["same"] = lambda side, number: value if side == "head" else 1e-6
    comparison = scripted.compare()
    assert (comparison.exit_code, list(comparison.problems)) == (2, ["same of head"])


def test_the_worst_is_first(scripted):
    scripted.figures = {
        "faster": slower_by(-5),
        "slow": slower_by(10),
        "even": slower_by(0),
        "slower": slower_by(20),
        "torn": lambda side, number: 1e-6 * (2 if side == "head" and number == 2 else 1),
    }
    comparison = scripted.compare(max_rounds=8)
    assert list(comparison.rows) == ["slower", "slow", "torn", "even", "faster"]


def test_order_is_a_coin_and_the_same_again(scripted, tmp_path):
    scripted.figures["odd"] = lambda side, number: 1e-6 * (1.1 if side == "head" and number % 2 else 1)
    scripted.compare(max_rounds=200, family_alpha=0.01)
    _, first = scripted.rounds()
    changes = sum(before != after for before, after in itertools.pairwise(first))
    # Of 201 tosses, a fair coin gives fewer than 70 of a side, or of changes, less than once in 50,000.
    assert 70 < first.count("base") < 131
    assert 70 < changes < 131
    again = Scripted(tmp_path / "again")
    again.figures = scripted.figures
    again.compare(max_rounds=200, family_alpha=0.01)
    assert again.rounds()[1] == first


def test_a_commit_with_itself(scripted):
    comparison = scripted.compare(head=BASE)
    assert (comparison.verdict, comparison.rounds, comparison.base) == ("pass", 3, comparison.head)


def test_what_is_recorded_is_not_measured_again(scripted):
    first = scripted.compare()
    scripted.measured.clear()
    assert scripted.compare() == first
    assert scripted.measured == []


def test_another_margin_judges_the_same_rounds(scripted):
    scripted.figures["slow"] = slower_by(10)
    assert scripted.compare().verdict == "fail"
    scripted.measured.clear()
    again = scripted.compare(margins=dict.fromkeys(scripted.figures, 11))
    assert (again.verdict, scripted.measured) == ("pass", [])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda scripted: {"max_rounds": 7}, id="max-rounds"),
        pytest.param(lambda scripted: {"margins": {"same": 3}}, id="benchmarks"),
        pytest.param(lambda scripted: {"margins": {"same": 3}, "limits": {"other": 3}}, id="limits"),
        pytest.param(lambda scripted: {"head": "c" * 40}, id="head"),
        pytest.param(lambda scripted: {"base": HEAD, "head": BASE}, id="exchanged"),
        pytest.param(lambda scripted: scripted.versions.update(same="2") or {}, id="version"),
        pytest.param(lambda scripted: vars(scripted.environment).update(name="newer") or {}, id="environment"),
    ],
)
def test_another_comparison_has_rounds_of_its_own(scripted, change):
    record = scripted.compare().record
    scripted.measured.clear()
    another = scripted.compare(**change(scripted))
    assert another.record != record
    assert {number for number, _, _ in scripted.measured} >= {0, 1, 2, 3}


class Killed(BaseException):
    """Nothing may catch it."""


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize("number", range(4))
def test_goes_on_after_a_kill_and_never_pairs_what_was_not_measured_together(scripted, side, number):
    scripted.failures = {(side, number): Killed()}
    with pytest.raises(Killed):
        scripted.compare()
    # Whatever half of the pair was measured before the kill would show as a ratio of 2.
    scripted.figures = {name: lambda side, number: 4e-6 for name in scripted.figures}
    scripted.failures.clear()
    scripted.measured.clear()
    comparison = scripted.compare()
    assert comparison.verdict == "pass"
    assert {row.ratio for row in comparison.rows.values()} == {1.0}
    # The machine is warmed up again.
    assert scripted.rounds()[0] == sorted({0, *range(number, 4)})


def test_half_a_line_is_a_round_to_be_measured(scripted):
    record = Path(scripted.compare().record)
    record.write_bytes(record.read_bytes()[:-100])
    scripted.measured.clear()
    assert scripted.compare().verdict == "pass"
    assert scripted.rounds()[0] == [0, 3]


def test_a_full_disk_keeps_the_finished_rounds(scripted):
    record = Path(scripted.compare().record)
    lines = record.read_bytes().splitlines(keepends=True)
    record.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(map(len, lines[:2])) + 100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            scripted.compare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    scripted.measured.clear()
    assert scripted.compare().verdict == "pass"
    assert scripted.rounds()[0] == [0, 2, 3]


def test_a_damaged_record_is_named_and_left_alone(scripted):
    record = Path(scripted.compare().record)
    record.write_bytes(b"{}\n" + record.read_bytes())
    damaged = record.read_bytes()
    with pytest.raises(
        project.UsageError, match=r"damaged record: .*pairs\.jsonl, line 1: expected a pair of schema 1"
    ):
        scripted.compare()
    assert record.read_bytes() == damaged


def test_the_record_of_other_commits_is_damaged(scripted):
    record = Path(scripted.compare().record)
    record.write_text(record.read_text().replace(HEAD, "c" * 40))
    with pytest.raises(project.UsageError, match=r"damaged record: .* a pair is of other commits"):
        scripted.compare()


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize("failure", ["build", "verification", "timeout", "crash", "device"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_failed_process_ends_it_and_is_named(scripted, side, failure, number):
    scripted.failures = {(side, number): failure}
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.exit_code) == ("invalid", 2)
    commit = BASE if side == "base" else HEAD
    assert comparison.problems == {f"{side} {commit[:8]}, {failure}": f"first line\n{failure} of {side}"}
    assert scripted.rounds()[0] == list(range(number + 1))
    # It is tried again. What a commit measured that once was wrong is not to be trusted; the rest is kept.
    scripted.failures.clear()
    assert scripted.compare().verdict == "pass"
    assert scripted.rounds()[0] == (sorted({0, *range(number, 4)}) if failure != "verification" else [0, 1, 2, 3])


def test_a_failure_outweighs_a_slowdown(scripted):
    scripted.figures["slow"] = slower_by(50)
    scripted.failures = {("head", 3): "verification"}
    assert scripted.compare().exit_code == 2


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize("number", [0, 2], ids=["warm-up", "later"])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        pytest.param("needs more memory", "needs more memory", id="skipped"),
        pytest.param(RuntimeError("out of memory"), "out of memory", id="error"),
    ],
)
def test_a_figure_of_one_commit_only_is_no_pass(scripted, side, number, found, message):
    scripted.figures["odd"] = lambda of, at: found if (of, at) == (side, number) else 1e-6
    comparison = scripted.compare()
    assert comparison.exit_code == 2
    ((key, problem),) = comparison.problems.items()
    assert key == f"odd of {side}"
    assert problem.endswith(message)
    assert scripted.rounds()[0] == list(range(number + 1))
    # It is measured again rather than remembered.
    scripted.figures["odd"] = slower_by(0)
    assert scripted.compare().exit_code == 0
    assert scripted.rounds()[0] == sorted({0, *range(number, 4)})


def test_a_benchmark_that_the_suite_of_one_commit_lacks_is_no_pass(scripted):
    measure = scripted.measure

    def without(commit, number, selected, *rest, **options):
        return measure(commit, number, {"same": [0]} if commit == HEAD else selected, *rest, **options)

    scripted.measure = without
    comparison = scripted.compare()
    assert (comparison.exit_code, list(comparison.problems)) == (2, ["other of head"])


@pytest.mark.parametrize("seconds", [0.0, -1e-6])
def test_what_is_no_time_is_no_pass(scripted, seconds):
    scripted.figures["odd"] = lambda side, number: seconds if side == "head" else 1e-6
    comparison = scripted.compare()
    assert (comparison.exit_code, list(comparison.problems)) == (2, ["odd"])


def test_an_error_in_both_commits_is_no_pass(scripted):
    scripted.figures["odd"] = lambda side, number: RuntimeError("always")
    comparison = scripted.compare()
    assert (comparison.exit_code, scripted.rounds()[0]) == (2, [0])
    assert list(comparison.problems) == ["odd of base", "odd of head"]


def test_what_neither_commit_can_measure_is_told_and_left_out(scripted):
    scripted.figures["large"] = lambda side, number: "needs more memory"
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.skipped) == ("pass", {"large": "needs more memory"})
    assert set(comparison.rows) == {"same", "other"}


def test_a_benchmark_that_both_skip_later_is_no_pass(scripted):
    scripted.figures["odd"] = lambda side, number: "not today" if number == 2 else 1e-6
    comparison = scripted.compare()
    assert (comparison.exit_code, list(comparison.problems)) == (2, ["odd of base", "odd of head"])
    scripted.figures["odd"] = lambda side, number: 1e-6
    scripted.rounds()
    assert scripted.compare().verdict == "pass"
    assert scripted.rounds()[0] == [0, 2, 3]


def test_what_was_skipped_at_first_and_is_slower_later_is_no_pass(scripted):
    scripted.figures["odd"] = lambda side, number: (1e-6 if side == "base" else 9e-6) if number else "not now"
    comparison = scripted.compare()
    assert (comparison.exit_code, list(comparison.problems)) == (2, ["odd of base", "odd of head"])
    assert comparison.record in comparison.problems["odd of base"]


def test_once_something_can_be_measured_it_is(scripted):
    real, scripted.figures = scripted.figures, {name: lambda side, number: "no GPU" for name in scripted.figures}
    assert scripted.compare().problems == {"every time": "not measured here: no GPU"}
    scripted.figures = real
    scripted.rounds()
    assert scripted.compare().verdict == "pass"
    assert scripted.rounds()[0] == [0, 1, 2, 3]


def test_a_later_warm_up_does_not_acquit(scripted):
    found = [2, 1]
    scripted.figures["layouts"] = lambda side, number: 1 if side == "base" else found.pop(0)
    scripted.failures["head", 2] = "crash"
    assert scripted.compare(limits={"layouts": 0}).exit_code == 2
    scripted.failures.clear()
    comparison = scripted.compare(limits={"layouts": 0})
    assert scripted.rounds()[0] == [0, 1, 2, 0, 2, 3]
    assert found == []
    assert (comparison.exit_code, comparison.quantities["layouts"].head) == (1, 2)


def test_figures_of_another_version_are_missing(scripted, monkeypatch):
    newer = {name: {"version": "2", "unit": "seconds"} for name in scripted.figures}
    monkeypatch.setattr(Scripted, "benchmarks", newer)
    comparison = scripted.compare()
    assert comparison.exit_code == 2
    assert comparison.problems["same of head"] == "its version is 1, expected 2: the suite has changed"


@pytest.mark.parametrize(("skipped", "named"), [("time", "every time"), ("number", "every quantity")])
def test_nothing_measured_is_no_pass(scripted, skipped, named):
    scripted.figures = {"time": lambda side, number: 1e-6, "number": lambda side, number: 7}
    scripted.figures[skipped] = lambda side, number: "needs a GPU"
    comparison = scripted.compare(limits={"number": 0})
    assert comparison.exit_code == 2
    assert comparison.problems == {named: "not measured here: needs a GPU"}
    assert scripted.rounds()[0] == [0]


@pytest.mark.parametrize(
    ("base", "head", "limit", "verdict"),
    [
        pytest.param(24, 24, 0, "pass", id="equal"),
        pytest.param(24, 23, 0, "pass", id="fewer"),
        pytest.param(24, 25, 0, "fail", id="one-more"),
        pytest.param(24, 32, 8, "pass", id="as-many-more-as-allowed"),
        pytest.param(24, 33, 8, "fail", id="more-than-allowed"),
        pytest.param(0, 0, 0, "pass", id="zero-is-a-number"),
    ],
)
def test_numbers_that_must_not_grow(scripted, base, head, limit, verdict):
    scripted.figures["registers"] = lambda side, number: base if side == "base" else head
    comparison = scripted.compare(limits={"registers": limit})
    assert comparison.quantities == {"registers": compare.Quantity(verdict, base, head, base + limit, "registers")}
    assert comparison.verdict == verdict
    # Once is enough for an exact number.
    asked = {number: selected for number, _, selected in scripted.measured}
    assert asked == {0: ["other", "registers", "same"]} | {number: ["other", "same"] for number in (1, 2, 3)}


def test_numbers_alone_need_one_round(scripted):
    scripted.figures = {"registers": lambda side, number: 8, "spills": lambda side, number: 0}
    comparison = scripted.compare(limits={"registers": 0, "spills": 0})
    assert (comparison.verdict, scripted.rounds()[0]) == ("pass", [0])
    assert (scripted.compare(limits={"registers": 0, "spills": 0}), scripted.measured) == (comparison, [])


def test_a_number_of_one_commit_only_is_no_pass(scripted):
    scripted.figures["registers"] = lambda side, number: "no such kernel" if side == "base" else 7
    comparison = scripted.compare(limits={"registers": 0})
    assert comparison.problems == {"registers of base": "no such kernel"}


@pytest.mark.parametrize(("most", "verdict"), [(7, "pass"), (6.5, "fail"), (0, "fail")])
def test_a_number_that_may_be_new_has_a_limit_of_its_own(scripted, most, verdict):
    scripted.figures["registers"] = lambda side, number: "no such kernel" if side == "base" else 7
    comparison = scripted.compare(limits={"registers": 100}, new={"registers": most})
    assert comparison.quantities == {"registers": compare.Quantity(verdict, None, 7, most, "registers")}
    assert (comparison.verdict, comparison.new) == (verdict, {"registers": "no such kernel"})


def test_a_time_that_may_be_new_is_named_and_not_compared(scripted):
    scripted.figures["odd"] = lambda side, number: "no such layout" if side == "base" else 1e-6
    comparison = scripted.compare(new={"odd": math.inf})
    assert (comparison.verdict, comparison.new) == ("pass", {"odd": "no such layout"})
    assert set(comparison.rows) == {"same", "other"}
    assert (scripted.compare(new={"odd": math.inf}), scripted.compare().verdict) == (comparison, "invalid")


@pytest.mark.parametrize(
    ("of_base", "of_head"),
    [
        pytest.param(1e-6, "no such layout", id="gone"),
        pytest.param(ValueError("broken"), 1e-6, id="broken-in-base"),
        pytest.param("no such layout", ValueError("broken"), id="broken-in-head"),
    ],
)
def test_only_what_base_says_it_lacks_is_new(scripted, of_base, of_head):
    scripted.figures["odd"] = lambda side, number: of_base if side == "base" else of_head
    comparison = scripted.compare(new={"odd": math.inf})
    assert (comparison.verdict, comparison.new) == ("invalid", {})


def test_what_was_new_stays_so(scripted):
    scripted.figures["odd"] = lambda side, number: "no such layout" if side == "base" and number < 2 else 1e-6
    comparison = scripted.compare(new={"odd": math.inf})
    assert comparison.verdict == "invalid"
    assert "skipped in round 0, but measured now" in comparison.problems["odd of base"]


GONE = {"odd": "nobody asks", "registers": "nobody asks"}


def test_what_was_removed_is_named_and_not_compared(scripted):
    for name, value in {"odd": 1e-6, "registers": 7}.items():
        scripted.figures[name] = lambda side, number, value=value: value if side == "base" else "no such kernel"
    scripted.figures["spills"] = lambda side, number: 0
    options = {"limits": {"registers": 0, "spills": 0}, "removed": GONE}
    comparison = scripted.compare(**options)
    assert comparison.verdict == "pass"
    assert comparison.removed == dict.fromkeys(GONE, "nobody asks: no such kernel")
    assert (set(comparison.rows), set(comparison.quantities)) == ({"same", "other"}, {"spills"})
    assert scripted.compare(**options) == comparison
    assert scripted.compare(limits=options["limits"]).problems == dict.fromkeys(
        ("odd of head", "registers of head"), "no such kernel"
    )


@pytest.mark.parametrize(
    ("of_head", "problem"),
    [
        pytest.param(1e-6, "its removal was accepted, but head measures it", id="still-there"),
        pytest.param(ValueError("broken"), "broken", id="broken"),
    ],
)
def test_only_what_head_says_it_lacks_is_removed(scripted, of_head, problem):
    scripted.figures["odd"] = lambda side, number: 1e-6 if side == "base" else of_head
    comparison = scripted.compare(removed={"odd": "nobody asks"})
    assert (comparison.verdict, comparison.removed) == ("invalid", {})
    assert problem in comparison.problems["odd of head"]


def test_what_neither_has_needs_no_removal(scripted):
    scripted.figures["odd"] = lambda side, number: "no such kernel"
    comparison = scripted.compare(removed={"odd": "nobody asks"})
    assert (comparison.verdict, comparison.removed, comparison.skipped) == ("pass", {}, {"odd": "no such kernel"})


def test_what_was_removed_stays_so(scripted):
    scripted.figures["odd"] = lambda side, number: "no such kernel" if side == "head" and number < 2 else 1e-6
    comparison = scripted.compare(removed={"odd": "nobody asks"})
    assert "skipped in round 0, but measured now" in comparison.problems["odd of head"]


def test_nothing_but_removals_is_no_pass(scripted):
    scripted.figures = {"odd": lambda side, number: 1e-6 if side == "base" else "no such kernel"}
    comparison = scripted.compare(removed={"odd": "nobody asks"})
    assert comparison.problems == {"every time": "not measured here: nobody asks: no such kernel"}


def test_new_times_alone_are_no_pass(scripted):
    scripted.figures = {"odd": lambda side, number: "no such layout" if side == "base" else 1e-6}
    comparison = scripted.compare(new={"odd": math.inf})
    assert comparison.problems == {"every time": "not measured here: no such layout"}


@pytest.mark.parametrize(("side", "number"), [("base", 0), ("head", 0), ("base", 2), ("head", 3)])
def test_figures_without_a_verification_are_no_pass(scripted, side, number):
    scripted.verified[side, number] = 0
    comparison = scripted.compare()
    commit = BASE if side == "base" else HEAD
    assert comparison.problems == {
        f"{side} {commit[:8]}, verification": "nothing was verified: a setup_cache must return what verify() does"
    }


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_disturbed_round_does_not_count_and_is_repeated(scripted, side, capsys):
    scripted.throttled[side, 2] = iter(["SwPowerCap", "HwThermalSlowdown"])
    # What a throttled round says would show.
    scripted.figures["odd"] = lambda of, number: (
        1e-6 * (9 if number == 2 and len([m for m in scripted.measured if m[0] == 2]) < 5 else 1)
    )
    comparison = scripted.compare()
    assert (comparison.verdict, comparison.rounds, comparison.rows["odd"].base_seconds) == ("pass", 3, 1e-6)
    assert [number for number, _, _ in scripted.measured[::2]] == [0, 1, 2, 2, 2, 3]
    told = [line for line in capsys.readouterr().err.splitlines() if "does not count" in line]
    assert [line.rpartition(": ")[2] for line in told] == ["SwPowerCap", "HwThermalSlowdown"]
    # Nor does it count for the next command.
    scripted.measured.clear()
    assert (scripted.compare(), scripted.measured) == (comparison, [])


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_round_whose_canary_moved_is_repeated(scripted, side, capsys):
    scripted.canaries[side, 2] = iter([1.05, 0.9, 1.001])
    assert scripted.compare().verdict == "pass"
    assert [number for number, _, _ in scripted.measured[::2]] == [0, 1, 2, 2, 2, 3]
    told = [line for line in capsys.readouterr().err.splitlines() if "does not count" in line]
    assert [line.rpartition(": ")[2] for line in told] == [
        f"the canary of the clock moved by {percent} %" for percent in ("5.0", "11.1")
    ]


def test_a_canary_that_keeps_moving_decides_nothing(scripted):
    scripted.canaries["head", 2] = itertools.repeat(1.5)
    comparison = scripted.compare()
    assert (comparison.exit_code, comparison.unsettled) == (3, "the canary of the clock moved by 50.0 %")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"device_before": None}, "the state of the GPU is unknown", id="state-before"),
        pytest.param({"device_during": None}, "the state of the GPU is unknown", id="state-during"),
        pytest.param({"device_after": None}, "the state of the GPU is unknown", id="state-after"),
        pytest.param({"canary": {}}, "no canary was timed", id="canary"),
    ],
)
def test_a_gpu_that_does_not_tell_decides_nothing(scripted, monkeypatch, change, told):
    real = Scripted.measure

    def measure(*arguments, **options):
        return dataclasses.replace(real(*arguments, **options), facts={"gpu": "a GPU", "driver": "580"}, **change)

    monkeypatch.setattr(Scripted, "measure", measure)
    comparison = scripted.compare()
    assert (comparison.exit_code, comparison.unsettled) == (3, told)


@pytest.mark.parametrize("number", [1, 3])
def test_a_machine_that_does_not_settle_decides_nothing(scripted, number):
    scripted.figures["registers"] = lambda side, number: 7
    scripted.throttled["head", number] = itertools.repeat("SwThermalSlowdown")
    comparison = scripted.compare(limits={"registers": 0})
    assert (comparison.verdict, comparison.exit_code) == ("undecided", 3)
    assert (comparison.unsettled, comparison.rounds) == ("SwThermalSlowdown", number - 1)
    assert [at for at, _, _ in scripted.measured[::2]] == [*range(number), *[number] * compare.ATTEMPTS]
    # Later it may.
    scripted.throttled.clear()
    assert scripted.compare(limits={"registers": 0}).verdict == "pass"


def test_the_warm_up_may_be_disturbed(scripted):
    scripted.throttled["head", 0] = itertools.repeat("SwPowerCap")
    assert scripted.compare().verdict == "pass"
    assert scripted.rounds()[0] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"max_rounds": 2}, "max_rounds: 2 can never show that one of 2 benchmarks is slower", id="rounds"),
        pytest.param({"family_alpha": 0.6}, "family_alpha: expected a number above 0", id="alpha"),
        pytest.param({"margins": {"same": -1}}, r"margin_percent\['same'\]: expected a finite number", id="margin"),
        pytest.param({"margins": {"same": math.nan}}, r"margin_percent\['same'\]: expected a finite number", id="nan"),
    ],
)
def test_numbers_without_a_verdict_are_refused_before_anything_is_measured(scripted, options, message):
    with pytest.raises(project.UsageError, match=f"^{message}"):
        scripted.compare(**options)
    assert scripted.measured == []


def compared(project, *arguments):
    """`asv-gpu compare` as a process of its own: exit code, what it says as JSON, stderr."""
    options = ["--machine", MACHINE, "--family-alpha", "0.25", "--max-rounds", "6", "--json"]
    done = subprocess.run(project.command(*arguments, *options, command="compare"), capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_real_comparison(clocked):
    code, found, progress = compared(clocked, "first", "second")
    assert (code, found["exit_code"], found["verdict"]) == (1, 1, "fail")
    assert (found["base"], found["head"]) == (clocked.hash("first"), clocked.hash("second"))
    assert {key: (row["verdict"], row["ratio"]) for key, row in found["rows"].items()} == {
        VALUE: ("fail", 1.5),
        SAME: ("pass", 1.0),
    }
    assert (found["rows"][VALUE]["base_seconds"], found["rows"][VALUE]["head_seconds"]) == (2e-6, 3e-6)
    assert [line.rpartition(": ")[2] for line in progress.splitlines()] == [
        "0 pass, 0 fail, 2 undecided",
        "0 pass, 0 fail, 2 undecided",
        "1 pass, 0 fail, 1 undecided",
        "1 pass, 1 fail, 0 undecided",
    ]
    # The record is not taken for asv's results, and a history does not grow by comparing.
    (record,) = (clocked.results / MACHINE / "comparisons").iterdir()
    assert str(record.relative_to(clocked.folder)) == found["record"]
    done = subprocess.run(
        [sys.executable, "-m", "asv", "publish", "--config", clocked.config],
        cwd=clocked.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert {path.name for path in (clocked.results / MACHINE).iterdir()} == {"machine.json", "comparisons"}


def test_a_wrong_commit_has_no_verdict(clocked):
    code, found, progress = compared(clocked, "first", "wrong")
    assert (code, found["verdict"], found["rows"]) == (2, "invalid", {})
    ((what, message),) = found["problems"].items()
    assert what == f"head {clocked.hash('wrong')[:8]}, verification"
    assert "VerificationError: the answer: it is wrong" in message
    assert "the answer: it is wrong" in progress


def test_a_commit_that_does_not_build_has_no_verdict(clocked):
    code, found, _ = compared(clocked, "unbuildable", "first")
    ((what, message),) = found["problems"].items()
    assert (code, what) == (2, f"base {clocked.hash('unbuildable')[:8]}, build")
    assert "no_such_backend" in message


def test_killed_in_the_middle_it_goes_on(clocked):
    command = clocked.command(
        *("first", "first", "--machine", MACHINE, "--max-rounds", "200", "--family-alpha", "1e-9"), command="compare"
    )
    folder = clocked.results / MACHINE / "comparisons"

    def pairs():
        return [pair.base.round for path in folder.glob("*") for pair in journal.standing_pairs(path)]

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for(lambda: len(pairs()) > 2)
        os.killpg(process.pid, signal.SIGKILL)
    kept = pairs()
    assert kept == list(range(len(kept)))
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "PASS")
    assert pairs() == [*kept, 0, *range(len(kept), max(pairs()) + 1)]


def test_two_at_once(clocked):
    lock = clocked.folder / ".asv" / "env" / "asv-gpu.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, found, errors = compared(clocked, "first", "second")
    assert (code, found) == (2, None)
    assert errors == "asv-gpu: another asv-gpu is measuring in this checkout; wait for it to end\n"


def test_by_default_device_times_are_compared_and_otherwise_what_matches(clocked, monkeypatch):
    asked = []
    monkeypatch.setattr(compare, "measure", lambda *_, margins, **__: asked.append(margins))
    clocked.write_suite(
        CLOCKED_SUITE + "\n    track_value.unit = 'seconds'\n\n    def track_bytes(self):\n        return 1\n"
    )
    for bench in (None, "same", "value", "track_value"):
        compare.compare(clocked.config, "first", "second", margin_percent=2.5, bench=bench, machine=MACHINE)
    assert asked == [dict.fromkeys(keys, 2.5) for keys in ([SAME, VALUE], [SAME], [VALUE, TRACK], [TRACK])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("no-such", "first"), "BASE: expected a commit", id="base"),
        pytest.param(("first", "no-such"), "HEAD: expected a commit", id="head"),
        pytest.param(("root..second", "first"), "BASE: expected one commit, got 2 from 'root..second'", id="range"),
        pytest.param(
            ("first", "second", "--bench", "track"),
            f"--bench: expected benchmarks that give seconds, got {TRACK}",
            id="no-times",
        ),
        pytest.param(("first", "second", "--bench", "none"), "--bench: no benchmark matches 'none'", id="no-match"),
        pytest.param(("first", "second", "--margin-percent", "nan"), "margin_percent[", id="margin"),
    ],
)
def test_what_cannot_be_compared(clocked, arguments, message):
    code, found, errors = compared(clocked, *arguments)
    assert (code, found) == (2, None)
    assert errors.startswith(f"asv-gpu: {message}")

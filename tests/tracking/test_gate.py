import dataclasses
import json
import math
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from asv_bench_gpu import calibrate, cli, compare, gate, project, summary
from asv_bench_gpu.policy import Policy

from tests.tracking.policies import BASELINE, QUANTITY, SMALL, SUITE, TODAY, TOMORROW, YESTERDAY, removed, waiver
from tests.tracking.tiny_project import MACHINE, SAME, TRACK, VALUE


@pytest.fixture
def asked(monkeypatch):
    """What `compare.measure` was asked for; it does nothing."""
    calls = []

    def measure(opened, base, head, **options):
        calls.append({"base": base, "head": head, **options})
        return compare.Comparison("m", base, head, options["family_alpha"], options["max_rounds"], "record")

    monkeypatch.setattr(compare, "measure", measure)
    return calls


def test_a_policy_becomes_a_comparison(clocked, written, asked):
    second = SUITE.replace("gputime_work", "same").replace("3", "1")
    path = written(
        BASELINE,
        SMALL,
        SUITE.replace("gputime_work", "value"),
        second,
        "may_be_new = true\n",
        QUANTITY,
        "max_new = 7\n",
        removed(),
    )
    gate.gate(clocked.config, path, "second", machine=MACHINE)
    assert asked == [
        {
            "base": clocked.hash("first"),
            "head": clocked.hash("second"),
            "margins": {VALUE: 3, SAME: 1},
            "limits": {TRACK: 0},
            "new": {SAME: math.inf, TRACK: 7},
            "removed": {SAME: f"nobody asks ({clocked.hash('second')[:8]})"},
            "family_alpha": 0.25,
            "max_rounds": 6,
        }
    ]


def test_seconds_are_times_and_all_else_is_a_quantity(clocked, written, asked):
    everything = SUITE.replace("gputime_work", ".") + QUANTITY.replace("track_value", ".")
    gate.gate(clocked.config, written(BASELINE, everything), "second", machine=MACHINE)
    assert (list(asked[0]["margins"]), list(asked[0]["limits"])) == ([SAME, VALUE], [TRACK])


def test_a_waiver_is_another_limit_for_a_new_number_too(clocked, written, asked):
    path = written(BASELINE, SUITE, "may_be_new = true\n", QUANTITY, "max_new = 7\n", waiver(), waiver(TRACK, limit=9))
    gate.gate(clocked.config, path, "second", machine=MACHINE)
    assert asked[0]["new"] == {SAME: math.inf, VALUE: math.inf, TRACK: 9}


def test_a_waiver_is_another_limit_for_one_benchmark(clocked, written, asked):
    path = written(BASELINE, SUITE, QUANTITY, waiver(), waiver(TRACK, limit=1, expires=TODAY))
    comparison = gate.gate(clocked.config, path, "second", machine=MACHINE)
    assert (asked[0]["margins"], asked[0]["limits"]) == ({SAME: 3, VALUE: 60}, {TRACK: 1})
    commit = clocked.hash("second")[:8]
    assert comparison.waivers == {
        VALUE: f"60 until {TOMORROW}: worth it ({commit})",
        TRACK: f"1 until {TODAY}: worth it ({commit})",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(SUITE + waiver(expires=YESTERDAY), rf"waiver\[1\]\.expires: {YESTERDAY} is over", id="expired"),
        pytest.param(
            SUITE + waiver("suite.Gone.gputime_work"), r"waiver\[1\]\.benchmark: .* got 'suite\.Gone", id="gone"
        ),
        pytest.param(SUITE + waiver("gputime_work"), r"waiver\[1\]\.benchmark: ", id="only-a-part"),
        pytest.param(SUITE + waiver(TRACK), r"waiver\[1\]\.benchmark: ", id="not-in-the-policy"),
        pytest.param(SUITE + waiver() + waiver(), r"waiver\[2\]\.benchmark: expected .*, once, got", id="twice"),
        pytest.param(SUITE + waiver(commit="no-such"), r"waiver\[1\]\.commit: expected a commit", id="unknown-commit"),
        pytest.param(
            SUITE + waiver(commit="first"), r"waiver\[1\]\.commit: expected one after the baseline", id="before"
        ),
        pytest.param(
            SUITE + waiver(commit="wrong"), r"waiver\[1\]\.commit: expected one after the baseline", id="after"
        ),
        pytest.param(SUITE + removed("gone"), r"removed\[1\]\.benchmarks: .* got 'gone'", id="removed-nothing"),
        pytest.param(
            SUITE + removed("track"), r"removed\[1\]\.benchmarks: ", id="removed-what-the-policy-does-not-name"
        ),
        pytest.param(
            SUITE + removed() + removed("value|same"), r"removed\[2\]\.benchmarks: .* as one before", id="removed-twice"
        ),
        pytest.param(
            SUITE + removed(commit="first"),
            r"removed\[1\]\.commit: expected one after the baseline",
            id="removed-before",
        ),
        pytest.param(
            SUITE + SUITE, r"suite\[2\]\.benchmarks: 'gputime_work' matches suite.*, as one before", id="two-suites"
        ),
        pytest.param(
            SUITE.replace("work", "gone"),
            r"suite\[1\]\.benchmarks: expected to match a benchmark, got 'gputime_gone'",
            id="nothing",
        ),
        pytest.param(
            SUITE.replace("gputime_work", "track_value"), r"suite\[1\]\.benchmarks: expected to match", id="no-time"
        ),
        pytest.param(
            QUANTITY.replace("track_value", "gputime"), r"quantity\[1\]\.benchmarks: expected to match", id="a-time"
        ),
    ],
)
def test_what_does_not_fit_the_suites_or_the_history_is_refused(clocked, written, asked, text, message):
    path = written(BASELINE, text)
    with pytest.raises(project.UsageError, match=f"^{path}: {message}"):
        gate.gate(clocked.config, path, "second", machine=MACHINE)
    assert asked == []


def test_nothing_is_compared_with_itself(clocked, written, asked):
    with pytest.raises(project.UsageError, match=r"expected a baseline other than HEAD, got .* for both"):
        gate.gate(clocked.config, written(BASELINE, SUITE), "first", machine=MACHINE)
    assert asked == []


@pytest.mark.parametrize("absent", [{"skipped": {VALUE, SAME}}, {"skipped": {VALUE}, "removed": {SAME}}])
def test_a_suite_of_which_nothing_is_measured_lets_nothing_pass(clocked, written, monkeypatch, absent):
    def measure(opened, base, head, **options):
        passed = {TRACK: compare.Quantity("pass", 1, 1, 1, "registers")}
        named = {what: dict.fromkeys(keys, "no GPU") for what, keys in absent.items()}
        return compare.Comparison("m", base, head, 0.01, 6, "record", quantities=passed, **named)

    monkeypatch.setattr(compare, "measure", measure)
    comparison = gate.gate(clocked.config, written(BASELINE, SUITE, QUANTITY), "second", machine=MACHINE)
    assert (comparison.exit_code, comparison.problems) == (2, {"all of gputime_work": "not measured here: no GPU"})


@pytest.mark.parametrize(
    ("head", "baseline"),
    [
        pytest.param("after-wrong", "second", id="last-tag"),
        pytest.param("second", "first", id="not-its-own"),
    ],
)
def test_the_baseline_is_the_last_release(clocked, written, asked, head, baseline):
    for number, name in enumerate(("first", "second")):
        clocked.git("tag", f"v{number}", name)
    path = written("baseline_tags = 'v*'\n", SUITE)
    gate.gate(clocked.config, path, head, machine=MACHINE)
    assert (asked[0]["base"], asked[0]["head"]) == (clocked.hash(baseline), clocked.hash(head))


@pytest.mark.parametrize("head", ["second", "root"])
def test_without_a_release_there_is_no_baseline(clocked, written, head):
    with pytest.raises(
        project.UsageError, match=r"baseline_tags: expected a tag before .*, got none that matches 'v\*'"
    ):
        gate.gate(clocked.config, written("baseline_tags = 'v*'\n", SUITE), head, machine=MACHINE)


@pytest.fixture
def command_line(monkeypatch, capsys, clocked, written, tmp_path):
    """`asv-gpu gate` of a policy for a commit: exit code, stdout, the Markdown and JUnit files."""

    def command_line(*policy, head="second"):
        files = tmp_path / "summary.md", tmp_path / "gate.xml"
        options = ["--policy", written(SMALL, *policy), "--markdown", files[0], "--junit", files[1]]
        command = ["asv-gpu", "--config", clocked.config, "gate", head, *options, "--machine", MACHINE]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr().out
        return ended.value.code, shown, *(path.read_text() if path.exists() else "" for path in files)

    return command_line


def test_a_slower_commit_is_not_released_unless_that_was_accepted(command_line, clocked):
    code, shown, markdown, junit = command_line(BASELINE, SUITE, QUANTITY)
    headline = "FAIL: 1 of 2 benchmarks slower than their margin, 1 of 1 quantities larger than they may be"
    assert code == 1
    assert shown.startswith(f"{headline}\n")
    assert markdown.startswith(f"### {headline}\n")
    suite = ElementTree.fromstring(junit)  # noqa: S314  (our own)
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")

    code, shown, markdown, junit = command_line(BASELINE, SUITE, QUANTITY, waiver(), waiver(TRACK, limit=1))
    assert code == 0
    assert shown.startswith("PASS: 0 of 2 benchmarks slower")
    assert f"60 until {TOMORROW}: worth it" in shown
    assert f"60 until {TOMORROW}: worth it" in markdown
    assert ElementTree.fromstring(junit).get("failures") == "0"  # noqa: S314

    # More than what was accepted is not.
    assert command_line(BASELINE, SUITE, waiver(limit=40))[0] == 1


def test_a_commit_that_fails_verification_is_not_released(command_line):
    code, shown, markdown, junit = command_line(BASELINE, SUITE, head="wrong")
    assert code == 2
    assert shown.startswith("INVALID: ")
    assert "VerificationError: the answer: it is wrong" in markdown
    assert ElementTree.fromstring(junit).get("errors") == "1"  # noqa: S314


def calibration(**changes):
    rate = calibrate.Rate(0.0, 0.0, 0.0002)
    found = calibrate.Rate(1.0, 0.999, 1.0)
    rates = calibrate.Rates(rate, found, {1: rate, 3: dataclasses.replace(found, low=0.94), 5: found})
    policy = {"margins": {SAME: 3, VALUE: 3}, "family_alpha": 0.25, "max_rounds": 6}
    described = {"machine": MACHINE, "commit": "c" * 40, **policy, "benchmarks": 2, "rounds": 60, "comparisons": 9}
    return calibrate.Calibration(**{**described, "rates": rates, "record": "record", **changes})


OFTEN = calibrate.Rate(0.5, 0.4, 0.6)
FOUND = "false alarms at most 0.02 %; least slowdown found with 95 %: 5 % (60 rounds)"
NONE = "none of this policy on this machine"


@pytest.mark.parametrize(
    ("calibrations", "told"),
    [
        pytest.param([], NONE, id="none"),
        pytest.param([calibration()], FOUND, id="one"),
        pytest.param([calibration(rounds=20), calibration(), calibration(rounds=30)], FOUND, id="most-rounds"),
        pytest.param([calibration(margins={SAME: 3, VALUE: 5})], NONE, id="another-margin"),
        pytest.param([calibration(max_rounds=7)], NONE, id="other-rounds"),
        pytest.param([calibration(family_alpha=0.2)], NONE, id="another-alpha"),
        pytest.param([calibration(environment="of another torch")], NONE, id="another-environment"),
        pytest.param([calibration(versions={"suite.Clocked.gputime_work": "2"})], NONE, id="another-version"),
        pytest.param(
            [calibration(rates=calibrate.Rates(OFTEN, OFTEN, {10: OFTEN}))],
            "false alarms at most 60.00 %, which is MORE than the 25 % of the policy; "
            "least slowdown found with 95 %: more than 10 % (60 rounds)",
            id="not-supported",
        ),
    ],
)
def test_says_what_is_known_of_its_rates_of_error(clocked, written, asked, calibrations, told):
    folder = clocked.results / MACHINE / "comparisons"
    folder.mkdir(parents=True)
    policy = written(BASELINE, SMALL, SUITE, waiver())
    with project.locked(clocked.config) as conf:
        opened = project.prepare(conf, bench=None, machine=MACHINE, timeout_seconds=60)
        margins = Policy.read(policy).matched(opened).margins()
        here = {"environment": opened.environment.name, "versions": calibrate._versions(opened, margins)}
    for number, one in enumerate(calibrations):
        of_here = {name: getattr(one, name) or value for name, value in here.items()}
        (folder / f"{number}.calibration").write_text(json.dumps(dataclasses.asdict(one) | of_here))
    comparison = gate.gate(clocked.config, policy, "second", machine=MACHINE)
    assert comparison.calibration == told
    assert summary.text(comparison).splitlines()[-1] == f"calibration: {told}"


def test_numbers_alone_need_no_calibration(clocked, written, asked):
    assert gate.gate(clocked.config, written(BASELINE, QUANTITY), "second", machine=MACHINE).calibration == ""


RATE = calibrate.Rate(0.0, 0.0, 0.001)
CALIBRATION = json.dumps(
    dataclasses.asdict(
        calibrate.Calibration("m", "c", {}, 0.25, 6, 1, 6, 100, calibrate.Rates(RATE, RATE, {3: RATE}), "record")
    )
)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("{", id="cut-short"),
        pytest.param("[]", id="a-list"),
        pytest.param("{}", id="nothing-in-it"),
        pytest.param(CALIBRATION.replace('"3"', '"x"'), id="no-percentage"),
        pytest.param(CALIBRATION.replace('"3"', '"3", "4"'), id="no-json"),
        pytest.param(CALIBRATION.replace("0.001", "NaN"), id="nan"),
        pytest.param(CALIBRATION.replace('"rounds": 6', '"rounds": "6"'), id="a-number-as-text"),
        pytest.param(CALIBRATION.replace('"3": {"share": 0.0, "low": 0.0, "high": 0.001}', ""), id="no-slowdown"),
        pytest.param("[" * 100_000, id="nested-too-deeply"),
    ],
)
def test_a_damaged_calibration_is_named(clocked, written, asked, damage):
    folder = clocked.results / MACHINE / "comparisons"
    folder.mkdir(parents=True)
    assert damage != CALIBRATION
    (folder / "a.calibration").write_text(damage)
    with pytest.raises(project.UsageError, match=r"^damaged calibration .*a\.calibration"):
        gate.gate(clocked.config, written(BASELINE, SUITE), "second", machine=MACHINE)


def test_no_policy(clocked, tmp_path):
    command = clocked.command("--policy", str(tmp_path / "nowhere.toml"), command="gate")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere.toml" in done.stderr
    assert "Traceback" not in done.stderr

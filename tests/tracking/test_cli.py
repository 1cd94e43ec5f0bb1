import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import asv_bench_gpu
import pytest
from asv_bench_gpu import calibrate, cli, compare, project, report, runner, start, summary
from asv_bench_gpu.report.findings import Findings

from tests.tracking.tiny_project import MACHINE

PARSER = cli._parser()
(_SUBPARSERS,) = (action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))
COMMANDS = _SUBPARSERS.choices
SUMMARY = runner.Summary(
    machine="m",
    measured=[("a" * 40, 1), ("a" * 40, 2)],
    kept=[("b" * 40, 1)],
    failures=[("c" * 40, 3, "verification", "Traceback\nVerificationError: counts differ\n")],
    skipped={"order.Rows.gputime_rows": "needs a CUDA GPU"},
    results=["results/m/aaaaaaaa.json"],
)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["asv-gpu", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def ran(monkeypatch):
    """What `runner.run` was called with; it does nothing and returns `SUMMARY`."""
    calls = []

    def run(config, commits, **options):
        print("progress", file=sys.stderr)
        calls.append((config, commits, options))
        return SUMMARY

    monkeypatch.setattr(runner, "run", run)
    return calls


def documented_options():
    for name, parser in [("asv-gpu", PARSER), *COMMANDS.items()]:
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                yield pytest.param(action, id=f"{name}:{(action.option_strings or [action.dest])[-1]}")


@pytest.mark.parametrize("action", list(documented_options()))
def test_every_option_is_documented(action):
    assert action.help
    assert action.help != argparse.SUPPRESS


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_listed_with_what_it_does(call, name):
    (line,) = (choice for choice in _SUBPARSERS._choices_actions if choice.dest == name)
    assert line.help
    code, shown, _ = call("--help")
    assert code == 0
    assert re.search(rf"^\s+{name}\s+{re.escape(line.help)}$", shown, re.MULTILINE)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_help_has_an_example_that_parses(call, name):
    code, shown, errors = call(name, "--help")
    assert (code, errors) == (0, "")
    example = re.search(r"example: asv-gpu (.*)", shown)[1]
    arguments = PARSER.parse_args(shlex.split(example))
    assert arguments.command.__name__ == f"_{name}"


def test_the_first_help_has_an_example(call):
    _, shown, _ = call("--help")
    assert "example: asv-gpu" in shown


def test_exit_codes_are_documented(call):
    _, shown, _ = call("--help")
    assert re.search(r"Exit codes: 0 pass, 1 slower, 2 usage error.*, 3 undecided", " ".join(shown.split()))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_units_are_in_the_names_of_options_that_take_numbers(name):
    numbers = [action for action in COMMANDS[name]._actions if action.type is float]
    # A probability has none.
    assert all(re.search("-(seconds|percent|ms|us|alpha)$", action.option_strings[-1]) for action in numbers)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_of_a_documented_name_has_its_function(name):
    assert COMMANDS[name].get_default("command") is getattr(cli, f"_{name}")


def test_run_passes_everything_on(call, ran):
    call(
        *("--config", "x/asv.conf.json", "run", "v1..v2", "--rounds", "3", "--bench", "order", "--machine", "m"),
        *("--timeout-seconds", "1.5"),
    )
    options = {"machine": "m", "rounds": 3, "bench": "order", "timeout_seconds": 1.5}
    assert ran == [(Path("x/asv.conf.json"), "v1..v2", options)]


def test_run_by_default(call, ran):
    call("run")
    options = {"machine": None, "rounds": 10, "bench": None, "timeout_seconds": 900.0}
    assert ran == [(Path("asv.conf.json"), "HEAD", options)]


def test_run_takes_several_commits_and_ranges(call, ran):
    call("run", "v1", "v2..v3", "v4", "--rounds", "3")
    assert [commits.split() for _, commits, _ in ran] == [["v1", "v2..v3", "v4"]]


def test_run_says_what_it_did(call, ran):
    code, shown, errors = call("run")
    assert code == 2
    assert errors == "progress\n"
    assert shown.splitlines() == [
        "machine m: 2 rounds measured, 1 already recorded",
        "skipped order.Rows.gputime_rows: needs a CUDA GPU",
        "results results/m/aaaaaaaa.json",
        "FAILED  cccccccc round 3: verification: VerificationError: counts differ",
    ]


def test_json_holds_the_same_facts(call, ran):
    code, shown, errors = call("run", "--json")
    assert (code, errors) == (2, "progress\n")
    assert json.loads(shown) == {
        "machine": "m",
        "measured": [["a" * 40, 1], ["a" * 40, 2]],
        "kept": [["b" * 40, 1]],
        "failures": [["c" * 40, 3, "verification", "Traceback\nVerificationError: counts differ\n"]],
        "skipped": {"order.Rows.gputime_rows": "needs a CUDA GPU"},
        "results": ["results/m/aaaaaaaa.json"],
        "exit_code": 2,
    }


def test_a_failure_without_a_message_is_shown(call, monkeypatch):
    summary = runner.Summary("m", failures=[("c" * 40, 1, "crash", "")])
    monkeypatch.setattr(runner, "run", lambda *_, **__: summary)
    code, shown, _ = call("run")
    assert code == 2
    assert shown.splitlines()[-1].startswith("FAILED  cccccccc round 1: crash:")


def test_exit_code_0_when_everything_is_recorded(call, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *_, **__: runner.Summary("m", kept=[("c", 1)]))
    assert call("run")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param([], "COMMAND", id="no-command"),
        pytest.param(["measure"], "measure", id="unknown-command"),
        pytest.param(["run", "--no-such-option"], "--no-such-option", id="unknown-option"),
        pytest.param(["run", "--rounds", "0"], "--rounds: expected at least 1, got 0", id="no-rounds"),
        pytest.param(["run", "--rounds", "-3"], "--rounds", id="negative-rounds"),
        pytest.param(["run", "--rounds", "1.5"], "--rounds", id="half-a-round"),
        pytest.param(["run", "--timeout-seconds", "soon"], "--timeout-seconds", id="timeout"),
        pytest.param(
            ["run", "--timeout-seconds", "-1"],
            "--timeout-seconds",
            id="negative-timeout",
        ),
        pytest.param(
            ["run", "--timeout-seconds", "nan"],
            "--timeout-seconds",
            id="nan-timeout",
        ),
    ],
)
def test_usage_errors(call, ran, arguments, named):
    code, shown, errors = call(*arguments)
    assert (code, shown, ran) == (2, "", [])
    assert named in errors.splitlines()[-1]


def test_usage_errors_of_the_runner(call, monkeypatch):
    def run(*_, **__):
        raise project.UsageError("COMMITS: 'a..a' is an empty range")

    monkeypatch.setattr(runner, "run", run)
    assert call("run", "a..a") == (2, "", "asv-gpu: COMMITS: 'a..a' is an empty range\n")


COMPARISON = compare.Comparison("m", "b" * 40, "a" * 40, 0.01, 40, "record", problems={"order.Rows": "no figure"})


@pytest.fixture
def compared(monkeypatch):
    """What `compare.compare` was called with; it does nothing and returns `COMPARISON`."""
    calls = []

    def pretend(*arguments, **options):
        calls.append((arguments, options))
        return COMPARISON

    monkeypatch.setattr(compare, "compare", pretend)
    return calls


def test_compare_passes_everything_on(call, compared):
    call(
        *("compare", "v1", "v2", "--margin-percent", "1.5", "--family-alpha", "0.05", "--max-rounds", "30"),
        *("--bench", "order", "--machine", "m", "--timeout-seconds", "7"),
    )
    options = {"margin_percent": 1.5, "family_alpha": 0.05, "max_rounds": 30}
    options |= {"bench": "order", "machine": "m", "timeout_seconds": 7.0}
    assert compared == [((Path("asv.conf.json"), "v1", "v2"), options)]


def test_compare_by_default(call, compared):
    call("compare", "v1", "v2")
    options = {"margin_percent": 3.0, "family_alpha": 0.01, "max_rounds": 40}
    options |= {"bench": None, "machine": None, "timeout_seconds": 900.0}
    assert compared == [((Path("asv.conf.json"), "v1", "v2"), options)]


def test_compare_shows_text_or_json(call, compared):
    assert call("compare", "v1", "v2") == (2, f"{summary.text(COMPARISON)}\n", "")
    code, shown, errors = call("compare", "v1", "v2", "--json")
    assert (code, json.loads(shown)["problems"], errors) == (2, COMPARISON.problems, "")


def test_calibrate_passes_everything_on(call, monkeypatch):
    calls = []

    def pretend(*arguments, **options):
        calls.append((arguments, options))
        rate = calibrate.Rate(0.5, 0.4, 0.6)
        rates = calibrate.Rates(rate, rate, {3: rate}, [3])
        return calibrate.Calibration("m", "c" * 40, {"a": 2}, 0.05, 30, 9, 50, 70, rates, "record")

    monkeypatch.setattr(calibrate, "calibrate", pretend)
    arguments = ("--rounds", "50", "--comparisons", "70", "--measure-percent", "2", "5", "--policy", "x.toml")
    code, shown, _ = call("calibrate", "v1", *arguments)
    assert code == 0
    assert re.search(r"one benchmark slower by 3 % \(measured\): found +50\.00 % +40\.00 % +60\.00 %", shown)
    options = {"rounds": 50, "comparisons": 70, "slowdowns_percent": [2, 5]}
    options |= {"machine": None, "timeout_seconds": 900.0}
    assert calls == [((Path("asv.conf.json"), Path("x.toml"), "v1"), options)]


@pytest.mark.parametrize(
    ("error", "message", "ends_with"),
    [
        pytest.param(OSError(28, "No space left on device", "results"), "asv-gpu: [Errno 28] No space", 2, id="disk"),
        pytest.param(ZeroDivisionError("a mistake of ours"), "Traceback", 2, id="mistake"),
        pytest.param(KeyboardInterrupt(), "asv-gpu: interrupted; every finished round is kept", 130, id="interrupted"),
    ],
)
def test_no_accident_ends_with_the_code_for_slower(call, monkeypatch, error, message, ends_with):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(compare, "compare", fail)
    code, shown, errors = call("compare", "v1", "v2")
    assert (code, shown) == (ends_with, "")
    assert errors.startswith(message)
    assert str(error) in errors


def test_report_prints_where_the_pages_are(call, monkeypatch, tmp_path):
    asked = []

    def build(config, html_dir, policy):
        asked.append((config, policy))
        return html_dir / "index.html"

    monkeypatch.setattr(report, "build", build)
    assert call("report", "--html-dir", str(tmp_path)) == (0, f"{tmp_path}/index.html\n", "")
    assert call("report", "--html-dir", str(tmp_path), "--policy", "x.toml")[0] == 0
    assert asked == [(Path("asv.conf.json"), None), (Path("asv.conf.json"), Path("x.toml"))]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        pytest.param(
            ["--margin-percent", "2.5", "--family-alpha", "0.05", "--bench", "order", "--policy", "x.toml"],
            {"margin_percent": 2.5, "family_alpha": 0.05, "bench": "order", "policy": Path("x.toml")},
            id="everything",
        ),
        pytest.param([], {"margin_percent": 1.0, "family_alpha": 0.01, "bench": None, "policy": None}, id="by-default"),
    ],
)
def test_changes_passes_everything_on(call, monkeypatch, arguments, options):
    asked = []

    def pretend(config, **given):
        asked.append((config, given))
        return Findings([], 3, 0, 9, 1.0, 0.01, [], [])

    monkeypatch.setattr(report, "changes", pretend)
    assert call("changes", *arguments)[0] == 0
    assert asked == [(Path("asv.conf.json"), options)]


def test_data_on_stdout_and_progress_on_stderr(measured):
    """A real run: of what git, pip, asv and the suite print nothing reaches stdout."""
    command = [*measured.command("first", "--rounds", "3", "--machine", MACHINE), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    summary = json.loads(done.stdout)
    first = measured.hash("first")
    assert (done.returncode, summary["exit_code"]) == (0, 0)
    assert (summary["measured"], summary["kept"]) == ([[first, 3]], [[first, 1], [first, 2]])
    assert summary["results"] == [str(measured.result_file("first").relative_to(measured.folder))]
    lines = done.stderr.splitlines()
    assert lines[:2] == [f"{first[:8]} round {number}/3: already recorded" for number in (1, 2)]
    assert re.fullmatch(rf"{first[:8]} round 3/3: 2 figures after 2 comparisons, [\d.]+ s", lines[2])
    assert len(lines) == 3


def test_a_real_run_that_fails(measured):
    done = subprocess.run(
        measured.command("wrong", "--rounds", "2", "--machine", MACHINE), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"machine {MACHINE}: 0 rounds measured, 0 already recorded",
        f"FAILED  {measured.hash('wrong')[:8]} round 1: verification: "
        "asv_bench_gpu.verification.VerificationError: the answer: it is wrong",
    ]
    assert "no figures" in done.stderr


def test_a_package_that_is_missing_does_not_end_with_the_code_for_slower(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "asv_bench_gpu.cli", None)
    monkeypatch.delattr(asv_bench_gpu, "cli")
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("asv-gpu: ")

import dataclasses
import fcntl
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys

import pytest
from asv_bench_gpu import cli, journal, project, runner

from tests.tracking.processes import is_alive, is_locked, wait_for
from tests.tracking.tiny_project import HOSTTIME, MACHINE, SUITE, TRACK


def rounds_of(tiny, summary):
    """(name of the commit, round), in the order in which they were measured."""
    return [(tiny.name(commit), number) for commit, number in summary.measured]


def failures(tiny, summary):
    return [(tiny.name(commit), number, kind) for commit, number, kind, _ in summary.failures]


def by_combination(rounds, benchmark=HOSTTIME):
    """The values of each combination, round by round."""
    return [list(values) for values in zip(*(entry.figures[benchmark].values for entry in rounds), strict=True)]


@pytest.fixture
def command_line(monkeypatch, capsys):
    """`asv-gpu run` in this process: exit code, stdout and stderr."""

    def command_line(project, *arguments):
        monkeypatch.setattr(sys, "argv", ["asv-gpu", "--config", str(project.config), "run", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return command_line


def test_measures_two_commits_in_abba_order(measured):
    order = [("first", 1), ("second", 1), ("second", 2), ("first", 2)]
    assert rounds_of(measured, measured.summary) == order
    rounds = {(name, entry.round): entry for name in ("first", "second") for entry in measured.rounds(name)}
    started = [rounds[key].started_at for key in order]
    assert started == sorted(started)
    summary = measured.summary
    assert (summary.kept, summary.failures, summary.skipped, summary.exit_code) == ([], [], {}, 0)


def test_journal_holds_what_a_round_is_about(measured):
    first, second = measured.rounds("first")
    assert (first.commit, first.round, first.failed, first.verified) == (measured.hash("first"), 1, None, 2)
    assert 0 < first.seconds < 60
    assert set(first.facts) == {"python", "torch", "triton"}
    assert first.figures[HOSTTIME].params == [["1", "2"]]
    # asv measures once what asks for no rounds.
    assert set(first.figures) == {HOSTTIME, TRACK}
    assert set(second.figures) == {HOSTTIME}


@pytest.mark.parametrize("name", ["first", "second"])
def test_asv_reads_one_sample_per_round(measured, name):
    samples = by_combination(measured.rounds(name))
    assert [len(values) for values in samples] == [2, 2]
    assert measured.samples(name) == samples
    assert measured.value(name, HOSTTIME) == [statistics.median(values) for values in samples]
    assert measured.result(name).commit_hash == measured.hash(name)


@pytest.mark.parametrize(("name", "value"), [("first", 2), ("second", 3)])
def test_each_commit_is_measured_with_its_own_code(measured, name, value):
    assert measured.value(name, TRACK) == [value]


def test_results_name_the_machine_and_what_identifies_it(measured):
    machine = json.loads((measured.results / MACHINE / "machine.json").read_text())
    assert machine["machine"] == MACHINE
    params = measured.result("first").params
    assert {key: params[key] for key in ("machine", "gpu")} == {"machine": MACHINE, "gpu": ""}
    assert set(params) == {*machine, "python", "torch", "triton"} - {"version"}


def test_a_machine_that_lost_its_gpu_is_refused(measured):
    path = measured.results / MACHINE / "machine.json"
    path.write_text(path.read_text().replace('"gpu": ""', '"gpu": "Some GPU"'))
    kept = path.read_text()
    with pytest.raises(project.UsageError, match="--machine: 'tiny-machine' has results of GPU 'Some GPU'"):
        measured.run(rounds=3)
    assert path.read_text() == kept
    assert len(measured.rounds("first")) == 2


@pytest.mark.parametrize("content", [b'{"gpu"', b"[]", b"\xff"], ids=["truncated", "a-list", "no-utf-8"])
def test_a_damaged_machine_is_named_and_left_alone(measured, content):
    path = measured.results / MACHINE / "machine.json"
    path.write_bytes(content)
    with pytest.raises(project.UsageError, match=r"^damaged results/tiny-machine/machine\.json: "):
        measured.run(rounds=3)
    assert path.read_bytes() == content


@pytest.mark.parametrize("reason", ["error", "skip"])
def test_a_round_without_a_figure_takes_nothing_from_the_others(measured, reason):
    before = measured.samples("first")
    (*_, last) = measured.rounds("first")
    figures = last.figures[HOSTTIME]
    without = dataclasses.replace(figures, values=[None, figures.values[1]])
    if reason == "error":
        without.errors["0"] = "out of memory"
    else:
        without.skipped["no GPU"] = [0]
    journal.append(
        measured.journal_path("first"), dataclasses.replace(last, round=3, figures={**last.figures, HOSTTIME: without})
    )
    measured.run(rounds=2)
    assert measured.samples("first") == [before[0], [*before[1], figures.values[1]]]


def test_asv_publishes_the_results(measured):
    command = [sys.executable, "-m", "asv", "publish", "--config", measured.config]
    done = subprocess.run(command, cwd=measured.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    index = json.loads((measured.folder / "html" / "index.json").read_text())
    assert set(index["benchmarks"]) == {HOSTTIME, TRACK}
    graphs = [json.loads(path.read_text()) for path in (measured.folder / "html" / "graphs").rglob(f"{TRACK}.json")]
    assert [value for _, value in graphs[0]] == [2, 3]


def test_nothing_is_left_behind(measured):
    names = sorted(path.name for path in (measured.results / MACHINE).iterdir())
    expected = [
        path.name for name in ("first", "second") for path in (measured.journal_path(name), measured.result_file(name))
    ]
    assert names == sorted([*expected, "machine.json"])
    assert sorted(path.name for path in measured.results.iterdir()) == ["benchmarks.json", MACHINE]


def test_measures_nothing_twice(measured):
    before = measured.journal_path("first").read_bytes()
    again = measured.run("root..second", rounds=2)
    assert (again.measured, again.exit_code) == ([], 0)
    assert again.kept == measured.summary.measured
    assert again.results == measured.summary.results
    assert measured.journal_path("first").read_bytes() == before


def test_more_rounds_measure_only_those(measured):
    more = measured.run("root..second", rounds=3)
    assert rounds_of(measured, more) == [("first", 3), ("second", 3)]
    assert [len(samples) for samples in measured.samples("first")] == [3, 3]


def test_fewer_rounds_measure_nothing_and_keep_everything(measured):
    assert measured.run(rounds=1).measured == []
    assert [len(samples) for samples in measured.samples("first")] == [2, 2]


def test_commits_and_ranges_may_be_listed_and_are_measured_once(measured):
    more = measured.run("second root..second first", rounds=3)
    assert rounds_of(measured, more) == [("second", 3), ("first", 3)]
    assert len(more.kept) == 4


def test_a_benchmark_that_asks_for_fewer_rounds_gets_fewer(tiny):
    tiny.write_suite(SUITE.replace('    version = "1"\n    params', '    version = "1"\n    rounds = 2\n    params'))
    tiny.run(rounds=3)
    assert [len(samples) for samples in tiny.samples("first")] == [2, 2]


def test_wrong_commit_fails_and_the_others_are_measured(tiny):
    summary = tiny.run("second..after-wrong", rounds=2)
    assert failures(tiny, summary) == [("wrong", 1, "verification")]
    assert summary.exit_code == 2
    # No later round of the wrong commit was attempted.
    assert rounds_of(tiny, summary) == [("after-wrong", 1), ("after-wrong", 2)]
    (entry,) = tiny.rounds("wrong")
    assert (entry.failed, entry.figures) == ("verification", {})
    assert "VerificationError: the answer: it is wrong" in entry.message
    assert not tiny.result_file("wrong").exists()
    assert [len(samples) for samples in tiny.samples("after-wrong")] == [2, 2]


def test_a_commit_that_turns_out_wrong_loses_its_figures(measured):
    measured.write_suite(SUITE.replace("tiny.RIGHT else", "tiny.VALUE > 2 else"))
    summary = measured.run(rounds=4)
    assert failures(measured, summary) == [("first", 3, "verification")]
    assert not measured.result_file("first").exists()
    # What it measured before does not come back either.
    measured.write_suite(SUITE)
    assert rounds_of(measured, measured.run(rounds=1)) == [("first", 1)]
    assert [len(samples) for samples in measured.samples("first")] == [1, 1]
    assert len(measured.rounds("first")) == 2 + 1 + 1


def test_a_commit_that_does_not_build_fails_and_the_others_are_measured(tiny):
    summary = tiny.run("after-wrong..after-unbuildable", rounds=2)
    assert failures(tiny, summary) == [("unbuildable", 1, "build")]
    assert summary.exit_code == 2
    assert rounds_of(tiny, summary) == [("after-unbuildable", 1), ("after-unbuildable", 2)]
    (entry,) = tiny.rounds("unbuildable")
    assert (entry.failed, entry.figures) == ("build", {})
    assert not tiny.result_file("unbuildable").exists()


def test_the_message_of_a_failed_build_says_why(tiny):
    ((_, _, _, message),) = tiny.run("unbuildable").failures
    assert "no_such_backend" in message


@pytest.mark.parametrize(
    ("trouble", "timeout_seconds", "message"),
    [
        pytest.param("crash", 60, "ended with code 3\nabout to crash", id="crash"),
        pytest.param("hang", 1, "no result within 1 s", id="timeout"),
        pytest.param("spin", 2, "no result within 2 s", id="a-kernel-that-never-ends"),
    ],
)
def test_a_process_that_dies_or_hangs_keeps_the_finished_rounds(
    measured, monkeypatch, trouble, timeout_seconds, message
):
    samples = measured.samples("first")
    monkeypatch.setenv("TINY_TROUBLE", trouble)
    summary = measured.run(rounds=4, timeout_seconds=timeout_seconds)
    kind = "crash" if trouble == "crash" else "timeout"
    assert failures(measured, summary) == [("first", 3, kind)]
    assert summary.exit_code == 2
    *kept, failed = measured.rounds("first")
    assert [(entry.failed, entry.round) for entry in kept] == [(None, 1), (None, 2)]
    assert message in failed.message
    assert measured.samples("first") == samples
    monkeypatch.delenv("TINY_TROUBLE")
    assert rounds_of(measured, measured.run(rounds=3)) == [("first", 3)]
    assert [values[:2] for values in measured.samples("first")] == samples


def test_a_gpu_that_disappears_keeps_the_finished_rounds(measured, monkeypatch):
    samples = measured.samples("first")
    monkeypatch.setattr(project, "_save_machine", lambda *_: None)
    with monkeypatch.context() as patch:
        # It is there when the command begins.
        patch.setattr(project, "_facts", lambda: {"gpu": "NVIDIA H200"})
        summary = measured.run(rounds=4)
    assert failures(measured, summary) == [("first", 3, "device")]
    assert measured.rounds("first")[-1].message == (
        "expected the GPU 'NVIDIA H200', but torch saw '' in the measuring process"
    )
    assert measured.samples("first") == samples
    assert rounds_of(measured, measured.run(rounds=3)) == [("first", 3)]


def test_a_hanging_process_is_gone_with_what_it_started(tiny, monkeypatch):
    child = 'subprocess.Popen(["sleep", "600"])'
    note = f'open(os.environ["PIDS"], "w").write(str({child}.pid))'
    tiny.write_suite("import subprocess\n" + SUITE.replace("time.sleep(600)", f"{note}; time.sleep(600)"))
    pids = tiny.folder / "pids"
    monkeypatch.setenv("PIDS", str(pids))
    monkeypatch.setenv("TINY_TROUBLE", "hang")
    assert failures(tiny, tiny.run(timeout_seconds=2)) == [("first", 1, "timeout")]
    wait_for(lambda: not is_alive(int(pids.read_text())))


def test_killed_in_the_middle_nothing_is_lost_and_only_the_missing_is_run(tiny, monkeypatch):
    note = 'open(os.environ["PIDS"], "w").write(str(os.getpid()))\n        '
    tiny.write_suite(SUITE.replace("trouble = os", f"{note}trouble = os"))
    pids = tiny.folder / "pids"
    monkeypatch.setenv("PIDS", str(pids))
    command = tiny.command("first", "--rounds", "200", "--machine", MACHINE)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for(lambda: tiny.journal_path("first").exists() and tiny.rounds("first"))
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = tiny.rounds("first")
    assert [entry.round for entry in kept] == list(range(1, len(kept) + 1))
    rounds = len(kept) + 2
    summary = tiny.run(rounds=rounds)
    assert rounds_of(tiny, summary) == [("first", rounds - 1), ("first", rounds)]
    assert tiny.rounds("first")[: len(kept)] == kept
    assert tiny.samples("first") == by_combination(tiny.rounds("first"), HOSTTIME)
    # Whoever measured when the runner was killed does not go on beside the next run.
    wait_for(lambda: not is_alive(int(pids.read_text())))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="deleted"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:100]), id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
def test_a_damaged_result_file_is_rebuilt_from_the_journal(measured, damage):
    before = measured.samples("first")
    damage(measured.result_file("first"))
    summary = measured.run(rounds=2)
    assert summary.measured == []
    assert measured.samples("first") == before
    assert summary.results == [str(measured.result_file("first").relative_to(measured.folder))]


def test_a_damaged_result_file_is_rebuilt_by_the_next_round(measured):
    before = measured.samples("first")
    measured.result_file("first").write_bytes(b'{"half"')
    measured.run(rounds=3)
    assert [values[:2] for values in measured.samples("first")] == before
    assert [len(values) for values in measured.samples("first")] == [3, 3]


@pytest.fixture
def damaged(measured):
    path = measured.journal_path("first")
    path.write_bytes(b"damaged\n" + path.read_bytes())
    return measured


def test_a_damaged_journal_is_an_error_and_is_left_alone(damaged):
    before = damaged.journal_path("first").read_bytes()
    with pytest.raises((ValueError, project.UsageError), match=r"rounds\.jsonl, line 1"):
        damaged.run(rounds=3)
    assert damaged.journal_path("first").read_bytes() == before


def test_a_damaged_journal_is_no_traceback(damaged, command_line):
    code, _, errors = command_line(damaged, "first", "--machine", MACHINE)
    assert code == 2
    assert "rounds.jsonl, line 1" in errors


def test_two_runs_at_once(tiny):
    lock = tiny.folder / ".asv" / "env" / "asv-gpu.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(tiny.command("first"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "asv-gpu: another asv-gpu is measuring in this checkout; wait for it to end\n"
    assert tiny.run().exit_code == 0


def test_another_run_is_refused_while_one_measures(tiny, monkeypatch):
    monkeypatch.setenv("TINY_TROUBLE", "hang")
    with subprocess.Popen(tiny.command("first"), stderr=subprocess.DEVNULL, start_new_session=True) as process:
        lock = tiny.folder / ".asv" / "env" / "asv-gpu.lock"
        try:
            wait_for(lambda: lock.exists() and is_locked(lock))
            with pytest.raises(project.UsageError, match="another asv-gpu is measuring"):
                tiny.run()
        finally:
            # Not an interrupt, which a run in the background ignores.
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("commits", "message"),
    [
        pytest.param("no-such-commit", r"COMMITS: .*'no-such-commit'", id="unknown-commit"),
        pytest.param("first..no-such-commit", r"COMMITS: .*'first\.\.no-such-commit'", id="unknown-end"),
        pytest.param("first..first", r"COMMITS: 'first\.\.first' is an empty range", id="empty-range"),
        pytest.param("second..first", r"COMMITS: 'second\.\.first' is an empty range", id="backwards"),
        pytest.param("tiny.py", r"COMMITS: .*'tiny\.py'", id="a-path"),
        pytest.param("", r"COMMITS: ", id="nothing"),
        pytest.param("first no-such-commit", r"COMMITS: .*'no-such-commit'", id="one-of-two"),
        pytest.param("first first..first", r"COMMITS: 'first\.\.first' is an empty range", id="one-range-of-two"),
    ],
)
def test_unusable_commits(tiny, commits, message):
    with pytest.raises(project.UsageError, match=message):
        tiny.run(commits)
    assert not tiny.results.exists()


@pytest.mark.parametrize(
    ("bench", "message"),
    [
        pytest.param("(", r"--bench: expected a regular expression, got '\('", id="no-regex"),
        pytest.param("no_such_benchmark", "--bench: no benchmark matches 'no_such_benchmark'", id="no-match"),
    ],
)
def test_unusable_bench(tiny, bench, message):
    with pytest.raises(project.UsageError, match=message):
        tiny.run(bench=bench)


@pytest.mark.parametrize("machine", ["../elsewhere", ".hidden", "new\n"])
def test_unusable_machine(tiny, machine):
    with pytest.raises(project.UsageError, match="--machine: expected letters"):
        runner.run(tiny.config, "first", machine=machine, rounds=1)
    assert sorted(path.name for path in tiny.folder.parent.iterdir()) == ["project"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["no-such-commit"], "COMMITS", id="commit"),
        pytest.param(["first", "--bench", "("], "--bench", id="regex"),
        pytest.param(["first", "--machine", "a/b"], "--machine", id="machine"),
    ],
)
def test_exit_code_and_message_name_the_argument(tiny, command_line, arguments, named):
    code, shown, errors = command_line(tiny, *arguments)
    assert (code, shown) == (2, "")
    assert errors.startswith(f"asv-gpu: {named}: ")


def test_missing_configuration(tmp_path):
    with pytest.raises(project.UsageError, match=r"--config: expected a file, got .*nowhere\.json"):
        runner.run(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda text: text[:-1],
            "asv.conf.json",
            id="no-json",
        ),
        pytest.param(
            lambda text: text.replace('"inherit"', '"inherits"'),
            "inherits",
            id="environment-type",
        ),
        pytest.param(
            lambda text: text.replace(".asv_bench_gpu.environment", ".no_such_plugin"),
            "no_such_plugin",
            id="plugin",
        ),
    ],
)
def test_unusable_configuration(tiny, command_line, change, message):
    tiny.config.write_text(change(tiny.config.read_text()))
    code, shown, errors = command_line(tiny, "first")
    assert (code, shown) == (2, "")
    assert message in errors


def test_a_missing_suite(tiny):
    tiny.config.write_text(tiny.config.read_text().replace('"benchmarks"', '"no-such-suite"'))
    with pytest.raises(project.UsageError, match="no-such-suite"):
        tiny.run()


def test_a_suite_that_cannot_be_imported(tiny):
    tiny.write_suite("import no_such_package\n")
    with pytest.raises(project.UsageError, match=r"(?s)suite in .* cannot be imported.*no_such_package"):
        tiny.run()


def test_working_directory_is_restored(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(project.UsageError):
        tiny.run("no-such-commit")
    assert os.getcwd() == str(tmp_path)


def test_a_new_parameter_is_the_only_one_measured(measured):
    before = measured.samples("first")
    measured.write_suite(SUITE.replace("[[1, 2]]", "[[1, 2, 7]]"))
    summary = measured.run(rounds=2)
    assert rounds_of(measured, summary) == [("first", 1), ("first", 2)]
    appended = [entry.figures for entry in measured.rounds("first")[2:]]
    assert [set(figures) for figures in appended] == [{HOSTTIME}] * 2
    assert [[value is None for value in figures[HOSTTIME].values] for figures in appended] == [[True, True, False]] * 2
    samples = measured.samples("first")
    assert samples[:2] == before
    assert [len(values) for values in samples] == [2, 2, 2]


def test_a_parameter_that_is_gone_leaves_the_rest(measured):
    before = measured.samples("first")
    measured.write_suite(SUITE.replace("[[1, 2]]", "[[2]]"))
    assert measured.run(rounds=2).measured == []
    assert rounds_of(measured, measured.run(rounds=3)) == [("first", 3)]
    (samples,) = measured.samples("first")
    assert (samples[:2], len(samples)) == (before[1], 3)


def test_parameters_may_change_their_order(measured):
    before = measured.samples("first")
    measured.write_suite(SUITE.replace("[[1, 2]]", "[[2, 1]]"))
    measured.run(rounds=3)
    assert [values[:2] for values in measured.samples("first")] == before[::-1]


def test_a_bumped_version_is_measured_again(measured):
    measured.write_suite(SUITE.replace('version = "1"\n    params', 'version = "2"\n    params'))
    summary = measured.run(rounds=2)
    assert rounds_of(measured, summary) == [("first", 1), ("first", 2)]
    new = measured.rounds("first")[2:]
    assert [set(entry.figures) for entry in new] == [{HOSTTIME}] * 2
    assert measured.samples("first") == by_combination(new)


def test_an_error_in_one_combination_is_measured_again_and_nothing_else(tiny):
    tiny.write_suite(SUITE.replace("sum(range(size))", "assert size != 2, 'two is too much'"))
    summary = tiny.run(rounds=1)
    assert summary.exit_code == 2
    ((_, _, kind, message),) = summary.failures
    assert kind == "benchmark"
    assert message.startswith(f"{HOSTTIME}(2)\n")
    assert "AssertionError: two is too much" in message
    assert tiny.samples("first")[1] is None
    good = tiny.samples("first")[0]
    tiny.write_suite(SUITE)
    assert tiny.run(rounds=1).exit_code == 0
    assert tiny.samples("first")[0] == good
    assert len(tiny.samples("first")[1]) == 1


def test_what_the_machine_cannot_run_is_skipped_with_its_reason_and_not_tried_again(tiny):
    tiny.write_suite(SUITE.replace("trouble = ", 'raise NotImplementedError("needs a CUDA GPU")\n        trouble = '))
    summary = tiny.run(rounds=2)
    assert (summary.skipped, summary.exit_code) == ({HOSTTIME: "needs a CUDA GPU"}, 0)
    assert tiny.samples("first") == [None, None]
    assert tiny.run(rounds=2).measured == []


def test_only_matching_benchmarks_are_measured(tiny):
    summary = tiny.run(bench=r"hosttime_work\(2\)")
    assert rounds_of(tiny, summary) == [("first", 1)]
    (entry,) = tiny.rounds("first")
    assert list(entry.figures) == [HOSTTIME]
    assert [value is None for value in entry.figures[HOSTTIME].values] == [True, False]
    tiny.run()
    rest = tiny.rounds("first")[1]
    assert [value is None for value in rest.figures[HOSTTIME].values] == [False, True]
    assert TRACK in rest.figures


def test_rounds_that_nothing_asks_for_are_not_counted_as_recorded(tiny):
    summary = tiny.run(rounds=3, bench="track_value")
    assert rounds_of(tiny, summary) == [("first", 1)]
    assert summary.kept == []


def test_the_suite_never_sees_the_working_tree(tiny):
    (tiny.folder / "tiny.py").write_text("RIGHT = False\nVALUE = -1\n")
    assert tiny.run().exit_code == 0
    assert tiny.value("first", TRACK) == [2]


def test_plan_reverses_every_other_round(tiny):
    session = runner._Session(project.Project(None, None, None, None, "m", 1.0), 4)
    plan = list(session._plan(["a", "b", "c"]))
    assert ["".join(commit for _, commit in group) for _, group in itertools.groupby(plan, lambda step: step[0])] == [
        "abc",
        "cba",
        "abc",
        "cba",
    ]
    assert [number for number, _ in plan] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_summary_without_anything_is_not_a_pass():
    assert runner.Summary("m").exit_code == 2
    assert dataclasses.replace(runner.Summary("m"), kept=[("c", 1)]).exit_code == 0
    failed = dataclasses.replace(runner.Summary("m"), measured=[("c", 1)], failures=[("c", 2, "crash", "")])
    assert failed.exit_code == 2

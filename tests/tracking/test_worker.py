import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.tracking import processes

_MEASURE = """
import dataclasses, json, sys
from asv_bench_gpu.worker import measure
folder, selected = sys.argv[1], json.loads(sys.argv[2])
progress = []
outcome = measure(folder + "/benchmarks", selected, lambda *report: progress.append(report))
print(json.dumps([dataclasses.asdict(outcome), progress]))
"""
#: What every suite of these tests begins with: `log` writes to a file that the test reads.
_PREAMBLE = """\
import os
from asv_bench_gpu.verification import Unavailable, VerificationError, verify

def log(*words):
    with open(os.environ["LOG"], "a") as file:
        print(*words, file=file)
"""


class Suite:
    """A suite in a folder, and the way to measure it in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        (folder / "benchmarks").mkdir()
        (folder / "benchmarks" / "__init__.py").touch()
        (folder / "torch.py").write_text(processes.TORCH_WITHOUT_GPU)

    def write(self, source):
        (self.folder / "benchmarks" / "suite.py").write_text(_PREAMBLE + textwrap.dedent(source))

    def measure(self, selected):
        """The outcome as a dict, and the progress reported."""
        script = ["-c", _MEASURE, self.folder, json.dumps(selected)]
        shown = processes.output(*script, path=[self.folder], LOG=str(self.log))
        return json.loads(shown.splitlines()[-1])

    def worker(self, selected, **variables):
        """The process as the runner starts it: its exit code, the outcome if there is one, the progress."""
        request, outcome = self.folder / "request.json", self.folder / "outcome.json"
        request.write_text(
            json.dumps(
                {"benchmark_dir": str(self.folder / "benchmarks"), "selected": selected, "outcome": str(outcome)}
            )
        )
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "asv_bench_gpu.worker", request, str(write_end)]
        environ = processes.environ([self.folder], LOG=str(self.log), **variables)
        with subprocess.Popen(command, env=environ, pass_fds=[write_end], stderr=subprocess.PIPE) as process:
            os.close(write_end)
            with os.fdopen(read_end) as progress:
                lines = [json.loads(line) for line in progress]
            process.communicate()
        return process.returncode, json.loads(outcome.read_text()) if outcome.exists() else None, lines


@pytest.fixture
def suite(tmp_path):
    return Suite(tmp_path)


TIMED = """
class Timed:
    version = "1"
    params = [[1, 2], ["a", "b"]]
    param_names = ["size", "letter"]

    def setup_cache(self):
        log("setup_cache Timed")
        return verify([("a", None), ("b", None)])

    def setup(self, verified, size, letter):
        log("setup", size, letter)

    def hosttime_work(self, verified, size, letter):
        sum(range(size))

    def hosttime_other(self, verified, size, letter):
        sum(range(size))

    def teardown(self, verified, size, letter):
        log("teardown", size, letter)
"""
WORK = "suite.Timed.hosttime_work"
OTHER = "suite.Timed.hosttime_other"


def test_measures_the_combinations_asked_for(suite):
    suite.write(TIMED)
    outcome, _ = suite.measure({WORK: [0, 3]})
    assert (outcome["failed"], outcome["verified"], list(outcome["figures"])) == (None, 2, [WORK])
    figures = outcome["figures"][WORK]
    values = figures.pop("values")
    assert figures == {
        "version": "1",
        "params": [["1", "2"], ["'a'", "'b'"]],
        "skipped": {},
        "errors": {},
        "code": {},
        "slowed": {},
        "number": 1,
    }
    assert [value is None for value in values] == [False, True, True, False]
    assert all(0 < value < 1 for value in values if value is not None)


def test_facts_of_the_machine_are_in_the_outcome(suite):
    suite.write(TIMED)
    outcome, _ = suite.measure({WORK: [0]})
    assert set(outcome["facts"]) == {"python", "torch", "triton"}
    assert outcome["device_before"] is outcome["device_during"] is outcome["device_after"] is None
    assert outcome["canary"] == {}


def test_verifies_once_and_before_anything_else(suite):
    suite.write(TIMED)
    suite.measure({WORK: [0, 1], OTHER: [0]})
    assert suite.log.read_text().splitlines() == [
        "setup_cache Timed",
        *["setup 1 a", "teardown 1 a"] * 2,
        "setup 1 b",
        "teardown 1 b",
    ]


def test_a_setup_cache_shared_by_classes_runs_once(suite):
    suite.write(
        """
        class _Base:
            version = "1"
            def setup_cache(self):
                log("setup_cache")
                return verify([("a", None)])

        class First(_Base):
            def hosttime_x(self, verified):
                pass

        class Second(_Base):
            def track_x(self, verified):
                return verified.comparisons
        """
    )
    outcome, _ = suite.measure({"suite.First.hosttime_x": [0], "suite.Second.track_x": [0]})
    assert suite.log.read_text() == "setup_cache\n"
    assert outcome["verified"] == 1
    assert outcome["figures"]["suite.Second.track_x"]["values"] == [1]


def test_a_verification_counts_once_also_beside_something_else(suite):
    suite.write(
        """
        PROOF = verify([("a", None), ("b", None)])

        class First:
            version = "1"
            def setup_cache(self):
                return PROOF
            def hosttime_x(self, verified):
                pass

        class Second:
            def setup_cache(self):
                return PROOF, {"value": 5}
            def track_x(self, cache):
                return cache[1]["value"]

        class Third:
            def setup_cache(self):
                return verify([("c", None)]), "more"
            def track_x(self, cache):
                return 6
        """
    )
    selected = {"suite.First.hosttime_x": [0], "suite.Second.track_x": [0], "suite.Third.track_x": [0]}
    outcome, _ = suite.measure(selected)
    assert outcome["verified"] == 2 + 1
    assert [outcome["figures"][f"suite.{name}.track_x"]["values"] for name in ("Second", "Third")] == [[5], [6]]


def test_each_setup_cache_is_run_and_timed_ones_come_first(suite):
    suite.write(
        TIMED
        + textwrap.dedent(
            """
            class Aaa:
                def setup_cache(self):
                    log("setup_cache Aaa")
                    return {"value": 5}
                def track_value(self, cache):
                    log("track")
                    return cache["value"]
            """
        )
    )
    outcome, _ = suite.measure({"suite.Aaa.track_value": [0], WORK: [0]})
    assert suite.log.read_text().splitlines()[:2] == ["setup_cache Timed", "setup_cache Aaa"]
    assert outcome["figures"]["suite.Aaa.track_value"]["values"] == [5]
    assert outcome["figures"]["suite.Aaa.track_value"]["number"] is None
    assert outcome["verified"] == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param('return verify([("scan", "differs")])', "VerificationError: scan: differs", id="differs"),
        pytest.param("return verify([])", "VerificationError: nothing was compared", id="nothing-compared"),
        pytest.param("import no_such_package", "No module named 'no_such_package'", id="cannot-be-imported"),
        pytest.param("raise ZeroDivisionError('kernel')", "ZeroDivisionError: kernel", id="kernel-raises"),
        pytest.param("raise NotImplementedError('soon')", "NotImplementedError: soon", id="not-implemented"),
        pytest.param("assert False, 'x' * 10_000", "xxxx", id="long-message"),
    ],
)
def test_failed_verification_leaves_no_figures_at_all(suite, body, message):
    suite.write(
        f"""
        class Timed:
            version = "1"
            def setup_cache(self):
                {body}
            def hosttime_work(self, verified):
                log("timed")

        class Facts:
            def track_value(self):
                log("tracked")
                return 1
        """
    )
    outcome, _ = suite.measure({"suite.Facts.track_value": [0], WORK: [0]})
    assert outcome["failed"] == "verification"
    assert message in outcome["message"]
    assert len(outcome["message"]) <= 4000
    assert (outcome["figures"], outcome["verified"]) == ({}, 0)
    assert suite.log.read_text() == ""


def test_a_verification_that_fails_takes_the_timed_suites_that_passed_along(suite):
    suite.write(
        TIMED
        + textwrap.dedent(
            """
            class Wrong:
                version = "1"
                def setup_cache(self):
                    return verify([("a", "differs")])
                def hosttime_work(self, verified):
                    pass
            """
        )
    )
    outcome, _ = suite.measure({WORK: [0], "suite.Wrong.hosttime_work": [0]})
    assert (outcome["failed"], outcome["figures"]) == ("verification", {})
    assert suite.log.read_text() == "setup_cache Timed\n"


def test_a_wrong_result_fails_the_commit_in_a_suite_without_timed_benchmarks_too(suite):
    suite.write(
        """
        class Facts:
            def setup_cache(self):
                raise VerificationError("spilled into the neighbour")
            def track_value(self, cache):
                return 1
        """
    )
    outcome, _ = suite.measure({"suite.Facts.track_value": [0]})
    assert (outcome["failed"], outcome["figures"]) == ("verification", {})
    assert "spilled into the neighbour" in outcome["message"]


def test_other_failures_of_a_setup_cache_concern_its_own_benchmarks(suite):
    suite.write(
        TIMED
        + textwrap.dedent(
            """
            class Broken:
                params = [[1, 2, 3]]
                def setup_cache(self):
                    raise ImportError("no compiler for this")
                def track_value(self, cache, size):
                    log("tracked")
                    return size
            """
        )
    )
    outcome, _ = suite.measure({"suite.Broken.track_value": [0, 2], WORK: [0]})
    assert outcome["failed"] is None
    broken = outcome["figures"]["suite.Broken.track_value"]
    assert broken["values"] == [None] * 3
    assert sorted(broken["errors"]) == ["0", "2"]
    assert all("ImportError: no compiler for this" in message for message in broken["errors"].values())
    assert outcome["figures"][WORK]["values"][0] is not None
    assert "tracked" not in suite.log.read_text()


TROUBLE = """
class Trouble:
    params = [[0, 1, 2, 3, 4]]
    param_names = ["size"]

    def setup(self, size):
        log("setup", size)
        if size == 1:
            raise NotImplementedError("too large")
        if size == 2:
            raise ValueError("setup went wrong")

    def track_value(self, size):
        if size == 3:
            raise KeyError("body went wrong")
        if size == 4:
            raise NotImplementedError("too large")
        return size * 10

    def teardown(self, size):
        log("teardown", size)
"""


def test_trouble_in_one_combination_stays_there(suite):
    suite.write(TROUBLE)
    outcome, _ = suite.measure({"suite.Trouble.track_value": [0, 1, 2, 3, 4]})
    figures = outcome["figures"]["suite.Trouble.track_value"]
    assert figures["values"] == [0, None, None, None, None]
    assert figures["skipped"] == {"too large": [1, 4]}
    assert sorted(figures["errors"]) == ["2", "3"]
    assert "ValueError: setup went wrong" in figures["errors"]["2"]
    assert "KeyError: 'body went wrong'" in figures["errors"]["3"]
    assert outcome["failed"] is None


def test_teardown_runs_whatever_happened(suite):
    suite.write(TROUBLE)
    suite.measure({"suite.Trouble.track_value": [0, 1, 2, 3, 4]})
    expected = [f"{step} {size}" for size in range(5) for step in ("setup", "teardown")]
    assert suite.log.read_text().splitlines() == expected


def test_unavailable_skips_with_its_reason(suite):
    suite.write(
        """
        class Timed:
            version = "1"
            params = [[1, 2]]
            def setup_cache(self):
                return Unavailable("needs a CUDA GPU")
            def setup(self, verified, size):
                verified.skip()
            def hosttime_work(self, verified, size):
                log("timed")
        """
    )
    outcome, _ = suite.measure({WORK: [0, 1]})
    figures = outcome["figures"][WORK]
    assert (outcome["failed"], outcome["verified"]) == (None, 0)
    assert (figures["skipped"], figures["errors"]) == ({"needs a CUDA GPU": [0, 1]}, {})
    assert suite.log.read_text() == ""


@pytest.mark.parametrize(
    "setup_cache",
    [
        pytest.param("", id="no-setup-cache"),
        pytest.param("def setup_cache(self): pass", id="none"),
        pytest.param("def setup_cache(self): return {'comparisons': 3}", id="a-dict"),
    ],
)
def test_no_figure_of_the_commit_without_a_verification(suite, setup_cache):
    suite.write(
        f"""
        class Timed:
            version = "1"
            {setup_cache}
            def hosttime_work(self, *_):
                log("timed")

        class Facts:
            def track_value(self):
                log("tracked")
                return 1
        """
    )
    outcome, _ = suite.measure({WORK: [0], "suite.Facts.track_value": [0]})
    assert (outcome["failed"], outcome["figures"]) == ("verification", {})
    assert "suite.Timed.hosttime_work: its setup_cache returned" in outcome["message"]
    assert suite.log.read_text() == ""


def test_a_timed_benchmark_needs_its_verification_even_if_the_setup_cache_ran_already(suite):
    suite.write(
        """
        class _Base:
            version = "1"
            def setup_cache(self):
                return 5

        class Aaa(_Base):
            def track_value(self, cache):
                return cache

        class Timed(_Base):
            def hosttime_work(self, cache):
                log("timed")
        """
    )
    outcome, _ = suite.measure({WORK: [0], "suite.Aaa.track_value": [0]})
    assert (outcome["failed"], outcome["figures"]) == ("verification", {})
    assert suite.log.read_text() == ""


def test_a_failed_check_is_an_error_of_its_combination(suite):
    suite.write(
        TIMED
        + """
    def check(self, verified, size, letter):
        if size == 2:
            raise AssertionError("counts differ")
"""
    )
    outcome, _ = suite.measure({WORK: [0, 2]})
    figures = outcome["figures"][WORK]
    assert [value is None for value in figures["values"]] == [False, True, True, True]
    assert "AssertionError: counts differ" in figures["errors"]["2"]


ON_GPU = """
import torch
from pathlib import Path
from types import SimpleNamespace
from asv_bench_gpu import clock

clock.calls_per_graph = lambda call: 1
clock.device_timing = lambda call, **_: SimpleNamespace(median=1e-5)

class Timed:
    version = "1"
    params = [[1, 2, 3]]
    param_names = ["size"]

    def setup_cache(self):
        {setup_cache}

    def gputime_work(self, verified, size):
        pass

    def check(self, verified, size):
        if size == 2:
            {check}
"""
GPUTIME = "suite.Timed.gputime_work"


@pytest.fixture
def on_gpu(suite):
    """Measure three figures beside a GPU, with what may go wrong while verifying or while checking the second."""
    (suite.folder / "torch.py").write_text(processes.TORCH_WITH_GPU)

    def measure(*, setup_cache="return verify([('a', None)])", check="pass"):
        suite.write(ON_GPU.format(setup_cache=setup_cache, check=check))
        return suite.measure({GPUTIME: [0, 1, 2]})[0]

    return measure


LOSE = "Path(torch.__file__).with_name('lost').touch()"


def test_beside_a_gpu_the_canary_is_timed(on_gpu):
    outcome = on_gpu()
    assert (outcome["failed"], outcome["facts"]["gpu"]) == (None, "a GPU")
    assert outcome["canary"] == {"clock": [1e-5, 1e-5], "memory": [1e-5, 1e-5]}
    assert outcome["figures"][GPUTIME]["values"] == [1e-5] * 3


def test_memory_that_runs_out_costs_one_figure(on_gpu):
    figures = on_gpu(check="raise torch.OutOfMemoryError('CUDA out of memory')")["figures"][GPUTIME]
    assert figures["values"] == [1e-5, None, 1e-5]
    assert list(figures["errors"]) == ["1"]
    assert "OutOfMemoryError: CUDA out of memory" in figures["errors"]["1"]


@pytest.mark.parametrize(
    "raises",
    [
        pytest.param("; raise RuntimeError('CUDA error: the first of many')", id="seen-at-once"),
        pytest.param("", id="seen-at-the-end"),
    ],
)
def test_no_figures_from_a_process_whose_gpu_stopped_working(on_gpu, raises):
    outcome = on_gpu(check=f"torch.broken = True{raises}")
    assert (outcome["failed"], outcome["figures"]) == ("device", {})
    last = "the GPU no longer works in this process: CUDA error: an illegal memory access was encountered"
    assert outcome["message"].splitlines()[-1] == f"asv_bench_gpu.device.DeviceError: {last}"
    assert ("the first of many" in outcome["message"]) == bool(raises)


@pytest.mark.parametrize(
    ("trouble", "failed"),
    [
        pytest.param("raise torch.OutOfMemoryError('full')", "device", id="out-of-memory"),
        pytest.param(f"{LOSE}; raise RuntimeError('CUDA error')", "device", id="gpu-lost"),
        pytest.param("raise RuntimeError('CUDA error: illegal access')", "verification", id="kernel-at-fault"),
        pytest.param(f"{LOSE}; return verify([('a', 'differs')])", "verification", id="wrong-result"),
    ],
)
def test_a_verification_that_the_machine_stopped_says_nothing_of_the_commit(on_gpu, trouble, failed):
    outcome = on_gpu(setup_cache=trouble)
    assert (outcome["failed"], outcome["figures"]) == (failed, {})
    assert outcome["message"]


def test_reports_progress(suite):
    suite.write(TIMED)
    _, progress = suite.measure({WORK: [0, 3], OTHER: [1]})
    assert progress[0] == [0, 1, "verifying"]
    assert [report[:2] for report in progress[1:]] == [[0, 3], [1, 3], [2, 3]]
    assert {report[2] for report in progress[1:]} == {f"{WORK} 1 'a'", f"{WORK} 2 'b'", f"{OTHER} 1 'b'"}


def test_process_leaves_outcome_and_progress(suite):
    suite.write(TIMED)
    code, outcome, progress = suite.worker({WORK: [0]})
    assert code == 0
    assert outcome["figures"][WORK]["values"][0] > 0
    assert outcome["verified"] == 2
    assert progress[0] == [0, 1, "verifying"]


def test_process_that_crashes_leaves_no_outcome(suite):
    suite.write(TIMED.replace('log("setup", size, letter)', "os._exit(3)"))
    code, outcome, _ = suite.worker({WORK: [0]})
    assert (code, outcome) == (3, None)


def test_the_fingerprint_of_timed_code_is_kept(suite):
    suite.write(
        """
        from types import SimpleNamespace
        from asv_bench_gpu import clock, fingerprint

        clock.calls_per_graph = lambda call: 1
        clock.device_timing = lambda call, **_: SimpleNamespace(median=1e-5)
        found = iter(["first", None, "third"])
        fingerprint.of = lambda call: next(found)

        class Timed:
            version = "1"
            params = [[1, 2, 3]]
            def setup_cache(self):
                return verify([("a", None)])
            def gputime_work(self, verified, size):
                pass
        """
    )
    outcome, _ = suite.measure({"suite.Timed.gputime_work": [0, 1, 2]})
    figures = outcome["figures"]["suite.Timed.gputime_work"]
    assert (figures["values"], figures["code"]) == ([1e-5] * 3, {"0": "first", "2": "third"})


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"], ids=["nan", "inf"])
def test_a_tracked_value_that_json_lacks_does_not_take_the_round_along(suite, value):
    suite.write(
        f"""
        class Facts:
            def track_bad(self):
                return {value}
            def track_good(self):
                return 1
        """
    )
    code, outcome, _ = suite.worker({"suite.Facts.track_bad": [0], "suite.Facts.track_good": [0]})
    assert code == 0
    assert outcome["figures"]["suite.Facts.track_good"]["values"] == [1]
    bad = outcome["figures"]["suite.Facts.track_bad"]
    assert bad["values"] == [None]
    assert bad["errors"] or bad["skipped"]


def test_a_numpy_integer_is_a_value(suite):
    suite.write(
        """
        class Facts:
            def track_value(self):
                import numpy
                return numpy.int64(5)
        """
    )
    code, outcome, _ = suite.worker({"suite.Facts.track_value": [0]})
    assert code == 0
    assert outcome["figures"]["suite.Facts.track_value"]["values"] == [5]


def test_a_benchmark_without_a_value_is_an_error(suite):
    suite.write(
        """
        class Facts:
            def track_value(self):
                pass
        """
    )
    outcome, _ = suite.measure({"suite.Facts.track_value": [0]})
    assert sorted(outcome["figures"]["suite.Facts.track_value"]["errors"]) == ["0"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_a_killed_runner_leaves_no_worker_behind():
    child = (
        "import time; from asv_bench_gpu import worker; worker._die_with_parent(); print(1, flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        process.kill()
        # Ends only when the child, which holds the other end, has ended too.
        assert process.communicate(timeout=20) == (b"", None)

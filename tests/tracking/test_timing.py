import json
import re
import sys
import textwrap

import pytest
from asv.runner import BENCHMARK_RUN_SCRIPT
from asv_bench_gpu import clock
from asv_bench_gpu.benchmarks import timing
from asv_bench_gpu.benchmarks.timing import GpuTimeBenchmark, HostTimeBenchmark
from asv_bench_gpu.verification import Unavailable, Verified
from asv_runner.discovery import _get_benchmark

from tests.tracking import processes

PROOF = Verified(3)


@pytest.mark.parametrize(
    "first",
    [
        "asv_runner.benchmarks",
        "asv_runner.discovery",
        "asv_bench_gpu",
        "asv_bench_gpu.benchmarks.timing",
        "asv_bench_gpu.worker",
        "asv_bench_gpu.runner",
        "asv_bench_gpu.clock",
    ],
)
def test_prefixes_exist_whatever_is_imported_first(first):
    # In a process of its own: asv_runner looks for types once, and swallows what goes wrong.
    script = f"""
import {first}
from asv_runner.benchmarks import benchmark_types
for name in ("gputime_x", "hosttime_x", "time_x", "track_x"):
    print(name, next(cls.__module__ + "." + cls.__name__ for cls in benchmark_types if cls.name_regex.match(name)))
"""
    assert processes.output("-c", script).splitlines() == [
        "gputime_x asv_bench_gpu.benchmarks.timing.GpuTimeBenchmark",
        "hosttime_x asv_bench_gpu.benchmarks.timing.HostTimeBenchmark",
        "time_x asv_runner.benchmarks.time.TimeBenchmark",
        "track_x asv_runner.benchmarks.track.TrackBenchmark",
    ]


@pytest.mark.parametrize("name", ["gputime_", "gputime", "x_gputime_y", "hosttime_", "Gputime_x", "gpu_time_x"])
def test_other_names_are_no_benchmarks_of_ours(name):
    assert not GpuTimeBenchmark.name_regex.match(name)
    assert not HostTimeBenchmark.name_regex.match(name)


def make(suite, name="gputime_work"):
    return _get_benchmark(name, sys.modules[suite.__module__], suite, getattr(suite, name))


class Suite:
    version = "1"

    def __init__(self):
        self.events = []

    def setup_cache(self):
        return PROOF

    def gputime_work(self, verified):
        self.events.append("call")

    def hosttime_work(self, verified):
        self.events.append("call")


class WithHooks(Suite):
    allocations = 3

    def reallocate(self, verified):
        self.events.append("reallocate")

    def check(self, verified):
        self.events.append("check")


@pytest.fixture
def medians(monkeypatch):
    """What the clocks will say, one after the other; the timed call runs once each."""
    queue = []

    def fake(call, *_, **__):
        call()
        median = queue.pop(0)
        return clock.Timing(median, median / 2, median * 2)

    monkeypatch.setattr(timing.clock, "calls_per_graph", lambda call: 100)
    monkeypatch.setattr(timing.fingerprint, "of", lambda call: None)
    monkeypatch.setattr(timing.clock, "device_timing", fake)
    monkeypatch.setattr(timing.clock, "host_timing", fake)
    return queue


@pytest.mark.parametrize(
    ("name", "kind", "type_"),
    [("gputime_work", GpuTimeBenchmark, "gputime"), ("hosttime_work", HostTimeBenchmark, "hosttime")],
    ids=["gputime", "hosttime"],
)
def test_one_sample_per_process_in_seconds(medians, name, kind, type_):
    benchmark = make(Suite, name)
    assert (type(benchmark), benchmark.type, benchmark.unit) == (kind, type_, "seconds")
    medians.append(4e-6)
    assert benchmark.run(PROOF) == {"samples": [4e-6], "number": 1}
    assert benchmark._attr_sources[1].events == ["call"]


def test_figure_is_the_median_over_allocations(medians):
    benchmark = make(WithHooks)
    medians += [9e-6, 2e-6, 3e-6]
    assert benchmark.run(PROOF) == {"samples": [3e-6], "number": 1}


def test_each_allocation_is_reallocated_timed_and_checked(medians):
    benchmark = make(WithHooks)
    medians += [1e-6] * 3
    benchmark.run(PROOF)
    assert benchmark._attr_sources[1].events == ["reallocate", "call", "check"] * 3


def test_graphs_of_all_allocations_have_the_same_number_of_calls(monkeypatch):
    sizes = iter([100, 200])
    timed = []

    def device_timing(call, *, calls, replays):
        timed.append(calls)
        assert replays >= 2
        return clock.Timing(1e-6, 1e-6, 1e-6)

    monkeypatch.setattr(timing.clock, "calls_per_graph", lambda call: next(sizes))
    monkeypatch.setattr(timing.clock, "device_timing", device_timing)
    monkeypatch.setattr(timing.fingerprint, "of", lambda call: None)
    benchmark = make(WithHooks)
    benchmark.run(PROOF)
    benchmark.run(PROOF)
    assert timed == [100] * 3 + [200] * 3


def test_the_fingerprint_is_that_of_the_code_that_was_timed_last(medians, monkeypatch):
    found = iter(["first", None])
    monkeypatch.setattr(timing.fingerprint, "of", lambda call: next(found))
    benchmark = make(WithHooks)
    fingerprints = [benchmark.fingerprint]
    for _ in range(2):
        medians += [1e-6] * 3
        benchmark.run(PROOF)
        fingerprints.append(benchmark.fingerprint)
    assert fingerprints == [None, "first", None]


@pytest.mark.parametrize("wrong", [1, 2, 3], ids="in-allocation-{}".format)
def test_a_failed_check_leaves_no_figure(medians, wrong):
    class Wrong(WithHooks):
        def check(self, verified):
            super().check(verified)
            if self.events.count("check") == wrong:
                raise AssertionError("counts[0] is 1, expected 2")

    medians += [1e-6] * 3
    with pytest.raises(AssertionError, match=r"counts\[0\] is 1, expected 2"):
        make(Wrong).run(PROOF)
    assert len(medians) == 3 - wrong


def test_the_body_is_timed_with_each_slowdown_for_each_allocation(medians, monkeypatch):
    monkeypatch.setattr(GpuTimeBenchmark, "slowdowns_percent", (3, 10))
    # For each allocation: as it is, with 3 %, and with 10 %.
    medians += [7.0, 1.0, 2.0, 8.0, 3.0, 4.0, 9.0, 5.0, 6.0]
    benchmark = make(WithHooks)
    benchmark.set_cache(PROOF)
    assert benchmark.do_run()["samples"] == [8.0]
    assert benchmark.slowed == {3: pytest.approx(3.0 * 1.03), 10: pytest.approx(4.0 * 1.1)}


def test_hooks_get_the_arguments_of_the_benchmark(medians):
    class Parametrised(Suite):
        params = ((4, 8),)
        param_names = ("size",)

        def gputime_work(self, *arguments):
            self.events.append(("call", arguments))

        def reallocate(self, *arguments):
            self.events.append(("reallocate", arguments))

        def check(self, *arguments):
            self.events.append(("check", arguments))

    medians.append(1e-6)
    benchmark = make(Parametrised)
    benchmark.set_cache(PROOF)
    benchmark.set_param_idx(1)
    benchmark.do_run()
    assert benchmark._attr_sources[1].events == [
        ("reallocate", (PROOF, 8)),
        ("call", (PROOF, 8)),
        ("check", (PROOF, 8)),
    ]


def test_ten_rounds_unless_said_otherwise():
    class Three(Suite):
        rounds = 3

    assert make(Suite).rounds == 10
    assert make(Three).rounds == 3


def test_a_version_is_required():
    class NoVersion(Suite):
        version = None

    with pytest.raises(ValueError, match=r"NoVersion\.gputime_work: needs an explicit version"):
        make(NoVersion)


def test_the_version_may_be_the_methods_own():
    class Versioned:
        def gputime_work(self):
            pass

        gputime_work.version = "3"

    assert make(Versioned).version == "3"


@pytest.mark.parametrize(
    "arguments",
    [(), (4,), (None, 4), ({"comparisons": 3}, 4), (True, 4), (Unavailable("no GPU"), 4)],
    ids=["nothing", "parameters-only", "none", "a-dict", "true", "unavailable"],
)
def test_no_figure_without_verified(medians, arguments):
    benchmark = make(Suite)
    with pytest.raises(
        RuntimeError, match=r"Suite\.gputime_work: no figure without verification: setup_cache must return"
    ):
        benchmark.run(*arguments)
    assert benchmark._attr_sources[1].events == []


ASV_SUITE = """
    from asv_bench_gpu.verification import verify

    class Work:
        version = "1"
        params = [[1, 2]]
        param_names = ["size"]

        def setup_cache(self):
            return verify([("a", {difference!r}), ("b", None)])

        def setup(self, verified, size):
            assert verified.comparisons == 2
            self.checked = 0

        def hosttime_work(self, verified, size):
            sum(range(size))

        def check(self, verified, size):
            self.checked += 1

        def teardown(self, verified, size):
            assert self.checked == 1
"""


@pytest.fixture
def asv(tmp_path):
    """Run asv's own script, which knows nothing of us, on a suite."""
    (tmp_path / "torch.py").write_text(processes.TORCH_WITHOUT_GPU)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()

    def run(mode, *arguments, difference=None):
        suite = textwrap.dedent(ASV_SUITE).format(difference=difference)
        (tmp_path / "benchmarks" / "suite.py").write_text(suite)
        command = [BENCHMARK_RUN_SCRIPT, mode, tmp_path / "benchmarks", *arguments]
        return processes.python(*command, cwd=tmp_path, ASV_PYTHONPATH=str(tmp_path))

    return run


def test_asv_discovers(asv, tmp_path):
    done = asv("discover", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text())
    shown = {key: found[key] for key in ("name", "type", "unit", "rounds", "version", "params", "param_names")}
    assert shown == {
        "name": "suite.Work.hosttime_work",
        "type": "hosttime",
        "unit": "seconds",
        "rounds": 10,
        "version": "1",
        "params": [["1", "2"]],
        "param_names": ["size"],
    }


def test_asv_runs_with_the_pickled_proof_of_another_process(asv, tmp_path):
    prepared = asv("setup_cache", "suite.Work.hosttime_work", "{}")
    assert prepared.returncode == 0, prepared.stderr
    result = tmp_path / "result.json"
    done = asv("run", "suite.Work.hosttime_work-1", "{}", "None", result)
    assert done.returncode == 0, done.stderr
    figure = json.loads(result.read_text())
    assert (len(figure["samples"]), figure["number"]) == (1, 1)
    assert 0 < figure["samples"][0] < 1


def test_asv_gets_nothing_to_run_with_when_verification_fails(asv, tmp_path):
    done = asv("setup_cache", "suite.Work.hosttime_work", "{}", difference="it is wrong")
    assert done.returncode != 0
    assert re.search("VerificationError: a: it is wrong", done.stderr)
    assert not (tmp_path / "cache.pickle").exists()


@pytest.mark.gpu
def test_device_time_of_a_real_kernel():
    import torch

    class Spin(Suite):
        def gputime_work(self, verified):
            torch.cuda._sleep(200_000)

    (seconds,) = make(Spin).run(PROOF)["samples"]
    assert 2e-5 < seconds < 2e-3


@pytest.mark.gpu
def test_host_time_does_not_wait_for_the_device():
    import torch

    class Spin(Suite):
        def hosttime_work(self, verified):
            torch.cuda._sleep(2_000_000)

    (seconds,) = make(Spin, "hosttime_work").run(PROOF)["samples"]
    assert seconds < 5e-4

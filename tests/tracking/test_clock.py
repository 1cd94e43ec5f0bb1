import dataclasses
import math
import statistics
import types

import pytest
from asv_bench_gpu import clock
from asv_bench_gpu.clock import Timing


@pytest.mark.parametrize(
    ("seconds", "low", "median", "high"),
    [
        pytest.param([1, 2], 1.25, 1.5, 1.75, id="two"),
        pytest.param([3, 1, 2], 1.5, 2, 2.5, id="unsorted"),
        pytest.param([5, 5, 5, 5], 5, 5, 5, id="constant"),
        pytest.param([1, 2, 3, 4, 100], 2, 3, 4, id="outlier"),
        pytest.param(list(range(101)), 25, 50, 75, id="percentiles"),
    ],
)
def test_quartiles(seconds, low, median, high):
    assert Timing.of([float(value) for value in seconds]) == Timing(median, low, high)


def test_one_repetition_has_no_quartiles():
    with pytest.raises(statistics.StatisticsError):
        Timing.of([1.0])


class FakeHost:
    """A clock that only calls and synchronisation move."""

    def __init__(self, monkeypatch, durations):
        self.now = 0
        self.calls = 0
        self.events = []
        self._durations = durations
        monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: self.now * 2.0**-20))

    def call(self):
        self.now += self._durations(self.calls)
        self.calls += 1
        self.events.append("call")

    def synchronize(self):
        self.now += 2**30
        self.events.append("synchronize")

    def bursts(self):
        """Calls between one synchronisation and the next."""
        text = "".join("|" if event == "synchronize" else "." for event in self.events)
        return [len(burst) for burst in text.split("|")]


@pytest.mark.parametrize(
    ("ticks", "calls"),
    [
        pytest.param(1, 50, id="1-us-at-most-50-calls"),
        pytest.param(32, math.ceil(1e-3 * 2**20 / 32), id="31-us"),
        pytest.param(2**11, 1, id="2-ms-one-call"),
        pytest.param(2**20, 1, id="1-s-one-call"),
    ],
)
def test_host_time_per_call_and_calls_per_burst(monkeypatch, ticks, calls):
    host = FakeHost(monkeypatch, lambda number: ticks)
    timing = clock.host_timing(host.call, host.synchronize, bursts=7)
    assert timing == Timing(ticks * 2.0**-20, ticks * 2.0**-20, ticks * 2.0**-20)
    # Warming up, sizing a burst, the bursts; nothing after the last synchronisation.
    assert host.bursts() == [3, 1, *[calls] * 7, 0]


def test_host_time_is_the_median_over_bursts(monkeypatch):
    # 4 calls before the first burst, then bursts of one call each: 4096, 4097, ... ticks.
    host = FakeHost(monkeypatch, lambda number: 4096 + max(number - 4, 0))
    timing = clock.host_timing(host.call, host.synchronize, bursts=5)
    assert timing == Timing(4098 * 2.0**-20, 4097 * 2.0**-20, 4099 * 2.0**-20)


@pytest.mark.parametrize(("calls", "percent", "captured"), [(100, 3, 103), (300, 10, 330), (10, 1, 101), (101, 5, 210)])
def test_a_slowdown_is_so_many_more_calls_than_are_counted(monkeypatch, calls, percent, captured):
    def fake(call, *, calls, replays):
        assert (call, calls, replays) == ("call", captured, 7)
        return Timing(4e-6, 3e-6, 5e-6)

    monkeypatch.setattr(clock, "device_timing", fake)
    timing = clock.slowed_timing("call", percent, calls=calls, replays=7)
    longer = 1 + percent / 100
    assert dataclasses.astuple(timing) == pytest.approx((4e-6 * longer, 3e-6 * longer, 5e-6 * longer))


def test_host_time_of_the_real_clock_is_no_less_than_the_work():
    started = []

    def call():
        begin = clock.time.perf_counter()
        while clock.time.perf_counter() - begin < 1e-4:
            pass
        started.append(begin)

    timing = clock.host_timing(call, lambda: None, bursts=3)
    assert 1e-4 <= timing.low <= timing.median <= timing.high
    assert len(started) >= 3 + 1 + 3


@pytest.mark.gpu
@pytest.mark.alone
class TestOnGpu:
    def test_time_is_proportional_to_the_cycles_spun(self):
        import torch

        def median(cycles):
            return clock.device_timing(lambda: torch.cuda._sleep(cycles)).median

        median(400_000)  # clocks settle
        once, twice, four_times = (median(100_000 * factor) for factor in (1, 2, 4))
        # Differences, so that the launch itself does not count.
        assert (four_times - twice) / (twice - once) == pytest.approx(2, rel=0.05)

    def test_an_empty_kernel_takes_less_than_3_us(self):
        import torch

        timing = clock.device_timing(lambda: torch.cuda._sleep(0))
        assert 0 < timing.low <= timing.median <= timing.high
        assert timing.median < 3e-6

    def test_host_work_does_not_count(self):
        import time

        import torch

        def call():
            time.sleep(1e-4)
            torch.cuda._sleep(0)

        assert clock.device_timing(call).median < 3e-6

    def test_captured_work_is_carried_out_and_its_writes_are_seen(self):
        import torch

        counter = torch.zeros((), dtype=torch.int64, device="cuda")
        clock.device_timing(lambda: counter.add_(1), calls=7, replays=4)
        # 3 to warm up, then 3 and 4 replays of 7 calls.
        assert int(counter) == 3 + (3 + 4) * 7

    @pytest.mark.parametrize(
        ("cycles", "fewest", "most"),
        [
            pytest.param(0, 100, 500, id="short"),
            pytest.param(100_000, 30, 80, id="50-us"),
            pytest.param(10_000_000, 10, 10, id="5-ms"),
        ],
    )
    def test_calls_per_graph(self, cycles, fewest, most):
        import torch

        assert fewest <= clock.calls_per_graph(lambda: torch.cuda._sleep(cycles)) <= most

    def test_what_cannot_be_captured_raises(self):
        import torch

        tensor = torch.zeros(1, device="cuda")
        with pytest.raises(RuntimeError):
            clock.device_timing(lambda: tensor.item())
        # The device is usable again.
        assert clock.device_timing(lambda: tensor.add_(1)).median > 0

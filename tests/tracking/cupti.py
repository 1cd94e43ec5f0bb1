"""Somebody else's clock: CUPTI, through torch.profiler, over replays of a CUDA graph like those that our clock times.

CUPTI writes down when each kernel began and ended on the device. Three figures of a call come from that, and one of
CUDA's events around the same replays:

- ``span``: from the first begin in a replay to the last end, over the number of calls. Like our figure it holds the
  gaps between kernels; unlike it, nothing before the first and after the last.
- ``busy``: the kernels' durations alone. What is missing to ``span`` is the launch of a kernel inside a graph.
- ``events``: what our clock would have said of these very replays.

Tracing is not free: it makes the gaps longer, by as much for a short kernel as for a long one. So the clocks are
compared twice. ``events`` and ``span`` are of the same replays and must agree whatever tracing costs: that is the test
of the clock. ``clock``, without tracing, and ``span`` must agree where tracing costs next to nothing; elsewhere the
difference is what tracing costs, which ``events`` shows too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asv_bench_gpu import clock

#: How far two clocks may be apart, relatively.
TOLERANCE = 0.03
_WARM_UPS, _REPLAYS = 3, 20
#: A traced graph is that much longer than a timed one, so that what comes before its first kernel hardly counts.
_LONGER = 4
#: While the device spins, 100 ms at 2 GHz, the host queues all replays: none has to wait for its launch.
_HEAD_START_CYCLES = 200_000_000
_WORK = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclasses.dataclass(frozen=True)
class Row:
    """One call by both clocks: seconds, medians over replays.

    Attributes:
        clock: by `asv_bench_gpu.clock.device_timing`, without tracing.
        events, span, busy: see the module.
        calls: in a traced graph.
    """

    clock: float
    events: float
    span: float
    busy: float
    calls: int

    def __str__(self) -> str:
        seconds = {name: getattr(self, name) for name in ("clock", "events", "span", "busy")}
        figures = ", ".join(f"{name} {1e6 * value:.3f}" for name, value in seconds.items())
        return f"{figures} us; span/events {self.span / self.events:.4f}, span/clock {self.span / self.clock:.4f}"

    def check(self) -> None:
        """Raise where the clocks disagree, and tracing does not explain it."""
        assert abs(self.span / self.events - 1) <= TOLERANCE, f"the clocks differ on the same replays: {self}"
        if self.events / self.clock - 1 <= TOLERANCE / 2:  # tracing costs next to nothing
            assert abs(self.span / self.clock - 1) <= TOLERANCE, f"the clocks differ: {self}"


def row(call: Callable[[], object]) -> Row:
    """Time ``call`` by both clocks; in a process of its own, because CUPTI stays in the one that used it."""
    timed = clock.device_timing(call).median
    calls = _LONGER * clock.calls_per_graph(call)
    events, trace = _traced(call, calls)
    replays = of_replays(trace, calls)
    assert len(replays) == _WARM_UPS + _REPLAYS, f"expected that many replays, got {len(replays)}"
    spans, busy = zip(*replays[_WARM_UPS:], strict=True)
    return Row(timed, statistics.median(events), statistics.median(spans), statistics.median(busy), calls)


def of_replays(trace: dict[str, Any], calls: int) -> list[tuple[float, float]]:
    """Span and busy time of a call, in seconds, for each replay in a trace in Chrome's format, oldest first.

    What a graph launches has the correlation of its launch; whatever else ran is fewer than ``calls`` pieces of work.
    """
    launches = defaultdict(list)
    for event in trace["traceEvents"]:
        if event.get("cat") in _WORK:
            launches[event["args"]["correlation"]].append((event["ts"], event["dur"]))
    replays = sorted(sorted(works) for works in launches.values() if len(works) >= calls)
    return [
        (
            1e-6 * (max(start + length for start, length in works) - works[0][0]) / calls,
            1e-6 * sum(length for _, length in works) / calls,
        )
        for works in replays
    ]


def _traced(call: Callable[[], object], calls: int) -> tuple[list[float], dict[str, Any]]:
    """Replay a graph under the profiler; returns seconds per call by CUDA's events, and the trace."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    # torch's own precautions for graphs: CUPTI must not leave and return while one exists.
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    stream = torch.cuda.Stream()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_WARM_UPS + _REPLAYS)]
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        stream.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(calls):
                    call()
            torch.cuda._sleep(_HEAD_START_CYCLES)
            for start, end in pairs:
                start.record()
                graph.replay()
                end.record()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())
    return [1e-3 * start.elapsed_time(end) / calls for start, end in pairs[_WARM_UPS:]], trace

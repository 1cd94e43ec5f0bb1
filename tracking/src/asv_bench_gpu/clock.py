"""How long something takes: on the device, and on the host that launches it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

#: A graph is sized to run this long, or to hold 300 calls if that is shorter: so that starting and stopping the clock
#: does not count; and because in a short graph dependent launches are faster than in a long one, or in an engine
#: (decision 9).
GRAPH_SECONDS = 2e-3
#: Replays of each graph; their median is the figure.
REPLAYS = 10
_MIN_CALLS, _MAX_CALLS = 10, 300


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time per call in seconds, over repetitions in one process.

    Attributes:
        median, low, high: median and quartiles.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise at least two repetitions."""
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)


def device_timing(call: Callable[[], object], *, calls: int | None = None, replays: int = REPLAYS) -> Timing:
    """Time ``call`` on the current CUDA device, caches warm, nothing of the host included.

    Several calls are captured in one CUDA graph, and the graph is replayed. Events around single launches would
    measure the launch.

    Args:
        call: launches work on the current stream; must be capturable (no synchronisation).
        calls: how many to capture; by default `calls_per_graph`.
        replays: timed replays, at least 2.
    """
    with side_stream() as stream:
        for _ in range(3):  # compile, fill caches, settle the allocator
            call()
        calls = calls or _calls_per_graph(call, stream)
        graph = capture(call, calls, stream)
        _replay(graph, 3)
        return Timing.of([seconds / calls for seconds in _replay(graph, replays)])


def slowed_timing(call: Callable[[], object], percent: int, *, calls: int, replays: int = REPLAYS) -> Timing:
    """As `device_timing`, were each call slower by ``percent``: the graph holds so many more calls than are counted.

    Args:
        call, replays: as for `device_timing`.
        percent: whole percents.
        calls: how many to count, rounded up to hundreds. Starting a longer graph counts less, so the slowdown is a
            little less than it says where hundreds are many more.
    """
    counted = 100 * math.ceil(calls / 100)
    captured = counted // 100 * (100 + percent)
    timing = device_timing(call, calls=captured, replays=replays)
    longer = captured / counted
    return Timing(timing.median * longer, timing.low * longer, timing.high * longer)


def calls_per_graph(call: Callable[[], object]) -> int:
    """How many calls make a graph that runs for `GRAPH_SECONDS`, from 10 to 300."""
    with side_stream() as stream:
        for _ in range(3):
            call()
        return _calls_per_graph(call, stream)


def _calls_per_graph(call: Callable[[], object], stream: Any) -> int:
    rough = statistics.median(_replay(capture(call, _MIN_CALLS, stream), 5)) / _MIN_CALLS
    return min(max(math.ceil(GRAPH_SECONDS / rough), _MIN_CALLS), _MAX_CALLS)


@contextlib.contextmanager
def side_stream() -> Iterator[Any]:
    """A stream to capture on: the default stream cannot be captured."""
    import torch

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


def capture(call: Callable[[], object], calls: int, stream: Any, *, keep_graph: bool = False) -> Any:
    """Capture ``calls`` calls on ``stream``; ``keep_graph`` is torch's, for who looks into the graph."""
    import torch

    graph = torch.cuda.CUDAGraph(keep_graph)
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    return graph


def _replay(graph: Any, replays: int) -> list[float]:
    import torch

    new_event = functools.partial(torch.cuda.Event, enable_timing=True)
    events = [(new_event(), new_event()) for _ in range(replays)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in events]


def host_timing(call: Callable[[], object], synchronize: Callable[[], object], *, bursts: int = 20) -> Timing:
    """Time what ``call`` costs the host, without waiting for the device.

    Args:
        call: launches work, or does it.
        synchronize: waits for the device; called between bursts, off the clock, so that no queue runs full.
        bursts: repetitions; a burst is as many calls as take 1 ms, at most 50.
    """
    for _ in range(3):
        call()
    synchronize()
    start = time.perf_counter()
    call()
    calls = min(max(math.ceil(1e-3 / (time.perf_counter() - start)), 1), 50)
    seconds = []
    for _ in range(bursts):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
    synchronize()
    return Timing.of(seconds)

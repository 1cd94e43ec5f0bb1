"""``gputime_*`` and ``hosttime_*``: like asv's ``time_*``, by clocks that suit a GPU.

The body of the method is what is timed. One robust figure per process, so that asv's statistics are over independent
rounds::

    class Rows:
        params, param_names = [[128, 4096]], ["tokens"]
        version = "1"

        def setup_cache(self):
            return verify(compare_everything())  # raises, or returns Verified: no figure without it

        def setup(self, verified, tokens): ...  # inputs and outputs

        def gputime_rows(self, verified, tokens):
            align_rows(..., out=self.out)

        def check(self, verified, tokens): ...  # optional: raises if what the timed calls wrote is wrong

Attributes of the class or method: ``version`` (required), ``rounds`` (fresh processes, default 10), ``allocations``
(default 1; `setup` may set it; the figure is the median over that many, each preceded by the method ``reallocate``).
"""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from asv_runner.benchmarks._base import Benchmark, _get_first_attr

from asv_bench_gpu import clock, fingerprint
from asv_bench_gpu.verification import Verified


class Timing(Benchmark):  # type: ignore[misc]
    """What both types share: refuse without verification, time, check."""

    def __init__(self, name: str, func: Callable[..., Any], attr_sources: list[Any]):
        super().__init__(name, func, attr_sources)
        if _get_first_attr(attr_sources, "version", None) is None:
            raise ValueError(f"{name}: needs an explicit version, bumped when its figures change meaning")
        self.unit = "seconds"
        self.rounds = _get_first_attr(attr_sources, "rounds", 10)
        self._check = _get_first_attr(attr_sources, "check", None)
        self._reallocate = _get_first_attr(attr_sources, "reallocate", None)

    def run(self, *arguments: Any) -> dict[str, Any]:
        """Time the body; ``arguments`` are what `setup_cache` returned, then the parameters.

        Raises:
            RuntimeError: `setup_cache` returned no `Verified`.
        """
        if not arguments or not isinstance(arguments[0], Verified):
            raise RuntimeError(
                f"{self.name}: no figure without verification: setup_cache must return what verify() does"
            )
        medians = []
        for _ in range(self.allocations()):
            if self._reallocate:
                self._reallocate(*arguments)
            medians.append(self.time(functools.partial(self.func, *arguments)))
            if self._check:
                self._check(*arguments)
        return {"samples": [statistics.median(medians)], "number": 1}

    def allocations(self) -> int:
        """How many allocations the figure is the median of."""
        return int(_get_first_attr(self._attr_sources, "allocations", 1))

    def time(self, call: Callable[[], object]) -> float:
        """Seconds per call."""
        raise NotImplementedError


class GpuTimeBenchmark(Timing):
    """Device time of ``gputime_*``; see `asv_bench_gpu.clock.device_timing`.

    Attributes:
        slowdowns_percent: by how much slower, each, the body is timed once more; for who wants to know what is found.
        slowed: slowdown -> seconds of the body that was timed last.
        fingerprint: of its code; see `asv_bench_gpu.fingerprint.of`.
    """

    name_regex = re.compile("^gputime_.+$")
    slowdowns_percent: Sequence[int] = ()

    def __init__(self, name: str, func: Callable[..., Any], attr_sources: list[Any]):
        super().__init__(name, func, attr_sources)
        self.type = "gputime"
        self._calls: int | None = None
        self.fingerprint: str | None = None
        self.slowed: dict[int, float] = {}
        self._slowed: dict[int, list[float]] = {}  # of each allocation

    def run(self, *arguments: Any) -> dict[str, Any]:
        """As for both types; the graphs of all allocations have the same number of calls."""
        self._calls = None
        self._slowed = {percent: [] for percent in self.slowdowns_percent}
        result = super().run(*arguments)
        self.slowed = {percent: statistics.median(seconds) for percent, seconds in self._slowed.items()}
        return result

    def time(self, call: Callable[[], object]) -> float:
        """Device seconds per call."""
        if self._calls is None:
            self._calls = clock.calls_per_graph(call)
            self.fingerprint = fingerprint.of(call)
        replays = max(clock.REPLAYS // self.allocations(), 5)
        # First, as without slowdowns: a later graph may have its memory elsewhere.
        median = clock.device_timing(call, calls=self._calls, replays=replays).median
        for percent, seconds in self._slowed.items():
            seconds.append(clock.slowed_timing(call, percent, calls=self._calls, replays=replays).median)
        return median


class HostTimeBenchmark(Timing):
    """Host time of ``hosttime_*``; see `asv_bench_gpu.clock.host_timing`."""

    name_regex = re.compile("^hosttime_.+$")

    def __init__(self, name: str, func: Callable[..., Any], attr_sources: list[Any]):
        super().__init__(name, func, attr_sources)
        self.type = "hosttime"

    def time(self, call: Callable[[], object]) -> float:
        """Host seconds per call."""
        import torch

        synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        return clock.host_timing(call, synchronize).median


export_as_benchmark = [GpuTimeBenchmark, HostTimeBenchmark]

"""What does order cost? Device time of the deterministic alignment against the atomic one and against the floor."""

from __future__ import annotations

import random
from typing import Any

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.shapes import MODELS, TOKENS, route
from benchmarks.verification import OnGpu, skip_unless_verified

IMPLEMENTATIONS = ["deterministic", "atomic", "floor"]


class _Order(OnGpu):
    """Align one shape into given buffers, caches warm."""

    version = "1"
    _COUNTS_ARENA = 2**22  # int32, 16 MiB

    def prepare(
        self, verified: Verified | Unavailable, model: str, tokens: int, routing: str, implementation: str
    ) -> None:
        """Make the inputs, the buffers and the call."""
        skip_unless_verified(verified)
        import torch

        from benchmarks import floor
        from moe_align import Rows, align_rows

        shape = MODELS[model]
        self.random = random.Random(tokens)  # noqa: S311  (addresses, not secrets)
        self.implementation = implementation
        # The speed of atomic counters moves with their address: the figure is the median over several.
        self.allocations = 3 if implementation == "atomic" else 1
        self.ids, self.weights = route(shape, tokens, routing, "cuda")
        self.arena = torch.empty(self._COUNTS_ARENA, dtype=torch.int32, device="cuda")
        self.out = Rows.empty(shape.num_experts, self.ids.numel(), self.weights.dtype, self.ids.device)
        if implementation == "floor":
            placed = oracle.place(self.ids, shape.num_experts)
            ranks = torch.empty(self.ids.numel(), dtype=torch.int32, device="cuda")
            ranks[placed.slots] = placed.ranks.int()
            counts = placed.counts.int()
            self.call = lambda: floor.scatter(self.ids, self.weights, ranks, counts, self.out)
        else:
            self.call = lambda: align_rows(
                self.ids, self.weights, shape.num_experts, out=self.out, implementation=implementation
            )

    def gputime_rows(self, *_: Any) -> None:
        """Align, row layout."""
        self.call()

    def reallocate(self, *_: Any) -> None:
        """Move the counts to another address, aligned as an allocation is, and clear the outputs."""
        start = self.random.randrange(0, self._COUNTS_ARENA - 4096, 128)
        self.out = self.out._replace(counts=self.arena[start : start + len(self.out.counts)])
        # What another call left in the memory must not pass for this one's result.
        for tensor in self.out:
            tensor.fill_(-1)

    def check(self, *_: Any) -> None:
        """What the timed calls left behind must be right."""
        difference = oracle.difference(self.out, self.ids, self.weights, ordered=self.implementation != "atomic")
        if difference:
            raise AssertionError(difference)

    def teardown(self, *_: Any) -> None:
        """Give the buffers back: the largest shapes need more than a gigabyte."""
        self.__dict__.clear()


class Rows(_Order):
    """Uniform routing, every model and size."""

    params = [list(MODELS), TOKENS, IMPLEMENTATIONS]
    param_names = ["model", "tokens", "implementation"]

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int, implementation: str) -> None:
        """Prepare one shape."""
        self.prepare(verified, model, tokens, "uniform", implementation)


class Skew(_Order):
    """Uneven routing, which makes atomic counters contend."""

    params = [
        ["Mixtral 8x7B (8, 2)", "DeepSeek-V3 (256, 8)"],
        [128, 1024, 8192],
        ["zipf", "one expert"],
        IMPLEMENTATIONS,
    ]
    param_names = ["model", "tokens", "routing", "implementation"]

    def setup(
        self, verified: Verified | Unavailable, model: str, tokens: int, routing: str, implementation: str
    ) -> None:
        """Prepare one shape."""
        self.prepare(verified, model, tokens, routing, implementation)


class Empty(OnGpu):
    """The least that any launch costs."""

    version = "1"

    def setup(self, verified: Verified | Unavailable) -> None:
        """Import the kernel."""
        skip_unless_verified(verified)
        from benchmarks import floor

        self.kernel = floor.empty_kernel

    def gputime_empty_kernel(self, *_: Any) -> None:
        """Launch a kernel that does nothing."""
        self.kernel[(1,)]()

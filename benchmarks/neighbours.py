"""What does a call cost between other kernels, as in an engine, with and without programmatic dependent launch (PDL)?

One kernel writes the ids and another reads the counts. With "neither" they are alone: the difference is what the call
costs there. "ordinary" ones know nothing of PDL; "overlapping" ones wait for the launch before, and then let the next
one start.
"""

from __future__ import annotations

import functools
from typing import Any

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.shapes import MODELS, route
from benchmarks.verification import OnGpu, skip_unless_verified


class Between(OnGpu):
    """Row layout, uniform routing, into given buffers, caches warm."""

    version = "1"
    params = [
        ["DeepSeek-V3 (256, 8)"],
        [1, 16, 128, 1024],
        ["ordinary", "overlapping"],
        ["deterministic", "deterministic, PDL", "atomic", "neither"],
    ]
    param_names = ["model", "tokens", "neighbours", "implementation"]

    def setup(
        self, verified: Verified | Unavailable, model: str, tokens: int, neighbours: str, implementation: str
    ) -> None:
        """Make the inputs, the buffers and the call."""
        skip_unless_verified(verified)
        import torch

        import moe_align
        from benchmarks import copying

        implementation, _, pdl = implementation.partition(", ")
        overlap = neighbours == "overlapping"
        if (pdl or overlap) and (torch.version.hip or torch.cuda.get_device_capability() < (9, 0)):
            raise NotImplementedError("the GPU has no programmatic dependent launch")
        if pdl and not hasattr(moe_align, "use_pdl"):
            raise NotImplementedError("the commit has no use_pdl")
        self.copy = functools.partial(copying.copy, overlap=overlap)
        num_experts = MODELS[model].num_experts
        self.routed, self.weights = route(MODELS[model], tokens, "uniform", "cuda")
        self.ids = torch.empty_like(self.routed)
        self.out = moe_align.Rows.empty(num_experts, self.ids.numel(), self.weights.dtype, self.ids.device)
        self.read = torch.empty_like(self.out.counts)
        if implementation == "neither":
            self.call = lambda: None
        else:
            self.call = lambda: moe_align.align_rows(
                self.ids, self.weights, num_experts, out=self.out, implementation=implementation
            )
        if pdl:
            moe_align.use_pdl(True)

    def gputime_between(self, *_: Any) -> None:
        """Write the ids, align, read the counts."""
        self.copy(self.routed, self.ids)
        self.call()
        self.copy(self.out.counts, self.read)

    def check(self, _: Verified, model: str, tokens: int, neighbours: str, implementation: str) -> None:
        """Everybody must see what was written before: once more, from memory that holds nothing of it."""
        if implementation == "neither":
            return
        for tensor in (self.ids, *self.out, self.read):
            tensor.fill_(-1)
        self.gputime_between()
        difference = oracle.difference(self.out, self.routed, self.weights, ordered=implementation != "atomic")
        if difference or not bool((self.read == self.out.counts).all()):
            raise AssertionError(difference or "the counts were read before they were written")

    def teardown(self, *_: Any) -> None:
        """Give the buffers back, and launch as usual."""
        import moe_align

        self.__dict__.clear()
        if hasattr(moe_align, "use_pdl"):
            moe_align.use_pdl(False)

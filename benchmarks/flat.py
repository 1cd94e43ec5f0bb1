"""What do the flat layouts cost? Device time of blocks and of offsets, slots only, as engines ask for them."""

from __future__ import annotations

import itertools
from typing import Any

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.placements import copies
from benchmarks.shapes import MODELS, TOKENS, route
from benchmarks.verification import OnGpu, skip_unless_verified

BLOCK_SIZES = {"offsets": None, "blocks of 16": 16, "blocks of 64": 64}


class Layouts(OnGpu):
    """Uniform routing, into given buffers, caches warm."""

    version = "2"
    params = [
        list(BLOCK_SIZES),
        ["Mixtral 8x7B (8, 2)", "Qwen3 MoE (128, 8)", "DeepSeek-V3 (256, 8)", "Qwen3-Next (512, 10)"],
        TOKENS,
    ]
    param_names = ["layout", "model", "tokens"]

    def setup(self, verified: Verified | Unavailable, layout: str, model: str, tokens: int) -> None:
        """Make the input, the outputs and the call."""
        skip_unless_verified(verified)
        import moe_align

        if not hasattr(moe_align, "align_blocks"):
            raise NotImplementedError("the commit has rows only")
        num_experts, block_size = MODELS[model].num_experts, BLOCK_SIZES[layout]
        ids, _ = route(MODELS[model], tokens, "uniform", "cuda")
        self.placed = oracle.place(ids, num_experts)
        if block_size is None:
            self.kind = moe_align.Offsets
            self.buffers = copies(lambda: (ids.clone(), *self.kind.empty(ids.numel(), num_experts, ids.device)))
            self.call = lambda ids, out: moe_align.align_offsets(ids, num_experts, out=out)
        else:
            self.kind = moe_align.Blocks
            self.buffers = copies(
                lambda: (ids.clone(), *self.kind.empty(ids.numel(), num_experts, block_size, ids.device))
            )
            self.call = lambda ids, out: moe_align.align_blocks(ids, block_size, num_experts, out=out)
        self.turns = itertools.cycle(self.buffers)

    def gputime_layout(self, *_: Any) -> None:
        """Align."""
        ids, *out = next(self.turns)
        self.call(ids, self.kind(*out))

    def reallocate(self, *_: Any) -> None:
        """Clear the outputs: what another call left in the memory must not pass for this one's result."""
        for _ids, *out in self.buffers:
            for tensor in out:
                if tensor is not None:
                    tensor.fill_(-1)

    def check(self, _: Verified, layout: str, model: str, tokens: int) -> None:
        """What the timed calls left behind must be right."""
        num_experts, block_size = MODELS[model].num_experts, BLOCK_SIZES[layout]
        for ids, *out in self.buffers:
            difference = oracle.flat_difference(self.kind(*out), ids, None, num_experts, block_size, placed=self.placed)
            if difference:
                raise AssertionError(difference)

    def teardown(self, *_: Any) -> None:
        """Give the buffers back."""
        self.__dict__.clear()

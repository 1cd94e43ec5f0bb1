"""What do the flat layouts cost? Device time of blocks and of offsets, slots only, as engines ask for them."""

from __future__ import annotations

from typing import Any

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.shapes import MODELS, TOKENS, route
from benchmarks.verification import OnGpu, skip_unless_verified

BLOCK_SIZES = {"offsets": None, "blocks of 16": 16, "blocks of 64": 64}


class Layouts(OnGpu):
    """Uniform routing, into given buffers, caches warm."""

    version = "1"
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
        self.ids, self.weights = route(MODELS[model], tokens, "uniform", "cuda")
        if block_size is None:
            self.out = moe_align.Offsets.empty(self.ids.numel(), num_experts, self.ids.device)
            self.call = lambda: moe_align.align_offsets(self.ids, num_experts, out=self.out)
        else:
            self.out = moe_align.Blocks.empty(self.ids.numel(), num_experts, block_size, self.ids.device)
            self.call = lambda: moe_align.align_blocks(self.ids, block_size, num_experts, out=self.out)

    def gputime_layout(self, *_: Any) -> None:
        """Align."""
        self.call()

    def reallocate(self, *_: Any) -> None:
        """Clear the outputs: what another call left in the memory must not pass for this one's result."""
        for tensor in self.out:
            if tensor is not None:
                tensor.fill_(-1)

    def check(self, _: Verified, layout: str, model: str, tokens: int) -> None:
        """What the timed calls left behind must be right."""
        difference = oracle.flat_difference(self.out, self.ids, None, MODELS[model].num_experts, BLOCK_SIZES[layout])
        if difference:
            raise AssertionError(difference)

    def teardown(self, *_: Any) -> None:
        """Give the buffers back."""
        self.__dict__.clear()

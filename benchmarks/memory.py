"""How much memory does a call take, outputs and workspace together?"""

from __future__ import annotations

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks.shapes import MODELS, route
from benchmarks.verification import OnGpu, skip_unless_verified


class Call(OnGpu):
    """Device memory of one call that allocates its outputs."""

    version = "1"
    params = [["Mixtral 8x7B (8, 2)", "DeepSeek-V3 (256, 8)"], [1, 128, 4096, 32768], ["deterministic", "atomic"]]
    param_names = ["model", "tokens", "implementation"]
    unit = "bytes"

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int, implementation: str) -> None:
        """Make the input."""
        skip_unless_verified(verified)
        self.ids, self.weights = route(MODELS[model], tokens, "uniform", "cuda")

    def track_peak_bytes(self, _: Verified, model: str, tokens: int, implementation: str) -> int:
        """Peak of what torch allocates during the call, above what was allocated before."""
        import torch

        from moe_align import align_rows

        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        rows = align_rows(self.ids, self.weights, MODELS[model].num_experts, implementation=implementation)
        peak = torch.cuda.max_memory_allocated() - before
        del rows
        return peak

    def teardown(self, *_: object) -> None:
        """Give the input back."""
        self.__dict__.clear()

"""How many distinct layouts do identical calls give? The reason this project exists."""

from __future__ import annotations

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.shapes import MODELS, route
from benchmarks.verification import OnGpu, skip_unless_verified

CALLS = 100


class Repeats(OnGpu):
    """The same input, 100 times."""

    version = "1"
    params = [["Qwen3 MoE (128, 8)", "DeepSeek-V3 (256, 8)"], [16, 128, 1024, 8192], ["deterministic", "atomic"]]
    param_names = ["model", "tokens", "implementation"]
    unit = "distinct layouts"

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int, implementation: str) -> None:
        """Make the input."""
        skip_unless_verified(verified)
        self.ids, self.weights = route(MODELS[model], tokens, "uniform", "cuda")

    def track_distinct_layouts(self, _: Verified, model: str, tokens: int, implementation: str) -> int:
        """Distinct results of 100 identical calls, compared bit by bit."""
        import torch

        from moe_align import align_rows

        num_experts = MODELS[model].num_experts
        placed = oracle.place(self.ids, num_experts)
        layouts = [
            align_rows(self.ids, self.weights, num_experts, implementation=implementation).slot_index[
                placed.experts, placed.ranks
            ]
            for _ in range(CALLS)
        ]
        return len(torch.unique(torch.stack(layouts), dim=0))

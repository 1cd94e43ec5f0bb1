"""What does a call cost the host? Eager calls, outputs allocated by the call, the device not waited for."""

from __future__ import annotations

from typing import Any

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks.shapes import MODELS, route
from benchmarks.verification import OnCpu, OnGpu, skip_unless_verified


class _Call:
    version = "1"
    rounds = 10

    def prepare(self, device: str, model: str, tokens: int, implementation: str) -> None:
        """Make the inputs and the call."""
        from moe_align import align_rows

        num_experts = MODELS[model].num_experts
        ids, weights = route(MODELS[model], tokens, "uniform", device)
        self.call = lambda: align_rows(ids, weights, num_experts, implementation=implementation)

    def hosttime_rows(self, *_: Any) -> None:
        """Align, row layout."""
        self.call()


class Call(_Call, OnGpu):
    """CUDA tensors: checks, allocation and launch."""

    params = [["DeepSeek-V3 (256, 8)"], [1, 128, 4096], ["deterministic", "atomic"]]
    param_names = ["model", "tokens", "implementation"]

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int, implementation: str) -> None:
        """Prepare one shape."""
        skip_unless_verified(verified)
        self.prepare("cuda", model, tokens, implementation)


class CpuTensors(_Call, OnCpu):
    """CPU tensors: the reference does the work, on the host."""

    params = [["Mixtral 8x7B (8, 2)", "DeepSeek-V3 (256, 8)"], [1, 128, 4096]]
    param_names = ["model", "tokens"]

    def setup(self, verified: Verified, model: str, tokens: int) -> None:
        """Prepare one shape."""
        self.prepare("cpu", model, tokens, "reference")

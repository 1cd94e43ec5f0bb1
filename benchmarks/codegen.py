"""What code is generated? Needs no GPU: compiled offline for each target, at the launch of one representative shape."""

from __future__ import annotations

import dataclasses

from benchmarks.verification import assert_installed, interpreted

KERNELS = ["scan", "atomic", "schedule"]
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]


def _launch(kernel: str) -> None:
    """Launch a kernel for 1024 tokens, top 8 of 256 experts, with the configuration of untuned GPUs."""
    import torch

    from moe_align import kernels, layouts, strategy

    topk_ids = torch.zeros((1024, 8), dtype=torch.int32)
    out = layouts.Rows.empty(256, topk_ids.numel(), torch.float32, topk_ids.device)
    if kernel == "schedule":
        capacity = layouts.schedule_capacity(topk_ids.numel(), 256, 64)
        kernels.schedule.schedule_blocks(out.counts, 64, torch.empty((capacity, 3), dtype=torch.int32))
        return
    implementation = {"scan": "deterministic", "atomic": "atomic"}[kernel]
    run_config = strategy.default_run_config(implementation, topk_ids.numel(), 256)
    getattr(kernels, kernel).align_rows(topk_ids, torch.zeros(topk_ids.shape), out, run_config)


def _compile_all() -> dict[str, dict[str, int]]:
    """Resources by kernel and target."""
    from asv_bench_gpu import codegen

    return {
        f"{kernel} {target}": dataclasses.asdict(codegen.resources(launch, target))
        for kernel in KERNELS
        for launch in codegen.record(lambda kernel=kernel: _launch(kernel))
        for target in TARGETS
    }


class Kernels:
    """Resources of every kernel on every target."""

    version = "3"
    params = [KERNELS, TARGETS]
    param_names = ["kernel", "target"]

    def setup_cache(self) -> dict[str, dict[str, int]]:
        """Compile everything once, while the interpreter verifies the kernels: no GPU is needed for either."""
        assert_installed()
        with interpreted("comparisons", "stores") as interpreter:
            compiled = _compile_all()
            interpreter()
        return compiled

    setup_cache.timeout = 600

    def track_registers(self, resources: dict[str, dict[str, int]], kernel: str, target: str) -> int:
        """Registers per thread."""
        return resources[f"{kernel} {target}"]["registers"]

    def track_spill_bytes(self, resources: dict[str, dict[str, int]], kernel: str, target: str) -> int:
        """Bytes of stack per thread."""
        return resources[f"{kernel} {target}"]["spill_bytes"]

    def track_shared_bytes(self, resources: dict[str, dict[str, int]], kernel: str, target: str) -> int:
        """Bytes of shared memory per program."""
        return resources[f"{kernel} {target}"]["shared_bytes"]

    def track_instructions(self, resources: dict[str, dict[str, int]], kernel: str, target: str) -> int:
        """Machine instructions."""
        return resources[f"{kernel} {target}"]["instructions"]

    def track_atomics(self, resources: dict[str, dict[str, int]], kernel: str, target: str) -> int:
        """Atomic machine instructions."""
        return resources[f"{kernel} {target}"]["atomics"]

    track_registers.unit = "registers"
    track_spill_bytes.unit = track_shared_bytes.unit = "bytes"
    track_instructions.unit = track_atomics.unit = "instructions"

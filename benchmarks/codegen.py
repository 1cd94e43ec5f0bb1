"""What code is generated? Needs no GPU: compiled offline for each target, at the launch of one representative shape."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from asv_bench_gpu.verification import Verified

from benchmarks.verification import assert_installed, interpreted, verified_on_gpu

#: What a kernel is called here, by its name in the package. Append-only, like the shapes.
KERNELS = {
    "align_rows_scan_kernel": "scan",
    "align_rows_atomic_kernel": "atomic",
    "schedule_blocks_kernel": "schedule",
    "align_rows_sift_kernel": "sift",
    "count_tiles_kernel": "tiles: count",
    "sum_tiles_kernel": "tiles: sum",
    "place_tiles_kernel": "tiles: place",
    "align_rows_collect_kernel": "collect",
    "count_experts_kernel": "blocks: count",
    "align_blocks_pairs_kernel": "blocks: pairs",
}
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]


def _launch_all() -> None:
    """Launch every kernel of the installed commit for 1024 tokens, top 8 of 256 experts, configured as if untuned."""
    import torch

    from moe_align import kernels, layouts, strategy

    topk_ids = torch.zeros((1024, 8), dtype=torch.int32)
    num_slots, num_experts = topk_ids.numel(), 256
    out = layouts.Rows.empty(num_experts, num_slots, torch.float32, topk_ids.device)
    counted_apart = hasattr(getattr(kernels, "regions", None), "count_experts_kernel")
    if counted_apart or hasattr(kernels, "pairs"):
        # Before the rows, whose figures are those of a kernel that serves both.
        blocks = layouts.Blocks.empty(num_slots, num_experts, 64, topk_ids.device)
        labelled = {"expert_ids": blocks.expert_ids, "num_tokens_post_padded": blocks.num_tokens_post_padded}
        regions = layouts.Regions(blocks.sorted_token_ids, None, num_experts, 64, **labelled)
        if counted_apart:
            sift = strategy.STRATEGIES["sift"]
            sift.align_flat(topk_ids, None, regions, sift.default(num_slots, num_experts))
        if hasattr(kernels, "pairs"):
            call, arguments = kernels.launch.of_regions(topk_ids[:8], None, regions)  # as many slots as it serves
            kernels.launch.Launcher(call, kernels.pairs.plan(call))(arguments)
    # Commits before there were strategies, or before a strategy launched, have launchers beside their kernels.
    known = getattr(strategy, "STRATEGIES", None) or {"scan": "deterministic", "atomic": "atomic"}
    for name, found in known.items():
        if isinstance(found, str):
            config = strategy.default_run_config(found, num_slots, num_experts)
        else:
            config = found.default(num_slots, num_experts)
        launcher = getattr(found, "align_rows", None) or getattr(kernels, name).align_rows
        launcher(topk_ids, torch.zeros(topk_ids.shape), out, config)
    capacity = layouts.schedule_capacity(num_slots, num_experts, 64)
    kernels.schedule.schedule_blocks(out.counts, 64, torch.empty((capacity, 3), dtype=torch.int32))


def _compile_all() -> dict[str, dict[str, int]]:
    """Resources by kernel and target."""
    from asv_bench_gpu import codegen

    return {
        f"{KERNELS[launch.kernel.__name__]} {target}": dataclasses.asdict(codegen.resources(launch, target))
        for launch in codegen.record(_launch_all)
        for target in TARGETS
    }


class Compiled(NamedTuple):
    """What was compiled: resources by kernel and target, of verified kernels."""

    verified: Verified
    resources: dict[str, dict[str, int]]


class Kernels:
    """Resources of every kernel on every target."""

    version = "4"  # atomics in shared memory count apart
    params = [list(KERNELS.values()), TARGETS]
    param_names = ["kernel", "target"]

    def setup_cache(self) -> Compiled:
        """Verify the kernels and compile everything; no GPU is needed for either, but one verifies faster."""
        import torch

        assert_installed()
        if torch.cuda.is_available():
            return Compiled(verified_on_gpu(), _compile_all())
        with interpreted("comparisons", "stores") as interpreter:
            try:
                resources = _compile_all()
            finally:
                verified = interpreter()  # whose verdict on a kernel that does not compile is on the whole commit
        return Compiled(verified, resources)

    setup_cache.timeout = 600

    def setup(self, compiled: Compiled, kernel: str, target: str) -> None:
        """Find what was compiled; leave out what the commit does not have."""
        name = f"{kernel} {target}"
        if name not in compiled.resources:
            raise NotImplementedError(f"the commit has no kernel {kernel!r}")
        self.resources = compiled.resources[name]

    def track_registers(self, *_: Any) -> int:
        """Registers per thread."""
        return self.resources["registers"]

    def track_spill_bytes(self, *_: Any) -> int:
        """Bytes of stack per thread."""
        return self.resources["spill_bytes"]

    def track_shared_bytes(self, *_: Any) -> int:
        """Bytes of shared memory per program."""
        return self.resources["shared_bytes"]

    def track_instructions(self, *_: Any) -> int:
        """Machine instructions."""
        return self.resources["instructions"]

    def track_atomics(self, *_: Any) -> int:
        """Machine instructions that are atomic in global memory."""
        return self.resources["atomics"]

    def track_shared_atomics(self, *_: Any) -> int:
        """Machine instructions that are atomic in shared memory."""
        return self.resources["shared_atomics"]

    track_registers.unit = "registers"
    track_spill_bytes.unit = track_shared_bytes.unit = "bytes"
    track_instructions.unit = track_atomics.unit = track_shared_atomics.unit = "instructions"

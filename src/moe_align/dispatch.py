"""Who fills the outputs of a call: the reference, or the kernels of the strategy that serves its shape."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

from moe_align import kernels, reference
from moe_align.kernels import launch, pairs, schedule
from moe_align.kernels.launch import Arguments, Call, Launcher
from moe_align.layouts import Blocks, Offsets, Regions, Rows
from moe_align.strategy import STRATEGIES, Layout, RunConfig, run_config_for, tuned_gpu

#: See `use_pdl`.
_USE_PDL = False


def align_rows(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, implementation: str, run_config: RunConfig | None
) -> None:
    """Fill rows; see `moe_align.align_rows`."""
    if not _launched(*launch.of_rows(topk_ids, topk_weights, out), implementation, run_config):
        reference.align_rows(topk_ids, topk_weights, out)


def align_blocks(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None,
    keep_remote: bool,
    out: Blocks,
    implementation: str,
    run_config: RunConfig | None,
) -> None:
    """Fill blocks; see `moe_align.align_blocks`."""
    first_id = first_block_id(expert_map, keep_remote)
    kept_map = None if expert_map is None else expert_map.contiguous()
    regions = Regions(
        out.sorted_token_ids,
        out.weights,
        num_experts - first_id,
        block_size,
        expert_ids=out.expert_ids,
        num_tokens_post_padded=out.num_tokens_post_padded,
        expert_map=None if keep_remote else kept_map,
        labels=kept_map if keep_remote else None,
        first_id=first_id,
    )
    if not _launched(*launch.of_regions(topk_ids, topk_weights, regions), implementation, run_config):
        reference.align_blocks(topk_ids, topk_weights, block_size, num_experts, expert_map, keep_remote, out)


def align_offsets(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    out: Offsets,
    implementation: str,
    run_config: RunConfig | None,
) -> None:
    """Fill offsets; see `moe_align.align_offsets`."""
    regions = Regions(out.slots, out.weights, out.offsets.numel() - 1, offsets=out.offsets)
    if not _launched(*launch.of_regions(topk_ids, topk_weights, regions), implementation, run_config):
        reference.align_offsets(topk_ids, topk_weights, out)


def schedule_blocks(counts: torch.Tensor, block_size: int, out: torch.Tensor) -> None:
    """Fill a schedule; see `moe_align.schedule_blocks`."""
    if _runs_kernels(counts.device):
        with _current(counts.device):
            schedule.schedule_blocks(counts.contiguous(), block_size, out)
    else:
        reference.schedule_blocks(counts, block_size, out)


def first_block_id(expert_map: torch.Tensor | None, keep_remote: bool) -> int:
    """Id of the first expert that has blocks: without a map, those of other ranks have id -1."""
    return -1 if keep_remote and expert_map is None else 0


def use_pdl(enabled: bool) -> None:
    """Let calls overlap with the kernels before and after them, by programmatic dependent launch (PDL).

    For the whole process, and off at first; without effect but on NVIDIA GPUs from Hopper on. A call that is a single
    launch, as calls with few slots are, starts while the kernel before it ends; every call lets the kernel after it
    start early, if that is launched so. `schedule_blocks` does not take part. Among kernels that do, this saves up to 1
    us a call; behind one that lets nobody start early, it costs 0.25 us. Graphs keep what they were captured with.

    A kernel that is launched so after a call must wait (``griddepcontrol.wait``) before it writes any memory or reads
    what the call wrote. One before a call that lets it start early must itself wait before it ends.

    Args:
        enabled: from now on.

    Raises:
        TypeError: ``enabled`` is not a bool.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled: expected a bool, got {enabled!r} ({type(enabled).__name__})")
    global _USE_PDL
    _USE_PDL = enabled


def _launched(call: Call, arguments: Arguments, implementation: str, run_config: RunConfig | None) -> bool:
    """Launch the kernels of the strategy that serves the call; False if that is the reference's."""
    options = None if run_config is None else tuple(run_config.items())
    launcher = _launcher(call, implementation, options, _USE_PDL)
    if launcher is None:
        return False
    with _current(call.device):
        launcher(arguments)
    return True


@functools.lru_cache(maxsize=4096)
def _launcher(
    call: Call, implementation: str, options: tuple[tuple[str, Any], ...] | None, use_pdl: bool
) -> Launcher | None:
    run_config = None if options is None else dict(options)
    shape = call.num_slots, call.num_experts, tuned_gpu(call.device)
    layout: Layout = "rows" if call.flat is None else "offsets" if call.flat.has_offsets else "blocks"
    config = run_config_for(implementation, run_config, *shape, layout=layout)
    if not config or not _runs_kernels(call.device):
        return None
    # Not a strategy: whoever names one, or its options, gets it, at any size and in any layout.
    if run_config is None and pairs.serves(call):
        plan = pairs.plan(call)
    else:
        plan = STRATEGIES[config["strategy"]].plan(call, config)
    return Launcher(call, plan, use_pdl=use_pdl)


def _runs_kernels(device: torch.device) -> bool:
    """Whether the kernels can read what is on ``device``."""
    return device.type == "cuda" or kernels.INTERPRETED


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()

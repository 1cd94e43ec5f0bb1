"""Who fills the outputs of a call: the reference, or the kernels of the strategy that serves its shape."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from moe_align import kernels, reference
from moe_align.kernels import schedule
from moe_align.layouts import Blocks, Offsets, Regions, Rows
from moe_align.strategy import STRATEGIES, RunConfig, gpu_name, run_config_for


def align_rows(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, implementation: str, run_config: RunConfig | None
) -> None:
    """Fill rows; see `moe_align.align_rows`."""
    config = _config(topk_ids, out.counts.numel(), implementation, run_config)
    if config is None:
        reference.align_rows(topk_ids, topk_weights, out)
        return
    launch = STRATEGIES[config["strategy"]].align_rows
    with _on_device_of(topk_ids):
        launch(topk_ids.contiguous(), topk_weights.contiguous(), out, config)


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
    config = _config(topk_ids, num_experts, implementation, run_config, flat=True)
    if config is None:
        reference.align_blocks(topk_ids, topk_weights, block_size, num_experts, expert_map, keep_remote, out)
        return
    first_id = first_block_id(expert_map, keep_remote)
    expert_map = None if expert_map is None else expert_map.contiguous()
    regions = Regions(
        out.sorted_token_ids,
        out.weights,
        num_experts - first_id,
        block_size,
        expert_ids=out.expert_ids,
        num_tokens_post_padded=out.num_tokens_post_padded,
        expert_map=None if keep_remote else expert_map,
        labels=expert_map if keep_remote else None,
        first_id=first_id,
    )
    _align_flat(topk_ids, topk_weights, regions, config)


def align_offsets(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    out: Offsets,
    implementation: str,
    run_config: RunConfig | None,
) -> None:
    """Fill offsets; see `moe_align.align_offsets`."""
    num_experts = out.offsets.numel() - 1
    config = _config(topk_ids, num_experts, implementation, run_config, flat=True)
    if config is None:
        reference.align_offsets(topk_ids, topk_weights, out)
        return
    _align_flat(topk_ids, topk_weights, Regions(out.slots, out.weights, num_experts, offsets=out.offsets), config)


def schedule_blocks(counts: torch.Tensor, block_size: int, out: torch.Tensor) -> None:
    """Fill a schedule; see `moe_align.schedule_blocks`."""
    if _runs_kernels(counts):
        with _on_device_of(counts):
            schedule.schedule_blocks(counts.contiguous(), block_size, out)
    else:
        reference.schedule_blocks(counts, block_size, out)


def first_block_id(expert_map: torch.Tensor | None, keep_remote: bool) -> int:
    """Id of the first expert that has blocks: without a map, those of other ranks have id -1."""
    return -1 if keep_remote and expert_map is None else 0


def _config(
    topk_ids: torch.Tensor, num_experts: int, implementation: str, run_config: RunConfig | None, flat: bool = False
) -> RunConfig | None:
    """The launch configuration; None if the reference serves the call."""
    shape = topk_ids.numel(), num_experts, gpu_name(topk_ids.device)
    config = run_config_for(implementation, run_config, *shape, flat=flat)
    return config if config and _runs_kernels(topk_ids) else None


def _align_flat(topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, regions: Regions, config: RunConfig) -> None:
    launch = STRATEGIES[config["strategy"]].align_flat
    assert launch is not None, config
    with _on_device_of(topk_ids):
        weights = None if topk_weights is None else topk_weights.contiguous()
        launch(topk_ids.contiguous(), weights, regions, config)


def _runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether the kernels can read ``tensor``."""
    return tensor.is_cuda or kernels.INTERPRETED


def _on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()

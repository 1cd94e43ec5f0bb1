"""The alignment as torch operators, so that `torch.compile` keeps a call in one graph.

An operator fills outputs that `moe_align.api` allocated. It is called while a call is being compiled; an eager call
goes straight to `moe_align.dispatch`. Operators take no dict, so a launch configuration is a string in the graph.
"""

from __future__ import annotations

import torch

from moe_align import dispatch
from moe_align.layouts import Blocks, Offsets, Rows
from moe_align.strategy import RunConfig


def align_rows(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, implementation: str, run_config: RunConfig | None
) -> None:
    """As `dispatch.align_rows`, by an operator while being compiled."""
    if torch.compiler.is_compiling():
        _align_rows(topk_ids, topk_weights, *out, implementation, _encoded(run_config))
    else:
        dispatch.align_rows(topk_ids, topk_weights, out, implementation, run_config)


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
    """As `dispatch.align_blocks`, by an operator while being compiled."""
    given = (topk_ids, topk_weights, block_size, num_experts, expert_map, keep_remote)
    if torch.compiler.is_compiling():
        _align_blocks(*given, *out, implementation, _encoded(run_config))
    else:
        dispatch.align_blocks(*given, out, implementation, run_config)


def align_offsets(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    out: Offsets,
    implementation: str,
    run_config: RunConfig | None,
) -> None:
    """As `dispatch.align_offsets`, by an operator while being compiled."""
    if torch.compiler.is_compiling():
        _align_offsets(topk_ids, topk_weights, *out, implementation, _encoded(run_config))
    else:
        dispatch.align_offsets(topk_ids, topk_weights, out, implementation, run_config)


def schedule_blocks(counts: torch.Tensor, block_size: int, out: torch.Tensor) -> None:
    """As `dispatch.schedule_blocks`, by an operator while being compiled."""
    if torch.compiler.is_compiling():
        _schedule_blocks(counts, block_size, out)
    else:
        dispatch.schedule_blocks(counts, block_size, out)


@torch.library.custom_op("moe_align::align_rows", mutates_args=("slot_index", "weights", "counts"))
def _align_rows(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    slot_index: torch.Tensor,
    weights: torch.Tensor,
    counts: torch.Tensor,
    implementation: str,
    run_config: str | None,
) -> None:
    out = Rows(slot_index, weights, counts)
    dispatch.align_rows(topk_ids, topk_weights, out, implementation, _decoded(run_config))


@torch.library.custom_op(
    "moe_align::align_blocks", mutates_args=("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "weights")
)
def _align_blocks(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None,
    keep_remote: bool,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    weights: torch.Tensor | None,
    implementation: str,
    run_config: str | None,
) -> None:
    given = (topk_ids, topk_weights, block_size, num_experts, expert_map, keep_remote)
    out = Blocks(sorted_token_ids, expert_ids, num_tokens_post_padded, weights)
    dispatch.align_blocks(*given, out, implementation, _decoded(run_config))


@torch.library.custom_op("moe_align::align_offsets", mutates_args=("slots", "offsets", "weights"))
def _align_offsets(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    slots: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None,
    implementation: str,
    run_config: str | None,
) -> None:
    out = Offsets(slots, offsets, weights)
    dispatch.align_offsets(topk_ids, topk_weights, out, implementation, _decoded(run_config))


@torch.library.custom_op("moe_align::schedule_blocks", mutates_args=("out",))
def _schedule_blocks(counts: torch.Tensor, block_size: int, out: torch.Tensor) -> None:
    dispatch.schedule_blocks(counts, block_size, out)


def _encoded(run_config: RunConfig | None) -> str | None:
    """A launch configuration as operators take it."""
    return None if run_config is None else ",".join([f"{option}={value}" for option, value in run_config.items()])


def _decoded(text: str | None) -> RunConfig | None:
    """The launch configuration that was encoded."""
    if text is None:
        return None
    options = dict(option.split("=") for option in text.split(",") if option)
    return {option: value if option == "strategy" else int(value) for option, value in options.items()}

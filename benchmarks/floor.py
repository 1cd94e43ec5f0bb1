"""The floor: the loads and stores of the row layout with every rank given. What no aligner can beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch


@triton.jit
def scatter_kernel(
    topk_ids_ptr,  # in: int32 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]
    ranks_ptr,  # in: int32 [num_slots]
    known_counts_ptr,  # in: int32 [num_experts]
    slot_index_ptr,  # out: int32 [num_experts, num_slots]
    weights_ptr,  # out: float [num_experts, num_slots]
    counts_ptr,  # out: int32 [num_experts]
    num_slots,
    num_experts,
    BLOCK_SIZE: tl.constexpr,
):
    """Place BLOCK_SIZE slots; Grid: (cdiv(max(num_slots, num_experts), BLOCK_SIZE),)."""
    elements = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    is_slot = elements < num_slots
    ids = tl.load(topk_ids_ptr + elements, mask=is_slot, other=0)
    ranks = tl.load(ranks_ptr + elements, mask=is_slot, other=0)
    weights = tl.load(topk_weights_ptr + elements, mask=is_slot, other=0)
    places = ids.to(tl.int64) * num_slots + ranks
    tl.store(slot_index_ptr + places, elements, mask=is_slot)
    tl.store(weights_ptr + places, weights, mask=is_slot)
    is_expert = elements < num_experts
    counts = tl.load(known_counts_ptr + elements, mask=is_expert, other=0)
    tl.store(counts_ptr + elements, counts, mask=is_expert)


@triton.jit
def empty_kernel():
    """Do nothing: what a launch inside a graph costs."""


def scatter(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, ranks: torch.Tensor, counts: torch.Tensor, out: Any
) -> None:
    """Launch the floor. ``ranks`` int32 [num_slots] and ``counts`` int32 [num_experts] come from the oracle."""
    num_slots, num_experts = topk_ids.numel(), counts.numel()
    # Small programs, so that a few thousand slots already use every multiprocessor.
    block_size = 128
    scatter_kernel[(triton.cdiv(max(num_slots, num_experts), block_size),)](
        topk_ids,
        topk_weights,
        ranks,
        counts,
        out.slot_index,
        out.weights,
        out.counts,
        num_slots,
        num_experts,
        BLOCK_SIZE=block_size,
        num_warps=4,
    )

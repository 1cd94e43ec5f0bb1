"""Scan: each program owns a few experts and streams all slots past them.

A slot's rank is the number of hits before it: those of earlier tiles, carried along, plus a cumulative sum inside the
tile. One pass, no atomics, nothing to zero; every program reads all ids, so the work grows with
num_slots * num_experts. Weights are read only where they are placed.

Source: LightLLM pull request 1369 set out to do it this way; the masking of experts past the end is the correction
that its review asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe_align.layouts import Rows


@triton.jit
def align_rows_scan_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count
    weights_ptr,  # out: float [num_experts, num_slots], likewise
    counts_ptr,  # out: int32 [num_experts], every element written
    num_slots,
    num_experts,
    BLOCK_SIZE: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    NUM_STAGE: tl.constexpr,
):
    """Place the slots of EXPERT_BLOCK experts. Grid: (cdiv(num_experts, EXPERT_BLOCK),). No atomics."""
    experts = tl.program_id(0) * EXPERT_BLOCK + tl.arange(0, EXPERT_BLOCK)
    # The last program may own fewer experts. Masked, not wrapped around: an expert belongs to one program.
    owned = experts < num_experts
    row_starts = experts.to(tl.int64) * num_slots
    counts = tl.zeros([EXPERT_BLOCK], dtype=tl.int32)
    for start in tl.range(0, num_slots, BLOCK_SIZE, num_stages=NUM_STAGE):
        slots = start + tl.arange(0, BLOCK_SIZE)
        # -1 is no expert, so masked lanes hit nothing.
        ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
        hits = (ids[None, :] == experts[:, None]) & owned[:, None]
        ranks = counts[:, None] + tl.cumsum(hits.to(tl.int32), axis=1) - 1
        places = row_starts[:, None] + ranks
        tl.store(slot_index_ptr + places, slots[None, :], mask=hits)
        weights = tl.load(
            topk_weights_ptr + tl.broadcast_to(slots[None, :], [EXPERT_BLOCK, BLOCK_SIZE]), mask=hits, other=0
        )
        tl.store(weights_ptr + places, weights, mask=hits)
        counts += tl.sum(hits.to(tl.int32), axis=1)
    tl.store(counts_ptr + experts, counts, mask=owned)


def align_rows(topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, run_config: dict[str, int]) -> None:
    """Launch the scan; arguments are checked by `moe_align.api`."""
    num_experts = out.counts.numel()
    align_rows_scan_kernel[(triton.cdiv(num_experts, run_config["EXPERT_BLOCK"]),)](
        topk_ids,
        topk_weights,
        out.slot_index,
        out.weights,
        out.counts,
        topk_ids.numel(),
        num_experts,
        BLOCK_SIZE=run_config["BLOCK_SIZE"],
        EXPERT_BLOCK=run_config["EXPERT_BLOCK"],
        NUM_STAGE=run_config["NUM_STAGE"],
        num_warps=run_config["num_warps"],
    )

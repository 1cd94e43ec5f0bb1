"""Scan: each program owns a few experts and streams all slots past them.

A slot's rank is the number of hits before it: those of earlier tiles, carried along; those of earlier rows of the tile,
by a cumulative sum over rows; and those before it in its row. A row is as many slots as one thread loads at once, so
only the sum over rows, a quarter of the work, crosses threads. One pass, no atomics, nothing to zero; every program
reads all ids, so the work grows with num_slots * num_experts. Weights are read only where they are placed.

Source: LightLLM pull request 1369 set out to do it this way; the masking of experts past the end is the correction
that its review asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe_align.layouts import Rows

# int32 ids of one 16-byte load.
_ROW = 4


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
    ROW: tl.constexpr,  # slots of a row; divides BLOCK_SIZE
    EXPERT_BLOCK: tl.constexpr,
    NUM_STAGE: tl.constexpr,
):
    """Place the slots of EXPERT_BLOCK experts. Grid: (cdiv(num_experts, EXPERT_BLOCK),). No atomics."""
    ROWS: tl.constexpr = BLOCK_SIZE // ROW
    experts = tl.program_id(0) * EXPERT_BLOCK + tl.arange(0, EXPERT_BLOCK)
    # The last program may own fewer experts. Masked, not wrapped around: an expert belongs to one program.
    owned = experts < num_experts
    expert_starts = experts.to(tl.int64)[:, None, None] * num_slots
    in_tile = tl.arange(0, ROWS)[:, None] * ROW + tl.arange(0, ROW)[None, :]
    counts = tl.zeros([EXPERT_BLOCK], dtype=tl.int32)
    for start in tl.range(0, num_slots, BLOCK_SIZE, num_stages=NUM_STAGE):
        slots = start + in_tile
        # -1 is no expert, so masked lanes hit nothing.
        ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
        hits = (ids[None, :, :] == experts[:, None, None]) & owned[:, None, None]
        row_counts = tl.sum(hits.to(tl.int32), axis=2)
        row_starts = counts[:, None] + tl.cumsum(row_counts, axis=1) - row_counts
        ranks = row_starts[:, :, None] + tl.cumsum(hits.to(tl.int32), axis=2) - 1
        slots = tl.broadcast_to(slots[None, :, :], [EXPERT_BLOCK, ROWS, ROW])
        weights = tl.load(topk_weights_ptr + slots, mask=hits, other=0)
        tl.store(slot_index_ptr + expert_starts + ranks, slots, mask=hits)
        tl.store(weights_ptr + expert_starts + ranks, weights, mask=hits)
        counts += tl.sum(row_counts, axis=1)
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
        ROW=min(_ROW, run_config["BLOCK_SIZE"]),
        EXPERT_BLOCK=run_config["EXPERT_BLOCK"],
        NUM_STAGE=run_config["NUM_STAGE"],
        num_warps=run_config["num_warps"],
    )

"""Scan: each program owns a few experts and streams all slots past them, every slot alike.

A slot's rank is the number of hits before it: those of earlier tiles, carried along; those of earlier rows of the tile,
by a cumulative sum over rows; and those before it in its row. A row is as many slots as one thread loads at once, so
only the sum over rows, a quarter of the work, crosses threads. The counters of a program's experts are fields of one
integer, so all of them are summed at once. One pass, no atomics, nothing to zero; every program reads all ids, so the
work grows with num_slots * num_experts. Weights are read only where they are placed.

In a flat layout a program first counts all slots, to know where its regions start; see `regions`.

Source: LightLLM pull request 1369 set out to do it this way; the masking of experts past the end is the correction
that its review asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.kernels.columns import columns, store_scattered
from moe_align.kernels.launch import Call, Launch, Plan, begin


def all_registers(num_warps: int) -> dict[str, int]:
    """Launch options that let a program have all registers: else the compiler spills some, to make room for others."""
    return {"maxnreg": min(65536 // (32 * num_warps), 255)} if torch.version.hip is None else {}


@triton.jit
def owned_by(ids, first, num_owned, EXPERT_BLOCK: tl.constexpr):
    """Whether each id is one of the ``num_owned`` experts from ``first`` on."""
    if EXPERT_BLOCK == 1:
        return ids == first
    elif ids.dtype == tl.int64:
        return (ids - first).to(tl.uint64) < num_owned.to(tl.uint64)
    else:
        return (ids - first).to(tl.uint32) < num_owned.to(tl.uint32)


@triton.jit
def align_rows_scan_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; of a flat layout, None if there are no weights
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count; flat: [capacity], all written
    weights_ptr,  # out: float, likewise; None if there are no weights
    counts_ptr,  # out: int32 [num_experts], every element written; None in a flat layout
    num_slots,
    num_experts,
    BLOCK_SIZE: tl.constexpr,
    ROW: tl.constexpr,  # slots of a row, which a thread has; divides BLOCK_SIZE
    EXPERT_BLOCK: tl.constexpr,
    FIELD: tl.constexpr,  # bits of a counter, enough for num_slots; EXPERT_BLOCK * FIELD <= 64
    ONE_TILE: tl.constexpr,  # whether BLOCK_SIZE covers all slots
    NUM_STAGE: tl.constexpr,
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # launch.Flat in a flat layout
):
    """Place the slots of EXPERT_BLOCK experts. Grid: (cdiv(num_experts, EXPERT_BLOCK),). Atomic counts at most."""
    tl.static_assert(EXPERT_BLOCK * FIELD <= 64)
    begin(OVERLAP)
    ROWS: tl.constexpr = BLOCK_SIZE // ROW
    MASK: tl.constexpr = (1 << FIELD) - 1
    # Unsigned, because the highest field reaches into the sign; but one expert's counts are places as they are.
    wide: tl.constexpr = tl.uint64 if EXPERT_BLOCK * FIELD > 32 else tl.uint32
    dtype: tl.constexpr = tl.int32 if EXPERT_BLOCK == 1 else wide
    first = tl.program_id(0) * EXPERT_BLOCK
    # The last program may own fewer experts. Masked, not wrapped around: an expert belongs to one program.
    num_owned = tl.minimum(EXPERT_BLOCK, num_experts - first)
    if not FLAT:
        slot_index_ptr += first.to(tl.int64) * num_slots
        weights_ptr += first.to(tl.int64) * num_slots
    in_tile = tl.arange(0, ROWS)[:, None] * ROW + tl.arange(0, ROW)[None, :]
    counts = tl.zeros([], dtype=dtype)
    LAST_ROW_COUNTS: tl.constexpr = ONE_TILE and not FLAT and EXPERT_BLOCK <= 4
    if FLAT:
        layout = (topk_ids_ptr, slot_index_ptr, weights_ptr, num_slots, num_experts)
        starts = regions.lay_out(layout, first, flat, EXPERT_BLOCK)
        if EXPERT_BLOCK == 1:
            counts += tl.sum(starts, axis=0)
    end = BLOCK_SIZE if ONE_TILE else num_slots
    for start in tl.range(0, end, BLOCK_SIZE, num_stages=NUM_STAGE):
        slots = start + in_tile
        # -1 is no expert, so masked lanes hit nothing.
        ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
        if FLAT:
            ids = regions.experts_of(ids, slots < num_slots, num_experts, flat)
        hits = owned_by(ids, first, num_owned, EXPERT_BLOCK)
        # Before the sums, so that the loads are under way meanwhile.
        if topk_weights_ptr is not None:
            weights = tl.load(topk_weights_ptr + slots, mask=hits, other=0)
        if EXPERT_BLOCK == 1:
            ones = hits.to(dtype)
        else:
            local = (ids - first).to(tl.int32)
            ones = tl.where(hits, tl.full([ROWS, ROW], 1, dtype) << (local * FIELD).to(dtype), 0)
        row_counts = tl.sum(ones, axis=1)
        inclusive = counts + tl.cumsum(row_counts, axis=0)
        row_starts = inclusive - row_counts
        places = row_starts[:, None] + (tl.cumsum(ones, axis=1) - ones)
        if EXPERT_BLOCK > 1:
            ranks = ((places >> (local * FIELD).to(dtype)) & MASK).to(tl.int32)
            if FLAT:
                places = ranks + regions.starts_of(starts, tl.where(hits, local, 0), EXPERT_BLOCK)
            else:
                # More than one expert only with num_slots < 2**16, so the product fits.
                places = ranks + local * num_slots
        store_scattered(slot_index_ptr, places, slots, hits)
        if topk_weights_ptr is not None:
            store_scattered(weights_ptr, places, weights, hits)
        if LAST_ROW_COUNTS:
            # By the threads of the last row, rather than by one more sum across warps.
            is_last = tl.arange(0, ROWS) == ROWS - 1
            for expert in tl.static_range(EXPERT_BLOCK):
                count = ((inclusive >> (expert * FIELD)) & MASK).to(tl.int32) if EXPERT_BLOCK > 1 else inclusive
                owned = tl.zeros([ROWS], tl.int32) + expert
                tl.store(counts_ptr + first + owned, count, mask=is_last & (owned < num_owned))
        else:
            counts += tl.sum(row_counts, axis=0)
    if not FLAT and not LAST_ROW_COUNTS:
        owned = tl.arange(0, EXPERT_BLOCK)
        if EXPERT_BLOCK > 1:
            counts = ((counts >> (owned * FIELD).to(dtype)) & MASK).to(tl.int32)
        tl.store(counts_ptr + first + owned, counts, mask=owned < num_owned)


def plan(call: Call, run_config: dict[str, int]) -> Plan:
    """One launch."""
    num_warps, block_size = run_config["num_warps"], run_config["BLOCK_SIZE"]
    row = columns(block_size, num_warps, call.ids_dtype.itemsize)
    field = next((bits for bits in (4, 8, 16) if call.num_slots < 1 << bits), 64)
    # As many experts as have room for their counters in 64 bits.
    expert_block = min(run_config["EXPERT_BLOCK"], 64 // field)
    constants = {
        "BLOCK_SIZE": block_size,
        "ROW": row,
        "EXPERT_BLOCK": expert_block,
        "FIELD": field if expert_block > 1 else 32,
        "ONE_TILE": call.num_slots <= block_size,
        "NUM_STAGE": run_config["NUM_STAGE"],
    }
    options = {"num_warps": num_warps, **(all_registers(num_warps) if call.flat else {})}
    grid = (triton.cdiv(call.num_experts, expert_block),)
    launch = Launch(align_rows_scan_kernel, grid, constants, options)
    return Plan([launch], flat=regions.constants(call, num_warps, block_size))

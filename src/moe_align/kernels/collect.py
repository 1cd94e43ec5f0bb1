"""Collect: each program owns a few experts, collects the slots that are theirs in a list, and ranks the list.

Where experts are many, a program's hits are few: 64 of 8192 slots, for 8 of 1024 experts. Here the warps do nothing but
find them: a sum over lanes and one over warps tell each lane where its hits belong in the program's list, in the order
of slots. What is left is as long as the list, and costs the same whether the program owns two experts or eight. A list
that is short, as nearly all are, is ranked at once; a long one, as skewed routing makes, in bigger pieces.

Ranks come from a cumulative sum of counters, one field of an integer per expert. The list is in global memory, because
only there can a thread write where another reads; nobody but its program looks at it. One pass, no atomics, nothing to
zero; every program reads all ids.

In a flat layout a program first counts all slots, to know where its regions start; see `regions`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.kernels.scan import all_registers
from moe_align.kernels.sift import CHUNK, load_chunk, load_weights, warp_starts
from moe_align.layouts import Regions, Rows

#: Bytes of ids that a lane has registers for; more warps have fewer.
LANE_BYTES = 128
MAX_WARPS = 16
#: Experts of one program: their counts of a short list share 64 bits.
MAX_EXPERT_BLOCK = 8
# Hits of a short list, counted in 8 bits; a piece of a long one has 4 hits a lane, counted in 16.
_SHORT = tl.constexpr(128)


@triton.jit
def _collect_tile(
    source,  # as in sift
    list_ptr,  # out: int32 [32 * WARPS * CHUNKS * 4], slot * EXPERT_BLOCK + expert of each hit, in the order of slots
    first_slot,
    WARPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    FLAT: tl.constexpr,
):
    """List the hits of a tile, in which each warp has a run of chunks; returns how many there are."""
    lanes = tl.arange(0, 32 * WARPS)
    lane_starts = first_slot + (lanes // 32) * (CHUNKS * 128) + (lanes % 32) * 4
    found = ()
    # Hits of each chunk in earlier lanes, and in the warp; 8 bits each, four chunks to an integer.
    sums = ()
    packed = tl.zeros([32 * WARPS], tl.int32)
    for chunk in tl.static_range(CHUNKS):
        slots, ids, hits = load_chunk(source, lane_starts, chunk, EXPERT_BLOCK, FLAT)
        found = found + ((slots * EXPERT_BLOCK + (ids - source[4]).to(tl.int32), hits),)
        packed += tl.sum(hits.to(tl.int32), axis=1) << (chunk % 4 * 8)
        if chunk % 4 == 3 or chunk == CHUNKS - 1:
            counts = tl.reshape(packed, [WARPS, 32])
            sums = sums + ((tl.cumsum(counts, axis=1) - counts, tl.sum(counts, axis=1)),)
            packed = tl.zeros([32 * WARPS], tl.int32)
    # Where a chunk's hits start: those of earlier lanes, earlier chunks of the warp, earlier warps.
    starts = ()
    warp_count = tl.zeros([WARPS], tl.int32)
    for chunk in tl.static_range(CHUNKS):
        earlier_lanes, all_lanes = sums[chunk // 4]
        starts = starts + (((earlier_lanes >> (chunk % 4 * 8)) & 255) + warp_count[:, None],)
        warp_count += (all_lanes >> (chunk % 4 * 8)) & 255
    earlier_warps, all_warps = warp_starts(warp_count, WARPS)
    for chunk in tl.static_range(CHUNKS):
        values, hits = found[chunk]
        start = tl.reshape(starts[chunk] + earlier_warps[:, None], [32 * WARPS])
        ones = hits.to(tl.int32)
        tl.store(list_ptr + start[:, None] + tl.cumsum(ones, axis=1) - ones, values, mask=hits)
    return all_warps


@triton.jit
def _place_listed(
    source,
    list_ptr,
    start,
    num_hits,
    places,
    slot_index_ptr,
    weights_ptr,
    EXPERT_BLOCK: tl.constexpr,
    LIST: tl.constexpr,
    FIELD: tl.constexpr,  # bits of a counter, enough for LIST
):
    """Place LIST hits from ``start`` on; ``places`` says where the first of each expert goes, and is returned anew."""
    FIELDS: tl.constexpr = min(64 // FIELD, EXPERT_BLOCK)
    wide: tl.constexpr = tl.uint64 if FIELDS * FIELD > 32 else tl.uint32
    MASK: tl.constexpr = (1 << FIELD) - 1
    index = start + tl.arange(0, LIST)
    listed = index < num_hits
    values = tl.load(list_ptr + index, mask=listed, other=0)
    slots = values // EXPERT_BLOCK
    expert = values % EXPERT_BLOCK
    # Before the sums, so that the loads are under way meanwhile.
    weights = load_weights(source, slots, listed)
    owned = tl.arange(0, EXPERT_BLOCK)
    shift = (expert % FIELDS * FIELD).to(wide)
    owned_shift = (owned % FIELDS * FIELD).to(wide)
    ranks = tl.gather(places, expert, axis=0)
    for word in tl.static_range(EXPERT_BLOCK // FIELDS):
        counted = listed & (expert // FIELDS == word)
        units = tl.where(counted, tl.full([LIST], 1, wide) << shift, 0)
        earlier = ((tl.cumsum(units, axis=0) - units) >> shift) & MASK
        ranks += tl.where(counted, earlier.to(tl.int32), 0)
        counts = (tl.sum(units, axis=0) >> owned_shift) & MASK
        places += tl.where(owned // FIELDS == word, counts.to(tl.int32), 0)
    tl.store(slot_index_ptr + ranks, slots, mask=listed)
    if weights_ptr is not None:
        tl.store(weights_ptr + ranks, weights, mask=listed)
    return places


@triton.jit
def align_rows_collect_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; of a flat layout, None if there are no weights
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count; flat: [capacity], all written
    weights_ptr,  # out: float, likewise; None if there are no weights
    counts_ptr,  # out: int32 [num_experts], every element written; None in a flat layout
    list_ptr,  # workspace: int32 [programs, 128 * WARPS * CHUNKS]
    num_slots,
    num_experts,
    WARPS: tl.constexpr,
    CHUNKS: tl.constexpr,  # of each warp
    EXPERT_BLOCK: tl.constexpr,  # EXPERT_BLOCK * num_slots < 2**31
    ONE_TILE: tl.constexpr,  # whether a tile covers all slots
    FLAT: tl.constexpr = False,
    flat=None,  # regions.Flat in a flat layout
):
    """Place the slots of EXPERT_BLOCK experts. Grid: (cdiv(num_experts, EXPERT_BLOCK),). Atomic counts at most."""
    TILE: tl.constexpr = WARPS * CHUNKS * 128
    LONG: tl.constexpr = WARPS * 128
    first = tl.program_id(0) * EXPERT_BLOCK
    # The last program may own fewer experts; the ids past the end are nobody's.
    num_owned = tl.minimum(EXPERT_BLOCK, num_experts - first)
    owned = tl.arange(0, EXPERT_BLOCK)
    list_ptr += tl.program_id(0).to(tl.int64) * TILE
    if FLAT:
        places = regions.count_and_lay_out(
            topk_ids_ptr, slot_index_ptr, weights_ptr, num_slots, num_experts, first, flat, EXPERT_BLOCK
        )
    else:
        slot_index_ptr += first.to(tl.int64) * num_slots
        weights_ptr += first.to(tl.int64) * num_slots
        places = owned * num_slots
    source = (topk_ids_ptr, topk_weights_ptr, num_slots, num_experts, first, num_owned, flat)
    end = TILE if ONE_TILE else num_slots
    for tile in tl.range(0, end, TILE):
        num_hits = _collect_tile(source, list_ptr, tile, WARPS, CHUNKS, EXPERT_BLOCK, FLAT)
        tl.debug_barrier()
        if num_hits <= _SHORT:
            places = _place_listed(
                source, list_ptr, 0, num_hits, places, slot_index_ptr, weights_ptr, EXPERT_BLOCK, _SHORT, 8
            )
        else:
            for start in tl.range(0, num_hits, LONG):
                places = _place_listed(
                    source, list_ptr, start, num_hits, places, slot_index_ptr, weights_ptr, EXPERT_BLOCK, LONG, 16
                )
        if not ONE_TILE:
            # Before the list is overwritten.
            tl.debug_barrier()
    if not FLAT:
        tl.store(counts_ptr + first + owned, places - owned * num_slots, mask=owned < num_owned)


def align_rows(topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, run_config: dict[str, int]) -> None:
    """Launch the kernel; arguments are checked by `moe_align.api`."""
    _launch(topk_ids, topk_weights, out, out.counts.numel(), run_config)


def align_flat(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, out: Regions, run_config: dict[str, int]
) -> None:
    """Launch the kernel for a flat layout; arguments are checked by `moe_align.api`."""
    flat = regions.argument(out, run_config["num_warps"], topk_ids.numel())
    _launch(topk_ids, topk_weights, (out.slots, out.weights, None), out.num_experts, run_config, FLAT=True, flat=flat)


def _launch(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    outputs: tuple[torch.Tensor | None, ...],
    num_experts: int,
    run_config: dict[str, int],
    **layout: Any,
) -> None:
    num_slots, num_warps = topk_ids.numel(), run_config["num_warps"]
    # A hit's slot and expert share 31 bits.
    expert_block = run_config["EXPERT_BLOCK"] if num_slots < 2**31 // MAX_EXPERT_BLOCK else 1
    # As few tiles as a lane has registers for, because latencies are waited for in each, and all of one size.
    chunks = max(1, triton.cdiv(num_slots, num_warps * CHUNK))
    chunks = triton.cdiv(chunks, triton.cdiv(chunks, LANE_BYTES // (4 * topk_ids.itemsize)))
    tile = num_warps * chunks * CHUNK
    programs = triton.cdiv(num_experts, expert_block)
    align_rows_collect_kernel[(programs,)](
        topk_ids,
        topk_weights,
        *outputs,
        torch.empty((programs, tile), dtype=torch.int32, device=topk_ids.device),
        num_slots,
        num_experts,
        WARPS=num_warps,
        CHUNKS=chunks,
        EXPERT_BLOCK=expert_block,
        ONE_TILE=num_slots <= tile,
        num_warps=num_warps,
        **all_registers(num_warps),
        **layout,
    )

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

import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.kernels.columns import columns, store_scattered
from moe_align.kernels.launch import Call, Launch, Plan, begin
from moe_align.kernels.scan import all_registers
from moe_align.kernels.sift import CHUNK, load_chunk, load_weights, warp_starts

#: Chunks of a warp in one tile: a lane keeps a count of each, and has as many registers as 16 warps leave it.
MAX_CHUNKS = 8
MAX_WARPS = 16
#: Experts of one program: their counts of a short list share 64 bits.
MAX_EXPERT_BLOCK = 8
# A list of so many hits is short: the least that holds one of mean length and a third more.
_SHORT = (128, 256)


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
    # Hits of each chunk in earlier lanes, and in the warp; 8 bits each, four chunks to an integer.
    sums = ()
    packed = tl.zeros([32 * WARPS], tl.int32)
    for chunk in tl.static_range(CHUNKS):
        hits = load_chunk(source, lane_starts, chunk, EXPERT_BLOCK, FLAT)[2]
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
        # From the L1 cache, rather than from registers that the loads would have to share.
        slots, ids, hits = load_chunk(source, lane_starts, chunk, EXPERT_BLOCK, FLAT)
        values = slots * EXPERT_BLOCK + (ids - source[4]).to(tl.int32)
        start = tl.reshape(starts[chunk] + earlier_warps[:, None], [32 * WARPS])
        ones = hits.to(tl.int32)
        store_scattered(list_ptr, start[:, None] + tl.cumsum(ones, axis=1) - ones, values, hits)
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
    COLUMNS: tl.constexpr,
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
    ROWS: tl.constexpr = LIST // COLUMNS
    ranks, listed = tl.reshape(ranks, [ROWS, COLUMNS]), tl.reshape(listed, [ROWS, COLUMNS])
    store_scattered(slot_index_ptr, ranks, tl.reshape(slots, [ROWS, COLUMNS]), listed)
    if weights_ptr is not None:
        store_scattered(weights_ptr, ranks, tl.reshape(weights, [ROWS, COLUMNS]), listed)
    return places


@triton.jit
def align_rows_collect_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; of a flat layout, None if there are no weights
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count; flat: [capacity], all written
    weights_ptr,  # out: float, likewise; None if there are no weights
    counts_ptr,  # out: int32 [num_experts], every element written; None in a flat layout
    workspace_ptr,  # int32 [programs, 128 * WARPS * CHUNKS], the lists
    num_slots,
    num_experts,
    WARPS: tl.constexpr,
    CHUNKS: tl.constexpr,  # of each warp
    EXPERT_BLOCK: tl.constexpr,  # EXPERT_BLOCK * num_slots < 2**31
    ONE_TILE: tl.constexpr,  # whether a tile covers all slots
    SHORT: tl.constexpr,  # hits of a list that is ranked at once
    COLUMNS: tl.constexpr,  # of them, neighbours in a thread
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # launch.Flat in a flat layout
):
    """Place the slots of EXPERT_BLOCK experts. Grid: (cdiv(num_experts, EXPERT_BLOCK),). Atomic counts at most."""
    begin(OVERLAP)
    TILE: tl.constexpr = WARPS * CHUNKS * 128
    LONG: tl.constexpr = WARPS * 128
    # A counter of a short list has 8 bits if these are enough, any other has 16.
    FIELD: tl.constexpr = 8 if SHORT < 256 else 16
    first = tl.program_id(0) * EXPERT_BLOCK
    # The last program may own fewer experts; the ids past the end are nobody's.
    num_owned = tl.minimum(EXPERT_BLOCK, num_experts - first)
    owned = tl.arange(0, EXPERT_BLOCK)
    list_ptr = workspace_ptr + tl.program_id(0).to(tl.int64) * TILE
    if FLAT:
        layout = (topk_ids_ptr, slot_index_ptr, weights_ptr, num_slots, num_experts)
        places = regions.lay_out(layout, first, flat, EXPERT_BLOCK)
    else:
        slot_index_ptr += first.to(tl.int64) * num_slots
        weights_ptr += first.to(tl.int64) * num_slots
        places = owned * num_slots
    source = (topk_ids_ptr, topk_weights_ptr, num_slots, num_experts, first, num_owned, flat)
    end = TILE if ONE_TILE else num_slots
    for tile in tl.range(0, end, TILE):
        num_hits = _collect_tile(source, list_ptr, tile, WARPS, CHUNKS, EXPERT_BLOCK, FLAT)
        tl.debug_barrier()
        if num_hits <= SHORT:
            places = _place_listed(
                source, list_ptr, 0, num_hits, places, slot_index_ptr, weights_ptr, EXPERT_BLOCK, SHORT, FIELD, COLUMNS
            )
        else:
            for start in tl.range(0, num_hits, LONG):
                places = _place_listed(
                    source, list_ptr, start, num_hits, places, slot_index_ptr, weights_ptr, EXPERT_BLOCK, LONG, 16, 4
                )
        if not ONE_TILE:
            # Before the list is overwritten.
            tl.debug_barrier()
    if not FLAT:
        tl.store(counts_ptr + first + owned, places - owned * num_slots, mask=owned < num_owned)


def plan(call: Call, run_config: dict[str, int]) -> Plan:
    """One launch."""
    num_slots, num_warps = call.num_slots, run_config["num_warps"]
    # A hit's slot and expert share 31 bits.
    expert_block = run_config["EXPERT_BLOCK"] if num_slots < 2**31 // MAX_EXPERT_BLOCK else 1
    # As few tiles as may be, because latencies are waited for in each, and all of one size.
    chunks = max(1, triton.cdiv(num_slots, num_warps * CHUNK))
    chunks = triton.cdiv(chunks, triton.cdiv(chunks, MAX_CHUNKS))
    tile = num_warps * chunks * CHUNK
    programs = triton.cdiv(call.num_experts, expert_block)
    mean = min(tile, num_slots) * expert_block // call.num_experts
    short = next((short for short in _SHORT if 4 * mean <= 3 * short), _SHORT[-1])
    constants = {
        "WARPS": num_warps,
        "CHUNKS": chunks,
        "EXPERT_BLOCK": expert_block,
        "ONE_TILE": num_slots <= tile,
        "SHORT": short,
        "COLUMNS": columns(short, num_warps, 4),
    }
    options = {"num_warps": num_warps, **all_registers(num_warps)}
    launch = Launch(align_rows_collect_kernel, (programs,), constants, options)
    return Plan([launch], workspace=programs * tile, flat=regions.constants(call, num_warps, num_slots))

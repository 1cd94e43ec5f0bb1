"""Sift: each program owns a few experts and streams all slots past them, and works only on those it owns.

A program owns a small part of the experts, so hardly any slot is a hit. Each thread marks the hits among its slots as
bits of one integer, a handful of instructions a slot, and takes the marked slots HITS at a time: most threads have
none, few have two. The first of them are loaded before the counts are summed, so that latencies overlap; where a thread
has more, the rest follows in further rounds.

A warp owns a run of chunks, a chunk being 128 slots, four a lane. The rank of a hit is the sum of the hits of its
expert in earlier tiles, earlier warps, earlier chunks of the warp, earlier lanes of the chunk, and earlier slots of the
lane. Counters are fields of integers: 4 bits per (chunk, expert) within a lane, 32 // EXPERT_BLOCK bits within a chunk,
16 bits across warps. One pass, no atomics, nothing to zero; every program reads all ids.

In a flat layout a program first counts all slots, to know where its regions start; see `regions`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.kernels.columns import store_scattered
from moe_align.kernels.launch import Call, Launch, Plan, begin
from moe_align.kernels.scan import all_registers, owned_by

#: Slots of a chunk: 32 lanes, each with the ids of one 16-byte load.
CHUNK = 128
#: A lane marks its hits in 32 bits, four to a chunk.
MAX_CHUNKS = 8
#: Experts of one program; a chunk's counts, at most 128, have 8 bits each.
MAX_EXPERT_BLOCK = 4


@triton.jit
def _count_bits(x):
    """Bits set in each 32-bit integer."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF


@triton.jit
def _lowest_bit(x):
    """Index of the lowest bit set: the exponent of that power of two as a float. Meaningless for 0."""
    return ((x & -x).to(tl.uint32).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _select(values, index, N: tl.constexpr):
    """``values[index]`` for a tuple of N tensors and a tensor of indices."""
    chosen = values[0]
    for i in tl.static_range(1, N):
        chosen = tl.where(index == i, values[i], chosen)
    return chosen


@triton.jit
def _load_ids(source, slots, mask, FLAT: tl.constexpr):
    """The experts of slots; those masked are nobody's."""
    topk_ids_ptr, num_experts, flat = source[0], source[3], source[6]
    ids = tl.load(topk_ids_ptr + slots, mask=mask, other=-1)
    if FLAT:
        ids = regions.experts_of(ids, mask, num_experts, flat)
    return ids


@triton.jit
def load_weights(source, slots, mask):
    """The weights of slots; without weights, something that is not looked at."""
    topk_weights_ptr = source[1]
    if topk_weights_ptr is not None:
        return tl.load(topk_weights_ptr + slots, mask=mask, other=0)
    else:
        return slots


@triton.jit
def _next_hit(marks, lane_starts, source, EXPERT_BLOCK: tl.constexpr, counters: tl.constexpr, FLAT: tl.constexpr):
    """Take each lane's lowest mark.

    Returns a hit and the marks left. The hit is its slot, chunk and expert (from ``first`` on), whether there was one,
    its unit in the lane's counters, and the shift of that unit; all [32 * WARPS].
    """
    first = source[4]
    valid = marks != 0
    bit = _lowest_bit(marks)
    chunk = bit >> 2
    slots = lane_starts + chunk * 128 + (bit & 3)
    if EXPERT_BLOCK == 1:
        expert = tl.zeros_like(chunk)
    else:
        # From the L1 cache: the program has just read it.
        expert = (_load_ids(source, slots, valid, FLAT) - first).to(tl.int32)
    shift = tl.where(valid, (chunk * EXPERT_BLOCK + expert) * 4, 0).to(counters)
    unit = tl.where(valid, tl.full(chunk.shape, 1, counters) << shift, 0)
    return (slots, chunk, expert, valid, unit, shift), marks & (marks - 1)


@triton.jit
def _chunk_counts(lane_counts, chunk: tl.constexpr, EXPERT_BLOCK: tl.constexpr):
    """A chunk's counters of each lane, from 4 bits to fields of 32 // EXPERT_BLOCK bits; int32."""
    counts = (lane_counts >> (chunk * EXPERT_BLOCK * 4)).to(tl.int32) & ((1 << (EXPERT_BLOCK * 4)) - 1)
    if EXPERT_BLOCK == 2:
        counts = (counts | (counts << 12)) & 0x000F000F
    if EXPERT_BLOCK == 4:
        counts = (counts | (counts << 8)) & 0x00FF00FF
        counts = (counts | (counts << 4)) & 0x0F0F0F0F
    return counts


@triton.jit
def warp_starts(sums, WARPS: tl.constexpr):
    """Exclusive sum over warps, and the sum; for [WARPS]."""
    inclusive = tl.cumsum(sums, axis=0)
    # The last one, rather than a second sum across warps.
    return inclusive - sums, tl.sum(tl.where(tl.arange(0, WARPS) == WARPS - 1, inclusive, 0), axis=0)


@triton.jit
def _count_of(expert, even, odd, EXPERT_BLOCK: tl.constexpr):
    """An expert's counter: of 32 bits if it is alone, else of 16 bits; of four experts, even and odd ones apart."""
    if EXPERT_BLOCK == 1:
        return even
    elif EXPERT_BLOCK == 2:
        return (even >> (expert * 16)) & 0xFFFF
    else:
        return (tl.where((expert & 1) != 0, odd, even) >> ((expert & 2) * 8)) & 0xFFFF


@triton.jit
def _store(target, slots, weights, expert, rank, mask, EXPERT_BLOCK: tl.constexpr, FLAT: tl.constexpr):
    slot_index_ptr, weights_ptr, num_slots, region_starts = target
    if FLAT:
        places = _select(region_starts, expert, EXPERT_BLOCK) + rank
    else:
        # More than one expert only with num_slots < 2**16, so the product fits.
        places = expert * num_slots + rank
    store_scattered(slot_index_ptr, places, slots, mask)
    if weights_ptr is not None:
        store_scattered(weights_ptr, places, weights, mask)


@triton.jit
def _count_hits(
    marks, begin, rounds, lane_starts, source, EXPERT_BLOCK: tl.constexpr, counters: tl.constexpr, FLAT: tl.constexpr
):
    """Each lane's counters, of the hits that are still marked."""
    lane_counts = tl.zeros(marks.shape, counters)
    for _ in tl.range(begin, rounds):
        hit, marks = _next_hit(marks, lane_starts, source, EXPERT_BLOCK, counters, FLAT)
        lane_counts += hit[4]
    return lane_counts


@triton.jit
def _place_hit(
    target, hit, weights, placed, starts, CHUNKS: tl.constexpr, EXPERT_BLOCK: tl.constexpr, FLAT: tl.constexpr
):
    """Store a hit of each lane, of whose hits ``placed`` counts the earlier ones; returns that count with this one."""
    slots, chunk, expert, valid, unit, shift = hit
    even = _select(starts[0], chunk, CHUNKS)
    odd = _select(starts[1], chunk, CHUNKS)
    rank = _count_of(expert, even, odd, EXPERT_BLOCK) + ((placed >> shift) & 15).to(tl.int32)
    _store(target, slots, weights, expert, rank, valid, EXPERT_BLOCK, FLAT)
    return placed + unit


@triton.jit
def _place_hits(
    source,
    target,
    lane_starts,
    starts,
    ahead,
    marks,
    rounds,
    HITS: tl.constexpr,
    CHUNKS: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    counters: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Store the hits loaded ahead, and those that are still marked."""
    placed = tl.zeros(marks.shape, counters)
    for i in tl.static_range(HITS):
        placed = _place_hit(target, ahead[i][0], ahead[i][1], placed, starts, CHUNKS, EXPERT_BLOCK, FLAT)
    for _ in tl.range(HITS, rounds):
        hit, marks = _next_hit(marks, lane_starts, source, EXPERT_BLOCK, counters, FLAT)
        weights = load_weights(source, hit[0], hit[3])
        placed = _place_hit(target, hit, weights, placed, starts, CHUNKS, EXPERT_BLOCK, FLAT)


@triton.jit
def load_chunk(source, lane_starts, chunk, EXPERT_BLOCK: tl.constexpr, FLAT: tl.constexpr):
    """A chunk's slots, their ids and which of them are hits; [32 * WARPS, 4]."""
    num_slots, first, num_owned = source[2], source[4], source[5]
    slots = (lane_starts + chunk * 128)[:, None] + tl.arange(0, 4)[None, :]
    ids = _load_ids(source, slots, slots < num_slots, FLAT)
    return slots, ids, owned_by(ids, first, num_owned, EXPERT_BLOCK)


@triton.jit
def _units(ids, first, hits, EXPERT_BLOCK: tl.constexpr, dtype: tl.constexpr):
    """Each hit's expert (from ``first`` on), and its unit in counters of 4 bits per expert."""
    if EXPERT_BLOCK == 1:
        return tl.zeros(ids.shape, tl.int32), hits.to(dtype)
    else:
        expert = tl.where(hits, ids - first, 0).to(tl.int32)
        return expert, hits.to(dtype) << (expert * 4)


@triton.jit
def _count_chunks(
    source,
    lane_starts,
    CHUNKS: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    counters: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Each lane's counters, whatever the number of hits."""
    lane_counts = tl.zeros(lane_starts.shape, counters)
    for chunk in tl.range(CHUNKS):
        loaded = load_chunk(source, lane_starts, chunk, EXPERT_BLOCK, FLAT)
        units = _units(loaded[1], source[4], loaded[2], EXPERT_BLOCK, counters)[1]
        lane_counts += tl.sum(units, axis=1) << (chunk * EXPERT_BLOCK * 4)
    return lane_counts


@triton.jit
def _place_chunks(
    source,
    target,
    lane_starts,
    starts,
    CHUNKS: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Store all hits, whatever their number."""
    for chunk in tl.range(CHUNKS):
        slots, ids, hits = load_chunk(source, lane_starts, chunk, EXPERT_BLOCK, FLAT)
        weights = load_weights(source, slots, hits)
        expert, units = _units(ids, source[4], hits, EXPERT_BLOCK, tl.int32)
        before = ((tl.cumsum(units, axis=1) - units) >> (expert * 4)) & 15
        even_start = _select(starts[0], chunk, CHUNKS)[:, None]
        odd_start = _select(starts[1], chunk, CHUNKS)[:, None]
        rank = _count_of(expert, even_start, odd_start, EXPERT_BLOCK) + before
        _store(target, slots, weights, expert, rank, hits, EXPERT_BLOCK, FLAT)


@triton.jit
def _region_starts(layout, first, flat, EXPERT_BLOCK: tl.constexpr):
    """Complete the program's regions; returns the start of each."""
    laid_out = regions.lay_out(layout, first, flat, EXPERT_BLOCK)
    starts = ()
    for expert in tl.static_range(EXPERT_BLOCK):
        here = tl.arange(0, EXPERT_BLOCK) == expert
        starts = starts + (tl.sum(tl.where(here, laid_out, 0), axis=0),)
    return starts


@triton.jit
def align_rows_sift_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; of a flat layout, None if there are no weights
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count; flat: [capacity], all written
    weights_ptr,  # out: float, likewise; None if there are no weights
    counts_ptr,  # out: int32 [num_experts], every element written; None in a flat layout
    num_slots,
    num_experts,
    WARPS: tl.constexpr,
    CHUNKS: tl.constexpr,  # of each warp
    EXPERT_BLOCK: tl.constexpr,  # 1, or 2 or 4 where num_slots < 2**16
    HITS: tl.constexpr,  # of each lane, loaded ahead
    ONE_TILE: tl.constexpr,  # whether a tile covers all slots
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # launch.Flat in a flat layout
):
    """Place the slots of EXPERT_BLOCK experts. Grid: (cdiv(num_experts, EXPERT_BLOCK),). Atomic counts at most."""
    tl.static_assert(CHUNKS * 4 <= 32)
    tl.static_assert(CHUNKS * EXPERT_BLOCK * 4 <= 64)
    begin(OVERLAP)
    TILE: tl.constexpr = WARPS * CHUNKS * 128
    counters: tl.constexpr = tl.int64 if CHUNKS * EXPERT_BLOCK * 4 > 32 else tl.int32
    first = tl.program_id(0) * EXPERT_BLOCK
    # The last program may own fewer experts; the ids past the end are nobody's.
    num_owned = tl.minimum(EXPERT_BLOCK, num_experts - first)
    places = ()
    if FLAT:
        layout = (topk_ids_ptr, slot_index_ptr, weights_ptr, num_slots, num_experts)
        places = _region_starts(layout, first, flat, EXPERT_BLOCK)
    else:
        slot_index_ptr += first.to(tl.int64) * num_slots
        weights_ptr += first.to(tl.int64) * num_slots
    source = (topk_ids_ptr, topk_weights_ptr, num_slots, num_experts, first, num_owned, flat)
    lanes = tl.arange(0, 32 * WARPS)
    in_tile = (lanes // 32) * (CHUNKS * 128) + (lanes % 32) * 4
    in_lane = tl.arange(0, 4)[None, :]
    even = tl.zeros([], tl.int32)
    odd = tl.zeros([], tl.int32)
    end = TILE if ONE_TILE else num_slots
    for start in tl.range(0, end, TILE):
        lane_starts = start + in_tile
        marks = tl.zeros([32 * WARPS], tl.int32)
        for chunk in tl.static_range(CHUNKS):
            loaded = load_chunk(source, lane_starts, chunk, EXPERT_BLOCK, FLAT)
            marks += tl.sum(loaded[2].to(tl.int32) << (chunk * 4 + in_lane), axis=1)
        rounds = tl.max(_count_bits(marks), axis=0)
        # Where a lane has many hits, all slots are gone through once more, chunk by chunk, rather than hit by hit.
        dense = rounds > HITS + CHUNKS

        ahead = ()
        lane_counts = tl.zeros([32 * WARPS], counters)
        for _ in tl.static_range(HITS):
            hit, marks = _next_hit(marks, lane_starts, source, EXPERT_BLOCK, counters, FLAT)
            ahead = ahead + ((hit, load_weights(source, hit[0], hit[3])),)
            lane_counts += hit[4]
        if dense:
            lane_counts = _count_chunks(source, lane_starts, CHUNKS, EXPERT_BLOCK, counters, FLAT)
        else:
            lane_counts += _count_hits(marks, HITS, rounds, lane_starts, source, EXPERT_BLOCK, counters, FLAT)

        # One row per warp, so that no sum over lanes leaves the warp.
        even_counts = ()
        odd_counts = ()
        even_sum = tl.zeros([WARPS], tl.int32)
        odd_sum = tl.zeros([WARPS], tl.int32)
        for chunk in tl.static_range(CHUNKS):
            counts = tl.reshape(_chunk_counts(lane_counts, chunk, EXPERT_BLOCK), [WARPS, 32])
            before = tl.cumsum(counts, axis=1) - counts
            total = tl.sum(counts, axis=1)
            if EXPERT_BLOCK == 4:
                # Fields of 8 bits hold a chunk's counts, not a warp's.
                even_counts = even_counts + ((before & 0x00FF00FF) + even_sum[:, None],)
                odd_counts = odd_counts + (((before >> 8) & 0x00FF00FF) + odd_sum[:, None],)
                even_sum += total & 0x00FF00FF
                odd_sum += (total >> 8) & 0x00FF00FF
            else:
                even_counts = even_counts + (before + even_sum[:, None],)
                even_sum += total
        even_before, even_all = warp_starts(even_sum, WARPS)
        odd_before, odd_all = warp_starts(odd_sum, WARPS)
        even_starts = ()
        odd_starts = ()
        for chunk in tl.static_range(CHUNKS):
            even_starts = even_starts + (tl.reshape(even_counts[chunk] + (even + even_before)[:, None], [32 * WARPS]),)
            if EXPERT_BLOCK == 4:
                odd_starts = odd_starts + (tl.reshape(odd_counts[chunk] + (odd + odd_before)[:, None], [32 * WARPS]),)
            else:
                odd_starts = even_starts
        starts = (even_starts, odd_starts)

        target = (slot_index_ptr, weights_ptr, num_slots, places)
        if dense:
            _place_chunks(source, target, lane_starts, starts, CHUNKS, EXPERT_BLOCK, FLAT)
        else:
            _place_hits(
                source,
                target,
                lane_starts,
                starts,
                ahead,
                marks,
                rounds,
                HITS,
                CHUNKS,
                EXPERT_BLOCK,
                counters,
                FLAT,
            )
        even += even_all
        odd += odd_all
    if not FLAT:
        owned = tl.arange(0, EXPERT_BLOCK)
        tl.store(counts_ptr + first + owned, _count_of(owned, even, odd, EXPERT_BLOCK), mask=owned < num_owned)


def plan(call: Call, run_config: dict[str, int]) -> Plan:
    """One launch."""
    # In a flat layout there are too few registers for more warps.
    num_warps = min(run_config["num_warps"], 16) if call.flat else run_config["num_warps"]
    # Counters have 16 bits across warps, and 4 bits per (chunk, expert) in the 64 of a lane.
    expert_block = run_config["EXPERT_BLOCK"] if call.num_slots < 2**16 else 1
    # As few tiles as a lane can mark, because latencies are waited for in each, and all of one size.
    chunks = max(1, triton.cdiv(call.num_slots, num_warps * CHUNK))
    num_tiles = triton.cdiv(chunks, min(MAX_CHUNKS, 16 // expert_block))
    chunks = triton.cdiv(chunks, num_tiles)
    constants = {
        "WARPS": num_warps,
        "CHUNKS": chunks,
        "EXPERT_BLOCK": expert_block,
        "HITS": run_config["HITS"],
        "ONE_TILE": call.num_slots <= num_warps * chunks * CHUNK,
    }
    # With 32 warps there are but 64 registers each, and the compiler does better with fewer.
    options = {"num_warps": num_warps, **(all_registers(num_warps) if num_warps < 32 else {})}
    launch = Launch(align_rows_sift_kernel, (triton.cdiv(call.num_experts, expert_block),), constants, options)
    return Plan([launch], flat=regions.constants(call, num_warps, call.num_slots))

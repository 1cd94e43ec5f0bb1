"""Tiles: count each tile of slots, sum the counts over tiles, place each tile. Work grows with num_slots alone.

Three launches: count the slots of every expert in every tile; replace each tile's counts by the sums over the tiles
before it, which also gives the counts of the call; place each tile's slots. A tile is placed in sorted order, by expert
and then by slot, so that neighbours in the tile go to neighbouring places. The rank of its i-th slot is i, less the
tile's slots of smaller experts, plus the slots of its expert in earlier tiles. The first launch counts both per tile
and expert, and the second leaves their difference, which is what the third adds to i.

No atomics on global memory; the counts are added up in shared memory, so what they return does not depend on the
order. All keys of a sort are different, so there is but one sorted order.

Where launches overlap (see `launch`), the last has sorted by the time that the sums are there.

Source: partial counts, a scan and a sort within the tile are how triton_kernels routes; what is in them is not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.kernels.launch import Call, Launch, Plan, begin, wait

#: Slots of a tile at most: two counts of a tile share 32 bits, and a thread has few slots to sort.
MAX_TILE = 2048
#: Experts that one program counts; more are counted by further programs.
_COUNT_BINS = 256
#: Experts whose regions one program lays out; likewise.
_FLAT_BINS = 1024
#: Experts that one program sums at most: 64 bytes of a row; memory delivers 32 at once.
MAX_SUM_EXPERTS = 16
#: Tiles summed at a time.
_SUM_TILES = 512


@triton.jit
def _load_experts(topk_ids_ptr, slots, num_slots, num_experts, FLAT: tl.constexpr, flat):
    """The experts of slots, and which of them there are."""
    ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
    if FLAT:
        ids = regions.experts_of(ids, slots < num_slots, num_experts, flat)
    return ids, (ids >= 0) & (ids < num_experts)


@triton.jit
def count_tiles_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    workspace_ptr,  # out: int32 [num_tiles, row_size], the tile's slots of the expert + 2**16 * those of smaller ones
    num_slots,
    num_experts,
    row_size,  # at least num_experts, a multiple of BINS
    TILE: tl.constexpr,
    BINS: tl.constexpr,
    ALL: tl.constexpr,  # whether BINS covers every expert
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # launch.Flat in a flat layout
):
    """Count the slots of BINS experts in a tile. Grid: (num_tiles, row_size // BINS). Atomic counts at most."""
    begin(OVERLAP)
    first = tl.program_id(1) * BINS
    slots = tl.program_id(0) * TILE + tl.arange(0, TILE)
    experts, kept = _load_experts(topk_ids_ptr, slots, num_slots, num_experts, FLAT, flat)
    in_bins = kept if ALL else kept & (experts >= first) & (experts < first + BINS)
    counts = tl.histogram(tl.where(in_bins, experts - first, 0).to(tl.int32), BINS, mask=in_bins)
    smaller = tl.cumsum(counts, axis=0) - counts
    if not ALL:
        smaller += tl.sum((kept & (experts < first)).to(tl.int32), axis=0)
    row_ptr = workspace_ptr + tl.program_id(0).to(tl.int64) * row_size + first
    tl.store(row_ptr + tl.arange(0, BINS), counts | (smaller << 16))


@triton.jit
def sum_tiles_kernel(
    workspace_ptr,  # in: as counted; out: slots of the expert in earlier tiles - those of smaller experts in this one
    counts_ptr,  # out: int32 [num_experts], every element written; None for the workspace's last row
    num_tiles,
    num_experts,
    row_size,
    TILES: tl.constexpr,
    EXPERTS: tl.constexpr,
    ONE_PASS: tl.constexpr,  # whether TILES covers all tiles
    OVERLAP: tl.constexpr,
):
    """Sum the tiles' counts of EXPERTS experts. Grid: (row_size // EXPERTS,). No atomics."""
    begin(OVERLAP)
    wait(OVERLAP)
    if counts_ptr is None:
        counts_ptr = workspace_ptr + tl.cast(num_tiles, tl.int64) * row_size
    experts = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    sums = tl.zeros([EXPERTS], dtype=tl.int32)
    end = TILES if ONE_PASS else num_tiles
    for start in tl.range(0, end, TILES):
        tiles = start + tl.arange(0, TILES)[:, None]
        tile_ptr = workspace_ptr + tiles.to(tl.int64) * row_size + experts[None, :]
        # Read once, so past the L1 cache.
        counted = tl.load(tile_ptr, mask=tiles < num_tiles, other=0, cache_modifier=".cg")
        counts = counted & 0xFFFF
        earlier = sums[None, :] + tl.cumsum(counts, axis=0) - counts
        tl.store(tile_ptr, earlier - (counted >> 16), mask=tiles < num_tiles)
        sums += tl.sum(counts, axis=0)
    tl.store(counts_ptr + experts, sums, mask=experts < num_experts)


@triton.jit
def place_tiles_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; of a flat layout, None if there are no weights
    workspace_ptr,  # in: int32 [num_tiles, row_size], as summed; flat: then [row_size], the counts of all tiles
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count; flat: [capacity], all written
    weights_ptr,  # out: float, likewise; None if there are no weights
    num_slots,
    num_experts,
    row_size,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
    WIDE: tl.constexpr,  # whether num_experts * TILE takes more than 31 bits
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # launch.Flat in a flat layout
):
    """Place a tile's slots of BINS experts. Grid: (num_tiles, cdiv(num_experts, BINS)). No atomics."""
    begin(OVERLAP)
    # What does not depend on the sums is done before they are waited for.
    in_tile = tl.arange(0, TILE)
    first_slot = tl.program_id(0) * TILE
    slots = first_slot + in_tile
    experts, kept = _load_experts(topk_ids_ptr, slots, num_slots, num_experts, FLAT, flat)
    if topk_weights_ptr is not None:
        weights = tl.load(topk_weights_ptr + slots, mask=kept, other=0)
    # Dropped slots come last, as slots of an expert past the end.
    keys = tl.where(kept, experts, num_experts).to(tl.int64 if WIDE else tl.int32) * TILE + in_tile
    keys = tl.sort(keys)
    experts = keys // TILE
    local = (keys % TILE).to(tl.int32)
    first = tl.program_id(1) * BINS
    kept = (experts >= first) & (experts < tl.minimum(first + BINS, num_experts))
    if topk_weights_ptr is not None:
        weights = tl.gather(weights, local, axis=0)
    wait(OVERLAP)
    row_ptr = workspace_ptr + tl.program_id(0).to(tl.int64) * row_size
    places = in_tile + tl.load(row_ptr + experts, mask=kept, other=0, cache_modifier=".cg")
    if FLAT:
        counts_ptr = workspace_ptr + tl.num_programs(0).to(tl.int64) * row_size
        starts = regions.load_and_lay_out(
            counts_ptr, slot_index_ptr, weights_ptr, num_slots, num_experts, first, flat, BINS
        )
        places += tl.gather(starts, tl.where(kept, experts - first, 0).to(tl.int32), axis=0)
    else:
        places += experts.to(tl.int64) * num_slots
    tl.store(slot_index_ptr + places, first_slot + local, mask=kept)
    if topk_weights_ptr is not None:
        tl.store(weights_ptr + places, weights, mask=kept)


def plan(call: Call, run_config: dict[str, int]) -> Plan:
    """Three launches."""
    # No narrower than a warp: an id must be counted by one thread only.
    tile = max(run_config["BLOCK_SIZE"], 32)
    num_tiles = max(1, triton.cdiv(call.num_slots, tile))
    # Likewise: a histogram has no fewer bins.
    width = max(32, triton.next_power_of_2(call.num_experts))
    count_bins = min(width, _COUNT_BINS)
    # Rows need no bins to be placed.
    place_bins = min(width, _FLAT_BINS) if call.flat else width
    row_size = triton.cdiv(call.num_experts, count_bins) * count_bins
    count = Launch(
        count_tiles_kernel,
        (num_tiles, row_size // count_bins),
        {"TILE": tile, "BINS": count_bins, "ALL": row_size == count_bins, "row_size": row_size},
        {"num_warps": max(1, min(tile // 128, 8))},
    )
    sum_experts = run_config["SUM_EXPERTS"]
    sum_tiles = min(_SUM_TILES, max(16, triton.next_power_of_2(num_tiles)))
    one_pass = num_tiles <= sum_tiles
    sums = Launch(
        sum_tiles_kernel,
        (row_size // sum_experts,),
        {
            "num_tiles": num_tiles,
            "row_size": row_size,
            "TILES": sum_tiles,
            "EXPERTS": sum_experts,
            "ONE_PASS": one_pass,
        },
        {"num_warps": 4},
    )
    place = Launch(
        place_tiles_kernel,
        (num_tiles, triton.cdiv(call.num_experts, place_bins)),
        {"row_size": row_size, "TILE": tile, "BINS": place_bins, "WIDE": (call.num_experts + 1) * tile > 2**31},
        {"num_warps": min(run_config["num_warps"], tile // 32)},
    )
    # With a row for the counts of all tiles, which are no output of a flat layout.
    return Plan([count, sums, place], workspace=(num_tiles + 1) * row_size, flat=regions.constants(call))

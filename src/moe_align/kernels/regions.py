"""Regions of the flat layouts (blocks, offsets): where they start, and what is in them beside slots.

A flat layout holds one region per expert, in the order of experts, each padded to whole blocks; offsets are blocks of
one slot. A slot's place is the start of its expert's region plus its rank, which is what the strategies compute. A
start is the sum of the sizes of all earlier regions. Programs that stream all slots count them once more: without
padding, those of smaller experts; with padding, those of every expert, in shared memory. The tiles have the counts of
their second launch. Blocks of few slots need none of this; see `pairs`.

Every element is written once: slots by those who rank them; padding, labels and offsets of an expert by one program;
what lies past the last region by all programs in turns.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from moe_align.kernels.bins import MAX_BINS, clear_bins, count_into_bins, load_bins
from moe_align.kernels.columns import columns, columns_of, matrix_of
from moe_align.kernels.launch import Call, on_nvidia

# Elements of a store, and regions that a program completes at a time if it shares them.
_LANES, _REGIONS = tl.constexpr(128), tl.constexpr(4)
# Slots counted at a time: by each warp no fewer than it has lanes, because an id must be counted by one thread only;
# and no more than there are registers for.
_MIN_TILE, _WARP_TILE, _MAX_TILE = 64, 256, 2048


def constants(call: Call, num_warps: int | None = None, tile: int = 0) -> tuple[Any, ...] | None:
    """What `launch.Flat` holds after its tensors; None for rows.

    Args:
        call: what to plan for.
        num_warps: of programs that count all slots; None if there are none.
        tile: slots that these count at a time, about.
    """
    if call.flat is None:
        return None
    counting: tuple[Any, ...] = (None,) * 5
    if num_warps is not None:
        tile = max(min(triton.next_power_of_2(tile), num_warps * _WARP_TILE, _MAX_TILE), num_warps * _MIN_TILE)
        if call.flat.has_offsets:
            # No histogram, so no more than there are.
            tile = min(tile, max(triton.next_power_of_2(call.num_slots), 16))
        # At least a warp's width: a histogram has no fewer bins.
        bins = min(max(64, triton.next_power_of_2(call.num_experts)), MAX_BINS)
        # In one warp, nothing waits for others when it moves.
        of_thread = columns(tile, num_warps, call.ids_dtype.itemsize) if num_warps > 1 else 1
        counting = (bins, call.num_experts <= bins, tile, of_thread, on_nvidia(call.device))
    shape = (call.flat.first_id, call.flat.block_size, *counting)
    return call.flat.capacity, call.flat.num_blocks, *map(tl.constexpr, shape)


@triton.jit
def experts_of(ids, valid, num_experts, flat):
    """The expert of each id; -1, or anything else outside the range, is nobody's."""
    if flat.FIRST_ID != 0:
        ids = tl.where(valid, ids - flat.FIRST_ID, -1)
    if flat.expert_map is not None:
        known = (ids >= 0) & (ids < num_experts)
        ids = tl.load(flat.expert_map + ids, mask=known, other=-1)
    return ids


@triton.jit
def _padded(counts, flat):
    """Counts rounded up to whole blocks."""
    return tl.cdiv(counts, flat.BLOCK) * flat.BLOCK


@triton.jit
def load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat):
    """The experts of slots, and which of them there are; the others' expert is num_experts."""
    ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
    ids = experts_of(ids, slots < num_slots, num_experts, flat)
    valid = (ids >= 0) & (ids < num_experts)
    return tl.where(valid, ids, num_experts).to(tl.int32), valid


@triton.jit
def _count_smaller(topk_ids_ptr, num_slots, num_experts, first, flat, EXPERTS: tl.constexpr):
    """Slots of experts smaller than each from ``first`` on, and of all: where regions without padding start and end."""
    # Summed over threads only once, and unrolled, so that loads do not wait for one another.
    ROWS: tl.constexpr = flat.TILE // flat.COLUMNS
    smaller = tl.zeros([ROWS, EXPERTS], tl.int32)
    all_valid = tl.zeros([ROWS], tl.int32)
    for start in tl.range(0, num_slots, flat.TILE, loop_unroll_factor=4):
        slots = start + tl.arange(0, ROWS)[:, None] * flat.COLUMNS + tl.arange(0, flat.COLUMNS)[None, :]
        of_slots = columns_of(load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat)[0])
        for column in tl.static_range(flat.COLUMNS):
            all_valid += (of_slots[column] < num_experts).to(tl.int32)
            if flat.COLUMNS == 1:
                smaller += (of_slots[column][:, None] < first + tl.arange(0, EXPERTS)[None, :]).to(tl.int32)
            else:
                of_experts = ()
                for expert in tl.static_range(EXPERTS):
                    of_experts = of_experts + ((of_slots[column] < first + expert).to(tl.int32),)
                smaller += matrix_of(of_experts)
    if flat.COLUMNS == 1:
        return tl.sum(smaller, axis=0), tl.sum(all_valid, axis=0)
    else:
        return _starts_and_end((all_valid[:, None].to(tl.int64) << 32) + smaller)


@triton.jit
def _count_all(topk_ids_ptr, num_slots, num_experts, experts, flat):
    """Starts of ``experts``, their slots, and the end of all regions, by counting the slots of every expert."""
    counts = tl.zeros(experts.shape, tl.int32)
    packed = tl.zeros([flat.BINS, experts.shape[0]], tl.int64)
    end = flat.BINS if flat.ALL_BINS else num_experts
    for first in tl.range(0, end, flat.BINS):
        counted, of_experts = _count_bins(topk_ids_ptr, num_slots, num_experts, first, experts - first, flat)
        counts += of_experts
        # Each region's size, and in the lower 32 bits only that of an earlier one.
        sizes = _padded(counted, flat).to(tl.int64)[:, None]
        packed += (sizes << 32) + tl.where(first + tl.arange(0, flat.BINS)[:, None] < experts[None, :], sizes, 0)
    starts, end = _starts_and_end(packed)
    return starts, counts, end


@triton.jit
def _count_bins(topk_ids_ptr, num_slots, num_experts, first, wanted, flat):
    """Slots of the BINS experts from ``first`` on, [BINS], and of those that are ``wanted``, 0 if not among them."""
    bins = tl.arange(0, flat.BINS)
    if flat.SHARED:
        if first > 0:
            tl.debug_barrier()  # until the bins before are loaded
        address = clear_bins(flat.BINS)
    else:
        counted = tl.zeros([flat.BINS], tl.int32)
    for start in tl.range(0, num_slots, flat.TILE):
        slots = start + tl.arange(0, flat.TILE)
        experts, kept = load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat)
        if not flat.ALL_BINS:
            experts -= first
            kept = kept & (experts >= 0) & (experts < flat.BINS)
        if flat.SHARED:
            count_into_bins(address, experts, kept)
        else:
            counted += tl.histogram(tl.where(kept, experts, 0), flat.BINS, mask=kept)
    if flat.SHARED:
        tl.debug_barrier()
        known = (wanted >= 0) & (wanted < flat.BINS)
        return load_bins(address, bins), tl.where(known, load_bins(address, tl.where(known, wanted, 0)), 0)
    else:
        return counted, tl.sum(tl.where(bins[:, None] == wanted[None, :], counted[:, None], 0), axis=0)


@triton.jit
def _starts_and_end(packed):
    """What the earlier regions of each expert take, and what all take, by one sum."""
    sums = tl.sum(packed, axis=0)
    return sums.to(tl.int32), tl.max((sums >> 32).to(tl.int32), axis=0)


@triton.jit
def _write_regions(slots_ptr, weights_ptr, num_slots, num_experts, first, starts, counts, flat, N: tl.constexpr):
    """Write what the regions of N experts from ``first`` on hold beside their slots."""
    experts = first + tl.arange(0, N)
    owned = experts < num_experts
    if flat.offsets is not None:
        tl.store(flat.offsets + experts, starts, mask=owned)
    else:
        LANES: tl.constexpr = _LANES // N
        lanes = tl.arange(0, LANES)[None, :]
        sizes = tl.where(owned, _padded(counts, flat), 0)
        for start in tl.range(0, tl.max(sizes - counts, axis=0), LANES):
            ranks = counts[:, None] + start + lanes
            padding = ranks < sizes[:, None]
            tl.store(slots_ptr + starts[:, None] + ranks, num_slots, mask=padding)
            if weights_ptr is not None:
                tl.store(weights_ptr + starts[:, None] + ranks, 0.0, mask=padding)
        if flat.labels is not None:
            labels = tl.load(flat.labels + experts, mask=owned, other=-1)
        else:
            labels = experts + flat.FIRST_ID
        blocks = sizes // flat.BLOCK
        for start in tl.range(0, tl.max(blocks, axis=0), LANES):
            block = start + lanes
            places = (starts // flat.BLOCK)[:, None] + block
            tl.store(flat.expert_ids + places, labels[:, None], mask=block < blocks[:, None])


@triton.jit
def _write_tail(slots_ptr, weights_ptr, num_slots, num_experts, end, flat):
    """Write this program's share of what lies past the last region, and, in one program, where that is."""
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    # 64 bits, because the last step may lead past 2**31.
    first = program.to(tl.int64) * _LANES
    step = tl.num_programs(0) * tl.num_programs(1) * _LANES
    for start in tl.range(end + first, flat.capacity, step):
        places = start + tl.arange(0, _LANES)
        tl.store(slots_ptr + places, num_slots, mask=places < flat.capacity)
        if weights_ptr is not None:
            tl.store(weights_ptr + places, 0.0, mask=places < flat.capacity)
    if flat.expert_ids is not None:
        for start in tl.range(end // flat.BLOCK + first, flat.num_blocks, step):
            places = start + tl.arange(0, _LANES)
            tl.store(flat.expert_ids + places, -1, mask=places < flat.num_blocks)
    if program == 0:
        if flat.offsets is not None:
            tl.store(flat.offsets + num_experts, end)
        else:
            tl.store(flat.num_tokens_post_padded, end)


@triton.jit
def lay_out(layout, first, flat, EXPERT_BLOCK: tl.constexpr):
    """Complete the regions of this program, those of EXPERT_BLOCK experts from ``first`` on.

    ``layout``: ids, slots and weights to write, num_slots, num_experts. Returns their starts. The order of programs is
    that of their experts; grid: one axis.
    """
    topk_ids_ptr, slots_ptr, weights_ptr, num_slots, num_experts = layout
    experts = first + tl.arange(0, EXPERT_BLOCK)
    if flat.offsets is not None:
        starts, end = _count_smaller(topk_ids_ptr, num_slots, num_experts, first, flat, EXPERT_BLOCK)
        counts = starts  # without padding, not looked at
    else:
        starts, counts, end = _count_all(topk_ids_ptr, num_slots, num_experts, experts, flat)
    _write_regions(slots_ptr, weights_ptr, num_slots, num_experts, first, starts, counts, flat, EXPERT_BLOCK)
    _write_tail(slots_ptr, weights_ptr, num_slots, num_experts, end, flat)
    return starts


@triton.jit
def starts_of(starts, experts, EXPERT_BLOCK: tl.constexpr):
    """The start of each expert's region, ``experts`` counted from the program's first on; of starts [EXPERT_BLOCK]."""
    if EXPERT_BLOCK > 4:
        flat = tl.reshape(experts, [experts.numel])
        return tl.reshape(tl.gather(starts, flat, axis=0), experts.shape)
    else:
        # Without shared memory, which a gather would go through.
        found = tl.zeros(experts.shape, tl.int32)
        for expert in tl.static_range(EXPERT_BLOCK):
            start = tl.sum(tl.where(tl.arange(0, EXPERT_BLOCK) == expert, starts, 0), axis=0)
            found = tl.where(experts == expert, start, found)
        return found


@triton.jit
def load_and_lay_out(counts_ptr, slots_ptr, weights_ptr, num_slots, num_experts, first, flat, BINS: tl.constexpr):
    """Load all counts, and complete this program's share of the regions of BINS experts from ``first`` on.

    Returns the starts of all BINS. Programs along the grid's first axis have the same bins, and share them.
    """
    bins = tl.arange(0, BINS)
    before = tl.zeros([], tl.int32)
    end = tl.zeros([], tl.int32)
    for first_bin in tl.range(0, num_experts, BINS):
        experts = first_bin + bins
        # Read once, so past the L1 cache.
        counts = tl.load(counts_ptr + experts, mask=experts < num_experts, other=0, cache_modifier=".cg")
        size = tl.sum(_padded(counts, flat), axis=0)
        before += tl.where(first_bin < first, size, 0)
        end += size
    experts = first + bins
    counts = tl.load(counts_ptr + experts, mask=experts < num_experts, other=0, cache_modifier=".cg")
    sizes = _padded(counts, flat)
    starts = before + tl.cumsum(sizes, axis=0) - sizes
    for start in tl.range(tl.program_id(0) * _REGIONS, BINS, tl.num_programs(0) * _REGIONS):
        local = start + tl.arange(0, _REGIONS)
        _write_regions(
            slots_ptr,
            weights_ptr,
            num_slots,
            num_experts,
            first + start,
            tl.gather(starts, local, axis=0),
            tl.gather(counts, local, axis=0),
            flat,
            _REGIONS,
        )
    _write_tail(slots_ptr, weights_ptr, num_slots, num_experts, end, flat)
    return starts

"""Regions of the flat layouts (blocks, offsets): where they start, and what is in them beside slots.

A flat layout holds one region per expert, in the order of experts, each padded to whole blocks; offsets are blocks of
one slot. A slot's place is the start of its expert's region plus its rank, which is what the strategies compute. A
start is the sum of the sizes of all earlier regions, so every program looks at all counts, and nothing is passed on
between programs: those that stream all slots count them once more, by a histogram in shared memory; the tiles have
the counts of their second launch.

Every element is written once: slots by those who rank them; padding, labels and offsets of an expert by one program;
what lies past the last region by all programs in turns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from moe_align.layouts import Regions

# Elements of a store, and regions that a program completes at a time if it shares them.
_LANES, _REGIONS = tl.constexpr(128), tl.constexpr(4)
# Experts counted at a time: a warp counts them in registers, a 32nd part in each lane.
_MAX_BINS = 512
# Slots counted at a time: by each warp no fewer than it has lanes, because a histogram must see each id in one thread
# only; and no more than there are registers for.
_MIN_TILE, _WARP_TILE, _MAX_TILE = 64, 256, 2048


class Flat(NamedTuple):
    """What a kernel takes beside the arguments of the row layout."""

    expert_ids: Any  # out: int32 [num_blocks], every element written; None for offsets
    num_tokens_post_padded: Any  # out: int32 [1]; None for offsets
    offsets: Any  # out: int32 [num_experts + 1], every element written; None for blocks
    expert_map: Any  # in: int32 [num_experts], global to local expert; None if ids are experts
    labels: Any  # in: int32 [num_experts], what expert_ids call an expert; None if by its id
    capacity: Any  # elements of the slots
    num_blocks: Any  # elements of expert_ids
    FIRST_ID: Any  # id of expert 0
    BLOCK: Any  # slots of a block
    BINS: Any  # experts counted at a time; only for `count_and_lay_out`
    TILE: Any  # slots counted at a time; likewise


def argument(out: Regions, num_warps: int = 1, tile: int = _MIN_TILE) -> Flat:
    """The argument of a launch with ``num_warps`` whose programs count about ``tile`` slots at a time."""
    # At least a warp's width: a histogram has no fewer bins.
    bins = min(max(64, triton.next_power_of_2(out.num_experts)), _MAX_BINS)
    tile = min(triton.next_power_of_2(tile), num_warps * _WARP_TILE, _MAX_TILE)
    return Flat(
        out.expert_ids,
        out.num_tokens_post_padded,
        out.offsets,
        out.expert_map,
        out.labels,
        out.slots.numel(),
        0 if out.expert_ids is None else out.expert_ids.numel(),
        FIRST_ID=tl.constexpr(out.first_id),
        BLOCK=tl.constexpr(out.block_size),
        BINS=tl.constexpr(bins),
        TILE=tl.constexpr(max(tile, num_warps * _MIN_TILE)),
    )


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
def _count_bins(topk_ids_ptr, num_slots, num_experts, first, flat):
    """Slots of each of BINS experts from ``first`` on."""
    counts = tl.zeros([flat.BINS], tl.int32)
    for start in tl.range(0, num_slots, flat.TILE):
        slots = start + tl.arange(0, flat.TILE)
        ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
        ids = experts_of(ids, slots < num_slots, num_experts, flat)
        kept = (ids >= first) & (ids < tl.minimum(first + flat.BINS, num_experts))
        counts += tl.histogram(tl.where(kept, ids - first, 0).to(tl.int32), flat.BINS, mask=kept)
    return counts


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
def count_and_lay_out(
    topk_ids_ptr, slots_ptr, weights_ptr, num_slots, num_experts, first, flat, EXPERT_BLOCK: tl.constexpr
):
    """Count all slots, and complete the regions of this program, those of EXPERT_BLOCK experts from ``first`` on.

    Returns their starts. The order of programs is that of their experts; grid: one axis.
    """
    experts = first + tl.arange(0, EXPERT_BLOCK)
    starts = tl.zeros([EXPERT_BLOCK], tl.int32)
    counts = tl.zeros([EXPERT_BLOCK], tl.int32)
    end = tl.zeros([], tl.int32)
    for first_bin in tl.range(0, num_experts, flat.BINS):
        bins = _count_bins(topk_ids_ptr, num_slots, num_experts, first_bin, flat)
        sizes = _padded(bins, flat)
        inside = (experts >= first_bin) & (experts < first_bin + flat.BINS)
        local = tl.where(inside, experts - first_bin, 0)
        starts += tl.where(inside, end + tl.gather(tl.cumsum(sizes, axis=0) - sizes, local, axis=0), 0)
        counts += tl.where(inside, tl.gather(bins, local, axis=0), 0)
        end += tl.sum(sizes, axis=0)
    _write_regions(slots_ptr, weights_ptr, num_slots, num_experts, first, starts, counts, flat, EXPERT_BLOCK)
    _write_tail(slots_ptr, weights_ptr, num_slots, num_experts, end, flat)
    return starts


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
        # Past the L1 cache, which may hold what an earlier launch left there.
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

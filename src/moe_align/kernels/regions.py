"""Regions of the flat layouts (blocks, offsets): where they start, and what is in them beside slots.

A flat layout holds one region per expert, in the order of experts, each padded to whole blocks; offsets are blocks of
one slot. A slot's place is the start of its expert's region plus its rank, which is what the strategies compute. A
start is the sum of the sizes of all earlier regions. Programs that stream all slots count them once more: without
padding, those of smaller experts. With padding they need the slots of every expert: by a histogram in shared memory,
or, where that takes longer than a launch, from a launch that counts them, beside which, on NVIDIA GPUs from Hopper on,
they rank. The tiles have the counts of their second launch. Blocks of few slots need none of this; see `pairs`.

Every element is written once: slots by those who rank them; padding, labels and offsets of an expert by one program;
what lies past the last region by all programs in turns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from moe_align.kernels.launch import Call, Launch, Plan, begin, wait

# Elements of a store, and regions that a program completes at a time if it shares them.
_LANES, _REGIONS = tl.constexpr(128), tl.constexpr(4)
# What a program counts by a histogram at most: slots, experts, and slots * experts. Else a launch counts.
_MAX_SLOTS, _MAX_EXPERTS, _MAX_WORK = 2048, 512, 2**19
# Counts of experts that are loaded at a time.
_MAX_BINS = 1024
# Slots counted at a time: by each warp no fewer than it has lanes, because a histogram must see each id in one thread
# only; and no more than there are registers for.
_MIN_TILE, _WARP_TILE, _MAX_TILE = 64, 256, 2048
# Of the launch that counts: slots at a time, and experts of a program, at most.
_COUNT_TILE, _COUNT_EXPERTS = 2048, 8


def _counted_apart(call: Call) -> bool:
    """Whether slots are counted by a launch of their own."""
    if call.flat is None or call.flat.has_offsets:
        return False
    work = call.num_slots * call.num_experts
    return call.num_slots > _MAX_SLOTS or call.num_experts > _MAX_EXPERTS or work > _MAX_WORK


class _Counting(NamedTuple):
    """The end of `launch.Flat`: how programs that stream all slots count them; others need not know."""

    bins: int | None = None
    tile: int | None = None
    apart: bool = False


def constants(call: Call, counting: _Counting = _Counting()) -> tuple[Any, ...] | None:  # noqa: B008  (immutable)
    """What `launch.Flat` holds after its tensors; None for rows."""
    if call.flat is None:
        return None
    shape = (call.flat.first_id, call.flat.block_size, *counting)
    return call.flat.capacity, call.flat.num_blocks, *map(tl.constexpr, shape)


def _counting(call: Call, num_warps: int, tile: int) -> _Counting:
    """How programs count that take about ``tile`` slots at a time."""
    tile = max(min(triton.next_power_of_2(tile), num_warps * _WARP_TILE, _MAX_TILE), num_warps * _MIN_TILE)
    if call.flat is not None and call.flat.has_offsets:
        # No histogram, so no more than there are.
        tile = min(tile, max(triton.next_power_of_2(call.num_slots), 16))
    # At least a warp's width: a histogram has no fewer bins.
    bins = min(max(64, triton.next_power_of_2(call.num_experts)), _MAX_BINS)
    return _Counting(bins, tile, _counted_apart(call))


def plan(call: Call, launch: Launch, *, tile: int, workspace: int = 0) -> Plan:
    """A plan of one launch, after another that counts the slots of every expert where that is faster.

    Args:
        call: what to plan for.
        launch: the launch of a strategy whose programs read all slots.
        tile: slots that its programs count at a time, about.
        workspace: int32 elements that it needs; the counts come after these.
    """
    flat = constants(call, _counting(call, launch.options["num_warps"], tile))
    if not _counted_apart(call):
        return Plan([launch], workspace, flat=flat)
    # As many programs as a GPU has multiprocessors, and no more: each reads all ids.
    experts = min(max(triton.next_power_of_2(call.num_experts) // 128, 1), _COUNT_EXPERTS)
    slots = min(triton.next_power_of_2(max(call.num_slots, 1)), _COUNT_TILE)
    count = Launch(
        count_experts_kernel,
        (triton.cdiv(call.num_experts, experts),),
        {"offset": workspace, "TILE": slots, "EXPERTS": experts},
        {"num_warps": max(1, min(slots // 128, 8))},
    )
    return Plan([count, launch], workspace + call.num_experts, flat=flat)


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
def _count_smaller(topk_ids_ptr, num_slots, num_experts, experts, flat, EXPERTS: tl.constexpr):
    """Slots of experts smaller than each of ``experts``, and of all: where regions without padding start and end."""
    # Summed over threads only once, and unrolled, so that loads do not wait for one another.
    smaller = tl.zeros([flat.TILE, EXPERTS], tl.int32)
    all_valid = tl.zeros([flat.TILE], tl.int32)
    for start in tl.range(0, num_slots, flat.TILE, loop_unroll_factor=4):
        slots = start + tl.arange(0, flat.TILE)
        of_slots, valid = load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat)
        smaller += (of_slots[:, None] < experts[None, :]).to(tl.int32)
        all_valid += valid.to(tl.int32)
    return tl.sum(smaller, axis=0), tl.sum(all_valid, axis=0)


@triton.jit
def _count_bins(topk_ids_ptr, num_slots, num_experts, experts, flat):
    """Starts of ``experts``, their slots, and the end of all regions, by counting the slots of every expert."""
    counted = tl.zeros([flat.BINS], tl.int32)
    for start in tl.range(0, num_slots, flat.TILE):
        slots = start + tl.arange(0, flat.TILE)
        of_slots, valid = load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat)
        counted += tl.histogram(tl.where(valid, of_slots, 0), flat.BINS, mask=valid)
    sizes = _padded(counted, flat)
    local = tl.minimum(experts, flat.BINS - 1)
    starts = tl.gather(tl.cumsum(sizes, axis=0) - sizes, local, axis=0)
    return starts, tl.gather(counted, local, axis=0), tl.sum(sizes, axis=0)


@triton.jit
def _load_counts(counts_ptr, num_experts, experts, flat, OVERLAP: tl.constexpr):
    """Likewise, from the counts of all experts that another launch has made."""
    starts = tl.zeros(experts.shape, tl.int32)
    counts = tl.zeros(experts.shape, tl.int32)
    end = tl.zeros([], tl.int32)
    wait(OVERLAP)
    for first in tl.range(0, num_experts, flat.BINS):
        bins = first + tl.arange(0, flat.BINS)
        # Read once, so past the L1 cache.
        counted = tl.load(counts_ptr + bins, mask=bins < num_experts, other=0, cache_modifier=".cg")
        sizes = _padded(counted, flat)
        inside = (experts >= first) & (experts < first + flat.BINS)
        local = tl.where(inside, experts - first, 0)
        starts += tl.where(inside, end + tl.gather(tl.cumsum(sizes, axis=0) - sizes, local, axis=0), 0)
        counts += tl.where(inside, tl.gather(counted, local, axis=0), 0)
        end += tl.sum(sizes, axis=0)
    return starts, counts, end


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
def count_experts_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    workspace_ptr,  # out: int32 [num_experts] at ``offset``, every element written
    num_slots,
    num_experts,
    offset,
    TILE: tl.constexpr,
    EXPERTS: tl.constexpr,
    OVERLAP: tl.constexpr,
    flat,  # launch.Flat
):
    """Count the slots of EXPERTS experts. Grid: (cdiv(num_experts, EXPERTS),). No atomics."""
    begin(OVERLAP)
    experts = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    hits = tl.zeros([TILE, EXPERTS], tl.int32)
    for start in tl.range(0, num_slots, TILE, loop_unroll_factor=4):
        slots = start + tl.arange(0, TILE)
        of_slots = load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat)[0]
        hits += (of_slots[:, None] == experts[None, :]).to(tl.int32)
    tl.store(workspace_ptr + offset + experts, tl.sum(hits, axis=0), mask=experts < num_experts)


@triton.jit
def lay_out(layout, first, flat, EXPERT_BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Complete the regions of this program, those of EXPERT_BLOCK experts from ``first`` on.

    ``layout``: ids, counts where they are counted apart, slots and weights to write, num_slots, num_experts.
    Returns their starts. The order of programs is that of their experts; grid: one axis. What does not depend on the
    starts should be done before, because another launch may still be counting.
    """
    topk_ids_ptr, counts_ptr, slots_ptr, weights_ptr, num_slots, num_experts = layout
    experts = first + tl.arange(0, EXPERT_BLOCK)
    if flat.offsets is not None:
        starts, end = _count_smaller(topk_ids_ptr, num_slots, num_experts, experts, flat, EXPERT_BLOCK)
        counts = starts  # without padding, not looked at
    elif flat.APART:
        starts, counts, end = _load_counts(counts_ptr, num_experts, experts, flat, OVERLAP)
    else:
        starts, counts, end = _count_bins(topk_ids_ptr, num_slots, num_experts, experts, flat)
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

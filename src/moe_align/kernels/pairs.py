"""Pairs: blocks of few slots. A program owns a few places, not experts, and compares each slot with each.

A slot's rank is the number of earlier slots of its expert. Where that is a multiple of the block size, the slot opens a
block. Blocks are in the order of experts, so a slot's block comes after all that slots of smaller experts open, and
after the full ones of its own. That takes two comparisons a pair, and every program makes them all. Then each of its
places looks for the slot that has it, or each of its blocks for the slot that opens it; where there is none, it is
padding, or past the last block. So every element is written once, and neighbours by one store.

One launch, no atomics, nothing to zero. Work grows with the square of the slots, and with slots * places, which is what
programs share; the number of experts does not matter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.kernels.launch import Call, Launch, Plan, begin

#: Slots at most: a thread compares a place with all of them.
MAX_SLOTS = 64
# Slots, and places, for each warp of a program: one a lane where a warp has 32.
_WARP_SLOTS, _WARP_PLACES = 32, 32


@triton.jit
def _compare_pairs(experts, num_experts, flat, SLOTS: tl.constexpr):
    """Rank and block of each slot, its expert if it opens the block, else num_experts, and the number of blocks."""
    slots = tl.arange(0, SLOTS)
    earlier = (experts[:, None] == experts[None, :]) & (slots[:, None] < slots[None, :])
    ranks = tl.sum(earlier.to(tl.int32), axis=0)
    opened = tl.where(ranks % flat.BLOCK == 0, experts, num_experts)
    # The sign of a difference, because comparisons would be packed into bits to be summed.
    smaller = -tl.sum((opened[:, None] - experts[None, :]) >> 31, axis=0)
    return ranks, smaller + ranks // flat.BLOCK, opened, tl.sum((opened < num_experts).to(tl.int32), axis=0)


@triton.jit
def _find(numbers, wanted, slots, num_slots):
    """The slot that has each wanted number; num_slots where none has. Only negative numbers are had by several."""
    found = tl.sum(tl.where(numbers[:, None] == wanted[None, :], slots[:, None] + 1, 0), axis=0)
    return tl.where(found == 0, num_slots, found - 1)


@triton.jit
def align_blocks_pairs_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; None if there are no weights
    slot_index_ptr,  # out: int32 [capacity], every element written
    weights_ptr,  # out: float, likewise; None if there are no weights
    num_slots,
    num_experts,
    place_programs,  # programs that own places, the first ones; the others own blocks
    SLOTS: tl.constexpr,  # at least num_slots
    PLACES: tl.constexpr,  # places, or blocks, of a program
    OVERLAP: tl.constexpr,
    flat,  # launch.Flat
):
    """Write PLACES places or blocks. Grid: (place_programs + cdiv(num_blocks, PLACES),), at least one. No atomics."""
    begin(OVERLAP)
    program = tl.program_id(0)
    slots = tl.arange(0, SLOTS)
    experts, valid = regions.load_experts(topk_ids_ptr, slots, num_slots, num_experts, flat)
    ranks, blocks, opened, used_blocks = _compare_pairs(experts, num_experts, flat, SLOTS)
    if program < place_programs:
        first = program * PLACES
        numbers = tl.where(valid, blocks * flat.BLOCK + ranks % flat.BLOCK, -1)
    else:
        first = (program - place_programs) * PLACES
        numbers = tl.where(opened < num_experts, blocks, -1)
    # Relative to the first, because the last may reach past 2**31.
    local = tl.arange(0, PLACES)
    found = _find(numbers - first, local, slots, num_slots)
    if program < place_programs:
        owned = local < flat.capacity - first
        tl.store(slot_index_ptr + first + local, found, mask=owned)
        if topk_weights_ptr is not None:
            weights = tl.load(topk_weights_ptr + found, mask=found < num_slots, other=0)
            tl.store(weights_ptr + first + local, weights, mask=owned)
    else:
        # From the L1 cache.
        owners, used = regions.load_experts(topk_ids_ptr, found, num_slots, num_experts, flat)
        if flat.labels is not None:
            labels = tl.load(flat.labels + owners, mask=used, other=-1)
        else:
            labels = tl.where(used, owners + flat.FIRST_ID, -1)
        tl.store(flat.expert_ids + first + local, labels, mask=local < flat.num_blocks - first)
    if program == 0:
        tl.store(flat.num_tokens_post_padded, used_blocks * flat.BLOCK)


def serves(call: Call) -> bool:
    """Whether the call is for blocks of few slots."""
    return call.flat is not None and not call.flat.has_offsets and call.num_slots <= MAX_SLOTS


def plan(call: Call) -> Plan:
    """One launch."""
    assert call.flat is not None
    lanes = max(triton.next_power_of_2(call.num_slots), 16)
    num_warps = max(lanes // _WARP_SLOTS, 1)
    places = num_warps * _WARP_PLACES
    place_programs = triton.cdiv(call.flat.capacity, places)
    constants = {"place_programs": place_programs, "SLOTS": lanes, "PLACES": places}
    grid = (max(place_programs + triton.cdiv(call.flat.num_blocks, places), 1),)
    launch = Launch(align_blocks_pairs_kernel, grid, constants, {"num_warps": num_warps})
    return Plan([launch], flat=regions.constants(call))

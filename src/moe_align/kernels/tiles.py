"""Tiles: count each tile of slots, sum the counts over tiles, place each tile. Work grows with num_slots alone.

Three launches: count the slots of every expert in every tile; replace each tile's counts by the sums over the tiles
before it, which also gives the counts of the call; place each tile's slots. Inside a tile, steps of a few slots follow
one another: a slot's rank is its expert's sum so far, plus the slots of its step before it with the same expert, found
by comparing all pairs. No atomics on global memory; the histograms add integers in shared memory, so what they return
does not depend on the order.

On NVIDIA GPUs from Hopper on, a launch starts while the one before ends (programmatic dependent launch) and waits for
its results inside the kernel.

Source: partial counts, a scan and an ordered placement are how triton_kernels routes; what is in them is not.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from moe_align.kernels import regions
from moe_align.layouts import Regions, Rows

#: Experts that one program handles; more are handled by further programs.
_MAX_BINS = 512
#: Experts that one program sums at most: 32 bytes of a row, which is what memory delivers at once.
MAX_SUM_EXPERTS = 8
#: Tiles summed at a time.
_SUM_TILES = 512


@triton.jit
def _load_local_ids(topk_ids_ptr, slots, num_slots, num_experts, BINS: tl.constexpr, FLAT: tl.constexpr, flat):
    """Ids counted from the first expert of this program's bins, and which of them fall into the bins."""
    first = tl.program_id(1) * BINS
    ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
    if FLAT:
        ids = regions.experts_of(ids, slots < num_slots, num_experts, flat)
    kept = (ids >= first) & (ids < tl.minimum(first + BINS, num_experts))
    return tl.where(kept, ids - first, 0).to(tl.int32), kept


@triton.jit
def _load_step(source, first_slot, STEP: tl.constexpr, BINS: tl.constexpr, FLAT: tl.constexpr):
    """A step's slots, local ids, which of them are kept, weights, and ranks within the step; all [STEP]."""
    topk_ids_ptr, topk_weights_ptr, num_slots, num_experts, flat = source
    in_step = tl.arange(0, STEP)
    slots = first_slot + in_step
    ids, kept = _load_local_ids(topk_ids_ptr, slots, num_slots, num_experts, BINS, FLAT, flat)
    if topk_weights_ptr is not None:
        weights = tl.load(topk_weights_ptr + slots, mask=kept, other=0)
    else:
        # Not looked at.
        weights = slots
    # Dropped slots count for nobody: they look like no expert to the others.
    others = tl.where(kept, ids, -1)
    earlier = (others[:, None] == ids[None, :]) & (in_step[:, None] < in_step[None, :])
    return slots, ids, kept, weights, tl.sum(earlier.to(tl.int32), axis=0)


@triton.jit
def count_tiles_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    tile_counts_ptr,  # out: int32 [num_tiles, row_size], row_size >= num_experts, every element written
    num_slots,
    num_experts,
    row_size,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # regions.Flat in a flat layout
):
    """Count the slots of BINS experts in a tile. Grid: (num_tiles, row_size // BINS). Atomic counts at most."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    slots = tl.program_id(0) * TILE + tl.arange(0, TILE)
    ids, kept = _load_local_ids(topk_ids_ptr, slots, num_slots, num_experts, BINS, FLAT, flat)
    bins = tl.arange(0, BINS)
    row_ptr = tile_counts_ptr + tl.program_id(0).to(tl.int64) * row_size + tl.program_id(1) * BINS
    tl.store(row_ptr + bins, tl.histogram(ids, BINS, mask=kept))


@triton.jit
def sum_tiles_kernel(
    tile_counts_ptr,  # in, out: int32 [num_tiles, row_size]; counts on entry, sums over earlier tiles on exit
    counts_ptr,  # out: int32 [num_experts], every element written
    num_tiles,
    num_experts,
    row_size,
    TILES: tl.constexpr,
    EXPERTS: tl.constexpr,
    ONE_PASS: tl.constexpr,  # whether TILES covers all tiles
    OVERLAP: tl.constexpr,
):
    """Sum the tiles' counts of EXPERTS experts. Grid: (row_size // EXPERTS,). No atomics."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    experts = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    sums = tl.zeros([EXPERTS], dtype=tl.int32)
    end = TILES if ONE_PASS else num_tiles
    for start in tl.range(0, end, TILES):
        tiles = start + tl.arange(0, TILES)[:, None]
        tile_ptr = tile_counts_ptr + tiles.to(tl.int64) * row_size + experts[None, :]
        # Past the L1 cache, which may hold what an earlier launch left there.
        counts = tl.load(tile_ptr, mask=tiles < num_tiles, other=0, cache_modifier=".cg")
        tl.store(tile_ptr, sums[None, :] + tl.cumsum(counts, axis=0) - counts, mask=tiles < num_tiles)
        sums += tl.sum(counts, axis=0)
    tl.store(counts_ptr + experts, sums, mask=experts < num_experts)


@triton.jit
def place_tiles_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]; of a flat layout, None if there are no weights
    tile_starts_ptr,  # in: int32 [num_tiles, row_size], slots of each expert in earlier tiles; flat: then, in all tiles
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count; flat: [capacity], all written
    weights_ptr,  # out: float, likewise; None if there are no weights
    num_slots,
    num_experts,
    row_size,
    STEP: tl.constexpr,
    STEPS: tl.constexpr,
    BINS: tl.constexpr,
    OVERLAP: tl.constexpr,
    FLAT: tl.constexpr = False,
    flat=None,  # regions.Flat in a flat layout
):
    """Place a tile's slots of BINS experts. Grid: (num_tiles, row_size // BINS). Atomic counts at most."""
    first_slot = tl.program_id(0) * (STEPS * STEP)
    # What does not depend on the sums is under way before they are waited for.
    source = (topk_ids_ptr, topk_weights_ptr, num_slots, num_experts, flat)
    step = _load_step(source, first_slot, STEP, BINS, FLAT)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    row_ptr = tile_starts_ptr + tl.program_id(0).to(tl.int64) * row_size + tl.program_id(1) * BINS
    starts = tl.load(row_ptr + tl.arange(0, BINS), cache_modifier=".cg")
    if FLAT:
        counts_ptr = tile_starts_ptr + tl.num_programs(0).to(tl.int64) * row_size
        starts += regions.load_and_lay_out(
            counts_ptr, slot_index_ptr, weights_ptr, num_slots, num_experts, tl.program_id(1) * BINS, flat, BINS
        )
    for i in tl.range(0, STEPS):
        slots, ids, kept, weights, ranks = step
        places = tl.gather(starts, ids, axis=0) + ranks
        if not FLAT:
            places += (tl.program_id(1) * BINS + ids).to(tl.int64) * num_slots
        tl.store(slot_index_ptr + places, slots, mask=kept)
        if topk_weights_ptr is not None:
            tl.store(weights_ptr + places, weights, mask=kept)
        if STEPS > 1:
            starts += tl.histogram(ids, BINS, mask=kept)
            # The last one has no next: all of its slots are out of bounds.
            next_slot = tl.where(i + 1 < STEPS, first_slot + (i + 1) * STEP, num_slots)
            step = _load_step(source, next_slot, STEP, BINS, FLAT)


def align_rows(topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, run_config: dict[str, int]) -> None:
    """Launch the three kernels; arguments are checked by `moe_align.api`."""
    _launch(topk_ids, topk_weights, out.slot_index, out.weights, out.counts, out.counts.numel(), run_config)


def align_flat(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, out: Regions, run_config: dict[str, int]
) -> None:
    """Launch the three kernels for a flat layout; arguments are checked by `moe_align.api`."""
    flat = regions.argument(out)
    _launch(topk_ids, topk_weights, out.slots, out.weights, None, out.num_experts, run_config, FLAT=True, flat=flat)


def _launch(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    slots: torch.Tensor,
    weights: torch.Tensor | None,
    counts: torch.Tensor | None,
    num_experts: int,
    run_config: dict[str, int],
    **layout: Any,
) -> None:
    num_slots = topk_ids.numel()
    # No narrower than its warps: a histogram must see each id in one thread only.
    step = max(run_config["BLOCK_SIZE"], 32)
    num_warps = min(run_config["num_warps"], step // 32)
    steps = run_config["STEPS"]
    tile = step * steps
    num_tiles = max(1, triton.cdiv(num_slots, tile))
    # At least a warp's width: a histogram has no fewer bins.
    bins = min(max(32, triton.next_power_of_2(num_experts)), _MAX_BINS)
    row_size = triton.cdiv(num_experts, bins) * bins
    # With a row for the counts, unless they are an output.
    table = torch.empty((num_tiles + (counts is None), row_size), dtype=torch.int32, device=topk_ids.device)
    overlap = _can_overlap(topk_ids.device)
    waits = {"launch_pdl": True} if overlap else {}
    grid = (num_tiles, row_size // bins)
    count_tiles_kernel[grid](
        topk_ids,
        table,
        num_slots,
        num_experts,
        row_size,
        TILE=tile,
        BINS=bins,
        OVERLAP=overlap,
        num_warps=max(1, min(tile // 128, 8)),
        **layout,
    )
    sum_tiles = min(_SUM_TILES, max(16, triton.next_power_of_2(num_tiles)))
    sum_tiles_kernel[(row_size // run_config["SUM_EXPERTS"],)](
        table,
        table[num_tiles] if counts is None else counts,
        num_tiles,
        num_experts,
        row_size,
        TILES=sum_tiles,
        EXPERTS=run_config["SUM_EXPERTS"],
        ONE_PASS=num_tiles <= sum_tiles,
        OVERLAP=overlap,
        num_warps=4,
        **waits,
    )
    place_tiles_kernel[grid](
        topk_ids,
        topk_weights,
        table,
        slots,
        weights,
        num_slots,
        num_experts,
        row_size,
        STEP=step,
        STEPS=steps,
        BINS=bins,
        OVERLAP=overlap,
        num_warps=num_warps,
        **layout,
        **waits,
    )


@functools.lru_cache
def _can_overlap(device: torch.device) -> bool:
    """Whether the GPU starts a launch before the one it depends on has ended."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)

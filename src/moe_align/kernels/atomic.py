"""Atomic: the baseline that the deterministic strategies replace.

Every slot takes the next place of its expert from an atomic cursor, which ends up as the count. The *counts* are
deterministic, the *positions* are not: the order inside an expert is the order in which the GPU happened to serve the
additions. Two launches (zero the cursors, place the slots), or one when a single program takes all slots and can zero
them itself.

Source: the cursor kernel of LightLLM's `moe_align_fused`; ids outside the range are dropped here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe_align.kernels.launch import Call, Launch, Plan, begin


@triton.jit
def align_rows_atomic_kernel(
    topk_ids_ptr,  # in: int32 or int64 [num_slots]
    topk_weights_ptr,  # in: float [num_slots]
    slot_index_ptr,  # out: int32 [num_experts, num_slots], written where rank < count
    weights_ptr,  # out: float [num_experts, num_slots], likewise
    counts_ptr,  # in, out: int32 [num_experts], zero on entry unless ZERO_COUNTS
    num_slots,
    num_experts,
    BLOCK_SIZE: tl.constexpr,
    ZERO_COUNTS: tl.constexpr,  # only with a single program
    OVERLAP: tl.constexpr,
):
    """Place BLOCK_SIZE slots. Grid: (cdiv(num_slots, BLOCK_SIZE),). Atomic positions."""
    begin(OVERLAP)
    if ZERO_COUNTS:
        for start in range(0, num_experts, BLOCK_SIZE):
            experts = start + tl.arange(0, BLOCK_SIZE)
            tl.store(counts_ptr + experts, 0, mask=experts < num_experts)
        tl.debug_barrier()
    slots = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)
    kept = (ids >= 0) & (ids < num_experts)
    weights = tl.load(topk_weights_ptr + slots, mask=kept, other=0)
    ranks = tl.atomic_add(counts_ptr + ids, 1, mask=kept, sem="relaxed")
    places = ids.to(tl.int64) * num_slots + ranks
    tl.store(slot_index_ptr + places, slots, mask=kept)
    tl.store(weights_ptr + places, weights, mask=kept)


def plan(call: Call, run_config: dict[str, int]) -> Plan:
    """One launch, after the counts are zeroed unless it does that."""
    # At least one program, so that the counts are zeroed when there are no slots.
    num_programs = max(1, triton.cdiv(call.num_slots, run_config["BLOCK_SIZE"]))
    constants = {"BLOCK_SIZE": run_config["BLOCK_SIZE"], "ZERO_COUNTS": num_programs == 1}
    options = {"num_warps": run_config["num_warps"]}
    launch = Launch(align_rows_atomic_kernel, (num_programs,), constants, options)
    return Plan([launch], zero_counts=num_programs > 1)

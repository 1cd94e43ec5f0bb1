"""Block schedule: turn counts per expert into the list of GEMM blocks.

Each program sums what lies before its expert (blocks and slots) and writes the expert's blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def schedule_blocks_kernel(
    counts_ptr,  # in: int32 [num_experts]
    schedule_ptr,  # out: int32 [capacity, 3] (expert, block, start), every element written
    num_experts,
    capacity,
    block_size,
    EXPERTS: tl.constexpr,  # power of two, at least num_experts
    TILE: tl.constexpr,
):
    """Write the blocks of one expert; the last program pads with -1. Grid: (num_experts,). No atomics."""
    expert = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    counts = tl.load(counts_ptr + experts, mask=experts <= expert, other=0)
    # Rounded up without adding block_size, which may be close to 2**31.
    blocks = tl.where(counts > 0, (counts - 1) // block_size + 1, 0)
    own = experts == expert
    num_blocks = tl.sum(tl.where(own, blocks, 0))
    # 64 bits, because the counts may be anything; blocks that do not fit the capacity are cut off.
    first_slot = tl.sum(tl.where(own, 0, counts).to(tl.int64))
    end_block = tl.sum(blocks.to(tl.int64))
    first_block = tl.minimum(end_block - num_blocks, capacity).to(tl.int32)
    end_block = tl.minimum(end_block, capacity).to(tl.int32)
    for start in range(0, end_block - first_block, TILE):
        block = start + tl.arange(0, TILE)
        kept = first_block + block < end_block
        row_ptr = schedule_ptr + (first_block + block).to(tl.int64) * 3
        tl.store(row_ptr, expert, mask=kept)
        tl.store(row_ptr + 1, block, mask=kept)
        tl.store(row_ptr + 2, first_slot + block * block_size, mask=kept)
    if expert == num_experts - 1:
        for start in range(end_block, capacity, TILE):
            row = start + tl.arange(0, TILE)
            row_ptr = schedule_ptr + row.to(tl.int64) * 3
            for column in tl.static_range(3):
                tl.store(row_ptr + column, -1, mask=row < capacity)


def schedule_blocks(counts: torch.Tensor, block_size: int, out: torch.Tensor) -> None:
    """Launch the schedule; arguments are checked by `moe_align.api`."""
    num_experts = counts.numel()
    schedule_blocks_kernel[(num_experts,)](
        counts,
        out,
        num_experts,
        out.shape[0],
        block_size,
        EXPERTS=triton.next_power_of_2(num_experts),
        TILE=128,
        num_warps=4,
    )

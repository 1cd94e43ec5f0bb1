"""A small fused MoE layer, and where the order of the slots reaches its results.

One linear map per expert. Three passes: align the slots by expert; multiply each block of slots with its expert's
weights, which is a grouped GEMM; sum the products of each token.

    slot_output[slot] = topk_weights[slot] * x[token of slot] @ w[expert of slot]
    output[token]     = sum of slot_output over the token's slots
    grad_w[expert]    = sum over the expert's slots of x[token]^T (topk_weights[slot] * grad_output[token])

`implementation` chooses the alignment and nothing else. With "atomic" the slots of an expert come in another order from
call to call. Whether the result shows it depends on the consumer:

- `forward`: order does not reach it. A row of the GEMM is computed from its own slot alone, by the same operations
  wherever in a block it lies, and goes to the place of its slot. The sum over top_k runs over those places. Even the
  bits are the same in any order.
- `forward` with ``scale="block"``: order reaches it once an expert has more slots than a block. The 8-bit activations
  of a block share scales, and the order decides which slots share a block: a slot is rounded by the company it is in.
  While an expert fits one block, the company is the same in any order. Scales that no two slots share (DeepSeek-V3's
  tiles of 1 x 128 activations, MXFP8's of 1 x 32) would not let order in.
- `weight_gradient`: order reaches it once an expert has enough slots. The sum runs over the slots in their order, and
  floating-point addition is not associative. What one instruction of a tensor core adds at once may show no order;
  what several add one after another does. With 8-bit inputs there would be a second way in: a scale has to be constant
  along what a GEMM sums over, which here is slots.

The gradients by x and by topk_weights are computed slot by slot, so order does not reach them. And alignment cannot
mend a combine that adds to the output with floating-point atomics: such a one changes from call to call by itself. Here
it is a sum in slot order.

How many distinct results 100 identical calls give is measured by `benchmarks/witness.py`.

Use, on a GPU or in Triton's interpreter (which does not know bfloat16):

    output = forward(x, w, topk_ids, topk_weights)
    grad_w = weight_gradient(x, grad_output, topk_ids, topk_weights, num_experts=len(w))
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from moe_align import align_rows, schedule_blocks

# Output columns per program, and how much of the reduction each step takes: hidden features going forward, slots in the
# gradient.
_COLUMNS, _STEP = 64, 32


@triton.jit
def grouped_matmul_kernel(
    x_ptr,  # in: float [num_tokens, hidden]
    w_ptr,  # in: float [num_experts, hidden, columns], dtype of x
    schedule_ptr,  # in: int32 [capacity, 3] (expert, block, start), -1 beyond the last block
    slot_index_ptr,  # in: int32 [num_experts, num_slots], read where rank < count
    weights_ptr,  # in: float [num_experts, num_slots], likewise
    counts_ptr,  # in: int32 [num_experts]
    slot_output_ptr,  # out: float [num_slots, columns], dtype of x, written for every kept slot
    num_slots,
    top_k,
    hidden,
    columns,
    BLOCK_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    SCALED: tl.constexpr,  # round each tile of x to 8 bits with one scale
):
    """Multiply a block of one expert's slots. Grid: (capacity, cdiv(columns, COLUMNS)). No atomics."""
    expert = tl.load(schedule_ptr + tl.program_id(0) * 3).to(tl.int64)
    if expert >= 0:
        rank = tl.load(schedule_ptr + tl.program_id(0) * 3 + 1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        kept = rank < tl.load(counts_ptr + expert)
        slots = tl.load(slot_index_ptr + expert * num_slots + rank, mask=kept, other=0).to(tl.int64)
        weights = tl.load(weights_ptr + expert * num_slots + rank, mask=kept, other=0).to(tl.float32)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        x_row_ptr = x_ptr + (slots // top_k) * hidden
        w_column_ptr = w_ptr + expert * hidden * columns + column
        products = tl.zeros([BLOCK_SIZE, COLUMNS], dtype=tl.float32)
        for start in range(0, hidden, STEP):
            feature = start + tl.arange(0, STEP)
            x_mask = kept[:, None] & (feature < hidden)[None, :]
            x = tl.load(x_row_ptr[:, None] + feature[None, :], mask=x_mask, other=0)
            w_mask = (feature < hidden)[:, None] & (column < columns)[None, :]
            w = tl.load(w_column_ptr[None, :] + feature[:, None].to(tl.int64) * columns, mask=w_mask, other=0)
            if SCALED:
                # The largest of the whole tile: here the slots of a block meet.
                scale = tl.maximum(tl.max(tl.abs(x.to(tl.float32))), 1e-30) * (1 / 127)
                # Whole numbers up to 127, which every float type holds exactly.
                rounded = tl.floor(tl.div_rn(x.to(tl.float32), scale) + 0.5).to(x.dtype)
                products += tl.dot(rounded, w, input_precision="ieee") * scale
            else:
                products = tl.dot(x, w, products, input_precision="ieee")
        products *= weights[:, None]
        output_ptr = slot_output_ptr + slots[:, None] * columns + column[None, :]
        tl.store(output_ptr, products.to(x_ptr.dtype.element_ty), mask=kept[:, None] & (column < columns)[None, :])


@triton.jit
def weight_gradient_kernel(
    x_ptr,  # in: float [num_tokens, hidden]
    grad_output_ptr,  # in: float [num_tokens, columns], dtype of x
    slot_index_ptr,  # in: int32 [num_experts, num_slots], read where rank < count
    weights_ptr,  # in: float [num_experts, num_slots], likewise
    counts_ptr,  # in: int32 [num_experts]
    grad_w_ptr,  # out: float32 [num_experts, hidden, columns], every element written
    num_slots,
    top_k,
    hidden,
    columns,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sum over one expert's slots, in their order.

    Grid: (num_experts, cdiv(hidden, FEATURES), cdiv(columns, COLUMNS)). No atomics.
    """
    expert = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + expert)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([FEATURES, COLUMNS], dtype=tl.float32)
    for start in range(0, count, STEP):
        rank = start + tl.arange(0, STEP)
        kept = rank < count
        slots = tl.load(slot_index_ptr + expert * num_slots + rank, mask=kept, other=0)
        weights = tl.load(weights_ptr + expert * num_slots + rank, mask=kept, other=0).to(tl.float32)
        tokens = (slots // top_k).to(tl.int64)
        x_mask = (feature < hidden)[:, None] & kept[None, :]
        x = tl.load(x_ptr + tokens[None, :] * hidden + feature[:, None], mask=x_mask, other=0)
        grad_mask = kept[:, None] & (column < columns)[None, :]
        grad_ptr = grad_output_ptr + tokens[:, None] * columns + column[None, :]
        grad = tl.load(grad_ptr, mask=grad_mask, other=0).to(tl.float32) * weights[:, None]
        sums = tl.dot(x, grad.to(x.dtype), sums, input_precision="ieee")
    grad_w_mask = (feature < hidden)[:, None] & (column < columns)[None, :]
    grad_w_row_ptr = grad_w_ptr + (expert * hidden + feature[:, None]) * columns
    tl.store(grad_w_row_ptr + column[None, :], sums, mask=grad_w_mask)


def forward(
    x: torch.Tensor,
    w: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    scale: Literal["none", "block"] = "none",
    block_size: int = 64,
    implementation: str = "deterministic",
) -> torch.Tensor:
    """Send each token through its experts and sum what they say.

    Args:
        x: float32, float16 or bfloat16 [num_tokens, hidden].
        w: same dtype [num_experts, hidden, columns].
        topk_ids, topk_weights: what `moe_align.align_rows` takes; slots that it drops add nothing.
        scale: "block" rounds x to 8 bits, block by block of slots, with one scale per block and 32 features.
        block_size: slots per GEMM block, a power of two, at least 16.
        implementation: of `moe_align.align_rows`.

    Returns:
        [num_tokens, columns], dtype of x.

    Raises:
        ValueError: ``scale`` is neither. What else is wrong, `moe_align.align_rows` says, or nobody: it is an example.
    """
    if scale not in ("none", "block"):
        raise ValueError(f"scale: expected 'none' or 'block', got {scale!r}")
    num_experts, hidden, columns = w.shape
    x, w = x.contiguous(), w.contiguous()
    rows = align_rows(topk_ids, topk_weights, num_experts, implementation=implementation)
    schedule = schedule_blocks(rows.counts, topk_ids.numel(), block_size)
    # Zeros stay where a slot was dropped.
    slot_output = torch.zeros((*topk_ids.shape, columns), dtype=x.dtype, device=x.device)
    if len(schedule):
        grouped_matmul_kernel[(len(schedule), triton.cdiv(columns, _COLUMNS))](
            x,
            w,
            schedule,
            rows.slot_index,
            rows.weights,
            rows.counts,
            slot_output,
            topk_ids.numel(),
            topk_ids.shape[1],
            hidden,
            columns,
            BLOCK_SIZE=block_size,
            COLUMNS=_COLUMNS,
            STEP=_STEP,
            SCALED=scale == "block",
        )
    return slot_output.sum(dim=1)


def weight_gradient(
    x: torch.Tensor,
    grad_output: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    num_experts: int,
    *,
    implementation: str = "deterministic",
) -> torch.Tensor:
    """Gradient of `forward`, without scaling, by ``w``.

    Args:
        x: float32, float16 or bfloat16 [num_tokens, hidden].
        grad_output: gradient by the output, same dtype [num_tokens, columns].
        topk_ids, topk_weights: as given to `forward`.
        num_experts: length of ``w``.
        implementation: of `moe_align.align_rows`.

    Returns:
        float32 [num_experts, hidden, columns]; zero for an expert without slots.
    """
    hidden, columns = x.shape[1], grad_output.shape[1]
    x, grad_output = x.contiguous(), grad_output.contiguous()
    rows = align_rows(topk_ids, topk_weights, num_experts, implementation=implementation)
    grad_w = torch.empty((num_experts, hidden, columns), dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(num_experts, triton.cdiv(hidden, _COLUMNS), triton.cdiv(columns, _COLUMNS))](
        x,
        grad_output,
        rows.slot_index,
        rows.weights,
        rows.counts,
        grad_w,
        topk_ids.numel(),
        topk_ids.shape[1],
        hidden,
        columns,
        FEATURES=_COLUMNS,
        COLUMNS=_COLUMNS,
        STEP=_STEP,
    )
    return grad_w

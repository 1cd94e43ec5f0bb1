"""LightLLM's spelling. Change the import, keep the calls; rows are then ordered at every size.

Replaces `moe_align_fused` and `moe_align2` of lightllm.common.basemodel.triton_kernel.fused_moe.grouped_fused_moe.
"""

from __future__ import annotations

import torch

from moe_align.api import align_rows, schedule_blocks
from moe_align.layouts import Rows


def moe_align_fused(
    expert_to_token_index: torch.Tensor,
    expert_to_weight: torch.Tensor,
    expert_token_num: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    run_config: dict[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill LightLLM's three buffers; see `moe_align.align_rows`, whose ``out`` they are.

    Args:
        expert_to_token_index: out, int32 [expert_num, token_num * topk_num].
        expert_to_weight: out, dtype of ``topk_weights``, same shape.
        expert_token_num: out, int32 [expert_num]; need not be zeroed.
        topk_ids: int32 or int64 [token_num, topk_num].
        topk_weights: float [token_num, topk_num].
        run_config: BLOCK_SIZE, EXPERT_BLOCK, NUM_STAGE, num_warps.

    Returns:
        The three buffers, as LightLLM does.

    Raises:
        TypeError, ValueError: as `moe_align.align_rows`.
    """
    out = Rows(expert_to_token_index, expert_to_weight, expert_token_num)
    align_rows(topk_ids, topk_weights, expert_token_num.numel(), out=out, run_config=run_config)
    return expert_to_token_index, expert_to_weight, expert_token_num


def moe_align2(token_num_mul_topk_num: int, exports_token_num: torch.Tensor, block_m: int) -> torch.Tensor:
    """Block schedule of LightLLM's grouped GEMM; see `moe_align.schedule_blocks`.

    Args:
        token_num_mul_topk_num: slots of the call.
        exports_token_num: int32 [expert_num].
        block_m: slots per block.

    Returns:
        int32 [blocks, 3]: expert, block, start; -1 padded.

    Raises:
        TypeError, ValueError: as `moe_align.schedule_blocks`.
    """
    return schedule_blocks(exports_token_num, token_num_mul_topk_num, block_m)

"""SGLang's spelling. Change the import, keep the calls; within an expert, slots are then ordered.

Replaces `moe_align_block_size` of sglang.srt.layers.moe.moe_runner.triton_utils (before, of
sglang.srt.layers.moe.fused_moe_triton), buffers of its own included: none are needed.
"""

from __future__ import annotations

import torch

from moe_align.api import align_blocks


def moe_align_block_size(
    topk_ids: torch.Tensor, block_size: int, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks as SGLang's fused MoE takes them; see `moe_align.align_blocks`.

    Args:
        topk_ids: int32 or int64 [total_tokens, top_k]; slots of id -1, which expert parallelism gives to the experts of
            other ranks, come first, in blocks of their own; other ids outside ``[0, num_experts)`` are dropped.
        block_size: slots of a block.
        num_experts: number of experts on this rank.

    Returns:
        ``sorted_ids`` int32, padded with the number of slots; ``expert_ids`` int32, -1 for the blocks of id -1 and
        beyond the last block (where SGLang writes nothing); ``num_tokens_post_pad`` int32 [1].

    Raises:
        TypeError, ValueError: as `moe_align.align_blocks`.
    """
    blocks = align_blocks(topk_ids, block_size, num_experts, keep_remote=True)
    return blocks.sorted_token_ids, blocks.expert_ids, blocks.num_tokens_post_padded

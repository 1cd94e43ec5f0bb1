"""vLLM's spelling. Change the import, keep the calls; within an expert, slots are then ordered.

Replaces `moe_align_block_size` of vllm.model_executor.layers.fused_moe.moe_align_block_size.
"""

from __future__ import annotations

import torch

from moe_align.api import align_blocks


def moe_align_block_size(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    pad_sorted_ids: bool = False,
    ignore_invalid_experts: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks as vLLM's fused MoE takes them; see `moe_align.align_blocks`.

    Args:
        topk_ids: int32 or int64 [total_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        block_size: slots of a block.
        num_experts: global number of experts.
        expert_map: int32 [num_experts], local expert of each global one, -1 if it is not on this rank.
        pad_sorted_ids: round the length of ``sorted_ids`` up to whole blocks.
        ignore_invalid_experts: drop the slots of experts that are not on this rank, and sort by local expert; otherwise
            their blocks stay, marked -1 in ``expert_ids``.

    Returns:
        ``sorted_ids`` int32, padded with the number of slots; ``expert_ids`` int32, -1 beyond the last block (where
        vLLM has the last entry of ``expert_map``, if there is a map and nothing is ignored); ``num_tokens_post_pad``
        int32 [1].

    Raises:
        TypeError, ValueError: as `moe_align.align_blocks`.
    """
    blocks = align_blocks(
        topk_ids,
        block_size,
        num_experts,
        expert_map=expert_map,
        keep_remote=expert_map is not None and not ignore_invalid_experts,
        whole_blocks=pad_sorted_ids,
    )
    return blocks.sorted_token_ids, blocks.expert_ids, blocks.num_tokens_post_padded

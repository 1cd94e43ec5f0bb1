"""The specification in plain torch: what every kernel must return, bit for bit. Runs on any device.

It shares nothing with the kernels, so that a mistake cannot be in both.
"""

from __future__ import annotations

import torch

from moe_align.layouts import Rows


def align_rows(topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows) -> None:
    """Write the slots of each expert into its row, in slot order.

    Args:
        topk_ids: integer [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        topk_weights: float [num_tokens, top_k].
        out: rows for ``len(out.counts)`` experts; nothing beyond the counts is written.
    """
    num_experts = len(out.counts)
    ids = topk_ids.reshape(-1).long()
    slots = ((ids >= 0) & (ids < num_experts)).nonzero().squeeze(1)
    slots = slots[ids[slots].argsort(stable=True)]
    experts = ids[slots]
    counts = torch.bincount(experts, minlength=num_experts)
    first_of_expert = counts.cumsum(0) - counts
    ranks = torch.arange(len(slots), device=ids.device) - first_of_expert[experts]
    out.counts.copy_(counts)
    out.slot_index[experts, ranks] = slots.to(torch.int32)
    out.weights[experts, ranks] = topk_weights.detach().reshape(-1)[slots]


def schedule_blocks(counts: torch.Tensor, block_size: int, out: torch.Tensor) -> None:
    """Write one row (expert, block within the expert, first slot of the block) per block; -1 beyond the last.

    Args:
        counts: int32 [num_experts].
        block_size: slots per block.
        out: int32 [capacity, 3].
    """
    rows = []
    first = 0
    for expert, count in enumerate(counts.tolist()):
        rows += [[expert, block, first + block * block_size] for block in range(-(-count // block_size))]
        first += count
    rows = rows[: len(out)]
    out.fill_(-1)
    out[: len(rows)] = torch.tensor(rows, dtype=torch.int32).reshape(-1, 3)

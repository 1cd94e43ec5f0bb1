"""The specification in plain torch: what every kernel must return, bit for bit. Runs on any device.

It shares nothing with the kernels, so that a mistake cannot be in both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe_align.layouts import Blocks, Offsets, Rows


class _Ranked(NamedTuple):
    slots: torch.Tensor
    experts: torch.Tensor
    ranks: torch.Tensor
    counts: torch.Tensor


def _rank(ids: torch.Tensor, num_experts: int) -> _Ranked:
    """The slots whose ids are experts, sorted by expert, and their ranks within it."""
    slots = ((ids >= 0) & (ids < num_experts)).nonzero().squeeze(1)
    slots = slots[ids[slots].argsort(stable=True)]
    experts = ids[slots]
    counts = torch.bincount(experts, minlength=num_experts)
    first_of_expert = counts.cumsum(0) - counts
    ranks = torch.arange(len(slots), device=ids.device) - first_of_expert[experts]
    return _Ranked(slots, experts, ranks, counts)


def align_rows(topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows) -> None:
    """Write the slots of each expert into its row, in slot order.

    Args:
        topk_ids: integer [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        topk_weights: float [num_tokens, top_k].
        out: rows for ``len(out.counts)`` experts; nothing beyond the counts is written.
    """
    ranked = _rank(topk_ids.reshape(-1).long(), len(out.counts))
    out.counts.copy_(ranked.counts)
    out.slot_index[ranked.experts, ranked.ranks] = ranked.slots.to(torch.int32)
    out.weights[ranked.experts, ranked.ranks] = topk_weights.detach().reshape(-1)[ranked.slots]


def align_blocks(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None,
    keep_remote: bool,
    out: Blocks,
) -> None:
    """Write the slots of each expert, in slot order, padded to whole blocks, and label the blocks.

    Args:
        topk_ids: integer [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        topk_weights: float [num_tokens, top_k], or None.
        block_size: slots of a block.
        num_experts: experts addressed by the ids.
        expert_map: int32 [num_experts], local expert of each id or -1, or None.
        keep_remote: whether slots of experts mapped to -1, or, without a map, of id -1, are placed too.
        out: every element is written.
    """
    ids = topk_ids.reshape(-1).long()
    labels = torch.arange(num_experts, device=ids.device)
    if expert_map is not None and keep_remote:
        labels = expert_map.long()
    elif expert_map is not None:
        known = (ids >= 0) & (ids < num_experts)
        ids = torch.where(known, expert_map.long()[torch.where(known, ids, 0)], -1)
    elif keep_remote:
        labels = torch.arange(-1, num_experts, device=ids.device)
        ids = ids + 1
    ranked = _rank(ids, len(labels))
    blocks = (ranked.counts + block_size - 1) // block_size
    _place(ranked, blocks * block_size, topk_weights, topk_ids.numel(), out.sorted_token_ids, out.weights)
    used = labels.repeat_interleave(blocks)
    out.expert_ids.fill_(-1)
    out.expert_ids[: len(used)] = used.to(torch.int32)
    out.num_tokens_post_padded.fill_(len(used) * block_size)


def align_offsets(topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, out: Offsets) -> None:
    """Write the slots of each expert, in slot order, and where each expert starts.

    Args:
        topk_ids: integer [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        topk_weights: float [num_tokens, top_k], or None.
        out: offsets for ``len(out.offsets) - 1`` experts; every element is written.
    """
    ranked = _rank(topk_ids.reshape(-1).long(), len(out.offsets) - 1)
    _place(ranked, ranked.counts, topk_weights, topk_ids.numel(), out.slots, out.weights)
    out.offsets[0] = 0
    out.offsets[1:] = ranked.counts.cumsum(0)


def _place(
    ranked: _Ranked,
    sizes: torch.Tensor,
    topk_weights: torch.Tensor | None,
    num_slots: int,
    slots: torch.Tensor,
    weights: torch.Tensor | None,
) -> None:
    """Write ranked slots and their weights into one region per expert, of these sizes, and fill up the rest."""
    places = (sizes.cumsum(0) - sizes)[ranked.experts] + ranked.ranks
    slots.fill_(num_slots)
    slots[places] = ranked.slots.to(torch.int32)
    if topk_weights is not None and weights is not None:
        weights.fill_(0)
        weights[places] = topk_weights.detach().reshape(-1)[ranked.slots]


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

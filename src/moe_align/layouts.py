"""What alignment returns, and how large it must be."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """One row of slots per expert.

    Entry ``[e, r]`` is the r-th slot of expert ``e`` for ``r < counts[e]``; what lies beyond is never written.

    Attributes:
        slot_index: int32 [num_experts, num_slots]; ``slot = token * top_k + k``.
        weights: [num_experts, num_slots], dtype of ``topk_weights``; the weight of the slot at the same place.
        counts: int32 [num_experts]; slots of each expert.
    """

    slot_index: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def empty(cls, num_experts: int, num_slots: int, weights_dtype: torch.dtype, device: torch.device) -> Rows:
        """Uninitialised rows, ready to be passed as ``out``."""
        return cls(
            slot_index=torch.empty((num_experts, num_slots), dtype=torch.int32, device=device),
            weights=torch.empty((num_experts, num_slots), dtype=weights_dtype, device=device),
            counts=torch.empty((num_experts,), dtype=torch.int32, device=device),
        )


class Blocks(NamedTuple):
    """Slots sorted by expert, each expert padded to whole GEMM blocks.

    Block ``b`` is ``sorted_token_ids[b * block_size : (b + 1) * block_size]``; within an expert, slots ascend.

    Attributes:
        sorted_token_ids: int32 [capacity]; ``slot = token * top_k + k``; padding, and what lies beyond the last block,
            is the number of slots.
        expert_ids: int32 [num_blocks]; the expert of each block; -1 beyond the last block.
        num_tokens_post_padded: int32 [1]; slots and padding of all blocks.
        weights: [capacity], dtype of ``topk_weights``; the weight of the slot at the same place, 0 where there is no
            slot; None if there are no weights.
    """

    sorted_token_ids: torch.Tensor
    expert_ids: torch.Tensor
    num_tokens_post_padded: torch.Tensor
    weights: torch.Tensor | None = None

    @classmethod
    def empty(
        cls,
        num_slots: int,
        num_experts: int,
        block_size: int,
        device: torch.device,
        *,
        weights_dtype: torch.dtype | None = None,
        whole_blocks: bool = False,
    ) -> Blocks:
        """Uninitialised blocks, ready to be passed as ``out``; ``whole_blocks`` rounds their capacity up to blocks."""
        capacity = blocks_capacity(num_slots, num_experts, block_size)
        num_blocks = -(-capacity // block_size)
        if whole_blocks:
            capacity = num_blocks * block_size
        return cls(
            sorted_token_ids=torch.empty((capacity,), dtype=torch.int32, device=device),
            expert_ids=torch.empty((num_blocks,), dtype=torch.int32, device=device),
            num_tokens_post_padded=torch.empty((1,), dtype=torch.int32, device=device),
            weights=None if weights_dtype is None else torch.empty((capacity,), dtype=weights_dtype, device=device),
        )


class Offsets(NamedTuple):
    """Slots sorted by expert, without padding, and where each expert starts (CSR).

    The slots of expert ``e`` are ``slots[offsets[e] : offsets[e + 1]]``, ascending.

    Attributes:
        slots: int32 [num_slots]; ``slot = token * top_k + k``; beyond ``offsets[num_experts]``, which is less than
            num_slots if slots were dropped, the number of slots.
        offsets: int32 [num_experts + 1].
        weights: [num_slots], dtype of ``topk_weights``; the weight of the slot at the same place, 0 where there is no
            slot; None if there are no weights.
    """

    slots: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor | None = None

    @classmethod
    def empty(
        cls, num_slots: int, num_experts: int, device: torch.device, *, weights_dtype: torch.dtype | None = None
    ) -> Offsets:
        """Uninitialised offsets, ready to be passed as ``out``."""
        return cls(
            slots=torch.empty((num_slots,), dtype=torch.int32, device=device),
            offsets=torch.empty((num_experts + 1,), dtype=torch.int32, device=device),
            weights=None if weights_dtype is None else torch.empty((num_slots,), dtype=weights_dtype, device=device),
        )


class Regions(NamedTuple):
    """A flat layout as the kernels see it: one region per expert, one after the other, each in whole blocks.

    Offsets are blocks of one slot.

    Attributes:
        slots: int32 [capacity], out.
        weights: [capacity], out; None if there are no weights.
        num_experts: number of regions.
        block_size: slots of a block.
        offsets: int32 [num_experts + 1], out; None for blocks.
        expert_ids: int32 [num_blocks], out; None for offsets.
        num_tokens_post_padded: int32 [1], out; None for offsets.
        expert_map: int32 [num_experts], expert of each id; None if ids are experts.
        labels: int32 [num_experts], what ``expert_ids`` call an expert; None if by its id.
        first_id: id of expert 0.
    """

    slots: torch.Tensor
    weights: torch.Tensor | None
    num_experts: int
    block_size: int = 1
    offsets: torch.Tensor | None = None
    expert_ids: torch.Tensor | None = None
    num_tokens_post_padded: torch.Tensor | None = None
    expert_map: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    first_id: int = 0


def blocks_capacity(num_slots: int, num_experts: int, block_size: int) -> int:
    """Slots and padding that blocks of ``num_slots`` slots can need at most, whatever their experts.

    At most ``block_size - 1`` of an expert's places are padding, and no block is empty.
    """
    return min(num_slots * block_size, num_slots + num_experts * (block_size - 1))


def schedule_capacity(num_slots: int, num_experts: int, block_size: int) -> int:
    """Blocks of ``block_size`` that ``num_slots`` slots can need at most, whatever their experts.

    Every block but the last of an expert is full, and no block is empty.
    """
    return min(num_slots, -(-(num_slots + num_experts * (block_size - 1)) // block_size))

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


def schedule_capacity(num_slots: int, num_experts: int, block_size: int) -> int:
    """Blocks of ``block_size`` that ``num_slots`` slots can need at most, whatever their experts.

    Every block but the last of an expert is full, and no block is empty.
    """
    return min(num_slots, -(-(num_slots + num_experts * (block_size - 1)) // block_size))

"""What alignment must give, worked out without the package under test, and how a result differs from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Placed(NamedTuple):
    """Every kept slot, ordered by expert and then by slot; three int64 tensors of the same length, and the counts."""

    slots: torch.Tensor
    experts: torch.Tensor
    ranks: torch.Tensor
    counts: torch.Tensor


def place(topk_ids: torch.Tensor, num_experts: int) -> Placed:
    """Where each slot belongs: a stable sort by expert; ids outside the range are dropped."""
    import torch

    ids = topk_ids.reshape(-1).long()
    experts, slots = torch.sort(torch.where((ids >= 0) & (ids < num_experts), ids, num_experts), stable=True)
    ends = torch.searchsorted(experts, torch.arange(num_experts + 1, device=ids.device))
    experts, slots = experts[: ends[-1]], slots[: ends[-1]]
    ranks = torch.arange(len(slots), device=ids.device) - ends[experts]
    return Placed(slots, experts, ranks, ends.diff())


def schedule(counts: list[int], block_size: int, capacity: int) -> list[list[int]]:
    """Rows of expert, block and first slot for every block, cut off or padded with -1 to ``capacity``."""
    rows = []
    first_slot = 0
    for expert, count in enumerate(counts):
        for start in range(0, count, block_size):
            rows.append([expert, start // block_size, first_slot + start])
        first_slot += count
    return (rows + [[-1, -1, -1]] * capacity)[:capacity]


def difference(
    rows: Any,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    ordered: bool = True,
    untouched: int | None = None,
    placed: Placed | None = None,
) -> str | None:
    """How rows differ from what they must be, None if they do not.

    Args:
        rows: slot_index, weights and counts, as `moe_align.align_rows` returns them.
        topk_ids, topk_weights: its input.
        ordered: slots must ascend within an expert; otherwise only the set of each expert counts.
        untouched: what the buffers were filled with, if it must still stand beyond the counts.
        placed: what `place` says of the input, if it was asked before.
    """
    import torch

    slot_index, weights, counts = rows
    num_experts, num_slots = slot_index.shape
    expected = placed or place(topk_ids, num_experts)
    wrong = (counts != expected.counts).nonzero()
    if len(wrong):
        expert = int(wrong[0])
        return f"counts[{expert}] is {int(counts[expert])}, expected {int(expected.counts[expert])}"
    actual = slot_index[expected.experts, expected.ranks].long()
    actual_weights = weights[expected.experts, expected.ranks]
    if not ordered:
        order = (expected.experts * num_slots + actual).argsort()
        actual, actual_weights = actual[order], actual_weights[order]
    for name, got, want in (
        ("slot_index", actual, expected.slots),
        ("weights", actual_weights, topk_weights.reshape(-1)[expected.slots]),
    ):
        wrong = (got != want).nonzero()
        if len(wrong):
            at = int(wrong[0])
            where = f"{name}[{int(expected.experts[at])}, {int(expected.ranks[at])}]"
            return f"{where} is {got[at].item()}, expected {want[at].item()} ({len(wrong)} differ)"
    if untouched is not None:
        beyond = torch.arange(num_slots, device=counts.device) >= counts[:, None]
        for name, tensor in (("slot_index", slot_index), ("weights", weights)):
            if bool((beyond & (tensor != untouched)).any()):
                return f"{name} was written beyond the counts"
    return None


def flat_difference(
    flat: Any,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    num_experts: int,
    block_size: int | None,
    *,
    placed: Placed | None = None,
) -> str | None:
    """How a flat layout differs from what it must be, None if it does not.

    Args:
        flat: offsets, or blocks of ``block_size`` slots, as `moe_align` returns them.
        topk_ids, topk_weights: its input; weights are None if it has none.
        num_experts: experts of the call.
        block_size: slots of a block; None for offsets.
        placed: as for `difference`.
    """
    import torch

    placed = placed or place(topk_ids, num_experts)
    num_slots, device = topk_ids.numel(), topk_ids.device
    sizes = placed.counts if block_size is None else -(-placed.counts // block_size) * block_size
    ends = sizes.cumsum(0)
    places = (ends - sizes)[placed.experts] + placed.ranks
    slots = torch.full((len(flat[0]),), num_slots, device=device)
    slots[places] = placed.slots
    if block_size is None:
        expected = {"slots": slots, "offsets": torch.nn.functional.pad(ends, (1, 0))}
    else:
        experts = torch.arange(num_experts, device=device).repeat_interleave(sizes // block_size)
        labels = torch.full((len(flat.expert_ids),), -1, device=device)
        labels[: len(experts)] = experts
        expected = {"sorted_token_ids": slots, "expert_ids": labels, "num_tokens_post_padded": ends[-1:]}
    if topk_weights is not None:
        expected["weights"] = torch.zeros(len(slots), device=device, dtype=topk_weights.dtype)
        expected["weights"][places] = topk_weights.reshape(-1)[placed.slots]
    for name, want in expected.items():
        got = getattr(flat, name)
        wrong = (got != want).nonzero()
        if len(wrong):
            at = int(wrong[0])
            return f"{name}[{at}] is {got[at].item()}, expected {want[at].item()} ({len(wrong)} differ)"
    return None


def layer_output(x: torch.Tensor, w: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """The sum over a token's experts of ``weight * x @ w[expert]``, float32, expert by expert."""
    import torch

    output = torch.zeros((len(x), w.shape[2]), device=x.device)
    for expert in range(len(w)):
        tokens, k = (topk_ids == expert).nonzero(as_tuple=True)
        output.index_add_(0, tokens, x[tokens].float() @ w[expert].float() * topk_weights[tokens, k, None].float())
    return output


def layer_weight_gradient(
    x: torch.Tensor, grad_output: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, num_experts: int
) -> torch.Tensor:
    """The gradient of `layer_output` by ``w``, float32, expert by expert."""
    import torch

    gradient = torch.empty((num_experts, x.shape[1], grad_output.shape[1]), device=x.device)
    for expert in range(num_experts):
        tokens, k = (topk_ids == expert).nonzero(as_tuple=True)
        gradient[expert] = x[tokens].float().T @ (grad_output[tokens].float() * topk_weights[tokens, k, None].float())
    return gradient

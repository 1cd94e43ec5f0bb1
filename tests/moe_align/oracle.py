"""What alignment must return, in plain loops, and bitwise comparison of whole buffers.

Nothing is shared with the library, and no tensor operation decides what is expected. Results are written
into poisoned memory between guard zones, and all of that memory is compared: a missing write, a write beyond
the counts and a write outside the buffer fail alike.
"""

from typing import NamedTuple

import torch

from benchmarks.oracle import schedule as schedule
from moe_align import Rows

GUARD = 64
INT32_POISON = 0x5EED5EED
BITS_OF = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.int32: torch.int32,
}
# Odd, so that each slot below 2**16 (2**32) has a weight of its own.
_WEIGHT_STEP = {torch.int16: 40503, torch.int32: 2654435761}


def weight_bits(slot, bits_dtype):
    """The bits of a slot's weight: every kind of float occurs, NaNs with payloads and subnormals included."""
    size = 1 << torch.iinfo(bits_dtype).bits
    bits = (slot + 1) * _WEIGHT_STEP[bits_dtype] % size
    return bits - size if bits >= size // 2 else bits


def distinct_weights(topk_ids, dtype=torch.float32):
    """Weights that tell the slots apart, in the shape of ``topk_ids``."""
    bits = [weight_bits(slot, BITS_OF[dtype]) for slot in range(topk_ids.numel())]
    weights = torch.tensor(bits, dtype=BITS_OF[dtype], device=topk_ids.device).view(dtype)
    return weights.reshape(topk_ids.shape)


class PoisonedRows(NamedTuple):
    """Rows to be passed as ``out``, and the memory that they are a part of."""

    rows: Rows
    memory: Rows


def poisoned_rows(num_experts, num_slots, dtype=torch.float32, device="cpu", guard=GUARD):
    """Rows whose every element, and ``guard`` elements before and after, hold what no slot puts there."""

    def memory(size, dtype, poison):
        bits = torch.full((guard + size + guard,), poison, dtype=BITS_OF[dtype], device=device)
        return bits.view(dtype)

    def within(flat, *shape):
        return flat[guard : len(flat) - guard].view(shape)

    no_slot = weight_bits(-2, BITS_OF[dtype])
    buffers = Rows(
        slot_index=memory(num_experts * num_slots, torch.int32, INT32_POISON),
        weights=memory(num_experts * num_slots, dtype, no_slot),
        counts=memory(num_experts, torch.int32, INT32_POISON),
    )
    rows = Rows(
        slot_index=within(buffers.slot_index, num_experts, num_slots),
        weights=within(buffers.weights, num_experts, num_slots),
        counts=within(buffers.counts, num_experts),
    )
    return PoisonedRows(rows, buffers)


def slots_by_expert(topk_ids, num_experts):
    """The slots of each expert, as lists: the specification."""
    chosen = [[] for _ in range(num_experts)]
    slot = 0
    for token in topk_ids.tolist():
        for expert in token:
            if 0 <= expert < num_experts:
                chosen[expert].append(slot)
            slot += 1
    return chosen


def assert_rows(out, topk_ids, topk_weights, *, ordered=True):
    """Compare all of the memory of `poisoned_rows` with what alignment must have made of it.

    Args:
        out: PoisonedRows, aligned into.
        topk_ids: the ids that were aligned.
        topk_weights: their weights.
        ordered: whether slots must ascend within an expert; if not, only the (slot, weight) pairs count.
    """
    num_experts, num_slots = out.rows.slot_index.shape
    guard = (len(out.memory.counts) - num_experts) // 2
    expected = poisoned_rows(num_experts, num_slots, out.rows.weights.dtype, guard=guard)
    _place(expected.rows, topk_ids, topk_weights)
    actual = PoisonedRows(*(Rows(*(buffer.cpu() for buffer in rows)) for rows in out))
    if not ordered:
        actual = _in_slot_order(actual, guard, expected.rows.counts.tolist())
    # Counts first: a wrong count explains what is wrong with the rows.
    assert_same_bits("counts", actual.memory.counts, expected.memory.counts, guard, (num_experts,))
    for name in ("slot_index", "weights"):
        memory = (getattr(rows.memory, name) for rows in (actual, expected))
        assert_same_bits(name, *memory, guard, (num_experts, num_slots))


def assert_rows_up_to_counts(rows, topk_ids, topk_weights):
    """Compare freshly allocated rows as far as the contract names their elements."""
    num_experts, num_slots = rows.slot_index.shape
    assert topk_ids.numel() == num_slots
    out = poisoned_rows(num_experts, num_slots, rows.weights.dtype)
    for expert, slots in enumerate(slots_by_expert(topk_ids, num_experts)):
        out.rows.slot_index[expert, : len(slots)] = rows.slot_index[expert, : len(slots)].cpu()
        bits = _bits(rows.weights)[expert, : len(slots)].cpu()
        _bits(out.rows.weights)[expert, : len(slots)] = bits
    out.rows.counts.copy_(rows.counts)
    assert_rows(out, topk_ids, topk_weights)


def assert_same_bits(name, actual, expected, guard=0, shape=None):
    """Compare two flat buffers bit by bit; ``shape`` is that of what lies between the guard zones."""
    assert actual.dtype == expected.dtype, f"{name}: expected dtype {expected.dtype}, got {actual.dtype}"
    assert actual.shape == expected.shape, f"{name}: expected {expected.shape}, got {actual.shape}"
    differs = (_bits(actual) != _bits(expected)).nonzero()
    if len(differs):
        first = int(differs[0])
        where = _position(first - guard, shape or tuple(actual.shape))
        wanted, got = (_shown(buffer, first) for buffer in (expected, actual))
        raise AssertionError(f"{name}{where}: expected {wanted}, got {got}; {len(differs)} elements differ")


def _bits(tensor):
    return tensor.detach().view(BITS_OF[tensor.dtype])


def _place(rows, topk_ids, topk_weights):
    bits = [weight for token in _bits(topk_weights.contiguous()).tolist() for weight in token]
    for expert, slots in enumerate(slots_by_expert(topk_ids, len(rows.counts))):
        weights = torch.tensor([bits[slot] for slot in slots], dtype=BITS_OF[rows.weights.dtype])
        rows.counts[expert] = len(slots)
        rows.slot_index[expert, : len(slots)] = torch.tensor(slots, dtype=torch.int32)
        _bits(rows.weights)[expert, : len(slots)] = weights


def _in_slot_order(out, guard, counts):
    num_slots = out.rows.slot_index.shape[1]
    memory = Rows(*(buffer.clone() for buffer in out.memory))
    slot_index, weights = memory.slot_index, _bits(memory.weights)
    for expert, count in enumerate(counts):
        start = guard + expert * num_slots
        row = slice(start, start + count)
        pairs = zip(slot_index[row].tolist(), weights[row].tolist(), strict=True)
        for rank, (slot, bits) in enumerate(sorted(pairs)):
            slot_index[start + rank] = slot
            weights[start + rank] = bits
    return PoisonedRows(out.rows, memory)


def _position(offset, shape):
    if offset < 0:
        return f" ({-offset} before the buffer)"
    index = []
    for size in reversed(shape):
        if size == 0:
            return f" ({offset} after the buffer)"
        offset, last = divmod(offset, size)
        index.insert(0, last)
    return f" ({offset} buffers after)" if offset else str(index)


def _shown(buffer, place):
    value = buffer[place].item()
    if buffer.dtype == torch.int32:
        return str(value)
    digits = torch.iinfo(BITS_OF[buffer.dtype]).bits // 4
    return f"{value} (bits {_bits(buffer)[place].item() % 16**digits:#0{digits + 2}x})"

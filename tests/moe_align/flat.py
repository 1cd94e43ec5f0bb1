"""What the flat layouts must hold, in plain loops, and aligning into poisoned memory that is compared whole.

Nothing is shared with the library, and no tensor operation decides what is expected.
"""

import functools
from typing import NamedTuple

import pytest
import torch

from moe_align import Blocks, Offsets, align_blocks, align_offsets
from moe_align.strategy import strategies
from tests.moe_align import oracle

#: Small tiles, so that few slots need several.
CONFIGURATIONS = {
    "chosen": {},
    "scan": {"strategy": "scan", "BLOCK_SIZE": 32, "EXPERT_BLOCK": 4},
    "scan-alone": {"strategy": "scan", "BLOCK_SIZE": 64, "EXPERT_BLOCK": 1, "num_warps": 1},
    "sift": {"strategy": "sift", "EXPERT_BLOCK": 4, "HITS": 2, "num_warps": 1},
    "sift-alone": {"strategy": "sift", "EXPERT_BLOCK": 1, "HITS": 1, "num_warps": 1},
    "collect": {"strategy": "collect", "EXPERT_BLOCK": 4, "num_warps": 1},
    "tiles": {"strategy": "tiles", "BLOCK_SIZE": 64, "num_warps": 1},
}
each_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS)
#: Without what is chosen: blocks of few slots are served by none of them.
each_named_configuration = pytest.mark.parametrize(
    "configuration", [name for name in CONFIGURATIONS if name != "chosen"]
)
assert {config.get("strategy") for config in CONFIGURATIONS.values()} == {None, *strategies("deterministic")}


class Bucket(NamedTuple):
    """An expert's slots, and how its blocks are labelled."""

    label: int
    slots: list


def buckets(topk_ids, num_experts, expert_map=None, keep_remote=False):
    """The buckets in their order, empty ones included."""
    ids = [expert for token in topk_ids.tolist() for expert in token]
    first = 0
    labels = list(range(num_experts))
    if expert_map is not None:
        local = expert_map.tolist()
        if keep_remote:
            labels = local
        else:
            ids = [local[expert] if 0 <= expert < num_experts else -1 for expert in ids]
    elif keep_remote:
        first = -1
        labels = [-1, *labels]
    result = [Bucket(label, []) for label in labels]
    for slot, expert in enumerate(ids):
        if 0 <= expert - first < len(result):
            result[expert - first].slots.append(slot)
    return result


def expected_blocks(topk_ids, block_size, num_experts, capacity, num_blocks, **options):
    """Lists as Blocks has tensors: slots (padding: their number), labels, and what is used."""
    num_slots = topk_ids.numel()
    slots, labels = [], []
    for bucket in buckets(topk_ids, num_experts, **options):
        blocks = (len(bucket.slots) + block_size - 1) // block_size
        slots += bucket.slots + [num_slots] * (blocks * block_size - len(bucket.slots))
        labels += [bucket.label] * blocks
    used = len(slots)
    return slots + [num_slots] * (capacity - used), labels + [-1] * (num_blocks - len(labels)), [used]


def expected_offsets(topk_ids, num_experts):
    """Lists as Offsets has tensors."""
    slots, offsets = [], [0]
    for bucket in buckets(topk_ids, num_experts):
        slots += bucket.slots
        offsets.append(len(slots))
    return slots + [topk_ids.numel()] * (topk_ids.numel() - len(slots)), offsets


def capacity_of(num_slots, num_buckets, block_size):
    """Room that every distribution of slots fits: vLLM's and SGLang's two bounds."""
    return min(num_slots + num_buckets * (block_size - 1), num_slots * block_size)


class Poisoned:
    """Tensors between guards, all of them holding what no slot puts there."""

    def __init__(self, device, guard, **fields):
        self.guard = guard
        self.memory, self.tensors = {}, {}
        for name, (size, dtype) in fields.items():
            poison = oracle.INT32_POISON if dtype == torch.int32 else oracle.weight_bits(-2, oracle.BITS_OF[dtype])
            bits = torch.full((guard + size + guard,), poison, dtype=oracle.BITS_OF[dtype], device=device)
            self.memory[name] = bits.view(dtype)
            self.tensors[name] = self.memory[name][guard : guard + size]

    def assert_holds(self, **expected):
        """Compare all of the memory; ``expected`` are lists, of bits where the tensor holds floats."""
        for name, values in expected.items():
            memory = self.memory[name].cpu()
            bits = memory.view(oracle.BITS_OF[memory.dtype])
            wanted = bits.clone()
            wanted[: self.guard] = wanted[self.guard + len(values) :] = self._poison(name)
            wanted[self.guard : self.guard + len(values)] = torch.tensor(values, dtype=bits.dtype)
            assert len(bits) == len(values) + 2 * self.guard, name
            oracle.assert_same_bits(name, memory, wanted.view(memory.dtype), self.guard, (len(values),))

    def _poison(self, name):
        dtype = self.memory[name].dtype
        return oracle.INT32_POISON if dtype == torch.int32 else oracle.weight_bits(-2, oracle.BITS_OF[dtype])


def _weights_field(weights_dtype, size):
    return {} if weights_dtype is None else {"weights": (size, weights_dtype)}


def _expected_weights(weights_dtype, slots, num_slots):
    if weights_dtype is None:
        return {}
    bits = functools.partial(oracle.weight_bits, bits_dtype=oracle.BITS_OF[weights_dtype])
    return {"weights": [0 if slot == num_slots else bits(slot) for slot in slots]}


def poisoned_blocks(topk_ids, block_size, num_experts, weights_dtype=None, guard=oracle.GUARD, spare=0, **options):
    """Memory for `check_blocks`, with room for ``spare`` more slots than need it."""
    num_buckets = len(buckets(topk_ids[:0], num_experts, **options))
    capacity = capacity_of(topk_ids.numel(), num_buckets, block_size) + spare
    return Poisoned(
        topk_ids.device,
        guard,
        sorted_token_ids=(capacity, torch.int32),
        expert_ids=(-(-capacity // block_size), torch.int32),
        num_tokens_post_padded=(1, torch.int32),
        **_weights_field(weights_dtype, capacity),
    )


def assert_blocks(memory, topk_ids, block_size, num_experts, weights_dtype=None, **options):
    sizes = (len(memory.tensors[name]) for name in ("sorted_token_ids", "expert_ids"))
    slots, labels, used = expected_blocks(topk_ids, block_size, num_experts, *sizes, **options)
    memory.assert_holds(
        num_tokens_post_padded=used,
        expert_ids=labels,
        sorted_token_ids=slots,
        **_expected_weights(weights_dtype, slots, topk_ids.numel()),
    )


def check_blocks(topk_ids, block_size, num_experts, weights_dtype=None, guard=oracle.GUARD, spare=0, **options):
    """Align into poisoned memory, and compare it; the memory, for more."""
    layout = {name: options[name] for name in ("expert_map", "keep_remote") if name in options}
    memory = poisoned_blocks(topk_ids, block_size, num_experts, weights_dtype, guard, spare, **layout)
    weights = None if weights_dtype is None else oracle.distinct_weights(topk_ids, weights_dtype)
    out = Blocks(**memory.tensors)
    assert align_blocks(topk_ids, block_size, num_experts, topk_weights=weights, out=out, **options) is out
    assert_blocks(memory, topk_ids, block_size, num_experts, weights_dtype, **layout)
    return memory


def poisoned_offsets(topk_ids, num_experts, weights_dtype=None, guard=oracle.GUARD):
    """Memory for `check_offsets`."""
    num_slots = topk_ids.numel()
    fields = {"slots": (num_slots, torch.int32), "offsets": (num_experts + 1, torch.int32)}
    return Poisoned(topk_ids.device, guard, **fields, **_weights_field(weights_dtype, num_slots))


def assert_offsets(memory, topk_ids, num_experts, weights_dtype=None):
    slots, offsets = expected_offsets(topk_ids, num_experts)
    weights = _expected_weights(weights_dtype, slots, topk_ids.numel())
    memory.assert_holds(offsets=offsets, slots=slots, **weights)


def check_offsets(topk_ids, num_experts, weights_dtype=None, guard=oracle.GUARD, **options):
    """Align into poisoned memory, and compare it; the memory, for more."""
    memory = poisoned_offsets(topk_ids, num_experts, weights_dtype, guard)
    weights = None if weights_dtype is None else oracle.distinct_weights(topk_ids, weights_dtype)
    out = Offsets(**memory.tensors)
    assert align_offsets(topk_ids, num_experts, topk_weights=weights, out=out, **options) is out
    assert_offsets(memory, topk_ids, num_experts, weights_dtype)
    return memory


def written_within(addresses, memory):
    """Those of the stored addresses that lie in the memory's tensors: not those of a strategy's workspace."""
    spans = [
        range(tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size())
        for tensor in memory.memory.values()
    ]
    return [address for address in addresses if any(address in span for span in spans)]

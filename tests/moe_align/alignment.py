"""Aligning into poisoned memory, and comparing all of that memory with the oracle's."""

import torch

from moe_align import align_rows
from tests.moe_align import oracle


def align_poisoned(topk_ids, topk_weights, num_experts, run_config=None, guard=oracle.GUARD):
    out = oracle.poisoned_rows(num_experts, topk_ids.numel(), topk_weights.dtype, topk_ids.device, guard)
    align_rows(topk_ids, topk_weights, num_experts, out=out.rows, run_config=run_config)
    return out


def check(topk_ids, num_experts, weights_dtype=torch.float32, guard=oracle.GUARD, **run_config):
    topk_weights = oracle.distinct_weights(topk_ids, weights_dtype)
    out = align_poisoned(topk_ids, topk_weights, num_experts, run_config or None, guard)
    oracle.assert_rows(out, topk_ids, topk_weights)


def assert_same_memory(one, other):
    for name in one.memory._fields:
        oracle.assert_same_bits(name, getattr(one.memory, name), getattr(other.memory, name))

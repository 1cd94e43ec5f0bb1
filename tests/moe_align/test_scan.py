"""The scan: every launch configuration, and experts past the end."""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from moe_align import Rows
from moe_align.kernels import scan
from tests.moe_align import oracle
from tests.moe_align.alignment import align_poisoned, assert_same_memory, check
from tests.moe_align.cases import random_ids


def test_experts_past_the_end_are_masked(device, stored_addresses):
    # Two programs of four experts for five: the second one's other three must not wrap around to experts 0, 1
    # and 2, whose rows and counts the first program writes, nor claim the ids 5, 6 and 7.
    topk_ids = torch.tensor([[0, 4, 5], [1, 4, 6], [2, 4, 7], [0, 3, 4]], device=device)
    check(topk_ids, 5, EXPERT_BLOCK=4)
    assert len(stored_addresses) == len(set(stored_addresses))
    assert len(stored_addresses) == (0 if device.type == "cuda" else 5 + 2 * 9)


@pytest.mark.parametrize("num_experts", [1, 3, 5, 7, 13, 17], ids="experts={}".format)
@pytest.mark.parametrize("expert_block", [1, 2, 4, 8, 16], ids="EXPERT_BLOCK={}".format)
def test_expert_block_need_not_divide_the_experts(device, stored_addresses, num_experts, expert_block):
    # Three ids past the end: lanes that pad the last program.
    topk_ids = random_ids(11, 3, num_experts + 3).to(device)
    check(topk_ids, num_experts, EXPERT_BLOCK=expert_block, BLOCK_SIZE=16)
    assert len(stored_addresses) == len(set(stored_addresses))


@pytest.mark.parametrize("num_slots", [0, 1, 127, 128, 129, 131, 257], ids="slots={}".format)
@pytest.mark.parametrize("block_size", [16, 32, 128, 512], ids="BLOCK_SIZE={}".format)
def test_block_size_need_not_divide_the_slots(device, num_slots, block_size):
    check(random_ids(num_slots, 1, 3).to(device), 3, BLOCK_SIZE=block_size, EXPERT_BLOCK=4)


def test_tiles_of_one_slot(device):
    check(random_ids(7, 1, 3).to(device), 3, BLOCK_SIZE=1, EXPERT_BLOCK=1)


@pytest.mark.parametrize("num_stage", [1, 2, 3, 4, 8], ids="NUM_STAGE={}".format)
def test_stages(device, num_stage):
    check(random_ids(43, 3, 5).to(device), 5, BLOCK_SIZE=32, EXPERT_BLOCK=2, NUM_STAGE=num_stage)


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16, 32], ids="num_warps={}".format)
def test_warps(device, num_warps):
    check(random_ids(43, 3, 5).to(device), 5, BLOCK_SIZE=64, EXPERT_BLOCK=2, num_warps=num_warps)


@pytest.mark.parametrize("num_slots", [7, 15, 16, 255, 256], ids="slots={}".format)
@pytest.mark.parametrize("expert_block", [2, 4, 8, 16], ids="EXPERT_BLOCK={}".format)
def test_counters_of_several_experts_do_not_run_into_each_other(device, num_slots, expert_block):
    # Every expert's field but one is empty, and that one as full as it gets.
    for expert in (0, 1, expert_block - 1):
        check(torch.full((num_slots, 1), expert, device=device), expert_block, EXPERT_BLOCK=expert_block, BLOCK_SIZE=64)


def test_every_configuration_gives_the_same_bits(device):
    topk_ids = random_ids(53, 3, 14).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    default = align_poisoned(topk_ids, topk_weights, 11)
    oracle.assert_rows(default, topk_ids, topk_weights)
    for block_size in (32, 256):
        for expert_block in (1, 4, 16):
            for num_stage, num_warps in ((1, 1), (3, 4), (2, 8)):
                config = {
                    "BLOCK_SIZE": block_size,
                    "EXPERT_BLOCK": expert_block,
                    "NUM_STAGE": num_stage,
                    "num_warps": num_warps,
                }
                assert_same_memory(align_poisoned(topk_ids, topk_weights, 11, config), default)


@pytest.mark.interpreter
def test_places_past_two_to_the_31_do_not_overflow(monkeypatch):
    # The last of so many experts, with stores recorded instead of done: no such memory is needed.
    num_slots, num_experts = 129, 2**31 // 129 + 2
    addresses = []
    monkeypatch.setattr(
        InterpreterBuilder,
        "create_masked_store",
        lambda self, pointers, value, mask, *hints: addresses.extend(pointers.data[mask.data].tolist()),
    )
    last = TensorHandle(np.array([num_experts - 1], dtype=np.int32), tl.int32)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", lambda self, axis: last)
    topk_ids = torch.full((num_slots,), num_experts - 1)
    slot_index, weights, counts = Rows.empty(1, 1, torch.float32, torch.device("cpu"))
    scan.align_rows_scan_kernel[(1,)](
        topk_ids,
        torch.zeros(num_slots),
        slot_index,
        weights,
        counts,
        num_slots,
        num_experts,
        BLOCK_SIZE=256,
        ROW=4,
        EXPERT_BLOCK=1,
        FIELD=32,
        ONE_TILE=True,
        NUM_STAGE=1,
        OVERLAP=0,
    )
    places = range((num_experts - 1) * num_slots, num_experts * num_slots)
    assert places.start > 2**31
    expected = [
        *(slot_index.data_ptr() + 4 * place for place in places),
        *(weights.data_ptr() + 4 * place for place in places),
        counts.data_ptr() + 4 * (num_experts - 1),
    ]
    assert sorted(addresses) == sorted(expected)

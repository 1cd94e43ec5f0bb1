"""Sifting: chunks, warps and tiles; more hits than are loaded ahead; counters that are full."""

import functools

import pytest
import torch

from moe_align.kernels import sift
from tests.moe_align import alignment
from tests.moe_align.cases import random_ids

check = functools.partial(alignment.check, strategy="sift")


def test_experts_past_the_end_are_masked(device, stored_addresses):
    topk_ids = torch.tensor([[0, 4, 5], [1, 4, 6], [2, 4, 7], [0, 3, 4]], device=device)
    check(topk_ids, 5, EXPERT_BLOCK=4, num_warps=1)
    assert len(stored_addresses) == len(set(stored_addresses))
    assert len(stored_addresses) == (0 if device.type == "cuda" else 5 + 2 * 9)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 5, 7, 13], ids="experts={}".format)
@pytest.mark.parametrize("expert_block", [1, 2, 4], ids="EXPERT_BLOCK={}".format)
def test_expert_block_need_not_divide_the_experts(device, stored_addresses, num_experts, expert_block):
    topk_ids = random_ids(50, 3, num_experts + 3).to(device)
    check(topk_ids, num_experts, EXPERT_BLOCK=expert_block, num_warps=1)
    assert len(stored_addresses) == len(set(stored_addresses))


# Up to eight chunks of 128 slots a warp make one tile; 1025 slots and more take several.
@pytest.mark.parametrize(
    "num_slots", [0, 1, 127, 128, 129, 255, 257, 385, 513, 1024, 1025, 2500], ids="slots={}".format
)
@pytest.mark.parametrize("expert_block", [1, 2, 4], ids="EXPERT_BLOCK={}".format)
def test_slots_need_not_fill_chunks_or_tiles(device, num_slots, expert_block):
    check(random_ids(num_slots, 1, 6).to(device), 6, EXPERT_BLOCK=expert_block, num_warps=1)


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16, 32], ids="num_warps={}".format)
def test_warps(device, num_warps):
    check(random_ids(300, 3, 5).to(device), 5, EXPERT_BLOCK=2, num_warps=num_warps)


@pytest.mark.parametrize("hits", [1, 2, 3, 8], ids="HITS={}".format)
@pytest.mark.parametrize("expert_block", [1, 2, 4], ids="EXPERT_BLOCK={}".format)
def test_lanes_may_have_more_hits_than_are_loaded_ahead(device, hits, expert_block):
    # Half of the slots go to one expert, so lanes have from none to all of their slots.
    topk_ids = random_ids(530, 1, 8).clamp(min=4).sub(3).to(device)
    check(topk_ids, 5, EXPERT_BLOCK=expert_block, HITS=hits, num_warps=1)


@pytest.mark.parametrize("num_slots", [128, 512, 1024], ids="slots={}".format)
@pytest.mark.parametrize("expert_block", [1, 2, 4], ids="EXPERT_BLOCK={}".format)
def test_counters_of_several_experts_do_not_run_into_each_other(device, num_slots, expert_block):
    # Every lane, chunk and warp has as many of one expert as it can have.
    for expert in range(expert_block):
        topk_ids = torch.full((num_slots, 1), expert, device=device)
        check(topk_ids, expert_block, EXPERT_BLOCK=expert_block, num_warps=1)


@pytest.mark.gpu
@pytest.mark.parametrize("num_slots", [2**15, 2**16 - 1, 2**16, 2**16 + 1], ids="slots={}".format)
@pytest.mark.parametrize("expert", range(4), ids="expert={}".format)
def test_counts_around_16_bits(device, num_slots, expert):
    topk_ids = torch.full((num_slots, 1), expert, device=device)
    check(topk_ids, 4, torch.float32, EXPERT_BLOCK=4, num_warps=16)


@pytest.mark.parametrize(
    ("x", "index"), [(1, 0), (2, 1), (3, 0), (12, 2), (2**30, 30), (-(2**31), 31), (-1, 0), (-8, 3)], ids=str
)
@pytest.mark.interpreter
def test_lowest_bit(x, index):
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr, lowest_ptr, count_ptr):
        x = tl.load(x_ptr + tl.arange(0, 1))
        tl.store(lowest_ptr + tl.arange(0, 1), sift._lowest_bit(x))
        tl.store(count_ptr + tl.arange(0, 1), sift._count_bits(x))

    lowest, count = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    kernel[(1,)](torch.tensor([x], dtype=torch.int32), lowest, count)
    assert int(lowest) == index
    assert int(count) == (x & 0xFFFFFFFF).bit_count()

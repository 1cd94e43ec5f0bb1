"""Collecting: chunks, warps and tiles; short and long lists; counters that are full."""

import functools

import pytest
import torch

from tests.moe_align import alignment
from tests.moe_align.cases import random_ids

check = functools.partial(alignment.check, strategy="collect")
each_expert_block = pytest.mark.parametrize("expert_block", [1, 2, 4, 8], ids="EXPERT_BLOCK={}".format)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 5, 7, 13], ids="experts={}".format)
@each_expert_block
def test_expert_block_need_not_divide_the_experts(device, num_experts, expert_block):
    check(random_ids(50, 3, num_experts + 3).to(device), num_experts, EXPERT_BLOCK=expert_block, num_warps=1)


# Up to eight chunks of 128 slots a warp make one tile, of 64-bit ids four.
@pytest.mark.parametrize(
    "num_slots", [0, 1, 127, 128, 129, 255, 257, 513, 641, 1024, 1025, 1700], ids="slots={}".format
)
@each_expert_block
def test_slots_need_not_fill_chunks_or_tiles(device, num_slots, expert_block):
    for dtype in (torch.int32, torch.int64):
        check(random_ids(num_slots, 1, 5).to(device, dtype), 5, EXPERT_BLOCK=expert_block, num_warps=1)


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16], ids="num_warps={}".format)
def test_warps(device, num_warps):
    check(random_ids(300, 3, 5).to(device), 5, EXPERT_BLOCK=2, num_warps=num_warps)


# A list is short up to 128 hits; a piece of a long one has 128 hits a warp.
@pytest.mark.parametrize("num_hits", [0, 1, 127, 128, 129, 255, 256, 257, 500], ids="hits={}".format)
@each_expert_block
def test_lists_of_every_length(device, num_hits, expert_block):
    topk_ids = torch.full((600, 1), -1)
    places = torch.randperm(600, generator=torch.Generator().manual_seed(num_hits))[:num_hits]
    topk_ids[places] = random_ids(num_hits, 1, expert_block)
    check(topk_ids.to(device), expert_block, EXPERT_BLOCK=expert_block, num_warps=2)


@pytest.mark.parametrize("num_slots", [128, 512, 1024, 1300], ids="slots={}".format)
@each_expert_block
def test_counters_of_several_experts_do_not_run_into_each_other(device, num_slots, expert_block):
    # Every lane, chunk and warp has as many of one expert as it can have.
    for expert in range(expert_block):
        check(torch.full((num_slots, 1), expert, device=device), expert_block, EXPERT_BLOCK=expert_block, num_warps=1)


@pytest.mark.gpu
@pytest.mark.parametrize("num_slots", [2**14, 2**16 - 1, 2**16 + 1], ids="slots={}".format)
@pytest.mark.parametrize("expert", range(0, 8, 3), ids="expert={}".format)
def test_long_lists_of_one_expert(device, num_slots, expert):
    check(torch.full((num_slots, 1), expert, device=device), 8, EXPERT_BLOCK=8, num_warps=16)


@pytest.mark.gpu
@pytest.mark.parametrize("num_experts", [700, 896, 1024], ids="experts={}".format)
@pytest.mark.parametrize("num_tokens", [500, 1000, 2048], ids="tokens={}".format)
def test_models_of_many_experts(device, num_tokens, num_experts):
    check(random_ids(num_tokens, 8, num_experts).to(device), num_experts, EXPERT_BLOCK=8, num_warps=16)

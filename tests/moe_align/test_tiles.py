"""Tiles: slots within a tile, many tiles, and more experts than one program has bins."""

import functools

import pytest
import torch

from moe_align.kernels import tiles
from tests.moe_align import alignment
from tests.moe_align.cases import random_ids

check = functools.partial(alignment.check, strategy="tiles")


@pytest.mark.parametrize("num_slots", [0, 1, 31, 32, 33, 64, 127, 129, 257], ids="slots={}".format)
@pytest.mark.parametrize("block_size", [32, 128], ids="BLOCK_SIZE={}".format)
def test_slots_need_not_fill_tiles(device, num_slots, block_size):
    check(random_ids(num_slots, 1, 5).to(device), 5, BLOCK_SIZE=block_size, num_warps=1)


@pytest.mark.parametrize("block_size", [1, 16, 32, 64, 512, tiles.MAX_TILE], ids="BLOCK_SIZE={}".format)
@pytest.mark.parametrize(
    "num_warps",
    # The interpreter has no warps.
    [4, pytest.param(1, marks=pytest.mark.gpu), pytest.param(32, marks=pytest.mark.gpu)],
    ids="num_warps={}".format,
)
def test_tiles_and_warps(device, block_size, num_warps):
    # A tile of fewer slots than its warps have lanes is widened.
    check(random_ids(150, 2, 9).to(device), 9, BLOCK_SIZE=block_size, num_warps=num_warps)


@pytest.mark.parametrize("num_experts", [31, 32, 33, 64, 65, 100], ids="experts={}".format)
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_more_experts_than_bins(device, plan_with, num_experts, ids_dtype):
    plan_with(tiles, "_COUNT_BINS", 32)
    # From -1 to three past the end: ids that only another program's bins, or nobody's, could hold.
    topk_ids = random_ids(40, 3, num_experts + 4).sub(1).to(device, ids_dtype)
    check(topk_ids, num_experts, BLOCK_SIZE=64, num_warps=1)


@pytest.mark.parametrize("num_slots", [32 * 15, 32 * 16, 32 * 16 + 1, 32 * 40], ids="slots={}".format)
def test_more_tiles_than_are_summed_at_once(device, plan_with, num_slots):
    plan_with(tiles, "_SUM_TILES", 16)
    check(random_ids(num_slots, 1, 3).to(device), 3, BLOCK_SIZE=32, num_warps=1)


@pytest.mark.parametrize("expert", [0, 2, 6], ids="expert={}".format)
def test_one_expert_takes_all(device, expert):
    check(torch.full((100, 3), expert, device=device), 7, BLOCK_SIZE=32, num_warps=1)


def test_one_expert_takes_a_whole_tile(device):
    check(torch.full((tiles.MAX_TILE + 1, 1), 2, device=device), 7, BLOCK_SIZE=tiles.MAX_TILE)


@pytest.mark.gpu
@pytest.mark.parametrize("num_experts", [4096, 5000], ids="experts={}".format)
def test_thousands_of_experts(device, num_experts):
    check(random_ids(3000, 8, num_experts + 2).sub(1).to(device), num_experts)


@pytest.mark.gpu
def test_keys_of_more_than_31_bits(device):
    num_experts = 2**20 + 1
    check(random_ids(8, 4, num_experts).to(device), num_experts, BLOCK_SIZE=tiles.MAX_TILE)


@pytest.mark.gpu
def test_launches_that_overlap_do_not_read_what_an_earlier_call_left(device):
    # The workspace of every call lies where that of the call before lay, with other counts in it.
    inputs = [random_ids(2500, 8, 256, seed).to(device) for seed in range(8)]
    for _ in range(25):
        for topk_ids in inputs:
            out = alignment.align_poisoned(
                topk_ids, torch.zeros(topk_ids.shape, device=device), 256, {"strategy": "tiles"}
            )
    for topk_ids in inputs:
        check(topk_ids, 256)
    assert int(out.rows.counts.sum()) == 2500 * 8

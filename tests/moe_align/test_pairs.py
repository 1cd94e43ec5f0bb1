"""Pairs: which calls they serve, slots around the limits, many programs, and elements written once."""

import itertools

import pytest
import torch

from moe_align import Blocks, align_blocks, align_offsets, align_rows, dispatch
from moe_align.kernels import launch, pairs
from moe_align.layouts import Regions
from tests.moe_align import flat
from tests.moe_align.cases import random_ids
from tests.moe_align.flat import check_blocks
from tests.moe_align.test_blocks import each_mode, options_of


@pytest.fixture
def planned(monkeypatch):
    """Slots of each call that pairs were planned for."""
    slots = []
    real = pairs.plan
    monkeypatch.setattr(pairs, "plan", lambda call: slots.append(call.num_slots) or real(call))
    dispatch._launcher.cache_clear()
    yield slots
    dispatch._launcher.cache_clear()


@pytest.mark.parametrize("num_experts", [1, 257], ids="experts={}".format)
def test_blocks_of_up_to_64_slots_are_served(device, planned, num_experts):
    for num_slots in (0, 1, 63, 64, 65):
        check_blocks(random_ids(num_slots, 1, num_experts).to(device), 4, num_experts)
    assert planned == [0, 1, 63, 64]


def test_nothing_else_is(device, planned):
    topk_ids, weights = random_ids(4, 2, 8).to(device), torch.ones(4, 2, device=device)
    align_rows(topk_ids, weights, 8)
    align_offsets(topk_ids, 8)
    align_blocks(topk_ids, 4, 8, implementation="reference")
    for run_config in ({}, {"num_warps": 1}, {"strategy": "scan"}, {"strategy": "tiles"}):
        align_blocks(topk_ids, 4, 8, run_config=run_config)
    assert planned == []


@pytest.mark.parametrize("block_size", [1, 3, 16, 64], ids="block_size={}".format)
@pytest.mark.parametrize("num_experts", [1, 5, 8, 256, 1000], ids="experts={}".format)
@pytest.mark.parametrize("num_slots", [1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64], ids="slots={}".format)
def test_slots_and_experts(device, num_slots, num_experts, block_size):
    check_blocks(random_ids(num_slots, 1, num_experts).to(device), block_size, num_experts, torch.float32)


@each_mode
@pytest.mark.parametrize("block_size", [1, 3, 16], ids="block_size={}".format)
@pytest.mark.parametrize("num_experts", [5, 8, 256], ids="experts={}".format)
@pytest.mark.parametrize("num_slots", [2, 40, 64], ids="slots={}".format)
def test_modes_with_ids_out_of_range(device, mode, num_slots, num_experts, block_size):
    topk_ids = random_ids(num_slots // 2, 2, num_experts + 4).sub(2).to(device, torch.int32)
    options = options_of(mode, num_experts, device)
    check_blocks(topk_ids, block_size, num_experts, torch.bfloat16, spare=37, **options)


@pytest.mark.parametrize("expert", [0, 3, 6], ids="expert={}".format)
@pytest.mark.parametrize("num_slots", [16, 64], ids="slots={}".format)
@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 100], ids="block_size={}".format)
def test_one_expert_takes_all(device, block_size, num_slots, expert):
    check_blocks(torch.full((num_slots, 1), expert, device=device), block_size, 7)


@pytest.mark.parametrize(("warp_slots", "warp_places"), [(64, 32), (32, 16), (16, 32), (8, 8), (32, 128)], ids=str)
@pytest.mark.parametrize("num_slots", [8, 32, 64], ids="slots={}".format)
def test_warps_and_places_of_a_program(device, plan_with, warp_slots, warp_places, num_slots):
    plan_with(pairs, "_WARP_SLOTS", warp_slots)
    plan_with(pairs, "_WARP_PLACES", warp_places)
    check_blocks(random_ids(num_slots, 1, 9).sub(1).to(device), 3, 7, torch.float16, spare=5)


# No slots, all of them dropped, and as many blocks as places.
@pytest.mark.parametrize(("num_slots", "first", "block_size"), [(0, 0, 16), (6, 40, 16), (64, -1, 1)], ids=str)
@each_mode
@pytest.mark.interpreter
def test_every_element_is_written_once(device, stored_addresses, mode, num_slots, first, block_size):
    topk_ids = (random_ids(num_slots // 2, 2, 8) + first).to(device)
    memory = check_blocks(topk_ids, block_size, 6, torch.float32, spare=300, **options_of(mode, 6, device))
    written = flat.written_within(stored_addresses, memory)
    assert len(written) == len(set(written)) == sum(len(tensor) for tensor in memory.tensors.values())


@pytest.mark.parametrize(("capacity", "num_blocks"), [(0, 0), (0, 90), (200, 0), (200, 13)], ids=str)
def test_buffers_of_any_size_hold_no_slots(device, capacity, num_blocks):
    # More blocks than places need, too.
    out = Blocks(*(torch.full((size,), -7, dtype=torch.int32, device=device) for size in (capacity, num_blocks, 1)))
    call, arguments = launch.of_regions(
        torch.zeros((0, 2), dtype=torch.int32, device=device),
        None,
        Regions(
            out.sorted_token_ids,
            None,
            5,
            16,
            expert_ids=out.expert_ids,
            num_tokens_post_padded=out.num_tokens_post_padded,
        ),
    )
    launch.Launcher(call, pairs.plan(call))(arguments)
    assert [tensor.tolist() for tensor in out[:3]] == [[0] * capacity, [-1] * num_blocks, [0]]


@pytest.mark.gpu
def test_the_last_place_that_32_bits_number(device):
    # The most that blocks may have, in two, both of which hold one slot; 8 GiB.
    capacity, block_size = 2**31 - 2**20 - 1, 2**30 - 2**19 - 1
    out = Blocks(
        torch.empty(capacity, dtype=torch.int32, device=device),
        torch.empty(2, dtype=torch.int32, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
    )
    align_blocks(torch.tensor([[1, 0]], device=device), block_size, 2, out=out)
    assert out.expert_ids.tolist() == [0, 1]
    assert out.num_tokens_post_padded.tolist() == [2 * block_size]
    assert (out.sorted_token_ids[0].item(), out.sorted_token_ids[block_size].item()) == (1, 0)
    assert int((out.sorted_token_ids != 2).sum()) == 2


@pytest.mark.gpu
@each_mode
def test_every_number_of_slots(device, mode):
    for num_slots, block_size in itertools.product(range(1, 66), (1, 16, 64)):
        topk_ids = random_ids(num_slots, 1, 132, num_slots).sub(2).to(device, torch.int32)
        check_blocks(topk_ids, block_size, 128, torch.bfloat16, **options_of(mode, 128, device))

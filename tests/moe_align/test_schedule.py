"""The block schedule against plain loops."""

import itertools

import pytest
import torch

from moe_align import schedule_blocks
from moe_align.kernels import schedule as kernel
from moe_align.layouts import schedule_capacity
from tests.moe_align import oracle
from tests.moe_align.cases import random_ids


def random_counts(num_slots, num_experts, seed=0):
    counts = [0] * num_experts
    for expert in random_ids(num_slots, 1, num_experts, seed).reshape(-1).tolist():
        counts[expert] += 1
    return counts


def check(device, counts, block_size, num_slots=None):
    num_slots = sum(counts) if num_slots is None else num_slots
    schedule = schedule_blocks(torch.tensor(counts, dtype=torch.int32, device=device), num_slots, block_size)
    assert schedule.dtype == torch.int32
    assert schedule.is_contiguous()
    capacity = schedule_capacity(num_slots, len(counts), block_size)
    assert schedule.shape == (capacity, 3)
    expected = torch.tensor(oracle.schedule(counts, block_size, capacity), dtype=torch.int32)
    oracle.assert_same_bits("schedule", schedule.cpu().reshape(-1), expected.reshape(-1), shape=(capacity, 3))


def assert_launch_writes(device, counts, block_size, capacity):
    """Launch into the middle of poisoned memory, all of which is compared."""
    guard = oracle.GUARD
    size = guard + 3 * capacity + guard
    memory = torch.full((size,), oracle.INT32_POISON, dtype=torch.int32, device=device)
    expected = memory.cpu().clone()
    rows = oracle.schedule(counts, block_size, capacity)
    expected[guard : guard + 3 * capacity] = torch.tensor(rows, dtype=torch.int32).reshape(-1)
    out = memory[guard : guard + 3 * capacity].view(capacity, 3)
    kernel.schedule_blocks(torch.tensor(counts, dtype=torch.int32, device=device), block_size, out)
    oracle.assert_same_bits("schedule", memory.cpu(), expected, guard, (capacity, 3))


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 16, 64, 127, 128], ids="block_size={}".format)
@pytest.mark.parametrize("num_experts", [1, 2, 3, 5, 8, 13], ids="experts={}".format)
def test_block_sizes(device, num_experts, block_size):
    check(device, random_counts(200, num_experts), block_size)


@pytest.mark.parametrize("num_experts", [31, 64, 100, 129, 300], ids="experts={}".format)
def test_many_experts(device, num_experts):
    check(device, random_counts(2 * num_experts, num_experts), 3)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 127, 128, 129], ids="count={}".format)
def test_counts_around_whole_blocks(device, count):
    check(device, [count, 0, count, 1], 16)


@pytest.mark.parametrize(
    ("counts", "block_size", "num_slots"),
    [
        pytest.param([0], 1, 0, id="one-expert-no-slots"),
        pytest.param([0, 0, 0, 0, 0], 16, 0, id="no-slots"),
        pytest.param([0, 0, 0], 16, 40, id="all-dropped"),
        pytest.param([0, 0, 0, 9, 0], 4, 9, id="empty-but-one"),
        pytest.param([9, 0, 0], 4, 9, id="empty-after-the-first"),
        pytest.param([0, 0, 9], 4, 9, id="empty-before-the-last"),
        pytest.param([2, 3, 1], 2, 16, id="some-dropped"),
        pytest.param([300], 1, 300, id="more-blocks-than-a-tile"),
        pytest.param([0, 257, 130], 1, 387, id="many-blocks-of-two-experts"),
        pytest.param([0, 1], 1, 300, id="more-padding-than-a-tile"),
        pytest.param([128], 1, 128, id="blocks-just-a-tile"),
        pytest.param([129], 1, 129, id="blocks-just-past-a-tile"),
    ],
)
def test_empty_and_full_experts(device, counts, block_size, num_slots):
    check(device, counts, block_size, num_slots)


@pytest.mark.parametrize(
    ("counts", "block_size"),
    [
        pytest.param([1, 1, 1, 1, 1], 16, id="a-slot-each"),
        pytest.param([17, 17, 17], 16, id="a-block-and-a-slot-each"),
        pytest.param([5, 3, 0, 2], 1, id="blocks-of-one"),
    ],
)
def test_capacity_can_be_exactly_full(device, counts, block_size):
    capacity = schedule_capacity(sum(counts), len(counts), block_size)
    assert -1 not in itertools.chain(*oracle.schedule(counts, block_size, capacity))
    assert oracle.schedule(counts, block_size, capacity + 1)[-1] == [-1, -1, -1]
    check(device, counts, block_size)


def test_capacity_is_enough_for_every_choice_of_experts():
    for num_experts, num_slots, block_size in itertools.product(range(1, 5), range(8), range(1, 6)):
        capacity = schedule_capacity(num_slots, num_experts, block_size)
        for counts in itertools.product(range(num_slots + 1), repeat=num_experts):
            if sum(counts) <= num_slots:
                assert oracle.schedule(counts, block_size, capacity + 1)[-1] == [-1, -1, -1], (
                    counts,
                    block_size,
                )


@pytest.mark.parametrize("capacity", [0, 1, 3, 4, 129], ids="capacity={}".format)
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([0, 0, 0], id="none"),
        pytest.param([1, 0, 2], id="fits"),
        pytest.param([4, 4, 4], id="cut-between-experts"),
        pytest.param([2, 300, 5], id="cut-within-an-expert"),
        pytest.param([500, 1, 0], id="cut-within-the-first"),
    ],
)
def test_writes_every_row_and_nothing_outside(device, counts, capacity):
    assert_launch_writes(device, counts, 1, capacity)


def test_counts_past_the_number_of_slots_are_cut(device):
    check(device, [4, 4, 4], 2, num_slots=3)


def test_strided_counts(device):
    counts = torch.tensor([[3, 9], [0, 9], [1, 9]], dtype=torch.int32, device=device)[:, 0]
    assert schedule_blocks(counts, 4, 2).tolist() == oracle.schedule([3, 0, 1], 2, 4)


@pytest.mark.parametrize(
    "block_size",
    [
        pytest.param(2**30, id="2**30"),
        pytest.param(2**31 - 5, id="2**31-5"),
        pytest.param(2**31 - 4, id="2**31-4"),
        pytest.param(2**31 - 1, id="2**31-1"),
    ],
)
def test_blocks_larger_than_every_expert(device, block_size):
    # From 2**31 - 4 on, count + block_size - 1 is no int32 any more.
    assert_launch_writes(device, [5, 0, 3], block_size, capacity=4)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        pytest.param({"counts": [1, 2]}, TypeError, ["counts", "torch.Tensor", "list"], id="counts-a-list"),
        pytest.param(
            {"counts": torch.ones(3)},
            TypeError,
            ["counts", "torch.int32", "torch.float32"],
            id="counts-float",
        ),
        pytest.param(
            {"counts": torch.ones(3, dtype=torch.int64)},
            TypeError,
            ["counts", "torch.int32", "torch.int64"],
            id="counts-int64",
        ),
        pytest.param(
            {"counts": torch.ones((2, 3), dtype=torch.int32)},
            ValueError,
            ["counts", "[num_experts]", "[2, 3]"],
            id="counts-2d",
        ),
        pytest.param(
            {"counts": torch.ones(0, dtype=torch.int32)},
            ValueError,
            ["counts", "at least 1", "[0]"],
            id="no-experts",
        ),
        pytest.param(
            {"counts": torch.ones(3, dtype=torch.int32, device="meta")},
            ValueError,
            ["counts", "CPU or CUDA", "meta"],
            id="counts-meta",
        ),
        pytest.param({"num_slots": -1}, ValueError, ["num_slots", "0 to", "-1"], id="num_slots-negative"),
        pytest.param(
            {"num_slots": 2**31},
            ValueError,
            ["num_slots", "0 to", "2147483648"],
            id="num_slots-too-large",
        ),
        pytest.param(
            {"num_slots": 4.0},
            TypeError,
            ["num_slots", "int", "4.0", "float"],
            id="num_slots-float",
        ),
        pytest.param(
            {"num_slots": True},
            TypeError,
            ["num_slots", "int", "True", "bool"],
            id="num_slots-bool",
        ),
        pytest.param(
            {"block_size": 0},
            ValueError,
            ["block_size", "at least 1", "got 0"],
            id="block_size-zero",
        ),
        pytest.param(
            {"block_size": -16},
            ValueError,
            ["block_size", "at least 1", "-16"],
            id="block_size-negative",
        ),
        pytest.param(
            {"block_size": 2**31},
            ValueError,
            ["block_size", "less than 2**31", "2147483648"],
            id="block_size-too-large",
        ),
        pytest.param(
            {"block_size": "16"},
            TypeError,
            ["block_size", "int", "'16'", "str"],
            id="block_size-a-string",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(arguments, error, said):
    counts = torch.tensor([1, 2], dtype=torch.int32)
    with pytest.raises(error) as failure:
        schedule_blocks(**{"counts": counts, "num_slots": 3, "block_size": 2, **arguments})
    message = str(failure.value)
    assert message.startswith(said[0] + ":")
    assert [part for part in said if part not in message] == [], message


def test_counts_that_sum_past_32_bits_are_cut_off(device):
    counts = torch.tensor([2**31 - 1, 2**31 - 1, 2**31 - 1, 5], dtype=torch.int32, device=device)
    assert schedule_blocks(counts, num_slots=3, block_size=1).tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2]]


def test_more_experts_than_a_tile_holds_are_refused():
    counts = torch.empty(2**20 + 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"counts: expected at most 1048576 experts, got 1048577"):
        schedule_blocks(counts, num_slots=3, block_size=1)

import pytest
import torch

import moe_align
from benchmarks import oracle
from moe_align import Rows
from tests.moe_align import oracle as loops
from tests.moe_align.cases import WIDE_IDS, each_case, each_id_dtype

UNTOUCHED = -7


def rows_by_loops(topk_ids, topk_weights, num_experts):
    """The right answer in plain loops, in buffers filled with UNTOUCHED."""
    num_slots = topk_ids.numel()
    rows = Rows.empty(num_experts, num_slots, topk_weights.dtype, topk_ids.device)
    for tensor in rows:
        tensor.fill_(UNTOUCHED)
    flat_weights = topk_weights.reshape(-1)
    for expert, slots in enumerate(loops.slots_by_expert(topk_ids, num_experts)):
        rows.counts[expert] = len(slots)
        for rank, slot in enumerate(slots):
            rows.slot_index[expert, rank] = slot
            rows.weights[expert, rank] = flat_weights[slot]
    return rows


def weights_of(topk_ids, dtype=torch.float32):
    """A weight of its own for each slot."""
    return (torch.arange(topk_ids.numel()) + 1).to(dtype).reshape(topk_ids.shape) / 1024


@each_case
@each_id_dtype
def test_place_is_what_plain_loops_give(case, ids_dtype):
    topk_ids = case.tensor("cpu", ids_dtype)
    placed = oracle.place(topk_ids, case.num_experts)
    expected = [
        (slot, expert, rank)
        for expert, slots in enumerate(loops.slots_by_expert(topk_ids, case.num_experts))
        for rank, slot in enumerate(slots)
    ]
    assert list(zip(*(tensor.tolist() for tensor in placed[:3]), strict=True)) == expected
    counts = [len(slots) for slots in loops.slots_by_expert(topk_ids, case.num_experts)]
    assert placed.counts.tolist() == counts
    assert {tensor.dtype for tensor in placed} == {torch.int64}


def test_place_does_not_truncate_wide_ids():
    placed = oracle.place(WIDE_IDS.tensor("cpu"), WIDE_IDS.num_experts)
    expected = loops.slots_by_expert(WIDE_IDS.tensor("cpu"), WIDE_IDS.num_experts)
    assert placed.slots.tolist() == [slot for slots in expected for slot in slots]


@each_case
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_the_right_rows_do_not_differ(case, ordered):
    topk_ids = case.tensor("cpu")
    topk_weights = weights_of(topk_ids)
    rows = rows_by_loops(topk_ids, topk_weights, case.num_experts)
    assert oracle.difference(rows, topk_ids, topk_weights, ordered=ordered, untouched=UNTOUCHED) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_are_compared_in_their_own_dtype(dtype):
    topk_ids = torch.tensor([[0, 1], [1, 0]])
    topk_weights = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=dtype)
    rows = rows_by_loops(topk_ids, topk_weights, 2)
    assert oracle.difference(rows, topk_ids, topk_weights) is None
    rows.weights[1, 1] = torch.nextafter(rows.weights[1, 1], torch.tensor(1.0, dtype=dtype))
    assert oracle.difference(rows, topk_ids, topk_weights).startswith("weights[1, 1] is ")


#: Slots of experts 0 to 3: [1, 4, 5], [0], [], [2, 3]; id 9 of slot 6 and id -1 of slot 7 are dropped.
TOPK_IDS = torch.tensor([[1, 0], [3, 3], [0, 0], [9, -1]])


def swap(tensor, one, other):
    tensor[one], tensor[other] = tensor[other].clone(), tensor[one].clone()


def write(tensor, place, value):
    tensor[place] = value


def drop_last_of_expert_0(rows):
    rows.counts[0] -= 1
    rows.slot_index[0, 2] = UNTOUCHED
    rows.weights[0, 2] = UNTOUCHED


def swap_pair(rows):
    swap(rows.slot_index, (0, 0), (0, 1))
    swap(rows.weights, (0, 0), (0, 1))


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize(
    ("damage", "where"),
    [
        pytest.param(lambda rows: write(rows.counts, 1, 2), "counts[1] is 2, expected 1", id="count-too-high"),
        pytest.param(lambda rows: write(rows.counts, 3, 0), "counts[3] is 0, expected 2", id="count-too-low"),
        pytest.param(
            lambda rows: write(rows.counts, 2, UNTOUCHED), "counts[2] is -7, expected 0", id="count-unwritten"
        ),
        pytest.param(drop_last_of_expert_0, "counts[0] is 2, expected 3", id="slot-dropped"),
        pytest.param(lambda rows: write(rows.slot_index, (1, 0), 6), "slot_index[1, 0] is 6, expected 0", id="id-kept"),
        pytest.param(lambda rows: write(rows.slot_index, (0, 1), 1), "slot_index[0, 1] is 1", id="slot-twice"),
        pytest.param(lambda rows: write(rows.slot_index, (0, 2), UNTOUCHED), "slot_index[0, ", id="slot-unwritten"),
        pytest.param(lambda rows: swap(rows.slot_index, (0, 0), (3, 0)), "slot_index[0, ", id="another-experts-slot"),
        pytest.param(lambda rows: write(rows.weights, (3, 1), 0.5), "weights[3, 1] is 0.5", id="wrong-weight"),
        pytest.param(lambda rows: write(rows.weights, (3, 1), float("nan")), "weights[3, 1] is nan", id="nan-weight"),
        pytest.param(lambda rows: swap(rows.weights, (0, 0), (0, 2)), "weights[0, 0]", id="weights-swapped"),
        pytest.param(
            lambda rows: write(rows.slot_index, (2, 0), 6), "slot_index was written beyond the counts", id="slot-beyond"
        ),
        pytest.param(
            lambda rows: write(rows.weights, (0, 3), 0.0), "weights was written beyond the counts", id="weight-beyond"
        ),
        pytest.param(lambda rows: write(rows.slot_index, (3, 7), 0), "slot_index was written beyond", id="very-last"),
        pytest.param(lambda rows: write(rows.slot_index, (0, 0), 2**31 - 1), "slot_index[0, ", id="index-too-large"),
        pytest.param(lambda rows: write(rows.slot_index, (1, 0), -(2**31)), "slot_index[", id="index-negative"),
        pytest.param(lambda rows: write(rows.slot_index, (0, 0), 1 + 8), "slot_index[", id="index-a-row-further"),
    ],
)
def test_damage_is_found(damage, where, ordered):
    topk_weights = weights_of(TOPK_IDS)
    rows = rows_by_loops(TOPK_IDS, topk_weights, 4)
    damage(rows)
    difference = oracle.difference(rows, TOPK_IDS, topk_weights, ordered=ordered, untouched=UNTOUCHED)
    assert difference is not None
    assert difference.startswith(where)


def test_order_within_an_expert_matters_only_if_promised():
    topk_weights = weights_of(TOPK_IDS)
    rows = rows_by_loops(TOPK_IDS, topk_weights, 4)
    swap_pair(rows)
    difference = oracle.difference(rows, TOPK_IDS, topk_weights, untouched=UNTOUCHED)
    assert difference == "slot_index[0, 0] is 4, expected 1 (2 differ)"
    assert oracle.difference(rows, TOPK_IDS, topk_weights, ordered=False, untouched=UNTOUCHED) is None


def test_what_lies_beyond_the_counts_is_looked_at_only_if_it_is_known():
    topk_weights = weights_of(TOPK_IDS)
    rows = rows_by_loops(TOPK_IDS, topk_weights, 4)
    rows.slot_index[2, 0] = 5
    assert oracle.difference(rows, TOPK_IDS, topk_weights) is None


@each_case
@pytest.mark.parametrize("block_size", [None, 1, 4])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_right_flat_layout_does_not_differ(case, block_size, weighted):
    topk_ids = case.tensor("cpu")
    topk_weights = weights_of(topk_ids) if weighted else None
    flat = flat_of(topk_ids, topk_weights, case.num_experts, block_size)
    assert oracle.flat_difference(flat, topk_ids, topk_weights, case.num_experts, block_size) is None


@pytest.mark.parametrize(
    ("block_size", "field"),
    [
        *((None, name) for name in ("slots", "offsets", "weights")),
        *((4, name) for name in ("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "weights")),
    ],
)
def test_damage_of_a_flat_layout_is_found(block_size, field):
    topk_ids = torch.tensor([[2, 0], [1, 2], [-1, 2]])
    topk_weights = weights_of(topk_ids)
    whole = flat_of(topk_ids, topk_weights, 3, block_size)
    for at in range(len(getattr(whole, field))):
        flat = flat_of(topk_ids, topk_weights, 3, block_size)
        getattr(flat, field)[at] += 1
        difference = oracle.flat_difference(flat, topk_ids, topk_weights, 3, block_size)
        assert difference.startswith(f"{field}[{at}] is "), difference


def flat_of(topk_ids, topk_weights, num_experts, block_size):
    given = {"topk_weights": topk_weights, "implementation": "reference"}
    if block_size is None:
        return moe_align.align_offsets(topk_ids, num_experts, **given)
    return moe_align.align_blocks(topk_ids, block_size, num_experts, **given)

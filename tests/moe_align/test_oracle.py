"""The oracle by hand-worked examples, and that its comparison notices what it must."""

import pytest
import torch

from moe_align import Rows
from tests.moe_align import oracle
from tests.moe_align.cases import each_weights_dtype

TOPK_IDS = torch.tensor([[1, 0], [-1, 1], [3, 1]])


@pytest.fixture
def aligned():
    """What alignment must make of ``TOPK_IDS`` with 3 experts: slots [1], [0, 3, 5], []."""
    topk_weights = oracle.distinct_weights(TOPK_IDS)
    weights = topk_weights.reshape(-1)
    out = oracle.poisoned_rows(3, 6)
    out.rows.counts.copy_(torch.tensor([1, 3, 0]))
    out.rows.slot_index[0, 0] = 1
    out.rows.weights[0, 0] = weights[1]
    for rank, slot in enumerate([0, 3, 5]):
        out.rows.slot_index[1, rank] = slot
        out.rows.weights[1, rank] = weights[slot]
    return out, topk_weights


def test_slots_by_expert():
    assert oracle.slots_by_expert(TOPK_IDS, 3) == [[1], [0, 3, 5], []]


@pytest.mark.parametrize(
    ("block_size", "capacity", "expected"),
    [
        pytest.param(2, 4, [[0, 0, 0], [0, 1, 2], [2, 0, 3], [-1, -1, -1]], id="padded"),
        pytest.param(4, 2, [[0, 0, 0], [2, 0, 3]], id="exactly-full"),
        pytest.param(1, 2, [[0, 0, 0], [0, 1, 1]], id="cut"),
        pytest.param(1, 0, [], id="no-room"),
    ],
)
def test_schedule(block_size, capacity, expected):
    assert oracle.schedule([3, 0, 1], block_size, capacity) == expected


def test_accepts_what_is_right(aligned):
    oracle.assert_rows(aligned[0], TOPK_IDS, aligned[1])


@each_weights_dtype
def test_every_slot_has_a_weight_of_its_own(weights_dtype):
    bits = oracle.BITS_OF[weights_dtype]
    weights = oracle.distinct_weights(torch.zeros(500, 8), weights_dtype).view(bits).reshape(-1).tolist()
    assert len(set(weights)) == 4000
    assert oracle.weight_bits(-2, bits) not in weights
    assert 0 not in weights


@pytest.mark.parametrize(
    ("field", "offset", "value", "message"),
    [
        pytest.param("slot_index", 7, 2, "slot_index[1, 1]: expected 3, got 2;", id="slot"),
        pytest.param(
            "slot_index",
            1,
            9,
            "slot_index[0, 1]: expected 1592614637, got 9;",
            id="beyond-the-counts",
        ),
        pytest.param("slot_index", -1, 9, "slot_index (1 before the buffer): expected", id="before"),
        pytest.param("slot_index", 18, 9, "slot_index (1 buffers after): expected", id="after"),
        pytest.param("weights", 6, 1.0, "got 1.0 (bits 0x3f800000);", id="weight"),
        pytest.param("weights", 2, 0.0, "weights[0, 2]: expected", id="weight-beyond-the-counts"),
        pytest.param("counts", 2, 1, "counts[2]: expected 0, got 1;", id="count"),
        pytest.param(
            "counts",
            0,
            oracle.INT32_POISON,
            "counts[0]: expected 1, got 1592614637;",
            id="unwritten-count",
        ),
    ],
)
def test_names_the_first_bad_element(aligned, field, offset, value, message):
    out, topk_weights = aligned
    getattr(out.memory, field)[oracle.GUARD + offset] = value
    with pytest.raises(AssertionError) as failure:
        oracle.assert_rows(out, TOPK_IDS, topk_weights)
    assert message in str(failure.value)


def test_order_matters_only_where_it_is_promised(aligned):
    out, topk_weights = aligned
    for buffer in (out.rows.slot_index, out.rows.weights):
        buffer[1, :3] = buffer[1, :3].flip(0)
    oracle.assert_rows(out, TOPK_IDS, topk_weights, ordered=False)
    with pytest.raises(AssertionError, match=r"slot_index\[1, 0\]: expected 0, got 5; 2 elements"):
        oracle.assert_rows(out, TOPK_IDS, topk_weights)


def test_unordered_pairs_stay_together(aligned):
    out, topk_weights = aligned
    out.rows.weights[1, :3] = out.rows.weights[1, :3].flip(0)
    with pytest.raises(AssertionError, match=r"weights\[1, 0\]"):
        oracle.assert_rows(out, TOPK_IDS, topk_weights, ordered=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(0x00000000, -0x80000000, id="zeros-of-two-signs"),
        pytest.param(0x7FC00000, 0x7FC00001, id="nan-payloads"),
    ],
)
def test_floats_are_compared_as_bits(one, other):
    one, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (one, other))
    oracle.assert_same_bits("weights", one, one.clone())
    with pytest.raises(AssertionError, match=r"weights\[0\]"):
        oracle.assert_same_bits("weights", one, other)


def test_fresh_rows_are_compared_up_to_the_counts(aligned):
    out, topk_weights = aligned
    rows = Rows(*(buffer.clone() for buffer in out.rows))
    rows.slot_index[0, 1:] = 0
    oracle.assert_rows_up_to_counts(rows, TOPK_IDS, topk_weights)
    rows.slot_index[0, 0] = 0
    with pytest.raises(AssertionError, match=r"slot_index\[0, 0\]: expected 1, got 0"):
        oracle.assert_rows_up_to_counts(rows, TOPK_IDS, topk_weights)

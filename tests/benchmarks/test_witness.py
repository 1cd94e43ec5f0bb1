import itertools

import pytest
import torch

from benchmarks import witness
from benchmarks.shapes import Model

CONSUMERS, TOKENS, IMPLEMENTATIONS = witness.FusedMoe.params
each_consumer = pytest.mark.parametrize("consumer", CONSUMERS)


@pytest.fixture
def consumers(device):
    """All that the suite asks, small: 100 slots an expert."""
    return witness.consumers(Model(2, 2), 100, str(device), torch.float16, hidden=32, columns=16)


@pytest.fixture
def rotated_rows(monkeypatch):
    """Turn the rows by one more slot at each call: another order of the same slots, as often as there are slots."""
    align_rows, turns = witness.fused_moe().align_rows, itertools.count(1)

    def align_rotated(*arguments, **options):
        rows, turn = align_rows(*arguments, **options), next(turns)
        for expert, count in enumerate(rows.counts.tolist()):
            for tensor in (rows.slot_index[expert, :count], rows.weights[expert, :count]):
                tensor.copy_(tensor.roll(turn))
        return rows

    monkeypatch.setattr(witness.fused_moe(), "align_rows", align_rotated)


def test_the_suite_asks_about_every_consumer(consumers):
    assert list(consumers) == CONSUMERS


@each_consumer
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_layer_computes_what_plain_torch_does(consumers, consumer, implementation):
    result = consumers[consumer].call(implementation)
    assert witness.relative_error(result, consumers[consumer].expected()) < witness.TOLERANCE


@each_consumer
def test_identical_calls_give_one_result(consumers, consumer):
    assert len(witness.distinct(lambda: consumers[consumer].call("deterministic"), 3)) == 1


@pytest.mark.parametrize(("consumer", "expected"), [("output", 1), ("output, block-scaled", 3), ("weight gradient", 3)])
def test_another_order_at_each_call_shows_where_it_reaches(consumers, rotated_rows, consumer, expected):
    assert len(witness.distinct(lambda: consumers[consumer].call("deterministic"), 3)) == expected


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param([[1.0, 2.0]] * 5, 1, id="all-alike"),
        pytest.param([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]], 2, id="one-comes-again"),
        pytest.param([[0.0], [-0.0]], 2, id="zeros-of-either-sign"),
        pytest.param([[float("nan")]] * 2, 1, id="nan"),
        pytest.param([[1.0], [1.0000001]], 2, id="last-bit"),
    ],
)
def test_distinct_compares_bits(results, expected):
    given = iter(torch.tensor(result) for result in results)
    assert len(witness.distinct(lambda: next(given), len(results))) == expected


@pytest.mark.parametrize("result", [[1.0, 2.2], [float("nan"), 2.0], [0.0, 0.0]])
def test_a_wrong_result_has_a_large_error(result):
    assert not witness.relative_error(torch.tensor(result), torch.tensor([1.0, 2.0])) < witness.TOLERANCE


@pytest.mark.gpu
@each_consumer
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_deterministic_layer_has_one_result(consumer, tokens):
    suite = witness.FusedMoe()
    suite.setup(None, consumer, tokens, "deterministic")
    assert suite.track_distinct_results(None, consumer, tokens, "deterministic") == 1


@pytest.mark.gpu
def test_a_wrong_layer_has_no_figure(monkeypatch):
    monkeypatch.setattr(witness, "TOLERANCE", 0.0)
    with pytest.raises(AssertionError, match="output: relative error"):
        witness.FusedMoe().setup(None, "output", 128, "deterministic")

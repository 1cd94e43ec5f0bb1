"""Compiled calls: one graph, and the bits of an eager call."""

import pytest
import torch

import moe_align
from moe_align import Blocks, Offsets, Rows, ops
from tests.moe_align.cases import each_id_dtype, random_ids

RUN_CONFIGS = [None, {"strategy": "tiles", "BLOCK_SIZE": 32, "num_warps": 1}, {"BLOCK_SIZE": 16, "EXPERT_BLOCK": 2}]
each_run_config = pytest.mark.parametrize("run_config", RUN_CONFIGS, ids=["chosen", "tiles", "scan"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function, **options):
    """A graph break is an error; no code is generated, because the operators are all there is to a call."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def inputs(device, num_tokens=9, top_k=3, num_experts=5, seed=0):
    # From -1 to one past the end: some are dropped.
    topk_ids = random_ids(num_tokens, top_k, num_experts + 2, seed).sub(1).to(device)
    return topk_ids, torch.rand(topk_ids.shape, device=device)


def rows(topk_ids, topk_weights, run_config=None):
    out = Rows(
        *(torch.zeros_like(tensor) for tensor in Rows.empty(5, topk_ids.numel(), torch.float32, topk_ids.device))
    )
    return moe_align.align_rows(topk_ids, topk_weights, 5, out=out, run_config=run_config)


def blocks(topk_ids, topk_weights, run_config=None):
    return moe_align.align_blocks(topk_ids, 4, 5, topk_weights=topk_weights, run_config=run_config)


def blocks_of_local_experts(topk_ids, topk_weights, run_config=None):
    expert_map = torch.tensor([1, -1, 0, -1, 2], dtype=torch.int32, device=topk_ids.device)
    return moe_align.align_blocks(topk_ids, 4, 5, expert_map=expert_map, run_config=run_config)


def offsets(topk_ids, topk_weights, run_config=None):
    return moe_align.align_offsets(topk_ids, 5, topk_weights=topk_weights, run_config=run_config)


def schedule(topk_ids, topk_weights, run_config=None):
    counts = moe_align.align_rows(topk_ids, topk_weights, 5, run_config=run_config).counts
    return (moe_align.schedule_blocks(counts, topk_ids.numel(), 4),)


each_layout = pytest.mark.parametrize("layout", [rows, blocks, blocks_of_local_experts, offsets, schedule])


def assert_same(results, expected):
    assert type(results) is type(expected)
    for result, other in zip(results, expected, strict=True):
        assert (result is None) == (other is None)
        assert result is None or torch.equal(result, other)


@each_run_config
@each_layout
def test_a_compiled_call_is_one_graph_with_the_same_bits(device, layout, run_config):
    given = inputs(device)
    assert_same(compiled(layout)(*given, run_config), layout(*given, run_config))


@each_layout
def test_the_number_of_tokens_may_be_dynamic(device, layout):
    call = compiled(layout, dynamic=True)
    for num_tokens in (9, 4, 17):
        given = inputs(device, num_tokens, seed=num_tokens)
        assert_same(call(*given), layout(*given))


def test_new_outputs_need_not_be_given(device):
    given = inputs(device)
    results = compiled(moe_align.align_rows)(*given, 5)
    expected = moe_align.align_rows(*given, 5)
    assert type(results) is Rows
    assert torch.equal(results.counts, expected.counts)
    for name in ("slot_index", "weights"):
        for row, other, count in zip(getattr(results, name), getattr(expected, name), expected.counts, strict=True):
            assert torch.equal(row[:count], other[:count])


def test_outputs_of_the_caller_are_filled(device):
    topk_ids, _ = inputs(device)
    out = moe_align.align_offsets(*inputs(device, seed=1)[:1], 5)
    results = compiled(lambda ids, given: moe_align.align_offsets(ids, 5, out=given))(topk_ids, out)
    assert results.slots.data_ptr() == out.slots.data_ptr()
    assert_same(out, moe_align.align_offsets(topk_ids, 5))


@pytest.mark.parametrize("implementation", ["atomic", "reference"])
def test_an_implementation_is_passed_on(device, implementation):
    given = inputs(device)
    results = compiled(moe_align.align_rows)(*given, 5, implementation=implementation)
    assert torch.equal(results.counts, moe_align.align_rows(*given, 5).counts)


def test_a_shape_error_is_raised_while_compiling(device):
    topk_ids, topk_weights = inputs(device)
    with pytest.raises(Exception, match="topk_weights: expected the shape of topk_ids"):
        compiled(moe_align.align_rows)(topk_ids, topk_weights[1:], 5)


def each_operator(device, ids_dtype):
    topk_ids, topk_weights = inputs(device)
    topk_ids = topk_ids.to(ids_dtype)
    expert_map = torch.tensor([1, -1, 0, -1, 2], dtype=torch.int32, device=device)

    def filled(layout):
        # What is not written compares equal all the same.
        return tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in layout)

    size = topk_ids.numel()
    given_rows = filled(Rows.empty(5, size, torch.float32, device))
    given_blocks = filled(Blocks.empty(size, 5, 4, device, weights_dtype=torch.float32))
    given_offsets = filled(Offsets.empty(size, 5, device))
    options = ("deterministic", "strategy=tiles,BLOCK_SIZE=32,num_warps=1")
    yield ops._align_rows, (topk_ids, topk_weights, *given_rows, *options)
    yield ops._align_blocks, (topk_ids, topk_weights, 4, 5, expert_map, False, *given_blocks, *options)
    yield ops._align_offsets, (topk_ids, None, *given_offsets, "deterministic", None)
    counts = torch.tensor([3, 0, 5], dtype=torch.int32, device=device)
    yield ops._schedule_blocks, (counts, 4, torch.zeros((8, 3), dtype=torch.int32, device=device))


@each_id_dtype
def test_operators_are_what_they_say(device, ids_dtype):
    for operator, arguments in each_operator(device, ids_dtype):
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("run_config", [*RUN_CONFIGS, {}])
def test_a_run_config_survives_its_encoding(run_config):
    assert ops._decoded(ops._encoded(run_config)) == run_config


@pytest.mark.gpu
@each_layout
def test_generated_code_calls_the_operators(device, layout):
    given = inputs(device, 100)
    assert_same(torch.compile(layout, fullgraph=True)(*given), layout(*given))

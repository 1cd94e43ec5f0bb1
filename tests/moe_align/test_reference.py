"""The reference is the specification in torch: it must agree with the plain loops."""

import pytest
import torch

from moe_align import align_rows, reference
from tests.moe_align import oracle
from tests.moe_align.cases import (
    WIDE_IDS,
    each_case,
    each_id_dtype,
    each_model,
    each_weights_dtype,
    random_ids,
    routed_ids,
)


def check(topk_ids, num_experts, weights_dtype=torch.float32):
    topk_weights = oracle.distinct_weights(topk_ids, weights_dtype)
    out = oracle.poisoned_rows(num_experts, topk_ids.numel(), weights_dtype, topk_ids.device)
    reference.align_rows(topk_ids, topk_weights, out.rows)
    oracle.assert_rows(out, topk_ids, topk_weights)


@each_id_dtype
@each_case
def test_rows(device, case, ids_dtype):
    check(case.tensor(device, ids_dtype), case.num_experts)


@each_weights_dtype
def test_weights_are_copied_bit_by_bit(device, weights_dtype):
    check(random_ids(50, 4, 7).to(device), 7, weights_dtype)


def test_wide_ids_are_not_truncated(device):
    check(WIDE_IDS.tensor(device), WIDE_IDS.num_experts)


@each_model
@pytest.mark.parametrize("num_tokens", [1, 64, 257], ids="tokens={}".format)
def test_rows_of_real_models(device, num_tokens, top_k, num_experts):
    check(routed_ids(num_tokens, top_k, num_experts).to(device), num_experts)


def test_public_function_calls_it(device):
    topk_ids = random_ids(9, 3, 5).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    out = oracle.poisoned_rows(5, 27, device=device)
    assert align_rows(topk_ids, topk_weights, 5, out=out.rows, implementation="reference") is out.rows
    oracle.assert_rows(out, topk_ids, topk_weights)


@pytest.mark.parametrize(
    ("counts", "block_size", "capacity"),
    [
        pytest.param([3, 0, 1], 2, 4, id="padded"),
        pytest.param([0, 0, 0], 16, 2, id="all-empty"),
        pytest.param([127, 128, 129], 128, 4, id="exactly-full"),
        pytest.param([4, 4, 4], 1, 3, id="cut"),
        pytest.param([5], 3, 0, id="no-room"),
    ],
)
def test_schedule(counts, block_size, capacity):
    out = torch.full((capacity, 3), oracle.INT32_POISON, dtype=torch.int32)
    reference.schedule_blocks(torch.tensor(counts, dtype=torch.int32), block_size, out)
    assert out.tolist() == oracle.schedule(counts, block_size, capacity)

"""The baseline: the same slots per expert as the oracle, in any order."""

import pytest
import torch

from moe_align import align_rows
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


def check(topk_ids, num_experts, weights_dtype=torch.float32, **run_config):
    topk_weights = oracle.distinct_weights(topk_ids, weights_dtype)
    # The counts are poisoned too: cursors that nobody zeroed would start there.
    out = oracle.poisoned_rows(num_experts, topk_ids.numel(), weights_dtype, topk_ids.device)
    options = {"implementation": "atomic", "run_config": run_config}
    align_rows(topk_ids, topk_weights, num_experts, out=out.rows, **options)
    oracle.assert_rows(out, topk_ids, topk_weights, ordered=False)


@each_id_dtype
@each_case
def test_rows(device, case, ids_dtype):
    check(case.tensor(device, ids_dtype), case.num_experts)


@each_case
def test_rows_by_a_single_program(device, case):
    check(case.tensor(device), case.num_experts, BLOCK_SIZE=256)


@each_case
def test_rows_by_many_programs(device, case):
    check(case.tensor(device), case.num_experts, BLOCK_SIZE=16)


@pytest.mark.parametrize("num_slots", [0, 1, 31, 32, 33], ids="slots={}".format)
def test_one_program_or_more_around_the_block_size(device, num_slots):
    check(random_ids(num_slots, 1, 5).to(device), 5, BLOCK_SIZE=32)


@pytest.mark.parametrize("num_experts", [15, 16, 17, 50], ids="experts={}".format)
def test_a_single_program_zeroes_more_counts_than_its_tile(device, num_experts):
    check(random_ids(4, 2, num_experts).to(device), num_experts, BLOCK_SIZE=16)


@pytest.mark.parametrize("num_warps", [1, 2, 8, 32], ids="num_warps={}".format)
def test_warps(device, num_warps):
    check(random_ids(43, 3, 5).to(device), 5, num_warps=num_warps)


@each_weights_dtype
def test_weights_are_copied_bit_by_bit(device, weights_dtype):
    check(random_ids(50, 4, 7).to(device), 7, weights_dtype)


def test_wide_ids_are_dropped_not_truncated(device):
    check(WIDE_IDS.tensor(device), WIDE_IDS.num_experts)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 128, 4096], ids="tokens={}".format)
@each_model
def test_real_models(device, num_tokens, num_experts, top_k):
    check(routed_ids(num_tokens, top_k, num_experts).to(device), num_experts)

"""LightLLM's calls: its names, its buffers, its block schedule."""

import inspect

import pytest
import torch

from moe_align import align_rows, schedule_blocks
from moe_align.compat import lightllm
from tests.moe_align import oracle
from tests.moe_align.cases import each_case, each_weights_dtype, random_ids


def call_fused(topk_ids, topk_weights, num_experts, **options):
    out = oracle.poisoned_rows(num_experts, topk_ids.numel(), topk_weights.dtype, topk_ids.device)
    returned = lightllm.moe_align_fused(
        expert_to_token_index=out.rows.slot_index,
        expert_to_weight=out.rows.weights,
        expert_token_num=out.rows.counts,
        topk_ids=topk_ids,
        topk_weights=topk_weights,
        **options,
    )
    return out, returned


@pytest.mark.parametrize(
    ("function", "names"),
    [
        pytest.param(
            lightllm.moe_align_fused,
            [
                "expert_to_token_index",
                "expert_to_weight",
                "expert_token_num",
                "topk_ids",
                "topk_weights",
                "run_config",
            ],
            id="moe_align_fused",
        ),
        pytest.param(
            lightllm.moe_align2,
            ["token_num_mul_topk_num", "exports_token_num", "block_m"],
            id="moe_align2",
        ),
    ],
)
def test_signature_is_that_of_lightllm(function, names):
    parameters = inspect.signature(function).parameters
    assert list(parameters) == names
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty} == (
        {"run_config": None} if "run_config" in names else {}
    )


@each_case
def test_fills_the_buffers_and_returns_them(device, case):
    topk_ids = case.tensor(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    out, returned = call_fused(topk_ids, topk_weights, case.num_experts)
    assert [id(buffer) for buffer in returned] == [id(buffer) for buffer in out.rows]
    oracle.assert_rows(out, topk_ids, topk_weights)


@each_weights_dtype
def test_equals_align_rows(device, weights_dtype):
    topk_ids = random_ids(40, 3, 7).to(device, torch.int32)
    topk_weights = oracle.distinct_weights(topk_ids, weights_dtype)
    fused, _ = call_fused(topk_ids, topk_weights, 7)
    rows = oracle.poisoned_rows(7, 120, weights_dtype, device)
    align_rows(topk_ids, topk_weights, 7, out=rows.rows)
    for name in rows.memory._fields:
        oracle.assert_same_bits(name, getattr(fused.memory, name), getattr(rows.memory, name))


@pytest.mark.parametrize(
    "run_config",
    [
        pytest.param({"BLOCK_SIZE": 32, "num_warps": 8}, id="of-the-atomic-kernel"),
        pytest.param({"BLOCK_SIZE": 32, "EXPERT_BLOCK": 4, "NUM_STAGE": 2, "num_warps": 1}, id="of-the-scan"),
    ],
)
def test_takes_lightllm_configurations(device, run_config):
    topk_ids = random_ids(40, 3, 7).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    out, _ = call_fused(topk_ids, topk_weights, 7, run_config=run_config)
    oracle.assert_rows(out, topk_ids, topk_weights)


def test_run_config_reaches_the_kernel(device):
    topk_ids = random_ids(2, 2, 3).to(device)
    with pytest.raises(ValueError, match="run_config") as failure:
        call_fused(topk_ids, oracle.distinct_weights(topk_ids), 3, run_config={"BLOCK_SIZE": 100})
    assert "got 100" in str(failure.value)


def test_positional_call(device):
    topk_ids = random_ids(6, 2, 3).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    out = oracle.poisoned_rows(3, 12, device=device)
    lightllm.moe_align_fused(*out.rows, topk_ids, topk_weights)
    oracle.assert_rows(out, topk_ids, topk_weights)


def test_grouped_matmul_reads_every_slot_once(device):
    # As the consumer does: for each block of the schedule, block_m entries of the expert's row, masked by
    # its count.
    topk_ids = random_ids(23, 3, 6).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    out, _ = call_fused(topk_ids, topk_weights, 6)
    oracle.assert_rows(out, topk_ids, topk_weights)
    counts = out.rows.counts.tolist()
    block_m = 4
    read = []
    for expert, block, start in lightllm.moe_align2(69, out.rows.counts, block_m).tolist():
        if expert == -1:
            continue
        ranks = range(block * block_m, min((block + 1) * block_m, counts[expert]))
        # Blocks of all experts lie one after the other in the sorted output.
        assert start == len(read)
        read += [(expert, slot) for slot in out.rows.slot_index[expert, ranks.start : ranks.stop].tolist()]
    chosen = oracle.slots_by_expert(topk_ids, 6)
    assert read == [(expert, slot) for expert, slots in enumerate(chosen) for slot in slots]


def test_moe_align2_hand_worked_example(device):
    expert_token_num = torch.tensor([5, 0, 2, 4], dtype=torch.int32, device=device)
    expected = [
        [0, 0, 0],
        [0, 1, 2],
        [0, 2, 4],
        [2, 0, 5],
        [3, 0, 7],
        [3, 1, 9],
        [-1, -1, -1],
        [-1, -1, -1],
    ]
    assert lightllm.moe_align2(11, expert_token_num, 2).tolist() == expected


@pytest.mark.parametrize("block_m", [1, 16, 64], ids="block_m={}".format)
def test_moe_align2_equals_schedule_blocks(device, block_m):
    counts = torch.tensor([70, 0, 16, 1, 33], dtype=torch.int32, device=device)
    schedule = lightllm.moe_align2(token_num_mul_topk_num=120, exports_token_num=counts, block_m=block_m)
    assert torch.equal(schedule, schedule_blocks(counts, 120, block_m))
    # Consumers launch a program a row: never more of them than LightLLM's own schedule has.
    assert len(schedule) <= -(-(120 + 5 * (block_m - 1)) // block_m)
    assert schedule.tolist() == oracle.schedule(counts.tolist(), block_m, len(schedule))

"""Offsets: by every strategy, bit for bit what the plain loops say; what is refused, and in which words."""

import pytest
import torch

from moe_align import Offsets, align_offsets
from tests.moe_align import flat
from tests.moe_align.cases import (
    CASES,
    WIDE_IDS,
    each_case,
    each_id_dtype,
    each_model,
    each_weights_dtype,
    random_ids,
    routed_ids,
)
from tests.moe_align.flat import CONFIGURATIONS, assert_offsets, check_offsets, each_configuration

IDS = torch.tensor([[0, 1, 2], [2, 1, 0]])


def test_hand_worked_example(device):
    slots, offsets, weights = align_offsets(torch.tensor([[1, 0], [1, 3]], device=device), 3)
    assert slots.tolist() == [1, 0, 2, 4]
    assert offsets.tolist() == [0, 1, 3, 3]
    assert weights is None


@each_configuration
@each_case
def test_offsets(device, case, configuration):
    check_offsets(case.tensor(device), case.num_experts, run_config=CONFIGURATIONS[configuration] or None)


@each_case
@each_id_dtype
def test_reference(device, case, ids_dtype):
    check_offsets(case.tensor(device, ids_dtype), case.num_experts, torch.float16, implementation="reference")


@each_configuration
@each_weights_dtype
def test_weights_are_copied_bit_by_bit_and_end_in_zeros(device, weights_dtype, configuration):
    topk_ids = random_ids(20, 4, 9).to(device, torch.int32)
    check_offsets(topk_ids, 7, weights_dtype, run_config=CONFIGURATIONS[configuration] or None)


@each_configuration
def test_wide_ids_are_not_truncated(device, configuration):
    check_offsets(WIDE_IDS.tensor(device), WIDE_IDS.num_experts, run_config=CONFIGURATIONS[configuration] or None)


@each_configuration
@pytest.mark.parametrize("case", ["negative", "most-empty", "no-tokens", "all-dropped"])
@pytest.mark.interpreter
def test_every_element_is_written_once(device, configuration, case, stored_addresses):
    case, config = CASES[case], CONFIGURATIONS[configuration] or None
    memory = check_offsets(case.tensor(device), case.num_experts, torch.float32, run_config=config)
    written = flat.written_within(stored_addresses, memory)
    assert len(written) == len(set(written))
    assert len(written) == sum(len(tensor) for tensor in memory.tensors.values())


def test_allocates_without_out(device):
    topk_ids = random_ids(5, 3, 4).to(device)
    result = align_offsets(topk_ids, 4, topk_weights=torch.ones(5, 3, dtype=torch.bfloat16, device=device))
    assert [buffer.shape for buffer in result] == [(15,), (5,), (15,)]
    assert [buffer.dtype for buffer in result] == [torch.int32, torch.int32, torch.bfloat16]
    assert [buffer.tolist() for buffer in result[:2]] == list(flat.expected_offsets(topk_ids, 4))


def test_check_ids(device):
    with pytest.raises(ValueError, match=r"topk_ids\[0, 1\] \(slot 1\): expected 0 <= id < 3, got -1"):
        align_offsets(torch.tensor([[0, -1], [3, 2]], device=device), 3, check_ids=True)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        pytest.param({"topk_ids": None}, TypeError, ["topk_ids:", "torch.Tensor", "NoneType"], id="ids-none"),
        pytest.param({"num_experts": True}, TypeError, ["num_experts:", "int", "True"], id="experts-bool"),
        pytest.param({"topk_weights": 1.0}, TypeError, ["topk_weights:", "torch.Tensor", "float"], id="weights-float"),
        pytest.param(
            {"implementation": "atomic"}, ValueError, ["implementation:", "'reference'", "'atomic'"], id="atomic"
        ),
        pytest.param(
            {"out": Offsets.empty(5, 3, torch.device("cpu"))}, ValueError, ["out.slots:", "[6]", "[5]"], id="out-slots"
        ),
        pytest.param(
            {"out": Offsets.empty(6, 2, torch.device("cpu"))},
            ValueError,
            ["out.offsets:", "[4]", "[3]"],
            id="out-offsets",
        ),
        pytest.param({"out": [1]}, TypeError, ["out:", "moe_align.Offsets", "list"], id="out-a-list"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(arguments, error, said):
    with pytest.raises(error) as failure:
        align_offsets(**{"topk_ids": IDS, "num_experts": 3, **arguments})
    message = str(failure.value)
    assert message.startswith(said[0]), message
    assert [part for part in said if part not in message] == [], message


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16, 128, 1024, 4096], ids="tokens={}".format)
@each_model
def test_real_models(device, num_tokens, num_experts, top_k):
    topk_ids = routed_ids(num_tokens, top_k, num_experts).to(device)
    for strategy in (None, "scan", "sift", "collect", "tiles"):
        run_config = None if strategy is None else {"strategy": strategy}
        check_offsets(topk_ids, num_experts, torch.bfloat16, run_config=run_config)


@pytest.mark.gpu
@each_configuration
def test_graph_replays_with_new_inputs(device, configuration):
    topk_ids, config = routed_ids(100, 8, 160).to(device), CONFIGURATIONS[configuration] or None
    memory = check_offsets(topk_ids, 160, run_config=config)
    poison = flat.poisoned_offsets(topk_ids, 160).memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        align_offsets(topk_ids, 160, out=Offsets(**memory.tensors), run_config=config)
    for seed in range(1, 4):
        topk_ids.copy_(routed_ids(100, 8, 162, seed) - 1)
        for name, tensor in memory.memory.items():
            tensor.copy_(poison[name])
        graph.replay()
        assert_offsets(memory, topk_ids, 160)

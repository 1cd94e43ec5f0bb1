"""Blocks: by every strategy, bit for bit what the plain loops say; what is refused, and in which words."""

import pytest
import torch

from moe_align import Blocks, align_blocks
from moe_align.kernels import regions, tiles
from tests.moe_align import flat, oracle
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
from tests.moe_align.flat import (
    CONFIGURATIONS,
    assert_blocks,
    check_blocks,
    each_configuration,
    each_named_configuration,
)

IDS = torch.tensor([[0, 1, 2], [2, 1, 0]])


def map_every_other(num_experts, device="cpu"):
    """The odd experts are local, the last of them first."""
    expert_map = torch.full((num_experts,), -1, dtype=torch.int32)
    expert_map[1::2] = torch.arange(num_experts // 2, dtype=torch.int32).flip(0)
    return expert_map.to(device)


def options_of(mode, num_experts, device):
    return {
        "plain": {},
        "map": {"expert_map": map_every_other(num_experts, device)},
        "map-keep": {"expert_map": map_every_other(num_experts, device), "keep_remote": True},
        "keep": {"keep_remote": True},
    }[mode]


each_mode = pytest.mark.parametrize("mode", ["plain", "map", "map-keep", "keep"])


def test_hand_worked_example(device):
    blocks = align_blocks(torch.tensor([[1, 0], [1, 2]], device=device), block_size=2, num_experts=3)
    assert blocks.sorted_token_ids.tolist() == [1, 4, 0, 2, 3, 4, 4]
    assert blocks.expert_ids.tolist() == [0, 1, 2, -1]
    assert blocks.num_tokens_post_padded.tolist() == [6]
    assert blocks.weights is None


@each_configuration
@each_case
def test_blocks(device, case, configuration):
    check_blocks(case.tensor(device), 4, case.num_experts, run_config=CONFIGURATIONS[configuration] or None)


@pytest.mark.parametrize("implementation", ["deterministic", "reference"])
@each_mode
@each_case
def test_modes(device, case, mode, implementation):
    options = options_of(mode, case.num_experts, device)
    check_blocks(case.tensor(device), 4, case.num_experts, torch.float32, implementation=implementation, **options)


@each_configuration
@each_mode
@each_id_dtype
def test_every_strategy_in_every_mode(device, configuration, mode, ids_dtype):
    topk_ids = random_ids(37, 3, 12).sub(2).to(device, ids_dtype)
    options = options_of(mode, 7, device)
    check_blocks(topk_ids, 4, 7, torch.float32, run_config=CONFIGURATIONS[configuration] or None, **options)


@each_configuration
@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 128], ids="block_size={}".format)
def test_block_sizes(device, configuration, block_size):
    check_blocks(random_ids(50, 3, 5).to(device), block_size, 5, run_config=CONFIGURATIONS[configuration] or None)


@each_configuration
@each_weights_dtype
def test_weights_are_copied_bit_by_bit_and_padded_with_zeros(device, weights_dtype, configuration):
    topk_ids = random_ids(20, 4, 7).to(device)
    check_blocks(topk_ids, 8, 7, weights_dtype, run_config=CONFIGURATIONS[configuration] or None)


@each_configuration
@each_mode
def test_wide_ids_are_not_truncated(device, configuration, mode):
    num_experts = WIDE_IDS.num_experts
    options = options_of(mode, num_experts, device)
    check_blocks(WIDE_IDS.tensor(device), 2, num_experts, run_config=CONFIGURATIONS[configuration] or None, **options)


@each_configuration
@pytest.mark.parametrize("spare", [1, 300], ids="spare={}".format)
def test_more_room_than_needed_is_written_too(device, configuration, spare):
    topk_ids = random_ids(9, 2, 4).to(device)
    check_blocks(topk_ids, 4, 4, torch.float16, spare=spare, run_config=CONFIGURATIONS[configuration] or None)


@each_configuration
@pytest.mark.parametrize("guard", [1, 3], ids="offset={}".format)
def test_buffers_need_no_alignment(device, configuration, guard):
    topk_ids = torch.cat((torch.zeros(guard, dtype=torch.int64), random_ids(16, 2, 5).reshape(-1)))
    topk_ids = topk_ids.to(device)[guard:].view(16, 2)
    check_blocks(topk_ids, 4, 5, torch.float32, guard=guard, run_config=CONFIGURATIONS[configuration] or None)


@each_named_configuration
@pytest.mark.parametrize("num_experts", [64, 70], ids="experts={}".format)
def test_more_experts_than_are_counted_at_a_time(device, plan_with, configuration, num_experts):
    plan_with(regions, "MAX_BINS", 32)
    plan_with(tiles, "_COUNT_BINS", 32)
    plan_with(tiles, "_FLAT_BINS", 32)
    topk_ids = random_ids(20, 2, num_experts + 4).sub(2).to(device)
    check_blocks(topk_ids, 2, num_experts, run_config=CONFIGURATIONS[configuration] or None)


@each_configuration
@each_mode
@pytest.mark.parametrize("case", ["negative", "most-empty", "no-tokens"])
@pytest.mark.interpreter
def test_every_element_is_written_once(device, configuration, mode, case, stored_addresses):
    case = CASES[case]
    options = options_of(mode, case.num_experts, device)
    config = CONFIGURATIONS[configuration] or None
    memory = check_blocks(case.tensor(device), 4, case.num_experts, torch.float32, run_config=config, **options)
    written = flat.written_within(stored_addresses, memory)
    assert len(written) == len(set(written))
    assert len(written) == sum(len(tensor) for tensor in memory.tensors.values())


@pytest.mark.parametrize("entry", [-2, 5, 2**31 - 1, -(2**31)], ids=str)
@each_configuration
def test_a_map_that_leads_out_of_range_drops(device, configuration, entry):
    expert_map = torch.tensor([1, entry, 0], dtype=torch.int32, device=device)
    topk_ids = torch.tensor([[0, 1, 2], [1, 1, 0]], device=device)
    check_blocks(topk_ids, 2, 3, expert_map=expert_map, run_config=CONFIGURATIONS[configuration] or None)


def test_strided_inputs(device):
    topk_ids, expert_map = random_ids(9, 4, 6).to(device), map_every_other(6, device)
    expected = align_blocks(topk_ids, 4, 6, expert_map=expert_map)
    strided = align_blocks(topk_ids.T.contiguous().T, 4, 6, expert_map=expert_map.repeat_interleave(2)[::2])
    for name in ("sorted_token_ids", "expert_ids", "num_tokens_post_padded"):
        oracle.assert_same_bits(name, getattr(strided, name), getattr(expected, name))


@pytest.mark.usefixtures("deterministic_algorithms")
@each_mode
def test_allocates_without_out(device, mode):
    topk_ids = random_ids(5, 3, 4).to(device)
    blocks = align_blocks(topk_ids, 8, 4, topk_weights=torch.ones(5, 3, device=device), **options_of(mode, 4, device))
    num_buckets = 5 if mode == "keep" else 4
    capacity = 15 + num_buckets * 7
    assert [buffer.shape for buffer in blocks] == [(capacity,), (-(-capacity // 8),), (1,), (capacity,)]
    assert [buffer.dtype for buffer in blocks] == [torch.int32, torch.int32, torch.int32, torch.float32]
    expected = flat.expected_blocks(topk_ids, 8, 4, capacity, -(-capacity // 8), **options_of(mode, 4, device))
    assert [buffer.tolist() for buffer in blocks[:3]] == list(expected)


@pytest.mark.parametrize("whole_blocks", [False, True], ids=["exact", "whole"])
def test_room(device, whole_blocks):
    topk_ids = random_ids(7, 1, 3).to(device)
    blocks = align_blocks(topk_ids, 4, 3, whole_blocks=whole_blocks)
    assert [len(blocks.sorted_token_ids), len(blocks.expert_ids)] == [16, 4]
    blocks = align_blocks(topk_ids, 8, 3, whole_blocks=whole_blocks)
    assert [len(blocks.sorted_token_ids), len(blocks.expert_ids)] == [32 if whole_blocks else 28, 4]
    # No more blocks than slots.
    blocks = align_blocks(topk_ids[:2], 8, 3, whole_blocks=whole_blocks)
    assert [len(blocks.sorted_token_ids), len(blocks.expert_ids)] == [16, 2]


def test_check_ids(device):
    topk_ids = torch.tensor([[0, -1], [3, 2]], device=device)
    with pytest.raises(ValueError, match=r"topk_ids\[0, 1\] \(slot 1\): expected 0 <= id < 3, got -1"):
        align_blocks(topk_ids, 4, 3, check_ids=True)
    with pytest.raises(ValueError, match=r"topk_ids\[1, 0\] \(slot 2\): expected -1 <= id < 3, got 3"):
        align_blocks(topk_ids, 4, 3, keep_remote=True, check_ids=True)
    check_blocks(topk_ids, 4, 4, keep_remote=True, check_ids=True)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        pytest.param({"topk_ids": [[0]]}, TypeError, ["topk_ids:", "torch.Tensor", "list"], id="ids-a-list"),
        pytest.param({"topk_ids": IDS[0]}, ValueError, ["topk_ids:", "[num_tokens, top_k]", "[3]"], id="ids-1d"),
        pytest.param({"block_size": 0}, ValueError, ["block_size:", "at least 1", "got 0"], id="no-block"),
        pytest.param({"block_size": 16.0}, TypeError, ["block_size:", "int", "16.0"], id="block-float"),
        pytest.param({"block_size": 2**30}, ValueError, ["block_size:", "at most", "3221225475"], id="block-too-large"),
        pytest.param({"num_experts": 0}, ValueError, ["num_experts:", "at least 1", "got 0"], id="no-experts"),
        pytest.param(
            {"num_experts": 2**20 + 1}, ValueError, ["num_experts:", "at most 1048576", "1048577"], id="many-experts"
        ),
        pytest.param(
            {"implementation": "atomic"},
            ValueError,
            ["implementation:", "'deterministic' or 'reference'", "'atomic'"],
            id="atomic",
        ),
        pytest.param({"expert_map": [0, 1]}, TypeError, ["expert_map:", "torch.Tensor", "list"], id="map-a-list"),
        pytest.param(
            {"expert_map": torch.zeros(3, dtype=torch.int64)},
            TypeError,
            ["expert_map:", "torch.int32", "torch.int64"],
            id="map-dtype",
        ),
        pytest.param(
            {"expert_map": torch.zeros(4, dtype=torch.int32)},
            ValueError,
            ["expert_map:", "[3]", "[4]"],
            id="map-length",
        ),
        pytest.param(
            {"topk_weights": torch.zeros(3, 2)}, ValueError, ["topk_weights:", "[2, 3]", "[3, 2]"], id="weights-shape"
        ),
        pytest.param(
            {"run_config": {"strategy": "atomic"}}, ValueError, ["run_config['strategy']:", "'atomic'"], id="strategy"
        ),
        pytest.param({"out": (None,) * 4}, TypeError, ["out:", "moe_align.Blocks", "tuple"], id="out-a-tuple"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(arguments, error, said):
    with pytest.raises(error) as failure:
        align_blocks(**{"topk_ids": IDS, "block_size": 4, "num_experts": 3, **arguments})
    message = str(failure.value)
    assert message.startswith(said[0]), message
    assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize(
    ("field", "wrong", "error", "said"),
    [
        ("sorted_token_ids", torch.zeros(14, dtype=torch.int32), ValueError, ["15 to", "14"]),
        ("sorted_token_ids", torch.zeros(15), TypeError, ["torch.int32", "torch.float32"]),
        ("sorted_token_ids", torch.zeros((3, 5), dtype=torch.int32), ValueError, ["[15]", "[3, 5]"]),
        ("sorted_token_ids", torch.zeros(30, dtype=torch.int32)[::2], ValueError, ["contiguous", "[2]"]),
        ("expert_ids", torch.zeros(3, dtype=torch.int32), ValueError, ["4 to", "3"]),
        ("expert_ids", [0], TypeError, ["torch.Tensor", "list"]),
        ("num_tokens_post_padded", torch.zeros(2, dtype=torch.int32), ValueError, ["[1]", "[2]"]),
        ("weights", torch.zeros(15), ValueError, ["None without topk_weights", "Tensor"]),
    ],
)
def test_errors_of_out(field, wrong, error, said):
    out = Blocks.empty(6, 3, 4, torch.device("cpu"))._replace(**{field: wrong})
    with pytest.raises(error) as failure:
        align_blocks(IDS, 4, 3, out=out)
    message = str(failure.value)
    assert message.startswith(f"out.{field}:"), message
    assert [part for part in said if part not in message] == [], message


def test_weights_need_room():
    with pytest.raises(TypeError, match=r"out\.weights: expected a torch.Tensor, got NoneType"):
        align_blocks(IDS, 4, 3, topk_weights=torch.zeros(2, 3), out=Blocks.empty(6, 3, 4, torch.device("cpu")))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16, 128, 1024, 4096], ids="tokens={}".format)
@pytest.mark.parametrize("block_size", [16, 64, 128], ids="block_size={}".format)
@each_model
def test_real_models(device, num_tokens, num_experts, top_k, block_size):
    topk_ids = routed_ids(num_tokens, top_k, num_experts).to(device, torch.int32)
    for strategy in (None, "scan", "sift", "collect", "tiles"):
        run_config = None if strategy is None else {"strategy": strategy}
        check_blocks(topk_ids, block_size, num_experts, torch.bfloat16, run_config=run_config)
        expert_map = map_every_other(num_experts, device)
        check_blocks(topk_ids, block_size, num_experts, expert_map=expert_map, run_config=run_config)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [3, 3000], ids="tokens={}".format)
@pytest.mark.parametrize("strategy", ["scan", "sift", "collect", "tiles"])
def test_thousands_of_experts(device, num_tokens, strategy):
    topk_ids = random_ids(num_tokens, 8, 4098).sub(1).to(device)
    check_blocks(topk_ids, 16, 4096, torch.float32, run_config={"strategy": strategy})


@pytest.mark.gpu
@each_configuration
@each_mode
def test_graph_replays_with_new_inputs(device, configuration, mode):
    topk_ids = routed_ids(100, 8, 160).to(device)
    options = options_of(mode, 160, device)
    config = CONFIGURATIONS[configuration] or None
    memory = check_blocks(topk_ids, 16, 160, run_config=config, **options)
    poison = {
        name: tensor.clone() for name, tensor in flat.poisoned_blocks(topk_ids, 16, 160, **options).memory.items()
    }
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        align_blocks(topk_ids, 16, 160, out=Blocks(**memory.tensors), run_config=config, **options)
    for seed in range(1, 4):
        topk_ids.copy_(routed_ids(100, 8, 162, seed) - 1)
        for name, tensor in memory.memory.items():
            tensor.copy_(poison[name])
        graph.replay()
        assert_blocks(memory, topk_ids, 16, 160, **options)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@each_configuration
def test_never_waits_for_the_gpu(device, configuration):
    topk_ids, config = routed_ids(64, 8, 256).to(device), CONFIGURATIONS[configuration] or None
    align_blocks(topk_ids, 64, 256, run_config=config)
    try:
        torch.cuda.set_sync_debug_mode("error")
        align_blocks(topk_ids, 64, 256, run_config=config)
    finally:
        torch.cuda.set_sync_debug_mode("default")

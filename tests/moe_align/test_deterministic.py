"""Every deterministic strategy: bit for bit the rows of the oracle."""

import pytest
import torch

from moe_align import align_rows
from moe_align.strategy import strategies
from tests.moe_align import oracle
from tests.moe_align.alignment import align_poisoned, assert_same_memory, check
from tests.moe_align.cases import (
    WIDE_IDS,
    each_case,
    each_id_dtype,
    each_model,
    each_weights_dtype,
    random_ids,
    routed_ids,
)

#: Small tiles, so that few slots need several; on a GPU the strategies' defaults are tested too.
CONFIGURATIONS = {
    "chosen": {},
    "scan": {"strategy": "scan", "BLOCK_SIZE": 32, "EXPERT_BLOCK": 4},
    "sift": {"strategy": "sift", "EXPERT_BLOCK": 4, "HITS": 2, "num_warps": 1},
    "collect": {"strategy": "collect", "EXPERT_BLOCK": 4, "num_warps": 1},
    "tiles": {"strategy": "tiles", "BLOCK_SIZE": 64, "num_warps": 1},
}


@pytest.fixture(params=CONFIGURATIONS)
def strategy(request):
    """Launch options that choose a strategy; none for what the library chooses."""
    return CONFIGURATIONS[request.param]


def test_every_strategy_is_tested():
    assert set(CONFIGURATIONS) == {"chosen", *strategies("deterministic")}


@each_id_dtype
@each_case
def test_rows(device, case, ids_dtype, strategy):
    check(case.tensor(device, ids_dtype), case.num_experts, **strategy)


def test_same_bits_when_run_again(device, strategy):
    topk_ids = random_ids(40, 4, 9).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    first = align_poisoned(topk_ids, topk_weights, 9, strategy or None)
    oracle.assert_rows(first, topk_ids, topk_weights)
    assert_same_memory(align_poisoned(topk_ids, topk_weights, 9, strategy or None), first)


def test_out_can_be_used_again(device, strategy):
    # What an earlier call left in the counts must not be added to.
    out = oracle.poisoned_rows(5, 24, device=device)
    for seed in range(2):
        topk_ids = random_ids(8, 3, 5, seed).to(device)
        topk_weights = oracle.distinct_weights(topk_ids)
        out.rows.slot_index.fill_(oracle.INT32_POISON)
        out.rows.weights.copy_(oracle.poisoned_rows(5, 24).rows.weights)
        align_rows(topk_ids, topk_weights, 5, out=out.rows, run_config=strategy or None)
        oracle.assert_rows(out, topk_ids, topk_weights)


@each_weights_dtype
def test_weights_are_copied_bit_by_bit(device, weights_dtype, strategy):
    check(random_ids(50, 4, 7).to(device), 7, weights_dtype, **strategy)


@pytest.mark.parametrize(
    ("weights_dtype", "bits"),
    [
        pytest.param(
            torch.float32,
            [
                0x00000000,
                -0x80000000,
                0x7F800000,
                -0x00800000,
                0x7FC12345,
                0x7F800001,
                -0x003FFFFF,
                0x00000001,
            ],
            id="float32",
        ),
        pytest.param(
            torch.float16,
            [0x0000, -0x8000, 0x7C00, -0x0400, 0x7E21, 0x7C01, -0x01FF, 0x0001],
            id="float16",
        ),
        pytest.param(
            torch.bfloat16,
            [0x0000, -0x8000, 0x7F80, -0x0080, 0x7FC5, 0x7F81, -0x003F, 0x0001],
            id="bfloat16",
        ),
    ],
)
def test_zeros_infinities_nans_and_subnormals_keep_their_bits(device, weights_dtype, bits, strategy):
    weights = torch.tensor([bits], dtype=oracle.BITS_OF[weights_dtype], device=device).view(weights_dtype)
    topk_ids = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0]], device=device)
    oracle.assert_rows(align_poisoned(topk_ids, weights, 2, strategy or None), topk_ids, weights)


def test_wide_ids_are_not_truncated(device, strategy):
    check(WIDE_IDS.tensor(device), WIDE_IDS.num_experts, **strategy)


@pytest.mark.parametrize("guard", [1, 2, 3, 17], ids="offset={}".format)
def test_buffers_need_no_alignment(device, guard, strategy):
    topk_ids = torch.cat((torch.zeros(guard, dtype=torch.int64), random_ids(16, 2, 5).reshape(-1)))
    topk_ids = topk_ids.to(device)[guard:].view(16, 2)
    check(topk_ids, 5, guard=guard, **strategy)


@pytest.mark.usefixtures("deterministic_algorithms")
@each_case
def test_every_count_is_written_and_nothing_beyond_the_counts(device, case, strategy):
    topk_ids = case.tensor(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    rows = align_rows(topk_ids, topk_weights, case.num_experts, run_config=strategy or None)
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)
    for row, weights, count in zip(rows.slot_index, rows.weights, rows.counts.tolist(), strict=True):
        assert set(row[count:].tolist()) <= {2**31 - 1}
        assert weights[count:].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16, 128, 1024, 4096], ids="tokens={}".format)
@each_model
def test_real_models(device, num_tokens, num_experts, top_k, strategy):
    check(routed_ids(num_tokens, top_k, num_experts).to(device), num_experts, **strategy)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6), ids="seed={}".format)
def test_random_shapes(device, seed, strategy):
    num_tokens, top_k, num_experts = (int(random_ids(1, 1, most, seed)) + 1 for most in (3000, 17, 1025))
    check(
        random_ids(num_tokens, top_k, num_experts + 2, seed).sub(1).to(device), num_experts, torch.bfloat16, **strategy
    )


@pytest.mark.gpu
def test_a_hundred_calls_give_the_same_bits(device, strategy):
    topk_ids = routed_ids(512, 8, 256).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    first = align_poisoned(topk_ids, topk_weights, 256, strategy or None)
    oracle.assert_rows(first, topk_ids, topk_weights)
    for _ in range(99):
        assert_same_memory(align_poisoned(topk_ids, topk_weights, 256, strategy or None), first)


@pytest.mark.gpu
def test_graph_replays_with_new_inputs(device, strategy):
    topk_ids = routed_ids(100, 8, 160).to(device)
    topk_weights = oracle.distinct_weights(topk_ids, torch.bfloat16)
    out = align_poisoned(topk_ids, topk_weights, 160, strategy or None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        align_rows(topk_ids, topk_weights, 160, out=out.rows, run_config=strategy or None)
    untouched = oracle.poisoned_rows(160, 800, torch.bfloat16, device)
    for seed in range(1, 6):
        topk_ids.copy_(routed_ids(100, 8, 160, seed))
        topk_weights.copy_(topk_weights.flip(0))
        for buffer, poison in zip(out.memory, untouched.memory, strict=True):
            buffer.copy_(poison)
        graph.replay()
        oracle.assert_rows(out, topk_ids, topk_weights)


@pytest.mark.gpu
def test_allocates_inside_a_graph(device, strategy):
    topk_ids = routed_ids(10, 8, 128).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    align_rows(topk_ids, topk_weights, 128, run_config=strategy or None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = align_rows(topk_ids, topk_weights, 128, run_config=strategy or None)
    topk_ids.copy_(routed_ids(10, 8, 128, seed=1))
    graph.replay()
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@pytest.mark.gpu
def test_several_streams_at_once(device, strategy):
    num_streams = 8
    inputs = [routed_ids(512, 8, 256, seed).to(device) for seed in range(num_streams)]
    weights = [oracle.distinct_weights(topk_ids) for topk_ids in inputs]
    outs = [oracle.poisoned_rows(256, 4096, device=device) for _ in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(20):
        for topk_ids, topk_weights, out, stream in zip(inputs, weights, outs, streams, strict=True):
            with torch.cuda.stream(stream):
                align_rows(topk_ids, topk_weights, 256, out=out.rows, run_config=strategy or None)
    torch.cuda.synchronize()
    for topk_ids, topk_weights, out in zip(inputs, weights, outs, strict=True):
        oracle.assert_rows(out, topk_ids, topk_weights)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_never_waits_for_the_gpu(device, strategy):
    topk_ids = routed_ids(64, 8, 256).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    align_rows(topk_ids, topk_weights, 256, run_config=strategy or None)
    try:
        torch.cuda.set_sync_debug_mode("error")
        rows = align_rows(topk_ids, topk_weights, 256, run_config=strategy or None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@pytest.mark.gpu(devices=2)
def test_device_need_not_be_the_current_one(strategy):
    topk_ids = routed_ids(64, 8, 256).to("cuda:1")
    topk_weights = oracle.distinct_weights(topk_ids)
    with torch.cuda.device(0):
        rows = align_rows(topk_ids, topk_weights, 256, run_config=strategy or None)
    assert rows.counts.device == topk_ids.device
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@pytest.mark.gpu(gib=45)
@pytest.mark.parametrize("strategy", ["sift", "collect", "tiles"], indirect=True)
def test_more_than_two_to_the_31_elements(device, strategy):
    num_experts, num_slots, guard = 515, 2**22 + 5, 2**20
    assert num_experts * num_slots > 2**31
    out = oracle.poisoned_rows(num_experts, num_slots, torch.bfloat16, device, guard)
    poison = oracle.poisoned_rows(1, num_slots, torch.bfloat16, guard=0).memory
    topk_ids = random_ids(num_slots, 1, num_experts + 2).sub(1).to(device)
    # Bits of a slot's weight: its lowest 16.
    topk_weights = torch.arange(num_slots, device=device).to(torch.int16).view(torch.bfloat16).unsqueeze(1)
    align_rows(topk_ids, topk_weights, num_experts, out=out.rows, run_config=strategy or None)
    chosen = oracle.slots_by_expert(topk_ids, num_experts)
    assert out.rows.counts.tolist() == [len(slots) for slots in chosen]
    for expert, slots in enumerate(chosen):
        expected = torch.tensor(slots, dtype=torch.int32)
        row, weights = out.rows.slot_index[expert].cpu(), out.rows.weights[expert].cpu()
        oracle.assert_same_bits(f"slot_index[{expert}]", row[: len(slots)], expected)
        bits = expected.to(torch.int16).view(torch.bfloat16)
        oracle.assert_same_bits(f"weights[{expert}]", weights[: len(slots)], bits)
        for name, buffer in (("slot_index", row), ("weights", weights)):
            beyond = getattr(poison, name)[len(slots) :]
            oracle.assert_same_bits(f"{name}[{expert}] beyond the count", buffer[len(slots) :], beyond)
    for name in ("slot_index", "weights"):
        memory, no_slot = getattr(out.memory, name), getattr(poison, name)
        for zone in (memory[:guard], memory[-guard:]):
            oracle.assert_same_bits(f"guard zone of {name}", zone.cpu(), no_slot[:guard])

"""The deterministic kernel: bit for bit the rows of the oracle, whatever the launch configuration."""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from moe_align import Rows, align_rows
from moe_align.kernels import scan
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


def align_poisoned(topk_ids, topk_weights, num_experts, run_config=None, guard=oracle.GUARD):
    out = oracle.poisoned_rows(num_experts, topk_ids.numel(), topk_weights.dtype, topk_ids.device, guard)
    align_rows(topk_ids, topk_weights, num_experts, out=out.rows, run_config=run_config)
    return out


def check(topk_ids, num_experts, weights_dtype=torch.float32, guard=oracle.GUARD, **run_config):
    topk_weights = oracle.distinct_weights(topk_ids, weights_dtype)
    out = align_poisoned(topk_ids, topk_weights, num_experts, run_config, guard)
    oracle.assert_rows(out, topk_ids, topk_weights)


def assert_same_memory(one, other):
    for name in one.memory._fields:
        oracle.assert_same_bits(name, getattr(one.memory, name), getattr(other.memory, name))


@pytest.fixture
def stored_addresses(monkeypatch):
    """Every address that an interpreted kernel stores to, once a store; nothing is recorded on a GPU.

    Two programs that store the same value to one place are a race that no output shows.
    """
    addresses = []
    store = InterpreterBuilder.create_masked_store

    def recording(self, pointers, value, mask, *hints):
        addresses.extend(pointers.data[mask.data].tolist())
        return store(self, pointers, value, mask, *hints)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", recording)
    return addresses


@each_id_dtype
@each_case
def test_rows(device, case, ids_dtype):
    check(case.tensor(device, ids_dtype), case.num_experts)


def test_experts_past_the_end_are_masked(device, stored_addresses):
    # Two programs of four experts for five: the second one's other three must not wrap around to experts 0, 1
    # and 2, whose rows and counts the first program writes, nor claim the ids 5, 6 and 7.
    topk_ids = torch.tensor([[0, 4, 5], [1, 4, 6], [2, 4, 7], [0, 3, 4]], device=device)
    check(topk_ids, 5, EXPERT_BLOCK=4)
    assert len(stored_addresses) == len(set(stored_addresses))
    assert len(stored_addresses) == (0 if device.type == "cuda" else 5 + 2 * 9)


@pytest.mark.parametrize("num_experts", [1, 3, 5, 7, 13, 17], ids="experts={}".format)
@pytest.mark.parametrize("expert_block", [1, 2, 4, 8, 16], ids="EXPERT_BLOCK={}".format)
def test_expert_block_need_not_divide_the_experts(device, stored_addresses, num_experts, expert_block):
    # Three ids past the end: lanes that pad the last program.
    topk_ids = random_ids(11, 3, num_experts + 3).to(device)
    check(topk_ids, num_experts, EXPERT_BLOCK=expert_block, BLOCK_SIZE=16)
    assert len(stored_addresses) == len(set(stored_addresses))


@pytest.mark.parametrize("num_slots", [0, 1, 127, 128, 129, 131, 257], ids="slots={}".format)
@pytest.mark.parametrize("block_size", [16, 32, 128, 512], ids="BLOCK_SIZE={}".format)
def test_block_size_need_not_divide_the_slots(device, num_slots, block_size):
    check(random_ids(num_slots, 1, 3).to(device), 3, BLOCK_SIZE=block_size, EXPERT_BLOCK=4)


def test_tiles_of_one_slot(device):
    check(random_ids(7, 1, 3).to(device), 3, BLOCK_SIZE=1, EXPERT_BLOCK=1)


@pytest.mark.parametrize("num_stage", [1, 2, 3, 4, 8], ids="NUM_STAGE={}".format)
def test_stages(device, num_stage):
    check(random_ids(43, 3, 5).to(device), 5, BLOCK_SIZE=32, EXPERT_BLOCK=2, NUM_STAGE=num_stage)


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16, 32], ids="num_warps={}".format)
def test_warps(device, num_warps):
    check(random_ids(43, 3, 5).to(device), 5, BLOCK_SIZE=64, EXPERT_BLOCK=2, num_warps=num_warps)


def test_every_configuration_gives_the_same_bits(device):
    topk_ids = random_ids(53, 3, 14).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    default = align_poisoned(topk_ids, topk_weights, 11)
    oracle.assert_rows(default, topk_ids, topk_weights)
    for block_size in (32, 256):
        for expert_block in (1, 4, 16):
            for num_stage, num_warps in ((1, 1), (3, 4), (2, 8)):
                config = {
                    "BLOCK_SIZE": block_size,
                    "EXPERT_BLOCK": expert_block,
                    "NUM_STAGE": num_stage,
                    "num_warps": num_warps,
                }
                assert_same_memory(align_poisoned(topk_ids, topk_weights, 11, config), default)


def test_same_bits_when_run_again(device):
    topk_ids = random_ids(40, 4, 9).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    first = align_poisoned(topk_ids, topk_weights, 9)
    oracle.assert_rows(first, topk_ids, topk_weights)
    assert_same_memory(align_poisoned(topk_ids, topk_weights, 9), first)


def test_out_can_be_used_again(device):
    # What an earlier call left in the counts must not be added to.
    out = oracle.poisoned_rows(5, 24, device=device)
    for seed in range(2):
        topk_ids = random_ids(8, 3, 5, seed).to(device)
        topk_weights = oracle.distinct_weights(topk_ids)
        out.rows.slot_index.fill_(oracle.INT32_POISON)
        out.rows.weights.copy_(oracle.poisoned_rows(5, 24).rows.weights)
        align_rows(topk_ids, topk_weights, 5, out=out.rows)
        oracle.assert_rows(out, topk_ids, topk_weights)


@each_weights_dtype
def test_weights_are_copied_bit_by_bit(device, weights_dtype):
    check(random_ids(50, 4, 7).to(device), 7, weights_dtype, EXPERT_BLOCK=8)


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
def test_zeros_infinities_nans_and_subnormals_keep_their_bits(device, weights_dtype, bits):
    weights = torch.tensor([bits], dtype=oracle.BITS_OF[weights_dtype], device=device).view(weights_dtype)
    topk_ids = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0]], device=device)
    oracle.assert_rows(align_poisoned(topk_ids, weights, 2), topk_ids, weights)


def test_wide_ids_are_not_truncated(device):
    check(WIDE_IDS.tensor(device), WIDE_IDS.num_experts, EXPERT_BLOCK=4)


@pytest.mark.interpreter
def test_places_past_two_to_the_31_do_not_overflow(monkeypatch):
    # The last of so many experts, with stores recorded instead of done: no such memory is needed.
    num_slots, num_experts = 129, 2**31 // 129 + 2
    addresses = []
    monkeypatch.setattr(
        InterpreterBuilder,
        "create_masked_store",
        lambda self, pointers, value, mask, *hints: addresses.extend(pointers.data[mask.data].tolist()),
    )
    last = TensorHandle(np.array([num_experts - 1], dtype=np.int32), tl.int32)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", lambda self, axis: last)
    topk_ids = torch.full((num_slots,), num_experts - 1)
    slot_index, weights, counts = Rows.empty(1, 1, torch.float32, torch.device("cpu"))
    scan.align_rows_scan_kernel[(1,)](
        topk_ids,
        torch.zeros(num_slots),
        slot_index,
        weights,
        counts,
        num_slots,
        num_experts,
        BLOCK_SIZE=256,
        ROW=4,
        EXPERT_BLOCK=1,
        NUM_STAGE=1,
    )
    places = range((num_experts - 1) * num_slots, num_experts * num_slots)
    assert places.start > 2**31
    assert addresses == [
        *(slot_index.data_ptr() + 4 * place for place in places),
        *(weights.data_ptr() + 4 * place for place in places),
        counts.data_ptr() + 4 * (num_experts - 1),
    ]


@pytest.mark.parametrize("guard", [1, 2, 3, 17], ids="offset={}".format)
def test_buffers_need_no_alignment(device, guard):
    topk_ids = torch.cat((torch.zeros(guard, dtype=torch.int64), random_ids(16, 2, 5).reshape(-1)))
    topk_ids = topk_ids.to(device)[guard:].view(16, 2)
    check(topk_ids, 5, guard=guard)


@pytest.mark.usefixtures("deterministic_algorithms")
@each_case
def test_every_count_is_written_and_nothing_beyond_the_counts(device, case):
    topk_ids = case.tensor(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    rows = align_rows(topk_ids, topk_weights, case.num_experts)
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)
    for row, weights, count in zip(rows.slot_index, rows.weights, rows.counts.tolist(), strict=True):
        assert set(row[count:].tolist()) <= {2**31 - 1}
        assert weights[count:].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16, 128, 1024, 4096], ids="tokens={}".format)
@each_model
def test_real_models(device, num_tokens, num_experts, top_k):
    check(routed_ids(num_tokens, top_k, num_experts).to(device), num_experts)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(20), ids="seed={}".format)
def test_random_shapes(device, seed):
    num_tokens, top_k, num_experts = (int(random_ids(1, 1, most, seed)) + 1 for most in (3000, 17, 1025))
    check(random_ids(num_tokens, top_k, num_experts + 2, seed).sub(1).to(device), num_experts, torch.bfloat16)


@pytest.mark.gpu
def test_a_hundred_calls_give_the_same_bits(device):
    topk_ids = routed_ids(512, 8, 256).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    first = align_poisoned(topk_ids, topk_weights, 256)
    oracle.assert_rows(first, topk_ids, topk_weights)
    for _ in range(99):
        assert_same_memory(align_poisoned(topk_ids, topk_weights, 256), first)


@pytest.mark.gpu
def test_graph_replays_with_new_inputs(device):
    topk_ids = routed_ids(100, 8, 160).to(device)
    topk_weights = oracle.distinct_weights(topk_ids, torch.bfloat16)
    out = align_poisoned(topk_ids, topk_weights, 160)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        align_rows(topk_ids, topk_weights, 160, out=out.rows)
    untouched = oracle.poisoned_rows(160, 800, torch.bfloat16, device)
    for seed in range(1, 6):
        topk_ids.copy_(routed_ids(100, 8, 160, seed))
        topk_weights.copy_(topk_weights.flip(0))
        for buffer, poison in zip(out.memory, untouched.memory, strict=True):
            buffer.copy_(poison)
        graph.replay()
        oracle.assert_rows(out, topk_ids, topk_weights)


@pytest.mark.gpu
def test_allocates_inside_a_graph(device):
    topk_ids = routed_ids(10, 8, 128).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    align_rows(topk_ids, topk_weights, 128)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = align_rows(topk_ids, topk_weights, 128)
    topk_ids.copy_(routed_ids(10, 8, 128, seed=1))
    graph.replay()
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@pytest.mark.gpu
def test_several_streams_at_once(device):
    num_streams = 8
    inputs = [routed_ids(512, 8, 256, seed).to(device) for seed in range(num_streams)]
    weights = [oracle.distinct_weights(topk_ids) for topk_ids in inputs]
    outs = [oracle.poisoned_rows(256, 4096, device=device) for _ in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(20):
        for topk_ids, topk_weights, out, stream in zip(inputs, weights, outs, streams, strict=True):
            with torch.cuda.stream(stream):
                align_rows(topk_ids, topk_weights, 256, out=out.rows)
    torch.cuda.synchronize()
    for topk_ids, topk_weights, out in zip(inputs, weights, outs, strict=True):
        oracle.assert_rows(out, topk_ids, topk_weights)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_never_waits_for_the_gpu(device):
    topk_ids = routed_ids(64, 8, 256).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    align_rows(topk_ids, topk_weights, 256)
    try:
        torch.cuda.set_sync_debug_mode("error")
        rows = align_rows(topk_ids, topk_weights, 256)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@pytest.mark.gpu(devices=2)
def test_device_need_not_be_the_current_one():
    topk_ids = routed_ids(64, 8, 256).to("cuda:1")
    topk_weights = oracle.distinct_weights(topk_ids)
    with torch.cuda.device(0):
        rows = align_rows(topk_ids, topk_weights, 256)
    assert rows.counts.device == topk_ids.device
    oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@pytest.mark.gpu(gib=45)
def test_more_than_two_to_the_31_elements(device):
    num_experts, num_slots, guard = 515, 2**22 + 5, 2**20
    assert num_experts * num_slots > 2**31
    out = oracle.poisoned_rows(num_experts, num_slots, torch.bfloat16, device, guard)
    poison = oracle.poisoned_rows(1, num_slots, torch.bfloat16, guard=0).memory
    topk_ids = random_ids(num_slots, 1, num_experts + 2).sub(1).to(device)
    # Bits of a slot's weight: its lowest 16.
    topk_weights = torch.arange(num_slots, device=device).to(torch.int16).view(torch.bfloat16).unsqueeze(1)
    align_rows(topk_ids, topk_weights, num_experts, out=out.rows)
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

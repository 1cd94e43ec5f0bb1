"""The public function: what it takes, what it refuses and in which words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moe_align
from moe_align import Rows, align_rows
from tests.moe_align import oracle
from tests.moe_align.cases import (
    WIDE_IDS,
    each_case,
    each_id_dtype,
    each_weights_dtype,
    random_ids,
    routed_ids,
)

each_implementation = pytest.mark.parametrize("implementation", ["deterministic", "atomic", "reference"])
IDS = torch.tensor([[0, 1, 2], [2, 1, 0]])
WEIGHTS = torch.zeros((2, 3))


def assert_says(failure, name, *parts):
    message = str(failure.value)
    assert message.startswith(name), message
    assert [part for part in parts if part not in message] == [], message


def check(topk_ids, topk_weights, num_experts, implementation, **options):
    out = oracle.poisoned_rows(num_experts, topk_ids.numel(), topk_weights.dtype, topk_ids.device)
    align_rows(topk_ids, topk_weights, num_experts, out=out.rows, implementation=implementation, **options)
    oracle.assert_rows(out, topk_ids, topk_weights, ordered=implementation != "atomic")


def test_public_names():
    assert {"Rows", "align_rows", "schedule_blocks"} <= set(moe_align.__all__)
    assert all(hasattr(moe_align, name) for name in moe_align.__all__)


def test_hand_worked_example(device):
    topk_ids = torch.tensor([[1, 0], [1, 2]], device=device)
    topk_weights = torch.tensor([[0.9, 0.1], [0.6, 0.4]], device=device)
    rows = align_rows(topk_ids, topk_weights, 3)
    assert rows.counts.tolist() == [1, 2, 1]
    assert [rows.slot_index[0, 0], *rows.slot_index[1, :2], rows.slot_index[2, 0]] == [1, 0, 2, 3]
    assert torch.equal(rows.weights[1, :2], topk_weights[:, 0])


@each_implementation
@each_weights_dtype
@each_id_dtype
def test_dtypes(device, implementation, weights_dtype, ids_dtype):
    topk_ids = random_ids(13, 4, 6).to(device, ids_dtype)
    check(topk_ids, oracle.distinct_weights(topk_ids, weights_dtype), 6, implementation)


@each_implementation
def test_wide_ids_are_dropped(device, implementation):
    topk_ids = WIDE_IDS.tensor(device)
    check(topk_ids, oracle.distinct_weights(topk_ids), WIDE_IDS.num_experts, implementation)


@each_implementation
@pytest.mark.parametrize("strided", ["ids", "weights", "both"])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.T.contiguous().T, id="transposed"),
        pytest.param(lambda x: torch.stack((x, x.flip(0)), dim=2)[:, :, 0], id="every-other-column"),
        pytest.param(lambda x: x.repeat_interleave(2, dim=0)[::2], id="every-other-row"),
        pytest.param(lambda x: torch.cat((x.flip(1), x), dim=1)[:, x.shape[1] :], id="column-slice"),
    ],
)
def test_strides_of_the_inputs_do_not_matter(device, implementation, strided, view):
    topk_ids = random_ids(9, 4, 5).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    given_ids = view(topk_ids) if strided != "weights" else topk_ids
    given_weights = view(topk_weights) if strided != "ids" else topk_weights
    assert not (given_ids.is_contiguous() and given_weights.is_contiguous())
    out = oracle.poisoned_rows(5, 36, device=device)
    align_rows(given_ids, given_weights, 5, out=out.rows, implementation=implementation)
    oracle.assert_rows(out, topk_ids, topk_weights, ordered=implementation != "atomic")


@each_implementation
def test_one_id_for_all_by_stride_zero(device, implementation):
    topk_ids = torch.tensor([[2]], device=device).expand(5, 3)
    check(topk_ids, oracle.distinct_weights(topk_ids), 4, implementation)


@each_implementation
def test_inputs_stay_as_they_were(device, implementation):
    topk_ids = random_ids(9, 4, 5).to(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    ids_before, weights_before = topk_ids.clone(), topk_weights.clone()
    align_rows(topk_ids, topk_weights, 5, implementation=implementation)
    assert torch.equal(topk_ids, ids_before)
    oracle.assert_same_bits("topk_weights", topk_weights, weights_before)


@each_implementation
def test_returns_out(device, implementation):
    out = oracle.poisoned_rows(3, 6, device=device).rows
    places = [buffer.data_ptr() for buffer in out]
    returned = align_rows(IDS.to(device), WEIGHTS.to(device), 3, out=out, implementation=implementation)
    assert returned is out
    assert [buffer.data_ptr() for buffer in returned] == places


@each_implementation
def test_allocates_without_out(device, implementation):
    topk_ids = random_ids(5, 3, 4).to(device)
    topk_weights = oracle.distinct_weights(topk_ids, torch.bfloat16)
    rows = align_rows(topk_ids, topk_weights, 4, implementation=implementation, run_config=None)
    assert isinstance(rows, Rows)
    assert [buffer.shape for buffer in rows] == [(4, 15), (4, 15), (4,)]
    assert [buffer.dtype for buffer in rows] == [torch.int32, torch.bfloat16, torch.int32]
    assert [buffer.device for buffer in rows] == [device] * 3
    if implementation != "atomic":
        oracle.assert_rows_up_to_counts(rows, topk_ids, topk_weights)


@each_weights_dtype
def test_empty_rows(device, weights_dtype):
    rows = Rows.empty(3, 7, weights_dtype, device)
    assert [buffer.shape for buffer in rows] == [(3, 7), (3, 7), (3,)]
    assert [buffer.dtype for buffer in rows] == [torch.int32, weights_dtype, torch.int32]
    assert [buffer.device for buffer in rows] == [device] * 3
    assert all(buffer.is_contiguous() for buffer in rows)


@each_implementation
def test_empty_rows_serve_as_out(device, implementation):
    out = Rows.empty(3, 6, torch.float32, device)
    align_rows(IDS.to(device), WEIGHTS.to(device), 3, out=out, implementation=implementation)
    assert out.counts.tolist() == [2, 2, 2]


@each_implementation
@pytest.mark.parametrize("shape", [(0, 8), (0, 0), (3, 0)], ids=["no-tokens", "nothing", "no-choices"])
def test_no_slots(device, implementation, shape):
    topk_ids = torch.zeros(shape, dtype=torch.int32, device=device)
    topk_weights = torch.zeros(shape, device=device)
    check(topk_ids, topk_weights, 5, implementation, check_ids=True)
    assert align_rows(topk_ids, topk_weights, 5, implementation=implementation).slot_index.shape == (5, 0)


@each_implementation
def test_weights_that_require_grad(device, implementation):
    topk_weights = oracle.distinct_weights(IDS.to(device)).requires_grad_()
    check(IDS.to(device), topk_weights, 3, implementation)
    rows = align_rows(IDS.to(device), topk_weights, 3, implementation=implementation)
    assert not rows.weights.requires_grad


@each_implementation
def test_weights_of_a_computation_that_requires_grad(device, implementation):
    topk_weights = torch.ones((2, 3), device=device, requires_grad=True) * 2
    rows = align_rows(IDS.to(device), topk_weights, 3, implementation=implementation)
    assert not rows.weights.requires_grad


@each_implementation
def test_inference_mode(device, implementation):
    with torch.inference_mode():
        topk_ids = IDS.to(device)
        check(topk_ids, oracle.distinct_weights(topk_ids), 3, implementation)


@each_implementation
@each_case
def test_check_ids_names_the_first_bad_slot(device, implementation, case):
    topk_ids = case.tensor(device)
    topk_weights = oracle.distinct_weights(topk_ids)
    bad = [
        (token, k, expert)
        for token, choices in enumerate(case.topk_ids)
        for k, expert in enumerate(choices)
        if not 0 <= expert < case.num_experts
    ]
    if not bad:
        check(topk_ids, topk_weights, case.num_experts, implementation, check_ids=True)
        return
    out = oracle.poisoned_rows(case.num_experts, topk_ids.numel(), device=device)
    untouched = [buffer.clone() for buffer in out.memory]
    with pytest.raises(ValueError, match="topk_ids") as failure:
        align_rows(
            topk_ids,
            topk_weights,
            case.num_experts,
            out=out.rows,
            implementation=implementation,
            check_ids=True,
        )
    token, k, expert = bad[0]
    slot = token * case.top_k + k
    expected = f"topk_ids[{token}, {k}] (slot {slot}): expected 0 <= id < {case.num_experts}, got {expert}"
    assert str(failure.value) == expected
    for buffer, before in zip(out.memory, untouched, strict=True):
        oracle.assert_same_bits("out", buffer, before)


@pytest.mark.parametrize("bad", [2**40, -(2**40), 2**32], ids=["2**40", "-2**40", "2**32"])
def test_check_ids_does_not_truncate(device, bad):
    topk_ids = torch.tensor([[0, 1], [1, bad]], device=device)
    with pytest.raises(ValueError, match="topk_ids") as failure:
        align_rows(topk_ids, torch.zeros((2, 2), device=device), 3, check_ids=True)
    assert_says(failure, "topk_ids[1, 1] (slot 3)", "0 <= id < 3", f"got {bad}")


def test_check_ids_with_strided_ids(device):
    topk_ids = torch.tensor([[0, 1, 2], [1, 9, 8]], device=device).T
    with pytest.raises(ValueError, match="topk_ids") as failure:
        align_rows(topk_ids, torch.zeros((3, 2), device=device), 3, check_ids=True)
    assert_says(failure, "topk_ids[1, 1] (slot 3)", "got 9")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        pytest.param({"topk_ids": [[0]]}, TypeError, ["topk_ids:", "torch.Tensor", "list"], id="ids-a-list"),
        pytest.param({"topk_ids": None}, TypeError, ["topk_ids:", "torch.Tensor", "NoneType"], id="ids-none"),
        *(
            pytest.param(
                {"topk_ids": IDS.to(dtype)},
                TypeError,
                ["topk_ids:", "torch.int32 or torch.int64", str(dtype)],
                id=f"ids-{str(dtype).removeprefix('torch.')}",
            )
            for dtype in (torch.float32, torch.int16, torch.uint8, torch.bool)
        ),
        pytest.param(
            {"topk_ids": IDS[0]},
            ValueError,
            ["topk_ids:", "[num_tokens, top_k]", "[3]"],
            id="ids-1d",
        ),
        pytest.param(
            {"topk_ids": IDS[None]},
            ValueError,
            ["topk_ids:", "[num_tokens, top_k]", "[1, 2, 3]"],
            id="ids-3d",
        ),
        pytest.param(
            {"topk_ids": IDS.to("meta")},
            ValueError,
            ["topk_ids:", "CPU or CUDA tensor", "meta"],
            id="ids-meta",
        ),
        pytest.param(
            {
                "topk_ids": IDS[:1, :1].expand(2**31, 1),
                "topk_weights": WEIGHTS[:1, :1].expand(2**31, 1),
            },
            ValueError,
            ["topk_ids:", "at most", "slots", "2147483648"],
            id="too-many-slots",
        ),
        pytest.param(
            {"topk_weights": 0.5},
            TypeError,
            ["topk_weights:", "torch.Tensor", "float"],
            id="weights-float",
        ),
        *(
            pytest.param(
                {"topk_weights": WEIGHTS.to(dtype)},
                TypeError,
                ["topk_weights:", "torch.float32 or torch.float16 or torch.bfloat16", str(dtype)],
                id=f"weights-{str(dtype).removeprefix('torch.')}",
            )
            for dtype in (torch.float64, torch.int32)
        ),
        pytest.param(
            {"topk_weights": WEIGHTS.to("meta")},
            ValueError,
            ["topk_weights:", "CPU or CUDA tensor", "meta"],
            id="weights-meta",
        ),
        pytest.param(
            {"topk_weights": WEIGHTS.T},
            ValueError,
            ["topk_weights:", "[2, 3]", "[3, 2]"],
            id="weights-transposed",
        ),
        pytest.param(
            {"topk_weights": WEIGHTS.reshape(6)},
            ValueError,
            ["topk_weights:", "[2, 3]", "[6]"],
            id="weights-flat",
        ),
        pytest.param(
            {"num_experts": 0},
            ValueError,
            ["num_experts:", "at least 1", "got 0"],
            id="no-experts",
        ),
        pytest.param(
            {"num_experts": -4},
            ValueError,
            ["num_experts:", "at least 1", "-4"],
            id="experts-negative",
        ),
        pytest.param(
            {"num_experts": 2**31},
            ValueError,
            ["num_experts:", "less than 2**31", "2147483648"],
            id="too-many-experts",
        ),
        pytest.param(
            {"num_experts": 3.0},
            TypeError,
            ["num_experts:", "int", "3.0", "float"],
            id="experts-float",
        ),
        pytest.param(
            {"num_experts": True},
            TypeError,
            ["num_experts:", "int", "True", "bool"],
            id="experts-bool",
        ),
        pytest.param({"num_experts": None}, TypeError, ["num_experts:", "int", "None"], id="experts-none"),
        pytest.param(
            {"implementation": "fast"},
            ValueError,
            ["implementation:", "'deterministic'", "'atomic'", "'reference'", "'fast'"],
            id="implementation-unknown",
        ),
        pytest.param(
            {"implementation": None},
            ValueError,
            ["implementation:", "'deterministic'", "None"],
            id="implementation-none",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(arguments, error, said):
    with pytest.raises(error) as failure:
        align_rows(**{"topk_ids": IDS, "topk_weights": WEIGHTS, "num_experts": 3, **arguments})
    assert_says(failure, *said)


@pytest.mark.parametrize(
    ("field", "wrong", "error", "said"),
    [
        pytest.param("slot_index", [[0]], TypeError, ["torch.Tensor", "list"], id="slot_index-a-list"),
        pytest.param(
            "slot_index",
            torch.zeros((3, 6)),
            TypeError,
            ["torch.int32", "torch.float32"],
            id="slot_index-dtype",
        ),
        pytest.param(
            "slot_index",
            torch.zeros((2, 6), dtype=torch.int32),
            ValueError,
            ["[3, 6]", "[2, 6]"],
            id="slot_index-experts",
        ),
        pytest.param(
            "slot_index",
            torch.zeros((3, 7), dtype=torch.int32),
            ValueError,
            ["[3, 6]", "[3, 7]"],
            id="slot_index-slots",
        ),
        pytest.param(
            "slot_index",
            torch.zeros((6, 3), dtype=torch.int32).T,
            ValueError,
            ["contiguous", "[1, 3]"],
            id="slot_index-T",
        ),
        pytest.param(
            "slot_index",
            torch.zeros((3, 8), dtype=torch.int32)[:, :6],
            ValueError,
            ["contiguous", "[8, 1]"],
            id="slot_index-slice",
        ),
        pytest.param(
            "weights",
            torch.zeros((3, 6), dtype=torch.float16),
            TypeError,
            ["torch.float32", "torch.float16"],
            id="weights-dtype",
        ),
        pytest.param("weights", torch.zeros(18), ValueError, ["[3, 6]", "[18]"], id="weights-flat"),
        pytest.param("weights", torch.zeros((6, 3)).T, ValueError, ["contiguous", "[1, 3]"], id="weights-T"),
        pytest.param(
            "weights",
            torch.zeros((3, 6), device="meta"),
            ValueError,
            ["CPU or CUDA", "meta"],
            id="weights-meta",
        ),
        pytest.param(
            "counts",
            torch.zeros(3, dtype=torch.int64),
            TypeError,
            ["torch.int32", "torch.int64"],
            id="counts-dtype",
        ),
        pytest.param(
            "counts",
            torch.zeros(4, dtype=torch.int32),
            ValueError,
            ["[3]", "[4]"],
            id="counts-experts",
        ),
        pytest.param(
            "counts",
            torch.zeros(6, dtype=torch.int32)[::2],
            ValueError,
            ["contiguous", "[2]"],
            id="counts-strided",
        ),
    ],
)
def test_errors_of_out(field, wrong, error, said):
    out = Rows.empty(3, 6, torch.float32, torch.device("cpu"))._replace(**{field: wrong})
    with pytest.raises(error) as failure:
        align_rows(IDS, WEIGHTS, 3, out=out)
    assert_says(failure, f"out.{field}:", *said)


def test_out_must_be_rows():
    with pytest.raises(TypeError, match="out") as failure:
        align_rows(IDS, WEIGHTS, 3, out=tuple(Rows.empty(3, 6, torch.float32, torch.device("cpu"))))
    assert_says(failure, "out:", "Rows", "tuple")


@pytest.mark.parametrize(
    ("implementation", "run_config", "error", "said"),
    [
        pytest.param(
            "deterministic",
            [("BLOCK_SIZE", 128)],
            TypeError,
            ["run_config:", "dict", "list"],
            id="a-list",
        ),
        pytest.param(
            "deterministic",
            {"BLOCK": 128},
            ValueError,
            ["run_config['BLOCK']:", "no such option", "BLOCK_SIZE, EXPERT_BLOCK, NUM_STAGE, num_warps"],
            id="unknown",
        ),
        pytest.param(
            "atomic",
            {"EXPERT_BLOCK": 1},
            ValueError,
            ["run_config['EXPERT_BLOCK']:", "'atomic'", "BLOCK_SIZE, num_warps"],
            id="unknown-to-atomic",
        ),
        pytest.param(
            "reference",
            {"BLOCK_SIZE": 128},
            ValueError,
            ["run_config['BLOCK_SIZE']:", "'reference'", "none"],
            id="unknown-to-reference",
        ),
        pytest.param(
            "deterministic",
            {"BLOCK_SIZE": 96},
            ValueError,
            ["run_config['BLOCK_SIZE']:", "power of two", "65536", "got 96"],
            id="not-a-power-of-two",
        ),
        pytest.param(
            "deterministic",
            {"EXPERT_BLOCK": 0},
            ValueError,
            ["run_config['EXPERT_BLOCK']:", "from 1 to 1024", "got 0"],
            id="zero",
        ),
        pytest.param(
            "atomic",
            {"num_warps": -4},
            ValueError,
            ["run_config['num_warps']:", "power of two", "from 1 to 32", "got -4"],
            id="negative",
        ),
        pytest.param(
            "deterministic",
            {"num_warps": 64},
            ValueError,
            ["run_config['num_warps']:", "from 1 to 32", "got 64"],
            id="too-many-warps",
        ),
        pytest.param(
            "deterministic",
            {"NUM_STAGE": 9},
            ValueError,
            ["run_config['NUM_STAGE']:", "from 1 to 8", "got 9"],
            id="too-many-stages",
        ),
        pytest.param(
            "deterministic",
            {"BLOCK_SIZE": 128.0},
            TypeError,
            ["run_config['BLOCK_SIZE']:", "int", "128.0"],
            id="a-float",
        ),
        pytest.param(
            "deterministic",
            {"num_warps": True},
            TypeError,
            ["run_config['num_warps']:", "int", "True"],
            id="a-bool",
        ),
        pytest.param(
            "deterministic",
            {"BLOCK_SIZE": 65536, "EXPERT_BLOCK": 32},
            ValueError,
            ["run_config:", "BLOCK_SIZE * EXPERT_BLOCK", "2097152", "1048576"],
            id="tile-too-large",
        ),
    ],
)
def test_errors_of_run_config(implementation, run_config, error, said):
    with pytest.raises(error) as failure:
        align_rows(IDS, WEIGHTS, 3, implementation=implementation, run_config=run_config)
    assert_says(failure, *said)


@pytest.mark.parametrize(
    ("implementation", "run_config"),
    [
        pytest.param("deterministic", {}, id="empty"),
        pytest.param("deterministic", {"BLOCK_SIZE": 32}, id="BLOCK_SIZE"),
        pytest.param("deterministic", {"strategy": "sift", "HITS": 1}, id="sift"),
        pytest.param("deterministic", {"strategy": "tiles"}, id="tiles"),
        pytest.param("deterministic", {"EXPERT_BLOCK": 4}, id="EXPERT_BLOCK"),
        pytest.param("deterministic", {"NUM_STAGE": 3}, id="NUM_STAGE"),
        pytest.param("deterministic", {"num_warps": 8}, id="num_warps"),
        pytest.param("atomic", {"BLOCK_SIZE": 32}, id="atomic-BLOCK_SIZE"),
        pytest.param("atomic", {"num_warps": 1}, id="atomic-num_warps"),
        pytest.param("reference", {}, id="reference-empty"),
    ],
)
def test_partial_run_config(device, implementation, run_config):
    topk_ids = random_ids(20, 2, 5).to(device)
    given = dict(run_config)
    check(topk_ids, oracle.distinct_weights(topk_ids), 5, implementation, run_config=given)
    assert given == run_config


CPU_CALLS = """
import json
import torch
from moe_align import align_rows, kernels, schedule_blocks
from moe_align.compat import lightllm

topk_ids = torch.tensor([[1, 0, 5], [-1, 1, 3], [2**40, 1, 0]])
topk_weights = torch.arange(9.0).reshape(3, 3)
answers = {"interpreted": kernels.INTERPRETED}
for implementation in ("deterministic", "atomic", "reference"):
    rows = align_rows(topk_ids, topk_weights, 4, implementation=implementation)
    counts = rows.counts.tolist()
    answers[implementation] = [
        counts,
        [row[:count].tolist() for row, count in zip(rows.slot_index, counts)],
        [row[:count].tolist() for row, count in zip(rows.weights, counts)],
    ]
answers["schedule"] = schedule_blocks(rows.counts, 9, 2).tolist()
answers["moe_align2"] = lightllm.moe_align2(9, rows.counts, 2).tolist()
print(json.dumps(answers))
"""


def test_cpu_tensors_need_neither_gpu_nor_interpreter():
    src = Path(moe_align.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(src)}
    run = subprocess.run(
        [sys.executable, "-c", CPU_CALLS], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)
    rows = [[2, 3, 0, 1], [[1, 8], [0, 4, 7], [], [5]], [[1.0, 8.0], [0.0, 4.0, 7.0], [], [5.0]]]
    schedule = oracle.schedule([2, 3, 0, 1], 2, 7)
    assert answers == {
        "interpreted": False,
        "deterministic": rows,
        "atomic": rows,
        "reference": rows,
        "schedule": schedule,
        "moe_align2": schedule,
    }


@pytest.mark.gpu
@each_implementation
def test_cpu_tensors_beside_a_gpu(implementation):
    topk_ids = routed_ids(20, 4, 9)
    check(topk_ids, oracle.distinct_weights(topk_ids), 9, implementation)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["topk_weights", "out.slot_index", "out.weights", "out.counts"])
def test_all_arguments_on_one_device(device, name):
    out = Rows.empty(3, 6, torch.float32, device)
    arguments = {"topk_ids": IDS.to(device), "topk_weights": WEIGHTS.to(device), "out": out}
    if name == "topk_weights":
        arguments[name] = WEIGHTS
    else:
        field = name.removeprefix("out.")
        arguments["out"] = out._replace(**{field: getattr(out, field).cpu()})
    with pytest.raises(ValueError, match=name) as failure:
        align_rows(**arguments, num_experts=3)
    assert_says(failure, f"{name}:", str(device), "cpu")

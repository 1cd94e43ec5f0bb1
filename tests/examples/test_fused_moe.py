"""The fused layer against plain torch, and which of its results the order of the slots reaches."""

import json

import pytest
import torch

from benchmarks import oracle
from examples import fused_moe
from tests.moe_align.cases import CASES, WIDE_IDS, random_ids, routed_ids
from tests.tracking import processes

#: Relative error; half of the 16-bit ones' is the rounding of the result alone.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
each_dtype = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="float32"),
        pytest.param(torch.float16, id="float16"),
        # The interpreter multiplies bfloat16 as if it were integers.
        pytest.param(torch.bfloat16, id="bfloat16", marks=pytest.mark.gpu),
    ],
)
each_shape = pytest.mark.parametrize(
    ("topk_ids", "num_experts", "hidden", "columns"),
    [
        pytest.param(routed_ids(13, 2, 5), 5, 32, 64, id="whole-tiles"),
        pytest.param(routed_ids(13, 2, 5), 5, 31, 65, id="partial-tiles"),
        pytest.param(routed_ids(9, 3, 3), 3, 1, 1, id="one-feature"),
        pytest.param(random_ids(33, 1, 1), 1, 40, 20, id="one-expert"),
        pytest.param(random_ids(7, 4, 3), 3, 70, 20, id="duplicates-in-a-row"),
        pytest.param(random_ids(40, 2, 5) - 1, 3, 33, 7, id="some-dropped"),
        pytest.param(CASES["most-empty"].tensor("cpu"), 13, 33, 7, id="most-empty"),
        pytest.param(WIDE_IDS.tensor("cpu"), WIDE_IDS.num_experts, 33, 7, id="wide-ids"),
    ],
)


class Inputs:
    """Seeded input of the layer and of its gradient."""

    def __init__(self, device, topk_ids, num_experts, hidden, columns, dtype=torch.float32):
        generator = torch.Generator().manual_seed(hidden)
        num_tokens = len(topk_ids)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(device, dtype)

        self.topk_ids = topk_ids.to(device)
        self.topk_weights = torch.rand(topk_ids.shape, generator=generator).to(device)
        self.x, self.grad_output = normal(num_tokens, hidden), normal(num_tokens, columns)
        self.w = normal(num_experts, hidden, columns)
        self.routed = (self.topk_ids, self.topk_weights)

    def forward(self, **options):
        return fused_moe.forward(self.x, self.w, *self.routed, **{"block_size": 16, **options})

    def weight_gradient(self, **options):
        return fused_moe.weight_gradient(self.x, self.grad_output, *self.routed, len(self.w), **options)


def assert_close(result, expected, tolerance):
    assert result.shape == expected.shape
    error = float((result.float() - expected).norm())
    assert error <= tolerance * float(expected.norm()), error


def assert_same_bits(result, other):
    assert torch.equal(result.view(torch.uint8), other.view(torch.uint8))


@each_dtype
@each_shape
def test_output_is_that_of_plain_torch(device, topk_ids, num_experts, hidden, columns, dtype):
    inputs = Inputs(device, topk_ids, num_experts, hidden, columns, dtype)
    result = inputs.forward()
    assert result.dtype == dtype
    assert_close(result, oracle.layer_output(inputs.x, inputs.w, *inputs.routed), TOLERANCES[dtype])


@each_dtype
@each_shape
def test_weight_gradient_is_that_of_plain_torch(device, topk_ids, num_experts, hidden, columns, dtype):
    inputs = Inputs(device, topk_ids, num_experts, hidden, columns, dtype)
    result = inputs.weight_gradient()
    assert result.dtype == torch.float32
    expected = oracle.layer_weight_gradient(inputs.x, inputs.grad_output, *inputs.routed, num_experts)
    assert_close(result, expected, TOLERANCES[dtype])


def test_plain_torch_agrees_with_autograd():
    inputs = Inputs("cpu", random_ids(17, 3, 4) - 1, 3, 6, 5)
    w = inputs.w.requires_grad_()
    oracle.layer_output(inputs.x, w, *inputs.routed).backward(inputs.grad_output)
    expected = oracle.layer_weight_gradient(inputs.x, inputs.grad_output, *inputs.routed, 3)
    torch.testing.assert_close(w.grad, expected)


def scaled_output(inputs, block_size, step=32):
    """Plain torch, block by block of slots in their order, each tile of x rounded to 8 bits with one scale."""
    output = torch.zeros((len(inputs.x), inputs.w.shape[2]), device=inputs.x.device)
    for expert in range(len(inputs.w)):
        slots = (inputs.topk_ids.reshape(-1) == expert).nonzero().squeeze(1)
        for block in slots.split(block_size):
            tokens = block // inputs.topk_ids.shape[1]
            tiles = inputs.x[tokens].float().split(step, dim=1)
            scales = [tile.abs().max() * (1 / 127) for tile in tiles]
            rounded = [torch.floor(tile / scale + 0.5) * scale for tile, scale in zip(tiles, scales, strict=True)]
            products = torch.cat(rounded, dim=1) @ inputs.w[expert].float()
            output.index_add_(0, tokens, products * inputs.topk_weights.reshape(-1)[block, None])
    return output


@each_dtype
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize(
    ("topk_ids", "hidden"),
    [
        pytest.param(random_ids(40, 2, 3), 64, id="several-blocks"),
        pytest.param(random_ids(40, 2, 5) - 1, 45, id="partial-tiles-and-dropped"),
    ],
)
def test_scaled_output_is_that_of_plain_torch(device, topk_ids, hidden, block_size, dtype):
    inputs = Inputs(device, topk_ids, 3, hidden, 20, dtype)
    result = inputs.forward(scale="block", block_size=block_size)
    assert_close(result, scaled_output(inputs, block_size), TOLERANCES[dtype])
    # The comparison sees the difference between two block sizes.
    with pytest.raises(AssertionError):
        assert_close(result, scaled_output(inputs, 48 - block_size), 2e-3)


def test_scaling_zeros_gives_zeros(device):
    inputs = Inputs(device, random_ids(5, 2, 3), 3, 33, 7)
    inputs.x.zero_()
    assert inputs.forward(scale="block").abs().max() == 0


@pytest.mark.parametrize("case", [CASES["no-tokens"], CASES["no-choices"], CASES["all-dropped"]])
def test_without_kept_slots_everything_is_zero(device, case):
    inputs = Inputs(device, case.tensor(device), case.num_experts, 33, 7)
    for result, shape in [
        (inputs.forward(), (len(inputs.x), 7)),
        (inputs.forward(scale="block"), (len(inputs.x), 7)),
        (inputs.weight_gradient(), (case.num_experts, 33, 7)),
    ]:
        assert result.shape == shape
        assert not result.any()


def test_dropped_slots_change_nothing(device):
    inputs = Inputs(device, random_ids(20, 2, 3), 3, 33, 7)
    before = inputs.forward(scale="block"), inputs.weight_gradient()
    dropped = torch.tensor([[-1, 3, 2**31 - 1]], device=device).repeat(20, 1)
    inputs.routed = (
        torch.cat([inputs.topk_ids, dropped], dim=1),
        torch.cat([inputs.topk_weights, torch.full((20, 3), torch.nan, device=device)], dim=1),
    )
    assert_same_bits(inputs.forward(scale="block"), before[0])
    assert_same_bits(inputs.weight_gradient(), before[1])


def test_strided_inputs(device):
    inputs = Inputs(device, random_ids(20, 2, 3), 3, 33, 7)
    before = inputs.forward(), inputs.weight_gradient()
    for name in ("x", "w", "grad_output"):
        setattr(inputs, name, torch.stack([getattr(inputs, name)] * 2, dim=-1)[..., 1])
    assert_same_bits(inputs.forward(), before[0])
    assert_same_bits(inputs.weight_gradient(), before[1])


def test_another_scale_is_refused(device):
    with pytest.raises(ValueError, match="scale: expected 'none' or 'block', got 'slot'"):
        Inputs(device, random_ids(5, 2, 3), 3, 33, 7).forward(scale="slot")


@pytest.fixture
def reversed_rows(monkeypatch):
    """Turn the alignment of the layer around: the same slots for each expert, the last one first."""

    def reverse():
        align_rows = fused_moe.align_rows

        def align_reversed(*arguments, **options):
            rows = align_rows(*arguments, **options)
            for expert, count in enumerate(rows.counts.tolist()):
                for tensor in (rows.slot_index[expert, :count], rows.weights[expert, :count]):
                    tensor.copy_(tensor.flip(0))
            return rows

        monkeypatch.setattr(fused_moe, "align_rows", align_reversed)

    return reverse


def test_order_does_not_reach_the_output(device, reversed_rows):
    inputs = Inputs(device, random_ids(60, 2, 3), 3, 64, 20, torch.float16)
    before = inputs.forward()
    reversed_rows()
    assert_same_bits(inputs.forward(), before)


def test_order_reaches_the_scaled_output_of_several_blocks(device, reversed_rows):
    inputs = Inputs(device, random_ids(60, 2, 3), 3, 64, 20, torch.float16)
    before = inputs.forward(scale="block")
    reversed_rows()
    assert not torch.equal(inputs.forward(scale="block"), before)


def test_order_does_not_reach_the_scaled_output_while_an_expert_fits_a_block(device, reversed_rows):
    inputs = Inputs(device, routed_ids(16, 2, 3), 3, 64, 20, torch.float16)
    before = inputs.forward(scale="block")
    reversed_rows()
    assert_same_bits(inputs.forward(scale="block"), before)


def test_order_reaches_the_weight_gradient(device, reversed_rows):
    inputs = Inputs(device, random_ids(200, 2, 3), 3, 33, 7, torch.float16)
    before = inputs.weight_gradient()
    reversed_rows()
    assert not torch.equal(inputs.weight_gradient(), before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "consumer",
    [
        pytest.param(lambda inputs: inputs.forward(block_size=64), id="output"),
        pytest.param(lambda inputs: inputs.forward(scale="block", block_size=64), id="scaled-output"),
        pytest.param(Inputs.weight_gradient, id="weight-gradient"),
    ],
)
def test_a_hundred_runs_have_the_same_bits(device, consumer):
    inputs = Inputs(device, routed_ids(2048, 8, 64), 64, 128, 128, torch.bfloat16)
    first = consumer(inputs)
    for _ in range(99):
        assert_same_bits(consumer(inputs), first)


@pytest.mark.gpu
def test_a_hundred_outputs_have_the_same_bits_in_whatever_order(device):
    inputs = Inputs(device, routed_ids(2048, 8, 64), 64, 128, 128, torch.bfloat16)
    first = inputs.forward()
    for _ in range(100):
        assert_same_bits(inputs.forward(implementation="atomic"), first)


_COMPILE = """
import json, torch
from asv_bench_gpu import codegen
from examples import fused_moe
ids, weights = torch.zeros((64, 8), dtype=torch.int32), torch.zeros((64, 8))
found = {}
for dtype in (torch.float32, torch.bfloat16):
    x, w, grad = (torch.zeros(shape, dtype=dtype) for shape in [(64, 256), (16, 256, 128), (64, 128)])
    calls = {
        "output": lambda: fused_moe.forward(x, w, ids, weights),
        "scaled output": lambda: fused_moe.forward(x, w, ids, weights, scale="block"),
        "weight gradient": lambda: fused_moe.weight_gradient(x, grad, ids, weights, len(w)),
    }
    for name, call in calls.items():
        (launch,) = codegen.record(call)
        for target in codegen.TARGETS:
            found[f"{name} {dtype} {target}"] = codegen.resources(launch, target).atomics
print(json.dumps(found))
"""


def test_compiles_for_every_target_without_atomics():
    # The interpreter accepts what the compiler may not.
    atomics = json.loads(processes.output("-c", _COMPILE, path=[processes.ROOT / "src", processes.ROOT]))
    assert len(atomics) == 24
    assert set(atomics.values()) == {0}

"""Does order reach what a model computes? Distinct results of a small fused MoE layer, over identical calls.

The layer is `examples/fused_moe.py`, which says where order should reach and where not; this counts.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.shapes import MODELS, Model, route
from benchmarks.verification import OnGpu, skip_unless_verified

if TYPE_CHECKING:
    import torch

CALLS = 100
#: Relative error, which 8-bit activations need most of.
TOLERANCE = 0.02
_MODEL = MODELS["Qwen3 MoE (128, 8)"]
_HIDDEN, _COLUMNS = 256, 128


class Consumer(NamedTuple):
    """A result that depends on the alignment: how the layer computes it, and how plain torch does."""

    call: Callable[[str], torch.Tensor]
    expected: Callable[[], torch.Tensor]


def consumers(
    model: Model, num_tokens: int, device: str, dtype: torch.dtype, hidden: int = _HIDDEN, columns: int = _COLUMNS
) -> dict[str, Consumer]:
    """What can be asked of the layer, by name; ``call`` takes the implementation of the alignment."""
    import torch

    layer = fused_moe()
    ids, topk_weights = route(model, num_tokens, "uniform", device)
    generator = torch.Generator(device).manual_seed(num_tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x, w = normal(num_tokens, hidden), normal(model.num_experts, hidden, columns)
    grad_output = normal(num_tokens, columns)

    def output(implementation: str, **options: Any) -> torch.Tensor:
        return layer.forward(x, w, ids, topk_weights, implementation=implementation, **options)

    def weight_gradient(implementation: str) -> torch.Tensor:
        return layer.weight_gradient(x, grad_output, ids, topk_weights, len(w), implementation=implementation)

    def plain_output() -> torch.Tensor:
        return oracle.layer_output(x, w, ids, topk_weights)

    def plain_weight_gradient() -> torch.Tensor:
        return oracle.layer_weight_gradient(x, grad_output, ids, topk_weights, len(w))

    return {
        "output": Consumer(output, plain_output),
        "output, block-scaled": Consumer(functools.partial(output, scale="block"), plain_output),
        "weight gradient": Consumer(weight_gradient, plain_weight_gradient),
    }


@functools.cache
def fused_moe() -> Any:
    """The layer of the checkout that the suites are in: asv finds the suites' folder, but not what lies beside it."""
    file = Path(__file__).resolve().parents[1] / "examples" / "fused_moe.py"
    spec = importlib.util.spec_from_file_location("fused_moe", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distinct(call: Callable[[], torch.Tensor], calls: int) -> list[torch.Tensor]:
    """Results of identical calls, each kept once, compared bit by bit."""
    import torch

    found: list[torch.Tensor] = []
    for _ in range(calls):
        # As integers, because NaN is unequal to itself and -0 equal to 0.
        bits = call().view(torch.uint8)
        if not any(torch.equal(bits, other) for other in found):
            found.append(bits)
    return found


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, by the norm of what is expected."""
    return float((result.float() - expected).norm() / expected.norm())


class FusedMoe(OnGpu):
    """The same input, 100 times; bfloat16, 128 experts, top 8, 256 features to 128."""

    version = "1"
    params = [
        ["output", "output, block-scaled", "weight gradient"],
        [128, 1024, 8192],
        ["deterministic", "atomic"],
    ]
    param_names = ["consumer", "tokens", "implementation"]
    unit = "distinct results"

    def setup(self, verified: Verified | Unavailable, consumer: str, tokens: int, implementation: str) -> None:
        """Make the input, and see that the layer computes what plain torch does."""
        skip_unless_verified(verified)
        import torch

        self.consumer = consumers(_MODEL, tokens, "cuda", torch.bfloat16)[consumer]
        error = relative_error(self.consumer.call(implementation), self.consumer.expected())
        if not error < TOLERANCE:
            raise AssertionError(f"{consumer}: relative error {error:.3g}, expected less than {TOLERANCE}")

    def track_distinct_results(self, _: Verified, consumer: str, tokens: int, implementation: str) -> int:
        """Distinct results of 100 identical calls, compared bit by bit."""
        return len(distinct(lambda: self.consumer.call(implementation), CALLS))

    def teardown(self, *_: object) -> None:
        """Give the input back."""
        self.__dict__.clear()

"""What must be right before anything is timed: every implementation of the installed commit, on inputs that hurt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from asv_bench_gpu.verification import Unavailable, VerificationError, Verified, verify

from benchmarks import oracle
from benchmarks.shapes import Model, route

_SENTINEL = -7
#: Tokens, top_k, experts: nothing, one slot, around a tile of 128, primes, experts not a power of two.
_SIZES = [(0, 2, 5), (1, 1, 1), (3, 3, 5), (127, 1, 8), (64, 2, 7), (43, 3, 33), (64, 8, 257), (331, 8, 128)]
#: (experts, EXPERT_BLOCK, BLOCK_SIZE), the block never dividing the experts: the last program owns fewer.
_PARTIAL_BLOCKS = [(5, 4, 64), (7, 2, 64), (129, 8, 128)]


def comparisons(device: str) -> Iterator[tuple[str, str | None]]:
    """Compare the installed package with the oracle on ``device``, buffers filled with a sentinel first."""
    import torch

    from moe_align import Rows, align_rows

    def compare(what: str, ids: torch.Tensor, num_experts: int, implementation: str, **options: object) -> str | None:
        topk_weights = torch.rand(ids.shape, generator=torch.Generator(device).manual_seed(len(what)), device=device)
        out = Rows.empty(num_experts, ids.numel(), topk_weights.dtype, topk_weights.device)
        for tensor in out:
            tensor.fill_(_SENTINEL)
        align_rows(ids, topk_weights, num_experts, out=out, implementation=implementation, **options)
        ordered = implementation != "atomic"
        return oracle.difference(out, ids, topk_weights, ordered=ordered, untouched=_SENTINEL)

    for implementation in ("reference", "deterministic", "atomic"):
        for num_tokens, top_k, num_experts in _SIZES:
            generator = torch.Generator(device).manual_seed(num_tokens)
            shape = (num_tokens, top_k)
            # Ids from -2 to num_experts + 1: duplicates in a row, and ids outside the range.
            ids = torch.randint(-2, num_experts + 2, shape, generator=generator, device=device)
            for dtype in (torch.int32, torch.int64):
                what = f"{implementation}, {num_tokens} x {top_k} {dtype} of {num_experts} experts"
                yield what, compare(what, ids.to(dtype), num_experts, implementation)
        for routing in ("one expert", "zipf"):
            ids, _ = route(Model(60, 4), 150, routing, device)
            what = f"{implementation}, {routing}"
            yield what, compare(what, ids, 60, implementation)
    for num_experts, expert_block, block_size in _PARTIAL_BLOCKS:
        run_config = {"EXPERT_BLOCK": expert_block, "BLOCK_SIZE": block_size}
        ids, _ = route(Model(num_experts, 3), 50, "uniform", device)
        what = f"deterministic, {num_experts} experts, {run_config}"
        yield what, compare(what, ids, num_experts, "deterministic", run_config=run_config)


def assert_installed() -> None:
    """Raise if the package that would be measured is not the one asv installed for the commit."""
    import moe_align

    environment = os.environ.get("ASV_ENV_DIR")
    if environment and not moe_align.__file__.startswith(os.path.abspath(environment) + os.sep):
        raise RuntimeError(f"moe_align comes from {moe_align.__file__}, not from the environment of the commit")


class OnGpu:
    """Base of suites that measure on the GPU; one verification per process serves them all."""

    def setup_cache(self) -> Verified | Unavailable:
        """Verify the installed commit, or say that there is no GPU."""
        import torch

        assert_installed()
        if not torch.cuda.is_available():
            return Unavailable("needs a CUDA GPU, and torch sees none")
        return verify(comparisons("cuda"))

    setup_cache.timeout = 600


class OnCpu:
    """Base of suites that measure CPU tensors."""

    def setup_cache(self) -> Verified:
        """Verify the installed commit on CPU tensors."""
        assert_installed()
        return verify(comparisons("cpu"))


def verify_interpreted() -> Verified:
    """Verify the installed commit's kernels without a GPU: on CPU tensors, in Triton's interpreter.

    In a process of its own, because Triton decides at import whether it interprets.
    """
    root = Path(__file__).resolve().parent.parent
    environ = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    child = subprocess.run([sys.executable, "-m", __name__], env=environ, capture_output=True, text=True)
    if child.returncode:
        raise VerificationError(f"in Triton's interpreter:\n{child.stderr}")
    return Verified(int(child.stdout))


if __name__ == "__main__":
    print(verify(comparisons("cpu")).comparisons)

"""What must be right before anything is timed: every implementation of the installed commit, on inputs that hurt."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asv_bench_gpu.verification import Unavailable, VerificationError, Verified, verify

from benchmarks import oracle
from benchmarks.shapes import Model, route

if TYPE_CHECKING:
    import torch

_SENTINEL = -7
_GUARD = 1024
#: Tokens, top_k, experts: nothing, one slot, few slots, around a tile of 128, primes, experts not a power of two.
_SIZES = [
    (0, 2, 5),
    (1, 1, 1),
    (3, 3, 5),
    (8, 8, 5),
    (127, 1, 8),
    (64, 2, 7),
    (43, 3, 33),
    (1031, 2, 3),
    (64, 8, 257),
    (331, 8, 24),
]
_FLAT_SIZES = _SIZES[:8]
#: More experts than a program counts at a time.
_MANY_EXPERTS = (33, 2, 1025)
#: Counts, slots, block size: nothing, empty experts, full and partial blocks, more slots than announced.
_SCHEDULES = [([0, 0, 0], 0, 4), ([3, 0, 8, 1, 0], 12, 4), ([0] * 37 + [130], 130, 16), ([9, 9], 5, 2)]
#: Numbers of experts that EXPERT_BLOCK does not divide: the last program owns fewer.
_PARTIAL_BLOCKS = [
    (5, {"EXPERT_BLOCK": 4, "BLOCK_SIZE": 64}),
    (7, {"EXPERT_BLOCK": 2, "BLOCK_SIZE": 64}),
    (129, {"EXPERT_BLOCK": 8, "BLOCK_SIZE": 128}),
]
#: For the interpreter, whose time goes by operations, hardly by how many elements they have.
_FEW_PROGRAMS = {"sift": {"EXPERT_BLOCK": 4}, "collect": {"EXPERT_BLOCK": 8}}


def comparisons(device: str) -> Iterator[tuple[str, str | None]]:
    """Compare the installed package with the oracle on ``device``, buffers filled with a sentinel first."""
    return ((what, compare()) for what, compare in cases(device))


def cases(device: str) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """What is compared, and the call that compares it: the difference, None if there is none."""
    import torch

    import moe_align

    for num_experts, run_config in _PARTIAL_BLOCKS:
        ids = _ids_past_the_experts(num_experts, run_config["EXPERT_BLOCK"], device)
        what = f"deterministic, {num_experts} experts, {run_config}"
        yield _rows_case(what, ids, num_experts, "deterministic", run_config=run_config)

    configurations: list[tuple[str, str, dict[str, Any]]]
    configurations = [(name, name, {}) for name in ("reference", "deterministic", "atomic")]
    interpreting = _is_interpreting()
    few_programs = _FEW_PROGRAMS if interpreting else {}
    for name in strategies():
        run_config = {"strategy": name, **few_programs.get(name, {})}
        configurations.append((f"deterministic {name}", "deterministic", {"run_config": run_config}))
    for who, implementation, options in configurations:
        routed = {routing: route(Model(20, 4), 600, routing, device)[0] for routing in ("one expert", "zipf")}
        # Four neighbouring slots alike.
        routed["one expert a token"] = torch.arange(600, device=device)[:, None].expand(600, 4) % 20
        for routing, ids in routed.items():
            yield _rows_case(f"{who}, {routing}", ids, 20, implementation, **options)
        for number, shape in enumerate(_SIZES):
            ids = _random_ids(*shape, device)
            # Every third only looks like an expert in its lower 32 bits.
            types = [ids.int(), ids + 2**32 * (ids % 3 == 0)]
            # The interpreter takes seconds for some: one of the types.
            for typed in [types[number % 2]] if interpreting else types:
                what = f"{who}, {_described(typed, shape[2])}"
                yield _rows_case(what, typed, shape[2], implementation, **options)
            # The atomic baseline has rows only, and commits before the other layouts have no more.
            if shape in _FLAT_SIZES and implementation != "atomic" and hasattr(moe_align, "align_blocks"):
                for block_size in (None, 4):
                    layout = "offsets" if block_size is None else f"blocks of {block_size}"
                    what = f"{who}, {layout}, {_described(ids, shape[2])}"
                    yield what, functools.partial(_compare_flat, ids, shape[2], block_size, implementation, **options)
        for dtype in (torch.float16, torch.bfloat16):
            ids, _ = route(Model(33, 3), 43, "uniform", device)
            yield _rows_case(f"{who}, {dtype} weights", ids, 33, implementation, dtype, **options)
    if hasattr(moe_align, "align_blocks"):
        ids, num_experts = _random_ids(*_MANY_EXPERTS, device), _MANY_EXPERTS[2]
        what = f"deterministic scan, blocks of 4, {_described(ids, num_experts)}"
        config = {"strategy": "scan", "EXPERT_BLOCK": 8}
        yield what, functools.partial(_compare_flat, ids, num_experts, 4, "deterministic", run_config=config)
    for counts, num_slots, block_size in _SCHEDULES:
        what = f"schedule of {counts} in blocks of {block_size}"
        yield what, functools.partial(_compare_schedule, counts, num_slots, block_size, device)


def _rows_case(what: str, *arguments: Any, **options: Any) -> tuple[str, Callable[[], str | None]]:
    return what, functools.partial(_compare_rows, *arguments, **options)


def _compare_rows(
    ids: torch.Tensor, num_experts: int, implementation: str, dtype: torch.dtype | None = None, **options: object
) -> str | None:
    import torch

    from moe_align import Rows, align_rows

    topk_weights = _random_weights(ids).to(dtype or torch.float32)
    guarded = _Guarded(Rows.empty(num_experts, ids.numel(), topk_weights.dtype, ids.device))
    align_rows(ids, topk_weights, num_experts, out=guarded.out, implementation=implementation, **options)
    ordered = implementation != "atomic"
    return guarded.written_outside() or oracle.difference(
        guarded.out, ids, topk_weights, ordered=ordered, untouched=_SENTINEL
    )


def _compare_flat(
    ids: torch.Tensor, num_experts: int, block_size: int | None, implementation: str, **options: object
) -> str | None:
    """Compare blocks, or, without a block size, offsets."""
    import torch

    from moe_align import Blocks, Offsets, align_blocks, align_offsets

    topk_weights = _random_weights(ids)
    given: dict[str, Any] = {"topk_weights": topk_weights, "implementation": implementation, **options}
    if block_size is None:
        guarded = _Guarded(Offsets.empty(ids.numel(), num_experts, ids.device, weights_dtype=torch.float32))
        align_offsets(ids, num_experts, out=guarded.out, **given)
    else:
        size = ids.numel(), num_experts, block_size
        guarded = _Guarded(Blocks.empty(*size, ids.device, weights_dtype=torch.float32))
        align_blocks(ids, block_size, num_experts, out=guarded.out, **given)
    return guarded.written_outside() or oracle.flat_difference(guarded.out, ids, topk_weights, num_experts, block_size)


def _compare_schedule(counts: list[int], num_slots: int, block_size: int, device: str) -> str | None:
    import torch

    from moe_align import schedule_blocks

    given = torch.tensor(counts, dtype=torch.int32, device=device)
    scheduled = schedule_blocks(given, num_slots, block_size).tolist()
    expected = oracle.schedule(counts, block_size, len(scheduled))
    return None if scheduled == expected else f"got {scheduled}, expected {expected}"


class _Guarded:
    """Outputs filled with a sentinel, each between guards, so that a write past the end lands where it is seen."""

    def __init__(self, out: Any) -> None:
        import torch

        self._buffers = {}
        for name, tensor in out._asdict().items():
            size = tensor.numel() + 2 * _GUARD
            buffer = torch.full((size,), _SENTINEL, dtype=tensor.dtype, device=tensor.device)
            self._buffers[name] = buffer
            out = out._replace(**{name: buffer[_GUARD:-_GUARD].view(tensor.shape)})
        self.out = out

    def written_outside(self) -> str | None:
        """Which output was written past its ends."""
        for name, buffer in self._buffers.items():
            if bool((buffer[:_GUARD] != _SENTINEL).any() | (buffer[-_GUARD:] != _SENTINEL).any()):
                return f"written outside {name}"
        return None


def _random_ids(num_tokens: int, top_k: int, num_experts: int, device: str) -> torch.Tensor:
    """Ids from -2 to num_experts + 1: duplicates in a row, and ids outside the range."""
    import torch

    generator = torch.Generator(device).manual_seed(num_tokens)
    return torch.randint(-2, num_experts + 2, (num_tokens, top_k), generator=generator, device=device)


def _random_weights(ids: torch.Tensor) -> torch.Tensor:
    import torch

    generator = torch.Generator(ids.device).manual_seed(ids.numel())
    return torch.rand(ids.shape, generator=generator, device=ids.device)


def _described(ids: torch.Tensor, num_experts: int) -> str:
    return f"{len(ids)} x {ids.shape[1]} {ids.dtype} of {num_experts} experts"


def strategies() -> list[str]:
    """The installed package's deterministic strategies; none before there was a choice."""
    from moe_align import strategy

    return strategy.strategies("deterministic") if hasattr(strategy, "strategies") else []


def _is_interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def stores() -> Iterator[tuple[str, str | None]]:
    """Look for elements written twice, which a result cannot show; only in Triton's interpreter."""
    import numpy as np
    import torch
    from triton.runtime.interpreter import InterpreterBuilder

    from moe_align import align_rows

    store = InterpreterBuilder.create_masked_store
    addresses: list[np.ndarray] = []

    def recording_store(builder: Any, pointers: Any, value: Any, mask: Any, *hints: Any) -> Any:
        addresses.append(pointers.data[mask.data])
        return store(builder, pointers, value, mask, *hints)

    InterpreterBuilder.create_masked_store = recording_store
    for num_experts, run_config in _PARTIAL_BLOCKS:
        ids = _ids_past_the_experts(num_experts, run_config["EXPERT_BLOCK"], "cpu")
        addresses.clear()
        align_rows(ids, torch.zeros(ids.shape), num_experts, run_config=run_config)
        written = np.concatenate(addresses)
        again = len(written) - len(np.unique(written))
        what = f"stores, {num_experts} experts, {run_config}"
        yield what, f"{again} elements were written more than once" if again else None


def _ids_past_the_experts(num_experts: int, expert_block: int, device: str) -> torch.Tensor:
    """Ids that the last program of a scan could take for its own, if it did not know where the experts end."""
    import torch

    generator = torch.Generator(device).manual_seed(num_experts)
    return torch.randint(-1, num_experts + expert_block, (50, 3), generator=generator, device=device)


def assert_installed() -> None:
    """Raise if the package that would be measured is not the one asv installed for the commit."""
    import moe_align

    environment = os.environ.get("ASV_ENV_DIR")
    if environment and not moe_align.__file__.startswith(os.path.abspath(environment) + os.sep):
        raise RuntimeError(f"moe_align comes from {moe_align.__file__}, not from the environment of the commit")


def skip_unless_verified(verified: Verified | Unavailable) -> None:
    """For `setup`: end it, with the reason, where the machine cannot run the suite."""
    if isinstance(verified, Unavailable):
        verified.skip()


@functools.cache
def verified_on_gpu() -> Verified:
    """Verify the installed commit's kernels on the GPU, once in a process.

    What the interpreter says does not depend on the process, so it is asked where there is much else to do.
    """
    from benchmarks import compiling

    with compiling.first_time() as first:
        if first:
            with interpreted("stores") as interpreter:
                compiling.ahead()
                interpreter()
    return verify(comparisons("cuda"))


class OnGpu:
    """Base of suites that measure on the GPU; one verification per process serves them all."""

    def setup_cache(self) -> Verified | Unavailable:
        """Verify the installed commit, or say that there is no GPU."""
        import torch

        assert_installed()
        if not torch.cuda.is_available():
            return Unavailable("needs a CUDA GPU, and torch sees none")
        return verified_on_gpu()

    setup_cache.timeout = 600


class OnCpu:
    """Base of suites that measure CPU tensors."""

    def setup_cache(self) -> Verified:
        """Verify the installed commit on CPU tensors."""
        assert_installed()
        return verify(comparisons("cpu"))


@contextlib.contextmanager
def interpreted(*what: str) -> Iterator[Callable[[], Verified]]:
    """Verify the installed commit's kernels in Triton's interpreter, which needs no GPU.

    In a process of its own, because Triton decides at import whether it interprets; it runs while the body does.

    Args:
        what: "comparisons", "stores" or both.

    Yields:
        A function that waits for the process and returns what it verified.

    Raises:
        VerificationError: by that function, if there was a difference or the process failed.
    """
    command = [sys.executable, "-m", __name__, *what]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ(TRITON_INTERPRET="1"), **pipes) as child:

        def finish() -> Verified:
            output, errors = child.communicate()
            if child.returncode:
                raise VerificationError(f"Triton's interpreter ended with code {child.returncode}\n{errors}".rstrip())
            return Verified(int(output))

        yield finish


def environ(**variables: str) -> dict[str, str]:
    """The environment of a process that imports the same package and the same suites."""
    import moe_align

    roots = [str(Path(file).resolve().parents[1]) for file in (__file__, moe_align.__file__)]
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(roots)}


if __name__ == "__main__":
    parts = {"comparisons": lambda: comparisons("cpu"), "stores": stores}
    print(verify(itertools.chain.from_iterable(parts[name]() for name in sys.argv[1:])).comparisons)

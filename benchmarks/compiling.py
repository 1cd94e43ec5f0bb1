"""Compiling on all cores at once what verification and the suites launch.

A process compiles a kernel when it first needs it, so a commit's first round would compile for minutes on one core.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import flat, order, shapes, tune, verification
from benchmarks.shapes import MODELS, TOKENS


@contextlib.contextmanager
def first_time() -> Iterator[bool]:
    """Whether no body was carried out before for this package, these suites, this GPU and this triton.

    One that raises was not carried out.
    """
    stamp = _stamp()
    first = not stamp.exists()
    yield first
    if first:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def ahead(device: str = "cuda") -> None:
    """Fill Triton's cache on disk.

    What is wrong with a kernel is not said here: verification will.
    """
    number = len(os.sched_getaffinity(0))  # those that this process may use
    # Some shapes need gigabytes: no process may keep what another needs.
    environ = verification.environ(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    shares = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, device, str(share), str(number)],
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for share in range(number)
    ]
    for share in shares:
        share.wait()


def launch_share(device: str, share: int, number: int) -> None:
    """Make every ``number``-th call of verification and of the suites, from the one numbered ``share`` on."""
    calls = itertools.chain((compare for _, compare in verification.cases(device)), suite_calls(device))
    for call in itertools.islice(calls, share, None, number):
        with contextlib.suppress(Exception):
            call()


def suite_calls(device: str) -> Iterator[Callable[[], object]]:
    """A call for each shape that is measured."""
    import torch

    import moe_align

    def ids(model: str, num_tokens: int) -> torch.Tensor:
        return torch.zeros((num_tokens, MODELS[model].top_k), dtype=torch.int32, device=device)

    known = verification.strategies()
    for model, num_tokens in itertools.product(MODELS, TOKENS):
        given = ids(model, num_tokens)
        weights = torch.zeros(given.shape, device=device)
        by_strategy = [
            {"run_config": order.untuned(model, num_tokens, name)}
            for name in order.tried(model, num_tokens)
            if name in known
        ]
        for options in ({"implementation": "deterministic"}, {"implementation": "atomic"}, *by_strategy):
            yield functools.partial(moe_align.align_rows, given, weights, MODELS[model].num_experts, **options)
    if not hasattr(moe_align, "align_blocks"):
        return
    for layout, model, num_tokens in itertools.product(*flat.Layouts.params):
        given, block_size, experts = ids(model, num_tokens), flat.BLOCK_SIZES[layout], MODELS[model].num_experts
        if block_size is None:
            yield functools.partial(moe_align.align_offsets, given, experts)
        else:
            yield functools.partial(moe_align.align_blocks, given, block_size, experts)


def _stamp() -> Path:
    """What stands in Triton's cache once there is nothing left to be done ahead."""
    import torch
    import triton

    import moe_align

    package = Path(moe_align.__file__).parent
    launching = (verification, order, flat, shapes, tune)
    files = [*(Path(str(module.__file__)) for module in launching), *sorted(package.rglob("*"))]
    sources = [file.read_text() for file in files if file.suffix in (".py", ".json")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    digest = hashlib.sha256(repr([gpu, triton.__version__, *sources]).encode()).hexdigest()
    return Path(triton.knobs.cache.dir, f"moe-align-{digest[:16]}")


if __name__ == "__main__":
    launch_share(sys.argv[1], *map(int, sys.argv[2:]))

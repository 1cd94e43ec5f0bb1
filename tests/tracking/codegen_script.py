"""Run by test_codegen in a process without Triton's interpreter: prints what asv_bench_gpu.codegen says of kernels."""

import dataclasses
import json
import sys
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from asv_bench_gpu import codegen
from triton.runtime.jit import JITFunction


@triton.jit
def copy_kernel(source_ptr, target_ptr, size, TILE: tl.constexpr):
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(target_ptr + places, tl.load(source_ptr + places, mask=places < size), mask=places < size)


@triton.jit
def count_kernel(ids_ptr, counts_ptr, size, TILE: tl.constexpr):
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    ids = tl.load(ids_ptr + places, mask=places < size, other=0)
    tl.atomic_add(counts_ptr + ids, 1, mask=places < size, sem="relaxed")


@triton.jit
def prefix_kernel(source_ptr, target_ptr, TILE: tl.constexpr):
    places = tl.arange(0, TILE)
    tl.store(target_ptr + places, tl.cumsum(tl.load(source_ptr + places), axis=0))


class Pair(NamedTuple):
    target_ptr: Any
    size: Any
    nothing: Any
    TILE: Any


@triton.jit
def pair_kernel(source_ptr, pair, missing=None, FACTOR: tl.constexpr = 3):
    places = tl.arange(0, pair.TILE)
    values = tl.load(source_ptr + places, mask=places < pair.size, other=0)
    if pair.nothing is None and missing is None:
        tl.store(pair.target_ptr + places, values * FACTOR, mask=places < pair.size)


def pair(size):
    tensors = [torch.zeros(64, dtype=torch.int32) for _ in range(2)]
    return codegen.record(lambda: pair_kernel[(1,)](tensors[0], Pair(tensors[1], size, None, tl.constexpr(64))))


def copy(size=1000, dtype=torch.float32, **options):
    tensors = [torch.zeros(max(min(size, 1000), 1), dtype=dtype) for _ in range(2)]
    return codegen.record(lambda: copy_kernel[(4,)](*tensors, size, TILE=256, **options))


def count():
    tensors = [torch.zeros(64, dtype=torch.int32) for _ in range(2)]
    return codegen.record(lambda: count_kernel[(4,)](*tensors, 1000, TILE=256))


def prefix(tile, **options):
    tensors = [torch.zeros(tile, dtype=torch.float32) for _ in range(2)]
    return codegen.record(lambda: prefix_kernel[(1,)](*tensors, TILE=tile, **options))


def resources(launches, target):
    (launch,) = launches
    return dataclasses.asdict(codegen.resources(launch, target))


def described(launches):
    return [
        {
            "kernel": launch.kernel.__name__,
            "arguments": {
                name: value if isinstance(value, int) else str(value.dtype) for name, value in launch.arguments.items()
            },
            "options": launch.options,
        }
        for launch in launches
    ]


def both():
    copy_kernel[(1,)](*[torch.zeros(8)] * 2, 8, 16, num_warps=2)
    count_kernel[lambda meta: (1,)](*[torch.zeros(8, dtype=torch.int32)] * 2, 8, TILE=16)


def source_of(launches):
    """What Triton is asked to compile: type and divisibility of each parameter."""
    (launch,) = launches
    seen = {}
    compile_ = triton.compile

    def spy(source, **keywords):
        seen["signature"] = source.signature
        names = [parameter.name for parameter in launch.kernel.params]
        seen["divisible"] = sorted(".".join((names[index], *map(str, within))) for index, *within in source.attrs)
        seen["constants"] = {".".join(map(str, path)): value for path, value in source.constants.items()}
        return compile_(source, **keywords)

    triton.compile = spy
    try:
        codegen.resources(launch, "sm_90")
    finally:
        triton.compile = compile_
    return seen


def nothing_recorded():
    try:
        codegen.record(lambda: None)
    except RuntimeError as error:
        return str(error)
    return None


def failing():
    run = JITFunction.run
    try:
        codegen.record(lambda: 1 / 0)
    except ZeroDivisionError:
        return JITFunction.run is run
    return None


def carried_out():
    target = torch.full((16,), 7.0)
    codegen.record(lambda: copy_kernel[(1,)](torch.zeros(16), target, 16, TILE=16))
    return bool((target != 7).any())


PARTS = {
    "records": lambda: {
        "both": described(codegen.record(both)),
        "options": described(copy(num_warps=8, num_stages=2)),
        "nothing": nothing_recorded(),
        "restored": failing(),
        "carried_out": carried_out(),
    },
    "types": lambda: {
        "int32": source_of(copy(2**31 - 1)),
        "int64": source_of(copy(2**31)),
        "multiple-of-16": source_of(copy(1024)),
        "tuple": source_of(pair(48)),
        **{str(dtype): source_of(copy(dtype=dtype)) for dtype in (torch.int64, torch.float16, torch.bfloat16)},
    },
    **{
        target: lambda target=target: {
            "copy": resources(copy(), target),
            "count": resources(count(), target),
            "prefix": resources(prefix(256), target),
            "wide": resources(copy(num_warps=1), target),
            "opcodes": codegen.opcodes(*copy(), target),
        }
        for target in codegen.TARGETS
    },
    "spills": lambda: {
        "squeezed": resources(prefix(8192, num_warps=1, maxnreg=32), "sm_90"),
        "roomy": resources(prefix(256, num_warps=4), "sm_90"),
    },
}

if __name__ == "__main__":
    print(json.dumps({name: PARTS[name]() for name in sys.argv[1:]}))

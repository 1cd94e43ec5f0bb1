"""Run by test_cupti in a process of its own: prints what both clocks say of a few kernels, as JSON."""

import dataclasses
import json

import torch
import triton
import triton.language as tl

from tests.tracking import cupti


@triton.jit
def scale_kernel(
    source_ptr,  # in: float32 [size]
    target_ptr,  # out: float32 [size]
    size,
    TILE: tl.constexpr,
):
    """Double TILE elements. Grid: (cdiv(size, TILE),)."""
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    values = tl.load(source_ptr + places, mask=places < size, other=0)
    tl.store(target_ptr + places, 2 * values, mask=places < size)


def scale(source, target):
    scale_kernel[(triton.cdiv(source.numel(), 1024),)](source, target, source.numel(), TILE=1024)


def calls():
    small, large = (torch.zeros(size, device="cuda") for size in (2**14, 2**24))
    small_target, large_target = torch.empty_like(small), torch.empty_like(large)

    def two_kernels():
        torch.add(small, 1, out=small_target)
        torch.cumsum(small, 0, out=small_target)

    return {
        "spin-5-us": lambda: torch.cuda._sleep(10_000),
        "spin-50-us": lambda: torch.cuda._sleep(100_000),
        "add-2-us": lambda: torch.add(small, 1, out=small_target),
        "add-30-us": lambda: torch.add(large, 1, out=large_target),
        "triton-2-us": lambda: scale(small, small_target),
        "triton-30-us": lambda: scale(large, large_target),
        "two-kernels": two_kernels,
        "memset": lambda: small.zero_(),
    }


if __name__ == "__main__":
    print(json.dumps({name: dataclasses.asdict(cupti.row(call)) for name, call in calls().items()}))

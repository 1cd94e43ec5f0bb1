"""A kernel that stands before or after another, with or without programmatic dependent launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

_BLOCK = 1024


@triton.jit
def copy_kernel(source_ptr, target_ptr, size, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Copy BLOCK elements. Grid: (cdiv(size, BLOCK),)."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    elements = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source_ptr + elements, mask=elements < size, other=0)
    tl.store(target_ptr + elements, values, mask=elements < size)


def copy(source: torch.Tensor, target: torch.Tensor, *, overlap: bool) -> None:
    """Copy between contiguous tensors; with ``overlap``, start while the launch before ends, and let the next do so."""
    options = {"launch_pdl": True} if overlap else {}
    grid = (triton.cdiv(source.numel(), _BLOCK),)
    copy_kernel[grid](source, target, source.numel(), BLOCK=_BLOCK, OVERLAP=overlap, num_warps=4, **options)

"""Triton kernels, one file per strategy."""

import triton

from moe_align.kernels import scan

#: Whether the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before import), which takes CPU tensors.
INTERPRETED = not isinstance(scan.align_rows_scan_kernel, triton.JITFunction)

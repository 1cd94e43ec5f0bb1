"""Counting into bins, in shared memory.

Triton's histogram finds the threads of a warp that have the same bin by ballots, about 60 instructions for each 32
elements, before it adds to shared memory. NVIDIA's GPUs add there atomically in one instruction, which Triton does not
offer: it is written out here. Integers are added, so what is counted does not depend on the order.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Bins at most, for which shared memory is set aside.
MAX_BINS = 1024

# $0 is a result that nobody looks at, where there is none.
_ADDRESS = tl.constexpr(f"{{ .shared .align 4 .b32 bins[{MAX_BINS}]; mov.u32 $0, bins; }}")
_CLEAR = tl.constexpr("st.volatile.shared.u32 [$1], 0; mov.u32 $0, 0;")
_INCREMENT = tl.constexpr("{ .reg .pred p; setp.ne.s32 p, $2, 0; @p red.shared.add.u32 [$1], 1; mov.u32 $0, 0; }")
_LOAD = tl.constexpr("ld.volatile.shared.u32 $0, [$1];")


@triton.jit
def clear_bins(BINS: tl.constexpr):
    """Clear the program's bins, of which there is one set; returns their address in shared memory."""
    address = tl.inline_asm_elementwise(_ADDRESS, "=r,r", [0], tl.int32, is_pure=False, pack=1)
    each = address + 4 * tl.arange(0, BINS)
    tl.inline_asm_elementwise(_CLEAR, "=r,r", [each], tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
    return address


@triton.jit
def count_into_bins(address, bins, mask):
    """Add 1 to the bin of each element; a tensor of no fewer elements than the program has threads."""
    each = [address + 4 * bins, mask.to(tl.int32)]
    tl.inline_asm_elementwise(_INCREMENT, "=r,r,r", each, tl.int32, is_pure=False, pack=1)


@triton.jit
def load_bins(address, bins):
    """What was counted, after a barrier."""
    return tl.inline_asm_elementwise(_LOAD, "=r,r", [address + 4 * bins], tl.int32, is_pure=False, pack=1)

"""Columns: what a thread has of several neighbouring elements, first of each, second of each, and so on.

Ids are loaded in pieces of 16 bytes, so a thread has four neighbours. Triton lays most other operations out one element
to a thread: stores to places that it cannot know to be anywhere, comparisons with a few experts. Between these layouts
it moves elements through shared memory, and every move waits twice for all warps. A column has one element for each
thread, so operations on columns need no moves.
"""

from __future__ import annotations

import triton
import triton.language as tl


def columns(size: int, num_warps: int, element_bytes: int) -> int:
    """Of ``size`` elements that are loaded together, how many neighbours a thread has: 1, 2 or 4."""
    return max(1, min(4, 16 // element_bytes, size // (32 * num_warps)))


@triton.jit
def columns_of(matrix):
    """The columns of a matrix [N, 1], [N, 2] or [N, 4]; of a vector, itself."""
    N: tl.constexpr = matrix.shape[0]
    if len(matrix.shape) == 1:
        return (matrix,)
    elif matrix.shape[1] == 1:
        return (tl.reshape(matrix, [N]),)
    elif matrix.shape[1] == 2:
        return tl.split(matrix)
    else:
        even, odd = tl.split(tl.reshape(matrix, [N, 2, 2]))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def matrix_of(columns):
    """The matrix of columns, as many as a power of two."""
    N: tl.constexpr = columns[0].shape[0]
    if len(columns) == 1:
        return columns[0][:, None]
    elif len(columns) == 2:
        return tl.join(columns[0], columns[1])
    else:
        even = ()
        odd = ()
        for pair in tl.static_range(len(columns) // 2):
            even = even + (columns[2 * pair],)
            odd = odd + (columns[2 * pair + 1],)
        return tl.reshape(tl.join(matrix_of(even), matrix_of(odd)), [N, len(columns)])


@triton.jit
def store_scattered(pointer, places, values, mask):
    """Store what a thread has, a vector or a matrix of columns, to places that may be anywhere."""
    places, values, mask = columns_of(places), columns_of(values), columns_of(mask)
    for column in tl.static_range(len(places)):
        tl.store(pointer + places[column], values[column], mask=mask[column])

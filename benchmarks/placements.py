"""Copies of a call's buffers, for a figure that does not depend on where in memory one of them happens to lie.

On an H100 the same kernel took 2.67 or 2.79 us, depending on the allocation, in one process like in the next. No engine
chooses the better place, so the timed calls take copies in turns: the figure is a mean over several places, about
equally often each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Buffers = tuple[torch.Tensor | None, ...]

#: So many copies, as long as they have no more bytes together.
_COPIES, _BYTES = 8, 2**30


def copies(make: Callable[[], Buffers]) -> list[Buffers]:
    """What ``make`` returns, several times over; large buffers, which lie in many places anyhow, fewer times."""
    first = make()
    num_bytes = sum(tensor.nbytes for tensor in first if tensor is not None)
    return [first] + [make() for _ in range(min(_COPIES, _BYTES // max(num_bytes, 1)) - 1)]

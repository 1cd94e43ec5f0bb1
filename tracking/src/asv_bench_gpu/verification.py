"""No figure without a verified result: what a suite's `setup_cache` returns after comparing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


class VerificationError(Exception):
    """A result is wrong, or nothing was compared."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """Proof that results were compared before any figure; comes from `verify`, and adds up.

    A suite of ``track_*`` whose benchmarks need something else as well returns it beside this from `setup_cache`, in a
    tuple: a round in which nothing was verified decides nothing.

    Attributes:
        comparisons: how many.
    """

    comparisons: int

    def __add__(self, other: Verified) -> Verified:
        """Both verifications together."""
        return Verified(self.comparisons + other.comparisons)


@dataclasses.dataclass(frozen=True)
class Unavailable:
    """Returned by `setup_cache` instead of `Verified` where the machine cannot run the suite at all.

    Attributes:
        reason: what is missing, for the reader of the results.
    """

    reason: str

    def skip(self) -> None:
        """Tell asv, from a benchmark's `setup`, that there is no figure here and why."""
        raise NotImplementedError(self.reason)


def verify(comparisons: Iterable[tuple[str, str | None]]) -> Verified:
    """Make every comparison.

    Args:
        comparisons: pairs of what was compared and how it differs, None if it does not.

    Raises:
        VerificationError: at the first difference, or when there was nothing to compare.
    """
    count = 0
    for what, difference in comparisons:
        if difference is not None:
            raise VerificationError(f"{what}: {difference}")
        count += 1
    if not count:
        raise VerificationError("nothing was compared")
    return Verified(count)

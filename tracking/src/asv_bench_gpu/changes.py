"""Did the level of a history change, at which commit, and by how much? Pure arithmetic on the rounds of each commit.

At first every commit is a level of its own. Of the boundaries between neighbouring levels the one with the least
evidence is removed, again and again, until all that are left are beyond doubt. The evidence is asv's exact Mann-Whitney
test of the rounds nearest to a boundary on either side: in how many pairs of a round before and a round after is the
latter above the margin, or below it? That assumes nothing of the noise but that it is the same on both sides. Which
boundary is looked at depends on the data, so each test that could be made counts (`tests`), over all series together.
Decision 8 says why this method, and what it finds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from asv import _stats

Array = np.ndarray[Any, np.dtype[np.float64]]
Key = TypeVar("Key", bound=Hashable)
#: The times of each commit's rounds, oldest commit first; each commit has one at least, and all are above 0.
Series = Sequence[Sequence[float]]

MARGIN_PERCENT = 1.0
FAMILY_ALPHA = 0.01
#: Rounds on either side of a boundary that a test looks at. More would see smaller changes, and take drift for one.
REACH = 40

_orders: dict[Any, int] = {}  # what asv's exact test remembers from call to call


@dataclasses.dataclass(frozen=True)
class Step:
    """One change of the level.

    Attributes:
        at: index of the first commit with the new level.
        ratio: typical time after / before; above 1 the commit made it slower.
        low, high: bounds of the ratio. All bounds of a family hold together, but for a probability of `family_alpha`.
        chance: at most this probable is it that noise lets any series of the family show as much.
    """

    at: int
    ratio: float
    low: float
    high: float
    chance: float


@dataclasses.dataclass(frozen=True)
class Found:
    """What a family of series shows.

    Attributes:
        steps: key of a series -> its changes, oldest first; only series that have one.
        tests: how many tests could be made.
        blind: series that are too short, or have too few rounds, to show a change however large.
    """

    steps: dict[Any, list[Step]]
    tests: int
    blind: list[Any]


def find(
    family: Mapping[Key, Series], *, margin_percent: float = MARGIN_PERCENT, family_alpha: float = FAMILY_ALPHA
) -> Found:
    """All changes by more than the margin.

    With a probability of ``family_alpha`` at most, any change is found between levels that differ by no more than
    ``margin_percent``, in any of the series.

    Raises:
        ValueError: ``margin_percent`` is not finite or below 0, or ``family_alpha`` not above 0 and 0.5 at most.

    >>> noise = [1.000, 1.001, 1.002, 1.003, 1.004]
    >>> found = find({"a": [noise] * 5, "b": [noise] * 5 + [[1.05 * time for time in noise]] * 3})
    >>> [(key, step.at, round(step.ratio, 3)) for key, steps in found.steps.items() for step in steps]
    [('b', 5, 1.05)]
    """
    if not 0 <= margin_percent < math.inf:
        raise ValueError(f"margin_percent: expected a finite number of at least 0, got {margin_percent!r}")
    if not 0 < family_alpha <= 0.5:
        raise ValueError(f"family_alpha: expected a number above 0, and 0.5 at most, got {family_alpha!r}")
    counts = {key: [min(len(rounds), REACH) for rounds in series] for key, series in family.items()}
    number = sum(map(tests, counts.values()))
    level = family_alpha / max(number, 1)
    steps = {}
    for key, series in family.items():
        logs = logarithms(series)
        if cuts := confirm(logs, range(1, len(logs)), margin_percent=margin_percent, level=level):
            steps[key] = [_step(cut, number) for cut in cuts]
    return Found(steps, number, [key for key, of in counts.items() if not _can_show(of, level)])


def tests(counts: Sequence[int]) -> int:
    """How many tests a series could take, given its numbers of rounds: one for each boundary and pair of reaches.

    >>> tests([10]), tests([10, 10]), tests([40, 40, 40])
    (0, 1, 2)
    """
    return sum(_near(counts[:at][::-1]) * _near(counts[at:]) for at in range(1, len(counts)))


def logarithms(series: Series) -> list[Array]:
    """Of each commit's latest rounds, as many as a test may look at."""
    return [np.log(np.asarray(rounds[-REACH:], dtype=float)) for rounds in series]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A boundary between two levels, and what the rounds next to it say.

    Attributes:
        at: index of the first commit after it.
        shape: rounds before and after.
        differences: after - before, of all pairs of rounds; logarithms.
        against: pairs that do not lie beyond the margin, on the side where more do.
        allowed: the most of those that leave no doubt; -1 if there are too few rounds for that.
        evidence: sorts cuts: whether it is beyond doubt, how far from even, how large.
    """

    at: int
    shape: tuple[int, int]
    differences: Array
    against: int
    allowed: int
    evidence: tuple[bool, float, float]


def confirm(logs: Sequence[Array], cuts: Iterable[int], *, margin_percent: float, level: float) -> list[Cut]:
    """Those of the ``cuts`` that are left when each has a p-value of ``level`` at most."""
    margin = math.log1p(margin_percent / 100)
    edges = [0, *cuts, len(logs)]

    def look(index: int) -> Cut:
        start, at, end = edges[index - 1 : index + 2]
        return _cut(logs, start, at, end, margin, level)

    found = [look(index) for index in range(1, len(edges) - 1)]
    while found:
        weakest = min(range(len(found)), key=lambda index: found[index].evidence)
        if found[weakest].evidence[0]:
            break
        del found[weakest], edges[weakest + 1]
        for index in (weakest, weakest + 1):
            if 0 < index < len(edges) - 1:
                found[index - 1] = look(index)
    return found


def _cut(logs: Sequence[Array], start: int, at: int, end: int, margin: float, level: float) -> Cut:
    """Compare the commits from ``start`` to before ``at`` with those up to before ``end``, as far as a test reaches."""
    counts = [len(rounds) for rounds in logs[start:end]]
    before = np.concatenate(logs[at - _near(counts[: at - start][::-1]) : at])
    after = np.concatenate(logs[at : at + _near(counts[at - start :])])
    differences = np.subtract.outer(after, before).ravel()
    beyond = max(np.count_nonzero(differences > margin), np.count_nonzero(differences < -margin))
    pairs = len(differences)
    against = pairs - int(beyond)
    shape = len(before), len(after)
    allowed = _allowed(*sorted(shape), level)
    far = (pairs / 2 - against) / math.sqrt(pairs * (sum(shape) + 1) / 12)
    large = abs(float(np.partition(differences, pairs // 2)[pairs // 2]))
    return Cut(at, shape, differences, against, allowed, (against <= allowed, far, large))


def _step(cut: Cut, number: int) -> Step:
    """The cut for readers, as one of ``number`` tests.

    "At most ``allowed`` differences are not above the margin" and "the next larger one is above it" are the same: what
    is found has its bounds beyond the margin.
    """
    ordered = np.sort(cut.differences)
    low, ratio, high = np.exp([ordered[cut.allowed], np.median(ordered), ordered[-1 - cut.allowed]]).tolist()
    chance = 2 * number * _stats.mann_whitney_u_cdf(*sorted(cut.shape), cut.against, _orders)
    return Step(cut.at, ratio, low, high, min(1.0, chance))


def _near(counts: Sequence[int]) -> int:
    """How many of these commits, the nearest first, a test reaches: whole ones only, and at least one."""
    return max(1, sum(total <= REACH for total in itertools.accumulate(counts)))


def _can_show(counts: Sequence[int], level: float) -> bool:
    """Whether rounds that differ without exception would be enough, at any boundary."""
    for at in range(1, len(counts)):
        before, after = counts[:at][::-1], counts[at:]
        reached = sum(before[: _near(before)]), sum(after[: _near(after)])
        if _allowed(*sorted(reached), level) >= 0:
            return True
    return False


@functools.cache
def _allowed(fewer: int, more: int, level: float) -> int:
    """In how many pairs of rounds chance may contradict a claim that it leads to with probability ``level`` at most.

    Either claim, slower and faster, so each has half of it.
    """
    left = level / 2
    for against in range(fewer * more):
        left -= _stats.mann_whitney_u_pmf(fewer, more, against, _orders)
        if left < 0:
            return against - 1
    return fewer * more - 1

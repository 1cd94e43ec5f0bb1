"""Is head slower than base? A verdict on pairs of times, with declared rates of error. Pure arithmetic.

Each round gives each benchmark one pair, (base, head), from two processes run one after the other. All that counts is
in how many rounds head / base lies above the margin. Where the typical (median) ratio is not above it, a round lies
above with probability one half at most, whatever the noise looks like; so rounds above are no more frequent than heads
of a fair coin, and how often a coin would have led to the claim, at any look up to the last, is computed exactly
(`exceptions_allowed`). That holds if earlier rounds do not tell on which side of its median the next will lie.
Decision 6 says why this method, and what it costs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Verdict = Literal["pass", "fail", "undecided"]
#: A time in seconds of base and of head; None where there is no figure.
Pair = tuple[float | None, float | None]

MAX_ROUNDS = 40


@dataclasses.dataclass(frozen=True)
class Row:
    """What the rounds say of one benchmark. Ratios are head / base: above 1, head is slower.

    Attributes:
        verdict: "fail" if ``low`` is above the margin, "pass" if ``high`` is not, else, or if a figure is missing,
            "undecided".
        ratio: median over rounds; None without any.
        low, high: bounds of the typical ratio; None where rounds are too few for one.
        rounds: how many have both figures.
        missing: how many have not.
        reason: for the reader, what led to the verdict.
    """

    verdict: Verdict
    ratio: float | None
    low: float | None
    high: float | None
    rounds: int
    missing: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the rounds say of all benchmarks.

    Attributes:
        verdict: "fail" if any benchmark fails, "pass" if there is one and all pass, else "undecided".
        rows: key -> what is known of it, in the order given.
    """

    verdict: Verdict
    rows: dict[str, Row]


def judge(
    pairs: Mapping[str, Sequence[Pair]],
    *,
    margin_percent: float | Mapping[str, float],
    family_alpha: float,
    max_rounds: int = MAX_ROUNDS,
) -> Judgement:
    """Judge all benchmarks together, after any number of rounds: look as often as you like, and stop when you like.

    Over all looks of a comparison, each of these has probability ``family_alpha`` at most:

    - any benchmark fails that is not typically slower than the margin;
    - the family passes although a benchmark is typically slower than the margin.

    Likewise all ``low`` bounds hold together, while a ``high`` bound, and the pass of a row, holds by itself.

    Args:
        pairs: benchmark -> (base_seconds, head_seconds) of each round. A key that one side lacks has None there; what
            is not a finite number above 0 counts as missing too. Keys may differ in their number of rounds.
        margin_percent: by how much head may be slower, at least 0; for all benchmarks, or a mapping with one for each.
        family_alpha: above 0, and 0.5 at most.
        max_rounds: the most rounds the comparison may ever have, chosen before the first: another number at a later
            look would be another test.

    Raises:
        TypeError, ValueError: an argument is not as above, or a time is no number at all; more rounds than
            ``max_rounds``, or too few of those for so many keys ever to fail.

    >>> same, slower = [(2.0, 2.0)] * 15, [(2.0, 2.1)] * 15
    >>> judgement = judge({"a": same, "b": slower}, margin_percent=2, family_alpha=0.01)
    >>> judgement.verdict, judgement.rows["a"].verdict, judgement.rows["b"].verdict
    ('fail', 'pass', 'fail')
    >>> judgement.rows["b"].low
    1.05
    """
    if not isinstance(pairs, Mapping):
        raise TypeError(f"pairs: expected a mapping of benchmarks to pairs of times, got {pairs!r}")
    if isinstance(margin_percent, Mapping):
        limits = {key: _limit(f"margin_percent[{key!r}]", margin_percent.get(key)) for key in pairs}
    else:
        limits = dict.fromkeys(pairs, _limit("margin_percent", margin_percent))
    keys = max(len(pairs), 1)
    least = least_rounds(keys, family_alpha=family_alpha, max_rounds=max_rounds)
    # One wrong "fail" among many keys is a wrong verdict, so they share alpha. A wrong "pass" takes that every slow key
    # passes wrongly, which is no more likely than that a given one does.
    to_fail = exceptions_allowed(family_alpha / keys, max_rounds)
    to_pass = exceptions_allowed(family_alpha, max_rounds)
    rows = {}
    for key, given in pairs.items():
        ratios = sorted(_ratios(key, given, max_rounds))
        rows[key] = _row(
            ratios, len(given) - len(ratios), limits[key], to_pass[len(ratios)], to_fail[len(ratios)], least
        )
    return Judgement(together(row.verdict for row in rows.values()), rows)


def together(members: Iterable[Verdict]) -> Verdict:
    """The verdict on a family: "fail" if one fails, "pass" only if there are some and all of them pass."""
    verdicts = set(members)
    return "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "undecided"


def least_rounds(keys: int, *, family_alpha: float, max_rounds: int = MAX_ROUNDS) -> tuple[int, int]:
    """How many rounds it takes before any of ``keys`` benchmarks can pass, and before any can fail.

    Raises:
        TypeError, ValueError: as `judge`.

    >>> least_rounds(1, family_alpha=0.01), least_rounds(100, family_alpha=0.01)
    ((9, 9), (9, 15))
    """
    for name, value in (("keys", keys), ("max_rounds", max_rounds)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: expected a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    if not 0 < _number("family_alpha", family_alpha) <= 0.5:
        raise ValueError(f"family_alpha: expected a number above 0, and 0.5 at most, got {family_alpha!r}")
    to_fail = exceptions_allowed(family_alpha / keys, max_rounds)
    if to_fail[-1] < 0:
        raise ValueError(
            f"max_rounds: {max_rounds} can never show that one of {keys} benchmarks is slower "
            f"with family_alpha {family_alpha:g}; expected more"
        )
    return exceptions_allowed(family_alpha, max_rounds).index(0), to_fail.index(0)


@functools.cache
def exceptions_allowed(alpha: float, max_rounds: int) -> tuple[int, ...]:
    """How many rounds may contradict a claim after 0, 1, ... ``max_rounds`` rounds; -1: too few for any claim.

    A fair coin, tossed once a round, makes the claim when at most that many tosses contradict it. The numbers are the
    largest for which it has done so by round n with probability ``alpha * n / max_rounds`` at most: an exact binomial
    test after every round, with a linear spending function.

    >>> exceptions_allowed(0.25, 6)
    (-1, -1, -1, 0, 0, 0, 1)
    """
    allowed = [-1]
    spent = 0.0
    waiting = [1.0]  # probability that the coin has not made the claim yet, by number of contradictions
    for rounds in range(1, max_rounds + 1):
        exceptions = allowed[-1]
        waiting = [(before + after) / 2 for before, after in zip([0.0, *waiting], [*waiting, 0.0], strict=True)]
        while spent + waiting[exceptions + 1] <= alpha * rounds / max_rounds:
            exceptions += 1
            spent += waiting[exceptions]
            waiting[exceptions] = 0.0
        allowed.append(exceptions)
    return tuple(allowed)


def _limit(name: str, margin_percent: float | None) -> float:
    """The largest ratio that is within the margin."""
    margin = _number(name, margin_percent)
    if not 0 <= margin < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {margin!r}")
    return 1 + margin / 100


def _number(name: str, value: float | None) -> float:
    """The value, if it is a number at all."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return value


def _figure(where: str, seconds: float | None) -> float | None:
    """The time, if it is one: NaN, infinity, zero and less are what a broken clock says."""
    return seconds if seconds is not None and 0 < _number(where, seconds) < math.inf else None


def _ratios(key: str, given: Sequence[Pair], max_rounds: int) -> list[float]:
    """Head / base of the rounds that have both."""
    if not isinstance(given, Sequence):
        raise TypeError(f"pairs[{key!r}]: expected a sequence of (base_seconds, head_seconds), got {given!r}")
    if len(given) > max_rounds:
        raise ValueError(f"pairs[{key!r}]: expected at most max_rounds = {max_rounds} rounds, got {len(given)}")
    ratios = []
    for number, pair in enumerate(given, start=1):
        where = f"pairs[{key!r}], round {number}"
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"{where}: expected (base_seconds, head_seconds), got {pair!r}")
        base, head = (_figure(where, seconds) for seconds in pair)
        if base is not None and head is not None:
            ratios.append(head / base)
    return ratios


def _row(ratios: list[float], missing: int, limit: float, to_pass: int, to_fail: int, least: tuple[int, int]) -> Row:
    """Judge one benchmark by its sorted ratios.

    "At most ``to_fail`` ratios are not above the limit" and "the next larger one is above it" are the same: bounds and
    verdicts agree, for every limit.
    """
    rounds = len(ratios)
    low = ratios[to_fail] if to_fail >= 0 else None
    high = ratios[rounds - 1 - to_pass] if to_pass >= 0 else None
    # The geometric mean of the middle two: exchanging base and head inverts it.
    ratio = math.sqrt(ratios[(rounds - 1) // 2] * ratios[rounds // 2]) if rounds else None
    verdict: Verdict = "undecided"
    if missing:
        reason = f"no figure in {missing} of {rounds + missing} rounds"
    else:
        if low is not None and low > limit:
            verdict = "fail"
        elif high is not None and high <= limit:
            verdict = "pass"
        above = sum(ratio > limit for ratio in ratios)
        passes = f"at most {to_pass}" if high is not None else f"from {least[0]} rounds on"
        fails = f"at least {rounds - to_fail}" if low is not None else f"from {least[1]} rounds on"
        reason = f"above the margin in {above} of {rounds} rounds (pass: {passes}, fail: {fails})"
    return Row(verdict, ratio, low, high, rounds, missing, reason)

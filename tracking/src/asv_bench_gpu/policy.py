r"""What a release must not do: the policy of `asv_bench_gpu.gate`, in a file that is checked in.

A policy says, in TOML: with what to compare; which benchmarks form suites, and how much slower those may be; which
quantities (asv's ``track_*``) must not grow; and what was accepted. What one commit says that it cannot measure is
compared with nothing, which ends the gate, unless the policy says that it may be new, or by which commit and why it was
removed. A waiver gives one benchmark another limit, for a reason and for a time. Both last as long as their commit lies
between baseline and head. What a commit cost for good is acknowledged: the gate does not look at that, but `asv-gpu
changes` does not count it as open::

    baseline_tags = "v*"  # the last of these tags before HEAD; or baseline_commit = "0123abc"

    [[suite]]
    benchmarks = '^order\.Rows\.gputime_rows'
    margin_percent = 3
    may_be_new = true  # then the next release compares it

    [[quantity]]
    benchmarks = '^codegen\.Kernels\.track_spill_bytes'
    max_increase = 0
    max_new = 0  # the largest number of what the baseline does not have

    [[waiver]]
    benchmark = "order.Rows.gputime_rows('Qwen3', 128)"
    limit = 12
    reason = "ordered within a block too"
    commit = "4567def"
    expires = 2027-01-31

    [[removed]]
    benchmarks = '^codegen\..*blocks: count'
    commit = "789abcd"
    reason = "one launch does all of it"

    [[acknowledged]]
    benchmarks = '^order\.Rows'
    commit = "89abcde"
    reason = "64-bit addresses"
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import re
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from asv_bench_gpu import compare, verdict
from asv_bench_gpu.project import Project, UsageError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_regex(value: Any) -> bool:
    try:
        return _is_text(value) and bool(re.compile(value))
    except re.error:
        return False


@dataclasses.dataclass(frozen=True)
class _Value:
    """How a value in a policy is read."""

    expected: str
    accepts: Callable[[Any], bool]

    def read(self, where: str, value: Any) -> Any:
        """The value, if it is as expected."""
        if not self.accepts(value):
            raise UsageError(f"{where}: expected {self.expected}, got {value!r}")
        return value


@dataclasses.dataclass(frozen=True)
class _Tables:
    """How an array of tables in a policy is read."""

    kind: type

    def read(self, where: str, value: Any) -> tuple[Any, ...]:
        """One object per table."""
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise UsageError(f"{where}: expected tables [[{where}]], got {value!r}")
        return tuple(_read(self.kind, f"{where}[{number}].", table) for number, table in enumerate(value, start=1))


def _read(kind: type[T], where: str, table: dict[str, Any]) -> T:
    """Read a table into a dataclass, whose annotations say how."""
    readers = {name: hint.__metadata__[0] for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    for name, value in table.items():
        if name not in readers:
            raise UsageError(f"{where}{name}: expected one of {', '.join(readers)}, got {name} = {value!r}")
    for name, reader in readers.items():
        if name not in table and not hasattr(kind, name):  # a default is an attribute of the class
            raise UsageError(f"{where}{name}: expected {reader.expected}, got nothing")
    return kind(**{name: readers[name].read(where + name, value) for name, value in table.items()})


T = TypeVar("T")
Text = Annotated[str, _Value("text", _is_text)]
Regex = Annotated[str, _Value("a regular expression", _is_regex)]
_LIMIT = _Value("a finite number of at least 0", lambda value: _is_number(value) and 0 <= value < math.inf)
Limit = Annotated[float, _LIMIT]
Percent = Annotated[float, _Value("a number from 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)]
Flag = Annotated[bool, _Value("true or false", lambda value: isinstance(value, bool))]
Probability = Annotated[
    float, _Value("a number above 0, and 0.5 at most", lambda value: _is_number(value) and 0 < value <= 0.5)
]
Count = Annotated[int, _Value("a whole number of at least 1", lambda value: type(value) is int and value >= 1)]
Day = Annotated[datetime.date, _Value("a date such as 2027-01-31", lambda value: type(value) is datetime.date)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Benchmarks that measure seconds, by how many percent head may be slower, and whether base may lack them."""

    benchmarks: Regex
    margin_percent: Percent
    may_be_new: Flag = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """Benchmarks that measure something else, by how much head's number may be larger, how large if base has none."""

    benchmarks: Regex
    max_increase: Limit
    max_new: Annotated[float | None, _LIMIT] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiver:
    """What one benchmark may do instead, in the unit of its suite or quantity; ``expires`` is the last day."""

    benchmark: Text
    limit: Limit
    reason: Text
    commit: Text
    expires: Day


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """Benchmarks of which is known what a commit did to them."""

    benchmarks: Regex
    commit: Text
    reason: Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """All of it; see the module."""

    baseline_tags: Text = ""
    baseline_commit: Text = ""
    family_alpha: Probability = compare.FAMILY_ALPHA
    max_rounds: Count = verdict.MAX_ROUNDS
    suite: Annotated[tuple[Suite, ...], _Tables(Suite)] = ()
    quantity: Annotated[tuple[Quantity, ...], _Tables(Quantity)] = ()
    waiver: Annotated[tuple[Waiver, ...], _Tables(Waiver)] = ()
    removed: Annotated[tuple[Accepted, ...], _Tables(Accepted)] = ()
    acknowledged: Annotated[tuple[Accepted, ...], _Tables(Accepted)] = ()

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read and check a file.

        Raises:
            UsageError: it is no policy; the message names the key, its value and what was expected.
        """
        try:
            policy = _read(cls, "", tomllib.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UsageError(str(error)) from error
        if bool(policy.baseline_tags) == bool(policy.baseline_commit):
            raise UsageError("expected either baseline_tags or baseline_commit")
        if not policy.suite and not policy.quantity:
            raise UsageError("expected a [[suite]] or a [[quantity]]")
        return policy

    def matched(self, opened: Project) -> Matched:
        """Which entry is about which benchmark.

        Raises:
            UsageError: an expression matches nothing, or what another one does.
        """
        timed: list[str] = []
        others: list[str] = []
        for key, (name, _) in opened.places().items():
            (timed if opened.benchmarks[name]["unit"] == "seconds" else others).append(key)
        suites, quantities = _match("suite", self.suite, timed), _match("quantity", self.quantity, others)
        return Matched(suites, quantities, _match("removed", self.removed, [*suites, *quantities]))


@dataclasses.dataclass(frozen=True)
class Matched:
    """By benchmark, the suite or the quantity that names it, and of these benchmarks, what says that it was removed."""

    suites: dict[str, Suite]
    quantities: dict[str, Quantity]
    removed: dict[str, Accepted]

    def margins(self) -> dict[str, float]:
        """By how many percent a time may be longer, as if nothing were waived."""
        return {key: suite.margin_percent for key, suite in self.suites.items()}

    def limits(self) -> dict[str, float]:
        """By how much another number may be larger, likewise."""
        return {key: quantity.max_increase for key, quantity in self.quantities.items()}

    def new(self) -> dict[str, float]:
        """How large a number may be that base lacks; what is not named here must not be lacking."""
        times = {key: math.inf for key, suite in self.suites.items() if suite.may_be_new}
        numbers = {key: found.max_new for key, found in self.quantities.items() if found.max_new is not None}
        return times | numbers


@contextlib.contextmanager
def blaming(policy: Path) -> Iterator[None]:
    """Name the file whose fault it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{policy}: {error}") from error


Entry = TypeVar("Entry", Suite, Quantity, Accepted)


def _match(what: str, entries: tuple[Entry, ...], keys: list[str]) -> dict[str, Entry]:
    matched: dict[str, Entry] = {}
    for number, entry in enumerate(entries, start=1):
        matching = [key for key in keys if re.search(entry.benchmarks, key)]
        if not matching:
            raise UsageError(f"{what}[{number}].benchmarks: expected to match a benchmark, got {entry.benchmarks!r}")
        if twice := matched.keys() & matching:
            raise UsageError(
                f"{what}[{number}].benchmarks: {entry.benchmarks!r} matches {min(twice)}, as one before does"
            )
        matched |= dict.fromkeys(matching, entry)
    return matched

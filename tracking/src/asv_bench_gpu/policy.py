r"""What a release must not do: the policy of `asv_bench_gpu.gate`, in a file that is checked in.

A policy says, in TOML: with what to compare; which benchmarks form suites, and how much slower those may be; which
quantities (asv's ``track_*``) must not grow; and what was accepted. A waiver gives one benchmark another limit, for a
reason and for a time, as long as the commit that was accepted lies between baseline and head. What a commit cost for
good is acknowledged: the gate does not look at that, but `asv-gpu changes` does not count it as open::

    baseline_tags = "v*"  # the last of these tags before HEAD; or baseline_commit = "0123abc"

    [[suite]]
    benchmarks = '^order\.Rows\.gputime_rows'
    margin_percent = 3

    [[quantity]]
    benchmarks = '^codegen\.Kernels\.track_spill_bytes'
    max_increase = 0

    [[waiver]]
    benchmark = "order.Rows.gputime_rows('Qwen3', 128)"
    limit = 12
    reason = "ordered within a block too"
    commit = "4567def"
    expires = 2027-01-31

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
Limit = Annotated[
    float, _Value("a finite number of at least 0", lambda value: _is_number(value) and 0 <= value < math.inf)
]
Probability = Annotated[
    float, _Value("a number above 0, and 0.5 at most", lambda value: _is_number(value) and 0 < value <= 0.5)
]
Count = Annotated[int, _Value("a whole number of at least 1", lambda value: type(value) is int and value >= 1)]
Day = Annotated[datetime.date, _Value("a date such as 2027-01-31", lambda value: type(value) is datetime.date)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Benchmarks that measure seconds, and by how many percent head may be slower."""

    benchmarks: Regex
    margin_percent: Limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """Benchmarks that measure something else, and by how much head's number may be larger."""

    benchmarks: Regex
    max_increase: Limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiver:
    """What one benchmark may do instead, in the unit of its suite or quantity; ``expires`` is the last day."""

    benchmark: Text
    limit: Limit
    reason: Text
    commit: Text
    expires: Day


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """Benchmarks of which is known that a commit made them slower."""

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
    acknowledged: Annotated[tuple[Acknowledged, ...], _Tables(Acknowledged)] = ()

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

    def limits(self, opened: Project) -> tuple[dict[str, float], dict[str, float]]:
        """By benchmark, the margins of suites and the limits of quantities, as if nothing were waived.

        Raises:
            UsageError: an expression matches nothing, or what another one does.
        """
        timed: list[str] = []
        others: list[str] = []
        for key, (name, _) in opened.places().items():
            (timed if opened.benchmarks[name]["unit"] == "seconds" else others).append(key)
        return (
            _match("suite", [(suite.benchmarks, suite.margin_percent) for suite in self.suite], timed),
            _match("quantity", [(quantity.benchmarks, quantity.max_increase) for quantity in self.quantity], others),
        )


@contextlib.contextmanager
def blaming(policy: Path) -> Iterator[None]:
    """Name the file whose fault it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{policy}: {error}") from error


def _match(what: str, expressions: list[tuple[str, float]], keys: list[str]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for number, (expression, limit) in enumerate(expressions, start=1):
        matching = [key for key in keys if re.search(expression, key)]
        if not matching:
            raise UsageError(f"{what}[{number}].benchmarks: expected to match a benchmark, got {expression!r}")
        if twice := limits.keys() & matching:
            raise UsageError(f"{what}[{number}].benchmarks: {expression!r} matches {min(twice)}, as one before does")
        limits |= dict.fromkeys(matching, limit)
    return limits

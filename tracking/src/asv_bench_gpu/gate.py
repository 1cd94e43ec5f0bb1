r"""May this commit be released? It is compared with the last release, by a policy that is checked in.

A policy says, in TOML: with what to compare; which benchmarks form suites, and how much slower those may be; which
quantities (asv's ``track_*``) must not grow; and what was accepted. A waiver gives one benchmark another limit, for a
reason and for a time, as long as the commit that was accepted lies between baseline and head::

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
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import re
import subprocess
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from asv_bench_gpu import compare, project, verdict
from asv_bench_gpu.compare import Comparison
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
class Policy:
    """All of it; see the module."""

    baseline_tags: Text = ""
    baseline_commit: Text = ""
    family_alpha: Probability = compare.FAMILY_ALPHA
    max_rounds: Count = verdict.MAX_ROUNDS
    suite: Annotated[tuple[Suite, ...], _Tables(Suite)] = ()
    quantity: Annotated[tuple[Quantity, ...], _Tables(Quantity)] = ()
    waiver: Annotated[tuple[Waiver, ...], _Tables(Waiver)] = ()

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


def gate(
    config: Path, policy: Path, head: str = "HEAD", *, machine: str | None = None, timeout_seconds: float = 900.0
) -> Comparison:
    """Compare ``head`` with the policy's baseline.

    Args:
        config: asv.conf.json of the project.
        policy: file with the policy.
        head: commit.
        machine: as for `asv_bench_gpu.runner.run`.
        timeout_seconds: limit for one process.

    Raises:
        UsageError: the policy is none, has an expired or unmatched waiver or an expression that matches nothing; or as
            for `asv_bench_gpu.compare.compare`.
    """
    with _blaming(policy):
        rules = Policy.read(policy)
    with project.locked(config) as conf:
        head = project.resolve_one(conf, head, argument="HEAD")
        with _blaming(policy):
            base = _baseline(rules, conf, head)
        opened = project.prepare(conf, bench=None, machine=machine, timeout_seconds=timeout_seconds)
        with _blaming(policy):
            margins, limits = _limits(rules, opened)
            waivers = _waive(rules, conf, base, head, margins, limits)
        comparison = compare.measure(
            opened,
            base,
            head,
            margins=margins,
            limits=limits,
            family_alpha=rules.family_alpha,
            max_rounds=rules.max_rounds,
        )
        comparison.waivers = waivers
        return comparison


@contextlib.contextmanager
def _blaming(policy: Path) -> Iterator[None]:
    """Name the file whose fault it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{policy}: {error}") from error


def _baseline(rules: Policy, conf: Any, head: str) -> str:
    """The commit to compare with."""
    if rules.baseline_commit:
        return project.resolve_one(conf, rules.baseline_commit, argument="baseline_commit")
    # Not a tag of head itself: a release is compared with the one before.
    describe = ["describe", "--tags", "--abbrev=0", f"--match={rules.baseline_tags}", f"{head}^"]
    found = subprocess.run(["git", "-C", conf.repo, *describe], capture_output=True, text=True)
    if found.returncode:
        raise UsageError(
            f"baseline_tags: expected a tag before {head[:8]}, got none that matches {rules.baseline_tags!r}; "
            "fetch tags and history, or name a baseline_commit"
        )
    return project.resolve_one(conf, found.stdout.strip(), argument="baseline_tags")


def _limits(rules: Policy, opened: Project) -> tuple[dict[str, float], dict[str, float]]:
    """By benchmark, the margins of suites and the limits of quantities."""
    timed: list[str] = []
    others: list[str] = []
    for key, (name, _) in opened.places().items():
        (timed if opened.benchmarks[name]["unit"] == "seconds" else others).append(key)
    return (
        _match("suite", [(suite.benchmarks, suite.margin_percent) for suite in rules.suite], timed),
        _match("quantity", [(quantity.benchmarks, quantity.max_increase) for quantity in rules.quantity], others),
    )


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


def _waive(
    rules: Policy, conf: Any, base: str, head: str, margins: dict[str, float], limits: dict[str, float]
) -> dict[str, str]:
    """Change what is waived in ``margins`` and ``limits``; returns, by benchmark, what to tell the reader."""
    told: dict[str, str] = {}
    for number, waiver in enumerate(rules.waiver, start=1):
        where, name = f"waiver[{number}]", waiver.benchmark
        if waiver.expires < datetime.date.today():
            raise UsageError(f"{where}.expires: {waiver.expires} is over; remove the waiver of {name}, or decide again")
        of = margins if name in margins else limits
        if name not in of or name in told:
            raise UsageError(
                f"{where}.benchmark: expected a benchmark that a suite or quantity names, once, got {name!r}"
            )
        commit = project.resolve_one(conf, waiver.commit, argument=f"{where}.commit")
        if base == head or commit not in project.resolve(conf, f"{base}..{head}"):
            raise UsageError(
                f"{where}.commit: expected one after the baseline {base[:8]} and up to {head[:8]}, "
                f"got {waiver.commit!r}; what the baseline has needs no waiver"
            )
        of[name] = waiver.limit
        told[name] = f"{waiver.limit:g} until {waiver.expires}: {waiver.reason} ({commit[:8]})"
    return told

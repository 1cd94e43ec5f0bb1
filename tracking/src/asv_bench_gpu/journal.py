"""The record of finished rounds: the only file a crash can interrupt, and the only source of asv's results.

One JSON line per commit and round, appended and flushed to disk when the round is complete. asv's own result file
(`<commit>-<environment>.json`, beside it) is derived from the journal and replaced atomically, so it can always be
rebuilt. A comparison has a journal of its own, one line per pair of rounds. A last line without its newline is a round
that was being written when the machine died: it is ignored, and cut off before the next append.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from asv_bench_gpu import typed
from asv_bench_gpu.device import State

SCHEMA = 1
PAIRS_SUFFIX = ".pairs.jsonl"
SUFFIX = ".rounds.jsonl"  # not ".json": asv takes every .json beside a machine.json for a result file


@dataclasses.dataclass
class Figures:
    """What one round says of one benchmark.

    Attributes:
        version: the benchmark's asv version; a figure of another version does not count.
        params: the parameter values as asv spells them, one list per parameter; empty when it has none.
        values: one entry per combination of ``params``, in ``itertools.product`` order; None where there is no
            figure: the reason is in ``skipped``, in ``errors``, or the combination was not selected.
        skipped: why something cannot be measured here -> the indices in ``values`` it concerns.
        errors: index in ``values`` (as a string) -> the end of what the benchmark printed when it failed.
        number: repetitions inside each sample, None for benchmarks without samples (``track_*``).
        code: index in ``values`` (as a string) -> fingerprint of the code that was timed, where it is known.
        slowed: likewise -> slowdown in percent -> seconds, of what was made slower on purpose.
    """

    version: str
    params: list[list[str]]
    values: list[float | None]
    skipped: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    number: int | None = None
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    slowed: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        combinations = math.prod(map(len, self.params))
        if len(self.values) != combinations:
            raise ValueError(f"expected {combinations} figures, got {self.values!r}")
        named = map(int, [*self.errors, *self.code, *self.slowed])
        if not self.skipped_indices | set(named) <= set(range(combinations)):
            found = f"{self.skipped!r}, {self.errors!r}, {self.code!r} and {self.slowed!r}"
            raise ValueError(f"expected indices of {combinations} figures, got {found}")

    @property
    def skipped_indices(self) -> set[int]:
        """Indices in ``values`` of what cannot be measured here."""
        return {index for indices in self.skipped.values() for index in indices}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one process found.

    Attributes:
        facts: what was measured on: ``gpu``, ``driver``, ``torch``, ``triton``, ``cuda``, ``python``.
        device_before, device_after: state of the GPU around the figures, None where it does not tell.
        device_during: the least and the most of all states from before to after; None where one is not known, and in
            the records of those who did not look.
        canary: name -> seconds before and after the figures (`asv_bench_gpu.canary`); empty without a GPU.
        verified: comparisons made before the first figure.
        figures: benchmark name -> Figures.
        failed: None, or what stopped the round: "build", "verification", "crash", "timeout", "device" (the GPU ran out
            of memory for the verification, stopped working, or is another one).
        message: for a failed round, what a person needs to know.
    """

    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    device_before: State | None = None
    device_during: list[State] | None = None
    device_after: State | None = None
    canary: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    verified: int = 0
    figures: dict[str, Figures] = dataclasses.field(default_factory=dict)
    failed: str | None = None
    message: str = ""

    def __post_init__(self) -> None:
        for name, seconds in self.canary.items():
            if len(seconds) != 2 or min(seconds) <= 0:
                raise ValueError(f"expected two times of the canary {name!r}, got {seconds!r}")

    @property
    def device_states(self) -> list[State | None]:
        """Of the GPU; None for what is not known, be it before, during or after the figures."""
        during: Iterable[State | None] = self.device_during or [None]
        return [self.device_before, *during, self.device_after]


@dataclasses.dataclass(frozen=True)
class Line:
    """What one line of a journal holds; a dataclass."""

    def to_json(self) -> str:
        """The line, without its end."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON, another schema, or fields missing, unknown or of another type.
        """
        data = typed.loads(line)
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ValueError(f"expected a {cls.__name__.lower()} of schema {SCHEMA}")
        try:
            return typed.build(cls, data)
        except ValueError as error:
            raise ValueError(f"not a {cls.__name__.lower()}: {error}") from error

    @property
    def failures(self) -> set[str]:
        """What stopped it; nothing, if it is finished."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Round(Outcome, Line):
    """One finished round of one commit, or the reason there is none.

    Attributes:
        commit: full hash.
        round: 1, 2, ...; one fresh process each.
        started_at: UTC, ISO 8601.
        seconds: wall time of the whole round, build included.
    """

    commit: str
    round: int
    started_at: str
    seconds: float

    @property
    def failures(self) -> set[str]:
        """What stopped it."""
        return set() if self.failed is None else {self.failed}


@dataclasses.dataclass(frozen=True)
class Pair(Line):
    """One round of a comparison: a round of each commit, one right after the other."""

    base: Round
    head: Round

    def __post_init__(self) -> None:
        if self.base.round != self.head.round:
            raise ValueError(f"expected the same round of both, got {self.base.round} and {self.head.round}")

    @property
    def failures(self) -> set[str]:
        """What stopped either."""
        return self.base.failures | self.head.failures


AnyLine = TypeVar("AnyLine", bound=Line)


def read(path: Path) -> Iterator[Round]:
    """Every complete round in the journal at ``path``, oldest first; none if there is no such file.

    Raises:
        ValueError: a complete line that is no round (the file was edited or damaged), with its number.
    """
    return _read(path, Round)


def _read(path: Path, kind: type[AnyLine]) -> Iterator[AnyLine]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            yield kind.from_json(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def standing(path: Path) -> list[Round]:
    """The finished rounds that count: those after the last failed verification.

    A commit that once gave a wrong result is not to be trusted with what it measured before; a build, a timeout, a
    crash or a GPU that is gone takes nothing back.
    """
    return _standing(path, Round)


def standing_pairs(path: Path) -> list[Pair]:
    """The finished rounds of a comparison that count: likewise, after the last failed verification of either commit."""
    return _standing(path, Pair)


def _standing(path: Path, kind: type[AnyLine]) -> list[AnyLine]:
    lines: list[AnyLine] = []
    for line in _read(path, kind):
        if "verification" in line.failures:
            lines.clear()
        elif not line.failures:
            lines.append(line)
    return lines


def append(path: Path, entry: Line) -> None:
    """Add a line; when this returns it is on disk, and if it never returns nothing half-written will be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path), path.open("ab+") as file:
        file.seek(0)
        complete = file.read().rfind(b"\n") + 1
        file.truncate(complete)
        file.write(entry.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; on success it replaces ``path`` atomically.

    A kill may leave the temporary behind, under a name that asv does not read; the next attempt overwrites it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with _naming(path):
            yield temporary
            _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an error that names no file: a full disk says so without saying where."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, f"{error.strerror}; what was finished before is kept", str(path)) from error
        raise


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

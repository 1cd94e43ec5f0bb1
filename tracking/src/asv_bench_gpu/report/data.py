"""Results as plain data: what was measured, on which commit and machine, and what is missing and why.

Figures come from asv's result files, everything else about a measurement from the journal beside each of them.
Reading never fails because of one damaged file: it is left out and named in `History.problems`.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import itertools
import math
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from asv import util
from asv.benchmarks import Benchmarks
from asv.results import Results, iter_results_paths

from asv_bench_gpu import journal, project
from asv_bench_gpu.report.text import gist

# asv records these of every machine; they say nothing that a reader of GPU figures asks for.
_UNREMARKABLE = frozenset({"machine", "arch", "num_cpu", "os", "ram"})

Labels = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        value: the median over rounds, in the benchmark's unit.
        low, high: quartiles over rounds, None when there are none.
        rounds: samples behind it; 0 when the benchmark keeps none.
        samples: these, one of each round.
    """

    value: float
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    samples: tuple[float, ...] = dataclasses.field(default=(), compare=False, repr=False)

    @property
    def spread(self) -> float | None:
        """The interquartile range as a fraction of the median, None when unknown."""
        if self.low is None or self.high is None or self.rounds < 2 or self.value == 0:
            return None
        return (self.high - self.low) / abs(self.value)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What asv knows of a benchmark; parameter values are labels, without the quotes of their repr.

    Attributes:
        keys: for each combination, how asv spells the benchmark with these parameters.
    """

    name: str
    unit: str
    version: str
    param_names: Labels
    params: tuple[Labels, ...]
    keys: tuple[str, ...]

    def combinations(self) -> list[Labels]:
        """Every combination of parameter values, in asv's order."""
        return list(itertools.product(*self.params))


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one benchmark, and why the others are missing, by parameter values."""

    figures: dict[Labels, Figure]
    missing: dict[Labels, str]


@dataclasses.dataclass(frozen=True)
class Commit:
    """A commit that somebody tried to measure.

    Attributes:
        hash: full hash.
        order: sorts commits, oldest first.
        date: of the commit, ISO 8601 day, or "" when unknown.
        subject: first line of its message, or "" when git does not know the commit.
        on_branch: whether it belongs to the configured branches, whose history the page tells.
    """

    hash: str
    order: tuple[int, str]
    date: str
    subject: str
    on_branch: bool

    @property
    def short(self) -> str:
        """The hash as people write it."""
        return self.hash[:8]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Everything measured of one commit in one set-up.

    Attributes:
        commit: what was measured.
        machine: asv's name of the machine.
        setup: what splits asv's graphs: the environment and the recorded facts of the machine.
        facts: what a reader needs to know of machine and software: gpu, driver, torch, ...
        results: benchmark name -> Result, current versions of the benchmarks only.
        rounds: finished rounds; 0 when there is no journal.
        verified: comparisons with the reference made before the figures, over all rounds.
        started, finished: when the first and the last round began, or "".
        states: what the GPU reported around and during the rounds, as ranges.
        lost: rounds that did not finish, "reason: message".
    """

    commit: Commit
    machine: str
    setup: tuple[tuple[str, str], ...]
    facts: dict[str, str]
    results: dict[str, Result]
    rounds: int = 0
    verified: int = 0
    started: str = ""
    finished: str = ""
    states: dict[str, str] = dataclasses.field(default_factory=dict)
    lost: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """The machine as a caption names it."""
        gpu = self.facts.get("gpu", "")
        return f"{gpu} ({self.machine})" if gpu else f"{self.machine} (no GPU)"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A commit without figures, and why."""

    commit: Commit
    machine: str
    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class History:
    """All results, commits in git order.

    Attributes:
        benchmarks: name -> Benchmark.
        measurements: oldest commit first, on the configured branches only.
        refusals: commits that have no figures, oldest first.
        elsewhere: measurements of commits that are not on the configured branches.
        machines: machine name -> the facts in its machine file.
        problems: files that could not be used, and why.
    """

    benchmarks: dict[str, Benchmark]
    measurements: list[Measurement]
    refusals: list[Refusal]
    elsewhere: list[Measurement]
    machines: dict[str, dict[str, str]]
    problems: list[str]

    def on(self, machine: str, benchmark: str) -> list[Measurement]:
        """Measurements of ``benchmark`` on ``machine`` that have a figure, oldest commit first."""
        return [
            measurement
            for measurement in self.measurements
            if measurement.machine == machine
            and benchmark in measurement.results
            and measurement.results[benchmark].figures
        ]

    def machines_with(self, benchmarks: Iterable[str]) -> list[str]:
        """Machines with a figure of any of ``benchmarks``, the one with the newest commit first."""
        names = list(benchmarks)
        newest = {}
        for machine in self.machines:
            found = [m for name in names for m in self.on(machine, name)]
            if found:
                newest[machine] = max((m.commit.order, m.started) for m in found)
        return sorted(sorted(newest), key=lambda machine: newest[machine], reverse=True)


def load(results_dir: Path, repo: Path, branches: Sequence[str | None]) -> History:
    """Read everything below ``results_dir``; commits are ordered by the git history of ``repo``."""
    problems: list[str] = []
    benchmarks = _load_benchmarks(results_dir, problems)
    machines = _load_machines(results_dir, problems)
    known = _git_history(repo, branches, problems) if machines else {}
    measurements: list[Measurement] = []
    refusals: list[Refusal] = []
    seen = set()
    paths = sorted((Path(root) / name, machine) for root, name, machine in iter_results_paths(str(results_dir)))
    for path, machine in paths:
        log = path.with_name(path.name.removesuffix(".json") + journal.SUFFIX)
        seen.add(log)
        try:
            measured = _measurement(path, machine, log, benchmarks, known)
        # A result file is outside data: whatever is wrong with it, the others are still to be shown.
        except (
            util.UserError,
            ArithmeticError,
            AttributeError,
            LookupError,
            OSError,
            TypeError,
            ValueError,
        ) as e:
            problems.append(f"{_relative(path, results_dir)}: {type(e).__name__}: {e}")
            continue
        if isinstance(measured, Refusal):
            refusals.append(measured)
        else:
            measurements.append(measured)
    for log in sorted(set(results_dir.glob(f"*/*{journal.SUFFIX}")) - seen):
        try:
            refusal = _refusal(list(journal.read(log)), journal.standing(log), log.parent.name, known)
        except (OSError, ValueError) as error:
            problems.append(f"{_relative(log, results_dir)}: {error}")
            continue
        if refusal is not None:
            refusals.append(refusal)
        else:
            problems.append(f"{_relative(log, results_dir)}: a journal without its result file")
    measurements.sort(key=lambda m: (m.commit.order, m.started, m.machine, m.setup))
    refusals.sort(key=lambda r: (r.commit.order, r.machine))
    # Without any git history there is no branch to tell the history of, and dates have to do.
    has_branch = any(m.commit.on_branch for m in measurements)
    return History(
        benchmarks=benchmarks,
        measurements=[m for m in measurements if m.commit.on_branch or not has_branch],
        refusals=refusals,
        elsewhere=[m for m in measurements if has_branch and not m.commit.on_branch],
        machines=machines,
        problems=problems,
    )


def label(value: str) -> str:
    """A parameter value as a reader writes it: asv stores the repr.

    >>> label("'DeepSeek-V3 (256, 8)'"), label("128")
    ('DeepSeek-V3 (256, 8)', '128')
    """
    if value[:1] in {"'", '"'}:
        try:
            plain = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            return value
        if isinstance(plain, str):
            return plain
    return value


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _load_benchmarks(results_dir: Path, problems: list[str]) -> dict[str, Benchmark]:
    path = Path(Benchmarks.get_benchmark_file_path(str(results_dir)))
    if not path.exists():
        return {}
    benchmarks = {}
    try:
        for name, entry in util.load_json(str(path), Benchmarks.api_version).items():
            params = [list(map(str, values)) for values in entry["params"]]
            benchmarks[name] = Benchmark(
                name=name,
                unit=str(entry.get("unit", "unit")),
                version=str(entry.get("version", "")),
                param_names=tuple(map(str, entry["param_names"])),
                params=tuple(tuple(map(label, values)) for values in params),
                keys=tuple(project.key(name, combination) for combination in project.combinations(params)),
            )
    except (util.UserError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        problems.append(f"{path.name}: {type(error).__name__}: {error}")
    return benchmarks


def _load_machines(results_dir: Path, problems: list[str]) -> dict[str, dict[str, str]]:
    machines = {}
    for path in sorted(results_dir.glob("*/machine.json")):
        try:
            entry = util.load_json(str(path))
            machines[str(entry["machine"])] = {
                key: str(value)
                for key, value in entry.items()
                if key not in {"machine", "version"} and value not in ("", None)
            }
        except (util.UserError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            problems.append(f"{_relative(path, results_dir)}: {type(error).__name__}: {error}")
    return machines


def _git_history(repo: Path, branches: Sequence[str | None], problems: list[str]) -> dict[str, Commit]:
    names = [branch for branch in branches if branch is not None] or ["HEAD"]
    command = ["git", "-C", str(repo), "log", "--first-parent", "--topo-order", "--reverse"]
    command += ["--format=%H%x09%cs%x09%s", *names, "--"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        problems.append(f"git history: {error}")
        return {}
    if done.returncode != 0:
        problems.append(f"git history of {', '.join(names)}: {done.stderr.strip() or 'git failed'}")
        return {}
    commits = {}
    for position, line in enumerate(done.stdout.splitlines()):
        hash_, date, subject = line.split("\t", 2)
        commits[hash_] = Commit(hash_, (position, date), date, subject, on_branch=True)
    return commits


def _unknown_commit(hash_: str, date: str) -> Commit:
    return Commit(hash_, (-1, date), date[:10], "", on_branch=False)


def _measurement(
    path: Path, machine: str, log: Path, benchmarks: dict[str, Benchmark], known: dict[str, Commit]
) -> Measurement | Refusal:
    raw = Results.load(str(path), machine_name=machine)
    rounds, standing = list(journal.read(log)), journal.standing(log)
    refusal = _refusal(rounds, standing, machine, known)
    if refusal is not None:
        return refusal
    moment = datetime.datetime.fromtimestamp(raw.date / 1000, datetime.UTC).isoformat()
    params = {str(key): str(value) for key, value in raw.params.items() if value is not None}
    facts = {key: value for key, value in params.items() if key not in _UNREMARKABLE and value}
    for entry in standing:
        facts.update({key: value for key, value in entry.facts.items() if value})
    return Measurement(
        commit=known.get(raw.commit_hash) or _unknown_commit(str(raw.commit_hash), moment),
        machine=machine,
        setup=(*sorted(params.items()), ("environment", str(raw.env_name))),
        facts=facts,
        results={
            name: _result(raw, benchmarks[name], standing)
            for name in raw.get_all_result_keys()
            if name in benchmarks and str(raw.benchmark_version.get(name)) in {benchmarks[name].version, "None"}
        },
        rounds=len(standing),
        verified=sum(entry.verified for entry in standing),
        started=min((entry.started_at for entry in standing), default=""),
        finished=max((entry.started_at for entry in standing), default=""),
        states=_states(standing),
        lost=[f"{entry.failed}: {entry.message}".rstrip(": ") for entry in rounds if entry.failed is not None],
    )


def _refusal(
    rounds: list[journal.Round], standing: list[journal.Round], machine: str, known: dict[str, Commit]
) -> Refusal | None:
    failed = [entry for entry in rounds if entry.failed is not None]
    if standing or not failed:
        return None
    # A wrong result is the reason even when something else stopped a later attempt.
    last = next((entry for entry in reversed(failed) if entry.failed == "verification"), failed[-1])
    commit = known.get(last.commit) or _unknown_commit(last.commit, last.started_at)
    return Refusal(commit, machine, str(last.failed), last.message)


def _states(rounds: list[journal.Round]) -> dict[str, str]:
    """What the GPU reported around and during the rounds: a range for numbers, the values otherwise."""
    seen: dict[str, set[Any]] = {}
    for state in itertools.chain.from_iterable(entry.device_states for entry in rounds):
        for key, value in dataclasses.asdict(state).items() if state else ():
            seen.setdefault(key, set()).update(value if isinstance(value, list) else {value} - {None})
    return {key: _range(values) for key, values in seen.items() if values}


def _range(values: set[Any]) -> str:
    if not all(isinstance(value, int | float) for value in values):
        return ", ".join(sorted(values))
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _result(raw: Results, benchmark: Benchmark, rounds: list[journal.Round]) -> Result:
    name = benchmark.name
    raw_params = raw.get_result_params(name)
    values = raw.get_result_value(name, raw_params)
    stats = raw.get_result_stats(name, raw_params)
    samples = raw.get_result_samples(name, raw_params)
    reasons = _reasons(name, rounds)
    figures: dict[Labels, Figure] = {}
    missing: dict[Labels, str] = {}
    keys = [tuple(label(str(value)) for value in combination) for combination in itertools.product(*raw_params)]
    for key, value, stat, sample in zip(keys, values, stats, samples, strict=True):
        if _is_number(value):
            figures[key] = _figure(float(value), stat or {}, sample)
        else:
            default = "not applicable" if isinstance(value, float) else "failed"
            missing[key] = reasons.get(key, default)
    wanted = benchmark.combinations()
    return Result(
        figures={key: figures[key] for key in wanted if key in figures},
        missing={key: missing.get(key) or reasons.get(key, "not measured") for key in wanted if key not in figures},
    )


def _reasons(name: str, rounds: list[journal.Round]) -> dict[Labels, str]:
    """Why figures are missing, as the newest round tells it."""
    reasons: dict[Labels, str] = {}
    for entry in rounds:
        figures = entry.figures.get(name)
        if figures is None:
            continue
        keys = [tuple(map(label, combination)) for combination in itertools.product(*figures.params)]
        for reason, indices in figures.skipped.items():
            reasons.update((keys[index], reason) for index in indices)
        for index, message in figures.errors.items():
            reasons[keys[int(index)]] = f"failed: {gist(message)}"
    return reasons


def _figure(value: float, stat: dict[str, Any], samples: Any) -> Figure:
    numbers = tuple(float(x) for x in samples if _is_number(x)) if isinstance(samples, list) else ()
    rounds = len(numbers) or int(stat.get("repeat") or 0)
    quartiles: list[Any] = [stat.get("q_25"), stat.get("q_75")]
    if not all(map(_is_number, quartiles)):
        if not numbers:
            return Figure(value, rounds=rounds)
        quartiles = [_quantile(sorted(numbers), fraction) for fraction in (0.25, 0.75)]
    return Figure(value, float(quartiles[0]), float(quartiles[1]), rounds, numbers)


def _quantile(numbers: list[float], fraction: float) -> float:
    position = fraction * (len(numbers) - 1)
    below = math.floor(position)
    above = min(below + 1, len(numbers) - 1)
    return numbers[below] + (numbers[above] - numbers[below]) * (position - below)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

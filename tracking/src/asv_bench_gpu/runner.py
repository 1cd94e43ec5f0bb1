"""Measure commits round by round, and lose nothing.

For every round and commit (order reversed every other round, so that drift of the machine does not favour one): build
and install the commit into the environment, run `asv_bench_gpu.worker` in a fresh process, append what it found to the
journal, and derive asv's result file from the journal. What is already in the journal is not measured again.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asv import util
from asv.results import Results, get_filename
from asv.runner import BenchmarkResult

from asv_bench_gpu import journal, project
from asv_bench_gpu.journal import Figures, Round
from asv_bench_gpu.project import Project


@dataclasses.dataclass
class Summary:
    """What `run` did.

    Attributes:
        machine: name under which results are kept.
        measured: rounds measured now, as (commit, round).
        kept: rounds that were already in the journal and complete.
        failures: (commit, round, kind, message) of everything that went wrong.
        skipped: benchmark -> why the machine cannot run it.
        results: asv result files that were written.
    """

    machine: str
    measured: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    kept: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    failures: list[tuple[str, int, str, str]] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    results: list[str] = dataclasses.field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if everything asked for is recorded, else 2."""
        return 2 if self.failures or not (self.measured or self.kept) else 0


def run(
    config: Path,
    commits: str = "HEAD",
    *,
    machine: str | None = None,
    rounds: int = 10,
    bench: str | None = None,
    timeout_seconds: float = 900.0,
) -> Summary:
    """Measure ``commits`` with the suites of the working tree.

    Args:
        config: asv.conf.json of the project.
        commits: commits and ranges ``A..B`` (without A, as git has it), separated by blanks.
        machine: name of the machine in the results; by default the GPU's name, or the CPU architecture's.
        rounds: fresh processes per commit; benchmarks that ask for fewer get fewer.
        bench: regular expression; only matching benchmarks, spelt ``module.Class.method(parameters)``.
        timeout_seconds: limit for one process.

    Raises:
        project.UsageError: no such commit, benchmark or file; or another command is measuring in this checkout.
    """
    with project.locked(config) as conf:
        hashes = project.resolve(conf, commits)
        opened = project.prepare(conf, bench=bench, machine=machine, timeout_seconds=timeout_seconds)
        session = _Session(opened, rounds)
        session.run(hashes)
        return session.summary


class _Session:
    """The state of one `run`."""

    def __init__(self, opened: Project, rounds: int):
        self.project = opened
        self.rounds = rounds
        self.summary = Summary(opened.machine)

    def run(self, hashes: list[str]) -> None:
        """Every missing round of every commit."""
        for commit in hashes:
            self._derive(commit)  # the run before may have ended between the journal and the result file
        total = self.rounds * len(hashes)
        durations: list[float] = []
        given_up: set[str] = set()
        for done, (number, commit) in enumerate(self._plan(hashes)):
            label = f"{commit[:8]} round {number}/{self.rounds}"
            if commit in given_up or not self._asked_for(number):
                continue
            selected = self._missing(commit, number)
            if not selected:
                self.summary.kept.append((commit, number))
                project.say(f"{label}: already recorded")
                continue
            left = (total - done) * sum(durations) / len(durations) if durations else None
            started = time.monotonic()
            entry = self.project.measure(commit, number, selected, label, left)
            durations.append(time.monotonic() - started)
            journal.append(self._journal(commit), entry)
            self._derive(commit)
            if entry.failed:
                given_up.add(commit)
            self._account(entry, label)
        for commit in hashes:
            path = Path(self.project.conf.results_dir, self._filename(commit))
            if path.exists():
                self.summary.results.append(str(path))

    def _plan(self, hashes: list[str]) -> Iterator[tuple[int, str]]:
        for number in range(1, self.rounds + 1):
            yield from ((number, commit) for commit in (hashes if number % 2 else hashes[::-1]))

    def _asked_for(self, number: int) -> dict[str, Any]:
        """The benchmarks that want this many rounds."""
        benchmarks = self.project.benchmarks.items()
        return {name: benchmark for name, benchmark in benchmarks if number <= benchmark.get("rounds", 1)}

    def _missing(self, commit: str, number: int) -> dict[str, list[int]]:
        """What this round still has to measure: benchmark -> indices of parameter combinations."""
        recorded = [entry.figures for entry in journal.standing(self._journal(commit))]
        missing = {}
        for name, benchmark in self._asked_for(number).items():
            combinations = project.combinations(benchmark["params"])
            have = dict.fromkeys(combinations, 0)
            for figures in (entry[name] for entry in recorded if name in entry):
                if figures.version != benchmark["version"]:
                    continue
                skipped = figures.skipped_indices
                for index, combination in enumerate(project.combinations(figures.params)):
                    if combination in have and (figures.values[index] is not None or index in skipped):
                        have[combination] += 1
            if lacking := [index for index in self.project.selected(name) if have[combinations[index]] < number]:
                missing[name] = lacking
        return missing

    def _account(self, entry: Round, label: str) -> None:
        """Tell the reader, and remember, how a round ended."""
        summary = self.summary
        if entry.failed:
            summary.failures.append((entry.commit, entry.round, entry.failed, entry.message))
            project.say(f"{label}: FAILED ({entry.failed}); no figures\n{entry.message.strip()}")
            return
        summary.measured.append((entry.commit, entry.round))
        count = sum(value is not None for figures in entry.figures.values() for value in figures.values)
        for name, figures in entry.figures.items():
            for reason in figures.skipped:
                if name not in summary.skipped:
                    summary.skipped[name] = reason
                    project.say(f"{name}: not measured here: {reason}")
            for index, message in figures.errors.items():
                where = project.key(name, project.combinations(figures.params)[int(index)])
                summary.failures.append((entry.commit, entry.round, "benchmark", f"{where}\n{message}"))
                project.say(f"{label}: FAILED {where}\n{message.strip()}")
        project.say(f"{label}: {count} figures after {entry.verified} comparisons, {entry.seconds:.1f} s")

    def _filename(self, commit: str) -> str:
        return str(get_filename(self.summary.machine, commit, self.project.environment.name))

    def _journal(self, commit: str) -> Path:
        return Path(self.project.conf.results_dir, self._filename(commit)).with_suffix(journal.SUFFIX)

    def _derive(self, commit: str) -> None:
        """Write asv's result file from the journal; without standing figures there is none."""
        path = Path(self.project.conf.results_dir, self._filename(commit))
        rounds = project.recorded(journal.standing, self._journal(commit))
        if not rounds:
            path.unlink(missing_ok=True)
            return
        machine = util.load_json(str(path.with_name("machine.json")))
        machine.pop("version", None)
        environment = self.project.environment
        params = {**machine, **environment.requirements, "python": environment.python}
        results = Results(
            params,
            environment.requirements,
            commit,
            self.project.repo.get_date(commit),
            environment.python,
            environment.name,
            environment.env_vars,
        )
        for name in dict.fromkeys(name for entry in rounds for name in entry.figures):
            benchmark = self.project.benchmarks._all_benchmarks.get(name)
            of_version = [
                (entry, entry.figures[name])
                for entry in rounds
                if benchmark and name in entry.figures and entry.figures[name].version == benchmark["version"]
            ]
            if of_version:
                _add(results, benchmark, of_version)
        with journal.replacing(path) as temporary:
            results._filename = temporary.name
            results.save(str(temporary.parent))


def _add(results: Any, benchmark: dict[str, Any], rounds: list[tuple[Round, Figures]]) -> None:
    """Add a benchmark to asv's results: of each combination all values, or why there is none in any round.

    Combinations that the suite has dropped since are left out.
    """
    combinations = project.combinations(benchmark["params"])
    values: dict[tuple[str, ...], list[float]] = {combination: [] for combination in combinations}
    skipped: set[tuple[str, ...]] = set()
    number = None
    for _, figures in rounds:
        number = figures.number or number
        skips = figures.skipped_indices
        for index, combination in enumerate(project.combinations(figures.params)):
            value = figures.values[index]
            if combination in values and value is not None:
                values[combination].append(value)
            elif index in skips:
                skipped.add(combination)
    sampled = [number is not None and bool(values[combination]) for combination in combinations]
    result = BenchmarkResult(
        # asv's values: NaN for skipped, None for failed or not selected.
        result=[
            values[combination][-1] if values[combination] else math.nan if combination in skipped else None
            for combination in combinations
        ],
        samples=[values[combination] if has else None for combination, has in zip(combinations, sampled, strict=True)],
        number=[number if has else None for has in sampled],
        errcode=1 if any(figures.errors for _, figures in rounds) else 0,
        stderr="\n".join(message for _, figures in rounds for message in figures.errors.values()),
        profile=None,
    )
    last, _ = rounds[-1]
    started_at = datetime.datetime.fromisoformat(last.started_at)
    results.add_result(benchmark, result, started_at=started_at, duration=last.seconds, record_samples=True)

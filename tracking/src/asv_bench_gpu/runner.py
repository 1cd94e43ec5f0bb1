"""Measure commits round by round, and lose nothing.

For every round and commit (order reversed every other round, so that drift of the machine does not favour one): build
and install the commit into the environment, run `asv_bench_gpu.worker` in a fresh process, append what it found to the
journal, and derive asv's result file from the journal. What is already in the journal is not measured again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asv import util
from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.environment import EnvironmentUnavailable, get_environments
from asv.plugin_manager import plugin_manager
from asv.repo import NoSuchNameError, get_repo
from asv.results import Results, get_filename
from asv.runner import BENCHMARK_RUN_SCRIPT, BenchmarkResult

from asv_bench_gpu import journal
from asv_bench_gpu.journal import Figures, Outcome, Round


class UsageError(Exception):
    """The command cannot be carried out as asked; the message says why and what was expected."""


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
        UsageError: no such commit, benchmark or file; or another run is under way in this checkout.
    """
    with contextlib.redirect_stdout(sys.stderr), _project(config) as conf:
        repo = get_repo(conf)
        hashes = _resolve(conf, commits)
        benchmarks = _discover(conf, bench)
        facts = _facts()
        name = machine or _machine_name(facts)
        environment = _environment(conf)
        _save_machine(conf, name, facts)
        session = _Session(conf, repo, environment, benchmarks, name, rounds, timeout_seconds)
        session.run(hashes)
        return session.summary


class _Session:
    """The state of one `run`."""

    def __init__(
        self,
        conf: Any,
        repo: Any,
        environment: Any,
        benchmarks: Any,
        machine: str,
        rounds: int,
        timeout_seconds: float,
    ):
        self.conf = conf
        self.repo = repo
        self.environment = environment
        self.benchmarks = benchmarks
        self.rounds = rounds
        self.timeout_seconds = timeout_seconds
        self.summary = Summary(machine)

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
                _say(f"{label}: already recorded")
                continue
            left = (total - done) * sum(durations) / len(durations) if durations else None
            started = time.monotonic()
            entry = self._round(commit, number, selected, label, left)
            durations.append(time.monotonic() - started)
            journal.append(self._journal(commit), entry)
            self._derive(commit)
            if entry.failed:
                given_up.add(commit)
            self._account(entry, label)
        for commit in hashes:
            path = Path(self.conf.results_dir, self._filename(commit))
            if path.exists():
                self.summary.results.append(str(path))

    def _plan(self, hashes: list[str]) -> Iterator[tuple[int, str]]:
        for number in range(1, self.rounds + 1):
            yield from ((number, commit) for commit in (hashes if number % 2 else hashes[::-1]))

    def _round(self, commit: str, number: int, selected: dict[str, list[int]], label: str, left: float | None) -> Round:
        """Build, verify and measure; whatever goes wrong is an entry too."""
        entry = Round(commit, number, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), 0.0)
        started = time.monotonic()
        outcome = self._outcome(commit, selected, label, left)
        return dataclasses.replace(entry, seconds=round(time.monotonic() - started, 3), **vars(outcome))

    def _outcome(self, commit: str, selected: dict[str, list[int]], label: str, left: float | None) -> Outcome:
        try:
            self.environment.install_project(self.conf, self.repo, commit)
        except util.ProcessError as error:
            return Outcome(failed="build", message=f"{error}\n{error.stdout}{error.stderr}")
        except util.UserError as error:
            return Outcome(failed="build", message=str(error))
        try:
            return self._work(selected, label, left)
        except subprocess.TimeoutExpired:
            return Outcome(failed="timeout", message=f"no result within {self.timeout_seconds:g} s")
        except subprocess.CalledProcessError as error:
            message = f"the measuring process ended with code {error.returncode}\n{error.output}"
            return Outcome(failed="crash", message=message)

    def _work(self, selected: dict[str, list[int]], label: str, left: float | None) -> Outcome:
        """Run the worker.

        Raises:
            subprocess.TimeoutExpired, subprocess.CalledProcessError: with the end of what it printed.
        """
        with tempfile.TemporaryDirectory(prefix="asv-gpu-") as folder:
            request, outcome, log = (Path(folder, name) for name in ("request.json", "outcome.json", "log"))
            benchmark_dir = os.path.abspath(self.conf.benchmark_dir)
            request.write_text(
                json.dumps({"benchmark_dir": benchmark_dir, "selected": selected, "outcome": str(outcome)})
            )
            read_end, write_end = os.pipe()
            command = [
                self.environment.find_executable("python"),
                "-m",
                "asv_bench_gpu.worker",
                request,
                str(write_end),
            ]
            # The suite sees the installed commit, never the working tree's own package.
            environ = {**os.environ, **self.environment._global_env_vars}
            environ.pop("PYTHONPATH", None)
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, cwd=folder, env=environ, stdout=output, stderr=output, pass_fds=[write_end],
                    start_new_session=True,
                )  # fmt: skip
            os.close(write_end)
            reader = threading.Thread(target=_show_progress, args=(read_end, label, left), daemon=True)
            reader.start()
            try:
                process.wait(self.timeout_seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                reader.join(1)
            if process.returncode or not outcome.exists():
                tail = log.read_text(errors="replace")[-4000:]
                raise subprocess.CalledProcessError(process.returncode, command, tail)
            loaded = json.loads(outcome.read_text())
            figures = {name: Figures(**values) for name, values in loaded.pop("figures").items()}
            return Outcome(figures=figures, **loaded)

    def _asked_for(self, number: int) -> dict[str, Any]:
        """The benchmarks that want this many rounds."""
        return {name: benchmark for name, benchmark in self.benchmarks.items() if number <= benchmark.get("rounds", 1)}

    def _missing(self, commit: str, number: int) -> dict[str, list[int]]:
        """What this round still has to measure: benchmark -> indices of parameter combinations."""
        recorded = [entry.figures for entry in journal.standing(self._journal(commit))]
        missing = {}
        for name, benchmark in self._asked_for(number).items():
            combinations = _combinations(benchmark["params"])
            have = dict.fromkeys(combinations, 0)
            for figures in (entry[name] for entry in recorded if name in entry):
                if figures.version != benchmark["version"]:
                    continue
                skipped = figures.skipped_indices
                for index, combination in enumerate(_combinations(figures.params)):
                    if combination in have and (figures.values[index] is not None or index in skipped):
                        have[combination] += 1
            wanted = self.benchmarks.benchmark_selection.get(name)
            indices = range(len(combinations)) if wanted is None else wanted
            if lacking := [index for index in indices if have[combinations[index]] < number]:
                missing[name] = lacking
        return missing

    def _account(self, entry: Round, label: str) -> None:
        """Tell the reader, and remember, how a round ended."""
        summary = self.summary
        if entry.failed:
            summary.failures.append((entry.commit, entry.round, entry.failed, entry.message))
            _say(f"{label}: FAILED ({entry.failed}); no figures\n{entry.message.strip()}")
            return
        summary.measured.append((entry.commit, entry.round))
        count = sum(value is not None for figures in entry.figures.values() for value in figures.values)
        for name, figures in entry.figures.items():
            for reason in figures.skipped:
                if name not in summary.skipped:
                    summary.skipped[name] = reason
                    _say(f"{name}: not measured here: {reason}")
            for index, message in figures.errors.items():
                where = f"{name}({', '.join(_combinations(figures.params)[int(index)])})"
                summary.failures.append((entry.commit, entry.round, "benchmark", f"{where}\n{message}"))
                _say(f"{label}: FAILED {where}\n{message.strip()}")
        _say(f"{label}: {count} figures after {entry.verified} comparisons, {entry.seconds:.1f} s")

    def _filename(self, commit: str) -> str:
        return str(get_filename(self.summary.machine, commit, self.environment.name))

    def _journal(self, commit: str) -> Path:
        return Path(self.conf.results_dir, self._filename(commit)).with_suffix(journal.SUFFIX)

    def _derive(self, commit: str) -> None:
        """Write asv's result file from the journal; without standing figures there is none."""
        path = Path(self.conf.results_dir, self._filename(commit))
        try:
            rounds = journal.standing(self._journal(commit))
        except ValueError as error:
            raise UsageError(f"damaged record: {error}; restore the file, or delete it to measure again") from error
        if not rounds:
            path.unlink(missing_ok=True)
            return
        machine = util.load_json(str(path.with_name("machine.json")))
        machine.pop("version", None)
        params = {**machine, **self.environment.requirements, "python": self.environment.python}
        results = Results(
            params,
            self.environment.requirements,
            commit,
            self.repo.get_date(commit),
            self.environment.python,
            self.environment.name,
            self.environment.env_vars,
        )
        for name in dict.fromkeys(name for entry in rounds for name in entry.figures):
            benchmark = self.benchmarks._all_benchmarks.get(name)
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
    combinations = _combinations(benchmark["params"])
    values: dict[tuple[str, ...], list[float]] = {combination: [] for combination in combinations}
    skipped: set[tuple[str, ...]] = set()
    number = None
    for _, figures in rounds:
        number = figures.number or number
        skips = figures.skipped_indices
        for index, combination in enumerate(_combinations(figures.params)):
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


@contextlib.contextmanager
def _project(config: Path) -> Iterator[Any]:
    """asv's configuration, in the project's folder (asv's paths are relative to it), held by one run at a time."""
    if not config.is_file():
        raise UsageError(f"--config: expected a file, got {config}")
    before = os.getcwd()
    os.chdir(config.resolve().parent)
    try:
        conf = _load(config)
        Path(conf.env_dir).mkdir(parents=True, exist_ok=True)
        with Path(conf.env_dir, "asv-gpu.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError("another asv-gpu run is under way in this checkout; wait for it to end") from None
            yield conf
    except (util.UserError, NoSuchNameError, EnvironmentUnavailable) as error:
        raise UsageError(str(error)) from error
    finally:
        os.chdir(before)


def _load(config: Path) -> Any:
    """asv's configuration, with its plugins imported."""
    try:
        conf = Config.load(config.name)
        for plugin in conf.plugins:
            plugin_manager.import_plugin(plugin)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{config}: {error}") from error
    return conf


def _environment(conf: Any) -> Any:
    """The one environment that the configuration describes, created if need be."""
    environments = list(get_environments(conf, None, verbose=True))
    if len(environments) != 1:
        described = f"environment_type {conf.environment_type!r}, pythons {conf.pythons}, matrix {conf.matrix}"
        raise UsageError(f"expected one environment, got {len(environments)} from {described}")
    environments[0].create()
    return environments[0]


def _resolve(conf: Any, commits: str) -> list[str]:
    """Full hashes; each part oldest first, none twice."""
    hashes: list[str] = []
    for part in commits.split() or [commits]:
        arguments = ["--reverse", part] if ".." in part else ["--max-count=1", part]
        command = ["git", "-C", conf.repo, "rev-list", *arguments, "--"]
        listing = subprocess.run(command, capture_output=True, text=True)
        if listing.returncode:
            raise UsageError(f"COMMITS: expected a commit or a range A..B, got {part!r}: {listing.stderr.strip()}")
        if not listing.stdout:
            raise UsageError(f"COMMITS: {part!r} is an empty range")
        hashes += [commit for commit in listing.stdout.split() if commit not in hashes]
    return hashes


def _discover(conf: Any, bench: str | None) -> Any:
    """The suite's benchmarks, as asv describes them; also saved where asv's own commands expect them."""
    with tempfile.TemporaryDirectory(prefix="asv-gpu-") as folder:
        listing = Path(folder, "benchmarks.json")
        command = [sys.executable, BENCHMARK_RUN_SCRIPT, "discover", os.path.abspath(conf.benchmark_dir), listing]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if found.returncode:
            raise UsageError(f"the suite in {conf.benchmark_dir} cannot be imported:\n{found.stdout}{found.stderr}")
        described = json.loads(listing.read_text())
    try:
        benchmarks = Benchmarks(conf, described, regex=bench)
    except re.error as error:
        raise UsageError(f"--bench: expected a regular expression, got {bench!r}: {error}") from error
    if not benchmarks:
        raise UsageError(f"--bench: no benchmark matches {bench!r}")
    path = Path(Benchmarks.get_benchmark_file_path(conf.results_dir))
    with journal.replacing(path) as temporary:
        util.write_json(str(temporary), benchmarks._all_benchmarks, Benchmarks.api_version)
    return benchmarks


def _facts() -> dict[str, str]:
    """Facts about this machine, asked in a process of its own: CUDA stays untouched in this one."""
    command = [sys.executable, "-c", "import json; from asv_bench_gpu import device; print(json.dumps(device.facts()))"]
    facts: dict[str, str] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return facts


def _machine_name(facts: dict[str, str]) -> str:
    name = facts.get("gpu") or f"cpu-{platform.machine()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _save_machine(conf: Any, name: str, facts: dict[str, str]) -> None:
    """asv's machine.json: what identifies the machine, without what changes under it (RAM, kernel version)."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--machine: expected letters, digits, '.', '_' and '-', got {name!r}")
    cpu = {"arch": platform.machine(), "cpu": util.get_cpu_info(), "num_cpu": str(os.cpu_count())}
    identity = {"machine": name, "os": platform.system(), **cpu, "ram": "", "gpu": facts.get("gpu", "")}
    path = Path(conf.results_dir, name, "machine.json")
    if path.exists() and (recorded := util.load_json(str(path)).get("gpu", "")) != identity["gpu"]:
        raise UsageError(
            f"--machine: {name!r} has results of GPU {recorded!r}, but torch sees {identity['gpu']!r} here; "
            "mend the machine, or give it another name"
        )
    with journal.replacing(path) as temporary:
        util.write_json(str(temporary), identity, 1)


def _combinations(params: list[list[str]]) -> list[tuple[str, ...]]:
    return list(itertools.product(*params))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _show_progress(pipe: int, label: str, left: float | None) -> None:
    """Show the worker's progress on a terminal, one line rewritten; a log gets one line per round from the caller."""
    until = "" if left is None else f", about {datetime.timedelta(seconds=round(left))} left in all"
    terminal = sys.stderr.isatty()
    with os.fdopen(pipe) as lines:
        for line in lines:
            done, total, what = json.loads(line)
            if terminal:
                print(f"\r\033[K{label}{until}: {done}/{total} {what}", end="", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)

"""A project under measurement: asv's configuration, the environment, and a commit's round in a fresh process.

What `asv_bench_gpu.runner` and `asv_bench_gpu.compare` share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from asv import util
from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.environment import EnvironmentUnavailable, get_environments
from asv.plugin_manager import plugin_manager
from asv.repo import NoSuchNameError, get_repo
from asv.runner import BENCHMARK_RUN_SCRIPT

from asv_bench_gpu import journal, typed
from asv_bench_gpu.journal import AnyLine, Outcome, Round


class UsageError(Exception):
    """The command cannot be carried out as asked; the message says why and what was expected."""


@dataclasses.dataclass(frozen=True)
class Project:
    """What it takes to measure commits; made by `prepare`.

    Attributes:
        conf: asv's configuration.
        repo: asv's view of the repository.
        environment: the asv environment into which commits are installed.
        benchmarks: asv's description of those selected.
        machine: name under which results are kept.
        timeout_seconds: limit for one process.
        gpu: name of the machine's GPU, empty without one.
    """

    conf: Any
    repo: Any
    environment: Any
    benchmarks: Any
    machine: str
    timeout_seconds: float
    gpu: str = ""

    def selected(self, benchmark: str) -> Sequence[int]:
        """Indices of the parameter combinations to be measured."""
        wanted: list[int] | None = self.benchmarks.benchmark_selection[benchmark]
        return range(1) if wanted is None else wanted

    def places(self) -> dict[str, tuple[str, int]]:
        """`key` of each combination to be measured -> benchmark and index."""
        return {
            key(name, combinations(benchmark["params"])[index]): (name, index)
            for name, benchmark in self.benchmarks.items()
            for index in self.selected(name)
        }

    def measure(
        self,
        commit: str,
        number: int,
        selected: dict[str, list[int]],
        label: str,
        left: float | None = None,
        slowdowns_percent: Sequence[int] = (),
    ) -> Round:
        """Build, verify and measure one round of a commit; whatever goes wrong is an entry too.

        Args:
            commit: full hash.
            number: of the round.
            selected: benchmark -> indices of parameter combinations.
            label: for the line of progress.
            left: seconds until everything asked for is measured, if anybody knows.
            slowdowns_percent: as for `asv_bench_gpu.worker.measure`.
        """
        request = {"selected": selected, "slowdowns_percent": list(slowdowns_percent)}
        entry = Round(commit, number, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), 0.0)
        started = time.monotonic()
        outcome = self._outcome(commit, request, label, left)
        return dataclasses.replace(entry, seconds=round(time.monotonic() - started, 3), **vars(outcome))

    def _outcome(self, commit: str, request: dict[str, Any], label: str, left: float | None) -> Outcome:
        try:
            self.environment.install_project(self.conf, self.repo, commit)
        except util.ProcessError as error:
            return Outcome(failed="build", message=f"{error}\n{error.stdout}{error.stderr}")
        except util.UserError as error:
            return Outcome(failed="build", message=str(error))
        try:
            outcome = self._work(request, label, left)
        except subprocess.TimeoutExpired:
            return Outcome(failed="timeout", message=f"no result within {self.timeout_seconds:g} s")
        except subprocess.CalledProcessError as error:
            message = f"the measuring process ended with code {error.returncode}\n{error.output}"
            return Outcome(failed="crash", message=message)
        seen = outcome.facts.get("gpu", "")
        if seen != self.gpu:  # what such a process skips or fails says nothing of the commit
            message = f"expected the GPU {self.gpu!r}, but torch saw {seen!r} in the measuring process"
            return Outcome(facts=outcome.facts, failed="device", message=message)
        return outcome

    def _work(self, asked: dict[str, Any], label: str, left: float | None) -> Outcome:
        """Run the worker.

        Raises:
            subprocess.TimeoutExpired, subprocess.CalledProcessError: with the end of what it printed.
        """
        with tempfile.TemporaryDirectory(prefix="asv-gpu-") as folder:
            request, outcome, log = (Path(folder, name) for name in ("request.json", "outcome.json", "log"))
            benchmark_dir = os.path.abspath(self.conf.benchmark_dir)
            request.write_text(json.dumps({"benchmark_dir": benchmark_dir, **asked, "outcome": str(outcome)}))
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
            return typed.build(Outcome, json.loads(outcome.read_text()))


@contextlib.contextmanager
def locked(config: Path) -> Iterator[Any]:
    """Yield asv's configuration, in the project's folder, to which asv's paths are relative; one command at a time.

    What asv, git and pip print goes to stderr.

    Raises:
        UsageError: no such file, or another command holds the project; or what is wrong with it shows inside.
    """
    if not config.is_file():
        raise UsageError(f"--config: expected a file, got {config}")
    before = os.getcwd()
    os.chdir(config.resolve().parent)
    try:
        conf = _load(config)
        Path(conf.env_dir).mkdir(parents=True, exist_ok=True)
        with Path(conf.env_dir, "asv-gpu.lock").open("w") as lock, contextlib.redirect_stdout(sys.stderr):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError("another asv-gpu is measuring in this checkout; wait for it to end") from None
            yield conf
    except (util.UserError, NoSuchNameError, EnvironmentUnavailable) as error:
        raise UsageError(str(error)) from error
    finally:
        os.chdir(before)


def resolve(conf: Any, commits: str, *, argument: str = "COMMITS") -> list[str]:
    """Full hashes of commits and ranges ``A..B``, separated by blanks; each part oldest first, none twice.

    Raises:
        UsageError: there is no such commit; ``argument`` is what the message blames.
    """
    hashes: list[str] = []
    for part in commits.split() or [commits]:
        arguments = ["--reverse", part] if ".." in part else ["--max-count=1", part]
        command = ["git", "-C", conf.repo, "rev-list", *arguments, "--"]
        listing = subprocess.run(command, capture_output=True, text=True)
        if listing.returncode:
            raise UsageError(f"{argument}: expected a commit or a range A..B, got {part!r}: {listing.stderr.strip()}")
        if not listing.stdout:
            raise UsageError(f"{argument}: {part!r} is an empty range")
        hashes += [commit for commit in listing.stdout.split() if commit not in hashes]
    return hashes


def resolve_one(conf: Any, commit: str, *, argument: str) -> str:
    """The full hash of one commit.

    Raises:
        UsageError: there is no such commit, or it is a range; ``argument`` is what the message blames.
    """
    hashes = resolve(conf, commit, argument=argument)
    if len(hashes) != 1:
        raise UsageError(f"{argument}: expected one commit, got {len(hashes)} from {commit!r}")
    return hashes[0]


def prepare(conf: Any, *, bench: str | None, machine: str | None, timeout_seconds: float) -> Project:
    """Find the benchmarks, tell the machine, create the environment.

    Args:
        conf: from `locked`.
        bench: regular expression; only matching benchmarks, spelt as `key` does.
        machine: name of the machine in the results; by default the GPU's name, or the CPU architecture's.
        timeout_seconds: limit for one process.

    Raises:
        UsageError: no such benchmark, or the machine is not the one of that name.
    """
    benchmarks = _discover(conf, bench)
    facts = _facts()
    name = machine or _machine_name(facts)
    environment = _environment(conf)
    _save_machine(conf, name, facts)
    return Project(conf, get_repo(conf), environment, benchmarks, name, timeout_seconds, facts.get("gpu", ""))


def recorded(standing: Callable[[Path], list[AnyLine]], path: Path) -> list[AnyLine]:
    """What ``standing``, of `asv_bench_gpu.journal`, finds at ``path``.

    Raises:
        UsageError: the record is damaged.
    """
    try:
        return standing(path)
    except ValueError as error:
        raise UsageError(f"damaged record: {error}; restore the file, or delete it to measure again") from error


def combinations(params: list[list[str]]) -> list[tuple[str, ...]]:
    """Of parameter values, as asv orders them; a single empty one without parameters."""
    return list(itertools.product(*params))


def key(benchmark: str, combination: tuple[str, ...]) -> str:
    """A benchmark with its parameters, as asv spells it for regular expressions."""
    return f"{benchmark}({', '.join(combination)})" if combination else benchmark


def say(message: str) -> None:
    """Tell the person who waits."""
    print(message, file=sys.stderr, flush=True)


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
    if path.exists():
        try:
            recorded = typed.loads(path.read_text(encoding="utf-8")).get("gpu", "")
        except (AttributeError, ValueError) as error:
            raise UsageError(f"damaged {path}: {error}; restore the file, or delete it") from error
        if recorded != identity["gpu"]:
            raise UsageError(
                f"--machine: {name!r} has results of GPU {recorded!r}, but torch sees {identity['gpu']!r} here; "
                "mend the machine, or give it another name"
            )
    with journal.replacing(path) as temporary:
        util.write_json(str(temporary), identity, 1)


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

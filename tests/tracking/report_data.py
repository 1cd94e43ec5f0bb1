"""Synthetic projects for tests of the report: a git repository, results as the runner writes them, made-up numbers.

Written to a temporary folder only; nothing here is ever committed as a result.
"""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
from pathlib import Path

from asv import util
from asv.benchmarks import Benchmarks
from asv.results import Results
from asv_bench_gpu import device, journal

ENVIRONMENT = "gpu-py3.11"
GPU = {"gpu": "Test GPU", "torch": "2.11.0", "triton": "3.6.0"}
SITE = """
title = "Does it cost?"
lead = "One sentence."
method_details = ["How it was done."]

[ratio]
question = "Does order cost anything?"
method = "device time"
benchmark = "order.Rows.gputime_rows"
series_param = "implementation"
subject = "ours"
baseline = "theirs"
floor = "floor"
x_param = "tokens"
group_param = "model"
reference = "order.Empty.gputime_empty"
reference_label = "empty kernel"

[[table]]
title = "Layouts"
text = "How many."
method = "counted"
benchmark = "layouts.Repeats.track_layouts"
columns = "tokens"

[[table]]
title = "Code"
text = "What the compiler made."
method = "compiled"
columns = "target"
any_machine = true
[table.benchmarks]
registers = "codegen.Kernels.track_registers"
atomics = "codegen.Kernels.track_atomics"
"""


@dataclasses.dataclass(frozen=True)
class Skip:
    """Instead of a value: why there is none."""

    reason: str


class Project:
    """A repository with results in ``folder``."""

    def __init__(self, folder: Path, site: str = SITE) -> None:
        self.folder = folder
        self.results = folder / "reports/results"
        self.config = folder / "asv.conf.json"
        self.benchmarks: dict[str, dict] = {}
        self._commits = 0
        (folder / "reports").mkdir(parents=True)
        (folder / "reports/site.toml").write_text(site, encoding="utf-8")
        settings = {
            "version": 1,
            "project": "toy",
            "repo": ".",
            "branches": ["main"],
            "results_dir": "reports/results",
            "html_dir": "reports/html",
            "site": "reports/site.toml",
        }
        self.config.write_text(json.dumps(settings), encoding="utf-8")
        self._git("init", "--quiet", "--initial-branch=main")

    def commit(self, subject: str) -> str:
        """A new commit on main, a day after the one before; its hash is the same on every run."""
        self._commits += 1
        date = f"2026-01-{self._commits:02d}T12:00:00+00:00"
        self._git("commit", "--quiet", "--allow-empty", f"--message={subject}", date=date)
        return self._git("rev-parse", "HEAD").strip()

    def benchmark(self, name: str, unit: str, params: dict[str, list], version: str = "1") -> None:
        """Declare a benchmark; parameter values are written as asv writes them."""
        self.benchmarks[name] = {
            "name": name,
            "type": "gputime" if unit == "seconds" else "track",
            "unit": unit,
            "version": version,
            "param_names": list(params),
            "params": [[repr(value) for value in values] for values in params.values()],
            "code": "",
            "timeout": 60.0,
        }
        path = Path(Benchmarks.get_benchmark_file_path(str(self.results)))
        path.parent.mkdir(parents=True, exist_ok=True)
        util.write_json(str(path), self.benchmarks, Benchmarks.api_version)

    def machine(self, name: str, facts: dict[str, str]) -> Path:
        """Write the machine file."""
        folder = self.results / name
        folder.mkdir(parents=True, exist_ok=True)
        util.write_json(str(folder / "machine.json"), {"machine": name, "cpu": "Test CPU", **facts}, 1)
        return folder

    def measure(self, machine: str, commit: str, values: dict[str, dict], facts: dict[str, str] = GPU) -> Path:
        """Results of ``commit``: benchmark -> {parameter values: samples, one value, or a Skip}."""
        folder = self.machine(machine, facts)
        results = Results(
            {"machine": machine, "cpu": "Test CPU", "python": "3.11", **facts},
            {},
            commit,
            int(self._git("show", "--no-patch", "--format=%ct", commit)) * 1000 if self._known(commit) else 0,
            "3.11",
            ENVIRONMENT,
            {},
        )
        rounds = max((len(v) for b in values.values() for v in b.values() if isinstance(v, list)), default=1)
        figures = {}
        for name, given in values.items():
            params = self.benchmarks[name]["params"]
            combinations = [tuple(map(_plain, c)) for c in itertools.product(*params)]
            cells = [given.get(c if len(c) != 1 else c[0], given.get(c)) for c in combinations]
            results._results[name] = [_median(cell) for cell in cells]
            results._samples[name] = [cell if isinstance(cell, list) else None for cell in cells]
            results._stats[name] = [_stats(cell) for cell in cells]
            results._benchmark_params[name] = params
            results._benchmark_version[name] = self.benchmarks[name]["version"]
            skipped: dict[str, list[int]] = {}
            for index, cell in enumerate(cells):
                if isinstance(cell, Skip):
                    skipped.setdefault(cell.reason, []).append(index)
            single = [None if not isinstance(cell, int | float) else float(cell) for cell in cells]
            figures[name] = journal.Figures(self.benchmarks[name]["version"], params, single, skipped)
        results.save(str(self.results))
        path = folder / f"{commit[:8]}-{ENVIRONMENT}.json"
        for number in range(1, rounds + 1):
            state = device.State(1980 - number, 3201, 40 + number, 126.9, [])
            entry = journal.Round(
                commit, number, f"2026-02-01T10:{number:02d}:00Z", 5.0, facts=dict(facts), device_before=state,
                device_after=state, verified=7, figures=figures,
            )  # fmt: skip
            journal.append(_log(path), entry)
        return path

    def fail(self, machine: str, commit: str, reason: str, message: str) -> None:
        """A commit that was tried and has no figures."""
        folder = self.machine(machine, GPU)
        entry = journal.Round(commit, 1, "2026-02-02T10:00:00Z", 1.0, failed=reason, message=message)
        journal.append(_log(folder / f"{commit[:8]}-{ENVIRONMENT}.json"), entry)

    def _known(self, commit: str) -> bool:
        command = ["git", "cat-file", "-e", commit]
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def _git(self, *arguments: str, date: str = "2026-01-01T12:00:00+00:00") -> str:
        identity = {"NAME": "t", "EMAIL": "t@example.invalid", "DATE": date}
        env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        for role in ("AUTHOR", "COMMITTER"):
            env.update({f"GIT_{role}_{key}": value for key, value in identity.items()})
        done = subprocess.run(["git", *arguments], cwd=self.folder, env=env, check=True, capture_output=True, text=True)
        return done.stdout


def around(value: float, rounds: int = 5, spread: float = 0.01) -> list[float]:
    """Samples whose median is ``value``; the widest are ``spread`` away, as a fraction."""
    return [value * (1 + spread * (2 * i / (rounds - 1) - 1)) for i in range(rounds)]


def _log(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json") + journal.SUFFIX)


def _plain(value: str) -> str:
    return value[1:-1] if value[:1] == "'" else value


def _median(cell):
    if isinstance(cell, list):
        return statistics.median(cell)
    return float("nan") if isinstance(cell, Skip) else cell


def _stats(cell):
    if not isinstance(cell, list):
        return None
    low, _, high = statistics.quantiles(cell, n=4, method="inclusive") if len(cell) > 1 else (cell[0],) * 3
    return {
        "ci_99_a": min(cell),
        "ci_99_b": max(cell),
        "q_25": low,
        "q_75": high,
        "number": 1,
        "repeat": len(cell),
    }

"""A project as small as can be measured: a git repository, a package, a suite, asv's configuration as ours is.

The package brings its own ``torch``, a stand-in that sees no GPU, so that a measuring process starts in a moment.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from asv.results import Results
from asv_bench_gpu import journal, runner

from tests.tracking.processes import TORCH_WITHOUT_GPU

#: What figures depend on besides the commit: asv keeps a file for each.
ENVIRONMENT = "-".join(
    [
        f"inherit-py{sys.version_info.major}.{sys.version_info.minor}",
        *(package + importlib.metadata.version(package) for package in ("torch", "triton")),
    ]
)
MACHINE = "tiny-machine"
_GIT = ["git", "-c", "user.name=tiny", "-c", "user.email=tiny@example.org", "-c", "init.defaultBranch=main"]
_PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tiny"
version = "1"
[tool.setuptools]
py-modules = ["tiny", "torch"]
"""
#: In the order of their commits: name -> the package's source.
COMMITS = {
    "root": "RIGHT = True\nVALUE = 1\n",
    "first": "RIGHT = True\nVALUE = 2\n",
    "second": "RIGHT = True\nVALUE = 3\n",
    "wrong": "RIGHT = False\nVALUE = 4\n",
    "after-wrong": "RIGHT = True\nVALUE = 5\n",
    "unbuildable": None,
    "after-unbuildable": "RIGHT = True\nVALUE = 6\n",
}
#: The suite of most tests. TINY_TROUBLE makes it crash, hang or spin instead of measuring.
SUITE = """\
import os
import time

from asv_bench_gpu.verification import verify


class Work:
    version = "1"
    params = [[1, 2]]
    param_names = ["size"]

    def setup_cache(self):
        import tiny
        return verify([("the answer", None if tiny.RIGHT else "it is wrong"), ("another", None)])

    def setup(self, verified, size):
        trouble = os.environ.get("TINY_TROUBLE")
        if trouble == "crash":
            print("about to crash", flush=True)
            os._exit(3)
        if trouble == "hang":
            time.sleep(600)

    def hosttime_work(self, verified, size):
        while os.environ.get("TINY_TROUBLE") == "spin":
            pass
        sum(range(size))


class Facts:
    version = "1"

    def track_value(self):
        import tiny
        return tiny.VALUE
"""
#: A suite whose clock needs no GPU and has no noise: the package's VALUE in microseconds, and 1 whatever the commit.
CLOCKED_SUITE = """\
from asv_bench_gpu import clock
from asv_bench_gpu.verification import verify

clock.calls_per_graph = lambda call: 1
clock.device_timing = lambda call, **_: clock.Timing(*[call()] * 3)


class Clocked:
    version = "1"
    params = [["same", "value"]]
    param_names = ["time"]

    def setup_cache(self):
        import tiny
        return verify([("the answer", None if tiny.RIGHT else "it is wrong")])

    def gputime_work(self, verified, time):
        import tiny
        return 1e-6 * (1 if time == "same" else tiny.VALUE)


class Facts:
    version = "1"

    def track_value(self):
        import tiny
        return tiny.VALUE
"""
SAME, VALUE = (f"suite.Clocked.gputime_work('{time}')" for time in ("same", "value"))
HOSTTIME = "suite.Work.hosttime_work"
TRACK = "suite.Facts.track_value"
_BUILD = "python -m pip wheel --no-build-isolation --no-deps --quiet -w {build_cache_dir} {build_dir}"
_INSTALL = "in-dir={env_dir} python -m pip install --no-deps --no-index --force-reinstall --quiet {wheel_file}"
_CONFIG = {
    "version": 1,
    "project": "tiny",
    "repo": ".",
    "dvcs": "git",
    "branches": ["main"],
    "plugins": [".asv_bench_gpu.environment"],
    "environment_type": "inherit",
    "build_command": [_BUILD],
    "install_command": [_INSTALL],
    "uninstall_command": ["return-code=any python -c pass"],
    "build_cache_size": 64,
    "benchmark_dir": "benchmarks",
    "env_dir": ".asv/env",
    "results_dir": "results",
    "html_dir": "html",
    "launch_method": "spawn",
}


class TinyProject:
    """The repository in ``folder``; its commits are tagged with their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "asv.conf.json"
        self.results = folder / "results"
        self.summary: runner.Summary | None = None

    def create(self) -> None:
        self.folder.mkdir()
        self._write("pyproject.toml", _PYPROJECT)
        self._write("torch.py", TORCH_WITHOUT_GPU)
        self._write(".gitignore", "/.asv/\n/results/\n/benchmarks/\n/asv.conf.json\n")
        self.git("init", "--quiet")
        for name, source in COMMITS.items():
            if source is None:
                self._write("pyproject.toml", _PYPROJECT.replace("setuptools.build_meta", "no_such_backend"))
            else:
                self._write("pyproject.toml", _PYPROJECT)
                self._write("tiny.py", source)
            self.git("add", ".")
            self.git("commit", "--quiet", "--message", name)
            self.git("tag", name)
        self._write("asv.conf.json", json.dumps(_CONFIG))
        self._write("benchmarks/__init__.py", "")
        self.write_suite(SUITE)

    def write_suite(self, source: str) -> None:
        self._write("benchmarks/suite.py", source)

    def hash(self, name: str) -> str:
        return self.git("rev-parse", f"{name}^{{commit}}").strip()

    def name(self, commit: str) -> str:
        return self.git("describe", "--tags", "--exact-match", commit).strip()

    def run(self, commits: str = "first", *, rounds: int = 1, **options) -> runner.Summary:
        return runner.run(self.config, commits, machine=MACHINE, rounds=rounds, **options)

    def command(self, *arguments: str, command: str = "run") -> list[str]:
        """`asv-gpu run`, or another command, as a process of its own."""
        return [sys.executable, "-m", "asv_bench_gpu.cli", "--config", str(self.config), command, *arguments]

    def journal_path(self, name: str) -> Path:
        return self._path(name, journal.SUFFIX)

    def rounds(self, name: str) -> list[journal.Round]:
        return list(journal.read(self.journal_path(name)))

    def result_file(self, name: str) -> Path:
        return self._path(name, ".json")

    def result(self, name: str) -> Results:
        return Results.load(str(self.result_file(name)))

    def value(self, name: str, benchmark: str = TRACK) -> list[float | None]:
        """Of each combination, as asv reads it."""
        result = self.result(name)
        return result.get_result_value(benchmark, result.get_result_params(benchmark))

    def samples(self, name: str, benchmark: str = HOSTTIME) -> list[list[float] | None]:
        """Of each combination, as asv reads them."""
        result = self.result(name)
        return result.get_result_samples(benchmark, result.get_result_params(benchmark))

    def _path(self, name: str, suffix: str) -> Path:
        return self.results / MACHINE / f"{self.hash(name)[:8]}-{ENVIRONMENT}{suffix}"

    def git(self, *arguments: str) -> str:
        environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(
            [*_GIT, *arguments], cwd=self.folder, env=environ, check=True, capture_output=True, text=True
        ).stdout

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

"""An asv environment that inherits the machine's torch and installs only the commit's own wheel.

Use it in asv.conf.json with ``"plugins": [".asv_bench_gpu.environment"]`` and ``"environment_type": "inherit"``.
asv's own types either reinstall everything per environment (virtualenv, conda, ...) or refuse commit ranges
(existing). Needs no network. The benchmarked project must not be installed in the interpreter that runs asv.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from asv.environment import Environment

from asv_bench_gpu import inherit


class Inherit(Environment):  # type: ignore[misc]
    """Environment of the interpreter that runs asv, plus one wheel."""

    tool_name = "inherit"
    matches_python_fallback = False

    def __init__(self, conf: Any, python: str, requirements: dict[str, str], tagged_env_vars: dict[Any, str]):
        # Figures of another torch or triton are another series: the versions go into the environment's name.
        for package in ("torch", "triton"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                requirements = {**requirements, package: importlib.metadata.version(package)}
        # asv reads these while it initialises the base class.
        self._python = python
        self._requirements = requirements
        super().__init__(conf, python, requirements, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Only the Python version that runs asv can be inherited."""
        return python == f"{sys.version_info.major}.{sys.version_info.minor}"

    def _setup(self) -> None:
        inherit.create(Path(self._path))

    def run(self, args: list[str], **kwargs: Any) -> Any:
        """Run the environment's Python with ``args``; keywords as for asv.util.check_output."""
        return self.run_executable("python", args, **kwargs)

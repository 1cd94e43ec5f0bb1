"""Make a virtual environment that sees the packages of the interpreter that makes it.

torch for CUDA is gigabytes and often preinstalled, so an environment per project (or per commit) must be able to use
the one the machine has. `--system-site-packages` does not do it when that interpreter is itself in a virtual
environment: this adds its site directories by name. What is installed into the new environment comes first.

Standard library only; also a script, so that it can run before anything is installed. Given a constraints file, it
leaves one in the new environment without the packages that are inherited: those are used in the version they have::

    python inherit.py .venv constraints.txt
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

_PIP = """\
#!/bin/sh
exec "$(dirname "$0")/python" -m pip "$@"
"""


def site_directories() -> list[str]:
    """Where this interpreter finds installed packages, in the order in which it looks."""
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages") and Path(path).is_dir()]


def create(path: Path) -> None:
    """Make a virtual environment at ``path`` that inherits `site_directories`.

    Needs no network and no pip of its own: it uses the inherited one.

    Raises:
        subprocess.CalledProcessError: the interpreter cannot make virtual environments.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True)
    python = path / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    # addsitedir, because a site directory may itself point on to others.
    lines = [f"import site; site.addsitedir({os.path.abspath(path)!r})" for path in site_directories()]
    (own / "inherited.pth").write_text("\n".join(lines) + "\n")
    pip = path / "bin" / "pip"
    pip.write_text(_PIP)
    pip.chmod(0o755)


def without_inherited(constraints: str) -> str:
    """Drop the lines of a constraints file (``name==version``) that name a package this interpreter has."""
    inherited = {
        _normalised(dist.metadata["Name"]) for dist in importlib.metadata.distributions(path=site_directories())
    }
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if _normalised(line.partition("==")[0]) not in inherited)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


if __name__ == "__main__":
    environment, constraints_file = map(Path, sys.argv[1:])
    create(environment)
    (environment / "constraints.txt").write_text(without_inherited(constraints_file.read_text()))

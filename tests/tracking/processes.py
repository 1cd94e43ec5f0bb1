"""Processes of their own, for what the test's process cannot be: fresh, killed, or without Triton's interpreter."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: A torch that sees no GPU and is imported in a moment.
TORCH_WITHOUT_GPU = "class cuda:\n    is_available = is_initialized = lambda: False\n"
#: One that sees a GPU: "broken" makes it fail in this process from then on, a file "lost" beside it in every process.
TORCH_WITH_GPU = """\
import types
from pathlib import Path

broken = False

class OutOfMemoryError(RuntimeError):
    pass

class version:
    cuda = "13.0"

class cuda:
    is_available = is_initialized = lambda: True
    get_device_name = lambda: "a GPU"
    get_device_properties = lambda: types.SimpleNamespace(uuid="0-1-2", L2_cache_size=2**20)
    def synchronize():
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

def ones(*shape, device):
    if Path(__file__).with_name("lost").exists():
        raise RuntimeError("CUDA error: no device")
    return types.SimpleNamespace(item=lambda: 1.0)

zeros = empty_like = lambda *_, **__: None
"""


def environ(path=(), **variables):
    """The environment with ``variables`` (None removes one) and PYTHONPATH of ``path``; no interpreter of Triton's."""
    wanted = {"TRITON_INTERPRET": None, "PYTHONPATH": os.pathsep.join(map(str, path)) or None, **variables}
    merged = {**os.environ, **wanted}
    return {name: value for name, value in merged.items() if value is not None}


def python(*arguments, path=(), cwd=None, executable=sys.executable, **variables):
    """Run Python to its end; the caller judges ``returncode``."""
    command = [executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environ(path, **variables), capture_output=True, text=True)


def output(*arguments, **options):
    """What a Python process that must succeed prints."""
    done = python(*arguments, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def once(tmp_path_factory, name, make):
    """What ``make()`` returns, as JSON has it; made once per test run, by whichever process of pytest comes first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    result = folder / f"{name}.json"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            result.write_text(json.dumps(make()))
        return json.loads(result.read_text())


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_locked(path):
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

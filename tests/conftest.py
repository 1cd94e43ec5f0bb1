"""Where the kernels run: compiled on a CUDA GPU, or, without one, in Triton's interpreter on CPU tensors.

``TRITON_INTERPRET=1`` in the environment chooses the interpreter beside a GPU too.
"""

import os
from importlib import metadata

import pytest

try:
    import torch
except ModuleNotFoundError:  # some tests, those of the reports, run without it
    torch = None

ON_GPU = torch is not None and torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1"
if torch is not None and not ON_GPU:
    # Read when a kernel is decorated, so it must precede every import of one.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "gpu(gib=0, devices=1): needs CUDA GPUs, that many, the first with so much memory free"
    )
    config.addinivalue_line("markers", "alone: times the device, so nothing else may run on it meanwhile")
    config.addinivalue_line("markers", "interpreter: looks into Triton's interpreter, so not on a GPU")


#: Fixtures that take long to make and serve many tests: these go to one worker, because the others would only wait.
_SHARED_FIXTURES = ("verdicts", "failed_tests", "generated", "part")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        for fixture in set(_SHARED_FIXTURES).intersection(item.fixturenames):
            # Parts of "generated" are made one by one.
            part = item.callspec.params.get("part", "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{fixture} of {item.path.stem} {part}"))


def pytest_report_header():
    if torch is None:
        return "kernels: not run, torch is not installed"
    where = f"compiled for {torch.cuda.get_device_name()}" if ON_GPU else "interpreted on CPU tensors"
    return f"kernels: {where}; torch {torch.__version__}, triton {metadata.version('triton')}"


def pytest_runtest_setup(item):
    if ON_GPU and item.get_closest_marker("interpreter"):
        pytest.skip("needs Triton's interpreter")
    for marker in item.iter_markers("gpu"):
        _skip_unless_gpu(**marker.kwargs)


def _skip_unless_gpu(gib=0, devices=1):
    if not ON_GPU:
        pytest.skip("needs a CUDA GPU")
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA GPUs")
    if torch.cuda.mem_get_info()[0] < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory")


@pytest.fixture
def device():
    """The device whose tensors the kernels take."""
    return torch.device("cuda", torch.cuda.current_device()) if ON_GPU else torch.device("cpu")


@pytest.fixture
def deterministic_algorithms():
    """`torch.empty` fills integers with their maximum and floats with NaN: unwritten elements show."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)

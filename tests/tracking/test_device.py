import dataclasses
import importlib.metadata
import platform
import sys
import types

import pynvml
import pytest
from asv_bench_gpu import device
from asv_bench_gpu.device import State

from tests.tracking import processes

WITHOUT_GPU = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))


def _raise_nvml_error():
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", WITHOUT_GPU)
    monkeypatch.setattr(pynvml, "nvmlInit", _raise_nvml_error)


def test_facts_without_a_gpu_name_none(without_gpu):
    facts = device.facts()
    assert facts["python"] == platform.python_version()
    assert facts["triton"] == importlib.metadata.version("triton")
    assert set(facts) == {"python", "torch", "triton"}


def test_facts_without_torch(monkeypatch):
    def version(package):
        if package in ("torch", "triton"):
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device.facts() == {"python": platform.python_version()}


def test_facts_with_the_real_torch_and_its_gpus_hidden():
    script = "import json; from asv_bench_gpu import device; print(sorted(device.facts()), device.probe()())"
    shown = processes.output("-c", script, CUDA_VISIBLE_DEVICES="")
    assert shown == "['python', 'torch', 'triton'] None\n"


@pytest.mark.parametrize(
    ("version", "imported"),
    [("cuda = hip = None", False), ("cuda, hip = '13.0', None", True), ("cuda, hip = None, '7.0'", True), (None, True)],
    ids=["for-none", "cuda", "hip", "unknown"],
)
def test_only_a_torch_for_gpus_is_asked(tmp_path, version, imported):
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    if version:
        (folder / "version.py").write_text(version)
    script = "import sys; from asv_bench_gpu import device; print(device.is_present(), 'torch' in sys.modules)"
    assert processes.output("-c", script, path=[tmp_path]) == f"{imported} {imported}\n"


def test_no_state_without_nvml(without_gpu):
    assert device.probe()() is None


def test_no_state_where_torch_sees_no_gpu(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", WITHOUT_GPU)
    assert device.probe()() is None


class FakeNvml:
    """As much of NVML as `probe` asks, of one GPU with given reasons for its clocks."""

    def __init__(self, monkeypatch, reasons, processes=1):
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        for name, answer in {
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: reasons,
            "nvmlDeviceGetClockInfo": lambda handle, kind: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}[
                kind
            ],
            "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
            "nvmlDeviceGetPowerUsage": lambda handle: 123_456,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [object()] * processes,
        }.items():
            monkeypatch.setattr(pynvml, name, answer)
        properties = types.SimpleNamespace(uuid="0-1-2")
        cuda = types.SimpleNamespace(is_available=lambda: True, get_device_properties=lambda: properties)
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(pynvml.nvmlClocksEventReasonGpuIdle, [], id="idle-is-no-throttle"),
        pytest.param(pynvml.nvmlClocksEventReasonSwPowerCap, ["SwPowerCap"], id="power"),
        pytest.param(
            pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonSwThermalSlowdown,
            ["SwThermalSlowdown"],
            id="idle-and-thermal",
        ),
    ],
)
def test_state_names_what_holds_the_clocks_down(monkeypatch, reasons, names):
    FakeNvml(monkeypatch, reasons)
    assert device.probe()() == State(1980, 3201, 41, 123.456, names, 0)


@pytest.mark.parametrize(
    ("processes", "others"),
    [
        pytest.param(0, 0, id="not-told"),
        pytest.param(1, 0, id="this-one"),
        pytest.param(3, 2, id="two-more"),
    ],
)
def test_state_counts_other_processes(monkeypatch, processes, others):
    FakeNvml(monkeypatch, 0, processes)
    assert device.probe()().other_processes == others


def test_a_probe_asks_again_and_is_told_nothing_of_a_gpu_that_is_lost(monkeypatch):
    FakeNvml(monkeypatch, 0)
    ask = device.probe()
    assert ask() == ask() == State(1980, 3201, 41, 123.456, [], 0)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: _raise_nvml_error())
    assert ask() is None


def test_extremes():
    states = [
        State(1980, 3201, 40, 126.5, ["UserDefinedClocks"], 0),
        State(1755, 3201, 83, 699.5, ["SwPowerCap", "UserDefinedClocks"], 2),
        State(1965, 3201, 50, 300.0, ["HwSlowdown", "UserDefinedClocks"], 1),
    ]
    assert device.extremes(states) == [
        State(1755, 3201, 40, 126.5, ["UserDefinedClocks"], 0),
        State(1980, 3201, 83, 699.5, ["HwSlowdown", "SwPowerCap", "UserDefinedClocks"], 2),
    ]


@pytest.mark.parametrize(
    ("reasons", "others", "disturbances"),
    [
        pytest.param([], 0, [], id="none"),
        pytest.param(["SwPowerCap", "HwThermalSlowdown"], 0, ["SwPowerCap", "HwThermalSlowdown"], id="throttle"),
        pytest.param(["ApplicationsClocksSetting", "UserDefinedClocks"], 0, [], id="settings"),
        pytest.param(["UserDefinedClocks", "SwPowerCap"], 0, ["SwPowerCap"], id="both"),
        pytest.param([], 2, ["2 other processes on the GPU"], id="company"),
        pytest.param([], None, [], id="not-counted"),
    ],
)
def test_disturbances(reasons, others, disturbances):
    assert State(1980, 3201, 41, 123.4, reasons, others).disturbances() == disturbances


def test_settings_are_spelt_as_nvml_does():
    known = {name.removeprefix("nvmlClocksEventReason") for name in dir(pynvml)}
    assert known >= device._SETTINGS


def test_nothing_of_cuda_is_imported_with_the_module():
    script = "import sys, asv_bench_gpu.device; print({'torch', 'triton', 'pynvml'} & set(sys.modules))"
    assert processes.output("-c", script) == "set()\n"


@pytest.mark.gpu
class TestOnGpu:
    def test_facts(self):
        import torch

        facts = device.facts()
        assert facts["gpu"] == torch.cuda.get_device_name()
        assert facts["cuda"] == torch.version.cuda
        assert facts["driver"].split(".")[0].isdecimal()

    def test_state(self):
        state = device.probe()()
        assert 100 <= state.sm_clock_mhz <= 5000
        assert 100 <= state.memory_clock_mhz <= 20000
        assert 10 <= state.temperature_c <= 110
        assert 5 <= state.power_w <= 2000
        assert {type(value) for value in dataclasses.astuple(state)[:3]} == {int}
        assert not [reason for reason in state.throttle_reasons if not reason.isidentifier()]

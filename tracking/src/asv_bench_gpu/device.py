"""What the figures were measured on, and in which state it was."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# How long a fresh process may take to use the GPU.
_PATIENCE_SECONDS = 60
# NVML's bit for "nothing holds the clocks down but the lack of work".
_IDLE = 1
# What somebody has set holds for every round alike, and slows none down more than another.
_SETTINGS = {"ApplicationsClocksSetting", "DisplayClockSetting", "SyncBoost", "UserDefinedClocks"}


class DeviceError(Exception):
    """The GPU no longer works in this process."""


@dataclasses.dataclass(frozen=True)
class State:
    """State of the GPU at one moment.

    Attributes:
        sm_clock_mhz, memory_clock_mhz: clocks in MHz.
        temperature_c: degrees Celsius.
        power_w: watts.
        throttle_reasons: NVML's names for what holds the clocks down, idleness aside; empty on a healthy machine.
        other_processes: how many other processes compute on the GPU; None where nobody counted.
    """

    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    power_w: float
    throttle_reasons: list[str]
    other_processes: int | None = None

    def disturbances(self) -> list[str]:
        """Why what is measured now is not to be trusted."""
        reasons = [reason for reason in self.throttle_reasons if reason not in _SETTINGS]
        return reasons + ([f"{self.other_processes} other processes on the GPU"] if self.other_processes else [])


def facts() -> dict[str, str]:
    """Names and versions that figures depend on; ``gpu``, ``cuda`` and ``driver`` only where there is a GPU."""
    known = {"python": platform.python_version()}
    for package in ("torch", "triton"):
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if is_present():
        import torch

        known["gpu"] = torch.cuda.get_device_name()
        known["cuda"] = str(torch.version.cuda or torch.version.hip)
        nvml = _nvml()
        if nvml:
            known["driver"] = nvml.nvmlSystemGetDriverVersion()
    return known


def is_present() -> bool:
    """Whether torch sees a GPU. A torch that is built for none is not imported, which takes seconds."""
    if "torch" not in sys.modules and not _has_torch_for_gpus():
        return False
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _has_torch_for_gpus() -> bool:
    found = importlib.util.find_spec("torch")
    if not found or not found.origin:
        return False
    version = Path(found.origin).with_name("version.py")
    if not version.exists():
        return True  # not as torch ships it: who asks has to import it
    built_for = runpy.run_path(str(version))
    return bool(built_for.get("cuda") or built_for.get("hip"))


def check() -> None:
    """Make sure that the GPU, if this process uses one, still works in it.

    Raises:
        DeviceError: it does not, and every later call would fail too, as after a kernel's access to memory not its own.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"the GPU no longer works in this process: {error}") from error


def is_at_fault(error: Exception) -> bool:
    """Whether an error, raised where there was a GPU, is the machine's and not the code's.

    It is if memory ran out, or if a fresh process cannot use the GPU either.
    """
    out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", ())
    return isinstance(error, (DeviceError, out_of_memory)) or not _serves_others()


def _serves_others() -> bool:
    command = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').item()"]
    try:
        return subprocess.run(command, capture_output=True, timeout=_PATIENCE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def probe() -> Callable[[], State | None]:
    """What gives the state of the current CUDA device again and again, at little cost, in any thread.

    None where NVML does not tell (no GPU, another vendor's, an old driver).
    """
    nvml = _nvml()
    if not nvml or not is_present():
        return lambda: None
    import torch

    # By UUID: indices differ from NVML's under CUDA_VISIBLE_DEVICES.
    uuid = f"GPU-{torch.cuda.get_device_properties().uuid}"
    prefix = "nvmlClocksEventReason"
    names = {getattr(nvml, name): name[len(prefix) :] for name in dir(nvml) if name.startswith(prefix)}
    single = {bit: name for bit, name in names.items() if bit and bit & (bit - 1) == 0}

    def ask() -> State | None:
        try:
            return _state(nvml, uuid, single)
        except nvml.NVMLError:
            return None

    return ask


def _state(nvml: Any, uuid: str, names: dict[int, str]) -> State:
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & ~_IDLE
    return State(
        sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        throttle_reasons=sorted(name for bit, name in names.items() if reasons & bit),
        # One is this process, which a container knows by another number than NVML does.
        other_processes=max(len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1, 0),
    )


def extremes(states: Sequence[State]) -> list[State]:
    """Two of them: the least and the most of everything; what held the clocks down all the time, and what ever did."""
    columns: dict[str, list[Any]] = {
        field.name: [getattr(state, field.name) for state in states] for field in dataclasses.fields(State)
    }
    reasons = [set(of_state) for of_state in columns.pop("throttle_reasons")]
    return [
        State(**{name: of_all(values) for name, values in columns.items()}, throttle_reasons=sorted(joined))
        for of_all, joined in ((min, set.intersection(*reasons)), (max, set.union(*reasons)))
    ]


def _nvml() -> Any:
    """The initialised NVML module, or None."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml

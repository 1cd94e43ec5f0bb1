"""What the figures were measured on, and in which state it was."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Any

# NVML's bit for "nothing holds the clocks down but the lack of work".
_IDLE = 1
# What somebody has set holds for every round alike, and slows none down more than another.
_SETTINGS = {"ApplicationsClocksSetting", "DisplayClockSetting", "SyncBoost", "UserDefinedClocks"}


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
    try:
        import torch
    except ImportError:
        return known
    if torch.cuda.is_available():
        known["gpu"] = torch.cuda.get_device_name()
        known["cuda"] = str(torch.version.cuda or torch.version.hip)
        nvml = _nvml()
        if nvml:
            known["driver"] = nvml.nvmlSystemGetDriverVersion()
    return known


def state() -> State | None:
    """State of the current CUDA device, None where NVML does not tell (no GPU, another vendor's, an old driver)."""
    nvml = _nvml()
    if not nvml:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        return _state(nvml, str(torch.cuda.get_device_properties().uuid))
    except nvml.NVMLError:
        return None


def _state(nvml: Any, uuid: str) -> State:
    # By UUID: indices differ from NVML's under CUDA_VISIBLE_DEVICES.
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & ~_IDLE
    prefix = "nvmlClocksEventReason"
    names = {getattr(nvml, name): name[len(prefix) :] for name in dir(nvml) if name.startswith(prefix)}
    return State(
        sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        throttle_reasons=sorted(name for bit, name in names.items() if bit and bit & (bit - 1) == 0 and reasons & bit),
        # One is this process, which a container knows by another number than NVML does.
        other_processes=max(len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1, 0),
    )


def _nvml() -> Any:
    """The initialised NVML module, or None."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml

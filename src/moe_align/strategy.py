"""Which strategy serves a call, and with which launch configuration. Never visible in the output."""

from __future__ import annotations

import functools
import json
import math
import re
from importlib import resources
from typing import Any

import torch
import triton

#: Options of `run_config` for each implementation: name -> largest value; all are powers of two but NUM_STAGE.
RUN_CONFIG_LIMITS = {
    "deterministic": {"BLOCK_SIZE": 65536, "EXPERT_BLOCK": 1024, "NUM_STAGE": 8, "num_warps": 32},
    "atomic": {"BLOCK_SIZE": 65536, "num_warps": 32},
}
#: Triton's limit on the elements of one tile.
MAX_TILE = 2**20


@functools.lru_cache(maxsize=4096)
def default_run_config(implementation: str, num_slots: int, num_experts: int, gpu: str | None = None) -> dict[str, int]:
    """The launch configuration for a shape.

    Args:
        implementation: "deterministic" or "atomic".
        num_slots: slots of the call.
        num_experts: experts of the call.
        gpu: torch's name of the GPU; where nobody has tuned for it, a rule of thumb serves.
    """
    tuned = _tuned(gpu).get(implementation)
    if tuned:
        nearest = min((experts for experts, _ in tuned), key=lambda experts: abs(math.log(experts / num_experts)))
        sizes = sorted(slots for experts, slots in tuned if experts == nearest)
        # Rounded up: a tile tuned for fewer slots could just miss covering them all.
        size = next((size for size in sizes if size >= num_slots), sizes[-1])
        return tuned[nearest, size]
    if implementation == "atomic":
        # Up to 256 slots one program takes all, and zeroes the counts itself.
        return {"BLOCK_SIZE": 256, "num_warps": 8} if num_slots <= 256 else {"BLOCK_SIZE": 128, "num_warps": 4}
    block_size = min(max(triton.next_power_of_2(num_slots), 16), 4096)
    num_warps = 4 if block_size <= 1024 else 8
    return {"BLOCK_SIZE": block_size, "EXPERT_BLOCK": 1, "NUM_STAGE": 1, "num_warps": num_warps}


@functools.lru_cache
def _tuned(gpu: str | None) -> dict[str, dict[tuple[int, int], dict[str, int]]]:
    """Measured configurations for a GPU: implementation -> (num_experts, num_slots) -> configuration."""
    if gpu is None:
        return {}
    file = resources.files(__package__).joinpath("tuned", re.sub(r"\W+", "_", gpu) + ".json")
    if not file.is_file():
        return {}
    table = json.loads(file.read_text())
    return {
        implementation: {(row["num_experts"], row["num_slots"]): row["config"] for row in table.get(implementation, ())}
        for implementation in RUN_CONFIG_LIMITS
    }


@functools.lru_cache
def gpu_name(device: torch.device) -> str | None:
    """torch's name of a GPU, None for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def checked_run_config(implementation: str, run_config: Any) -> dict[str, int]:
    """Check what a caller passed as ``run_config``; options left out are left to `default_run_config`.

    Raises:
        TypeError: not a dict of integers.
        ValueError: an option that the implementation does not have, or a value outside its range.
    """
    if not isinstance(run_config, dict):
        raise TypeError(f"run_config: expected a dict or None, got {type(run_config).__name__}")
    limits = RUN_CONFIG_LIMITS.get(implementation, {})
    for name, value in run_config.items():
        if name not in limits:
            known = ", ".join(limits) or "none"
            raise ValueError(
                f"run_config[{name!r}]: no such option for implementation {implementation!r} (options: {known})"
            )
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"run_config[{name!r}]: expected an int, got {value!r}")
        power_of_two = name != "NUM_STAGE"
        if not 1 <= value <= limits[name] or (power_of_two and value & (value - 1)):
            kind = "a power of two" if power_of_two else "an int"
            raise ValueError(f"run_config[{name!r}]: expected {kind} from 1 to {limits[name]}, got {value}")
    return run_config


def run_config_for(
    implementation: str, run_config: Any, num_slots: int, num_experts: int, gpu: str | None = None
) -> dict[str, int]:
    """The launch configuration of one call: the caller's options, completed by the default for its shape."""
    default = default_run_config(implementation, num_slots, num_experts, gpu)
    if run_config is None:
        return default
    config = {**default, **checked_run_config(implementation, run_config)}
    tile = config["BLOCK_SIZE"] * config.get("EXPERT_BLOCK", 1)
    if tile > MAX_TILE:
        raise ValueError(f"run_config: BLOCK_SIZE * EXPERT_BLOCK is {tile}, expected at most {MAX_TILE}")
    return config

"""Which strategy serves a call, and with which launch configuration. Never visible in the output."""

from __future__ import annotations

import functools
from typing import Any

import triton

#: Options of `run_config` for each implementation: name -> largest value; all are powers of two but NUM_STAGE.
RUN_CONFIG_LIMITS = {
    "deterministic": {"BLOCK_SIZE": 65536, "EXPERT_BLOCK": 1024, "NUM_STAGE": 8, "num_warps": 32},
    "atomic": {"BLOCK_SIZE": 65536, "num_warps": 32},
}
#: Triton's limit on the elements of one tile.
MAX_TILE = 2**20


@functools.lru_cache(maxsize=4096)
def default_run_config(implementation: str, num_slots: int, num_experts: int) -> dict[str, int]:
    """The launch configuration for a shape.

    Args:
        implementation: "deterministic" or "atomic".
        num_slots: slots of the call.
        num_experts: experts of the call.
    """
    if implementation == "atomic":
        return {"BLOCK_SIZE": 128, "num_warps": 4}
    block_size = min(max(triton.next_power_of_2(num_slots), 16), 1024)
    return {"BLOCK_SIZE": block_size, "EXPERT_BLOCK": 1, "NUM_STAGE": 1, "num_warps": 4}


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


def run_config_for(implementation: str, run_config: Any, num_slots: int, num_experts: int) -> dict[str, int]:
    """The launch configuration of one call: the caller's options, completed by the default for its shape."""
    default = default_run_config(implementation, num_slots, num_experts)
    if run_config is None:
        return default
    config = {**default, **checked_run_config(implementation, run_config)}
    tile = config["BLOCK_SIZE"] * config.get("EXPERT_BLOCK", 1)
    if tile > MAX_TILE:
        raise ValueError(f"run_config: BLOCK_SIZE * EXPERT_BLOCK is {tile}, expected at most {MAX_TILE}")
    return config

"""Which strategy serves a call, and with which launch configuration. Never visible in the output."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources
from typing import Any, Literal, NamedTuple

import torch
import triton

from moe_align.kernels import atomic, collect, launch, scan, sift, tiles
from moe_align.kernels.launch import Arguments, Call, Launcher, Plan
from moe_align.layouts import Regions, Rows

#: Triton's limit on the elements of one tile.
MAX_TILE = 2**20

Layout = Literal["rows", "blocks", "offsets"]
#: Launch options, and under "strategy" the name of the strategy whose options they are.
RunConfig = dict[str, Any]


class Strategy(NamedTuple):
    """One way of computing ranks.

    Attributes:
        plan: what to launch for a call, with a value for every option.
        options: name of each option -> its largest value; all are powers of two, but NUM_STAGE and HITS.
        default: number of slots, number of experts -> a value for every option, for GPUs that nobody tuned.
        ordered: whether slots ascend within an expert.
    """

    plan: Callable[[Call, dict[str, int]], Plan]
    options: dict[str, int]
    default: Callable[[int, int], dict[str, int]]
    ordered: bool = True

    def align_rows(self, topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows, config: RunConfig) -> None:
        """Launch for rows, with a value for every option; arguments are checked by `moe_align.api`."""
        self._launch(*launch.of_rows(topk_ids, topk_weights, out), config)

    def align_flat(
        self, topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, out: Regions, config: RunConfig
    ) -> None:
        """Launch for a flat layout, likewise."""
        self._launch(*launch.of_regions(topk_ids, topk_weights, out), config)

    def _launch(self, call: Call, arguments: Arguments, config: RunConfig) -> None:
        Launcher(call, self.plan(call, config))(arguments)


_ANY_VALUE = ("NUM_STAGE", "HITS")
# In a flat layout the programs of the strategies before tiles count all slots. Without a table of its own it is served
# as rows are, up to so many slots, and then by tiles.
_FLAT_SLOTS = 8192


def _default_scan(num_slots: int, num_experts: int) -> dict[str, int]:
    block_size = min(max(triton.next_power_of_2(num_slots), 16), 4096)
    expert_block = 16 if num_slots < 16 else 4 if num_slots <= 512 else 1 if num_experts <= 128 else 2
    return {
        "BLOCK_SIZE": block_size,
        "EXPERT_BLOCK": min(expert_block, triton.next_power_of_2(num_experts)),
        "NUM_STAGE": 1,
        "num_warps": min(max(block_size // 256, 1), 8),
    }


def _default_sift(num_slots: int, num_experts: int) -> dict[str, int]:
    # As many programs as a GPU has multiprocessors, and no more: each reads all ids.
    expert_block = 1 if num_experts <= 128 else 2 if num_experts <= 256 else 4
    return {"EXPERT_BLOCK": expert_block, "HITS": 3, "num_warps": 16 if num_slots <= 8192 else 32}


def _default_collect(num_slots: int, num_experts: int) -> dict[str, int]:
    expert_block = min(max(triton.next_power_of_2(num_experts) // 128, 1), collect.MAX_EXPERT_BLOCK)
    return {"EXPERT_BLOCK": expert_block, "num_warps": 8 if num_slots <= 4096 else 16}


def _default_tiles(num_slots: int, num_experts: int) -> dict[str, int]:
    # Small tiles, which are sorted sooner, as long as there are few enough to sum over.
    block_size = min(max(triton.next_power_of_2(num_slots) // 128, 128), 512)
    return {"BLOCK_SIZE": block_size, "SUM_EXPERTS": 8, "num_warps": block_size // 32}


def _default_atomic(num_slots: int, num_experts: int) -> dict[str, int]:
    # Up to 256 slots one program takes all, and zeroes the counts itself.
    return {"BLOCK_SIZE": 256, "num_warps": 8} if num_slots <= 256 else {"BLOCK_SIZE": 128, "num_warps": 4}


STRATEGIES = {
    "scan": Strategy(
        scan.plan,
        {"BLOCK_SIZE": 65536, "EXPERT_BLOCK": 1024, "NUM_STAGE": 8, "num_warps": 32},
        _default_scan,
    ),
    "sift": Strategy(
        sift.plan,
        {"EXPERT_BLOCK": sift.MAX_EXPERT_BLOCK, "HITS": 8, "num_warps": 32},
        _default_sift,
    ),
    "collect": Strategy(
        collect.plan,
        {"EXPERT_BLOCK": collect.MAX_EXPERT_BLOCK, "num_warps": collect.MAX_WARPS},
        _default_collect,
    ),
    "tiles": Strategy(
        tiles.plan,
        {"BLOCK_SIZE": tiles.MAX_TILE, "SUM_EXPERTS": tiles.MAX_SUM_EXPERTS, "num_warps": 32},
        _default_tiles,
    ),
    "atomic": Strategy(atomic.plan, {"BLOCK_SIZE": 65536, "num_warps": 32}, _default_atomic, ordered=False),
}


def strategies(implementation: str) -> list[str]:
    """Names of the strategies behind "deterministic" or "atomic"; none behind "reference"."""
    if implementation == "reference":
        return []
    return [name for name, strategy in STRATEGIES.items() if strategy.ordered == (implementation == "deterministic")]


def rule_of_thumb(implementation: str, num_slots: int, num_experts: int) -> RunConfig:
    """The configuration for a shape on a GPU that nobody tuned.

    Args:
        implementation: "deterministic" or "atomic".
        num_slots: slots of the call.
        num_experts: experts of the call.
    """
    if implementation == "atomic":
        name = "atomic"
    elif num_slots <= 2048 or (num_experts <= 16 and num_slots <= 8192):
        name = "scan"
    elif num_slots <= 16384 and 16 < num_experts <= 512:
        name = "sift"
    elif num_slots <= 16384 and 512 < num_experts <= 1024:
        name = "collect"
    else:
        name = "tiles"
    return {"strategy": name, **STRATEGIES[name].default(num_slots, num_experts)}


@functools.lru_cache(maxsize=4096)
def default_run_config(
    implementation: str, num_slots: int, num_experts: int, gpu: str | None = None, *, layout: Layout = "rows"
) -> RunConfig:
    """The configuration for a shape: the one measured for its neighbour, or the rule of thumb.

    Blocks of few slots are served without one; see `moe_align.kernels.pairs`.

    Args:
        implementation: "deterministic" or "atomic".
        num_slots: slots of the call.
        num_experts: experts of the call.
        gpu: torch's name of the GPU.
        layout: of the call.
    """
    tables = _tuned(gpu)
    if layout != "rows" and tables.get(layout):
        return _measured_nearby(tables[layout], num_slots, num_experts)
    if tables.get(implementation):
        config = _measured_nearby(tables[implementation], num_slots, num_experts)
    else:
        config = rule_of_thumb(implementation, num_slots, num_experts)
    if layout == "rows" or config["strategy"] == "tiles" or num_slots <= _FLAT_SLOTS:
        return config
    return {"strategy": "tiles", **_default_tiles(num_slots, num_experts)}


def _measured_nearby(tuned: dict[tuple[int, int], RunConfig], num_slots: int, num_experts: int) -> RunConfig:
    """Rounded up: what was tuned for fewer slots or experts could just miss covering them in one tile or wave."""
    experts = _round_up(num_experts, {experts for experts, _ in tuned})
    slots = _round_up(num_slots, {slots for tuned_experts, slots in tuned if tuned_experts == experts})
    return tuned[experts, slots]


def _round_up(value: int, grid: set[int]) -> int:
    return min((point for point in grid if point >= value), default=max(grid))


@functools.lru_cache
def _tuned(gpu: str | None) -> dict[str, dict[tuple[int, int], RunConfig]]:
    """Measured configurations for a GPU: table -> (num_experts, num_slots) -> configuration.

    The tables "deterministic" and "atomic" are for rows, "blocks" and "offsets" for those, deterministic.
    """
    tuned = next((tuned for tuned in _tuned_files() if tuned["gpu"] == gpu), {})
    return {
        table: {(row["num_experts"], row["num_slots"]): row["config"] for row in tuned.get(table, ())}
        for table in ("deterministic", "atomic", "blocks", "offsets")
    }


@functools.lru_cache
def _tuned_files() -> list[dict[str, Any]]:
    """What `benchmarks.tune` wrote, a file for each GPU."""
    files = resources.files(__package__).joinpath("tuned").iterdir()
    tables = sorted((file for file in files if file.name.endswith(".json")), key=lambda file: file.name)
    return [json.loads(file.read_text()) for file in tables]


@functools.lru_cache
def tuned_gpu(device: torch.device) -> str | None:
    """torch's name of a GPU; where nobody tuned it, of a tuned one whose `chip` is the same; None for the CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if all(tuned["gpu"] != name for tuned in _tuned_files()):
        return next((tuned["gpu"] for tuned in _tuned_files() if tuned.get("chip") == chip(device)), name)
    return name


def chip(device: torch.device) -> str:
    """What of a GPU decides which configuration is fast: architecture, and number of multiprocessors."""
    found = torch.cuda.get_device_properties(device)
    architecture = found.gcnArchName.partition(":")[0] if torch.version.hip else f"sm_{found.major}{found.minor}"
    return f"{architecture}, {found.multi_processor_count} multiprocessors"


def checked_run_config(implementation: str, run_config: Any) -> RunConfig:
    """Check what a caller passed as ``run_config``.

    Raises:
        TypeError: not a dict, or an option that is not an integer.
        ValueError: an unknown strategy, an option that the strategy does not have, or a value outside its range.
    """
    if not isinstance(run_config, dict):
        raise TypeError(f"run_config: expected a dict or None, got {type(run_config).__name__}")
    known = strategies(implementation)
    # Without a name the options are LightLLM's, which are those of the scan.
    name = run_config.get("strategy", known[0] if known else None)
    if name not in known and "strategy" in run_config:
        expected = " or ".join(map(repr, known)) or "no strategy"
        raise ValueError(
            f"run_config['strategy']: expected {expected} for implementation {implementation!r}, got {name!r}"
        )
    limits = STRATEGIES[name].options if name else {}
    for option, value in run_config.items():
        if option == "strategy":
            continue
        if option not in limits:
            options = ", ".join(limits) or "none"
            of = f"strategy {name!r}" if name else f"implementation {implementation!r}"
            raise ValueError(f"run_config[{option!r}]: no such option for {of} (options: {options})")
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"run_config[{option!r}]: expected an int, got {value!r}")
        power_of_two = option not in _ANY_VALUE
        if not 1 <= value <= limits[option] or (power_of_two and value & (value - 1)):
            kind = "a power of two" if power_of_two else "an int"
            raise ValueError(f"run_config[{option!r}]: expected {kind} from 1 to {limits[option]}, got {value}")
    return {"strategy": name, **run_config}


def run_config_for(
    implementation: str,
    run_config: Any,
    num_slots: int,
    num_experts: int,
    gpu: str | None = None,
    *,
    layout: Layout = "rows",
) -> RunConfig:
    """The configuration of one call: the default for its shape, or the caller's options, completed by their strategy's.

    Args:
        implementation: "deterministic" or "atomic"; "reference", which has no options.
        run_config: what the caller passed; None for the default.
        num_slots: slots of the call.
        num_experts: experts of the call.
        gpu: torch's name of the GPU.
        layout: of the call.

    Raises:
        TypeError, ValueError: as `checked_run_config`.
    """
    checked = checked_run_config(implementation, run_config) if run_config is not None else None
    if implementation == "reference":
        return {}
    default = default_run_config(implementation, num_slots, num_experts, gpu, layout=layout)
    if checked is None:
        return default
    if checked["strategy"] != default["strategy"]:
        default = STRATEGIES[checked["strategy"]].default(num_slots, num_experts)
    config = {**default, **checked}
    tile = config.get("BLOCK_SIZE", 1) * config.get("EXPERT_BLOCK", 1)
    if tile > MAX_TILE:
        raise ValueError(f"run_config: BLOCK_SIZE * EXPERT_BLOCK is {tile}, expected at most {MAX_TILE}")
    return config

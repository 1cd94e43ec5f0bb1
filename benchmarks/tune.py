"""Measure launch configurations on this machine's GPU and write the table that `moe_align.strategy` reads.

python -m benchmarks.tune --out src/moe_align/tuned

Every configuration is verified before its time counts. One file per GPU model, with four tables: "deterministic" and
"atomic" for rows, "blocks", of 64 slots, and "offsets" for those layouts. Each has the best configuration for every
(number of experts, number of slots) of a grid, and the figures behind the choice beside it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EXPERTS = [8, 64, 128, 256, 384, 512, 896, 1024]
SLOTS = [8, 16, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304]
SLOTS += [131072, 262144]
TABLES = ["deterministic", "atomic", "blocks", "offsets"]
_FLAT = ("blocks", "offsets")
_BLOCK_SIZE = 64
#: How near the fastest a configuration must be, how many of those are timed again at most, and in how many places.
_NEAR, _FINALISTS, _PLACES = 0.03, 5, 3
_ROUTINGS = ("uniform", "zipf")
#: In a graph: enough that none of several launches finds its arguments in a cache (`asv_bench_gpu.clock`).
_CALLS = 128


def configurations(table: str, num_slots: int, num_experts: int) -> list[dict[str, Any]]:
    """What is worth trying for a shape, of every strategy that the table can name."""
    widest = max(32, 1 << (num_slots - 1).bit_length())
    if table == "atomic":
        return [
            {"strategy": "atomic", "BLOCK_SIZE": block, "num_warps": warps}
            for block, warps in itertools.product((32, 64, 128, 256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16, 32))
            if block <= widest and 1 <= block // (warps * 32) <= 8
        ]
    found: list[dict[str, Any]] = []
    if num_slots <= 2048 or num_experts <= 64:
        # Not much smaller than the input either: every further tile waits for the one before.
        found += [
            {"strategy": "scan", "BLOCK_SIZE": block, "EXPERT_BLOCK": experts, "NUM_STAGE": 1, "num_warps": warps}
            for block, experts, warps in itertools.product(
                {min(widest, 8192), min(widest, 8192) // 2}, (1, 2, 4, 8, 16), (1, 2, 4, 8, 16)
            )
            if block >= 16
            and experts <= num_experts
            and experts <= (16 if num_slots < 256 else 4 if num_slots <= 2048 else 2)
            and (2 <= block // (warps * 32) <= 16 or block <= 32 == 32 * warps)
        ]
    if 1024 <= num_slots <= 65536 and num_experts > 8:
        found += [
            {"strategy": "sift", "EXPERT_BLOCK": experts, "HITS": hits, "num_warps": warps}
            for experts, hits, warps in itertools.product((1, 2, 4), (2, 4), (4, 8, 16, 32))
            # Chunks of 128 slots to a warp, and programs enough for the multiprocessors but not many times as many.
            if num_slots / (warps * 128) >= 1 / 2
            and num_slots / (warps * 128) <= 10
            and 32 <= num_experts // experts <= 512
        ]
    if 1024 <= num_slots <= 32768 and num_experts > 256:
        found += [
            {"strategy": "collect", "EXPERT_BLOCK": experts, "num_warps": warps}
            for experts, warps in itertools.product((4, 8), (4, 8, 16))
            if 1 <= num_slots / (warps * 128) <= 16 and num_experts // experts >= 64
        ]
    # In a flat layout these have all slots counted, too, so tiles pay earlier, and soon nothing else does.
    flat = table in _FLAT
    if flat and num_slots > 8192:
        found = []
    least_slots, least_tiles = (512, 8) if flat else (2048, 64)
    if num_slots >= least_slots:
        found += [
            {
                "strategy": "tiles",
                "BLOCK_SIZE": block,
                "SUM_EXPERTS": sum_experts,
                "num_warps": block // (32 * slots),
            }
            for block, sum_experts, slots in itertools.product(
                (64, 128, 256, 512, 1024), (4, 8) if num_experts <= 256 else (8, 16), (1, 2)
            )
            if least_tiles <= num_slots // block <= 2048 and block // (32 * slots) <= 16
        ]
    return found


def shapes(table: str, experts: list[int], slots: list[int]) -> list[tuple[int, int]]:
    """Numbers of experts and of slots that a table has entries for: not those that no strategy serves."""
    from moe_align.kernels import pairs

    least = pairs.MAX_SLOTS + 1 if table == "blocks" else 0
    return [
        (num_experts, num_slots) for num_experts, num_slots in itertools.product(experts, slots) if num_slots >= least
    ]


def _case(num_experts: int, num_slots: int, routing: str) -> tuple[Any, Any]:
    """Router output of the shape, with as many experts per token as models of that size choose."""
    from benchmarks.shapes import Model, route

    top_k = 2 if num_experts == 8 else 8
    return route(Model(num_experts, top_k), num_slots // top_k, routing, "cuda")


class _Alignment(NamedTuple):
    """One shape: ``call`` fills the outputs with a configuration, ``difference`` says what is wrong in them."""

    what: str
    out: Any
    call: Callable[[dict[str, Any]], Any]
    difference: Callable[[], str | None]


def _alignment(table: str, num_experts: int, num_slots: int, routing: str = "uniform") -> _Alignment:
    from benchmarks import oracle
    from moe_align import Blocks, Offsets, Rows, align_blocks, align_offsets, align_rows

    ids, weights = _case(num_experts, num_slots, routing)
    what = f"{table}, {num_experts} experts, {num_slots} slots"
    placed = functools.cache(lambda: oracle.place(ids, num_experts))  # not needed where it is only compiled
    if table == "blocks":
        blocks = Blocks.empty(ids.numel(), num_experts, _BLOCK_SIZE, ids.device)
        return _Alignment(
            what,
            blocks,
            lambda config: align_blocks(ids, _BLOCK_SIZE, num_experts, out=blocks, run_config=config),
            lambda: oracle.flat_difference(blocks, ids, None, num_experts, _BLOCK_SIZE, placed=placed()),
        )
    if table == "offsets":
        offsets = Offsets.empty(ids.numel(), num_experts, ids.device)
        return _Alignment(
            what,
            offsets,
            lambda config: align_offsets(ids, num_experts, out=offsets, run_config=config),
            lambda: oracle.flat_difference(offsets, ids, None, num_experts, None, placed=placed()),
        )
    rows = Rows.empty(num_experts, ids.numel(), weights.dtype, ids.device)
    return _Alignment(
        what,
        rows,
        lambda config: align_rows(ids, weights, num_experts, out=rows, implementation=table, run_config=config),
        lambda: oracle.difference(rows, ids, weights, ordered=table != "atomic", placed=placed()),
    )


def _compile(job: tuple[str, int, int, dict[str, Any]]) -> None:
    """Fill Triton's cache on disk, in a process of its own: all cores compile at once."""
    table, num_experts, num_slots, config = job
    _alignment(table, num_experts, num_slots).call(config)


def untuned(table: str, num_slots: int, num_experts: int) -> dict[str, Any]:
    """What serves a shape on a GPU that nobody tuned."""
    from moe_align.strategy import Layout, default_run_config

    implementation = "atomic" if table == "atomic" else "deterministic"
    layout: Layout = table if table in _FLAT else "rows"  # type: ignore[assignment]
    return default_run_config(implementation, num_slots, num_experts, layout=layout)


def tune(table: str, num_experts: int, num_slots: int) -> dict[str, Any]:
    """The best verified configuration for one shape.

    Of those that are fastest for uniform routing, it is the one that is fastest for uniform and for skewed routing
    together, by the product of both times.

    Returns:
        ``config``, its device ``microseconds`` for uniform routing, and the ``default_microseconds`` of the untuned
        choice.
    """
    default = untuned(table, num_slots, num_experts)
    others = [config for config in configurations(table, num_slots, num_experts) if config != default]
    uniform, skewed = (_alignment(table, num_experts, num_slots, routing) for routing in _ROUTINGS)
    once = [(_microseconds(uniform, config), config) for config in (default, *others)]
    fastest = min(time for time, _ in once)
    scores = [(time * _microseconds(skewed, config), config) for time, config in once if time <= fastest * (1 + _NEAR)]
    scores.sort(key=lambda scored: scored[0])
    finalists = [config for _, config in scores[:_FINALISTS]]
    # The shortest of many single times is short by luck, and of the buffers' places. The default is there to compare.
    timed_again = [default, *(config for config in finalists if config != default)]
    places = [[_alignment(table, num_experts, num_slots, routing) for routing in _ROUTINGS] for _ in range(_PLACES)]
    times = [
        [
            statistics.median(_microseconds(place, config) for place in of_routing)
            for of_routing in zip(*places, strict=True)
        ]
        for config in timed_again
    ]
    best = min(map(timed_again.index, finalists), key=lambda index: math.prod(times[index]))
    return {
        "config": timed_again[best],
        "microseconds": round(times[best][0], 2),
        "default_microseconds": round(times[0][0], 2),
    }


def _microseconds(alignment: _Alignment, config: dict[str, Any]) -> float:
    """Device time of a configuration, whose result is verified first.

    Raises:
        AssertionError: it is wrong.
    """
    from asv_bench_gpu.clock import device_timing

    for tensor in alignment.out:
        if tensor is not None:
            tensor.fill_(-1)  # what the configuration before wrote must not pass for this one's
    alignment.call(config)
    difference = alignment.difference()
    if difference:
        raise AssertionError(f"{alignment.what}, {config}: {difference}")
    return device_timing(lambda: alignment.call(config), calls=_CALLS, replays=5).median * 1e6


def main() -> None:
    """Tune over the grid, print progress, write the tables."""
    import torch
    import triton

    from moe_align.strategy import chip

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tables")
    parser.add_argument("--jobs", type=int, default=8, help="processes that compile (%(default)s)")
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=TABLES, metavar="T", help="what to tune; the rest is kept (all)"
    )
    parser.add_argument(
        "--experts", nargs="+", type=int, choices=EXPERTS, default=EXPERTS, metavar="E", help="likewise (all)"
    )
    parser.add_argument(
        "--slots", nargs="+", type=int, choices=SLOTS, default=SLOTS, metavar="S", help="likewise (all)"
    )
    arguments = parser.parse_args()
    grids = {table: shapes(table, arguments.experts, arguments.slots) for table in arguments.tables}
    for table, grid in grids.items():
        if not grid:
            parser.error(f"--slots: {table} has no entries for {' '.join(map(str, arguments.slots))}")

    jobs = [
        (table, num_experts, num_slots, config)
        for table, grid in grids.items()
        for num_experts, num_slots in grid
        for config in configurations(table, num_slots, num_experts)
    ]
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, jobs, chunksize=4))
    gpu = torch.cuda.get_device_name()
    file = arguments.out / (re.sub(r"\W+", "_", gpu) + ".json")
    tuned: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    tuned |= {
        "gpu": gpu,
        "chip": chip(torch.device("cuda", torch.cuda.current_device())),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    for table, grid in grids.items():
        rows = {(row["num_experts"], row["num_slots"]): row for row in tuned.get(table, ())}
        for num_experts, num_slots in grid:
            found = tune(table, num_experts, num_slots)
            row = rows[num_experts, num_slots] = {"num_experts": num_experts, "num_slots": num_slots, **found}
            print(table, json.dumps(row), file=sys.stderr, flush=True)
        tuned[table] = [rows[shape] for shape in sorted(rows)]
        file.write_text(json.dumps(tuned, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Measure launch configurations on this machine's GPU and write the table that `moe_align.strategy` reads.

python -m benchmarks.tune --out src/moe_align/tuned

Every configuration is verified before its time counts. One file per GPU model; the fastest configuration for each
(number of experts, number of slots) of a grid, and the figures behind the choice beside it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

EXPERTS = [8, 64, 128, 256, 512]
SLOTS = [8, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144]
#: A table entry changes only for a gain above the noise of one short measurement.
_GAIN = 0.01


def configurations(implementation: str, num_slots: int) -> list[dict[str, int]]:
    """What is worth trying for a number of slots: tiles from one warp's width to well past the input."""
    widest = max(32, 1 << (num_slots - 1).bit_length())
    if implementation == "atomic":
        blocks = [size for size in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192) if size <= widest]
        return [
            {"BLOCK_SIZE": block, "num_warps": warps}
            for block, warps in itertools.product(blocks, (1, 2, 4, 8, 16, 32))
            if 1 <= block // (warps * 32) <= 8
        ]
    # Not much smaller than the input either: every further tile waits for the one before.
    blocks = [
        size for size in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192) if min(widest, 4096) // 4 <= size <= widest
    ]
    return [
        {"BLOCK_SIZE": block, "EXPERT_BLOCK": experts, "NUM_STAGE": 1, "num_warps": warps}
        for block, experts, warps in itertools.product(blocks, (1, 2), (1, 2, 4, 8, 16))
        if 2 <= block * experts // (warps * 32) <= 32 or block == 32
    ]


def _case(num_experts: int, num_slots: int) -> tuple[Any, Any]:
    """Router output of the shape, with as many experts per token as models of that size choose."""
    from benchmarks.shapes import Model, route

    top_k = 2 if num_experts == 8 else 8
    return route(Model(num_experts, top_k), num_slots // top_k, "uniform", "cuda")


def _compile(job: tuple[str, dict[str, int]]) -> None:
    """Fill Triton's cache on disk, in a process of its own: all cores compile at once."""
    from moe_align import align_rows

    implementation, config = job
    for num_experts, num_slots in ((8, 64), (256, 8), (256, 2 * config["BLOCK_SIZE"] + 64)):
        ids, weights = _case(num_experts, num_slots)
        align_rows(ids, weights, num_experts, implementation=implementation, run_config=config)


def tune(implementation: str, num_experts: int, num_slots: int) -> dict[str, Any]:
    """The fastest verified configuration for one shape.

    Returns:
        ``config``, its device ``microseconds``, and the ``default_microseconds`` of the untuned choice.
    """
    from asv_bench_gpu.clock import device_timing

    from benchmarks import oracle
    from moe_align import Rows, align_rows
    from moe_align.strategy import default_run_config

    ids, weights = _case(num_experts, num_slots)
    out = Rows.empty(num_experts, ids.numel(), weights.dtype, ids.device)

    def microseconds(config: dict[str, int]) -> float:
        call = lambda: align_rows(  # noqa: E731
            ids,
            weights,
            num_experts,
            out=out,
            implementation=implementation,
            run_config=config,
        )
        for tensor in out:
            tensor.fill_(-1)  # what the configuration before wrote must not pass for this one's
        call()
        difference = oracle.difference(out, ids, weights, ordered=implementation != "atomic")
        if difference:
            raise AssertionError(f"{implementation}, {num_experts} experts, {num_slots} slots, {config}: {difference}")
        return device_timing(call, calls=40, replays=7).median * 1e6

    default = default_run_config(implementation, num_slots, num_experts)
    best, best_time = default, microseconds(default)
    default_time = best_time
    for config in configurations(implementation, num_slots):
        time = microseconds(config)
        if time < best_time * (1 - _GAIN):
            best, best_time = config, time
    return {"config": best, "microseconds": round(best_time, 2), "default_microseconds": round(default_time, 2)}


def main() -> None:
    """Tune every implementation over the grid, print progress, write the table."""
    import torch
    import triton

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tables")
    parser.add_argument("--jobs", type=int, default=8, help="processes that compile (%(default)s)")
    parser.add_argument(
        "--implementations", nargs="+", default=["deterministic", "atomic"], help="what to tune; the rest is kept (all)"
    )
    arguments = parser.parse_args()

    jobs: list[tuple[str, dict[str, int]]] = []
    for implementation, num_slots in itertools.product(arguments.implementations, SLOTS):
        new = ((implementation, config) for config in configurations(implementation, num_slots))
        jobs += [job for job in new if job not in jobs]
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, jobs, chunksize=4))
    gpu = torch.cuda.get_device_name()
    file = arguments.out / (re.sub(r"\W+", "_", gpu) + ".json")
    table: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    table |= {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}
    for implementation in arguments.implementations:
        rows = table[implementation] = []
        for num_experts, num_slots in itertools.product(EXPERTS, SLOTS):
            found = tune(implementation, num_experts, num_slots)
            rows.append({"num_experts": num_experts, "num_slots": num_slots, **found})
            print(implementation, json.dumps(rows[-1]), file=sys.stderr, flush=True)
    file.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

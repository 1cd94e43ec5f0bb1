"""Run by test_codegen_suite in a process without Triton's interpreter: resources of every launch of a strategy.

python codegen_suite_script.py PART...; a part is a strategy, for the row layout or, after "flat:", for the others, or
"pairs", "schedule", "columns" or "overlap". Prints JSON.
"""

import contextlib
import dataclasses
import importlib
import itertools
import json
import pkgutil
import sys
import unittest.mock

import torch
from asv_bench_gpu import codegen
from triton.runtime.jit import JITFunction

from benchmarks import codegen as suite
from moe_align import api, kernels, layouts
from moe_align.strategy import STRATEGIES

NUM_TOKENS, TOP_K, NUM_EXPERTS = 1024, 8, 256
#: What is compiled for every target; other variants, which differ in a type or a branch, for one of each maker.
FOR_EVERY_TARGET = ("int32 float32", "int64 bfloat16", "blocks", "offsets", "schedule")


def compiled(launches, variant):
    """Target -> resources of each launch."""
    targets = codegen.TARGETS if variant in FOR_EVERY_TARGET else ("sm_90", "gfx942")
    return {
        target: [dataclasses.asdict(codegen.resources(launch, target)) for launch in launches] for target in targets
    }


def alignment(strategy, ids_dtype, weights_dtype, num_tokens=NUM_TOKENS):
    ids = torch.zeros((num_tokens, TOP_K), dtype=ids_dtype)
    weights = torch.zeros(ids.shape, dtype=weights_dtype)
    out = layouts.Rows.empty(NUM_EXPERTS, ids.numel(), weights_dtype, ids.device)
    run_config = STRATEGIES[strategy].default(ids.numel(), NUM_EXPERTS)
    return codegen.record(lambda: STRATEGIES[strategy].align_rows(ids, weights, out, run_config))


def blocks(num_experts=NUM_EXPERTS, weights_dtype=None, **layout):
    out = layouts.Blocks.empty(NUM_TOKENS * TOP_K, num_experts, 64, torch.device("cpu"), weights_dtype=weights_dtype)
    labelled = {"expert_ids": out.expert_ids, "num_tokens_post_padded": out.num_tokens_post_padded}
    return layouts.Regions(out.sorted_token_ids, out.weights, num_experts, 64, **labelled, **layout)


def offsets(weights_dtype):
    out = layouts.Offsets.empty(NUM_TOKENS * TOP_K, NUM_EXPERTS, torch.device("cpu"), weights_dtype=weights_dtype)
    return layouts.Regions(out.slots, out.weights, NUM_EXPERTS, offsets=out.offsets)


#: Every branch of the flat layouts: name -> dtype of the ids, and the layout.
FLAT = {
    "blocks": lambda: (torch.int32, blocks()),
    "blocks-weights": lambda: (torch.int64, blocks(weights_dtype=torch.bfloat16)),
    "blocks-map": lambda: (torch.int64, blocks(expert_map=torch.zeros(NUM_EXPERTS, dtype=torch.int32))),
    "blocks-labels": lambda: (torch.int32, blocks(labels=torch.zeros(NUM_EXPERTS, dtype=torch.int32))),
    "blocks-remote-first": lambda: (torch.int32, blocks(NUM_EXPERTS + 1, first_id=-1)),
    "blocks-4096-experts": lambda: (torch.int32, blocks(4096)),
    "offsets": lambda: (torch.int64, offsets(torch.float32)),
}


def flat_alignment(strategy, layout):
    ids_dtype, regions = FLAT[layout]()
    ids = torch.zeros((NUM_TOKENS, TOP_K), dtype=ids_dtype)
    weights = None if regions.weights is None else torch.zeros(ids.shape, dtype=regions.weights.dtype)
    run_config = STRATEGIES[strategy].default(ids.numel(), regions.num_experts)
    return codegen.record(lambda: STRATEGIES[strategy].align_flat(ids, weights, regions, run_config))


def pairs(layout):
    ids_dtype, regions = FLAT[layout]()
    ids = torch.zeros((kernels.pairs.MAX_SLOTS, 1), dtype=ids_dtype)
    weights = None if regions.weights is None else torch.zeros(ids.shape, dtype=regions.weights.dtype)
    call, arguments = kernels.launch.of_regions(ids, weights, regions)
    return codegen.record(lambda: kernels.launch.Launcher(call, kernels.pairs.plan(call))(arguments))


#: Machine instructions that wait for earlier launches, let the next one start, read or write global memory.
OVERLAPPING = ("ACQBULK", "PREEXIT", "LDG", "LD", "LDGSTS", "STG", "ST", "ATOMG", "ATOM", "REDG", "RED")


def overlapping():
    """With PDL, of every launch: kernel, whether it starts early, spills, and these instructions in their order."""
    with contextlib.ExitStack() as patches:
        use_pdl = {"use_pdl": True}
        patches.enter_context(unittest.mock.patch.dict(kernels.launch.Launcher.__init__.__kwdefaults__, use_pdl))
        for module, name in [(kernels.launch, "can_overlap"), (kernels.regions, "on_nvidia")]:
            patches.enter_context(unittest.mock.patch.object(module, name, return_value=True))
        made = [alignment(name, torch.int32, torch.float32) for name in STRATEGIES]
        made += [alignment("atomic", torch.int64, torch.bfloat16, num_tokens=32)]
        made += [pairs("blocks-map"), flat_alignment("scan", "offsets"), flat_alignment("scan", "blocks-map")]
        made += [flat_alignment("sift", "blocks-labels"), flat_alignment("collect", "blocks-weights")]
        made += [flat_alignment("tiles", "blocks-remote-first")]
    return [
        {
            "kernel": launch.kernel.__name__,
            "early": launch.options.get("launch_pdl", False),
            "first": index == 0,
            "alone": len(launches) == 1,
            "zeroed": launch.arguments.get("ZERO_COUNTS") is False,
            "spill_bytes": codegen.resources(launch, "sm_90").spill_bytes,
            "opcodes": [opcode for opcode in codegen.opcodes(launch, "sm_90") if opcode in OVERLAPPING],
        }
        for launches in made
        for index, launch in enumerate(launches)
    ]


def columns():
    """Instructions of a scan by one warp whose threads have four neighbouring slots."""
    ids = torch.zeros((16, TOP_K), dtype=torch.int32)
    out = layouts.Rows.empty(NUM_EXPERTS, ids.numel(), torch.float32, ids.device)
    config = STRATEGIES["scan"].default(ids.numel(), NUM_EXPERTS)
    assert (config["BLOCK_SIZE"], config["num_warps"]) == (4 * 32, 1)
    (launch,) = codegen.record(lambda: STRATEGIES["scan"].align_rows(ids, torch.zeros(ids.shape), out, config))
    return codegen.opcodes(launch, "sm_90")


def schedule():
    counts = torch.zeros(NUM_EXPERTS, dtype=torch.int32)
    out = torch.empty((NUM_EXPERTS, 3), dtype=torch.int32)
    return codegen.record(lambda: kernels.schedule.schedule_blocks(counts, 64, out))


def every_kernel():
    """Names of all kernels in the package; device functions are JIT functions too, but not called kernels."""
    names = [name for _, name, _ in pkgutil.iter_modules(kernels.__path__)]
    modules = [importlib.import_module(f"moe_align.kernels.{name}") for name in names]
    functions = {name: value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")}
    return sorted(name for name, value in functions.items() if isinstance(value, JITFunction))


def main():
    result = {
        "strategies": sorted(STRATEGIES),
        "kernels": every_kernel(),
        "covered": sorted({launch.kernel.__name__ for launch in codegen.record(suite._launch_all)}),
        "targets": list(codegen.TARGETS),
    }
    for part in sys.argv[1:]:
        if part == "schedule":
            result["schedule"] = compiled(schedule(), part)
            continue
        if part == "overlap":
            result["overlap"] = overlapping()
            continue
        if part == "columns":
            result["columns"] = columns()
            continue
        if part == "pairs":
            result |= {f"{part} {layout}": compiled(pairs(layout), layout) for layout in FLAT if layout != "offsets"}
            continue
        if part.startswith("flat:"):
            strategy = part.removeprefix("flat:")
            result |= {f"{part} {layout}": compiled(flat_alignment(strategy, layout), layout) for layout in FLAT}
            continue
        for ids_dtype, weights_dtype in itertools.product(api._ID_DTYPES, api._WEIGHT_DTYPES):
            dtypes = f"{ids_dtype} {weights_dtype}".replace("torch.", "")
            result[f"{part} {dtypes}"] = compiled(alignment(part, ids_dtype, weights_dtype), dtypes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

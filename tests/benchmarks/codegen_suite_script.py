"""Run by test_codegen_suite in a process without Triton's interpreter: resources of every launch of a strategy.

python codegen_suite_script.py IMPLEMENTATION...; prints JSON.
"""

import dataclasses
import importlib
import itertools
import json
import pkgutil
import sys

import torch
from asv_bench_gpu import codegen
from triton.runtime.jit import JITFunction

from benchmarks import codegen as suite
from moe_align import api, kernels, layouts, strategy

NUM_TOKENS, TOP_K, NUM_EXPERTS = 1024, 8, 256


def compiled(launches):
    """Target -> resources of each launch."""
    return {
        target: [dataclasses.asdict(codegen.resources(launch, target)) for launch in launches]
        for target in codegen.TARGETS
    }


def alignment(implementation, ids_dtype, weights_dtype):
    ids = torch.zeros((NUM_TOKENS, TOP_K), dtype=ids_dtype)
    weights = torch.zeros(ids.shape, dtype=weights_dtype)
    out = layouts.Rows.empty(NUM_EXPERTS, ids.numel(), weights_dtype, ids.device)
    run_config = strategy.default_run_config(implementation, ids.numel(), NUM_EXPERTS)
    return codegen.record(lambda: api._KERNELS[implementation](ids, weights, out, run_config))


def every_kernel():
    """Names of all kernels in the package; device functions are JIT functions too, but not called kernels."""
    names = [name for _, name, _ in pkgutil.iter_modules(kernels.__path__)]
    modules = [importlib.import_module(f"moe_align.kernels.{name}") for name in names]
    functions = {name: value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")}
    return sorted(name for name, value in functions.items() if isinstance(value, JITFunction))


def covered_kernels():
    """Names of the kernels that the suite compiles."""
    launches = [launch for name in suite.KERNELS for launch in codegen.record(lambda name=name: suite._launch(name))]
    return sorted({launch.kernel.__name__ for launch in launches})


def main():
    result = {
        "implementations": sorted(api._KERNELS),
        "kernels": every_kernel(),
        "covered": covered_kernels(),
        "targets": list(codegen.TARGETS),
    }
    for part in sys.argv[1:]:
        if part == "schedule":
            result["schedule"] = compiled(codegen.record(lambda: suite._launch("schedule")))
            continue
        for ids_dtype, weights_dtype in itertools.product(api._ID_DTYPES, api._WEIGHT_DTYPES):
            key = f"{part} {ids_dtype} {weights_dtype}".replace("torch.", "")
            result[key] = compiled(alignment(part, ids_dtype, weights_dtype))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

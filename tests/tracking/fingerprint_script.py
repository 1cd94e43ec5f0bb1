"""Run by test_fingerprint without Triton's interpreter: prints a digest of what is loaded of kernels compiled offline.

Usage: fingerprint_script.py FILE..., each with a kernel `double`.
"""

import importlib.util
import json
import sys

import triton
from asv_bench_gpu import fingerprint
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}


def compiled(path, target, **options):
    spec = importlib.util.spec_from_file_location("kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signature = {"source_ptr": "*fp32", "target_ptr": "*fp32", "size": "i32", "TILE": "constexpr"}
    source = ASTSource(fn=module.double, signature=signature, constexprs={(3,): 256})
    return triton.compile(source, target=target, options=options)


def digests(path):
    of_file = {}
    for name, target in TARGETS.items():
        kernel = compiled(path, target)
        of_file[name] = {
            "loaded": fingerprint._loaded(kernel.kernel),
            "binary": str(hash(kernel.kernel)),
            "kernel": repr(fingerprint._compiled(kernel)),
            "two warps": repr(fingerprint._compiled(compiled(path, target, num_warps=2))),
        }
    return of_file


if __name__ == "__main__":
    print(json.dumps([digests(path) for path in sys.argv[1:]]))

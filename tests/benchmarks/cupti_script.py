"""Run by test_cupti in a process of its own: prints what both clocks say of the project's kernels, as JSON."""

import dataclasses
import functools
import json

from benchmarks.shapes import MODELS, route
from moe_align import Rows, align_rows
from tests.tracking import cupti


def calls():
    """A call for each, named by model, tokens and implementation."""
    for model, tokens, implementation in (
        ("Mixtral 8x7B (8, 2)", 16, "deterministic"),
        ("DeepSeek-V3 (256, 8)", 128, "deterministic"),
        ("DeepSeek-V3 (256, 8)", 8192, "deterministic"),
        ("DeepSeek-V3 (256, 8)", 8192, "atomic"),
        ("Kimi-K3 (896, 16)", 32768, "deterministic"),
    ):
        shape = MODELS[model]
        ids, weights = route(shape, tokens, "uniform", "cuda")
        out = Rows.empty(shape.num_experts, ids.numel(), weights.dtype, ids.device)
        yield (
            f"{model} {tokens} {implementation}",
            functools.partial(align_rows, ids, weights, shape.num_experts, out=out, implementation=implementation),
        )


if __name__ == "__main__":
    print(json.dumps({name: dataclasses.asdict(cupti.row(call)) for name, call in calls()}))

"""The gated benchmarks run nothing but Triton's kernels, so that the same code is known to be the same."""

import functools

import pytest
import torch
from asv_bench_gpu import fingerprint

from benchmarks.shapes import MODELS, route
from moe_align import Rows, align_blocks, align_offsets, align_rows


def call_of(layout, model, tokens):
    shape = MODELS[model]
    ids, weights = route(shape, tokens, "uniform", "cuda")
    if layout == "rows":
        out = Rows.empty(shape.num_experts, ids.numel(), weights.dtype, ids.device)
        return functools.partial(align_rows, ids, weights, shape.num_experts, out=out)
    if layout == "blocks":
        return functools.partial(align_blocks, ids, 64, shape.num_experts)
    return functools.partial(align_offsets, ids, shape.num_experts)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["rows", "blocks", "offsets"])
@pytest.mark.parametrize(
    ("model", "tokens"), [("Mixtral 8x7B (8, 2)", 16), ("DeepSeek-V3 (256, 8)", 1024), ("Kimi-K3 (896, 16)", 8192)]
)
def test_the_deterministic_kernels_have_a_fingerprint(layout, model, tokens):
    call = call_of(layout, model, tokens)
    call()
    torch.cuda.synchronize()
    found = fingerprint.of(call)
    assert found is not None
    assert fingerprint.of(call_of(layout, model, tokens)) == found

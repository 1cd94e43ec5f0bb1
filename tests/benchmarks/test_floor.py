import pytest
import torch

from benchmarks import floor, oracle
from benchmarks.shapes import Model, route
from moe_align import Rows

UNTOUCHED = -7


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        pytest.param(Model(1, 1), 1, id="one-slot"),
        pytest.param(Model(300, 2), 3, id="more-experts-than-slots"),
        pytest.param(Model(7, 1), 127, id="127-slots"),
        pytest.param(Model(8, 2), 64, id="128-slots"),
        pytest.param(Model(5, 3), 43, id="129-slots"),
        pytest.param(Model(60, 4), 150, id="60-experts"),
    ],
)
@pytest.mark.parametrize("routing", ["uniform", "one expert"])
def test_result_is_the_oracles(device, model, tokens, routing):
    ids, weights = route(model, tokens, routing, str(device))
    placed = oracle.place(ids, model.num_experts)
    ranks = torch.full((ids.numel(),), -1, dtype=torch.int32, device=device)
    ranks[placed.slots] = placed.ranks.int()
    out = Rows.empty(model.num_experts, ids.numel(), weights.dtype, device)
    for tensor in out:
        tensor.fill_(UNTOUCHED)
    floor.scatter(ids, weights, ranks, placed.counts.int(), out)
    assert oracle.difference(out, ids, weights, untouched=UNTOUCHED) is None


@pytest.mark.gpu
def test_empty_kernel_takes_less_than_3_us():
    from asv_bench_gpu.clock import device_timing

    assert device_timing(lambda: floor.empty_kernel[(1,)]()).median < 3e-6

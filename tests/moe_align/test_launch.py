"""Launching: tensors are bound by name, and what was compiled for a call is launched again for that call only."""

import pytest
import torch
import triton

import moe_align
from moe_align import align_offsets, align_rows, dispatch
from moe_align.kernels import launch
from moe_align.kernels.launch import Arguments, Call, Launch, Launcher, Plan
from tests.moe_align import alignment, flat
from tests.moe_align.cases import random_ids

CALL = Call(6, 3, torch.int32, torch.float32, torch.device("cpu"))
STREAM = 17
NONE, FIRST, LATER, LAST = range(4)


class Kernel:
    """A kernel that notes what it is launched with."""

    arg_names = ("counts_ptr", "TILE", "num_slots", "topk_ids_ptr", "workspace_ptr", "OVERLAP", "FLAT", "flat")

    def __init__(self, compiled=None):
        self.compiled = compiled
        self.launches = []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.launches.append((grid, dict(zip(self.arg_names, arguments, strict=True)), options))
            return self.compiled

        return run


def arguments(offset=0):
    ids = torch.arange(6 + offset, dtype=torch.int32)[offset:]
    return Arguments(ids, torch.zeros(6), torch.zeros(3, 6), torch.zeros(3, 6), torch.ones(3))


def plan(kernel, **options):
    return Plan([Launch(kernel, (2, 5), {"TILE": 32}, {"num_warps": 4})], **options)


def test_tensors_are_bound_by_name():
    kernel = Kernel()
    given = arguments()
    Launcher(CALL, plan(kernel, workspace=7))(given)
    ((grid, bound, options),) = kernel.launches
    assert (grid, options) == ((2, 5), {"num_warps": 4})
    assert bound.pop("workspace_ptr").shape == (7,)
    assert bound["counts_ptr"] is given.counts
    assert bound["topk_ids_ptr"] is given.topk_ids
    assert (bound["TILE"], bound["num_slots"], bound["FLAT"], bound["flat"]) == (32, 6, False, None)
    assert bound["OVERLAP"] == NONE


def test_a_parameter_that_nobody_gives_is_an_error():
    kernel = Kernel()
    with pytest.raises(KeyError, match="TILE"):
        Launcher(CALL, Plan([Launch(kernel, (1,), {}, {})]))


def test_counts_are_zeroed_only_if_asked_for():
    for zero_counts, expected in ((False, 3), (True, 0)):
        given = arguments()
        Launcher(CALL, plan(Kernel(), zero_counts=zero_counts))(given)
        assert int(given.counts.sum()) == expected


@pytest.mark.parametrize(
    ("number", "use_pdl", "zero_counts", "early", "overlap"),
    [
        pytest.param(1, False, False, [False], [NONE], id="alone"),
        pytest.param(1, True, False, [True], [FIRST], id="alone-pdl"),
        pytest.param(1, True, True, [False], [FIRST], id="zeroed-before-pdl"),
        pytest.param(3, False, False, [False, True, True], [FIRST, LATER, LAST], id="several"),
        pytest.param(3, True, False, [False, True, True], [FIRST, LATER, LATER], id="several-pdl"),
    ],
)
def test_starts_early_behind_its_own_or_if_asked_for(monkeypatch, number, use_pdl, zero_counts, early, overlap):
    monkeypatch.setattr(launch, "can_overlap", lambda device: True)
    kernel = Kernel()
    launches = [Launch(kernel, (1,), {"TILE": 32}, {"num_warps": 4})] * number
    Launcher(CALL, Plan(launches, zero_counts=zero_counts), use_pdl=use_pdl)(arguments())
    assert [options.get("launch_pdl", False) for _, _, options in kernel.launches] == early
    assert [bound["OVERLAP"] for _, bound, _ in kernel.launches] == overlap


def test_calls_use_pdl_from_when_it_is_asked_for(monkeypatch, plan_with):
    made = []
    plan_with(dispatch, "Launcher", lambda call, plan, *, use_pdl: made.append(use_pdl) or (lambda arguments: None))
    plan_with(dispatch, "_runs_kernels", lambda device: True)
    ids = torch.zeros((1, 1), dtype=torch.int32)
    try:
        for enabled in (None, True, False):
            if enabled is not None:
                moe_align.use_pdl(enabled)
            moe_align.align_offsets(ids, 1)
    finally:
        moe_align.use_pdl(False)
    # The last call is launched like the first.
    assert made == [False, True]


@pytest.mark.parametrize("enabled", [1, None, "yes"])
def test_use_pdl_is_a_bool(enabled):
    with pytest.raises(TypeError, match=rf"enabled: expected a bool, got {enabled!r}"):
        moe_align.use_pdl(enabled)


class Compiled:
    """What Triton compiled, launched without Triton."""

    function, packed_metadata = "function", "metadata"

    def __init__(self):
        self.launches = []

    def run(self, *arguments):
        self.launches.append(arguments)


@pytest.fixture
def compiled(monkeypatch):
    class Driver:
        get_current_stream = staticmethod(lambda device: STREAM)

    monkeypatch.setattr(triton.compiler, "CompiledKernel", Compiled)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    return Compiled()


def test_what_was_compiled_is_launched_again(compiled):
    kernel = Kernel(compiled)
    launcher = Launcher(CALL, plan(kernel))
    given = [arguments() for _ in range(3)]
    for each in given:
        launcher(each)
    assert len(kernel.launches) == 1
    for each, launched in zip(given[1:], compiled.launches, strict=True):
        assert launched[:6] == (2, 5, 1, STREAM, "function", "metadata")
        assert launched[6:9] == (None, None, None)
        bound = dict(zip(Kernel.arg_names, launched[9:], strict=True))
        assert bound["counts_ptr"] is each.counts
        assert (bound["TILE"], bound["num_slots"], bound["flat"]) == (32, 6, None)


def test_other_alignments_are_left_to_triton(compiled):
    kernel = Kernel(compiled)
    launcher = Launcher(CALL, plan(kernel))
    for offset in (1, 1, 0, 1, 0):
        launcher(arguments(offset))
    assert len(kernel.launches) == 4
    assert len(compiled.launches) == 1


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_are_left_to_triton(compiled, hook):
    kernel = Kernel(compiled)
    launcher = Launcher(CALL, plan(kernel))
    chain = getattr(triton.knobs.runtime, hook)
    launcher(arguments())
    chain.add(print)
    try:
        launcher(arguments())
    finally:
        chain.remove(print)
    launcher(arguments())
    assert len(kernel.launches) == 2
    assert len(compiled.launches) == 1


def test_nothing_is_remembered_of_a_launch_that_compiled_nothing():
    kernel = Kernel(compiled=None)
    launcher = Launcher(CALL, plan(kernel))
    launcher(arguments())
    launcher(arguments())
    assert len(kernel.launches) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["scan", "sift", "collect", "tiles", "atomic"])
def test_a_shape_is_compiled_for_once(device, strategy, monkeypatch):
    dispatch._launcher.cache_clear()
    implementation = "atomic" if strategy == "atomic" else "deterministic"
    options = {"implementation": implementation, "run_config": {"strategy": strategy}}
    ids, weights = random_ids(64, 4, 24).to(device), torch.rand((64, 4), device=device)
    first = align_rows(ids, weights, 24, **options)
    monkeypatch.setattr(triton.JITFunction, "run", None)  # not to be called again
    second = align_rows(ids.clone(), weights.clone(), 24, **options)
    assert torch.equal(first.counts, second.counts)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["scan", "sift", "collect", "tiles"])
def test_aligned_and_unaligned_calls_follow_each_other(device, strategy):
    for seed, guard in enumerate((64, 64, 3, 1, 64, 2, 64)):
        ids = random_ids(40, 3, 9, seed).to(device)
        alignment.check(ids, 9, guard=guard, strategy=strategy)
        flat.check_offsets(ids, 9, torch.float32, guard=guard, run_config={"strategy": strategy})


@pytest.mark.gpu
def test_maps_and_weights_that_come_and_go(device):
    ids, weights = random_ids(50, 2, 7).to(device), torch.rand((50, 2), device=device)
    for _ in range(2):
        assert align_offsets(ids, 7).weights is None
        assert align_offsets(ids, 7, topk_weights=weights).weights.dtype == torch.float32
        assert align_offsets(ids, 7, topk_weights=weights.half()).weights.dtype == torch.float16
        assert align_offsets(ids.long(), 7).slots.tolist() == align_offsets(ids, 7).slots.tolist()


def test_the_names_of_flat_tensors_are_those_that_calls_are_made_of():
    assert launch.Flat._fields[:5] == ("expert_ids", "num_tokens_post_padded", "offsets", "expert_map", "labels")

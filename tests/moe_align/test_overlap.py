"""Launches that overlap must still see all that came before, and be seen by all that comes after.

In graphs, where nothing waits for the host; between kernels that let the next launch start long before they write.
"""

import itertools
import random

import pytest
import torch
import triton
import triton.language as tl

from moe_align import Offsets, align_offsets, use_pdl
from moe_align.kernels.launch import can_overlap
from tests.moe_align import fuzz
from tests.moe_align.flat import CONFIGURATIONS, each_configuration

pytestmark = pytest.mark.gpu

STEPS, REPLAYS, TOP_K = 8, 20, 4
#: So few slots that blocks need no ranks; one tile; several tiles, and blocks counted by a launch of their own.
each_size = pytest.mark.parametrize("num_tokens", [12, 60, 1200])
each_layout = pytest.mark.parametrize("layout", fuzz.LAYOUTS)


@pytest.fixture(autouse=True)
def pdl():
    use_pdl(True)
    yield
    use_pdl(False)


@triton.jit
def write_late_kernel(source_ptr, target_ptr, size, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Copy: read when the launch before has ended, write 10 us after the next launch was allowed to start."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    elements = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source_ptr + elements, mask=elements < size, other=0)
    start = tl.extra.cuda.globaltimer()
    now = start
    while now - start < 10_000:
        now = tl.extra.cuda.globaltimer()
    tl.store(target_ptr + elements, values, mask=elements < size)


def write_late(source, target):
    overlap = can_overlap(source.device)
    options = {"launch_pdl": True} if overlap else {}
    grid = (triton.cdiv(source.numel(), 128),)
    write_late_kernel[grid](source, target, source.numel(), BLOCK=128, OVERLAP=overlap, **options)


def call_of(layout, num_tokens, configuration, num_experts=37):
    run_config = CONFIGURATIONS[configuration] or None
    dtypes = (torch.int32, torch.float32)
    return fuzz.Call(
        0, num_tokens, TOP_K, num_experts, *dtypes, "uniform", "contiguous", run_config, layout, 16, "none"
    )


def inputs(call, device):
    generator = torch.Generator(device).manual_seed(0)
    given = [fuzz.new_ids(call, generator) for _ in range(STEPS)]
    return given, torch.rand(given[0].shape, generator=generator, device=device)


def captured(launch_all):
    """The graph of what has been launched once before, so that all is compiled."""
    launch_all()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_all()
    return graph


@each_size
@each_layout
@each_configuration
def test_a_call_sees_ids_that_are_written_late(device, layout, configuration, num_tokens):
    call = call_of(layout, num_tokens, configuration)
    given, weights = inputs(call, device)
    given[1::2] = [torch.zeros_like(given[0])] * len(given[1::2])
    ids = torch.empty_like(given[0])
    memories = [fuzz.memory_of(call, device) for _ in given]

    def launch_all():
        for step, memory in enumerate(memories):
            if step % 2:
                ids.copy_(given[step])  # no kernel at all
            else:
                write_late(given[step], ids)
            memory.align(ids, weights)

    graph = captured(launch_all)
    for _ in range(REPLAYS):
        for memory in memories:
            memory.poison()
        graph.replay()
        differ = [bool(memory.differs(ids, weights)) for memory, ids in zip(memories, given, strict=True)]
        assert not any(differ), differ


@each_size
@each_layout
@each_configuration
def test_who_follows_sees_what_a_call_wrote(device, layout, configuration, num_tokens):
    call = call_of(layout, num_tokens, configuration)
    given, weights = inputs(call, device)
    memory = fuzz.memory_of(call, device)
    seen = [[torch.empty_like(buffer) for buffer in memory.buffers] for _ in given]

    def launch_all():
        for step, (ids, copies) in enumerate(zip(given, seen, strict=True)):
            first = step % len(copies)
            memory.poison()
            memory.align(ids, weights)
            # Only the first to follow reads at once.
            for index in [first, *{*range(len(copies))} - {first}]:
                write_late(memory.buffers[index], copies[index])

    graph = captured(launch_all)
    for _ in range(REPLAYS):
        graph.replay()
        for ids, copies in zip(given, seen, strict=True):
            for buffer, copy in zip(memory.buffers, copies, strict=True):
                buffer.copy_(copy)
            assert not memory.differs(ids, weights)


@each_layout
@pytest.mark.parametrize("seed", range(4))
def test_calls_onto_the_same_outputs_take_turns(device, layout, seed):
    # The same slots for every expert, or rows would hold what an earlier call wrote.
    calls = [call_of(layout, 1200, name) for name in CONFIGURATIONS] * STEPS
    random.Random(seed).shuffle(calls)  # noqa: S311  (inputs, not secrets)
    given, weights = inputs(calls[0], device)
    given = [given[0].reshape(-1)[torch.randperm(weights.numel(), device=device)].view_as(weights) for _ in calls]
    memory = fuzz.memory_of(calls[0], device)

    def launch_all():
        for memory.call, ids in zip(calls, given, strict=True):
            memory.align(ids, weights)

    graph = captured(launch_all)
    for _ in range(REPLAYS):
        memory.poison()
        graph.replay()
        assert not memory.differs(given[-1], weights)


@pytest.mark.parametrize("num_slots", [128, 513, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_the_slots_of_one_call_are_the_ids_of_the_next(device, num_slots, seed):
    # Of a permutation they are its inverse.
    permutation = torch.randperm(num_slots, generator=torch.Generator().manual_seed(seed)).to(device, torch.int32)
    inverse = torch.argsort(permutation).int()
    names = [name for name in CONFIGURATIONS if "alone" not in name] * STEPS
    random.Random(seed).shuffle(names)  # noqa: S311  (inputs, not secrets)
    results = [torch.empty_like(permutation) for _ in names]
    offsets = torch.empty(num_slots + 1, dtype=torch.int32, device=device)

    def launch_all():
        for result in results:
            result.fill_(-1)
        for name, ids, slots in zip(names, [permutation, *results], results, strict=False):
            out = Offsets(slots, offsets, None)
            align_offsets(ids.view(-1, 1), num_slots, out=out, run_config=CONFIGURATIONS[name] or None)

    graph = captured(launch_all)
    for _ in range(REPLAYS):
        graph.replay()
        for result, expected in zip(results, itertools.cycle([inverse, permutation]), strict=False):
            assert torch.equal(result, expected)

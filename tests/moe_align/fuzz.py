"""Random calls, and random replays of captured calls on several streams at once, against a stable sort, on a GPU.

PYTHONPATH=src python -m tests.moe_align.fuzz --calls 200000 --replays 100000

Everything about a call follows from its seed: layout, shape, ids in and out of range, dtypes, strides, strategy and
configuration. Calls of neighbouring seeds are served by the same kernels, because compiling takes most of the time; in
shape, ids and strides they differ. All memory is compared, so that what must not be written is seen too. Differences
are kept on the device and read once a batch: calls follow one another without synchronisation, as an engine's do.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from moe_align import Blocks, Offsets, Rows, align_blocks, align_offsets, align_rows

SENTINEL = -7
GUARD = 512
BATCH = 500
#: Neighbouring seeds that have their kernels in common.
ALIKE = 50
#: Elements of a matrix of rows, at most: memory is compared whole.
_MOST_ELEMENTS = 2**21

#: Few, because each is compiled for every combination of dtypes and of divisibility; None is the library's choice.
CONFIGURATIONS: list[dict[str, Any] | None] = [
    None,
    {"strategy": "scan", "BLOCK_SIZE": 16, "EXPERT_BLOCK": 16, "num_warps": 1},
    {"strategy": "scan", "BLOCK_SIZE": 256, "EXPERT_BLOCK": 4, "num_warps": 2},
    {"strategy": "scan", "BLOCK_SIZE": 4096, "EXPERT_BLOCK": 1, "num_warps": 8},
    {"strategy": "sift", "EXPERT_BLOCK": 1, "HITS": 2, "num_warps": 1},
    {"strategy": "sift", "EXPERT_BLOCK": 2, "HITS": 1, "num_warps": 4},
    {"strategy": "sift", "EXPERT_BLOCK": 4, "HITS": 3, "num_warps": 16},
    {"strategy": "collect", "EXPERT_BLOCK": 8, "num_warps": 1},
    {"strategy": "collect", "EXPERT_BLOCK": 2, "num_warps": 16},
    {"strategy": "tiles", "BLOCK_SIZE": 32, "num_warps": 1},
    {"strategy": "tiles", "BLOCK_SIZE": 256, "SUM_EXPERTS": 2, "num_warps": 4},
]
_DTYPES = [(torch.int32, torch.float32), (torch.int64, torch.bfloat16), (torch.int32, torch.float16)]
SPREADS = ["uniform", "skewed", "one expert", "ascending", "dropped", "wide"]
LAYOUTS = ["rows", "blocks", "offsets"]
#: Of blocks: without expert parallelism; slots of other ranks dropped; kept among the others; kept before them.
EXPERT_MAPS = ["none", "drop", "keep", "first"]
STRIDES = ["contiguous", "transposed", "every other token"]


class Call(NamedTuple):
    """One random call."""

    seed: int
    num_tokens: int
    top_k: int
    num_experts: int
    ids_dtype: torch.dtype
    weights_dtype: torch.dtype
    spread: str
    strides: str
    run_config: dict[str, Any] | None
    layout: str
    block_size: int
    expert_map: str


def draw(seed: int, largest: int = _MOST_ELEMENTS) -> Call:
    """The call of a seed, with at most ``largest`` elements in its rows."""
    rng = random.Random(seed // ALIKE)  # noqa: S311  (inputs, not secrets)
    num_experts = min(int(2 ** rng.uniform(0, 12.1)), largest)
    if rng.random() < 0.3:
        num_experts = rng.choice([5, 8, 64, 128, 160, 161, 256, 384, 512, 513, 1024, 4096])
    top_k = rng.choice([1, 2, 3, 4, 8, 9, 10, 17])
    most_slots = max(largest // num_experts, 1)
    num_slots = min(int(2 ** rng.uniform(0, 17)) - rng.choice([0, 1]), most_slots)
    num_tokens = num_slots // top_k
    ids_dtype, weights_dtype = rng.choice(_DTYPES)
    kind = rng.choice(CONFIGURATIONS), rng.choice(LAYOUTS), rng.choice([1, 16, 64, 128]), rng.choice(EXPERT_MAPS)
    rng = random.Random(f"call {seed}")  # noqa: S311
    if seed % ALIKE:
        num_experts = _alike(rng, num_experts, 1, largest)
        num_tokens = _alike(rng, num_tokens, top_k, largest // num_experts)
    spread, strides = rng.choice(SPREADS), rng.choice(STRIDES)
    return Call(seed, num_tokens, top_k, num_experts, ids_dtype, weights_dtype, spread, strides, *kind)


def _alike(rng: random.Random, number: int, factor: int, largest: int) -> int:
    """Another number that kernels are not compiled anew for, if there is one; times ``factor`` at most ``largest``.

    The same power of two is the next above its product, and it is a multiple of 16 or not, as before.
    """
    if not number:
        return number
    power = 1 << (number * factor - 1).bit_length()
    alike = range(power // 2 // factor + 1, min(power, largest) // factor + 1)
    alike = [other for other in alike if (other % 16 == 0) == (number % 16 == 0)]
    return rng.choice(alike) if alike else min(number, largest // factor)


def new_ids(call: Call, generator: torch.Generator) -> torch.Tensor:
    """Ids [num_tokens, top_k] of the call's spread, some of them out of range; contiguous."""
    shape, device = (call.num_tokens, call.top_k), generator.device
    if call.spread == "one expert":
        return torch.full(shape, call.num_experts // 2, dtype=call.ids_dtype, device=device)
    if call.spread == "dropped":
        return torch.full(shape, call.num_experts, dtype=call.ids_dtype, device=device)
    drawn = torch.rand(shape, generator=generator, device=device)
    if call.spread == "skewed":
        drawn = drawn**6
    if call.spread == "ascending":
        drawn = drawn.reshape(-1).sort().values.reshape(shape)
    ids = (drawn * (call.num_experts + 4)).to(call.ids_dtype) - 2
    if call.spread == "wide" and call.ids_dtype == torch.int64:
        # In their lower 32 bits they look like experts.
        ids += (ids % 3 - 1) * 2**32
    return ids


def restride(matrix: torch.Tensor, strides: str) -> torch.Tensor:
    """The same values, otherwise in memory."""
    if strides == "transposed":
        return matrix.t().contiguous().t()
    if strides == "every other token":
        return matrix.repeat_interleave(2, dim=0)[::2]
    return matrix


def ranked(buckets: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots sorted stably by bucket, those of no bucket in one more past the last.

    Returns:
        The bucket, the slot and its rank in the bucket, in that order; and the counts of the ``number + 1`` buckets.
    """
    buckets, slots = torch.sort(torch.where((buckets >= 0) & (buckets < number), buckets, number), stable=True)
    counts = torch.zeros(number + 1, dtype=torch.int64, device=buckets.device)
    counts.scatter_add_(0, buckets, torch.ones_like(buckets))
    ranks = torch.arange(len(slots), device=buckets.device) - (counts.cumsum(0) - counts)[buckets]
    return buckets, slots, ranks, counts


class Memory:
    """The outputs of one call between guards."""

    def __init__(self, call: Call, device: torch.device, outputs: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
        self.call = call
        self.buffers, self.views = [], []
        for shape, dtype in outputs:
            size = torch.Size(shape).numel()
            self.buffers.append(torch.full((size + 2 * GUARD,), SENTINEL, dtype=dtype, device=device))
            self.views.append(self.buffers[-1][GUARD : GUARD + size].view(shape))

    def poison(self) -> None:
        """Forget what an earlier call wrote."""
        for buffer in self.buffers:
            buffer.fill_(SENTINEL)


class RowsMemory(Memory):
    """The rows of one call, what they must be, and whether they are."""

    def __init__(self, call: Call, device: torch.device) -> None:
        matrix = (call.num_experts, call.num_tokens * call.top_k)
        outputs = [(matrix, torch.int32), (matrix, call.weights_dtype), (matrix[:1], torch.int32)]
        super().__init__(call, device, outputs)

    def align(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Make the call."""
        align_rows(ids, weights, self.call.num_experts, out=Rows(*self.views), run_config=self.call.run_config)

    def differs(self, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Whether anything is not what a stable sort says; a bool on the device, without synchronising."""
        num_experts, num_slots = self.call.num_experts, ids.numel()
        # Dropped slots go to a row of their own, past the last.
        experts, slots, ranks, counts = ranked(ids.reshape(-1).long(), num_experts)
        places = GUARD + experts * num_slots + ranks
        differs = torch.zeros((), dtype=torch.bool, device=ids.device)
        for buffer, values in zip(self.buffers, (slots, weights.reshape(-1)[slots]), strict=False):
            row_past_the_last = num_slots
            expected = torch.full((len(buffer) + row_past_the_last,), SENTINEL, dtype=buffer.dtype, device=ids.device)
            expected[places] = values.to(buffer.dtype)
            expected[len(buffer) - GUARD :] = SENTINEL
            differs |= (buffer != expected[: len(buffer)]).any()
        expected = torch.full_like(self.buffers[2], SENTINEL)
        expected[GUARD : GUARD + num_experts] = counts[:-1].int()
        return differs | (self.buffers[2] != expected).any()


class FlatMemory(Memory):
    """Blocks or offsets of one call, what they must be, and whether they are."""

    def __init__(self, call: Call, device: torch.device) -> None:
        num_slots = call.num_tokens * call.top_k
        experts = torch.arange(call.num_experts, device=device)
        self.expert_map = torch.where(experts % 2 == 1, (call.num_experts - experts) // 2, -1).int()
        sizes: list[tuple[int, torch.dtype]] = [(num_slots, torch.int32), (call.num_experts + 1, torch.int32)]
        if call.layout == "blocks":
            num_buckets = call.num_experts + (call.expert_map == "first")
            capacity = min(num_slots * call.block_size, num_slots + num_buckets * (call.block_size - 1))
            sizes = [(capacity, torch.int32), (-(-capacity // call.block_size), torch.int32), (1, torch.int32)]
        sizes.append((sizes[0][0], call.weights_dtype))
        super().__init__(call, device, [((size,), dtype) for size, dtype in sizes])

    def align(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Make the call."""
        call = self.call
        options: dict[str, Any] = {"topk_weights": weights, "run_config": call.run_config}
        if call.layout == "offsets":
            align_offsets(ids, call.num_experts, out=Offsets(*self.views), **options)
            return
        if call.expert_map in ("drop", "keep"):
            options["expert_map"] = self.expert_map
        options["keep_remote"] = call.expert_map in ("keep", "first")
        align_blocks(ids, call.block_size, call.num_experts, out=Blocks(*self.views), **options)

    def differs(self, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Whether anything is not what a stable sort says; a bool on the device, without synchronising."""
        blocks = self.call.layout == "blocks"
        block_size = self.call.block_size if blocks else 1
        flat = ids.reshape(-1).long()
        labels = torch.arange(self.call.num_experts, device=ids.device)
        if blocks and self.call.expert_map == "drop":
            known = (flat >= 0) & (flat < len(labels))
            flat = torch.where(known, self.expert_map.long()[torch.where(known, flat, 0)], -1)
        elif blocks and self.call.expert_map == "keep":
            labels = self.expert_map.long()
        elif blocks and self.call.expert_map == "first":
            labels = torch.arange(-1, self.call.num_experts, device=ids.device)
            flat = flat + 1
        # Dropped slots go to a bucket past the last, and from there to an element past the last.
        buckets, slots, ranks, counts = ranked(flat, len(labels))
        ends = ((counts + block_size - 1) // block_size * block_size)[:-1].cumsum(0)
        starts = torch.cat((torch.zeros_like(counts[:1]), ends))
        capacity = len(self.views[0])
        places = torch.where(buckets < len(labels), starts[buckets] + ranks, capacity)
        placed = torch.full((capacity + 1,), len(slots), device=ids.device)
        placed[places] = slots
        weighed = torch.zeros(capacity + 1, dtype=weights.dtype, device=ids.device)
        weighed[places] = weights.reshape(-1)[slots]
        expected = [placed[:capacity], starts, weighed[:capacity]]
        if blocks:
            first_slots = torch.arange(len(self.views[1]), device=ids.device) * block_size
            used = torch.cat((labels, torch.full_like(labels[:1], -1)))[
                torch.searchsorted(ends, first_slots, right=True)
            ]
            expected[1:2] = [used, starts[-1:]]
        differs = torch.zeros((), dtype=torch.bool, device=ids.device)
        for buffer, view, values in zip(self.buffers, self.views, expected, strict=True):
            differs |= (view != values).any()
            differs |= (buffer[:GUARD] != SENTINEL).any() | (buffer[len(buffer) - GUARD :] != SENTINEL).any()
        return differs


def memory_of(call: Call, device: torch.device) -> RowsMemory | FlatMemory:
    """Memory for the layout of the call."""
    return RowsMemory(call, device) if call.layout == "rows" else FlatMemory(call, device)


def one_call(call: Call, device: torch.device) -> torch.Tensor:
    """Make the call, every other one twice; whether its result differs, a bool on the device."""
    generator = torch.Generator(device).manual_seed(call.seed)
    ids = new_ids(call, generator)
    weights = torch.rand(ids.shape, generator=generator, device=device).to(call.weights_dtype)
    memory = memory_of(call, device)
    if call.seed % 2:  # what the first call compiled, the second launches directly
        memory.align(ids.flip(0), weights.flip(0))
        memory.poison()
    memory.align(restride(ids, call.strides), restride(weights, call.strides))
    return memory.differs(ids, weights)


def calls(first: int, number: int, device: torch.device, largest: int = _MOST_ELEMENTS) -> list[Call]:
    """Make the calls of ``number`` seeds from ``first`` on.

    Returns:
        Those whose result differs.
    """
    made = [draw(seed, largest) for seed in range(first, first + number)]
    differ = torch.stack([one_call(call, device) for call in made])
    return list(itertools.compress(made, differ.tolist()))


class Captured:
    """A call in a CUDA graph, on a stream of its own, replayed with new ids and weights."""

    def __init__(self, call: Call, device: torch.device) -> None:
        self.call = call
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()
        self.generator = torch.Generator(device).manual_seed(call.seed)
        with torch.cuda.stream(self.stream):
            self.memory = memory_of(call, device)
            self.ids = new_ids(call, self.generator)
            self.weights = torch.zeros(self.ids.shape, dtype=call.weights_dtype, device=device)
            self.differs = torch.zeros((), dtype=torch.bool, device=device)
            self.memory.align(self.ids, self.weights)  # compiles, which a capture cannot
            self.stream.synchronize()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.memory.align(self.ids, self.weights)

    def replay(self) -> None:
        """Replay with new input, without waiting for the other streams."""
        with torch.cuda.stream(self.stream):
            self.ids.copy_(new_ids(self.call, self.generator))
            self.weights.copy_(torch.rand(self.ids.shape, generator=self.generator, device=self.ids.device))
            self.memory.poison()
            self.graph.replay()
            self.differs |= self.memory.differs(self.ids, self.weights)


def replays(first: int, number: int, device: torch.device, streams: int) -> list[Call]:
    """Replay ``streams`` captured calls, in turns, ``number`` times in all.

    Returns:
        Those of which a replay differed.
    """
    captured = [Captured(draw(first + stream * ALIKE), device) for stream in range(streams)]
    for turn in range(number):
        captured[turn % streams].replay()
    torch.cuda.synchronize(device)
    return [one.call for one in captured if one.differs.item()]


def _batch(job: tuple[str, int, int, int]) -> list[Call]:
    kind, first, number, streams = job
    device = torch.device("cuda")
    return calls(first, number, device) if kind == "calls" else replays(first, number, device, streams)


@contextlib.contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterable[list[Call]]]]:
    """`map` over that many processes; one of them is this one, as a sanitizer likes it."""
    if processes == 1:
        yield map
        return
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def main() -> int:
    """Run what the command line asks for; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200_000, help="random calls (%(default)s)")
    parser.add_argument("--replays", type=int, default=100_000, help="replays of captured calls (%(default)s)")
    parser.add_argument("--streams", type=int, default=4, help="streams at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first call (%(default)s)")
    parser.add_argument("--jobs", type=int, default=8, help="processes (%(default)s)")
    arguments = parser.parse_args()
    jobs = [
        (kind, arguments.seed + start, min(BATCH, total - start), arguments.streams)
        for kind, total in (("calls", arguments.calls), ("replays", arguments.replays))
        for start in range(0, total, BATCH)
    ]
    made = {"calls": 0, "replays": 0}
    wrong: list[Call] = []
    started = time.monotonic()
    with _mapping(arguments.jobs) as mapping:
        for (kind, _, number, _), differ in zip(jobs, mapping(_batch, jobs), strict=True):
            made[kind] += number
            wrong += differ
            for call in differ:
                print(f"differs: {call}", flush=True)
            seconds = time.monotonic() - started
            progress = f"{made['calls']} calls, {made['replays']} replays, {len(wrong)} differ, {seconds:.0f} s"
            print(f"\r{progress}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{torch.cuda.get_device_name()}: {progress}; {arguments.streams} streams")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

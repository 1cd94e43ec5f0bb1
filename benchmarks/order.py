"""What does order cost? Device time of the deterministic alignment against the atomic one and against the floor."""

from __future__ import annotations

import itertools
import random
from typing import Any

from asv_bench_gpu.verification import Unavailable, Verified

from benchmarks import oracle
from benchmarks.placements import copies
from benchmarks.shapes import MODELS, TOKENS, route
from benchmarks.tune import configurations
from benchmarks.verification import OnGpu, skip_unless_verified, strategies

# Of an allocation, in int32: 512 bytes.
_ALIGNMENT = 128
IMPLEMENTATIONS = ["deterministic", "atomic", "floor"]
#: Append-only: a figure is a place in this list.
STRATEGIES = ["scan", "sift", "collect", "tiles"]


def tried(model: str, tokens: int) -> list[str]:
    """The strategies that are worth trying for a shape, in uniform routing."""
    num_experts, top_k = MODELS[model]
    known = configurations("deterministic", tokens * top_k, num_experts)
    return [name for name in STRATEGIES if any(config["strategy"] == name for config in known)]


def untuned(model: str, tokens: int, name: str) -> dict[str, Any]:
    """All options of a strategy, as it has them for a shape without a table."""
    from moe_align import strategy

    num_experts, top_k = MODELS[model]
    return {"strategy": name, **strategy.STRATEGIES[name].default(tokens * top_k, num_experts)}


class _Order(OnGpu):
    """Align one shape into given buffers, caches warm."""

    version = "2"
    _COUNTS_ARENA = 2**22  # int32, 16 MiB

    def prepare(
        self,
        verified: Verified | Unavailable,
        model: str,
        tokens: int,
        routing: str,
        implementation: str,
        **options: Any,
    ) -> None:
        """Make the inputs, the buffers and the call, with ``options`` of the alignment."""
        skip_unless_verified(verified)
        import torch

        from benchmarks import floor
        from moe_align import Rows, align_rows

        num_experts = MODELS[model].num_experts
        self.random = random.Random(tokens)  # noqa: S311  (addresses, not secrets)
        self.ordered = implementation != "atomic"
        # The speed of atomic counters moves with their address: the figure is the median over several.
        self.allocations = 1 if self.ordered else 3
        ids, weights = route(MODELS[model], tokens, routing, "cuda")
        self.placed = oracle.place(ids, num_experts)
        self.arena = torch.empty(self._COUNTS_ARENA, dtype=torch.int32, device="cuda")
        self.buffers = copies(
            lambda: (ids.clone(), weights.clone(), *Rows.empty(num_experts, ids.numel(), weights.dtype, ids.device))
        )
        self.turns = itertools.cycle(self.buffers)
        if implementation == "floor":
            ranks = torch.empty(ids.numel(), dtype=torch.int32, device="cuda")
            ranks[self.placed.slots] = self.placed.ranks.int()
            counts = self.placed.counts.int()
            self.call = lambda ids, weights, *out: floor.scatter(ids, weights, ranks, counts, Rows(*out))
        else:
            self.call = lambda ids, weights, *out: align_rows(
                ids, weights, num_experts, out=Rows(*out), implementation=implementation, **options
            )

    def gputime_rows(self, *_: Any) -> None:
        """Align, row layout."""
        self.call(*next(self.turns))

    def reallocate(self, *_: Any) -> None:
        """Move the counts to other addresses, aligned as an allocation is, and clear the outputs."""
        num_experts = len(self.placed.counts)
        step = self._COUNTS_ARENA // len(self.buffers) // _ALIGNMENT * _ALIGNMENT
        for index, (ids, weights, *out, _counts) in enumerate(self.buffers):
            start = index * step + self.random.randrange(0, step - num_experts, _ALIGNMENT)
            out.append(self.arena[start : start + num_experts])
            # What another call left in the memory must not pass for this one's result.
            for tensor in out:
                tensor.fill_(-1)
            self.buffers[index] = ids, weights, *out
        self.turns = itertools.cycle(self.buffers)

    def check(self, *_: Any) -> None:
        """What the timed calls left behind must be right."""
        for ids, weights, *out in self.buffers:
            difference = oracle.difference(out, ids, weights, ordered=self.ordered, placed=self.placed)
            if difference:
                raise AssertionError(difference)

    def teardown(self, *_: Any) -> None:
        """Give the buffers back: the largest shapes need more than a gigabyte."""
        self.__dict__.clear()


class Rows(_Order):
    """Uniform routing, every model and size."""

    params = [list(MODELS), TOKENS, IMPLEMENTATIONS]
    param_names = ["model", "tokens", "implementation"]

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int, implementation: str) -> None:
        """Prepare one shape."""
        self.prepare(verified, model, tokens, "uniform", implementation)


class Skew(_Order):
    """Uneven routing, which makes atomic counters contend."""

    params = [
        ["Mixtral 8x7B (8, 2)", "DeepSeek-V3 (256, 8)"],
        [128, 1024, 8192],
        ["zipf", "one expert"],
        IMPLEMENTATIONS,
    ]
    param_names = ["model", "tokens", "routing", "implementation"]

    def setup(
        self, verified: Verified | Unavailable, model: str, tokens: int, routing: str, implementation: str
    ) -> None:
        """Prepare one shape."""
        self.prepare(verified, model, tokens, routing, implementation)


class Strategies(_Order):
    """Uniform routing by each strategy that is worth trying, configured as if untuned, whichever serves."""

    version = "1"
    params = [list(MODELS), TOKENS, STRATEGIES]
    param_names = ["model", "tokens", "strategy"]

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int, strategy: str) -> None:
        """Prepare one shape."""
        skip_unless_verified(verified)
        if strategy not in strategies():
            raise NotImplementedError(f"the commit has no strategy {strategy!r}")
        if strategy not in tried(model, tokens):
            raise NotImplementedError("not worth trying for a shape of this size")
        self.prepare(verified, model, tokens, "uniform", "deterministic", run_config=untuned(model, tokens, strategy))


class Served(OnGpu):
    """Which strategy serves a shape."""

    version = "1"
    params = [list(MODELS), TOKENS]
    param_names = ["model", "tokens"]
    unit = f"place in {', '.join(STRATEGIES)}, from 1"

    def setup(self, verified: Verified | Unavailable, model: str, tokens: int) -> None:
        """Look it up."""
        skip_unless_verified(verified)
        import torch

        from moe_align import strategy

        if not hasattr(strategy, "tuned_gpu"):
            raise NotImplementedError("the commit does not say which table serves a GPU")
        num_experts, top_k = MODELS[model]
        gpu = strategy.tuned_gpu(torch.device("cuda", torch.cuda.current_device()))
        self.config = strategy.default_run_config("deterministic", tokens * top_k, num_experts, gpu)

    def track_strategy(self, *_: Any) -> int:
        """Place of the strategy."""
        return STRATEGIES.index(self.config["strategy"]) + 1


class Empty(OnGpu):
    """The least that any launch costs."""

    version = "2"

    def setup(self, verified: Verified | Unavailable) -> None:
        """Import the kernel."""
        skip_unless_verified(verified)
        from benchmarks import floor

        self.kernel = floor.empty_kernel

    def gputime_empty_kernel(self, *_: Any) -> None:
        """Launch a kernel that does nothing."""
        self.kernel[(1,)]()

"""Fixed work of the tracker's own, timed beside every round: where it takes another time, the machine has changed.

What holds clocks down for less than a sample, or keeps the memory busy from elsewhere, NVML does not say; the canary
shows it. There are two, timed apart, because in one figure a clock that falls by a few percent would hide behind the
memory: "clock" spins for a number of cycles of the multiprocessors, "memory" streams more than the caches hold. Neither
has code of the commit in it, so neither can tell whether the commit is slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asv_bench_gpu import clock

#: By how much a canary may move within a pair of rounds. Less than the margins of 3 % that a comparison has by default,
#: so that a machine that moved by less makes no verdict alone; and more than on a machine that is at rest: on an H200,
#: the memory's was within 0.25 % over four rounds of half a minute.
TOLERANCE = 0.01
#: 100 us at 2 GHz, because the launch, which is in the time too, took 0.2 us longer after a round than before.
_CYCLES = 200_000
#: For GPUs that say nothing of their cache, or mean a smaller one than their last.
_LEAST_BYTES = 2**25


class Canary:
    """Work for the current CUDA device, with memory of its own: the same whenever this process times it."""

    def __init__(self) -> None:
        import torch

        cache_bytes = max(torch.cuda.get_device_properties().L2_cache_size, _LEAST_BYTES)
        # Read and written, it is twice the cache: 30 us on an H200.
        self._source = torch.zeros(cache_bytes // 4, device="cuda")
        self._target = torch.empty_like(self._source)

    def seconds(self) -> dict[str, float]:
        """How long each takes now; costs less than 0.1 s."""
        import torch

        calls = {
            "clock": lambda: torch.cuda._sleep(_CYCLES),  # type: ignore[no-untyped-call]
            "memory": lambda: torch.add(self._source, 1, out=self._target),
        }
        return {name: clock.device_timing(call).median for name, call in calls.items()}


def moved(timed: Sequence[Mapping[str, list[float]]]) -> list[str]:
    """Which canaries took different times, within a process or from one process to the other.

    Args:
        timed: of each process: canary -> seconds, whenever it was timed.
    """
    moves = []
    for name in sorted({name for of_process in timed for name in of_process}):
        seconds = [second for of_process in timed for second in of_process.get(name, [])]
        move = max(seconds) / min(seconds) - 1
        if move > TOLERANCE:
            moves.append(f"the canary of the {name} moved by {100 * move:.1f} %")
    return moves

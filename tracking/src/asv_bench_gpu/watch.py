"""The machine while a round is measured: its state before, during and after, and the canary on either side."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from asv_bench_gpu import device
from asv_bench_gpu.canary import Canary
from asv_bench_gpu.device import State

#: Between two looks at the state. A look holds the interpreter's lock for a fraction of a millisecond, and puts nothing
#: into the GPU's queues: at this rate it meets one repetition of a figure at most, never its median.
SAMPLE_SECONDS = 0.25


@contextlib.contextmanager
def watching() -> Iterator[dict[str, Any]]:
    """Watch over what happens inside.

    Yields:
        dict: in the end, but not if something is raised, the fields of `asv_bench_gpu.journal.Outcome` that tell of the
        machine.
    """
    found: dict[str, Any] = {}
    ask = device.probe()
    canary = Canary() if device.is_present() else None
    states = [ask()]
    with _sampling(ask, states):
        before = canary.seconds() if canary else {}
        yield found
        after = canary.seconds() if canary else {}
    states.append(ask())
    known = [state for state in states if state]
    found |= {
        "device_before": states[0],
        "device_during": device.extremes(known) if known == states else None,
        "device_after": states[-1],
        "canary": {name: [before[name], after[name]] for name in before},
    }


@contextlib.contextmanager
def _sampling(ask: Callable[[], State | None], states: list[State | None]) -> Iterator[None]:
    """Add to ``states`` from a thread, as long as there is something to be told."""
    over = threading.Event()

    def sample() -> None:
        while states[-1] and not over.wait(SAMPLE_SECONDS):
            states.append(ask())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

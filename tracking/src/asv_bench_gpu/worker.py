"""One round of one commit, in one fresh process: verify first, then measure everything.

`python -m asv_bench_gpu.worker REQUEST PROGRESS_FD`, started by `asv_bench_gpu.project` in the commit's environment.
asv itself starts a process per parameter; here all of them share one, so that verification happens where the measuring
does and a round costs at most one import of torch. The benchmarks are asv's, found and called as asv does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import math
import numbers
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asv_bench_gpu import device
from asv_bench_gpu.benchmarks.timing import GpuTimeBenchmark, Timing
from asv_bench_gpu.journal import Figures, Outcome
from asv_bench_gpu.verification import Unavailable, VerificationError, Verified
from asv_bench_gpu.watch import watching

#: How much of a failure is kept.
_MESSAGE_CHARACTERS = 4000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def measure(
    benchmark_dir: str,
    selected: dict[str, list[int]],
    report: Any = lambda done, of, what: None,
    slowdowns_percent: Sequence[int] = (),
) -> Outcome:
    """Run benchmarks of the suite in this process.

    Args:
        benchmark_dir: the suite's package.
        selected: benchmark name -> indices of its parameter combinations.
        report: called before each figure with the number done, the total, and a description.
        slowdowns_percent: by how much slower, each, what is timed on the device is timed once more.

    Returns:
        Outcome: with ``failed`` set and no figures at all if a verification failed or could not run, or the GPU stopped
        working; any other failure concerns its own benchmark and is in its ``errors``.
    """
    from asv_runner._aux import update_sys_path
    from asv_runner.discovery import disc_benchmarks

    update_sys_path(benchmark_dir)
    GpuTimeBenchmark.slowdowns_percent = slowdowns_percent
    benchmarks = [benchmark for benchmark in disc_benchmarks(benchmark_dir) if benchmark.name in selected]
    facts = device.facts()
    on_gpu = "gpu" in facts
    try:
        caches, broken = _set_up_caches(benchmarks, report, on_gpu)
        with watching() as machine:
            figures = _measure_all(benchmarks, selected, caches, broken, report)
    except VerificationError as error:
        return Outcome(facts=facts, failed="verification", message=str(error))
    except Exception as error:
        if on_gpu and device.is_at_fault(error):
            return Outcome(facts=facts, failed="device", message=_last_traceback())
        raise
    # Suites may share a verification, and may return it beside something else.
    parts = itertools.chain.from_iterable(cache if isinstance(cache, tuple) else (cache,) for cache in caches.values())
    verifications = {id(part): part.comparisons for part in parts if isinstance(part, Verified)}
    return Outcome(facts=facts, verified=sum(verifications.values()), figures=figures, **machine)


def _set_up_caches(
    benchmarks: list[Any], report: Any, on_gpu: bool
) -> tuple[dict[str | None, Any], dict[str | None, str]]:
    """Call every `setup_cache` once.

    Returns:
        What each returned, and for those that failed the traceback; by asv's key.

    Raises:
        VerificationError: one that has to verify, because something timed depends on it, failed or did not verify.
        Exception: what one raised, if that was the machine's fault and says nothing of the commit.
    """
    caches: dict[str | None, Any] = {None: None}
    broken: dict[str | None, str] = {}
    # What is timed comes first: its setup_cache is a verification, and decides over the whole commit.
    for benchmark in sorted(benchmarks, key=lambda benchmark: isinstance(benchmark, Timing), reverse=True):
        key = benchmark.setup_cache_key
        if key not in caches and key not in broken:
            report(0, 1, "verifying")
            try:
                caches[key] = benchmark.do_setup_cache()
            except Exception as error:
                wrong = isinstance(error, VerificationError)
                if on_gpu and not wrong and device.is_at_fault(error):
                    raise
                if wrong or isinstance(benchmark, Timing):
                    raise VerificationError(_last_traceback()) from error
                broken[key] = _last_traceback()
        if isinstance(benchmark, Timing) and not isinstance(caches[key], Verified | Unavailable):
            raise VerificationError(
                f"{benchmark.name}: its setup_cache returned {caches[key]!r}, expected what verify() returns"
            )
    return caches, broken


def _measure_all(
    benchmarks: list[Any],
    selected: dict[str, list[int]],
    caches: dict[str | None, Any],
    broken: dict[str | None, str],
    report: Any,
) -> dict[str, Figures]:
    """Figures by benchmark; ``caches`` and ``broken`` are from `_set_up_caches`.

    Raises:
        device.DeviceError: the GPU stopped working, and nothing is known of when.
    """
    total = sum(len(selected[benchmark.name]) for benchmark in benchmarks)
    done = 0
    all_figures = {}
    for benchmark in benchmarks:
        key = benchmark.setup_cache_key
        combinations = list(itertools.product(*benchmark.params)) or [()]
        figures = Figures(str(benchmark.version), benchmark.params, [None] * len(combinations))
        all_figures[benchmark.name] = figures
        if key in broken:
            figures.errors.update((str(index), broken[key]) for index in selected[benchmark.name])
            continue
        benchmark.set_cache(caches[key])
        for index in selected[benchmark.name]:
            report(done, total, " ".join((benchmark.name, *combinations[index])))
            _measure_one(benchmark, index, figures)
            done += 1
    device.check()  # for what was launched last, and nobody waited for
    return all_figures


def _measure_one(benchmark: Any, index: int, figures: Figures) -> None:
    """Put one combination's value, its reason to be skipped, or its error into ``figures``."""
    try:
        if benchmark.params:
            benchmark.set_param_idx(index)
        try:
            for setup in benchmark._setups:
                setup(*benchmark._build_params())
            result = benchmark.do_run()
        finally:
            benchmark.do_teardown()
    except NotImplementedError as reason:  # asv's way to say "not here"
        figures.skipped.setdefault(str(reason), []).append(index)
    except Exception:
        figures.errors[str(index)] = _last_traceback()
        device.check()
    else:
        value = result
        if isinstance(result, dict):
            (value,) = result["samples"]
            figures.number = result["number"]
        if isinstance(value, numbers.Real) and math.isfinite(value):
            figures.values[index] = int(value) if isinstance(value, numbers.Integral) else float(value)
            if code := getattr(benchmark, "fingerprint", None):
                figures.code[str(index)] = code
            if slowed := getattr(benchmark, "slowed", None):
                figures.slowed[str(index)] = slowed
        else:
            figures.errors[str(index)] = f"expected a finite number, got {value!r}"


def _last_traceback() -> str:
    return traceback.format_exc()[-_MESSAGE_CHARACTERS:]


def main() -> None:
    """Read the request, measure, write the outcome beside it."""
    _die_with_parent()
    request = json.loads(Path(sys.argv[1]).read_text())
    last = 0.0
    with os.fdopen(int(sys.argv[2]), "w") as progress:

        def report(done: int, of: int, what: str) -> None:
            nonlocal last
            if time.monotonic() - last > 0.1:
                last = time.monotonic()
                print(json.dumps([done, of, what]), file=progress, flush=True)

        outcome = measure(request["benchmark_dir"], request["selected"], report, request.get("slowdowns_percent", ()))
    Path(request["outcome"]).write_text(json.dumps(dataclasses.asdict(outcome), allow_nan=False))


def _die_with_parent() -> None:
    """A killed runner must not leave a process behind that measures beside the next one; only Linux can say so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()

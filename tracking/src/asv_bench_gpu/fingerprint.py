"""Which code a call runs on the device: where two commits run the same, only noise tells their device times apart.

A fingerprint is of all launches in their order, and of each: the machine code and the constants that are loaded, but
not what is there for debuggers, so that moved lines and other paths change nothing; warps, registers, shared memory and
how it is launched; the grid; and the arguments, numbers by value, tensors by type, shape, strides and which of them
begin at the same address.

Only Triton's launches are known that well. If the call's CUDA graph holds anything else, be it torch's own kernel, a
copy or a fill, there is no fingerprint; nor where Triton's autotuner chooses, which may choose otherwise in the next
process. What launches on several streams wait for, where tensors lie, and what is in them is not looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from asv_bench_gpu import clock, device

#: Of the compiled kernel's metadata, what decides how it runs.
_METADATA = ("num_warps", "num_ctas", "shared", "maxnreg", "launch_cooperative_grid", "launch_pdl")
_HEX_DIGITS = 16
#: Among the launches, where an autotuner chose.
_CHOSEN = None
# From ELF's specification: flags and types of a section.
_SHF_ALLOC, _SHT_NOBITS = 2, 8


def of(call: Callable[[], object]) -> str | None:
    """The fingerprint of ``call``, which is captured and not carried out; None if something in it is not known.

    Args:
        call: as for `asv_bench_gpu.clock.device_timing`; was called before, so that its kernels are compiled.
    """
    jit = sys.modules.get("triton.runtime.jit")
    if not jit or not device.is_present():
        return None
    launches: list[Any] = []
    with clock.side_stream() as stream, _recording(jit, launches):
        graph = clock.capture(call, 1, stream, keep_graph=True)
    if not launches or _CHOSEN in launches or _nodes(graph) != len(launches):
        return None
    return hashlib.sha256(repr(launches).encode()).hexdigest()[:_HEX_DIGITS]


@contextlib.contextmanager
def _recording(jit: Any, launches: list[Any]) -> Iterator[None]:
    """Describe in ``launches`` what Triton launches inside."""
    function_type, original = jit.JITFunction, jit.JITFunction.run
    tuner_type = sys.modules["triton.runtime.autotuner"].Autotuner
    tuned_run = tuner_type.run
    addresses: dict[int, int] = {}

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        grids = [grid]

        def resolved(arguments: Any) -> Any:
            grids.append(grid(arguments))
            return grids[-1]

        compiled = original(function, *args, grid=resolved if callable(grid) else grid, warmup=warmup, **kwargs)
        if not warmup:
            arguments = [(name, _described(value, addresses)) for name, value in sorted(kwargs.items())]
            arguments += [_described(value, addresses) for value in args]
            launches.append((_compiled(compiled), tuple(grids[-1]), arguments))
        return compiled

    def tuned(*args: Any, **kwargs: Any) -> Any:
        launches.append(_CHOSEN)
        return tuned_run(*args, **kwargs)

    hooks = jit.knobs.runtime.launch_enter_hook
    hooks.add(_listen)
    function_type.run, tuner_type.run = run, tuned
    try:
        yield
    finally:
        function_type.run, tuner_type.run = original, tuned_run
        hooks.remove(_listen)


def _listen(_: Any) -> None:
    """A hook that does nothing: who launches what is compiled past Triton goes through Triton while there is one."""


def _described(value: Any, addresses: dict[int, int]) -> Any:
    """An argument, without what differs from one process to the next."""
    if hasattr(value, "data_ptr"):
        place = addresses.setdefault(value.data_ptr(), len(addresses))
        return str(value.dtype), tuple(value.shape), tuple(value.stride()), place
    if isinstance(value, tuple):
        return tuple(_described(element, addresses) for element in value)
    if type(value).__name__ == "constexpr":
        return _described(value.value, addresses)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return uuid.uuid4().hex  # what nobody can describe is like nothing else


def _compiled(compiled: Any) -> Any:
    """What of a compiled kernel decides how it runs."""
    metadata = [getattr(compiled.metadata, name, None) for name in _METADATA]
    return _loaded(compiled.kernel), getattr(compiled, "n_regs", None), metadata


def _loaded(binary: bytes) -> str:
    """A digest of what an ELF file has loaded: code and constants, but neither symbols nor debugging sections."""
    offset = struct.unpack_from("<Q", binary, 0x28)[0]
    size, number = struct.unpack_from("<HH", binary, 0x3A)
    digest = hashlib.sha256()
    for section in range(number):
        _, kind, flags, _, start, length = struct.unpack_from("<IIQQQQ", binary, offset + section * size)
        if flags & _SHF_ALLOC:
            digest.update(struct.pack("<IQQ", kind, flags, length))
            digest.update(b"" if kind == _SHT_NOBITS else binary[start : start + length])
    return digest.hexdigest()


def _nodes(graph: Any) -> int | None:
    """How many nodes a CUDA graph has, None where nobody can say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_size_t()
    status = driver.cuGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(number))
    return None if status else number.value

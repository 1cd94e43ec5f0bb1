"""What code Triton generates for a launch, for GPUs that need not be there.

Record the launches a function makes, compile each for a target, and read registers, spills, shared memory,
instructions and atomics off the machine code. Triton is imported on use, never in its interpreter mode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Target name -> arguments of triton's GPUTarget.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}

#: Index of an argument, and, within a tuple, of its elements.
_Path = tuple[int, ...]

_POINTERS = {
    "torch.int32": "*i32",
    "torch.int64": "*i64",
    "torch.float32": "*fp32",
    "torch.float16": "*fp16",
    "torch.bfloat16": "*bf16",
}
_NVIDIA_ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")
_AMD_ATOMIC = r"_atomic_"
_AMD_SHARED_ATOMIC = r"^ds_(add|sub|inc|dec|min|max|and|or|xor|cmpst)"
_LAUNCH_OPTIONS = ("num_warps", "num_stages", "num_ctas", "launch_cooperative_grid", "launch_pdl", "maxnreg")


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel and what it was launched with.

    Attributes:
        kernel: the triton.JITFunction.
        arguments: parameter name -> value, constants included, defaults that were not given left out.
        options: launch options given (``num_warps``, ...).
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the generated code needs.

    Attributes:
        registers: per thread (vector registers on AMD).
        spill_bytes: stack per thread; 0 when nothing spills.
        shared_bytes: shared memory per program.
        instructions: machine instructions.
        atomics: machine instructions that are atomic in global memory.
        shared_atomics: machine instructions that are atomic in shared memory.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    atomics: int
    shared_atomics: int


def record(function: Callable[[], object]) -> list[Launch]:
    """The Triton launches ``function`` makes; none is carried out, so CPU tensors will do.

    Raises:
        RuntimeError: nothing was launched (Triton's interpreter is on, or the function needs no kernel).
    """
    launches: list[Launch] = []
    with _recording(launches):
        function()
    if not launches:
        raise RuntimeError("no Triton kernel was launched")
    return launches


@contextlib.contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _LAUNCH_OPTIONS if name in kwargs}
        launches.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options))

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def resources(launch: Launch, target: str) -> Resources:
    """Compile ``launch`` for ``target`` and read the machine code; not in several threads, which share LLVM's options.

    Args:
        launch: from `record`.
        target: a key of `TARGETS`.

    Raises:
        Exception: whatever Triton raises when the kernel does not compile for the target.
    """
    compiled = _compiled(launch, target)
    if "amdgcn" in compiled.asm:
        return _read_amd(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _read_nvidia(compiled.asm["cubin"], compiled.metadata.shared)


def opcodes(launch: Launch, target: str) -> list[str]:
    """Names of the machine instructions of ``launch``, in the order of the code; arguments are as for `resources`."""
    compiled = _compiled(launch, target)
    return _amd_opcodes(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _nvidia_opcodes(compiled.asm["cubin"])


def _compiled(launch: Launch, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, Any] = {}
    constants: dict[_Path, Any] = {}
    attributes: dict[_Path, list[list[Any]]] = {}

    def describe(value: Any, path: _Path, is_constant: bool) -> Any:
        """The type of an argument, or of an element of a tuple; ``path`` leads to it."""
        if isinstance(value, tuple) and not is_constant:
            types = [describe(element, (*path, index), False) for index, element in enumerate(value)]
            return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
        if is_constant or value is None or isinstance(value, triton.language.constexpr):
            constants[path] = getattr(value, "value", value)
            return "constexpr"
        if not isinstance(value, int) or value % 16 == 0:  # torch allocates pointers well aligned
            attributes[path] = [["tt.divisibility", 16]]
        return _type(value)

    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments.get(parameter.name, parameter.default)
        signature[parameter.name] = describe(value, (index,), parameter.is_constexpr)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=launch.options)


def _type(value: Any) -> str:
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return _POINTERS[str(value.dtype)]


def _read_nvidia(cubin: bytes, shared_bytes: int) -> Resources:
    usage = _examine(cubin, "cuobjdump", "-res-usage")
    opcodes = _nvidia_opcodes(cubin)
    return Resources(
        registers=_number(r"REG:(\d+)", usage),
        # A frame that nothing is stored to is no spill.
        spill_bytes=_number(r"STACK:(\d+)", usage) if {"STL", "LDL"}.intersection(opcodes) else 0,
        shared_bytes=shared_bytes,
        instructions=len(opcodes),
        atomics=sum(opcode in _NVIDIA_ATOMICS for opcode in opcodes),
        shared_atomics=opcodes.count("ATOMS"),
    )


def _nvidia_opcodes(cubin: bytes) -> list[str]:
    code = _examine(cubin, "nvdisasm", "-c")
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.MULTILINE)
    return [opcode for opcode in found if opcode != "NOP"]  # fills up the last cache line


def _read_amd(assembly: str, shared_bytes: int) -> Resources:
    opcodes = _amd_opcodes(assembly)
    return Resources(
        registers=_number(r"\.vgpr_count:\s+(\d+)", assembly),
        spill_bytes=_number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        shared_bytes=shared_bytes,
        instructions=len(opcodes),
        atomics=sum(re.search(_AMD_ATOMIC, opcode) is not None for opcode in opcodes),
        shared_atomics=sum(re.search(_AMD_SHARED_ATOMIC, opcode) is not None for opcode in opcodes),
    )


def _amd_opcodes(assembly: str) -> list[str]:
    code = assembly.partition(".rodata")[0]
    return re.findall(r"^\s+([sv]_\w+|(?:global|flat|buffer|ds|scratch)_\w+)", code, re.MULTILINE)


def _examine(cubin: bytes, tool: str, *arguments: str) -> str:
    """What one of Triton's tools prints of a cubin."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool), *arguments, file.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the compiler's report")
    return int(match[1])

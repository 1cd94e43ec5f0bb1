"""Launching kernels: what a strategy plans once for a shape, and what is left to do on every call.

A plan depends on a `Call`, which is all of a call but its addresses, and says which kernels to launch on which grids
with which constants. A `Launcher` carries it out; it binds tensors to the kernels' parameters by name. Triton looks at
every argument of every launch to find the compiled kernel. Where the call is the same and the addresses are as well
aligned as allocations are, it would find the same one again, so a launcher remembers it: the host is left with little
more than the launch itself.

On NVIDIA GPUs from Hopper on, the launches of a call overlap (programmatic dependent launch): a later one starts while
the one before it ends, and waits inside the kernel. If asked for (``use_pdl``), a call of one launch overlaps with what
comes before it, and every call with what comes after. Every kernel of a plan takes OVERLAP, and calls `begin` before
anything else. The first of several launches always starts when all before it has ended, because the later ones read the
inputs before they wait.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from moe_align.layouts import Regions, Rows

#: Alignment in bytes that Triton compiles for where it finds it.
_ALIGNMENT = 16
#: What a compiled kernel takes instead of a description of the launch, and whom to tell before it and after it.
_NO_HOOKS = (None, None, None)
#: How a launch overlaps with others: not at all; first of a call; later; last of a call that nobody overlaps with.
_NO_OVERLAP, _OVERLAP_FIRST, _OVERLAP_LATER, _OVERLAP_LAST = map(tl.constexpr, range(4))
#: Parameters that are bound anew on every call, by the names that all kernels have for them.
_BOUND = ("topk_ids_ptr", "topk_weights_ptr", "slot_index_ptr", "weights_ptr", "counts_ptr", "workspace_ptr", "flat")


class Flat(NamedTuple):
    """What a kernel takes for a flat layout beside the arguments of rows."""

    expert_ids: Any  # out: int32 [num_blocks], every element written; None for offsets
    num_tokens_post_padded: Any  # out: int32 [1]; None for offsets
    offsets: Any  # out: int32 [num_experts + 1], every element written; None for blocks
    expert_map: Any  # in: int32 [num_experts], global to local expert; None if ids are experts
    labels: Any  # in: int32 [num_experts], what expert_ids call an expert; None if by its id
    capacity: Any  # elements of the slots
    num_blocks: Any  # elements of expert_ids
    FIRST_ID: Any  # id of expert 0
    BLOCK: Any  # slots of a block
    BINS: Any  # experts counted at a time, by programs that count all slots
    ALL_BINS: Any  # whether these are all experts
    TILE: Any  # slots counted at a time; likewise
    COLUMNS: Any  # of them, neighbours in a thread
    SHARED: Any  # whether they are counted into `bins`


class FlatCall(NamedTuple):
    """What `Call` holds of a flat layout."""

    capacity: int
    num_blocks: int
    block_size: int
    first_id: int
    has_offsets: bool
    has_expert_map: bool
    has_labels: bool


class Call(NamedTuple):
    """All of a call but its addresses.

    Attributes:
        num_slots, num_experts: of the call.
        ids_dtype: of the ids.
        weights_dtype: of the weights; None if there are none.
        device: of all tensors.
        flat: of blocks and offsets; None for rows.
    """

    num_slots: int
    num_experts: int
    ids_dtype: torch.dtype
    weights_dtype: torch.dtype | None
    device: torch.device
    flat: FlatCall | None = None


class Launch(NamedTuple):
    """One launch.

    Attributes:
        kernel: what to launch.
        grid: numbers of programs.
        constants: the arguments that are neither tensors nor in `Call`, by name.
        options: for the compiler and the launch (``num_warps``, ...).
    """

    kernel: Any
    grid: tuple[int, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


class Plan(NamedTuple):
    """What to do for a call.

    Attributes:
        launches: in this order.
        workspace: int32 elements that the launches share.
        flat: of a flat layout, what `Flat` holds after its tensors.
        zero_counts: whether the counts must be zero before the first launch.
    """

    launches: list[Launch]
    workspace: int = 0
    flat: tuple[Any, ...] | None = None
    zero_counts: bool = False


class Arguments(NamedTuple):
    """The tensors of a call, contiguous; counts are None in a flat layout, weights are where there are none."""

    topk_ids: torch.Tensor
    topk_weights: torch.Tensor | None
    slots: torch.Tensor
    weights: torch.Tensor | None
    counts: torch.Tensor | None
    flat: tuple[torch.Tensor | None, ...] = ()


def of_rows(topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: Rows) -> tuple[Call, Arguments]:
    """A call for rows; arguments are checked by `moe_align.api`."""
    call = Call(topk_ids.numel(), out.counts.numel(), topk_ids.dtype, topk_weights.dtype, topk_ids.device)
    return call, Arguments(topk_ids.contiguous(), topk_weights.contiguous(), *out)


def of_regions(topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, out: Regions) -> tuple[Call, Arguments]:
    """A call for a flat layout; arguments are checked by `moe_align.api`."""
    flat = FlatCall(
        out.slots.numel(),
        0 if out.expert_ids is None else out.expert_ids.numel(),
        out.block_size,
        out.first_id,
        out.offsets is not None,
        out.expert_map is not None,
        out.labels is not None,
    )
    if topk_weights is None:
        weights_dtype = None
    else:
        weights_dtype = topk_weights.dtype
        topk_weights = topk_weights.contiguous()
    call = Call(topk_ids.numel(), out.num_experts, topk_ids.dtype, weights_dtype, topk_ids.device, flat)
    tensors = (out.expert_ids, out.num_tokens_post_padded, out.offsets, out.expert_map, out.labels)
    return call, Arguments(topk_ids.contiguous(), topk_weights, out.slots, out.weights, None, tensors)


class Launcher:
    """Carries out a plan, for any tensors of a call; ``use_pdl`` as for `moe_align.use_pdl`."""

    def __init__(self, call: Call, plan: Plan, *, use_pdl: bool = False):
        self._plan = plan
        self._device = call.device
        self._steps = [self._step(call, plan, index, use_pdl) for index in range(len(plan.launches))]
        # Whoever launches what is compiled names all three axes of a grid.
        self._grids = [(*launch.grid, 1, 1)[:3] for launch in plan.launches]
        self._compiled: list[Any] | None = None

    @staticmethod
    def _step(
        call: Call, plan: Plan, index: int, use_pdl: bool
    ) -> tuple[Launch, tuple[Any, ...], Callable[[Any], Any]]:
        """A launch, the values that are the same in every call, and what picks the kernel's arguments from all."""
        launch, several = plan.launches[index], len(plan.launches) > 1
        overlap = _NO_OVERLAP
        if (several or use_pdl) and can_overlap(call.device):
            overlap = _OVERLAP_LATER if index > 0 else _OVERLAP_FIRST
            if index == len(plan.launches) - 1 and not use_pdl:
                overlap = _OVERLAP_LAST
            if index > 0 or not (several or plan.zero_counts):
                launch = launch._replace(options=launch.options | {"launch_pdl": True})
        shape = {"num_slots": call.num_slots, "num_experts": call.num_experts, "FLAT": plan.flat is not None}
        constants = shape | {"OVERLAP": overlap.value} | launch.constants
        place = {name: position for position, name in enumerate((*_BOUND, *constants))}
        pick = operator.itemgetter(*[place[name] for name in launch.kernel.arg_names])
        return launch, tuple(constants.values()), pick

    def __call__(self, arguments: Arguments) -> None:
        """Launch everything on the current stream of the tensors' device, which must be the current one."""
        *tensors, flat = arguments
        workspace = None
        if self._plan.workspace:
            workspace = torch.empty(self._plan.workspace, dtype=torch.int32, device=self._device)
        if self._plan.zero_counts and arguments.counts is not None:
            arguments.counts.zero_()
        bound = (*tensors, workspace, None if self._plan.flat is None else Flat(*flat, *self._plan.flat))
        aligned = not sum(tensor.data_ptr() % _ALIGNMENT for tensor in (*tensors, *flat) if tensor is not None)
        if aligned and self._compiled and not _hooked():
            stream = triton.runtime.driver.active.get_current_stream(self._device.index)
            for kernel, grid, (_, constants, pick) in zip(self._compiled, self._grids, self._steps, strict=True):
                kernel.run(*grid, stream, kernel.function, kernel.packed_metadata, *_NO_HOOKS, *pick(bound + constants))
            return
        kernels = [
            launch.kernel[launch.grid](*pick(bound + constants), **launch.options)
            for launch, constants, pick in self._steps
        ]
        # Triton's interpreter, and who records launches, return none.
        if aligned and all(isinstance(kernel, triton.compiler.CompiledKernel) for kernel in kernels):
            self._compiled = kernels


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """Let the next launch start; before, in the first launch of a call, wait for all that came earlier.

    The later ones have to `wait` before they read what the launch before them writes, or write what others may read.
    """
    if OVERLAP == _OVERLAP_FIRST:
        tl.extra.cuda.gdc_wait()
    if OVERLAP != _NO_OVERLAP and OVERLAP != _OVERLAP_LAST:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(OVERLAP: tl.constexpr):
    """In the later launches of a call, wait for the one before it, which has waited for all before that.

    Every program must come here, or the launch after this one would not have waited for those before it.
    """
    if OVERLAP != _NO_OVERLAP and OVERLAP != _OVERLAP_FIRST:
        tl.extra.cuda.gdc_wait()


@functools.lru_cache
def can_overlap(device: torch.device) -> bool:
    """Whether the GPU starts a launch before the one it depends on has ended."""
    return on_nvidia(device) and torch.cuda.get_device_capability(device) >= (9, 0)


def on_nvidia(device: torch.device) -> bool:
    """Whether kernels for the device are compiled to NVIDIA's instructions."""
    return device.type == "cuda" and torch.version.hip is None


def _hooked() -> bool:
    """Whether a profiler wants to know of launches; Triton tells it."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)

"""The public functions: check, allocate, choose, launch."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch

from moe_align import kernels, reference
from moe_align.kernels import schedule
from moe_align.layouts import Rows, schedule_capacity
from moe_align.strategy import MAX_TILE, STRATEGIES, RunConfig, gpu_name, run_config_for

Implementation = Literal["deterministic", "atomic", "reference"]

_ID_DTYPES = (torch.int32, torch.int64)
_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Slots are int32, and the last tile of a kernel may count this far past the last slot.
_MAX_NUM_SLOTS = 2**31 - 1 - MAX_TILE


def align_rows(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    num_experts: int,
    *,
    out: Rows | None = None,
    implementation: Implementation = "deterministic",
    run_config: RunConfig | None = None,
    check_ids: bool = False,
) -> Rows:
    """Group slots and their weights by expert, one row per expert, in slot order.

    Within a row, slots ascend: same input, same bits, whatever the launch configuration ("atomic" alone promises no
    order). Nothing synchronises with the host (unless ``check_ids``), so the call can be captured in a CUDA graph.

    Args:
        topk_ids: int32 or int64 [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        topk_weights: float32, float16 or bfloat16 [num_tokens, top_k], on the same device.
        num_experts: number of experts, at least 1.
        out: rows to write into instead of new ones: contiguous, on the device of ``topk_ids``, weights in the dtype
            of ``topk_weights``. Beyond the counts nothing is written.
        implementation: "deterministic"; "atomic", the baseline, whose rows may be in any order; or "reference", plain
            torch. CPU tensors are served by the reference, whichever is named.
        run_config: launch options, for tuning; whatever they are, the result is the same. ``strategy`` is "scan",
            "sift" or "tiles", and the others are that strategy's (see `moe_align.strategy`): for "scan", which is meant
            where none is named, ``BLOCK_SIZE`` (slots per tile), ``EXPERT_BLOCK`` (experts per program), ``NUM_STAGE``
            (loads in flight) and ``num_warps``. "atomic" takes ``BLOCK_SIZE`` and ``num_warps``.
        check_ids: raise on the first id outside the range. Off by default because it synchronises with the host.

    Returns:
        Rows: ``out`` if it was given. Inputs that are not contiguous are copied first.

    Raises:
        TypeError: an argument of the wrong type, or a tensor of the wrong dtype.
        ValueError: a wrong shape, device or value; or, with ``check_ids``, an id outside the range.

    >>> rows = align_rows(torch.tensor([[1, 0], [1, 2]]), torch.tensor([[0.9, 0.1], [0.6, 0.4]]), num_experts=3)
    >>> rows.counts.tolist()
    [1, 2, 1]
    >>> [row[:count].tolist() for row, count in zip(rows.slot_index, rows.counts)]
    [[1], [0, 2], [3]]
    """
    _check_tensor("topk_ids", topk_ids, _ID_DTYPES)
    _check_tensor("topk_weights", topk_weights, _WEIGHT_DTYPES, device=topk_ids.device)
    if topk_ids.dim() != 2:
        raise ValueError(f"topk_ids: expected shape [num_tokens, top_k], got {list(topk_ids.shape)}")
    if topk_weights.shape != topk_ids.shape:
        expected = list(topk_ids.shape)
        raise ValueError(f"topk_weights: expected the shape of topk_ids, {expected}, got {list(topk_weights.shape)}")
    _check_positive("num_experts", num_experts)
    num_slots = topk_ids.numel()
    if num_slots > _MAX_NUM_SLOTS:
        raise ValueError(f"topk_ids: expected at most {_MAX_NUM_SLOTS} slots, got {num_slots}")
    if implementation not in ("deterministic", "atomic", "reference"):
        raise ValueError(f"implementation: expected 'deterministic', 'atomic' or 'reference', got {implementation!r}")
    config = run_config_for(implementation, run_config, num_slots, num_experts, gpu_name(topk_ids.device))
    if check_ids:
        _check_ids(topk_ids, num_experts)

    if out is None:
        out = Rows.empty(num_experts, num_slots, topk_weights.dtype, topk_ids.device)
    else:
        _check_out(out, topk_weights, num_experts, num_slots)

    if implementation == "reference" or not _runs_kernels(topk_ids):
        reference.align_rows(topk_ids, topk_weights, out)
    else:
        with _on_device_of(topk_ids):
            launch = STRATEGIES[config["strategy"]].align_rows
            launch(topk_ids.contiguous(), topk_weights.contiguous(), out, config)
    return out


def schedule_blocks(counts: torch.Tensor, num_slots: int, block_size: int) -> torch.Tensor:
    """List the GEMM blocks of every expert, in the order of experts.

    Args:
        counts: int32 [num_experts]; slots of each expert, their sum at most ``num_slots``.
        num_slots: slots of the call; it sizes the schedule, so that nothing depends on the counts' values.
        block_size: slots per block, at least 1.

    Returns:
        int32 [capacity, 3]: expert, block within the expert, and the block's first slot counted over all experts;
        rows beyond the last block are -1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or value. The sum of the counts is not checked (that would synchronise); blocks
            beyond the capacity are dropped.

    >>> schedule_blocks(torch.tensor([3, 0, 1], dtype=torch.int32), num_slots=4, block_size=2).tolist()
    [[0, 0, 0], [0, 1, 2], [2, 0, 3], [-1, -1, -1]]
    """
    _check_tensor("counts", counts, (torch.int32,))
    if counts.dim() != 1 or not len(counts):
        raise ValueError(f"counts: expected shape [num_experts], at least 1 expert, got {list(counts.shape)}")
    if len(counts) > MAX_TILE:
        raise ValueError(f"counts: expected at most {MAX_TILE} experts, got {len(counts)}")
    _check_int("num_slots", num_slots)
    if not 0 <= num_slots <= _MAX_NUM_SLOTS:
        raise ValueError(f"num_slots: expected 0 to {_MAX_NUM_SLOTS}, got {num_slots}")
    _check_positive("block_size", block_size)
    capacity = schedule_capacity(num_slots, len(counts), block_size)
    out = torch.empty((capacity, 3), dtype=torch.int32, device=counts.device)
    if _runs_kernels(counts):
        with _on_device_of(counts):
            schedule.schedule_blocks(counts.contiguous(), block_size, out)
    else:
        reference.schedule_blocks(counts, block_size, out)
    return out


def _runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether the kernels can read ``tensor``."""
    return tensor.is_cuda or kernels.INTERPRETED


def _on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def _check_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r} ({type(value).__name__})")


def _check_positive(name: str, value: Any) -> None:
    _check_int(name, value)
    if not 1 <= value < 2**31:
        raise ValueError(f"{name}: expected at least 1 and less than 2**31, got {value}")


def _check_tensor(name: str, tensor: Any, dtypes: tuple[torch.dtype, ...], device: torch.device | None = None) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name}: expected dtype {expected}, got {tensor.dtype}")
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a CPU or CUDA tensor, got device {tensor.device}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, that of the other arguments, got {tensor.device}")


def _check_out(out: Any, topk_weights: torch.Tensor, num_experts: int, num_slots: int) -> None:
    if not isinstance(out, Rows):
        raise TypeError(f"out: expected moe_align.Rows, got {type(out).__name__}")
    matrix = (num_experts, num_slots)
    for name, tensor, dtype, shape in (
        ("out.slot_index", out.slot_index, torch.int32, matrix),
        ("out.weights", out.weights, topk_weights.dtype, matrix),
        ("out.counts", out.counts, torch.int32, (num_experts,)),
    ):
        _check_tensor(name, tensor, (dtype,), device=topk_weights.device)
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(tensor.stride())}")


def _check_ids(topk_ids: torch.Tensor, num_experts: int) -> None:
    bad = ((topk_ids < 0) | (topk_ids >= num_experts)).reshape(-1).nonzero()
    if len(bad):
        slot = int(bad[0])
        token, k = divmod(slot, topk_ids.shape[1])
        raise ValueError(
            f"topk_ids[{token}, {k}] (slot {slot}): expected 0 <= id < {num_experts}, got {int(topk_ids[token, k])}"
        )

"""The public functions: check and allocate; `moe_align.dispatch` fills."""

from __future__ import annotations

from typing import Any, Literal

import torch

from moe_align import ops
from moe_align.dispatch import first_block_id
from moe_align.layouts import Blocks, Offsets, Rows, blocks_capacity, schedule_capacity
from moe_align.strategy import MAX_TILE, RunConfig, checked_run_config

Implementation = Literal["deterministic", "atomic", "reference"]
FlatImplementation = Literal["deterministic", "reference"]

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
            "sift", "collect" or "tiles", and the others are that strategy's (see `moe_align.strategy`): for "scan",
            which is meant where none is named, ``BLOCK_SIZE`` (slots per tile), ``EXPERT_BLOCK`` (experts per program),
            ``NUM_STAGE`` (loads in flight) and ``num_warps``. "atomic" takes ``BLOCK_SIZE`` and ``num_warps``.
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
    if topk_weights is None:
        raise TypeError("topk_weights: expected a torch.Tensor, got NoneType")
    _check_topk(topk_ids, topk_weights)
    _check_positive("num_experts", num_experts)
    num_slots = topk_ids.numel()
    if implementation not in ("deterministic", "atomic", "reference"):
        raise ValueError(f"implementation: expected 'deterministic', 'atomic' or 'reference', got {implementation!r}")
    if run_config is not None:
        checked_run_config(implementation, run_config)
    if check_ids:
        _check_ids(topk_ids, range(num_experts))

    if out is None:
        out = Rows.empty(num_experts, num_slots, topk_weights.dtype, topk_ids.device)
    else:
        matrix = (num_experts, num_slots)
        _check_out(out, Rows, topk_ids, topk_weights, slot_index=matrix, weights=matrix, counts=(num_experts,))
    ops.align_rows(topk_ids, topk_weights, out, implementation, run_config)
    return out


def align_blocks(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    *,
    expert_map: torch.Tensor | None = None,
    keep_remote: bool = False,
    topk_weights: torch.Tensor | None = None,
    whole_blocks: bool = False,
    out: Blocks | None = None,
    implementation: FlatImplementation = "deterministic",
    run_config: RunConfig | None = None,
    check_ids: bool = False,
) -> Blocks:
    """Sort slots by expert, in slot order, each expert padded to whole blocks of a grouped GEMM.

    Same input, same bits, whatever the launch configuration. Every element is written, by the kernels themselves.
    Nothing synchronises with the host (unless ``check_ids``), so the call can be captured in a CUDA graph.

    Args:
        topk_ids: int32 or int64 [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        block_size: slots of a block, at least 1.
        num_experts: number of experts that the ids address, from 1 to 2**20; with ``expert_map``, that of all ranks.
        expert_map: int32 [num_experts], for expert parallelism: the local expert of each id, -1 for those of other
            ranks. Slots are then sorted by local expert, and those of other ranks are dropped.
        keep_remote: place the slots of other ranks too, in blocks labelled -1, which a GEMM skips. With ``expert_map``
            these are the slots of experts that it maps to -1, and blocks are then in the order of ids, not of local
            experts. Without it these are the slots whose id is -1; their blocks come first, and need room as those of
            one more expert do.
        topk_weights: float32, float16 or bfloat16 [num_tokens, top_k], on the same device.
        whole_blocks: without ``out``, round the room for slots and padding up to whole blocks.
        out: blocks to write into instead of new ones: contiguous, on the device of ``topk_ids``, with weights in the
            dtype of ``topk_weights`` if these are given, with room for all slots and their padding, or more.
        implementation: "deterministic", or "reference", plain torch, which serves CPU tensors, whichever is named.
        run_config: launch options, as for `align_rows`.
        check_ids: raise on the first id outside the range. Off by default because it synchronises with the host.

    Returns:
        Blocks: ``out`` if it was given; if not, with room for ``num_slots + num_experts * (block_size - 1)`` slots and
        padding, or for ``num_slots * block_size`` if that is less. Inputs that are not contiguous are copied first.

    Raises:
        TypeError: an argument of the wrong type, or a tensor of the wrong dtype.
        ValueError: a wrong shape, device or value; or, with ``check_ids``, an id outside the range. What
            ``expert_map`` holds is not checked (that would synchronise); slots that it leads out of range are dropped.

    >>> blocks = align_blocks(torch.tensor([[1, 0], [1, 2]]), block_size=2, num_experts=3)
    >>> blocks.sorted_token_ids.tolist(), blocks.expert_ids.tolist(), blocks.num_tokens_post_padded.tolist()
    ([1, 4, 0, 2, 3, 4, 4], [0, 1, 2, -1], [6])
    """
    _check_topk(topk_ids, topk_weights)
    _check_positive("block_size", block_size)
    num_slots, first_id = topk_ids.numel(), first_block_id(expert_map, keep_remote)
    _check_flat(num_experts, implementation, run_config)
    if expert_map is not None:
        _check_tensor("expert_map", expert_map, (torch.int32,), device=topk_ids.device)
        if expert_map.shape != (num_experts,):
            raise ValueError(f"expert_map: expected shape [{num_experts}], got {list(expert_map.shape)}")
    num_regions = num_experts - first_id
    capacity = blocks_capacity(num_slots, num_regions, block_size)
    if capacity > _MAX_NUM_SLOTS:
        raise ValueError(f"block_size: expected at most {_MAX_NUM_SLOTS} slots and padding, got {capacity}")
    if check_ids:
        _check_ids(topk_ids, range(first_id, num_experts))
    if out is None:
        weights_dtype = None if topk_weights is None else topk_weights.dtype
        size = num_slots, num_regions, block_size
        out = Blocks.empty(*size, topk_ids.device, weights_dtype=weights_dtype, whole_blocks=whole_blocks)
    else:
        _check_blocks(out, topk_ids, topk_weights, capacity, block_size)
    given = (topk_ids, topk_weights, block_size, num_experts, expert_map, keep_remote)
    ops.align_blocks(*given, out, implementation, run_config)
    return out


def align_offsets(
    topk_ids: torch.Tensor,
    num_experts: int,
    *,
    topk_weights: torch.Tensor | None = None,
    out: Offsets | None = None,
    implementation: FlatImplementation = "deterministic",
    run_config: RunConfig | None = None,
    check_ids: bool = False,
) -> Offsets:
    """Sort slots by expert, in slot order, without padding (CSR).

    Same input, same bits, whatever the launch configuration. Every element is written. Nothing synchronises with the
    host (unless ``check_ids``), so the call can be captured in a CUDA graph.

    Args:
        topk_ids: int32 or int64 [num_tokens, top_k]; ids outside ``[0, num_experts)`` are dropped.
        num_experts: number of experts, from 1 to 2**20.
        topk_weights: float32, float16 or bfloat16 [num_tokens, top_k], on the same device.
        out: offsets to write into instead of new ones: contiguous, on the device of ``topk_ids``, with weights in the
            dtype of ``topk_weights`` if these are given.
        implementation: "deterministic", or "reference", plain torch, which serves CPU tensors, whichever is named.
        run_config: launch options, as for `align_rows`.
        check_ids: raise on the first id outside the range. Off by default because it synchronises with the host.

    Returns:
        Offsets: ``out`` if it was given. Inputs that are not contiguous are copied first.

    Raises:
        TypeError: an argument of the wrong type, or a tensor of the wrong dtype.
        ValueError: a wrong shape, device or value; or, with ``check_ids``, an id outside the range.

    >>> slots, offsets, _ = align_offsets(torch.tensor([[1, 0], [1, 2]]), num_experts=3)
    >>> slots.tolist(), offsets.tolist()
    ([1, 0, 2, 3], [0, 1, 3, 4])
    """
    _check_topk(topk_ids, topk_weights)
    num_slots = topk_ids.numel()
    _check_flat(num_experts, implementation, run_config)
    if check_ids:
        _check_ids(topk_ids, range(num_experts))
    if out is None:
        weights_dtype = None if topk_weights is None else topk_weights.dtype
        out = Offsets.empty(num_slots, num_experts, topk_ids.device, weights_dtype=weights_dtype)
    else:
        shapes = {"slots": (num_slots,), "offsets": (num_experts + 1,), "weights": (num_slots,)}
        _check_out(out, Offsets, topk_ids, topk_weights, **shapes)
    ops.align_offsets(topk_ids, topk_weights, out, implementation, run_config)
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
    ops.schedule_blocks(counts, block_size, out)
    return out


def _check_flat(num_experts: Any, implementation: Any, run_config: Any) -> None:
    """Check what the flat layouts have in common."""
    _check_positive("num_experts", num_experts)
    if num_experts > MAX_TILE:
        raise ValueError(f"num_experts: expected at most {MAX_TILE}, got {num_experts}")
    if implementation not in ("deterministic", "reference"):
        raise ValueError(f"implementation: expected 'deterministic' or 'reference', got {implementation!r}")
    if run_config is not None:
        checked_run_config(implementation, run_config)


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


def _check_topk(topk_ids: Any, topk_weights: Any) -> None:
    """Check ids, and weights unless they are None."""
    _check_tensor("topk_ids", topk_ids, _ID_DTYPES)
    if topk_weights is not None:
        _check_tensor("topk_weights", topk_weights, _WEIGHT_DTYPES, device=topk_ids.device)
    if topk_ids.dim() != 2:
        raise ValueError(f"topk_ids: expected shape [num_tokens, top_k], got {list(topk_ids.shape)}")
    if topk_weights is not None and topk_weights.shape != topk_ids.shape:
        expected = list(topk_ids.shape)
        raise ValueError(f"topk_weights: expected the shape of topk_ids, {expected}, got {list(topk_weights.shape)}")
    if topk_ids.numel() > _MAX_NUM_SLOTS:
        raise ValueError(f"topk_ids: expected at most {_MAX_NUM_SLOTS} slots, got {topk_ids.numel()}")


def _check_out(
    out: Any, layout: type, topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, **shapes: tuple[int, ...]
) -> None:
    """Check the type of ``out``, and the dtype, device and shape of each of its tensors."""
    if not isinstance(out, layout):
        raise TypeError(f"out: expected moe_align.{layout.__name__}, got {type(out).__name__}")
    for field, shape in shapes.items():
        name, tensor, dtype = f"out.{field}", getattr(out, field), torch.int32
        if field == "weights":
            if topk_weights is None:
                if tensor is not None:
                    raise ValueError(f"{name}: expected None without topk_weights, got {type(tensor).__name__}")
                continue
            dtype = topk_weights.dtype
        _check_tensor(name, tensor, (dtype,), device=topk_ids.device)
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(tensor.stride())}")


def _check_blocks(
    out: Any, topk_ids: torch.Tensor, topk_weights: torch.Tensor | None, capacity: int, block_size: int
) -> None:
    """As `_check_out`, for Blocks, which may have more room than they need."""
    rooms = {}
    for field, least in (("sorted_token_ids", capacity), ("expert_ids", -(-capacity // block_size))):
        tensor = getattr(out, field, None)
        given = tensor.numel() if isinstance(tensor, torch.Tensor) else least
        if not least <= given <= _MAX_NUM_SLOTS:
            raise ValueError(f"out.{field}: expected {least} to {_MAX_NUM_SLOTS} elements, got {given}")
        rooms[field] = (given,)
    weights = rooms["sorted_token_ids"]
    _check_out(out, Blocks, topk_ids, topk_weights, **rooms, num_tokens_post_padded=(1,), weights=weights)


def _check_ids(topk_ids: torch.Tensor, valid: range) -> None:
    bad = ((topk_ids < valid.start) | (topk_ids >= valid.stop)).reshape(-1).nonzero()
    if len(bad):
        slot = int(bad[0])
        token, k = divmod(slot, topk_ids.shape[1])
        raise ValueError(
            f"topk_ids[{token}, {k}] (slot {slot}): "
            f"expected {valid.start} <= id < {valid.stop}, got {int(topk_ids[token, k])}"
        )

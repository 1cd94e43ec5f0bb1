"""vLLM's call: its signature, shapes, sentinels, and both ways of expert parallelism."""

import inspect

import pytest
import torch

from moe_align.compat import vllm
from tests.moe_align import flat
from tests.moe_align.cases import each_case, each_id_dtype, random_ids

# Experts 1 and 4 are on this rank, in the other order.
EXPERT_MAP = torch.tensor([-1, 1, -1, -1, 0], dtype=torch.int32)


def test_signature_is_that_of_vllm():
    parameters = inspect.signature(vllm.moe_align_block_size).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    empty = inspect.Parameter.empty
    assert list(defaults.items()) == [
        ("topk_ids", empty),
        ("block_size", empty),
        ("num_experts", empty),
        ("expert_map", None),
        ("pad_sorted_ids", False),
        ("ignore_invalid_experts", False),
    ]
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def room(num_slots, block_size, num_experts, pad_sorted_ids):
    """Lengths of vLLM's two buffers."""
    padded = num_slots + num_experts * (block_size - 1)
    if pad_sorted_ids:
        padded = (padded + block_size - 1) // block_size * block_size
    if num_slots < num_experts:
        padded = min(num_slots * block_size, padded)
    return padded, (padded + block_size - 1) // block_size


def check(topk_ids, block_size, num_experts, expert_map=None, pad_sorted_ids=False, ignore_invalid_experts=False):
    result = vllm.moe_align_block_size(
        topk_ids, block_size, num_experts, expert_map, pad_sorted_ids, ignore_invalid_experts
    )
    sizes = room(topk_ids.numel(), block_size, num_experts, pad_sorted_ids)
    expected = flat.expected_blocks(
        topk_ids,
        block_size,
        num_experts,
        *sizes,
        expert_map=expert_map,
        keep_remote=expert_map is not None and not ignore_invalid_experts,
    )
    assert [buffer.dtype for buffer in result] == [torch.int32] * 3
    assert [buffer.tolist() for buffer in result] == list(expected)


@each_id_dtype
@each_case
def test_without_a_map(device, case, ids_dtype):
    check(case.tensor(device, ids_dtype), 16, case.num_experts)


@pytest.mark.parametrize("ignore_invalid_experts", [False, True], ids=["keep", "ignore"])
@pytest.mark.parametrize("pad_sorted_ids", [False, True], ids=["exact", "pad"])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 20], ids="tokens={}".format)
@pytest.mark.parametrize("block_size", [1, 16, 64, 128], ids="block_size={}".format)
def test_with_a_map(device, num_tokens, block_size, pad_sorted_ids, ignore_invalid_experts):
    topk_ids = random_ids(num_tokens, 2, 5).to(device)
    check(topk_ids, block_size, 5, EXPERT_MAP.to(device), pad_sorted_ids, ignore_invalid_experts)


def test_the_example_of_its_documentation(device):
    # Ids from 1 to 4, of which num_experts = 4 does not know the last.
    topk_ids = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]], device=device)
    sorted_ids, expert_ids, num_tokens_post_pad = vllm.moe_align_block_size(topk_ids, 4, 5)
    assert sorted_ids[:16].tolist() == [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert expert_ids.tolist() == [1, 2, 3, 4, -1, -1, -1]
    assert num_tokens_post_pad.tolist() == [16]
    assert vllm.moe_align_block_size(topk_ids, 4, 4)[2].tolist() == [12]


def test_remote_experts_keep_their_blocks_or_do_not(device):
    topk_ids = torch.tensor([[0, 1], [4, 4], [3, -1]], device=device)
    expert_map = EXPERT_MAP.to(device)
    kept = vllm.moe_align_block_size(topk_ids, 2, 5, expert_map)
    assert kept[0].tolist() == [0, 6, 1, 6, 4, 6, 2, 3, 6, 6, 6]
    assert kept[1].tolist() == [-1, 1, -1, 0, -1, -1]
    assert kept[2].tolist() == [8]
    ignored = vllm.moe_align_block_size(topk_ids, 2, 5, expert_map, ignore_invalid_experts=True)
    assert ignored[0].tolist() == [2, 3, 1, 6, 6, 6, 6, 6, 6, 6, 6]
    assert ignored[1].tolist() == [0, 1, -1, -1, -1, -1]
    assert ignored[2].tolist() == [4]


def test_errors_name_the_argument(device):
    with pytest.raises(ValueError, match="block_size: expected at least 1"):
        vllm.moe_align_block_size(random_ids(2, 2, 3).to(device), 0, 3)

"""SGLang's call: its signature, its room, its bucket for ids of -1."""

import inspect

import pytest
import torch

from moe_align.compat import sglang
from tests.moe_align import flat
from tests.moe_align.cases import each_case, each_id_dtype, random_ids


def test_signature_is_that_of_sglang():
    parameters = inspect.signature(sglang.moe_align_block_size).parameters
    assert list(parameters) == ["topk_ids", "block_size", "num_experts"]
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {parameter.default for parameter in parameters.values()} == {inspect.Parameter.empty}


def room(num_slots, block_size, num_experts):
    """Lengths of SGLang's two buffers."""
    padded = num_slots + (num_experts + 1) * (block_size - 1)
    if num_slots < num_experts + 1:
        padded = num_slots * block_size
    return padded, (padded + block_size - 1) // block_size


def check(topk_ids, block_size, num_experts):
    result = sglang.moe_align_block_size(topk_ids, block_size, num_experts)
    sizes = room(topk_ids.numel(), block_size, num_experts)
    expected = flat.expected_blocks(topk_ids, block_size, num_experts, *sizes, keep_remote=True)
    assert [buffer.dtype for buffer in result] == [torch.int32] * 3
    assert [buffer.tolist() for buffer in result] == list(expected)


@each_id_dtype
@each_case
def test_blocks(device, case, ids_dtype):
    check(case.tensor(device, ids_dtype), 16, case.num_experts)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 20], ids="tokens={}".format)
@pytest.mark.parametrize("block_size", [1, 16, 64, 128], ids="block_size={}".format)
def test_block_sizes(device, num_tokens, block_size):
    check(random_ids(num_tokens, 2, 6).sub(1).to(device), block_size, 5)


def test_ids_of_minus_one_come_first_in_blocks_of_their_own(device):
    topk_ids = torch.tensor([[1, -1], [0, 1], [-1, -1]], device=device)
    sorted_ids, expert_ids, num_tokens_post_pad = sglang.moe_align_block_size(topk_ids, 2, 2)
    assert sorted_ids.tolist() == [1, 4, 5, 6, 2, 6, 0, 3, 6]
    assert expert_ids.tolist() == [-1, -1, 0, 1, -1]
    assert num_tokens_post_pad.tolist() == [8]


def test_errors_name_the_argument(device):
    with pytest.raises(TypeError, match="num_experts: expected an int"):
        sglang.moe_align_block_size(random_ids(2, 2, 3).to(device), 4, 3.0)

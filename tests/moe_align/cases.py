"""Inputs that hurt, for every implementation alike."""

from typing import NamedTuple

import pytest
import torch


class Case(NamedTuple):
    """Ids of one call; ``top_k`` says the shape where there is nothing to count."""

    num_experts: int
    top_k: int
    topk_ids: list

    def tensor(self, device, dtype=torch.int64):
        return torch.tensor(self.topk_ids, dtype=dtype, device=device).reshape(len(self.topk_ids), self.top_k)


def random_ids(num_tokens, top_k, num_experts, seed=0):
    """Independent choices: duplicates within a token occur."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_experts, (num_tokens, top_k), generator=generator)


def routed_ids(num_tokens, top_k, num_experts, seed=0):
    """As a router chooses: ``top_k`` different experts a token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((num_tokens, num_experts), generator=generator).topk(top_k).indices


def _random(num_tokens, top_k, num_experts):
    return Case(num_experts, top_k, random_ids(num_tokens, top_k, num_experts).tolist())


#: Every id fits int32.
CASES = {
    "no-tokens": Case(5, 8, []),
    "no-choices": Case(5, 0, [[], [], []]),
    "one-slot": Case(1, 1, [[0]]),
    "one-expert": Case(1, 3, [[0, 0, 0]] * 5),
    "first-and-last-expert": Case(6, 2, [[5, 0], [0, 5]]),
    "127-slots": _random(127, 1, 5),
    "128-slots": _random(64, 2, 5),
    "129-slots": _random(43, 3, 5),
    "prime-131-slots": _random(131, 1, 3),
    "more-experts-than-slots": _random(1, 8, 31),
    "one-takes-all": Case(7, 2, [[3, 3]] * 65),
    "last-takes-all": Case(5, 1, [[4]] * 129),
    "most-empty": Case(13, 2, [[0, 12]] * 9),
    "duplicates-in-a-row": Case(3, 3, [[1, 1, 1], [0, 0, 1], [2, 1, 2], [2, 2, 2]]),
    "id-equals-num-experts": Case(5, 2, [[5, 4], [4, 5], [0, 5]]),
    "padded-lanes-chosen": Case(5, 4, [[5, 6, 7, 0], [8, 9, 15, 4], [5, 1, 6, 16]]),
    "negative": Case(3, 2, [[-1, 2], [-2, -3], [0, -1]]),
    "int32-extremes": Case(3, 2, [[-(2**31), 0], [2**31 - 1, 2], [1, -(2**31) + 1]]),
    "all-dropped": Case(4, 2, [[-1, 4], [-1, -1], [5, 100]]),
}
#: Truncated to 32 bits, each of these would be expert 0, 1 or 2, or -1.
WIDE_IDS = Case(
    num_experts=3,
    top_k=2,
    topk_ids=[
        [2**40, 0],
        [-(2**40), 1],
        [2**32 + 1, 2],
        [-(2**32) + 2, 0],
        [2**63 - 1, -(2**63)],
        [2**33, 1],
    ],
)

each_case = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
each_id_dtype = pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
each_weights_dtype = pytest.mark.parametrize(
    "weights_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
#: Experts and choices a token of models in use, shared experts included.
each_model = pytest.mark.parametrize(
    ("num_experts", "top_k"),
    [
        pytest.param(8, 2, id="mixtral"),
        pytest.param(128, 8, id="qwen3"),
        pytest.param(257, 9, id="deepseek-v3"),
        pytest.param(513, 11, id="qwen3-next"),
        pytest.param(896, 16, id="kimi-k3"),
    ],
)

"""Real model shapes and routings. Append-only: a changed entry would silently change the meaning of a series."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Model(NamedTuple):
    """How a model routes: experts per layer, and experts per token."""

    num_experts: int
    top_k: int


#: By name; "+shared" has the shared expert fused in as one more routed expert.
MODELS = {
    "Mixtral 8x7B (8, 2)": Model(8, 2),
    "OLMoE (64, 8)": Model(64, 8),
    "gpt-oss-120b (128, 4)": Model(128, 4),
    "Qwen3 MoE (128, 8)": Model(128, 8),
    "Llama-4 Maverick +shared (129, 2)": Model(129, 2),
    "GLM-4.5 +shared (161, 9)": Model(161, 9),
    "DeepSeek-V3 (256, 8)": Model(256, 8),
    "Kimi-K2 (384, 8)": Model(384, 8),
    "Qwen3-Next (512, 10)": Model(512, 10),
    "Kimi-K3 (896, 16)": Model(896, 16),
}
#: Tokens of one call: a single user's decode step up to a long prefill.
TOKENS = [1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768]
#: How tokens choose: every expert alike; by Zipf's law; all the same expert.
ROUTINGS = ["uniform", "zipf", "one expert"]


def route(model: Model, num_tokens: int, routing: str, device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded router output.

    Args:
        model: experts and experts per token.
        num_tokens: tokens of the call.
        routing: one of `ROUTINGS`.
        device: where the tensors go.
        seed: another seed, another input.

    Returns:
        topk_ids int32 and topk_weights float32, both [num_tokens, top_k]. Experts of a token are distinct, except
        with "one expert".
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    num_experts, top_k = model
    topk_weights = torch.rand((num_tokens, top_k), generator=generator, device=device)
    if routing == "one expert":
        topk_ids = torch.full((num_tokens, top_k), num_experts // 2, dtype=torch.int32, device=device)
        return topk_ids, topk_weights
    # The k largest of log-probability plus Gumbel noise are a draw without replacement.
    noise = torch.rand((num_tokens, num_experts), generator=generator, device=device)
    scores = -torch.log(-torch.log(noise.clamp(1e-10, 1 - 1e-7)))
    if routing == "zipf":
        popularity = torch.randperm(num_experts, generator=generator, device=device) + 1
        scores -= popularity.float().log()
    elif routing != "uniform":
        raise ValueError(f"routing: expected one of {ROUTINGS}, got {routing!r}")
    return scores.topk(top_k, dim=1).indices.to(torch.int32), topk_weights

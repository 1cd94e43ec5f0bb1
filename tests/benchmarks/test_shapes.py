import pytest
import torch

from benchmarks.shapes import MODELS, ROUTINGS, Model, route

MODEL = Model(60, 4)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_routing_is_seeded(routing):
    one, again, other = (route(MODEL, 50, routing, "cpu", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[1], other[1])
    if routing != "one expert":
        assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("routing", ROUTINGS)
def test_routing_leaves_the_global_generator_alone(routing):
    before = torch.random.get_rng_state()
    route(MODEL, 5, routing, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("tokens", [0, 1, 127], ids="{}-tokens".format)
def test_shape_dtype_and_range(routing, tokens):
    ids, weights = route(MODEL, tokens, routing, "cpu")
    assert (ids.shape, ids.dtype) == ((tokens, 4), torch.int32)
    assert (weights.shape, weights.dtype) == ((tokens, 4), torch.float32)
    assert not ((ids < 0) | (ids >= 60)).any()
    assert ids.is_contiguous()
    assert weights.is_contiguous()


@pytest.mark.parametrize("routing", ["uniform", "zipf"])
@pytest.mark.parametrize("model", [pytest.param(model, id=name) for name, model in MODELS.items()])
def test_experts_of_a_token_are_distinct(model, routing):
    ids, _ = route(model, 64, routing, "cpu")
    assert [len(set(token)) for token in ids.tolist()] == [model.top_k] * 64


def share_of_the_busiest(routing, experts=6):
    """Share of the slots that the busiest tenth of the experts get."""
    ids, _ = route(MODEL, 4096, routing, "cpu")
    counts = torch.bincount(ids.reshape(-1), minlength=60).sort(descending=True).values
    return (counts[:experts].sum() / counts.sum()).item()


def test_uniform_is_even():
    # A tenth of the slots, and a little more: they are the busiest of 60.
    assert 0.10 <= share_of_the_busiest("uniform") < 0.12


def test_zipf_is_skewed_and_reaches_most_experts():
    assert share_of_the_busiest("zipf") > 0.35
    ids, _ = route(MODEL, 4096, "zipf", "cpu")
    assert len(ids.unique()) == 60


def test_one_expert_is_one_expert():
    ids, weights = route(MODEL, 50, "one expert", "cpu")
    assert ids.unique().tolist() == [30]
    assert len(weights.unique()) > 100


@pytest.mark.parametrize("routing", ["Uniform", "", "one_expert"])
def test_unknown_routing_raises(routing):
    with pytest.raises(ValueError, match=r"routing: expected one of \['uniform', 'zipf', 'one expert'\], got"):
        route(MODEL, 5, routing, "cpu")

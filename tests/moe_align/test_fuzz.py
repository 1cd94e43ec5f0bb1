"""The fuzzer itself: it passes what is right, and sees what is not."""

import pytest
import torch

from moe_align.strategy import strategies
from tests.moe_align import fuzz

#: No two of which are alike.
SEEDS = range(0, 10**6, fuzz.ALIKE)


def test_random_calls_agree(device):
    # The interpreter is slow.
    number, largest = (24, 2**18) if device.type == "cuda" else (12, 2**8)
    calls = [fuzz.draw(seed, largest) for seed in SEEDS[:number]]
    assert [call for call in calls if fuzz.one_call(call, device)] == []


def test_every_strategy_spread_and_stride_is_drawn():
    drawn = [fuzz.draw(seed) for seed in SEEDS[:300]]
    assert {(call.run_config or {}).get("strategy") for call in drawn} == {None, *strategies("deterministic")}
    assert {call.spread for call in drawn} == set(fuzz.SPREADS)
    assert {call.strides for call in drawn} == set(fuzz.STRIDES)
    assert {call.layout for call in drawn} == set(fuzz.LAYOUTS)
    assert {call.expert_map for call in drawn if call.layout == "blocks"} == set(fuzz.EXPERT_MAPS)
    assert min(call.num_tokens for call in drawn) == 0
    assert max(call.num_experts for call in drawn) == 4096


def test_neighbouring_seeds_draw_other_calls_for_the_same_kernels():
    differ = {"seed", "num_tokens", "num_experts", "spread", "strides"}
    for seed in range(0, 100 * fuzz.ALIKE, fuzz.ALIKE):
        first, *alike = (fuzz.draw(seed + other) for other in range(fuzz.ALIKE))
        assert len({(call.spread, call.strides) for call in alike}) > 1
        for call in alike:
            assert {name for name, value in call._asdict().items() if value != getattr(first, name)} <= differ
            assert (call.num_experts % 16 == 0) == (first.num_experts % 16 == 0)
            assert (call.num_experts - 1).bit_length() == (first.num_experts - 1).bit_length()
            assert call.num_experts * call.num_tokens * call.top_k <= fuzz._MOST_ELEMENTS


def test_a_seed_draws_the_same_call_again():
    assert fuzz.draw(7) == fuzz.draw(7)
    assert fuzz.draw(7) != fuzz.draw(8)


def swap_two(rows):
    rows.slot_index[0, :2] = rows.slot_index[0, :2].flip(0)


def lose_a_count(rows):
    rows.counts[-1] -= 1


def write_beyond(rows):
    rows.weights[-1, -1] = 0.5


def write_past_the_end(rows):
    torch.as_strided(rows.slot_index, (1,), (1,), rows.slot_index.storage_offset() + rows.slot_index.numel())[0] = 0


@pytest.mark.parametrize("mistake", [swap_two, lose_a_count, write_beyond, write_past_the_end])
def test_a_mistake_is_seen(device, monkeypatch, mistake):
    call = fuzz.draw(0)._replace(
        num_tokens=20, top_k=2, num_experts=3, spread="uniform", strides="contiguous", run_config=None, layout="rows"
    )
    assert not fuzz.one_call(call, device)
    right = fuzz.align_rows

    def wrong(*arguments, **keywords):
        mistake(right(*arguments, **keywords))

    monkeypatch.setattr(fuzz, "align_rows", wrong)
    assert fuzz.one_call(call, device)


def swap_two_slots(out):
    out[0][:2] = out[0][:2].flip(0)


def lose_some_padding(out):
    out[0][-1] = 0


def add_to_the_last(out):
    out[1][-1] += 1


def weigh_padding(out):
    out.weights[-1] = 0.5


def write_past_the_labels(out):
    torch.as_strided(out[1], (1,), (1,), out[1].storage_offset() + out[1].numel())[0] = 0


@pytest.mark.parametrize("layout", ["blocks", "offsets"])
@pytest.mark.parametrize(
    "mistake", [swap_two_slots, lose_some_padding, add_to_the_last, weigh_padding, write_past_the_labels]
)
def test_a_mistake_in_a_flat_layout_is_seen(device, monkeypatch, layout, mistake):
    # Ids from -2 to 4: some slots are dropped, so that something lies past the last region.
    call = fuzz.draw(0)._replace(
        num_tokens=20,
        top_k=2,
        num_experts=3,
        spread="uniform",
        strides="contiguous",
        run_config=None,
        layout=layout,
        block_size=16,
        expert_map="none",
    )
    assert not fuzz.one_call(call, device)
    name = f"align_{layout}"
    right = getattr(fuzz, name)
    monkeypatch.setattr(fuzz, name, lambda *arguments, **keywords: mistake(right(*arguments, **keywords)))
    assert fuzz.one_call(call, device)


@pytest.mark.gpu
def test_replays_on_several_streams_agree(device):
    assert fuzz.replays(0, 40, device, streams=4) == []

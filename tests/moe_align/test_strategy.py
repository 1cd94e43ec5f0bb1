"""Launch configurations: whatever was measured, every default must be one that the checks accept."""

import importlib.resources
import itertools
import json
import types

import pytest
import torch

import moe_align
from moe_align import dispatch, strategy
from moe_align.strategy import (
    MAX_TILE,
    STRATEGIES,
    checked_run_config,
    default_run_config,
    rule_of_thumb,
    run_config_for,
    strategies,
)

TUNED = {
    table["gpu"]: table
    for file in importlib.resources.files("moe_align").joinpath("tuned").iterdir()
    for table in [json.loads(file.read_text())]
}
each_gpu = pytest.mark.parametrize("gpu", [None, "a GPU nobody tuned", *TUNED])
each_implementation = pytest.mark.parametrize("implementation", ["deterministic", "atomic"])
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
NUM_SLOTS = sorted({0, 1, 3, *(2**power + step for power in range(2, 31, 2) for step in (-1, 0, 1))})
NUM_EXPERTS = [1, 2, 5, 8, 16, 64, 127, 128, 129, 160, 256, 257, 385, 512, 513, 896, 1024, 1025, 8191, 65534]
SHAPES = list(itertools.product(NUM_SLOTS, NUM_EXPERTS))


def implementation_of(strategy):
    return "deterministic" if STRATEGIES[strategy].ordered else "atomic"


def test_implementations_have_strategies_of_their_own():
    assert strategies("deterministic") == ["scan", "sift", "collect", "tiles"]
    assert strategies("atomic") == ["atomic"]
    assert strategies("reference") == []


@each_gpu
@each_implementation
def test_defaults_are_complete_and_within_the_limits(implementation, gpu):
    for num_slots, num_experts in SHAPES:
        config = default_run_config(implementation, num_slots, num_experts, gpu)
        assert config["strategy"] in strategies(implementation)
        assert set(config) == {"strategy", *STRATEGIES[config["strategy"]].options}, (num_slots, num_experts)
        assert checked_run_config(implementation, config) == config


@each_strategy
def test_the_default_of_every_strategy_is_complete_and_within_the_limits(strategy):
    for num_slots, num_experts in SHAPES:
        config = run_config_for(implementation_of(strategy), {"strategy": strategy}, num_slots, num_experts)
        assert set(config) == {"strategy", *STRATEGIES[strategy].options}, (num_slots, num_experts)
        assert checked_run_config(implementation_of(strategy), config) == config


@each_gpu
@each_implementation
def test_default_tiles_fit(implementation, gpu):
    for num_slots, num_experts in SHAPES:
        config = run_config_for(implementation, None, num_slots, num_experts, gpu)
        tile = config.get("BLOCK_SIZE", 1) * config.get("EXPERT_BLOCK", 1)
        assert tile <= MAX_TILE, (num_slots, num_experts)


@pytest.mark.parametrize("layout", ["blocks", "offsets"])
def test_flat_layouts_are_divided_by_slots_before_counting_them_all_costs_more(layout):
    for num_slots, num_experts in SHAPES:
        rows = default_run_config("deterministic", num_slots, num_experts)
        flat = default_run_config("deterministic", num_slots, num_experts, layout=layout)
        assert run_config_for("deterministic", None, num_slots, num_experts, layout=layout) == flat
        if rows["strategy"] == "tiles" or num_slots <= 8192:
            assert flat == rows, (num_slots, num_experts)
        else:
            assert flat["strategy"] == "tiles", (num_slots, num_experts)


def test_flat_layouts_are_served_from_their_own_tables(monkeypatch):
    tables = {
        table: {(8, 8): {"strategy": strategy}}
        for table, strategy in (("deterministic", "scan"), ("blocks", "sift"), ("offsets", "collect"))
    }
    monkeypatch.setattr(strategy, "_tuned", lambda gpu: tables)
    default_run_config.cache_clear()
    try:
        for num_slots in (1, 10**6):
            for layout, expected in (("rows", "scan"), ("blocks", "sift"), ("offsets", "collect")):
                config = default_run_config("deterministic", num_slots, 8, "some GPU", layout=layout)
                assert config == {"strategy": expected}
    finally:
        default_run_config.cache_clear()


def test_each_layout_asks_for_its_own_choice(monkeypatch):
    asked = []
    real = dispatch.run_config_for
    monkeypatch.setattr(
        dispatch, "run_config_for", lambda *given, layout: asked.append(layout) or real(*given, layout=layout)
    )
    dispatch._launcher.cache_clear()
    ids = torch.zeros((2, 2), dtype=torch.int32)
    moe_align.align_rows(ids, torch.zeros(2, 2), 4)
    moe_align.align_blocks(ids, 4, 4)
    moe_align.align_offsets(ids, 4)
    assert asked == ["rows", "blocks", "offsets"]


@each_implementation
def test_nothing_given_is_the_default(implementation):
    for num_slots, num_experts in SHAPES:
        default = default_run_config(implementation, num_slots, num_experts)
        assert run_config_for(implementation, None, num_slots, num_experts) == default


@each_strategy
def test_what_is_given_wins_and_the_rest_is_the_strategys_default(strategy):
    implementation = implementation_of(strategy)
    default = run_config_for(implementation, {"strategy": strategy}, 1024, 256)
    for name, value in default.items():
        if name != "strategy":
            given = {"strategy": strategy, name: 2 if value == 1 else max(value // 2, 1)}
            assert run_config_for(implementation, given, 1024, 256) == {**default, **given}


def test_options_without_a_strategy_are_those_of_the_scan():
    # Whatever strategy would be chosen for the shape: LightLLM's callers know no other options.
    assert rule_of_thumb("deterministic", 65536, 256)["strategy"] != "scan"
    for given in ({}, {"BLOCK_SIZE": 64}):
        config = run_config_for("deterministic", given, 65536, 256)
        assert config["strategy"] == "scan"
        assert given.items() <= config.items()


@pytest.mark.parametrize(
    ("implementation", "strategy", "expected"),
    [
        ("deterministic", "atomic", "'scan' or 'sift' or 'collect' or 'tiles'"),
        ("deterministic", "sort", "'scan' or 'sift' or 'collect' or 'tiles'"),
        ("deterministic", None, "'scan' or 'sift' or 'collect' or 'tiles'"),
        ("atomic", "scan", "'atomic'"),
        ("reference", "scan", "no strategy"),
    ],
)
def test_a_strategy_of_another_implementation_is_refused(implementation, strategy, expected):
    with pytest.raises(ValueError, match=r"run_config\['strategy'\]: expected ") as failure:
        checked_run_config(implementation, {"strategy": strategy})
    assert f"expected {expected} for implementation {implementation!r}, got {strategy!r}" in str(failure.value)


@each_strategy
def test_the_smallest_and_largest_value_of_each_option_are_taken(strategy):
    for name, most in STRATEGIES[strategy].options.items():
        for value in (1, most):
            given = {"strategy": strategy, name: value}
            assert checked_run_config(implementation_of(strategy), given) == given


@each_strategy
def test_values_past_the_limits_are_refused(strategy):
    for name, most in STRATEGIES[strategy].options.items():
        for value in (-1, 0, most + 1, 2 * most):
            with pytest.raises(ValueError, match="expected") as failure:
                checked_run_config(implementation_of(strategy), {"strategy": strategy, name: value})
            assert f"run_config[{name!r}]" in str(failure.value)
            assert f"from 1 to {most}, got {value}" in str(failure.value)


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        *(("scan", name) for name in ("BLOCK_SIZE", "EXPERT_BLOCK", "num_warps")),
        *((strategy, name) for strategy in ("sift", "collect") for name in ("EXPERT_BLOCK", "num_warps")),
        *(("tiles", name) for name in ("BLOCK_SIZE", "SUM_EXPERTS", "num_warps")),
    ],
)
@pytest.mark.parametrize("value", [3, 5, 6, 12])
def test_tiles_and_warps_are_powers_of_two(strategy, name, value):
    with pytest.raises(ValueError, match=f"a power of two from 1 to .*, got {value}"):
        checked_run_config("deterministic", {"strategy": strategy, name: value})


@pytest.mark.parametrize("given", [{"strategy": "scan", "NUM_STAGE": 3}, {"strategy": "sift", "HITS": 3}])
def test_stages_and_hits_need_not_be_powers_of_two(given):
    assert checked_run_config("deterministic", given) == given


@pytest.mark.parametrize(("block_size", "expert_block", "fits"), [(65536, 16, True), (65536, 32, False)])
def test_tile_limit(block_size, expert_block, fits):
    given = {"BLOCK_SIZE": block_size, "EXPERT_BLOCK": expert_block}
    if fits:
        assert given.items() <= run_config_for("deterministic", given, 100, 100).items()
    else:
        with pytest.raises(ValueError, match=r"EXPERT_BLOCK is 2097152, expected at most 1048576"):
            run_config_for("deterministic", given, 100, 100)


@pytest.mark.parametrize("given", ["BLOCK_SIZE", 128, [("BLOCK_SIZE", 128)]], ids=["str", "int", "list"])
def test_only_a_dict_is_a_configuration(given):
    with pytest.raises(TypeError, match=f"run_config: expected a dict or None, got {type(given).__name__}"):
        checked_run_config("deterministic", given)


@pytest.mark.parametrize("gpu", TUNED)
@each_implementation
def test_a_tuned_shape_gets_what_was_measured_for_it(implementation, gpu):
    for row in TUNED[gpu][implementation]:
        assert default_run_config(implementation, row["num_slots"], row["num_experts"], gpu) == row["config"]


@pytest.mark.parametrize("gpu", TUNED)
@each_implementation
def test_other_shapes_get_the_next_larger_one(implementation, gpu):
    tuned = {(row["num_experts"], row["num_slots"]): row["config"] for row in TUNED[gpu][implementation]}
    most_experts = max(num_experts for num_experts, _ in tuned)
    most_slots = max(num_slots for _, num_slots in tuned)
    assert default_run_config(implementation, 257, 385, gpu) == tuned[512, 512]
    assert default_run_config(implementation, 0, 7, gpu) == tuned[8, 8]
    assert default_run_config(implementation, 2 * most_slots, 10_000, gpu) == tuned[most_experts, most_slots]


@pytest.mark.parametrize(
    ("name", "chip", "expected"),
    [
        pytest.param("NVIDIA H100 80GB HBM3", (9, 0, 132), "NVIDIA H100 80GB HBM3", id="tuned"),
        pytest.param("NVIDIA H200", (9, 0, 132), "NVIDIA H200", id="tuned-too"),
        pytest.param("NVIDIA GH200 480GB", (9, 0, 132), "NVIDIA H100 80GB HBM3", id="same-chip"),
        pytest.param("NVIDIA H100 PCIe", (9, 0, 114), "NVIDIA H100 PCIe", id="fewer-multiprocessors"),
        pytest.param("NVIDIA A100-SXM4-80GB", (8, 0, 108), "NVIDIA A100-SXM4-80GB", id="another-architecture"),
    ],
)
def test_a_gpu_that_nobody_tuned_is_served_like_a_tuned_one_with_the_same_chip(monkeypatch, name, chip, expected):
    properties = types.SimpleNamespace(**dict(zip(("major", "minor", "multi_processor_count"), chip, strict=True)))
    monkeypatch.setattr(strategy.torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(strategy.torch.cuda, "get_device_properties", lambda device: properties)
    strategy.tuned_gpu.cache_clear()
    try:
        assert strategy.tuned_gpu(torch.device("cuda", 0)) == expected
    finally:
        strategy.tuned_gpu.cache_clear()


def test_the_cpu_is_no_gpu():
    assert strategy.tuned_gpu(torch.device("cpu")) is None

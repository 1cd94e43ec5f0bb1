import pytest
from asv_bench_gpu import clock

import moe_align
from benchmarks import tune
from benchmarks.shapes import Model, route
from moe_align import strategy

each_implementation = pytest.mark.parametrize("implementation", ["deterministic", "atomic"])
each_size = pytest.mark.parametrize("num_slots", tune.SLOTS, ids="{}-slots".format)


@each_implementation
@each_size
def test_configurations_are_within_the_limits_of_the_strategy(implementation, num_slots):
    for num_experts in tune.EXPERTS:
        for config in tune.configurations(implementation, num_slots, num_experts):
            # Nothing is left to a default that may change.
            assert strategy.run_config_for(implementation, config, num_slots, num_experts) == config


@each_implementation
@each_size
def test_configurations_are_some_and_different(implementation, num_slots):
    for num_experts in tune.EXPERTS:
        found = [tuple(config.items()) for config in tune.configurations(implementation, num_slots, num_experts)]
        assert len(found) == len(set(found)) >= 1


def test_every_strategy_is_tried_somewhere():
    tried = {
        config["strategy"]
        for num_slots in tune.SLOTS
        for num_experts in tune.EXPERTS
        for implementation in ("deterministic", "atomic")
        for config in tune.configurations(implementation, num_slots, num_experts)
    }
    assert tried == set(strategy.STRATEGIES)


def test_a_configuration_that_writes_nothing_is_noticed(monkeypatch):
    real = moe_align.align_rows
    configurations = []

    def align_rows(*arguments, run_config, **keywords):
        if run_config not in configurations:
            configurations.append(run_config)
        if configurations.index(run_config) == 0:
            real(*arguments, run_config=run_config, **keywords)

    monkeypatch.setattr(tune, "_case", lambda experts, slots: route(Model(experts, 2), slots // 2, "uniform", "cpu"))
    monkeypatch.setattr(clock, "device_timing", lambda call, **_: clock.Timing(1e-6, 1e-6, 1e-6))
    monkeypatch.setattr(moe_align, "align_rows", align_rows)
    with pytest.raises(AssertionError, match="deterministic, 8 experts, 64 slots"):
        tune.tune("deterministic", 8, 64)


@pytest.mark.gpu
@each_implementation
def test_tune_returns_a_configuration_that_is_right_and_no_slower(implementation):
    from benchmarks import oracle
    from moe_align import align_rows

    found = tune.tune(implementation, 8, 64)
    config = found["config"]
    assert config in [*tune.configurations(implementation, 64, 8), strategy.rule_of_thumb(implementation, 64, 8)]
    assert 0 < found["microseconds"] <= found["default_microseconds"] < 1000
    ids, weights = tune._case(8, 64)
    rows = align_rows(ids, weights, 8, implementation=implementation, run_config=config)
    assert oracle.difference(rows, ids, weights, ordered=implementation != "atomic") is None


@pytest.mark.gpu
def test_a_wrong_result_is_never_a_candidate(monkeypatch):
    from benchmarks import oracle

    monkeypatch.setattr(oracle, "difference", lambda *_, **__: "counts[0] is 1, expected 2")
    with pytest.raises(AssertionError, match=r"deterministic, 8 experts, 64 slots.*counts\[0\] is 1, expected 2"):
        tune.tune("deterministic", 8, 64)

import pytest
from asv_bench_gpu import clock

import moe_align
from benchmarks import tune
from benchmarks.shapes import Model, route
from moe_align import strategy

each_table = pytest.mark.parametrize("table", tune.TABLES)
IMPLEMENTATION = {
    "deterministic": "deterministic",
    "atomic": "atomic",
    "blocks": "deterministic",
    "offsets": "deterministic",
}
each_size = pytest.mark.parametrize("num_slots", tune.SLOTS, ids="{}-slots".format)


def case_on_cpu(num_experts, num_slots, routing):
    return route(Model(num_experts, 2), num_slots // 2, routing, "cpu")


@each_table
@each_size
def test_configurations_are_within_the_limits_of_the_strategy(table, num_slots):
    for num_experts in tune.EXPERTS:
        for config in tune.configurations(table, num_slots, num_experts):
            # Nothing is left to a default that may change.
            assert strategy.run_config_for(IMPLEMENTATION[table], config, num_slots, num_experts) == config


@each_table
@each_size
def test_configurations_are_some_and_different(table, num_slots):
    for num_experts in tune.EXPERTS:
        found = [tuple(config.items()) for config in tune.configurations(table, num_slots, num_experts)]
        assert len(found) == len(set(found)) >= 1


def test_what_no_strategy_serves_has_no_entries():
    grid = [(8, 64), (8, 128), (256, 64), (256, 128)]
    assert tune.shapes("offsets", [8, 256], [64, 128]) == grid
    assert tune.shapes("blocks", [8, 256], [64, 128]) == [(8, 128), (256, 128)]


def test_a_grid_without_entries_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", "--out", "unused", "--tables", "offsets", "blocks", "--slots", "8", "64"])
    with pytest.raises(SystemExit, match="2"):
        tune.main()
    assert "--slots: blocks has no entries for 8 64" in capsys.readouterr().err


def test_every_strategy_is_tried_somewhere():
    tried = {
        config["strategy"]
        for num_slots in tune.SLOTS
        for num_experts in tune.EXPERTS
        for table in tune.TABLES
        for config in tune.configurations(table, num_slots, num_experts)
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

    monkeypatch.setattr(tune, "_case", case_on_cpu)
    monkeypatch.setattr(clock, "device_timing", lambda call, **_: clock.Timing(1e-6, 1e-6, 1e-6))
    monkeypatch.setattr(moe_align, "align_rows", align_rows)
    with pytest.raises(AssertionError, match="deterministic, 8 experts, 64 slots"):
        tune.tune("deterministic", 8, 64)


@pytest.mark.parametrize(
    ("times", "skewed", "chosen"),
    [
        pytest.param([5.0, 4.0, 3.0], [1, 1, 1], 2, id="the-fastest"),
        pytest.param([5.0, 3.08, 3.0], [1, 3.0, 3.1], 1, id="nearly-as-fast-and-less-slowed-by-skew"),
        pytest.param([5.0, 3.08, 3.0], [1, 3.0, 3.05], 2, id="gains-less-than-it-loses"),
        pytest.param([3.02, 3.01, 3.0], [1, 2, 3], 0, id="the-default-like-any-other"),
        pytest.param([5.0, 3.1, 3.0], [1, 1, 2], 2, id="not-as-near"),
        pytest.param(
            [5.0, 3.0, 3.01, 3.02, 3.03, 3.04, 3.05, 3.06], [1, 3, 3, 3, 3, 3, 3, 2], 7, id="as-many-as-are-near"
        ),
    ],
)
def test_of_the_fastest_skew_decides_too(monkeypatch, times, skewed, chosen):
    of = {"uniform": times, "zipf": skewed}
    monkeypatch.setattr(tune, "untuned", lambda *_: 0)
    monkeypatch.setattr(tune, "configurations", lambda *_: list(range(len(times))))
    monkeypatch.setattr(tune, "_alignment", lambda table, experts, slots, routing: routing)
    monkeypatch.setattr(tune, "_microseconds", lambda routing, config: of[routing][config])
    assert tune.tune("deterministic", 8, 64) == {
        "config": chosen,
        "microseconds": round(times[chosen], 2),
        "default_microseconds": times[0],
    }


@pytest.mark.parametrize(
    ("default", "other", "found"),
    [
        pytest.param([3.0] * 9, [2.95] + [3.1] * 8, (0, 3.0, 3.0), id="who-was-fast-by-luck"),
        pytest.param([9.0] + [3.2] * 8, [3.0] * 9, (1, 3.0, 3.2), id="the-default-however-slow-it-was"),
    ],
)
def test_some_are_timed_again(monkeypatch, default, other, found):
    times = {0: iter(default), 1: iter(other)}
    monkeypatch.setattr(tune, "untuned", lambda *_: 0)
    monkeypatch.setattr(tune, "configurations", lambda *_: [1])
    monkeypatch.setattr(tune, "_alignment", lambda *_: None)
    monkeypatch.setattr(tune, "_microseconds", lambda _, config: next(times[config]))
    config, microseconds, default_microseconds = found
    assert tune.tune("deterministic", 8, 64) == {
        "config": config,
        "microseconds": microseconds,
        "default_microseconds": default_microseconds,
    }


@pytest.mark.gpu
@pytest.mark.alone
@each_table
def test_tune_returns_a_configuration_that_is_right_and_no_slower(table):
    found = tune.tune(table, 8, 64)
    config = found["config"]
    assert config in [*tune.configurations(table, 64, 8), tune.untuned(table, 64, 8)]
    assert 0 < found["microseconds"] < 1.1 * found["default_microseconds"] < 1000
    alignment = tune._alignment(table, 8, 64)
    alignment.call(config)
    assert alignment.difference() is None


@each_table
@pytest.mark.parametrize("element", [0, -1])
def test_one_wrong_element_is_a_difference(monkeypatch, table, element):
    monkeypatch.setattr(tune, "_case", case_on_cpu)
    alignment = tune._alignment(table, 8, 64)
    alignment.call({} if table != "atomic" else None)
    assert alignment.difference() is None
    last = [tensor for tensor in alignment.out if tensor is not None][-1]
    last[element] += 1
    assert alignment.difference()


@pytest.mark.gpu
def test_a_wrong_result_is_never_a_candidate(monkeypatch):
    from benchmarks import oracle

    monkeypatch.setattr(oracle, "difference", lambda *_, **__: "counts[0] is 1, expected 2")
    with pytest.raises(AssertionError, match=r"deterministic, 8 experts, 64 slots.*counts\[0\] is 1, expected 2"):
        tune.tune("deterministic", 8, 64)

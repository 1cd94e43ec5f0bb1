import importlib
import inspect
import itertools
import json
import pkgutil
import random
import re
import types

import asv_bench_gpu
import pytest
import torch
from asv_bench_gpu.verification import Verified
from asv_runner.benchmarks import benchmark_types

import benchmarks
import moe_align
from benchmarks import flat, neighbours, order, shapes
from moe_align import dispatch, strategy
from tests.tracking import processes

assert asv_bench_gpu.__version__  # imported for the benchmark types it brings

#: Called by asv, and by our own benchmark types and suites.
HOOKS = {"setup", "teardown", "setup_cache", "check", "reallocate", "prepare"}
MODULES = {
    name: importlib.import_module(f"benchmarks.{name}") for _, name, _ in pkgutil.iter_modules(benchmarks.__path__)
}
CLASSES = {
    f"{module_name}.{name}": value
    for module_name, module in MODULES.items()
    for name, value in vars(module).items()
    if inspect.isclass(value)
    and value.__module__ == module.__name__
    and not name.startswith("_")
    and not issubclass(value, tuple)
}


def is_benchmark(name):
    return any(kind.name_regex.match(name) for kind in benchmark_types)


def public_methods(cls):
    return [name for name, value in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")]


SUITES = {name: cls for name, cls in CLASSES.items() if any(map(is_benchmark, public_methods(cls)))}
each_suite = pytest.mark.parametrize("suite", [pytest.param(cls, id=name) for name, cls in SUITES.items()])


def test_there_are_suites():
    assert set(SUITES) >= {
        "order.Rows",
        "order.Skew",
        "order.Strategies",
        "order.Served",
        "order.Empty",
        "flat.Layouts",
        "neighbours.Between",
        "host.Call",
        "codegen.Kernels",
        "witness.FusedMoe",
    }


@pytest.mark.parametrize("cls", [pytest.param(cls, id=name) for name, cls in CLASSES.items()])
def test_asv_runs_or_calls_every_public_method(cls):
    ignored = [name for name in public_methods(cls) if not is_benchmark(name) and name not in HOOKS]
    assert ignored == []


@pytest.mark.parametrize("module", [pytest.param(module, id=name) for name, module in MODULES.items()])
def test_no_function_is_taken_for_a_benchmark(module):
    functions = inspect.getmembers(module, inspect.isfunction)
    assert [name for name, _ in functions if not name.startswith("_") and is_benchmark(name)] == []


@each_suite
def test_version_is_explicit(suite):
    assert re.fullmatch(r"[1-9]\d*", suite.version)


@each_suite
def test_every_parameter_has_a_name(suite):
    params, names = getattr(suite, "params", []), getattr(suite, "param_names", [])
    assert all(isinstance(values, list) and values for values in params)
    assert len(params) == len(names) == len(set(names))


@each_suite
def test_no_parameter_has_a_value_twice(suite):
    # asv would rename the second one.
    assert [values for values in getattr(suite, "params", []) if len(values) != len(set(values))] == []


@each_suite
def test_a_tracked_figure_has_a_unit(suite):
    tracked = [getattr(suite, name) for name in public_methods(suite) if name.startswith("track_")]
    assert all(getattr(method, "unit", getattr(suite, "unit", None)) for method in tracked)


@each_suite
def test_models_and_tokens_are_those_of_shapes(suite):
    parameters = dict(zip(getattr(suite, "param_names", []), getattr(suite, "params", []), strict=True))
    assert set(parameters.get("model", [])) <= set(shapes.MODELS)
    assert set(parameters.get("tokens", [])) <= set(shapes.TOKENS)
    assert set(parameters.get("routing", [])) <= set(shapes.ROUTINGS)


def test_rows_measure_every_model_and_size():
    models, tokens, implementations = order.Rows.params
    assert models == list(shapes.MODELS)
    assert tokens == shapes.TOKENS
    assert implementations == ["deterministic", "atomic", "floor"]


def test_models_are_those_that_were_published():
    # Append-only: a changed entry would change the meaning of a series.
    assert dict(itertools.islice(shapes.MODELS.items(), 10)) == {
        "Mixtral 8x7B (8, 2)": (8, 2),
        "OLMoE (64, 8)": (64, 8),
        "gpt-oss-120b (128, 4)": (128, 4),
        "Qwen3 MoE (128, 8)": (128, 8),
        "Llama-4 Maverick +shared (129, 2)": (129, 2),
        "GLM-4.5 +shared (161, 9)": (161, 9),
        "DeepSeek-V3 (256, 8)": (256, 8),
        "Kimi-K2 (384, 8)": (384, 8),
        "Qwen3-Next (512, 10)": (512, 10),
        "Kimi-K3 (896, 16)": (896, 16),
    }


@pytest.mark.parametrize("name", list(shapes.MODELS))
def test_a_models_name_says_its_shape(name):
    num_experts, top_k = map(int, re.search(r"\((\d+), (\d+)\)$", name).groups())
    assert shapes.MODELS[name] == (num_experts, top_k)
    assert 1 <= top_k <= num_experts


_DISCOVER = """
import json, sys
from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks
folder = sys.argv[1]
update_sys_path(folder)
found = list(disc_benchmarks(folder))
heavy = sorted({"torch", "moe_align"} & set(sys.modules))
for benchmark in found:
    for parameters in benchmark.params:
        assert parameters
print(json.dumps({"names": [b.name for b in found], "heavy": heavy, "calls": [b.check(folder) for b in found]}))
"""


@pytest.fixture(scope="module")
def discovered():
    """What asv finds, in a process of its own."""
    return json.loads(processes.output("-c", _DISCOVER, processes.ROOT / "benchmarks").splitlines()[-1])


def test_asv_discovers_every_benchmark(discovered):
    expected = [
        f"{name}.{method}" for name, cls in SUITES.items() for method in public_methods(cls) if is_benchmark(method)
    ]
    assert sorted(discovered["names"]) == sorted(expected)


def test_importing_the_suites_imports_neither_torch_nor_the_package(discovered):
    assert discovered["heavy"] == []


def test_asv_finds_every_signature_callable(discovered):
    assert [name for name, ok in zip(discovered["names"], discovered["calls"], strict=True) if not ok] == []


_LOAD_EXAMPLE = """
import sys
from asv_runner._aux import update_sys_path
update_sys_path(sys.argv[1])
import torch
from benchmarks import shapes, witness
found = witness.consumers(shapes.Model(3, 2), 5, "cpu", torch.float16, hidden=16, columns=16)
print(witness.fused_moe().__file__, *(tuple(consumer.call("deterministic").shape) for consumer in found.values()))
"""


def test_a_suite_finds_the_example_beside_it(tmp_path):
    # As in a round: elsewhere, with only the suites and the installed package to be found.
    printed = processes.output(
        "-c", _LOAD_EXAMPLE, processes.ROOT / "benchmarks",
        cwd=tmp_path, path=[processes.ROOT / "src"], TRITON_INTERPRET="1",
    )  # fmt: skip
    assert printed.split(maxsplit=1) == [
        str(processes.ROOT / "examples" / "fused_moe.py"),
        "(5, 16) (5, 16) (3, 16, 16)\n",
    ]


@pytest.mark.parametrize("copies", range(1, 9))
def test_counts_move_to_aligned_places_of_their_own(copies):
    suite = order.Rows()
    suite.random, suite.arena = random.Random(0), torch.zeros(suite._COUNTS_ARENA, dtype=torch.int32)  # noqa: S311
    suite.placed = types.SimpleNamespace(counts=torch.zeros(896))
    suite.buffers = [tuple(torch.zeros(896) for _ in range(5)) for _ in range(copies)]
    for _ in range(3):
        suite.reallocate()
        offsets = sorted(buffers[-1].data_ptr() - suite.arena.data_ptr() for buffers in suite.buffers)
        assert [offset % 512 for offset in offsets] == [0] * copies
        assert all(after - before >= 896 * 4 for before, after in itertools.pairwise(offsets))
        assert all(bool((tensor == -1).all()) for buffers in suite.buffers for tensor in buffers[2:])
    # All take their turn.
    turns = [buffers[-1].data_ptr() for buffers in itertools.islice(suite.turns, 2 * copies)]
    assert turns == [buffers[-1].data_ptr() for buffers in suite.buffers] * 2


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("suite", "call", "arguments"),
    [
        *[(order.Rows, "gputime_rows", ("Qwen3 MoE (128, 8)", 16, name)) for name in order.IMPLEMENTATIONS],
        *[(order.Strategies, "gputime_rows", ("Kimi-K3 (896, 16)", 128, name)) for name in ("scan", "sift", "collect")],
        (order.Strategies, "gputime_rows", ("Kimi-K3 (896, 16)", 256, "tiles")),
        *[(flat.Layouts, "gputime_layout", (name, "Qwen3 MoE (128, 8)", 16)) for name in flat.BLOCK_SIZES],
    ],
)
def test_every_copy_is_measured_and_checked(suite, call, arguments):
    suite, arguments = suite(), (Verified(1), *arguments)
    suite.setup(*arguments)
    suite.reallocate(*arguments)
    for _ in suite.buffers:
        with pytest.raises(AssertionError):
            suite.check(*arguments)
        getattr(suite, call)(*arguments)
    suite.check(*arguments)
    suite.teardown(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ordinary", "overlapping"])
@pytest.mark.parametrize("implementation", ["deterministic", "deterministic, PDL", "atomic", "neither"])
def test_a_call_between_others_is_checked(monkeypatch, kind, implementation):
    suite, arguments = neighbours.Between(), (Verified(1), "DeepSeek-V3 (256, 8)", 16, kind, implementation)
    suite.setup(*arguments)
    assert implementation.endswith("PDL") == dispatch._USE_PDL
    suite.gputime_between()
    suite.check(*arguments)
    if implementation != "neither":
        monkeypatch.setattr(suite, "call", lambda: None)
        with pytest.raises(AssertionError, match="counts"):
            suite.check(*arguments)
    suite.teardown(*arguments)
    assert not dispatch._USE_PDL


def test_strategies_are_those_of_the_package():
    # Append-only: a figure of what served is a place in this list.
    assert order.STRATEGIES[:4] == ["scan", "sift", "collect", "tiles"]
    assert set(order.STRATEGIES) == set(strategy.strategies("deterministic"))


@pytest.mark.parametrize("gpu", ["NVIDIA H200", "NVIDIA H100 80GB HBM3", None])
def test_what_serves_a_shape_is_among_what_is_tried(gpu):
    for model, tokens in itertools.product(shapes.MODELS, shapes.TOKENS):
        num_experts, top_k = shapes.MODELS[model]
        config = strategy.default_run_config("deterministic", tokens * top_k, num_experts, gpu)
        assert config["strategy"] in order.tried(model, tokens), (model, tokens)


def test_what_is_not_tried_has_no_figure():
    suite = order.Strategies()
    with pytest.raises(NotImplementedError, match="not worth trying for a shape of this size"):
        suite.setup(Verified(1), "Kimi-K3 (896, 16)", 1, "tiles")
    with pytest.raises(NotImplementedError, match="the commit has no strategy 'merge'"):
        suite.setup(Verified(1), "Kimi-K3 (896, 16)", 1, "merge")


@pytest.mark.parametrize(("tokens", "place"), [(1, 1), (512, 3), (32768, 4)])
def test_what_served_is_a_place_in_the_list(monkeypatch, tokens, place):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(strategy, "tuned_gpu", lambda device: "NVIDIA H200")
    suite = order.Served()
    suite.setup(Verified(1), "Kimi-K3 (896, 16)", tokens)
    assert suite.track_strategy() == place
    monkeypatch.delattr(strategy, "tuned_gpu")
    with pytest.raises(NotImplementedError, match="does not say which table"):
        suite.setup(Verified(1), "Kimi-K3 (896, 16)", tokens)


def test_a_commit_without_flat_layouts_has_no_figure(monkeypatch):
    monkeypatch.delattr(moe_align, "align_blocks")
    with pytest.raises(NotImplementedError, match="rows only"):
        flat.Layouts().setup(Verified(1), "offsets", "Qwen3 MoE (128, 8)", 16)

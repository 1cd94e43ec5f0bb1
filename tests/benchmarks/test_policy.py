"""What the release policy names, by the suites as they are."""

import re

import pytest
from asv.config import Config
from asv_bench_gpu import project
from asv_bench_gpu.policy import Policy

from benchmarks import codegen, flat, order, shapes
from tests.tracking.processes import ROOT


@pytest.fixture(scope="module")
def limits(tmp_path_factory):
    """By benchmark, the margins of its suites and the limits of its quantities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        conf = Config.load("asv.conf.json")
        conf.results_dir = str(tmp_path_factory.mktemp("results"))
        opened = project.Project(conf, None, None, project._discover(conf, None), "machine", 1.0)
    matched = Policy.read(ROOT / "gate.toml").matched(opened)
    return matched.margins(), matched.limits()


def test_every_shape_of_the_deterministic_strategies_has_a_margin(limits):
    margins, _ = limits
    rows = [key for key in margins if key.startswith("order.Rows.")]
    assert len(rows) == len(shapes.MODELS) * len(shapes.TOKENS)
    skewed = [key for key in margins if key.startswith("order.Skew.")]
    assert len(skewed) == len(order.Skew.params[0]) * len(order.Skew.params[1]) * len(order.Skew.params[2])
    layouts = [key for key in margins if key.startswith("flat.Layouts.")]
    assert len(layouts) == len(flat.BLOCK_SIZES) * len(flat.Layouts.params[1]) * len(shapes.TOKENS)
    assert len(margins) == len(rows) + len(skewed) + len(layouts)
    assert not [key for key in margins if re.search("'(atomic|floor)'", key)]


def test_no_deterministic_kernel_may_gain_an_atomic(limits):
    _, quantities = limits
    atomics = {key: limit for key, limit in quantities.items() if ".track_atomics(" in key}
    deterministic = [name for name in codegen.KERNELS.values() if name != "atomic"]
    assert atomics == {
        f"codegen.Kernels.track_atomics('{kernel}', '{target}')": 0
        for kernel in deterministic
        for target in codegen.TARGETS
    }

"""What the release policy names, by the suites as they are."""

import re

import pytest
from asv.config import Config
from asv_bench_gpu import project
from asv_bench_gpu.policy import Policy

from benchmarks import codegen, flat, order, shapes
from tests.tracking.processes import ROOT


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """Which entry of the policy is about which benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        conf = Config.load("asv.conf.json")
        conf.results_dir = str(tmp_path_factory.mktemp("results"))
        opened = project.Project(conf, None, None, project._discover(conf, None), "machine", 1.0)
    return Policy.read(ROOT / "gate.toml").matched(opened)


def test_every_shape_of_the_deterministic_strategies_has_a_margin(matched):
    margins = matched.margins()
    rows = [key for key in margins if key.startswith("order.Rows.")]
    assert len(rows) == len(shapes.MODELS) * len(shapes.TOKENS)
    skewed = [key for key in margins if key.startswith("order.Skew.")]
    assert len(skewed) == len(order.Skew.params[0]) * len(order.Skew.params[1]) * len(order.Skew.params[2])
    layouts = [key for key in margins if key.startswith("flat.Layouts.")]
    assert len(layouts) == len(flat.BLOCK_SIZES) * len(flat.Layouts.params[1]) * len(shapes.TOKENS)
    assert len(margins) == len(rows) + len(skewed) + len(layouts)
    assert not [key for key in margins if re.search("'(atomic|floor)'", key)]


def test_no_deterministic_kernel_may_gain_an_atomic_or_begin_with_one(matched):
    deterministic = [name for name in codegen.KERNELS.values() if name != "atomic"]
    expected = {
        f"codegen.Kernels.track_atomics('{kernel}', '{target}')": 0
        for kernel in deterministic
        for target in codegen.TARGETS
    }
    for limits in (matched.limits(), matched.new()):
        assert {key: limit for key, limit in limits.items() if ".track_atomics(" in key} == expected


def test_a_new_kernel_must_not_spill(matched):
    spills = {key: limit for key, limit in matched.new().items() if ".track_spill_bytes(" in key}
    assert spills == {
        f"codegen.Kernels.track_spill_bytes('{kernel}', '{target}')": 0
        for kernel in codegen.KERNELS.values()
        for target in codegen.TARGETS
    }


def test_only_what_is_known_to_be_noisy_has_a_wider_margin(matched):
    margins = matched.margins()
    wide = {key: margin for key, margin in margins.items() if margin != 1.5}
    assert wide == {"order.Skew.gputime_rows('DeepSeek-V3 (256, 8)', 128, 'one expert', 'deterministic')": 6}

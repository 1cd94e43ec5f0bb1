import os
import re

import pytest
from asv_bench_gpu import project

from tests.tracking.tiny_project import HOSTTIME, MACHINE, SUITE, TRACK


def test_machine_name_is_taken_from_the_gpu():
    assert project._machine_name({"gpu": "NVIDIA H200"}) == "nvidia-h200"
    assert project._machine_name({"gpu": "NVIDIA GeForce RTX 4090 (Laptop)"}) == "nvidia-geforce-rtx-4090-laptop"
    assert project._machine_name({}) == f"cpu-{os.uname().machine}".replace("_", "-")


@pytest.mark.parametrize(
    ("benchmark", "combination", "index"),
    [
        pytest.param(HOSTTIME, ("2",), 1, id="parameters"),
        pytest.param(TRACK, (), 0, id="no-parameters"),
    ],
)
def test_a_key_is_what_regular_expressions_are_matched_with(tiny, benchmark, combination, index):
    tiny.write_suite(SUITE.replace("[[1, 2]]", "[[1, 2, 22]]"))
    key = project.key(benchmark, combination)
    with project.locked(tiny.config) as conf:
        opened = project.prepare(conf, bench=f"^{re.escape(key)}$", machine=MACHINE, timeout_seconds=1.0)
    assert list(opened.benchmarks) == [benchmark]
    assert list(opened.selected(benchmark)) == [index]

"""The tests of the verdict bite: each mistake in its statistics fails one of them."""

import json

import pytest

from tests.tracking import processes, verdict_script


@pytest.fixture(scope="module")
def failed_tests(tmp_path_factory):
    def make():
        script = processes.ROOT / "tests" / "tracking" / "verdict_script.py"
        return json.loads(processes.output(script, path=[processes.ROOT / "tracking" / "src"]))

    return processes.once(tmp_path_factory, "verdict-mutants", make)


def test_without_a_mistake_every_test_passes(failed_tests):
    assert failed_tests["none"] is None


@pytest.mark.parametrize("name", [name for name in verdict_script.MUTANTS if name != "none"])
def test_a_mistake_fails_a_test(failed_tests, name):
    assert failed_tests[name] is not None

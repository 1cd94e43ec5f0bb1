import functools
from pathlib import Path

import pytest
from asv_bench_gpu.report import data, ratio, site

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "reports/results"


@functools.cache
def results():
    return data.load(RESULTS, ROOT, ["main"])


@pytest.fixture
def chosen():
    return site.load(ROOT / "reports/site.toml")


def test_site_file_is_valid(chosen):
    assert chosen.title
    assert chosen.method_details
    assert chosen.tables


def test_every_number_block_says_how_it_was_measured(chosen):
    assert chosen.ratio.method
    assert all(table.method and table.text for table in chosen.tables)


def test_site_holds_no_measured_numbers(chosen):
    words = " ".join([chosen.title, chosen.lead, *chosen.method_details, *(t.text for t in chosen.tables)])
    assert "µs" not in words
    assert "%" not in words


def test_every_benchmark_named_exists_in_the_results(chosen):
    known = results().benchmarks
    if not known:
        pytest.skip("no committed results")
    assert set(chosen.benchmarks()) <= set(known)


def test_every_parameter_and_value_named_exists_in_the_results(chosen):
    known = results().benchmarks
    if not known:
        pytest.skip("no committed results")
    benchmark = known[chosen.ratio.benchmark]
    series = benchmark.params[benchmark.param_names.index(chosen.ratio.series_param)]
    assert {chosen.ratio.subject, chosen.ratio.baseline, chosen.ratio.floor} - {None} <= set(series)
    for table in chosen.tables:
        for name in table.benchmarks.values():
            assert table.columns is None or table.columns in known[name].param_names


def test_committed_results_can_all_be_read_and_compared(chosen):
    history = results()
    if not history.benchmarks:
        pytest.skip("no committed results")
    # A shallow checkout of a branch does not have the history of main.
    assert [problem for problem in history.problems if not problem.startswith("git history")] == []
    for machine in history.machines_with([chosen.ratio.benchmark]):
        for measurement in history.on(machine, chosen.ratio.benchmark):
            assert ratio.compare(measurement, history.benchmarks[chosen.ratio.benchmark], chosen.ratio).found

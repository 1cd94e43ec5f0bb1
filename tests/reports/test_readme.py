"""The figures in the README are those that were recorded for the commit it names."""

import itertools
import re
import statistics
from pathlib import Path

import pytest
from asv.results import Results
from asv_bench_gpu.report import data, ratio, site

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| (.+ \(\d+, \d+\)) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.M)


@pytest.fixture(scope="module")
def microseconds():
    (commit,) = set(re.findall(r"commit ([0-9a-f]{8})", README))
    (file,) = (ROOT / "reports/results/nvidia-h200").glob(f"{commit}-*.json")
    results = Results.load(str(file))
    params = results.get_result_params("order.Rows.gputime_rows")
    samples = results.get_result_samples("order.Rows.gputime_rows", params)
    return {
        tuple(value.strip("'") for value in combination): statistics.median(figures) * 1e6
        for combination, figures in zip(itertools.product(*params), samples, strict=True)
    }


@pytest.mark.parametrize(("model", "tokens", "deterministic", "atomic", "floor", "ratio"), ROWS)
def test_row(microseconds, model, tokens, deterministic, atomic, floor, ratio):
    recorded = [microseconds[model, tokens, name] for name in ("deterministic", "atomic", "floor")]
    assert [f"{value:.2f}" for value in recorded] == [deterministic, atomic, floor]
    assert f"{recorded[0] / recorded[1]:.2f}" == ratio


def test_there_are_rows():
    assert len(ROWS) >= 10


def test_count_of_shapes(microseconds):
    words = " ".join(README.split())
    faster, of, equal, slower = map(
        int, re.search(r"faster on (\d+) of (\d+) shapes, equal on (\d+), slower on (\d+)", words).groups()
    )
    chosen = site.load(ROOT / "reports/site.toml")
    history = data.load(ROOT / "reports/results", ROOT, ["main"])
    (commit,) = set(re.findall(r"commit ([0-9a-f]{8})", README))
    (measurement,) = (found for found in history.measurements if found.commit.hash.startswith(commit))
    comparisons = ratio.compare(measurement, history.benchmarks[chosen.ratio.benchmark], chosen.ratio)
    counts = [
        comparisons.count(verdict) for verdict in (ratio.Verdict.FASTER, ratio.Verdict.EQUAL, ratio.Verdict.SLOWER)
    ]
    assert counts == [faster, equal, slower]
    assert len(comparisons.found) == of
    worst = max(comparison.ratio for comparison in comparisons.found.values())
    (claimed,) = re.findall(r"costs up to ([\d.]+) times", README)
    assert worst <= float(claimed) < worst + 0.01

"""The figures in the README are those that were recorded for the commit it names."""

import itertools
import re
import statistics
from pathlib import Path

import pytest
from asv.results import Results

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
    shapes = {combination[:2] for combination in microseconds}
    faster, of, equal, slower = map(int, re.search(r"(\d+) of (\d+) shapes, equal on (\d+), slower on (\d+)",
                                                   " ".join(README.split())).groups())  # fmt: skip
    assert len(shapes) == of == faster + equal + slower
    worst = max(microseconds[*shape, "deterministic"] / microseconds[*shape, "atomic"] for shape in shapes)
    (claimed,) = re.findall(r"costs up to ([\d.]+) times", README)
    assert worst <= float(claimed) < worst + 0.01

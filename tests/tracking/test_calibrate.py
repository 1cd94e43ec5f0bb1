"""Rates worked by hand, and a real calibration with a clock that has no noise; `test_simulate_verdict` has the rest."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest
from asv_bench_gpu import calibrate, journal, project
from asv_bench_gpu.calibrate import Rate, draw, upper_bound

from tests.tracking.tiny_project import CLOCKED_SUITE, MACHINE

USUAL = {"comparisons": 250, "margin_percent": 2, "family_alpha": 0.01, "max_rounds": 40}


def shares(rates):
    return rates.false_alarms.share, rates.passes.share, {at: rate.share for at, rate in rates.detections.items()}


def test_without_noise_every_verdict_is_right():
    assert shares(draw(np.zeros((3, 7)), **USUAL)) == (0, 1, {1: 0, 2: 0, 3: 1, 5: 1, 10: 1})


def test_a_twin_that_is_slower_in_every_round_is_a_false_alarm():
    log_ratios = np.zeros((3, 7))
    log_ratios[:, 4] = np.log(1.03)
    assert shares(draw(log_ratios, **USUAL))[:2] == (1, 0)


def test_a_benchmark_that_is_hidden_by_its_noise_is_not_found():
    # The first of two is now faster, now slower, by much more than the margin; the second has no noise.
    log_ratios = np.array([[-0.5, 0.0], [0.5, 0.0]])
    alarms, passes, detections = shares(draw(log_ratios, **USUAL))
    # They take turns in being slower, so the half in which the second one is would be found.
    assert detections[3] == pytest.approx(0.5, abs=0.05)
    # As a coin, the first gives a pass with a probability of 1 % at most, and a false alarm with half of that.
    assert alarms < 0.03
    assert passes < 0.05


def test_a_round_is_drawn_as_a_whole():
    # In one round of two, all benchmarks are slow. Drawn one by one, some of 40 would be above the margin more often.
    log_ratios = np.array([[0.1] * 40, [-0.1] * 40])
    rates = draw(log_ratios, **{**USUAL, "comparisons": 4000, "family_alpha": 0.5, "max_rounds": 12})
    # Each fails with alpha / 40 at most, and all do so together; independent ones would come near alpha.
    assert rates.false_alarms.share < 0.5 / 40 + 0.005


def test_rates_are_the_same_again():
    log_ratios = np.random.default_rng(1).normal(0, 0.01, (20, 5))
    assert draw(log_ratios, **USUAL) == draw(log_ratios, **USUAL)


def test_bounds_hold_the_share():
    assert Rate.of(0, 200) == Rate(0.0, 0.0, upper_bound(0, 200))
    assert Rate.of(200, 200) == Rate(1.0, 1 - upper_bound(0, 200), 1.0)
    half = Rate.of(100, 200)
    assert half.low < half.share < half.high
    assert half.low == pytest.approx(1 - half.high)


# By scipy 1.17.1: beta.ppf(0.95, hits + 1, trials - hits)
@pytest.mark.parametrize(
    ("hits", "trials", "bound"),
    [(0, 10_000, 0.00029952836), (3, 100, 0.07571079375), (120, 10_000, 0.01395063556), (10, 10, 1.0)],
)
def test_upper_bounds(hits, trials, bound):
    assert upper_bound(hits, trials) == pytest.approx(bound, rel=1e-6)


def calibrated(project, *, rounds=2, **options):
    small = {"family_alpha": 0.25, "max_rounds": 6, "comparisons": 100}
    return calibrate.calibrate(project.config, "first", rounds=rounds, machine=MACHINE, **{**small, **options})


def test_a_commit_is_measured_with_its_twin_in_as_many_rounds_as_asked_for(clocked):
    before = clocked.git("for-each-ref")
    calibration = calibrated(clocked)
    record = clocked.folder / calibration.record
    pairs = journal.standing_pairs(record)
    assert [pair.base.round for pair in pairs] == [0, 1, 2]
    ((base, head),) = {(pair.base.commit, pair.head.commit) for pair in pairs}
    assert base == clocked.hash("first") != head
    assert clocked.git("rev-parse", f"{base}^{{tree}}") == clocked.git("rev-parse", f"{head}^{{tree}}")
    assert clocked.git("for-each-ref") == before
    assert (calibration.rounds, calibration.benchmarks, calibration.rates.false_alarms.share) == (2, 2, 0)
    (kept,) = record.parent.glob("*.json")
    assert json.loads(kept.read_text()) == json.loads(json.dumps(dataclasses.asdict(calibration)))


def test_more_rounds_add_to_those_that_are_recorded(clocked):
    first = calibrated(clocked)
    # More than the gate will have in one comparison.
    more = calibrated(clocked, rounds=8, margin_percent=1)
    assert (more.record, more.rounds) == (first.record, 8)
    pairs = journal.standing_pairs(clocked.folder / more.record)
    assert [pair.base.round for pair in pairs] == [0, 1, 2, 0, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(("if tiny.RIGHT else", "if not tiny.RIGHT else"), "verification: .*it is wrong", id="wrong"),
        pytest.param(
            (
                "        import tiny\n        return 1e-6",
                "        raise NotImplementedError('needs a GPU')\n        return 1e-6",
            ),
            ": no benchmark can be measured here",
            id="nothing-measured",
        ),
    ],
)
def test_without_figures_there_is_no_calibration(clocked, change, message):
    assert change[0] in CLOCKED_SUITE
    clocked.write_suite(CLOCKED_SUITE.replace(*change))
    with pytest.raises(project.UsageError, match=f"(?s)^no calibration.*{message}"):
        calibrated(clocked)
    assert not list((clocked.results / MACHINE / "comparisons").glob("*.json"))


def test_a_real_command(clocked):
    options = ["--rounds", "1", "--comparisons", "50", "--machine", MACHINE]
    done = subprocess.run(clocked.command("first", *options, command="calibrate"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0].startswith(f"{clocked.hash('first')[:8]} on {MACHINE}, margin 3 %, ")
    assert "same code: false alarm 0.00 % 0.00 % 5.82 %" in lines
    assert "one benchmark slower by 5 %: found 100.00 % 94.18 % 100.00 %" in lines
    again = subprocess.run(
        clocked.command("first", *options, "--json", command="calibrate"), capture_output=True, text=True
    )
    assert json.loads(again.stdout)["rates"]["detections"]["5"]["share"] == 1

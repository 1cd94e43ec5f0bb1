"""Rates worked by hand, and a real calibration with a clock that has no noise; `test_simulate_verdict` has the rest."""

import json
import subprocess

import numpy as np
import pytest
from asv_bench_gpu import calibrate, journal, project
from asv_bench_gpu.calibrate import Rate, draw, upper_bound

from tests.tracking.policies import BASELINE, QUANTITY, SMALL, SUITE
from tests.tracking.tiny_project import CLOCKED_SUITE, MACHINE


def rates(log_ratios, *, margin_percent=2, comparisons=250, family_alpha=0.01, max_rounds=40):
    """Of benchmarks that are the columns, with one margin."""
    columns = {str(number): column for number, column in enumerate(np.array(log_ratios).T)}
    return draw(columns, dict.fromkeys(columns, margin_percent), comparisons, family_alpha, max_rounds)


def shares(rates):
    return rates.false_alarms.share, rates.passes.share, {at: rate.share for at, rate in rates.detections.items()}


def test_without_noise_every_verdict_is_right():
    assert shares(rates(np.zeros((3, 7)))) == (0, 1, {1: 0, 2: 0, 3: 1, 5: 1, 10: 1})


def test_each_benchmark_has_its_margin():
    found = draw({"strict": np.zeros(3), "lenient": np.zeros(3)}, {"strict": 2, "lenient": 4}, 100, 0.01, 40)
    # They take turns in being slower.
    assert shares(found) == (0, 1, {1: 0, 2: 0, 3: 0.5, 5: 1, 10: 1})


def test_a_twin_that_is_slower_in_every_round_is_a_false_alarm():
    log_ratios = np.zeros((3, 7))
    log_ratios[:, 4] = np.log(1.03)
    assert shares(rates(log_ratios))[:2] == (1, 0)


def test_a_benchmark_that_is_hidden_by_its_noise_is_not_found():
    # The first of two is now faster, now slower, by much more than the margin; the second has no noise.
    alarms, passes, detections = shares(rates([[-0.5, 0.0], [0.5, 0.0]]))
    # In half of the comparisons the second one is the slower.
    assert detections[3] == pytest.approx(0.5, abs=0.05)
    # As a coin, the first gives a pass with a probability of 1 % at most, and a false alarm with half of that.
    assert alarms < 0.03
    assert passes < 0.05


def test_a_round_is_drawn_as_a_whole():
    # In one round of two, all benchmarks are slow.
    found = rates([[0.1] * 40, [-0.1] * 40], comparisons=4000, family_alpha=0.5, max_rounds=12)
    # Each fails with alpha / 40 at most, and all do so together; independent ones would come near alpha.
    assert found.false_alarms.share < 0.5 / 40 + 0.005


def test_rates_are_the_same_again():
    log_ratios = np.random.default_rng(1).normal(0, 0.01, (20, 5))
    assert rates(log_ratios) == rates(log_ratios)


def test_what_was_measured_slower_is_not_multiplied():
    same = {"one": np.zeros(3), "two": np.zeros(3)}
    # Measured, the slowdown of 3 % shows in the first only, and that of 1 % is larger than it says.
    slowed = {3: {"one": np.full(4, np.log(1.03)), "two": np.zeros(4)}, 1: dict.fromkeys(same, np.full(2, np.log(1.1)))}
    found = draw(same, dict.fromkeys(same, 2), 100, 0.01, 40, slowed)
    assert shares(found) == (0, 1, {1: 1, 2: 0, 3: 0.5, 5: 1, 10: 1})
    assert found.measured == [1, 3]


def test_the_noisiest_come_first():
    log_ratios = {"quiet": np.zeros(4), "some": np.array([0, 0.1, 0, 0]), "most": np.array([0.1, 0.1, 0.1, -0.1])}
    assert calibrate._noisiest(log_ratios, dict.fromkeys(log_ratios, 2)) == {"most": 0.75, "some": 0.25}
    assert calibrate._noisiest(log_ratios, {"quiet": 2, "some": 12, "most": 2}) == {"most": 0.75}


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


@pytest.fixture
def calibrated(clocked, written):
    """Calibrate the gate of a policy with the commit "first"."""

    def calibrated(*, rounds=2, margin_percent=3):
        policy = written(BASELINE, SMALL, SUITE.replace("3", str(margin_percent)))
        return calibrate.calibrate(clocked.config, policy, "first", rounds=rounds, comparisons=100, machine=MACHINE)

    return calibrated


def test_a_commit_is_measured_with_its_twin_in_as_many_rounds_as_asked_for(clocked, calibrated):
    before = clocked.git("for-each-ref")
    calibration = calibrated()
    record = clocked.folder / calibration.record
    pairs = journal.standing_pairs(record)
    assert [pair.base.round for pair in pairs] == [0, 1, 2]
    ((base, head),) = {(pair.base.commit, pair.head.commit) for pair in pairs}
    assert base == clocked.hash("first") != head
    assert clocked.git("rev-parse", f"{base}^{{tree}}") == clocked.git("rev-parse", f"{head}^{{tree}}")
    assert clocked.git("for-each-ref") == before
    assert (calibration.rounds, calibration.benchmarks, calibration.rates.false_alarms.share) == (2, 2, 0)
    (kept,) = record.parent.glob("*.calibration")
    assert calibrate.Calibration.read(kept) == calibration


def test_the_twin_is_measured_slower_too(clocked, calibrated):
    calibration = calibrated(margin_percent=2)
    assert calibration.rates.measured == [3]
    assert calibration.rates.detections[3].share == 1
    for pair in journal.standing_pairs(clocked.folder / calibration.record):
        for name, figures in pair.head.figures.items():
            slowed = figures.slowed if pair.base.round else {}
            assert slowed == figures.slowed
            for index, seconds in slowed.items():
                assert seconds == {3: pytest.approx(1.03 * figures.values[int(index)])}, name
        assert not any(figures.slowed for figures in pair.base.figures.values())


def test_more_rounds_add_to_those_that_are_recorded(clocked, calibrated):
    first = calibrated()
    # More than the gate will have in one comparison.
    more = calibrated(rounds=7, margin_percent=1)
    assert (more.record, more.rounds) == (first.record, 7)
    pairs = journal.standing_pairs(clocked.folder / more.record)
    assert [pair.base.round for pair in pairs] == [0, 1, 2, 0, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(("if tiny.RIGHT else", "if not tiny.RIGHT else"), "verification: .*it is wrong", id="wrong"),
        pytest.param(
            (
                "        import tiny\n        return 1e-6",
                "        raise NotImplementedError('needs a GPU')\n        return 1e-6",
            ),
            ", every time: not measured here: needs a GPU",
            id="nothing-measured",
        ),
    ],
)
def test_without_figures_there_is_no_calibration(clocked, calibrated, change, message):
    assert change[0] in CLOCKED_SUITE
    clocked.write_suite(CLOCKED_SUITE.replace(*change))
    with pytest.raises(project.UsageError, match=f"(?s)^no calibration.*{message}"):
        calibrated()
    assert not list((clocked.results / MACHINE / "comparisons").glob("*.calibration"))


def test_numbers_alone_cannot_be_calibrated(clocked, written):
    policy = written(BASELINE, QUANTITY)
    with pytest.raises(project.UsageError, match=rf"^{policy}: expected a \[\[suite\]\]"):
        calibrate.calibrate(clocked.config, policy, machine=MACHINE)


def test_a_real_command_and_the_gate_that_quotes_it(clocked, written):
    options = ["--policy", str(written(BASELINE, SMALL, SUITE)), "--machine", MACHINE, "--json"]

    def output(command, *arguments):
        done = subprocess.run(clocked.command(*arguments, command=command), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    once = ("calibrate", "first", "--rounds", "1", "--measure-percent", "5")
    shown = output(*once, "--comparisons", "50", *options[:-1])
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0].startswith(f"{clocked.hash('first')[:8]} on {MACHINE}: 50 comparisons of 2 benchmarks")
    assert "same code: false alarm 0.00 % 0.00 % 5.82 %" in lines
    assert "one benchmark slower by 3 % (multiplied): found 0.00 % 0.00 % 5.82 %" in lines
    assert "one benchmark slower by 5 % (measured): found 100.00 % 94.18 % 100.00 %" in lines
    found = json.loads(output(*once, "--comparisons", "500", *options))
    assert found["rates"]["detections"]["5"]["share"] == 1
    command = clocked.command("second", *options, command="gate")
    quoted = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["calibration"]
    assert quoted == "false alarms at most 0.60 %; least slowdown found with 95 %: 5 % (1 rounds)"

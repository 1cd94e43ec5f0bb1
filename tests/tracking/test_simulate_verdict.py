"""The simulation judges as `verdict.judge` does, and a small one keeps what the verdict promises."""

import sys

import numpy as np
import pytest
from asv_bench_gpu import verdict
from asv_bench_gpu.calibrate import Looks

from tests.tracking import simulate_verdict
from tests.tracking.simulate_verdict import NOISES, SIDED, Setting, log_ratios, simulate

SMALL = Setting(comparisons=400, keys=20, family_alpha=0.05, order="random")


def first_verdict(ratios, margin_percent, family_alpha):
    """What a caller gets who judges after every round, leaves out what has passed, and stops at the first verdict."""
    rounds, keys = ratios.shape
    pairs = {key: [] for key in range(keys)}
    rows = {}
    for number, times in enumerate(np.exp(ratios), start=1):
        for key in pairs:
            if number == 1 or rows[key].verdict != "pass":
                pairs[key].append((1.0, float(times[key])))
        judged = verdict.judge(pairs, margin_percent=margin_percent, family_alpha=family_alpha, max_rounds=rounds)
        rows = judged.rows
        if judged.verdict != "undecided":
            return judged.verdict == "fail", judged.verdict == "pass", number
    return False, False, rounds


@pytest.mark.parametrize("name", [*NOISES, *SIDED])
def test_looks_are_those_of_the_verdict(name):
    rng = np.random.default_rng(1)
    ratios = log_ratios(rng, name, (6, 20, 4), "alternating")
    ratios[:2, :, 1] += 0.05
    looks = Looks.of(ratios > np.log1p(0.01), 4, 0.2)
    found = list(zip(*(part.tolist() for part in looks.family().first()), strict=True))
    assert found == [first_verdict(one.astype(float), 1, 0.2) for one in ratios]
    assert any(fails for fails, _, _ in found)


@pytest.mark.parametrize("name", NOISES)
def test_wrong_verdicts_are_as_rare_as_promised(name):
    tallies = simulate(name, SMALL)
    # 5 % of 400 are 20; were that the rate, 35 or more would come about once in a thousand times.
    for what in ("fail, last look", "fail, any look", "pass, any look"):
        assert tallies[what].rate < 35 / 400
    assert tallies["fail"].rate == 0
    assert tallies["slower by 2 %"].rate < 35 / 400


@pytest.mark.parametrize("name", SIDED)
def test_noise_that_stays_with_a_side_breaks_the_promise(name):
    # Decision 6 says so; if it no longer did, the decision would have to be written anew.
    assert simulate(name, SMALL)["fail, any look"].rate > 2 * SMALL.family_alpha


def test_order_by_chance_takes_correlation_out():
    setting = Setting(comparisons=20_000, keys=1, family_alpha=0.01)
    alternating = simulate("autocorrelated", setting)["pass, any look"]
    by_chance = simulate("autocorrelated", Setting(**{**vars(setting), "order": "random"}))["pass, any look"]
    assert alternating.rate > 0.012
    assert by_chance.rate < 0.012


def test_a_large_slowdown_is_always_found_as_soon_as_can_be():
    found = simulate("normal", SMALL)["slower by 10 %"]
    assert found.rate == 1
    _, least = verdict.least_rounds(SMALL.keys, family_alpha=SMALL.family_alpha)
    assert (found.took(0.5), found.took(1)) == (least, least)


def test_the_same_seed_gives_the_same_tables():
    setting = Setting(comparisons=20, keys=3)
    assert list(simulate_verdict.tables(setting, ["normal"])) == list(simulate_verdict.tables(setting, ["normal"]))
    other = Setting(comparisons=20, keys=3, seed=1)
    assert list(simulate_verdict.tables(setting, ["normal"])) != list(simulate_verdict.tables(other, ["normal"]))


def test_the_command_prints_both_tables(monkeypatch, capsys):
    arguments = ["--comparisons", "30", "--keys", "3", "--noise", "normal", "bimodal, lasting within a side"]
    monkeypatch.setattr(sys, "argv", ["simulate_verdict", *arguments])
    simulate_verdict.main()
    printed = capsys.readouterr().out
    assert "comparisons 30, keys 3, rounds 40, margin_percent 2.0, family_alpha 0.01, order alternating" in printed
    assert printed.count("| normal |") == printed.count("| bimodal, lasting within a side |") == 2

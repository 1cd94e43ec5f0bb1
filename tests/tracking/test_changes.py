import doctest
import itertools
import math

import numpy as np
import pytest
from asv_bench_gpu import changes

from tests.tracking.simulate_changes import NOISES, Setting, histories

SETTING = Setting(series=40, before=6)
ROUNDS = 10


def found(family, **options):
    """Key -> indices of the commits that changed something."""
    steps = changes.find(family, **options).steps
    return {key: [step.at for step in of] for key, of in steps.items()}


def noisy(levels, seed=0, rounds=ROUNDS, noise="one-sided"):
    """One series: the given level of each commit, under noise."""
    rng = np.random.default_rng(seed)
    logs = NOISES[noise](rng, (1, len(levels), rounds))[0]
    return (np.exp(logs) * np.array(levels)[:, None]).tolist()


@pytest.mark.parametrize("percent", [3, 5, 10, -3, -5, -10])
def test_a_step_is_found_at_its_commit(percent):
    series = histories(SETTING, "one-sided", 12, percent).tolist()
    outcome = changes.find(dict(enumerate(series)))
    assert {key: [step.at for step in steps] for key, steps in outcome.steps.items()} == {key: [6] for key in range(40)}
    true = 1 + percent / 100
    for (step,) in outcome.steps.values():
        assert step.low <= true <= step.high
        assert step.ratio == pytest.approx(true, rel=0.004)
        assert step.chance <= changes.FAMILY_ALPHA
        assert not step.low <= 1 + changes.MARGIN_PERCENT / 100 <= step.high


@pytest.mark.parametrize("noise", NOISES)
def test_without_a_step_nothing_is_found(noise):
    assert found(dict(enumerate(histories(SETTING, noise, 20).tolist()))) == {}


@pytest.mark.parametrize("percent", [0.5, -0.5])
def test_less_than_the_margin_is_no_change(percent):
    assert found(dict(enumerate(histories(SETTING, "one-sided", 12, percent).tolist()))) == {}


def test_the_newest_commit_is_enough_and_so_is_the_oldest():
    assert found({"newest": noisy([1, 1, 1, 1, 1, 1.05]), "oldest": noisy([1.05, 1, 1, 1, 1, 1])}) == {
        "newest": [5],
        "oldest": [1],
    }


def test_several_steps_of_a_series_are_told_apart():
    levels = [1] * 4 + [1.05] * 3 + [1.02] * 4 + [1.08] * 3
    steps = changes.find({"a": noisy(levels)}).steps["a"]
    assert [step.at for step in steps] == [4, 7, 11]
    ratios = [after / before for before, after in itertools.pairwise(levels) if before != after]
    assert [step.ratio for step in steps] == pytest.approx(ratios, rel=0.004)


def test_a_single_slow_commit_is_two_changes():
    assert found({"a": noisy([1] * 5 + [1.05] + [1] * 5)}) == {"a": [5, 6]}


def test_a_slow_drift_is_no_step():
    assert found({"a": noisy(np.linspace(1, 1.02, 30))}) == {}


def test_the_other_way_round_is_the_inverse():
    series = noisy([1] * 5 + [1.05] * 4)
    (forth,) = changes.find({"a": series}).steps["a"]
    (back,) = changes.find({"a": series[::-1]}).steps["a"]
    assert (back.at, back.chance) == (len(series) - forth.at, forth.chance)
    assert (1 / back.ratio, 1 / back.high, 1 / back.low) == pytest.approx((forth.ratio, forth.low, forth.high))


def test_only_ratios_count():
    series = noisy([1] * 5 + [1.05] * 4)
    scaled = [[time * 4e-6 for time in rounds] for rounds in series]
    (one,), (other,) = (changes.find({"a": of}).steps["a"] for of in (series, scaled))
    assert (one.at, one.ratio) == (other.at, pytest.approx(other.ratio))


def test_series_share_the_probability_of_a_false_alarm():
    # Separated without exception: p = 2 / 252, which is enough for one test of 0.01, and too little for two series.
    step = [[1.0] * 5, [1.1] * 5]
    assert found({"a": step}) == {"a": [1]}
    assert found({"a": step, "b": [[1.0] * 5] * 2}) == {}
    assert found({"a": step, "b": [[1.0] * 5] * 2}, family_alpha=0.02) == {"a": [1]}
    assert changes.find({"a": step}).steps["a"][0].chance == pytest.approx(2 / 252)


@pytest.mark.parametrize("series", [[], [[1.0] * 40], [[1.0] * 2] * 4], ids=["nothing", "one-commit", "few-rounds"])
def test_what_cannot_show_a_change_is_named(series):
    outcome = changes.find({"short": series, "long": noisy([1] * 6)})
    assert (outcome.steps, outcome.blind) == ({}, ["short"])


def test_no_series_at_all():
    assert changes.find({}) == changes.Found({}, 0, [])


def test_a_flat_clock_shows_nothing_but_a_step():
    flat = [[2.0] * ROUNDS] * 6
    assert found({"flat": flat, "step": [*flat, *[[2.2] * ROUNDS] * 6]}) == {"step": [6]}


def test_of_a_commit_with_many_rounds_the_latest_count():
    before = [[1.0] * 500] * 3
    assert found({"a": [*before, [9.0] * 460 + [1.0] * 40], "b": [*before, [1.0] * 460 + [9.0] * 40]}) == {"b": [3]}


def test_commits_may_differ_in_rounds():
    series = [rounds[: 3 + 2 * number] for number, rounds in enumerate(noisy([1] * 4 + [1.1] * 4, rounds=20))]
    assert found({"a": series}) == {"a": [4]}


@pytest.mark.parametrize("counts", [[10] * 7, [3, 50, 1, 20, 20, 20, 7], [40, 1], [1] * 60])
def test_every_test_that_could_be_made_counts(counts):
    def near(run):
        return len(run) == 1 or sum(run) <= changes.REACH

    windows = itertools.combinations(range(len(counts) + 1), 3)
    possible = [1 for start, at, end in windows if near(counts[start:at]) and near(counts[at:end])]
    assert changes.tests(counts) == len(possible)


@pytest.mark.parametrize(("fewer", "more"), [(1, 4), (2, 5), (4, 4), (5, 6)])
@pytest.mark.parametrize("level", [0.001, 0.01, 0.1, 0.5])
def test_so_many_pairs_may_contradict_as_all_orders_of_the_rounds_allow(fewer, more, level):
    ranks = range(fewer + more)
    against = [
        sum(other < one for one in chosen for other in set(ranks) - set(chosen))
        for chosen in itertools.combinations(ranks, fewer)
    ]
    shares = [2 * sum(number <= most for number in against) / len(against) for most in range(fewer * more)]
    assert changes._allowed(fewer, more, level) == sum(share <= level for share in shares) - 1


def test_what_is_found_is_what_its_bounds_say():
    logs = changes.logarithms(noisy([1] * 5 + [1.02] * 5, seed=3))
    (cut,) = changes.confirm(logs, [5], margin_percent=0, level=1e-6)
    low = changes._step(cut, 1).low
    for shift, expected in ((-1e-9, [5]), (1e-9, [])):
        margin_percent = 100 * (low * math.exp(shift) - 1)
        kept = changes.confirm(logs, [5], margin_percent=margin_percent, level=1e-6)
        assert [cut.at for cut in kept] == expected


@pytest.mark.parametrize(
    "options", [{"margin_percent": -1}, {"margin_percent": math.nan}, {"family_alpha": 0}, {"family_alpha": 0.6}]
)
def test_numbers_that_make_no_sense_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
        changes.find({}, **options)


def test_examples_in_docstrings():
    assert doctest.testmod(changes).failed == 0

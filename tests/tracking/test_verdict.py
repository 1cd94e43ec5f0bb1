"""Verdicts worked by hand. Tests look the functions up when they call them: `verdict_script` breaks the module."""

import doctest
import itertools
import math
import random
from fractions import Fraction

import pytest
from asv_bench_gpu import verdict

#: With one key, alpha of a quarter and six rounds: no claim before round 3, none with an exception before round 6.
SMALL = {"family_alpha": 0.25, "max_rounds": 6}
USUAL = {"margin_percent": 2, "family_alpha": 0.01}


def rounds(*ratios, base=1.0):
    return [(base, base * ratio) for ratio in ratios]


def row(*ratios, margin_percent=0, **options):
    """The only row of a family of one key."""
    judgement = verdict.judge({"key": rounds(*ratios)}, margin_percent=margin_percent, **(options or SMALL))
    assert judgement.verdict == judgement.rows["key"].verdict
    return judgement.rows["key"]


def noisy(rng, keys=3, number=20, slower=1.0):
    return {
        f"key {key}": [(rng.lognormvariate(0, 0.01), slower * rng.lognormvariate(0, 0.01)) for _ in range(number)]
        for key in range(keys)
    }


def test_examples_in_docstrings():
    assert doctest.testmod(verdict) == (0, 6)


# By hand, with alpha 1/4 and 6 rounds, of which round n may have spent n/24. All of 3 tosses agree with 1/8 = 3/24: the
# claim is made from round 3 on. One of 4 tosses contradicts, and not all of the first 3 agree, with 3/16; of 5 with
# 3/32, and 1/8 + 3/32 > 5/24; of 6 with 3/64, and 1/8 + 3/64 < 6/24. Two of 6: with 12/64, too much.
def test_exceptions_by_hand():
    assert verdict.exceptions_allowed(0.25, 6) == (-1, -1, -1, 0, 0, 0, 1)


# With alpha 1/8, round n may have spent n/48: all of 3 agree with 6/48, too often; all of 4 with 3/48 <= 4/48. One of 5
# contradicts, and not all of the first 4 agree: 4/32, and 3/48 + 6/48 > 5/48; of 6: 4/64, and 3/48 + 3/48 = 6/48.
def test_exceptions_by_hand_for_half_the_alpha():
    assert verdict.exceptions_allowed(0.125, 6) == (-1, -1, -1, -1, 0, 0, 1)


@pytest.mark.parametrize("alpha", [0.5, 0.25, 0.05, 0.01])
def test_exceptions_are_the_most_that_alpha_buys(alpha):
    last = 11
    allowed = verdict.exceptions_allowed(alpha, last)
    assert len(allowed) == last + 1
    #: contradictions after each round, for every sequence of tosses
    paths = [list(itertools.accumulate(tosses)) for tosses in itertools.product((0, 1), repeat=last)]

    def spent(allowed, rounds):
        claims = sum(any(path[n - 1] <= allowed[n] for n in range(1, rounds + 1)) for path in paths)
        return Fraction(claims, len(paths))

    for rounds_so_far in range(1, last + 1):
        may_spend = Fraction(alpha) * rounds_so_far / last
        assert spent(allowed, rounds_so_far) <= may_spend
        more = list(allowed)
        more[rounds_so_far] += 1
        assert spent(more, rounds_so_far) > may_spend


@pytest.mark.parametrize("alpha", [0.5, 0.01, 0.01 / 150])
@pytest.mark.parametrize("last", [40, 200])
def test_exceptions_never_shrink_and_leave_most_rounds_to_agree(alpha, last):
    allowed = verdict.exceptions_allowed(alpha, last)
    assert list(allowed) == sorted(allowed)
    assert all(2 * exceptions < rounds for rounds, exceptions in enumerate(allowed) if rounds)


def test_too_few_rounds_are_undecided():
    for ratios in ([], [9.0], [9.0, 9.0], [0.1, 0.1]):
        found = row(*ratios)
        assert (found.verdict, found.low, found.high) == ("undecided", None, None)
        assert found.rounds == len(ratios)
        assert "from 3 rounds on" in found.reason


def test_the_least_rounds_decide():
    assert row(1.1, 1.2, 1.3).verdict == "fail"
    assert row(0.9, 0.8, 0.7).verdict == "pass"
    assert row(0.9, 1.2, 1.3).verdict == "undecided"


def test_bounds_by_hand():
    three = row(1.5, 1.25, 2.0)
    assert (three.low, three.ratio, three.high) == (1.25, 1.5, 2.0)
    assert three.rounds == 3
    five = row(16.0, 1.0, 4.0, 2.0, 8.0)
    assert (five.low, five.ratio, five.high) == (1.0, 4.0, 16.0)
    six = row(16.0, 1.0, 4.0, 2.0, 8.0, 32.0)
    assert (six.low, six.high) == (2.0, 16.0)


def test_the_middle_of_an_even_number_is_geometric():
    assert row(1.0, 4.0, 2.0, 8.0).ratio == pytest.approx(math.sqrt(8))


def test_one_exception_once_it_is_allowed():
    assert row(1.1, 1.1, 1.1, 1.1, 0.5).verdict == "undecided"
    assert row(1.1, 1.1, 1.1, 1.1, 1.1, 0.5).verdict == "fail"
    assert row(0.9, 0.9, 0.9, 0.9, 0.9, 5.0).verdict == "pass"
    assert row(1.1, 1.1, 1.1, 1.1, 0.5, 0.5).verdict == "undecided"


def test_the_margin_is_a_percentage_of_the_base():
    assert row(1.04, 1.04, 1.04, margin_percent=3, **SMALL).verdict == "fail"
    assert row(1.04, 1.04, 1.04, margin_percent=5, **SMALL).verdict == "pass"
    assert row(1.04, 1.06, 1.04, margin_percent=5, **SMALL).verdict == "undecided"


def test_exactly_on_the_margin_is_not_slower_than_it():
    assert row(1.25, 1.25, 1.25, margin_percent=25, **SMALL).verdict == "pass"
    assert row(1.25, 1.26, 1.26, margin_percent=25, **SMALL).verdict == "undecided"


def test_no_evidence_of_a_slowdown_is_no_pass():
    wide = row(0.5, 0.9, 1.0, 1.03, 1.1, 1.2, margin_percent=2, **SMALL)
    assert (wide.verdict, wide.low, wide.high) == ("undecided", 0.9, 1.1)
    # Nor is a ratio within the margin.
    assert row(0.99, 0.99, 1.1, margin_percent=2, **SMALL).verdict == "undecided"
    # Nor, the other way round, is a ratio above it a fail.
    assert row(1.1, 1.1, 0.99, margin_percent=2, **SMALL).verdict == "undecided"


def test_identical_times_pass_with_a_ratio_of_one():
    found = row(*[1.0] * 9, **USUAL)
    assert (found.verdict, found.ratio, found.low, found.high) == ("pass", 1.0, 1.0, 1.0)
    assert row(1.0, 1.0, 1.0).verdict == "pass"  # even without a margin: they are not slower


def test_least_rounds_of_usual_families():
    assert verdict.least_rounds(1, **SMALL) == (3, 3)
    assert verdict.least_rounds(2, **SMALL) == (3, 4)
    assert verdict.least_rounds(30, family_alpha=0.01) == (9, 14)
    assert verdict.least_rounds(150, family_alpha=0.01) == (9, 16)
    assert verdict.least_rounds(150, family_alpha=0.05) == (7, 14)


@pytest.mark.parametrize("keys", [1, 2, 100])
def test_judging_needs_the_least_rounds_and_no_more(keys):
    to_pass, to_fail = verdict.least_rounds(keys, family_alpha=0.01)
    for number in range(to_fail + 2):
        judged = verdict.judge({str(key): rounds(*[1.1] * number) for key in range(keys)}, **USUAL)
        assert judged.verdict == ("fail" if number >= to_fail else "undecided")
        judged = verdict.judge({str(key): rounds(*[0.9] * number) for key in range(keys)}, **USUAL)
        assert judged.verdict == ("pass" if number >= to_pass else "undecided")


def test_more_keys_make_a_fail_harder_and_a_pass_no_easier():
    slow, same = rounds(*[1.1] * 9), rounds(*[1.0] * 9)
    assert verdict.judge({"slow": slow}, **USUAL).verdict == "fail"
    among = verdict.judge({"slow": slow, **{str(key): same for key in range(99)}}, **USUAL)
    assert among.verdict == among.rows["slow"].verdict == "undecided"
    assert {row.verdict for key, row in among.rows.items() if key != "slow"} == {"pass"}


def test_a_key_without_rounds_counts_among_the_keys():
    slow = rounds(*[1.1] * 3)
    assert verdict.judge({"slow": slow}, margin_percent=0, **SMALL).verdict == "fail"
    assert verdict.judge({"slow": slow, "lacking": []}, margin_percent=0, **SMALL).verdict == "undecided"


def test_the_family_by_its_keys():
    passing, failing, open_ = rounds(0.9, 0.9, 0.9, 0.9), rounds(1.1, 1.1, 1.1, 1.1), rounds(0.9, 1.1, 0.9, 1.1)
    judge = lambda **pairs: verdict.judge(pairs, margin_percent=0, **SMALL).verdict  # noqa: E731
    assert judge(a=passing, b=passing) == "pass"
    assert judge(a=passing, b=open_) == "undecided"
    assert judge(a=passing, b=failing) == "fail"
    assert judge(a=failing, b=open_) == "fail"


def test_nothing_judged_is_no_pass():
    judged = verdict.judge({}, **USUAL)
    assert (judged.verdict, judged.rows) == ("undecided", {})


@pytest.mark.parametrize("pair", [(None, 1.0), (1.0, None), (None, None)], ids=["base", "head", "both"])
@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_a_missing_figure_leaves_a_key_undecided(pair, ratio):
    present = rounds(*[ratio] * 20)
    judged = verdict.judge({"whole": rounds(*[0.9] * 20), "lacking": [*present, pair]}, **USUAL)
    found = judged.rows["lacking"]
    assert judged.verdict == found.verdict == "undecided"
    assert (found.rounds, found.missing) == (20, 1)
    assert (found.ratio, found.low, found.high) == (ratio, ratio, ratio)
    assert found.reason == "no figure in 1 of 21 rounds"


@pytest.mark.parametrize("given", [[(1.0, None)] * 20, [(None, 1.0)] * 20, []], ids=["no-head", "no-base", "no-round"])
def test_a_key_that_one_side_lacks_keeps_the_family_from_passing(given):
    judged = verdict.judge({"whole": rounds(*[0.9] * 20), "lacking": given}, **USUAL)
    assert judged.verdict == judged.rows["lacking"].verdict == "undecided"
    assert judged.rows["lacking"].ratio is None
    assert judged.rows["whole"].verdict == "pass"


def test_a_missing_key_does_not_hide_a_fail():
    judged = verdict.judge({"slow": rounds(*[1.1] * 20), "lacking": [(1.0, None)] * 20}, **USUAL)
    assert judged.verdict == "fail"


def test_keys_may_differ_in_rounds():
    judged = verdict.judge({"nine": rounds(*[1.0] * 9), "eight": rounds(*[1.0] * 8)}, **USUAL)
    assert [row.verdict for row in judged.rows.values()] == ["pass", "undecided"]
    assert judged.verdict == "undecided"


def test_only_pairs_count():
    # The machine slows down a thousandfold while head stays 3 % slower; sides taken apart would overlap.
    drifting = [(2.0**number, 2.0**number * 1.03) for number in range(10)]
    assert verdict.judge({"key": drifting}, **USUAL).verdict == "fail"
    assert verdict.judge({"key": [(base, base) for base, _ in drifting]}, **USUAL).verdict == "pass"


def test_a_time_belongs_to_its_round():
    # Sorted, the two sides are the same.
    found = verdict.judge({"key": [(1.0, 4.0), (2.0, 1.0), (4.0, 2.0)]}, margin_percent=0, **SMALL).rows["key"]
    assert (found.low, found.ratio, found.high) == (0.5, 0.5, 4.0)


def test_outliers_do_not_count_for_more_than_a_round():
    # In 20 rounds 3 exceptions are allowed.
    assert verdict.exceptions_allowed(0.01, 40)[20] == 3
    same, outliers = [1.0] * 17, [50.0, 60.0, 70.0]
    found = row(*same, *outliers, **USUAL)
    assert (found.verdict, found.ratio, found.high) == ("pass", 1.0, 1.0)
    assert row(*same, *outliers, 50.0, **USUAL).verdict == "undecided"


def test_reasons():
    assert row(1.1, 1.1).reason == "above the margin in 2 of 2 rounds (pass: from 3 rounds on, fail: from 3 rounds on)"
    assert row(*[1.1] * 5, 0.9).reason == "above the margin in 5 of 6 rounds (pass: at most 1, fail: at least 5)"
    judged = verdict.judge(dict.fromkeys("ab", rounds(0.9, 0.9, 0.9)), margin_percent=0, **SMALL)
    expected = "above the margin in 0 of 3 rounds (pass: at most 0, fail: from 4 rounds on)"
    assert [row.reason for row in judged.rows.values()] == [expected] * 2


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_keys_and_rounds_does_not_matter(seed):
    rng = random.Random(seed)  # noqa: S311
    pairs = noisy(rng)
    judged = verdict.judge(pairs, **USUAL)
    shuffled = {key: rng.sample(pairs[key], len(pairs[key])) for key in rng.sample(list(pairs), len(pairs))}
    assert list(shuffled) != list(pairs) or shuffled != pairs
    again = verdict.judge(shuffled, **USUAL)
    assert again == judged
    assert list(again.rows) == list(shuffled)


@pytest.mark.parametrize("seed", range(5))
def test_the_unit_of_time_does_not_matter(seed):
    pairs = noisy(random.Random(seed))  # noqa: S311
    # A power of two changes no digit.
    scaled = {key: [(base / 1024, head / 1024) for base, head in given] for key, given in pairs.items()}
    assert verdict.judge(scaled, **USUAL) == verdict.judge(pairs, **USUAL)


@pytest.mark.parametrize("seed", range(5))
def test_exchanging_base_and_head_inverts_a_ratio_and_its_bounds(seed):
    (given,) = noisy(random.Random(seed), keys=1).values()  # noqa: S311
    found = row(*(head / base for base, head in given), **USUAL)
    inverse = row(*(base / head for base, head in given), **USUAL)
    assert inverse.ratio == pytest.approx(1 / found.ratio)
    assert (inverse.low, inverse.high) == pytest.approx((1 / found.high, 1 / found.low))


@pytest.mark.parametrize("seed", range(50))
def test_a_slower_head_never_helps(seed):
    rng = random.Random(seed)  # noqa: S311
    order = ["pass", "undecided", "fail"]
    pairs = noisy(rng, number=rng.randrange(9, 41), slower=rng.choice([0.98, 1.0, 1.02, 1.03]))
    before = verdict.judge(pairs, **USUAL)
    slower = {
        key: [(base, head * rng.choice([1.0, 1.0, 1.001, 1.02, 3.0])) for base, head in given]
        for key, given in pairs.items()
    }
    after = verdict.judge(slower, **USUAL)
    assert order.index(after.verdict) >= order.index(before.verdict)
    for key, found in before.rows.items():
        assert order.index(after.rows[key].verdict) >= order.index(found.verdict)
        assert after.rows[key].ratio >= found.ratio


@pytest.mark.parametrize("seed", range(20))
def test_bounds_and_verdict_agree_whatever_the_margin(seed):
    pairs = noisy(random.Random(seed), number=25)  # noqa: S311
    for margin_percent in (0, 0.1, 0.5, 1, 2, 5):
        for found in verdict.judge(pairs, margin_percent=margin_percent, family_alpha=0.01).rows.values():
            limit = 1 + margin_percent / 100
            assert found.low <= found.ratio <= found.high
            expected = "fail" if found.low > limit else "pass" if found.high <= limit else "undecided"
            assert found.verdict == expected


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("side", [0, 1], ids=["base", "head"])
def test_a_time_that_is_none_is_missing(seconds, side):
    pair = (seconds, 1.0) if side == 0 else (1.0, seconds)
    same = [(1.0, 1.0)] * 15
    found = verdict.judge({"key": [*same, pair], "whole": same}, **USUAL)
    assert found.verdict == found.rows["key"].verdict == "undecided"
    assert (found.rows["key"].rounds, found.rows["key"].missing) == (15, 1)
    assert found.rows["whole"].verdict == "pass"


@pytest.mark.parametrize("pair", [(1.0,), (1.0, 1.0, 1.0), 1.0, None])
def test_what_is_no_pair_raises(pair):
    with pytest.raises(TypeError, match=r"^pairs\['key'\], round 1: expected \(base_seconds, head_seconds\), got"):
        verdict.judge({"key": [pair]}, **USUAL)


@pytest.mark.parametrize("value", ["1.0", True, 1j])
def test_what_is_no_number_raises(value):
    with pytest.raises(TypeError, match=r"^pairs\['key'\], round 1: expected a number, got"):
        verdict.judge({"key": [(1.0, value)]}, **USUAL)
    with pytest.raises(TypeError, match=r"^margin_percent: expected a number, got"):
        verdict.judge({}, margin_percent=value, family_alpha=0.01)
    with pytest.raises(TypeError, match=r"^family_alpha: expected a number, got"):
        verdict.judge({}, margin_percent=1, family_alpha=value)


def test_what_are_no_pairs_raises():
    with pytest.raises(TypeError, match=r"^pairs: expected a mapping of benchmarks to pairs of times, got \["):
        verdict.judge([(1.0, 1.0)], **USUAL)
    with pytest.raises(TypeError, match=r"^pairs\['key'\]: expected a sequence of \(base_seconds, head_seconds\), got"):
        verdict.judge({"key": None}, **USUAL)


def test_each_benchmark_may_have_its_own_margin():
    pairs = {"strict": rounds(1.04, 1.04, 1.04, 1.04), "lenient": rounds(1.04, 1.04, 1.04, 1.04)}
    found = verdict.judge(pairs, margin_percent={"strict": 3, "lenient": 5, "another": 0}, **SMALL)
    assert {key: row.verdict for key, row in found.rows.items()} == {"strict": "fail", "lenient": "pass"}


@pytest.mark.parametrize(
    ("margins", "error", "message"),
    [
        pytest.param({}, TypeError, "expected a number, got None", id="none"),
        pytest.param({"key": -1}, ValueError, "expected a finite number of at least 0, got -1", id="negative"),
        pytest.param({"key": math.nan}, ValueError, "expected a finite number of at least 0, got nan", id="nan"),
    ],
)
def test_each_benchmark_needs_a_margin(margins, error, message):
    with pytest.raises(error, match=rf"^margin_percent\['key'\]: {message}"):
        verdict.judge({"key": []}, margin_percent=margins, family_alpha=0.01)


@pytest.mark.parametrize("margin_percent", [-0.1, math.nan, math.inf])
def test_a_margin_out_of_range_raises(margin_percent):
    with pytest.raises(ValueError, match=r"^margin_percent: expected a finite number of at least 0, got"):
        verdict.judge({}, margin_percent=margin_percent, family_alpha=0.01)


@pytest.mark.parametrize("family_alpha", [0, -0.1, 0.51, 1, math.nan])
def test_an_alpha_out_of_range_raises(family_alpha):
    with pytest.raises(ValueError, match=r"^family_alpha: expected a number above 0, and 0.5 at most, got"):
        verdict.judge({}, margin_percent=1, family_alpha=family_alpha)


def test_rounds_out_of_range_raise():
    with pytest.raises(ValueError, match=r"^pairs\['key'\]: expected at most max_rounds = 40 rounds, got 41$"):
        verdict.judge({"key": rounds(*[1.0] * 41)}, **USUAL)
    with pytest.raises(ValueError, match=r"^max_rounds: expected at least 1, got 0$"):
        verdict.judge({}, **USUAL, max_rounds=0)
    with pytest.raises(TypeError, match=r"^max_rounds: expected a whole number, got 9.0$"):
        verdict.judge({}, **USUAL, max_rounds=9.0)
    with pytest.raises(ValueError, match=r"^keys: expected at least 1, got 0$"):
        verdict.least_rounds(0, family_alpha=0.01)


def test_a_gate_that_cannot_fail_is_refused():
    pairs = {str(key): rounds(1.0) for key in range(100)}
    # All of 14 rounds agree with 2^-14 = 0.000061, within 0.01 / 100; all of 13 do not.
    verdict.judge(pairs, **USUAL, max_rounds=14)
    with pytest.raises(ValueError, match=r"^max_rounds: 13 can never show that one of 100 benchmarks is slower with"):
        verdict.judge(pairs, **USUAL, max_rounds=13)

import pytest
from asv_bench_gpu.policy import Accepted, Policy, Quantity, Suite, Waiver, blaming
from asv_bench_gpu.project import UsageError

from tests.tracking.policies import BASELINE, QUANTITY, SMALL, SUITE, TOMORROW, acknowledged, removed, waiver
from tests.tracking.tiny_project import VALUE


def test_reads_everything(written):
    policy = Policy.read(
        written(
            BASELINE,
            SMALL,
            SUITE,
            SUITE.replace("3", "4.5"),
            "may_be_new = true\n",
            QUANTITY,
            "max_new = 7\n",
            waiver(),
            removed(),
            acknowledged("same", "first"),
        )
    )
    assert policy == Policy(
        baseline_commit="first",
        family_alpha=0.25,
        max_rounds=6,
        suite=(
            Suite(benchmarks="gputime_work", margin_percent=3),
            Suite(benchmarks="gputime_work", margin_percent=4.5, may_be_new=True),
        ),
        quantity=(Quantity(benchmarks="track_value", max_increase=0, max_new=7),),
        waiver=(Waiver(benchmark=VALUE, limit=60, reason="worth it", commit="second", expires=TOMORROW),),
        removed=(Accepted(benchmarks="same", commit="second", reason="nobody asks"),),
        acknowledged=(Accepted(benchmarks="same", commit="first", reason="worth it"),),
    )


def test_what_is_not_said_is_as_for_compare(written):
    policy = Policy.read(written(BASELINE, SUITE))
    assert (policy.family_alpha, policy.max_rounds, policy.quantity, policy.waiver) == (0.01, 40, (), ())


LIMIT = "expected a finite number of at least 0, got"
PERCENT = "expected a number from 0 to 100, got"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("=", "Invalid statement", id="no-toml"),
        pytest.param(
            BASELINE + "margin = 3\n" + SUITE, "margin: expected one of baseline_tags, .*got margin = 3", id="key"
        ),
        pytest.param(SUITE, "expected either baseline_tags or baseline_commit", id="no-baseline"),
        pytest.param(BASELINE + "baseline_tags = 'v*'\n" + SUITE, "expected either baseline_tags", id="two-baselines"),
        pytest.param("baseline_commit = ' '\n" + SUITE, "baseline_commit: expected text, got ' '", id="blank"),
        pytest.param(BASELINE, r"expected a \[\[suite\]\] or a \[\[quantity\]\]", id="nothing"),
        pytest.param(BASELINE + "family_alpha = 1\n" + SUITE, "family_alpha: expected a number above 0", id="alpha"),
        pytest.param(BASELINE + "max_rounds = 9.5\n" + SUITE, "max_rounds: expected a whole number", id="rounds"),
        pytest.param(BASELINE + "max_rounds = true\n" + SUITE, "max_rounds: expected a whole number", id="rounds-bool"),
        pytest.param(BASELINE + "suite = 3\n", r"suite: expected tables \[\[suite\]\], got 3", id="suite-no-table"),
        pytest.param(BASELINE + "suite = [3]\n", r"suite: expected tables \[\[suite\]\], got \[3\]", id="suite-number"),
        pytest.param(BASELINE + SUITE.replace("3", "-3"), rf"suite\[1\]\.margin_percent: {PERCENT} -3", id="negative"),
        pytest.param(
            BASELINE + SUITE.replace("3", "100.5"), rf"suite\[1\]\.margin_percent: {PERCENT} 100.5", id="absurd"
        ),
        pytest.param(
            BASELINE + SUITE + "may_be_new = 1\n",
            r"suite\[1\]\.may_be_new: expected true or false, got 1",
            id="no-flag",
        ),
        pytest.param(BASELINE + QUANTITY + "max_new = -1\n", rf"quantity\[1\]\.max_new: {LIMIT} -1", id="new"),
        pytest.param(BASELINE + SUITE.replace("3", "nan"), rf"suite\[1\]\.margin_percent: {PERCENT} nan", id="nan"),
        pytest.param(BASELINE + SUITE.replace("3", "'3'"), rf"suite\[1\]\.margin_percent: {PERCENT} '3'", id="text"),
        pytest.param(
            BASELINE + SUITE.replace("margin_percent = 3\n", ""),
            rf"suite\[1\]\.margin_percent: {PERCENT} nothing",
            id="missing",
        ),
        pytest.param(
            BASELINE + SUITE.replace("gputime", "("),
            r"suite\[1\]\.benchmarks: expected a regular expression, got '\(_work'",
            id="regex",
        ),
        pytest.param(
            BASELINE + SUITE + QUANTITY + QUANTITY.replace("0", "inf"),
            rf"quantity\[2\]\.max_increase: {LIMIT} inf",
            id="second",
        ),
        pytest.param(
            BASELINE + SUITE + waiver(expires="'2027-01-31'"),
            r"waiver\[1\]\.expires: expected a date such as 2027-01-31, got '2027",
            id="date-as-text",
        ),
        pytest.param(
            BASELINE + SUITE + waiver(expires="2027-01-31T00:00:00"),
            r"waiver\[1\]\.expires: expected a date",
            id="date-and-time",
        ),
        pytest.param(
            BASELINE + SUITE + waiver().replace("worth it", ""),
            r"waiver\[1\]\.reason: expected text, got ''",
            id="no-reason",
        ),
    ],
)
def test_what_is_no_policy_is_refused_with_key_value_and_what_was_expected(written, text, message):
    path = written(text)
    with pytest.raises(UsageError, match=f"^{path}: {message}"), blaming(path):
        Policy.read(path)

"""Run by test_verdict_mutants: what test_verdict says of mutated copies of asv_bench_gpu.verdict.

python verdict_script.py; prints a JSON object, name of the mutant -> the first test that fails, null if none does. The
first mutant, "none", has no mistake.
"""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from asv_bench_gpu import verdict

TESTS = Path(__file__).with_name("test_verdict.py")

_LIMIT = "return 1 + margin / 100"
_FAMILY = "to_fail = exceptions_allowed(family_alpha / keys, max_rounds)\n    to_pass"
_PASSES = "to_pass = exceptions_allowed(family_alpha, max_rounds)"
_RATIO = "ratios.append(head / base)"
_MEDIAN = "math.sqrt(ratios[(rounds - 1) // 2] * ratios[rounds // 2])"
_ALL = '"pass" if verdicts == {"pass"} else'
#: Each ``old`` must occur once, and becomes ``new``.
MUTANTS = {
    "none": (),
    "no-family-correction": ((_FAMILY, _FAMILY.replace(" / keys", "")),),
    "family-correction-by-one-key-less": ((_FAMILY, _FAMILY.replace("/ keys", "/ max(keys - 1, 1)")),),
    "family-correction-of-a-pass": ((_PASSES, "to_pass = to_fail"),),
    "two-sided": (
        (_FAMILY, _FAMILY.replace("/ keys", "/ keys / 2")),
        (_PASSES, _PASSES.replace("family_alpha", "family_alpha / 2")),
    ),
    "twice-the-alpha": ((_FAMILY, _FAMILY.replace("/ keys", "/ keys * 2")),),
    "margin-ignored": ((_LIMIT, "return 1.0"),),
    "margin-no-percentage": ((_LIMIT, "return 1 + margin"),),
    "margin-of-the-wrong-sign": ((_LIMIT, "return 1 - margin / 100"),),
    "one-margin-for-all": (("limits[key], to_pass", "max(limits.values()), to_pass"),),
    "faster-taken-for-slower": ((_RATIO, "ratios.append(base / head)"),),
    "differences-for-ratios": ((_RATIO, "ratios.append(1 + head - base)"),),
    "sides-not-paired": (
        (_RATIO, "ratios.append((base, head))"),
        ("return ratios\n", "return [head / base for base, head in zip(*map(sorted, zip(*ratios)))]\n"),
    ),
    "mean-for-median": ((_MEDIAN, "sum(ratios) / rounds"),),
    "median-of-even-numbers-arithmetic": ((_MEDIAN, "(ratios[(rounds - 1) // 2] + ratios[rounds // 2]) / 2"),),
    "rounds-not-sorted": (("sorted(_ratios(key, given, max_rounds))", "_ratios(key, given, max_rounds)"),),
    "looks-not-accounted-for": (
        (
            "while spent + waiting[exceptions + 1] <= alpha * rounds / max_rounds:",
            "while sum(math.comb(rounds, k) for k in range(exceptions + 2)) / 2**rounds <= alpha:",
        ),
    ),
    "alpha-all-spent-at-the-first-look": (("<= alpha * rounds / max_rounds:", "<= alpha:"),),
    "alpha-spent-forgotten": (("            spent += waiting[exceptions]\n", ""),),
    "alpha-spent-twice": (("            waiting[exceptions] = 0.0\n", ""),),
    "alpha-never-quite-spent": (("<= alpha * rounds / max_rounds:", "< alpha * rounds / max_rounds:"),),
    "one-round-too-early": (("return tuple(allowed)", "return (-1, *allowed[2:], allowed[-1])"),),
    "one-round-too-late": (("return tuple(allowed)", "return (-1, *allowed[:-1])"),),
    "low-one-too-far-out": (("ratios[to_fail] if", "ratios[max(to_fail - 1, 0)] if"),),
    "low-one-too-far-in": (("ratios[to_fail] if", "ratios[min(to_fail + 1, rounds - 1)] if"),),
    "high-one-too-far-out": (("ratios[rounds - 1 - to_pass]", "ratios[min(rounds - to_pass, rounds - 1)]"),),
    "high-one-too-far-in": (("ratios[rounds - 1 - to_pass]", "ratios[max(rounds - 2 - to_pass, 0)]"),),
    "bounds-exchanged": (
        ("low = ratios[to_fail] if", "low = ratios[rounds - 1 - to_fail] if"),
        ("high = ratios[rounds - 1 - to_pass]", "high = ratios[to_pass]"),
    ),
    "pass-where-a-fail-is-not-shown": (("elif high is not None and high <= limit:", "elif low is not None:"),),
    "pass-by-the-ratio": (("elif high is not None and high <= limit:", "elif high is not None and ratio <= limit:"),),
    "fail-by-the-ratio": (("if low is not None and low > limit:", "if low is not None and ratio > limit:"),),
    "on-the-margin-fails": (("low > limit:", "low >= limit:"),),
    "on-the-margin-does-not-pass": (("high <= limit:", "high < limit:"),),
    "pass-with-missing-figures": (("    if missing:\n", "    if missing and not rounds:\n"),),
    "pass-with-missing-keys": (
        (
            "together(row.verdict for row in rows.values())",
            "together(row.verdict for row in rows.values() if row.rounds)",
        ),
    ),
    "missing-keys-not-counted": (("keys = max(len(pairs), 1)", "keys = max(sum(map(bool, pairs.values())), 1)"),),
    "pass-with-nothing-judged": ((_ALL, '"pass" if verdicts <= {"pass"} else'),),
    "pass-if-one-does": ((_ALL, '"pass" if "pass" in verdicts else'),),
    "fail-only-if-all-do": (('"fail" if "fail" in verdicts else', '"fail" if verdicts == {"fail"} else'),),
    "undecided-hides-a-fail": (
        ('"fail" if "fail" in verdicts else', '"fail" if "fail" in verdicts and "undecided" not in verdicts else'),
    ),
    "not-a-number-accepted": (
        (" and 0 < _number(where, seconds) < math.inf", " and not _number(where, seconds) <= 0"),
    ),
    "zero-accepted": ((" and 0 < _number(where, seconds) < math.inf", " and 0 <= _number(where, seconds) < math.inf"),),
    "more-rounds-than-declared-accepted": (("if len(given) > max_rounds:", "if len(given) > max_rounds + 1:"),),
    "a-gate-that-cannot-fail-accepted": (("if to_fail[-1] < 0:", "if not to_fail:"),),
}


class Failure:
    """A plugin of pytest that remembers which test failed."""

    name = None

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.name = report.nodeid.partition("::")[2]


def failing(source):
    """The first test that fails once the module's functions are those of ``source``."""
    exec(compile(source, verdict.__file__, "exec"), vars(verdict))  # noqa: S102
    failure = Failure()
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(["-x", "-q", "--tb=no", "--no-header", "--no-summary", str(TESTS)], plugins=[failure])
    assert code == (pytest.ExitCode.TESTS_FAILED if failure.name else pytest.ExitCode.OK)
    return failure.name


def mutate(source, edits):
    for old, new in edits:
        assert source.count(old) == 1, f"expected once, found {source.count(old)} times: {old}"
        source = source.replace(old, new)
    return source


def main():
    source = Path(verdict.__file__).read_text()
    print(json.dumps({name: failing(mutate(source, edits)) for name, edits in MUTANTS.items()}))


if __name__ == "__main__":
    main()

"""May this commit be released? It is compared with the last release, by a policy."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any

from asv_bench_gpu import calibrate, compare, project
from asv_bench_gpu.compare import Comparison
from asv_bench_gpu.policy import Matched, Policy, blaming
from asv_bench_gpu.project import UsageError


def gate(
    config: Path, policy: Path, head: str = "HEAD", *, machine: str | None = None, timeout_seconds: float = 900.0
) -> Comparison:
    """Compare ``head`` with the policy's baseline.

    Args:
        config: asv.conf.json of the project.
        policy: file with the policy.
        head: commit.
        machine: as for `asv_bench_gpu.runner.run`.
        timeout_seconds: limit for one process.

    Raises:
        UsageError: the policy is none, has an expired or unmatched waiver, a commit that is not in question or an
            expression that matches nothing; or as for `asv_bench_gpu.compare.compare`.
    """
    with blaming(policy):
        rules = Policy.read(policy)
    with project.locked(config) as conf:
        head = project.resolve_one(conf, head, argument="HEAD")
        with blaming(policy):
            base = _baseline(rules, conf, head)
            if base == head:
                raise UsageError(f"expected a baseline other than HEAD, got {head[:8]} for both")
        opened = project.prepare(conf, bench=None, machine=machine, timeout_seconds=timeout_seconds)
        with blaming(policy):
            matched = rules.matched(opened)
            margins, limits, new = matched.margins(), matched.limits(), matched.new()
            waivers = _waive(rules, conf, base, head, margins, limits)
            new |= {key: limits[key] for key in new.keys() & limits.keys() & waivers.keys()}
            removed = _removed(rules, conf, base, head, matched)
        calibration = calibrate.known(opened, rules)
        comparison = compare.measure(
            opened,
            base,
            head,
            margins=margins,
            limits=limits,
            new=new,
            removed=removed,
            family_alpha=rules.family_alpha,
            max_rounds=rules.max_rounds,
        )
        comparison.waivers = waivers
        comparison.problems |= _unmeasured(matched, comparison.skipped | comparison.removed)
        if margins:
            comparison.calibration = calibration.in_words() if calibration else "none of this policy on this machine"
        return comparison


def _baseline(rules: Policy, conf: Any, head: str) -> str:
    """The commit to compare with."""
    if rules.baseline_commit:
        return project.resolve_one(conf, rules.baseline_commit, argument="baseline_commit")
    # Not a tag of head itself: a release is compared with the one before.
    describe = ["describe", "--tags", "--abbrev=0", f"--match={rules.baseline_tags}", f"{head}^"]
    found = subprocess.run(["git", "-C", conf.repo, *describe], capture_output=True, text=True)
    if found.returncode:
        raise UsageError(
            f"baseline_tags: expected a tag before {head[:8]}, got none that matches {rules.baseline_tags!r}; "
            "fetch tags and history, or name a baseline_commit"
        )
    return project.resolve_one(conf, found.stdout.strip(), argument="baseline_tags")


def _waive(
    rules: Policy, conf: Any, base: str, head: str, margins: dict[str, float], limits: dict[str, float]
) -> dict[str, str]:
    """Change what is waived in ``margins`` and ``limits``; returns, by benchmark, what to tell the reader."""
    told: dict[str, str] = {}
    for number, waiver in enumerate(rules.waiver, start=1):
        where, name = f"waiver[{number}]", waiver.benchmark
        if waiver.expires < datetime.date.today():
            raise UsageError(f"{where}.expires: {waiver.expires} is over; remove the waiver of {name}, or decide again")
        of = margins if name in margins else limits
        if name not in of or name in told:
            raise UsageError(
                f"{where}.benchmark: expected a benchmark that a suite or quantity names, once, got {name!r}"
            )
        commit = _in_question(conf, base, head, waiver.commit, argument=f"{where}.commit")
        of[name] = waiver.limit
        told[name] = f"{waiver.limit:g} until {waiver.expires}: {waiver.reason} ({commit[:8]})"
    return told


def _removed(rules: Policy, conf: Any, base: str, head: str, matched: Matched) -> dict[str, str]:
    """What head must no longer have -> what to tell the reader."""
    commits = {
        removal: _in_question(conf, base, head, removal.commit, argument=f"removed[{number}].commit")
        for number, removal in enumerate(rules.removed, start=1)
    }
    return {key: f"{removal.reason} ({commits[removal][:8]})" for key, removal in matched.removed.items()}


def _in_question(conf: Any, base: str, head: str, name: str, argument: str) -> str:
    """The full hash of a commit that head has and the baseline does not."""
    commit = project.resolve_one(conf, name, argument=argument)
    if commit not in project.resolve(conf, f"{base}..{head}"):
        raise UsageError(
            f"{argument}: expected one after the baseline {base[:8]} and up to {head[:8]}, "
            f"got {name!r}; what the baseline has needs no entry"
        )
    return commit


def _unmeasured(matched: Matched, absent: dict[str, str]) -> dict[str, str]:
    """Suites and quantities of which nothing was measured: they gate nothing."""
    keys: dict[Any, list[str]] = {}
    for key, entry in (matched.suites | matched.quantities).items():
        keys.setdefault(entry, []).append(key)
    return {
        f"all of {entry.benchmarks}": f"not measured here: {absent[named[0]]}"
        for entry, named in keys.items()
        if absent.keys() >= set(named)
    }

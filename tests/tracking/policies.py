"""Parts of policies for the tiny project and its clocked suite."""

import datetime

from tests.tracking.tiny_project import VALUE

TODAY = datetime.date.today()
TOMORROW, YESTERDAY = (TODAY + datetime.timedelta(days) for days in (1, -1))
BASELINE = 'baseline_commit = "first"\n'
SUITE = "[[suite]]\nbenchmarks = 'gputime_work'\nmargin_percent = 3\n"
QUANTITY = "[[quantity]]\nbenchmarks = 'track_value'\nmax_increase = 0\n"
SMALL = "family_alpha = 0.25\nmax_rounds = 6\n"


def waiver(benchmark=VALUE, limit=60, commit="second", expires=TOMORROW):
    return (
        f'[[waiver]]\nbenchmark = "{benchmark}"\nlimit = {limit}\nreason = "worth it"\n'
        f'commit = "{commit}"\nexpires = {expires}\n'
    )


def removed(benchmarks="same", commit="second"):
    return f"[[removed]]\nbenchmarks = '{benchmarks}'\ncommit = '{commit}'\nreason = 'nobody asks'\n"


def acknowledged(benchmarks, commit, reason="worth it"):
    return f"[[acknowledged]]\nbenchmarks = '{benchmarks}'\ncommit = '{commit}'\nreason = '{reason}'\n"

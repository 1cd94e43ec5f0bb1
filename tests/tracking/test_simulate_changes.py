"""The simulation tells detectors apart, and a small one keeps what `changes.find` promises."""

import sys

import numpy as np
import pytest
from asv_bench_gpu import changes

from tests.tracking import simulate_changes
from tests.tracking.simulate_changes import NOISES, OURS, PLAIN, Setting, detections, detectors, false_alarms, histories

SMALL = Setting(series=30, before=6, detectors=("asv", "asv, confirmed", PLAIN, OURS))


def test_ours_is_what_the_library_finds():
    setting = Setting(series=20, before=6, family=20, detectors=(OURS,))
    series = histories(setting, "one-sided", 12, 2)
    steps = changes.find(dict(enumerate(series.tolist()))).steps
    expected = [[step.at for step in steps.get(number, [])] for number in range(20)]
    assert [detectors(setting)[OURS](times) for times in series] == expected
    assert any(expected)


@pytest.mark.parametrize("noise", NOISES)
def test_false_alarms_are_as_rare_as_promised(noise):
    # 1 % of 300 are 3; were that the rate, 10 or more would come about less than once in a thousand times.
    setting = Setting(series=300, family=1, detectors=(OURS,))
    assert false_alarms(setting, noise, 20)[OURS] < 10


def test_noise_that_stays_with_a_commit_breaks_the_promise_without_a_margin():
    # Decision 8 says so; if it no longer did, the margin would not be needed.
    setting = Setting(series=100, family=1, margin_percent=0, detectors=(OURS,))
    assert false_alarms(setting, "0.3 % stays with a commit", 20)[OURS] > 20


def test_a_large_step_is_found_at_once_by_all():
    assert {name: (one.found, one.elsewhere) for name, one in detections(SMALL, 10, 2).items()} == dict.fromkeys(
        SMALL.detectors, (1, 0)
    )


def test_a_detection_at_a_neighbour_is_told_from_one_at_the_step(monkeypatch):
    cuts = iter([[6], [7], [], [6, 9]])
    monkeypatch.setattr(simulate_changes, "detectors", lambda setting: {"one": lambda times: next(cuts)})
    (outcome,) = detections(Setting(series=4, before=6), 5, 5).values()
    assert outcome == simulate_changes.Detection(found=0.75, elsewhere=1 / 3, further=0.25)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(simulate_changes.LIBRARIES, "other", (("no_such_library",), None))
    assert "other" in simulate_changes.missing()
    assert "other" not in detectors(SMALL)


@pytest.mark.parametrize(("name", "module"), [("Otava", "otava"), ("ruptures", "ruptures")])
def test_a_library_that_is_installed_finds_a_step(name, module):
    pytest.importorskip(module)
    setting = Setting(series=20, before=6, detectors=(name, f"{name}, confirmed"))
    assert all(outcome.found > 0.8 for outcome in detections(setting, 10, 5).values())


def test_noise_has_its_size_and_the_step_its_place():
    setting = Setting(series=50, before=4)
    quiet, stepped = (np.log(histories(setting, "one-sided", 8, percent)) for percent in (0, 5))
    assert stepped - quiet == pytest.approx(np.broadcast_to((np.arange(8) >= 4)[:, None] * np.log(1.05), quiet.shape))
    assert np.std(quiet) == pytest.approx(0.0057, rel=0.1)


def test_the_command_prints_all_tables_and_the_same_ones_again(monkeypatch, capsys):
    arguments = ["--series", "3", "--before", "3", "--noise", "one-sided", "--detectors", "asv", OURS]
    monkeypatch.setattr(sys, "argv", ["simulate_changes", *arguments])
    printed = []
    for _ in range(2):
        simulate_changes.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "series 3, rounds 10, before 3, family 350, margin_percent 1.0, family_alpha 0.01, seed 0" in printed[0]
    assert printed[0].count("| asv |") == printed[0].count(f"| {OURS} |") == 3

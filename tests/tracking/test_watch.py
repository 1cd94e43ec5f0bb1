import threading
import time

import pytest
from asv_bench_gpu import device, watch
from asv_bench_gpu.device import State

CALM = State(1980, 3201, 40, 126.5, [], 0)
HOT = State(1755, 3201, 83, 699.5, ["SwPowerCap"], 1)


class Machine:
    """Stands for the device and its canary; tests say in which state it is."""

    def __init__(self, monkeypatch, state, canary=None):
        self.state = state
        self.asked = 0
        self.events = []
        self._canary = iter(canary or [])
        monkeypatch.setattr(device, "probe", lambda: self.ask)
        monkeypatch.setattr(device, "is_present", lambda: canary is not None)
        monkeypatch.setattr(watch, "Canary", lambda: self)
        monkeypatch.setattr(watch, "SAMPLE_SECONDS", 0.001)

    def ask(self):
        self.asked += 1
        self.events.append("state")
        return self.state

    def seconds(self):
        self.events.append("canary")
        return next(self._canary)

    def be(self, state):
        """In this state until somebody has seen it."""
        self.state = state
        seen = self.asked
        while self.asked == seen:
            time.sleep(0.001)


def test_what_passes_between_before_and_after_is_seen(monkeypatch):
    machine = Machine(monkeypatch, CALM)
    with watch.watching() as found:
        machine.be(HOT)
        machine.be(CALM)
    assert (found["device_before"], found["device_after"]) == (CALM, CALM)
    assert found["device_during"] == [
        State(1755, 3201, 40, 126.5, [], 0),
        State(1980, 3201, 83, 699.5, ["SwPowerCap"], 1),
    ]


def test_without_a_gpu_there_is_nothing_to_see_and_nobody_looks(monkeypatch):
    machine = Machine(monkeypatch, None)
    with watch.watching() as found:
        time.sleep(0.01)
    assert found == {"device_before": None, "device_during": None, "device_after": None, "canary": {}}
    assert machine.asked == 2


def test_a_gpu_that_is_silent_for_a_moment_has_an_unknown_state(monkeypatch):
    machine = Machine(monkeypatch, CALM)
    with watch.watching() as found:
        machine.be(None)
        machine.state = CALM
    assert (found["device_before"], found["device_during"], found["device_after"]) == (CALM, None, CALM)


def test_the_canary_is_timed_on_either_side(monkeypatch):
    machine = Machine(monkeypatch, None, [{"clock": 1.0, "memory": 3.0}, {"clock": 2.0, "memory": 4.0}])
    with watch.watching() as found:
        machine.events.append("figures")
    assert machine.events == ["state", "canary", "figures", "canary", "state"]
    assert found["canary"] == {"clock": [1.0, 2.0], "memory": [3.0, 4.0]}


def test_what_is_raised_ends_the_looking(monkeypatch):
    machine = Machine(monkeypatch, CALM)
    before = threading.active_count()
    with pytest.raises(KeyError), watch.watching() as found:
        raise KeyError
    assert (found, threading.active_count()) == ({}, before)
    asked = machine.asked
    time.sleep(0.01)
    assert machine.asked == asked


@pytest.mark.gpu
def test_a_real_gpu_is_watched_and_its_canary_timed():
    with watch.watching() as found:
        time.sleep(3 * watch.SAMPLE_SECONDS)
    assert len(found["device_during"]) == 2
    assert set(found["canary"]) == {"clock", "memory"}
    assert all(0 < seconds < 1e-3 for pair in found["canary"].values() for seconds in pair)

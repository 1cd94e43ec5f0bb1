import pytest
from asv_bench_gpu import canary, device


def around(tolerance):
    """A second, and one that is longer by a little less, or more, than so much."""
    return [[1.0, 1.0 + tolerance * factor] for factor in (0.99, 1.01)]


LITTLE, MUCH = around(canary.TOLERANCE)


@pytest.mark.parametrize(
    ("base", "head", "names"),
    [
        pytest.param({}, {}, [], id="no-gpu"),
        pytest.param({"clock": [1, 1]}, {"clock": [1, 1]}, [], id="still"),
        pytest.param({"clock": LITTLE}, {"clock": LITTLE[::-1]}, [], id="a-little"),
        pytest.param({"clock": MUCH}, {"clock": [1, 1]}, ["clock"], id="within-a-process"),
        pytest.param({"clock": MUCH[:1] * 2}, {"clock": MUCH[1:] * 2}, ["clock"], id="from-one-process-to-the-other"),
        pytest.param(
            {"clock": [1, 1], "memory": MUCH}, {"clock": [2, 2], "memory": LITTLE}, ["clock", "memory"], id="both"
        ),
        pytest.param({"clock": [1, 1], "memory": [9, 9]}, {"clock": [1, 1], "memory": [9, 9]}, [], id="each-by-itself"),
    ],
)
def test_what_moves(base, head, names):
    found = canary.moved([base, head])
    assert [message.split()[4] for message in found] == names
    assert canary.moved([head, base]) == found


def test_says_by_how_much():
    assert canary.moved([{"clock": [1e-5, 1e-5]}, {"clock": [1e-5, 1.234e-5]}]) == [
        "the canary of the clock moved by 23.4 %"
    ]


@pytest.mark.gpu
@pytest.mark.alone
class TestOnGpu:
    def test_a_machine_at_rest_does_not_move_it(self):
        bird = canary.Canary()
        bird.seconds()
        times = [bird.seconds() for _ in range(5)]
        assert canary.moved([{name: [seconds] for name, seconds in one.items()} for one in times]) == []
        assert all(5e-6 < seconds < 1e-3 for seconds in times[0].values())

    def test_it_costs_little(self):
        import time

        bird = canary.Canary()
        bird.seconds()
        start = time.perf_counter()
        bird.seconds()
        assert time.perf_counter() - start < 0.3

    def test_the_clock_is_that_of_the_multiprocessors(self):
        bird = canary.Canary()
        bird.seconds()
        clock_mhz = canary._CYCLES / bird.seconds()["clock"] * 1e-6
        # The launch, a microsecond, is in it too.
        assert 0.95 < clock_mhz / device.probe()().sm_clock_mhz < 1.02

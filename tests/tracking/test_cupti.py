"""Our clock against CUPTI's, on kernels of 2 to 50 us; `tests.benchmarks.test_cupti` has the project's own."""

import json

import pytest

from tests.tracking import processes
from tests.tracking.cupti import Row, of_replays

SHORT = ["spin-5-us", "add-2-us", "triton-2-us", "two-kernels", "memset"]
LONG = ["spin-50-us", "add-30-us", "triton-30-us"]


def work(start, length, correlation, cat="kernel"):
    return {"cat": cat, "ts": start, "dur": length, "args": {"correlation": correlation}}


def in_us(replays):
    return [(round(1e6 * span, 6), round(1e6 * busy, 6)) for span, busy in replays]


def test_a_replay_is_what_has_the_correlation_of_its_launch():
    trace = {
        "traceEvents": [
            work(0, 100.0, 1),  # an ordinary launch before them
            {"cat": "cuda_runtime", "ts": 1, "dur": 5, "args": {"correlation": 2}},
            {"ph": "M", "name": "process_name"},
            work(230.0, 2.5, 3),
            work(240.0, 3.5, 3, "gpu_memset"),
            work(200.0, 2.0, 2),
            work(204.0, 3.0, 2, "gpu_memcpy"),
        ]
    }
    assert in_us(of_replays(trace, 2)) == [(3.5, 2.5), (6.75, 3)]
    assert in_us(of_replays(trace, 1)) == [(100, 100), (7, 5), (13.5, 6)]


def test_kernels_that_overlap_end_with_the_last_end():
    trace = {"traceEvents": [work(0, 10.0, 1), work(2, 3.0, 1)]}
    assert in_us(of_replays(trace, 2)) == [(5, 6.5)]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        pytest.param((20, 20.1, 20.3, 19), None, id="agree"),
        pytest.param((2, 3, 3.05, 1.5), None, id="tracing-explains-it"),
        pytest.param((2, 3, 3.2, 1.5), "on the same replays", id="not-on-the-same-replays"),
        pytest.param((20, 20.2, 20.7, 19), "the clocks differ: ", id="not-without-tracing"),
        pytest.param((38, 37.4, 37.4, 44), None, id="a-longer-graph-starts-less-often"),
        pytest.param((20, 19, 19, 18), "the clocks differ: ", id="not-because-it-starts-less-often"),
    ],
)
def test_what_counts_as_agreement(figures, message):
    row = Row(*(1e-6 * figure for figure in figures), calls=10)
    if message is None:
        row.check()
    else:
        with pytest.raises(AssertionError, match=message):
            row.check()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Each kernel by both clocks, in a process of its own: tracing changes what comes after it."""

    def make():
        return json.loads(processes.output("-m", "tests.tracking.cupti_script", path=[processes.ROOT]).splitlines()[-1])

    return {name: Row(**row) for name, row in processes.once(tmp_path_factory, "cupti", make).items()}


@pytest.mark.gpu
@pytest.mark.alone
class TestOnGpu:
    @pytest.mark.parametrize("name", SHORT + LONG)
    def test_the_clocks_agree(self, rows, name):
        print(rows[name])
        rows[name].check()

    @pytest.mark.parametrize("name", LONG)
    def test_on_long_kernels_nothing_needs_explaining(self, rows, name):
        assert rows[name].span == pytest.approx(rows[name].clock, rel=0.03)

    @pytest.mark.parametrize("name", LONG)
    def test_a_long_kernel_is_busy_most_of_its_time(self, rows, name):
        assert 0.9 < rows[name].busy / rows[name].clock < 1.03

import dataclasses

import pytest
from asv_bench_gpu import typed


@dataclasses.dataclass
class Inner:
    number: int
    share: float = 0.5


@dataclasses.dataclass
class Outer:
    name: str
    inner: Inner | None = None
    by_percent: dict[int, list[Inner]] = dataclasses.field(default_factory=dict)
    values: list[float | None] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    "outer",
    [
        pytest.param(Outer("a"), id="defaults"),
        pytest.param(Outer("a", Inner(1), {2: [Inner(3, 1)], 4: []}, [1, None, 2.5]), id="everything"),
    ],
)
def test_what_was_written_is_read(outer):
    assert typed.build(Outer, typed.loads(typed.json.dumps(dataclasses.asdict(outer)))) == outer


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param([], "it: expected Outer, got []", id="no-object"),
        pytest.param({}, "it: Outer.__init__() missing 1 required positional argument: 'name'", id="missing"),
        pytest.param(
            {"name": "a", "nam": 1}, "it: expected one of name, inner, by_percent, values, got 'nam'", id="new"
        ),
        pytest.param({"name": 1}, "name: expected str, got 1", id="text"),
        pytest.param({"name": "a", "inner": 1}, "inner: expected Inner, got 1", id="inner"),
        pytest.param({"name": "a", "inner": {"number": 1.0}}, "inner.number: expected int, got 1.0", id="whole"),
        pytest.param({"name": "a", "inner": {"number": True}}, "inner.number: expected int, got True", id="truth"),
        pytest.param({"name": "a", "values": [1, "2"]}, "values[1]: expected float, got '2'", id="element"),
        pytest.param({"name": "a", "values": [float("nan")]}, "values[0]: expected float, got nan", id="nan"),
        pytest.param({"name": "a", "values": {}}, "values: expected list, got {}", id="list"),
        pytest.param(
            {"name": "a", "by_percent": {"1": [{}]}},
            "by_percent['1'][0]: Inner.__init__() missing 1 required positional argument: 'number'",
            id="deep",
        ),
        pytest.param({"name": "a", "by_percent": {"x": []}}, "invalid literal for int()", id="key"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        typed.build(Outer, data)
    assert str(raised.value).startswith(message)

import dataclasses
import json
from xml.etree import ElementTree

import pytest
from asv_bench_gpu import summary
from asv_bench_gpu.calibrate import Calibration, Rate, Rates
from asv_bench_gpu.compare import Comparison, Quantity, Row

GAP = "\u202f"


def row(verdict="pass", ratio=1.0, low=None, high=1.001, **changes):
    fields = {"rounds": 15, "missing": 0, "reason": "above the margin in n of 15 rounds", "margin_percent": 3.0}
    fields |= {"base_seconds": 2e-6, "head_seconds": None if ratio is None else ratio * 2e-6}
    return Row(verdict, ratio, low, high, **{**fields, **changes})


def comparison(**fields):
    return Comparison("nvidia-h200", "b" * 40, "a" * 40, 0.01, 40, "record.jsonl", **{"rounds": 15, **fields})


MIXED = comparison(
    rows={
        "order.Rows.gputime_rows('Qwen3', 128)": row("fail", 1.0512, 1.0444, 1.0607),
        "order.Rows.gputime_rows('Qwen3', 16)": row("undecided", 1.03, 0.99, 1.06, margin_percent=2.5),
        "order.Rows.gputime_rows('Qwen3', 1024)": row("pass", 1.0, 0.998, 1.0021),
        "order.Rows.gputime_rows('Qwen3', 8192)": row("pass", 0.9),
        "order.Empty.gputime_empty": row("pass", 0.8, None, 0.9),
    },
    quantities={
        "codegen.Kernels.track_atomics('tiles')": Quantity("fail", 0, 2, 0, "instructions"),
        "codegen.Kernels.track_registers('tiles')": Quantity("pass", 40, 44, 48, "registers"),
        "codegen.Kernels.track_registers('scan')": Quantity("pass", 40, 40, 48, "registers"),
    },
    waivers={"codegen.Kernels.track_registers('tiles')": "until 2027-01-31: worth it"},
    skipped={"order.Skew.gputime_rows(1)": "needs more memory", "order.Skew.gputime_rows(2)": "needs more memory"},
)


def lines(text):
    """With ordinary spaces, and no more of them than needed."""
    return [" ".join(line.split()) for line in text.replace(GAP, " ").splitlines()]


def test_the_same_compiled_code_is_named():
    untimed = row("pass", None, None, None, identical=True, base_seconds=None)
    told = lines(summary.text(comparison(rows={"other": row(), "same": untimed})))
    assert told[0] == "PASS: 0 of 2 benchmarks slower than their margin"
    assert [line for line in told if line.startswith("pass")] == [
        "pass 1.000 up to 1.001 2.00 µs 2.00 µs not 3 % slower other"
    ]
    assert told[-1] == "1 run the same compiled code in both commits, so they were not timed"
    told = lines(summary.text(comparison(rows={"same": untimed}, rounds=0)))
    assert (len(told), told[-1]) == (5, "1 run the same compiled code in both commits, so they were not timed")


def test_a_calibration_names_what_is_noisy():
    rates = Rates(Rate.of(0, 50), Rate.of(50, 50), {3: Rate.of(50, 50)})
    quiet = Calibration("m", "a" * 40, {"same": 2}, 0.01, 40, 1, 60, 50, rates, "record")
    assert "Above its margin" not in summary.rates(quiet)
    noisy = dataclasses.replace(quiet, noisiest={"same": 0.25, "other": 0.031})
    assert lines(summary.rates(noisy))[-3:] == [
        "Above its margin in the same code, in so many of the rounds:",
        "25 % same",
        "3 % other",
    ]


def test_what_is_new_is_named():
    new = {"blocks": "rows only", "offsets": "rows only", "spills": "no such kernel"}
    found = comparison(rows={"same": row()}, quantities={"spills": Quantity("pass", None, 0, 0, "bytes")}, new=new)
    told = lines(summary.text(found))
    assert ("pass new 0 0 bytes spills" in told, told[-1]) == (True, "2 new in head, not compared: rows only")
    suite = ElementTree.fromstring(summary.junit(found))  # noqa: S314  (our own)
    assert {case.get("name"): [child.tag for child in case] for case in suite} == {
        "same": [], "blocks": ["skipped"], "offsets": ["skipped"], "spills": [],
    }  # fmt: skip


def test_what_was_removed_is_named():
    removed = dict.fromkeys(("blocks", "offsets"), "nobody asks (aaaaaaaa)")
    found = comparison(rows={"same": row()}, removed=removed)
    assert lines(summary.text(found))[-1] == "2 removed from head: nobody asks (aaaaaaaa)"
    suite = ElementTree.fromstring(summary.junit(found))  # noqa: S314  (our own)
    assert {case.get("name"): [child.tag for child in case] for case in suite} == {
        "same": [], "blocks": ["skipped"], "offsets": ["skipped"],
    }  # fmt: skip


def test_text_is_worst_first_and_says_what_it_means():
    assert lines(summary.text(MIXED)) == [
        "FAIL: 1 of 5 benchmarks slower than their margin, 1 undecided, 1 of 3 quantities larger than they may be",
        "",
        "base bbbbbbbb, head aaaaaaaa on nvidia-h200: 15 of at most 40 rounds, "
        "probability of a wrong verdict at most 0.01",
        "",
        "verdict head/base interval base head meaning benchmark",
        "--------- ----------- -------------- ------- ------- ---------------------------- "
        "--------------------------------------",
        "FAIL 1.051 1.044 to 1.061 2.00 µs 2.10 µs slower by more than 3 % order.Rows.gputime_rows('Qwen3', 128)",
        "UNDECIDED 1.030 0.990 to 1.060 2.00 µs 2.06 µs unclear whether 2.5 % slower "
        "order.Rows.gputime_rows('Qwen3', 16)",
        "pass 1.000 0.998 to 1.002 2.00 µs 2.00 µs not 3 % slower order.Rows.gputime_rows('Qwen3', 1024)",
        "pass 0.900 up to 1.001 2.00 µs 1.80 µs not 3 % slower order.Rows.gputime_rows('Qwen3', 8192)",
        "pass 0.800 up to 0.900 2.00 µs 1.60 µs faster order.Empty.gputime_empty",
        "",
        "verdict base head allowed unit benchmark waived",
        "--------- ------ ------ --------- ------------ ---------------------------------------- "
        "--------------------------",
        "FAIL 0 2 0 instructions codegen.Kernels.track_atomics('tiles')",
        "pass 40 44 48 registers codegen.Kernels.track_registers('tiles') until 2027-01-31: worth it",
        "",
        "2 not measured in either commit: needs more memory",
    ]


@pytest.mark.parametrize(
    ("failing", "shown"),
    [pytest.param(0, 15, id="passing"), pytest.param(3, 15, id="few-failing"), pytest.param(20, 20, id="many-failing")],
)
def test_a_long_table_ends_where_all_the_rest_passes(failing, shown):
    rows = {f"fails {index}": row("fail", 1.1) for index in range(failing)}
    rows |= {f"passes {index}": row() for index in range(30)}
    text = summary.text(comparison(rows=rows))
    table = [line for line in text.splitlines() if line.startswith(("FAIL ", "pass "))]
    assert len(table) == shown
    assert text.splitlines()[-1] == f"and {failing + 30 - shown} more that pass, each better than the last one shown"


@pytest.mark.parametrize(
    ("fields", "headline"),
    [
        pytest.param({"rows": {"a": row()}}, "PASS: 0 of 1 benchmarks slower than their margin", id="pass"),
        pytest.param(
            {"rows": {"a": row("undecided"), "b": row()}},
            "UNDECIDED: 0 of 2 benchmarks slower than their margin, 1 undecided",
            id="undecided",
        ),
        pytest.param(
            {"rows": {"a": row("undecided")}, "unsettled": "SwPowerCap"},
            "UNDECIDED: the machine did not settle, 0 of 1 benchmarks slower than their margin, 1 undecided",
            id="unsettled",
        ),
        pytest.param({"unsettled": "SwPowerCap"}, "UNDECIDED: the machine did not settle", id="never-settled"),
        pytest.param(
            {"quantities": {"a": Quantity("pass", 1, 1, 1, "layouts")}},
            "PASS: 0 of 1 quantities larger than they may be",
            id="quantities-only",
        ),
        pytest.param(
            {"rows": {"a": row("fail", 2.0)}, "problems": {"head aaaaaaaa, verification": "wrong"}},
            "INVALID: no verdict, because something is missing or unverified",
            id="invalid",
        ),
    ],
)
def test_the_headline_is_the_verdict(fields, headline):
    assert summary.text(comparison(**fields)).splitlines()[0] == headline


def test_problems_are_named_by_the_line_that_says_what_went_wrong():
    traceback = "Traceback (most recent call last):\n  File a\n{}\nsee the manual\n"
    message = traceback.format("ValueError: too small") + "\nDuring that:\n\n" + traceback.format("OSError: disk full")
    text = summary.text(comparison(problems={"head, build": "lots\nno compiler\n", "b": "", "c": message}))
    assert "\n- head, build: no compiler\n- b: \n- c: OSError: disk full\n" in text + "\n"


def test_what_disturbed_is_named():
    text = summary.text(comparison(unsettled="2 other processes on the GPU"))
    assert text.splitlines()[-1] == "disturbed in every attempt at a further round: 2 other processes on the GPU"


def test_nothing_known_yet_is_shown_as_such():
    unknown = row("undecided", None, None, None, base_seconds=None)
    assert "UNDECIDED ? up to ? ? ? unclear whether 3 % slower a" in lines(
        summary.text(comparison(rows={"a": unknown}))
    )


def test_markdown_has_tables_that_github_reads():
    found = lines(summary.markdown(MIXED))
    assert found[0].startswith("### FAIL: 1 of 5")
    assert found[4] == "| verdict | head/base | interval | base | head | meaning | benchmark |"
    assert set(found[5]) <= set("|:- ")
    assert found[6].startswith("| FAIL | 1.051 | 1.044 to 1.061 | 2.00 µs | 2.10 µs | slower by more than 3 % |")


def test_markdown_takes_no_markup_from_benchmarks_and_messages():
    text = summary.markdown(comparison(rows={"a('x|y')": row()}, problems={"<b>": "<script>"}))
    assert r"a('x\|y')" in text
    assert "- &lt;b&gt;: &lt;script&gt;" in text


def test_junit_has_a_case_for_each_benchmark():
    suite = ElementTree.fromstring(summary.junit(MIXED))  # noqa: S314  (our own)
    assert suite.attrib == {
        "name": "asv-gpu bbbbbbbb..aaaaaaaa",
        "tests": "10",
        "failures": "2",
        "errors": "1",
        "skipped": "2",
    }
    outcomes = {case.get("name"): [(child.tag, child.get("message")) for child in case] for case in suite}
    reason = "above the margin in n of 15 rounds"
    expected = {
        "order.Rows.gputime_rows('Qwen3', 128)": [("failure", f"slower by more than 3 %: {reason}")],
        "order.Rows.gputime_rows('Qwen3', 16)": [("error", f"unclear whether 2.5 % slower: {reason}")],
        "order.Empty.gputime_empty": [],
        "codegen.Kernels.track_atomics('tiles')": [("failure", "0 instructions became 2")],
        "codegen.Kernels.track_registers('tiles')": [],
        "order.Skew.gputime_rows(1)": [("skipped", "needs more memory")],
    }
    assert {name: outcomes[name] for name in expected} == expected
    assert {case.get("classname") for case in suite if "Rows" in case.get("name")} == {"order.Rows.gputime_rows"}


@pytest.mark.parametrize(
    ("fields", "outcomes"),
    [
        pytest.param({"rows": {"a": row()}}, [], id="pass"),
        pytest.param({"rows": {"a": row("fail", 2.0)}}, ["failure"], id="fail"),
        pytest.param({"rows": {"a": row("undecided")}}, ["error"], id="undecided"),
        pytest.param({"rows": {"a": row()}, "problems": {"a of head": "out of memory"}}, ["error"], id="invalid"),
        pytest.param({"quantities": MIXED.quantities, "unsettled": "SwPowerCap"}, ["failure", "error"], id="unsettled"),
        pytest.param({"unsettled": "SwPowerCap"}, ["error"], id="never-settled"),
    ],
)
def test_junit_is_green_for_a_pass_only(fields, outcomes):
    suite = ElementTree.fromstring(summary.junit(comparison(**fields)))  # noqa: S314
    assert [child.tag for case in suite for child in case] == outcomes
    assert (comparison(**fields).exit_code == 0) == (outcomes == [])


def test_junit_holds_what_xml_cannot():
    message = "\x1b[31mred\x00 & <tag>\nlast"
    suite = ElementTree.fromstring(  # noqa: S314
        summary.junit(comparison(rows={"a": row()}, problems={"a": message}))
    )
    ((error,),) = suite
    assert (error.get("message"), error.text) == ("last", "?[31mred? & <tag>\nlast")


def test_json_holds_everything():
    found = json.loads(summary.as_json(MIXED))
    assert (found["verdict"], found["exit_code"], found["rounds"]) == ("fail", 1, 15)
    assert list(found["rows"]) == list(MIXED.rows)
    assert found["rows"]["order.Rows.gputime_rows('Qwen3', 128)"]["low"] == 1.0444
    assert found["quantities"]["codegen.Kernels.track_atomics('tiles')"]["head"] == 2
    assert {key: found[key] for key in ("skipped", "waivers", "record")} == {
        "skipped": MIXED.skipped,
        "waivers": MIXED.waivers,
        "record": "record.jsonl",
    }

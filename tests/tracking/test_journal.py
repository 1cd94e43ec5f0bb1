import dataclasses
import itertools
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
from asv_bench_gpu import journal
from asv_bench_gpu.device import State
from asv_bench_gpu.journal import Figures, Pair, Round

from tests.tracking import processes

_APPEND_FOREVER = """
import sys
from pathlib import Path
from asv_bench_gpu.journal import Round, append
first, size = map(int, sys.argv[2:])
for number in range(first, 10**9):
    append(Path(sys.argv[1]), Round("c" * 40, number, "2026-01-01T00:00:00+00:00", 1.0, message="x" * size))
    print(number, flush=True)
"""


def make_round(number=1, **changes):
    entry = Round(
        commit="c" * 40,
        round=number,
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.5,
        facts={"gpu": "a GPU", "torch": "2.11.0"},
        device_before=State(1980, 3201, 40, 126.9, []),
        device_during=[State(1950, 3201, 40, 126.9, []), State(1980, 3201, 43, 700, ["SwPowerCap"], 1)],
        canary={"clock": [1e-5, 1.1e-5]},
        device_after=State(1965, 3201, 41, 699, ["SwPowerCap"], 1),
        verified=57,
        figures={
            "suite.Work.gputime_work": Figures(
                "1", [["1", "'zwei'"]], [1e-6, None], skipped={"too large": [1]}, number=1, code={"0": "c0de"}
            ),
            "suite.Facts.track_value": Figures("7", [], [None], errors={"0": 'Traceback\n  "ä"\u2028\x0b\x85'}),
        },
    )
    return dataclasses.replace(entry, **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "machine" / "commit.rounds.jsonl"


@pytest.fixture
def three(path):
    """Rounds 1, 2 and 3, in the file at ``path``."""
    rounds = [make_round(number) for number in (1, 2, 3)]
    for entry in rounds:
        journal.append(path, entry)
    return rounds


def test_reads_what_was_appended(path, three):
    assert list(journal.read(path)) == three


def test_reads_a_failed_round(path):
    failed = make_round(figures={}, failed="build", message="no compiler\nanywhere")
    journal.append(path, failed)
    assert list(journal.read(path)) == [failed]


def test_one_line_per_round_whatever_it_holds(path, three):
    assert path.read_bytes().count(b"\n") == len(three)
    assert path.read_text(encoding="ascii").splitlines() == [entry.to_json() for entry in three]


def test_no_file_is_no_round(path):
    assert list(journal.read(path)) == []


def test_every_prefix_of_the_file_is_a_prefix_of_the_rounds(path, three):
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert list(journal.read(path)) == three[: whole.count(b"\n", 0, length)], f"{length} bytes"


@pytest.mark.parametrize("missing", [1, 2, 700], ids=["no-newline", "no-brace", "half"])
def test_append_cuts_off_a_half_written_line(path, three, missing):
    path.write_bytes(path.read_bytes()[:-missing])
    journal.append(path, make_round(4))
    assert list(journal.read(path)) == [*three[:2], make_round(4)]


def test_append_keeps_every_complete_line_untouched(path, three):
    whole = path.read_bytes()
    journal.append(path, make_round(4))
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda line: line[:-20], id="cut-short"),
        pytest.param(lambda line: line.replace(b'"schema": 1', b'"schema": 2'), id="another-schema"),
        pytest.param(lambda line: line.replace(b'"schema": 1, ', b""), id="no-schema"),
        pytest.param(lambda line: line.replace(b'"commit"', b'"revision"'), id="unknown-field"),
        pytest.param(lambda line: line.replace(b'"round": 2, ', b""), id="missing-field"),
        pytest.param(lambda line: line.replace(b'"version"', b'"revision"'), id="unknown-field-of-figures"),
        pytest.param(lambda line: line.replace(b'"values": [1e-06, null]', b'"values": [1e-06]'), id="too-few-figures"),
        pytest.param(lambda line: line.replace(b'"values": [1e-06,', b'"values": ["1e-06",'), id="no-number"),
        pytest.param(lambda line: line.replace(b'{"too large": [1]}', b'{"too large": [2]}'), id="index-too-large"),
        pytest.param(lambda line: line.replace(b'"errors": {"0"', b'"errors": {"-1"'), id="index-too-small"),
        pytest.param(lambda line: line.replace(b'"errors": {"0"', b'"errors": {"x"'), id="no-index"),
        pytest.param(lambda line: line.replace(b'"code": {"0"', b'"code": {"2"'), id="index-of-code-too-large"),
        pytest.param(lambda line: line.replace(b'"slowed": {}', b'"slowed": {"2": {}}'), id="index-slowed-too-large"),
        pytest.param(lambda line: line.replace(b"[1e-06, null]", b"[1e999, null]"), id="infinite"),
        pytest.param(lambda line: line.replace(b"[1e-06, null]", b"[NaN, null]"), id="nan"),
        pytest.param(lambda line: line.replace(b"[1e-06, null]", b"[true, null]"), id="a-truth"),
        pytest.param(lambda line: line.replace(b"[1e-06, null]", b"[1" + b"0" * 400 + b", null]"), id="no-float"),
        pytest.param(lambda line: line.replace(b'"seconds": 1.5', b'"seconds": "1.5"'), id="seconds-as-text"),
        pytest.param(lambda line: line.replace(b'"throttle_reasons": []', b'"throttle_reasons": 5'), id="no-state"),
        pytest.param(lambda line: line.replace(b'"facts": {', b'"facts": {"cuda": 13, '), id="a-number-as-a-fact"),
        pytest.param(lambda line: line.replace(b'"clock": [1e-05', b'"clock": [0'), id="no-time-of-the-canary"),
        pytest.param(lambda line: line.replace(b'"clock": [1e-05, ', b'"clock": ['), id="half-a-canary"),
        pytest.param(lambda line: b"[1]", id="a-list"),
        pytest.param(lambda line: b"", id="empty-line"),
        pytest.param(lambda line: b"[" * 100_000, id="nested-too-deeply"),
        pytest.param(lambda line: b"\xff" + line, id="no-utf-8"),
    ],
)
def test_damaged_complete_line_is_named(path, three, damage):
    lines = path.read_bytes().splitlines()
    damaged = damage(lines[1])
    assert damaged != lines[1]
    path.write_bytes(b"\n".join([lines[0], damaged, lines[2], b""]))
    with pytest.raises(ValueError, match="line 2") as raised:
        list(journal.read(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_refuses_what_is_no_json_and_leaves_the_file_as_it_was(path, three, value):
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append(path, make_round(4, figures={"b": Figures("1", [], [value])}))
    assert path.read_bytes() == whole


def test_reads_the_rounds_of_those_who_only_looked_before_and_after(path):
    written = json.loads(make_round().to_json())
    del written["device_during"], written["canary"]
    for state in ("device_before", "device_after"):
        del written[state]["other_processes"]
    for figures in written["figures"].values():
        del figures["code"], figures["slowed"]
    path.parent.mkdir()
    path.write_text(json.dumps(written) + "\n")
    (entry,) = journal.read(path)
    assert entry.device_states == [State(1980, 3201, 40, 126.9, []), None, State(1965, 3201, 41, 699, ["SwPowerCap"])]
    assert entry.canary == {}


@pytest.mark.parametrize(
    ("failures", "standing"),
    [
        pytest.param([None, None, None], [0, 1, 2], id="none"),
        pytest.param([None, "build", None], [0, 2], id="build"),
        pytest.param([None, "timeout", None], [0, 2], id="timeout"),
        pytest.param([None, "crash", None], [0, 2], id="crash"),
        pytest.param([None, "device", None], [0, 2], id="device"),
        pytest.param([None, "verification", None], [2], id="verification"),
        pytest.param([None, None, "verification"], [], id="verification-last"),
        pytest.param(["verification", None, "build", None], [1, 3], id="verification-first"),
        pytest.param([None, "verification", None, "verification", None], [4], id="verification-twice"),
    ],
)
def test_standing_rounds(path, failures, standing):
    rounds = [make_round(number, failed=failed) for number, failed in enumerate(failures, start=1)]
    for entry in rounds:
        journal.append(path, entry)
    assert journal.standing(path) == [rounds[index] for index in standing]


def test_standing_without_a_file(path):
    assert journal.standing(path) == []


def make_pair(number=1, base=None, head=None):
    """With what failed on either side."""
    return Pair(make_round(number, failed=base), make_round(number, failed=head, commit="d" * 40))


def test_reads_the_pairs_that_were_appended(path):
    pairs = [make_pair(number) for number in (1, 2)]
    for pair in pairs:
        journal.append(path, pair)
    assert path.read_bytes().count(b"\n") == 2
    assert journal.standing_pairs(path) == pairs


@pytest.mark.parametrize(
    ("failures", "standing"),
    [
        pytest.param([{}, {"base": "crash"}, {"head": "build"}, {}], [0, 3], id="not-verification"),
        pytest.param([{}, {"base": "verification"}, {}], [2], id="verification-of-base"),
        pytest.param([{}, {"head": "verification"}, {}], [2], id="verification-of-head"),
        pytest.param([{}, {"base": "timeout", "head": "verification"}], [], id="both"),
    ],
)
def test_standing_pairs(path, failures, standing):
    pairs = [make_pair(number, **failed) for number, failed in enumerate(failures, start=1)]
    for pair in pairs:
        journal.append(path, pair)
    assert journal.standing_pairs(path) == [pairs[index] for index in standing]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(make_round().to_json(), id="a-round"),
        pytest.param(json.dumps({"schema": 1, "base": json.loads(make_round().to_json())}), id="half"),
        pytest.param(json.dumps({"schema": 1, "base": 1, "head": 2}), id="numbers"),
        pytest.param(make_pair().to_json().replace('"round": 1', '"round": 2', 1), id="two-rounds"),
    ],
)
def test_what_is_no_pair_is_named(path, line):
    path.parent.mkdir()
    path.write_text(f"{make_pair().to_json()}\n{line}\n")
    with pytest.raises(ValueError, match="line 2: not a pair: "):
        journal.standing_pairs(path)


def test_replacing_writes_the_file_and_its_folder(path):
    with journal.replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not temporary.name.endswith(".json")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == [path.name]


def test_replacing_shows_the_old_file_until_the_end(path):
    path.parent.mkdir()
    path.write_text("old")
    with journal.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def _raise(temporary):
    temporary.write_text("half")
    raise KeyError("in the middle")


@pytest.mark.parametrize(
    ("write", "error"),
    [
        pytest.param(_raise, KeyError, id="exception"),
        pytest.param(lambda temporary: None, FileNotFoundError, id="nothing-written"),
    ],
)
def test_replacing_leaves_the_old_file_when_writing_fails(path, write, error):
    path.parent.mkdir()
    path.write_text("old")
    with pytest.raises(error), journal.replacing(path) as temporary:
        write(temporary)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]


@pytest.fixture
def no_room():
    """Files may have no more than 32768 bytes: a write fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_append_keeps_what_was_finished_and_says_where(path, three, no_room):
    with pytest.raises(OSError, match=rf"what was finished before is kept: '{re.escape(str(path))}'"):
        journal.append(path, make_round(4, message="x" * 65536))
    assert list(journal.read(path)) == three
    journal.append(path, make_round(4))
    assert list(journal.read(path)) == [*three, make_round(4)]


def test_without_room_replacing_keeps_the_old_file_and_says_where(path, no_room):
    with journal.replacing(path) as temporary:
        temporary.write_text("old")
    with (
        pytest.raises(OSError, match=rf"what was finished before is kept: '{re.escape(str(path))}'"),
        journal.replacing(path) as temporary,
    ):
        temporary.write_text("x" * 65536)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [(path.name, "old")]


def test_kill_loses_no_append_that_returned(path):
    returned = 0
    for size, acknowledged in ((10, 1), (100_000, 3), (5_000, 8), (50_000, 5), (10, 12)):
        command = [sys.executable, "-c", _APPEND_FOREVER, path, str(returned + 1), str(size)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=processes.environ()) as process:
            for line in itertools.islice(process.stdout, acknowledged):
                returned = int(line)
            process.send_signal(signal.SIGKILL)
            # What it had still printed before it died counts too.
            returned = max([returned, *(int(line) for line in process.stdout if line.endswith("\n"))])
        assert process.returncode == -signal.SIGKILL
        recorded = [entry.round for entry in journal.read(path)]
        # One more may be complete on disk without the process having lived to say so.
        assert recorded in (list(range(1, returned + 1)), list(range(1, returned + 2)))
        returned = len(recorded)


def test_every_field_of_a_round_is_in_its_line():
    fields = {field.name for field in dataclasses.fields(Round)}
    assert set(json.loads(make_round().to_json())) == fields | {"schema"}

import dataclasses
import html
import json
import re
import sys

import pytest
from asv_bench_gpu import cli, project, report, summary
from asv_bench_gpu.report import asv_pages

from tests.tracking.policies import BASELINE, SUITE, acknowledged
from tests.tracking.report_data import GPU, Project, Skip, around
from tests.tracking.test_report import HOSTILE, remote, visible

TIMES = "flat.Layouts.gputime_layout"
CALLS = "host.Call.hosttime_rows"
COUNT = "memory.Call.track_peak_bytes"
KEYS = {number: f"{TIMES}('big (256, 8)', {number})" for number in (1, 64)}
POLICY = BASELINE + SUITE


class Toy(Project):
    """A project whose history is written as one number a commit."""

    def __init__(self, folder):
        super().__init__(folder)
        self.benchmark(TIMES, "seconds", {"model": ["big (256, 8)"], "tokens": [1, 64]})
        self.benchmark(CALLS, "seconds", {})
        self.benchmark(COUNT, "bytes", {})

    def history(self, *levels, machine="m", facts=GPU, commits=None, rounds=20, other=1):
        """Measure a new commit, or one of ``commits``, for each number of times two microseconds; None: no figure.

        The other benchmarks take as long as ever, or ``other`` times that.
        """
        commits = commits or [self.commit(f"number {number}") for number in range(len(levels))]
        for commit, level in zip(commits, levels, strict=True):
            first = Skip("no memory") if level is None else around(2e-6 * level, rounds, 0.005)
            rest = around(5e-6 * other, rounds, 0.005)
            given = {TIMES: {("big (256, 8)", "1"): first, ("big (256, 8)", "64"): rest}, CALLS: {(): rest}}
            self.measure(machine, commit, given | {COUNT: {(): 32 * (level or 1)}}, facts)
        return commits

    def policy(self, *entries):
        """Write the gate's policy."""
        (self.folder / "gate.toml").write_text("".join([POLICY, *entries]))

    def changes(self, **options):
        return report.changes(self.config, progress=lambda line: None, **options)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(asv_pages, "publish", lambda *arguments: asv_pages.Published(there=True))
    return Toy(tmp_path / "toy")


@pytest.fixture
def call(toy, monkeypatch, capsys):
    """`asv-gpu changes`: exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["asv-gpu", "--config", str(toy.config), "changes", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def told(found):
    return [(change.key, change.commit.subject, change.standing) for change in found.changes]


def test_a_slowdown_is_found_with_its_commit_and_size(toy):
    commits = toy.history(1, 1, 1, 1.05, 1.05)
    found = toy.changes()
    (change,) = found.changes
    assert (change.key, change.benchmark, change.machine) == (KEYS[1], TIMES, "m")
    assert (change.before.hash, change.commit.hash, change.standing) == (commits[2], commits[3], "open")
    assert change.ratio == pytest.approx(1.05)
    assert 1.01 < change.low < 1.05 < change.high
    assert (change.before_seconds, change.after_seconds) == (pytest.approx(2e-6), pytest.approx(2.1e-6))
    assert change.chance < 0.01
    # Two times, and no number without rounds.
    assert (found.series, found.blind, found.problems, found.exit_code) == (3, 0, [], 1)


def test_a_history_without_changes(toy):
    toy.history(1, 1.001, 0.999, 1, 1)
    found = toy.changes()
    assert (found.changes, found.exit_code) == ([], 0)


def test_the_worst_comes_first_and_what_is_open_before_the_rest(toy):
    toy.history(*[1] * 4, *[1.05] * 4, *[1.2] * 4, other=1)
    machine = {"gpu": "Other GPU"}
    toy.history(*[1] * 4, *[0.5] * 4, machine="b", facts=machine)
    assert [(change.standing, round(change.ratio, 2)) for change in toy.changes().changes] == [
        ("open", 1.14),
        ("open", 1.05),
        ("faster", 0.5),
    ]


def test_commits_that_were_not_measured_are_among_the_suspects(toy):
    commits = [toy.commit(f"number {number}") for number in range(8)]
    measured = commits[:3] + commits[5:]
    toy.history(1, 1, 1, 1.05, 1.05, 1.05, commits=measured)
    (change,) = toy.changes().changes
    assert (change.before.hash, change.commit.hash) == (commits[2], commits[5])
    for suspect, standing in ((2, "open"), (3, "acknowledged"), (5, "acknowledged"), (6, "open")):
        toy.policy(acknowledged("flat", commits[suspect]))
        assert [change.standing for change in toy.changes().changes] == [standing]


def test_a_commit_without_a_figure_or_verification_is_passed_over(toy):
    commits = toy.history(1, 1, 1, None, 1.05, 1.05, 1.05)
    toy.fail("m", toy.commit("wrong"), "verification", "slot 3 differs")
    (change,) = toy.changes().changes
    assert (change.before.hash, change.commit.hash) == (commits[2], commits[4])


@pytest.mark.parametrize("changed", ["torch", "triton", "gpu"])
def test_other_versions_are_another_series(toy, changed):
    commits = toy.history(1, 1, 1)
    toy.history(1.05, 1.05, 1.05, facts=GPU | {changed: "another"})
    # The same commits once more: what differs between set-ups is no change.
    toy.history(1.05, 1.05, 1.05, facts=GPU | {changed: "another"}, machine="m2", commits=commits)
    assert toy.changes().changes == []


def test_a_series_goes_on_after_a_time_with_other_versions(toy):
    toy.history(1, 1, 1)
    toy.history(2, 2, 2, facts=GPU | {"torch": "another"})
    commits = toy.history(1.05, 1.05, 1.05)
    (change,) = toy.changes().changes
    assert change.commit.hash == commits[0]
    assert change.ratio == pytest.approx(1.05)


def test_another_version_of_the_benchmark_is_another_series(toy):
    toy.history(1, 1, 1)
    toy.benchmark(TIMES, "seconds", {"model": ["big (256, 8)"], "tokens": [1, 64]}, version="2")
    toy.history(1.05, 1.05, 1.05)
    assert toy.changes().changes == []


def test_what_is_gone_in_the_newest_commit_is_not_open(toy):
    toy.history(1, 1, 1, 1.05, 1.05, 1.05, 1.002, 1.002, 1.002)
    found = toy.changes()
    assert [change.standing for change in found.changes] == ["recovered", "faster"]
    assert found.exit_code == 0


def test_what_is_only_half_gone_is_open(toy):
    toy.history(1, 1, 1, 1.1, 1.1, 1.1, 1.05, 1.05, 1.05)
    found = toy.changes()
    assert [change.standing for change in found.changes] == ["open", "faster"]
    assert found.exit_code == 1


def test_what_is_acknowledged_is_not_open(toy):
    commits = toy.history(1, 1, 1, 1.05, 1.05, 1.05)
    toy.policy(acknowledged(r"^flat\.Layouts", commits[3][:8]))
    found = toy.changes()
    assert [(change.standing, change.reason) for change in found.changes] == [("acknowledged", "worth it")]
    assert (found.unmatched, found.exit_code) == ([], 0)


def test_an_acknowledgement_is_of_its_commit_and_its_benchmarks(toy):
    commits = toy.history(*[1] * 3, *[1.05] * 3, *[1.2] * 3)
    toy.policy(acknowledged("tokens", commits[3]), acknowledged("64", commits[3]), acknowledged("1", commits[6]))
    found = toy.changes()
    assert told(found) == [(KEYS[1], "number 3", "open"), (KEYS[1], "number 6", "acknowledged")]
    assert [entry.partition(":")[0] for entry in found.unmatched] == ["acknowledged[1]", "acknowledged[2]"]
    assert found.unmatched[1].endswith(f"no slowdown of 64 by {commits[3][:8]} is found")
    assert toy.changes(bench=r"\('big \(256, 8\)', 1\)").unmatched == []
    assert found.exit_code == 1


def test_what_became_faster_needs_no_acknowledgement(toy):
    commits = toy.history(1, 1, 1, 0.9, 0.9, 0.9)
    toy.policy(acknowledged("flat", commits[3]))
    found = toy.changes()
    assert [change.standing for change in found.changes] == ["faster"]
    assert len(found.unmatched) == 1
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(acknowledged("flat", "no-such"), r"acknowledged\[1\]\.commit: expected a commit", id="commit"),
        pytest.param(acknowledged("(", "main"), r"acknowledged\[1\]\.benchmarks: expected a regular", id="regex"),
        pytest.param(acknowledged("flat", "main", ""), r"acknowledged\[1\]\.reason: expected text", id="reason"),
        pytest.param("family_alpha = 3\n", r"suite\[1\]\.family_alpha: expected one of", id="elsewhere"),
    ],
)
def test_a_wrong_policy_is_named(toy, entry, message):
    toy.history(1, 1, 1)
    toy.policy(entry)
    with pytest.raises(project.UsageError, match=f"^{toy.folder.resolve()}/gate.toml: {message}"):
        toy.changes()


def test_a_policy_of_another_name(toy, tmp_path):
    commits = toy.history(1, 1, 1, 1.05, 1.05, 1.05)
    toy.policy()
    (tmp_path / "other.toml").write_text(POLICY + acknowledged("flat", commits[3]))
    assert toy.changes(policy=tmp_path / "other.toml").count("acknowledged") == 1
    assert toy.changes().count("open") == 1


def test_too_few_rounds_show_nothing_and_are_counted(toy):
    toy.history(1, 1, 1.5, rounds=2)
    found = toy.changes()
    assert (found.changes, found.series, found.blind, found.exit_code) == ([], 3, 3, 2)


def test_one_commit_is_no_history(toy, call):
    toy.history(1)
    code, shown, _ = call()
    assert code == 2
    assert shown.startswith("UNKNOWN: nothing is recorded that could show a change\n")


def test_the_command_lists_what_is_open(toy, call):
    toy.history(1, 1, 1, 1.05, 1.05)
    code, shown, errors = call()
    (change,) = toy.changes().changes
    assert code == 1
    assert shown.startswith("OPEN: 1 slowdown by 1 commit\n")
    row = rf"OPEN +{change.commit.short} +1\.050 +1\.0\d+ to 1\.0\d+ +below 0\.0001 .* m +{re.escape(KEYS[1])}"
    assert re.search(row, shown)
    assert "probability that noise lists anything at most 0.01" in shown
    assert errors.startswith("reading ")


def test_the_command_ends_with_0_when_nothing_is_open(toy, call):
    commits = toy.history(1, 1, 1, 1.05, 1.05)
    toy.policy(acknowledged("flat", commits[3]), acknowledged("host", commits[3]))
    code, shown, _ = call()
    assert code == 0
    assert shown.startswith("NONE OPEN: ")
    assert re.search(r"^acknowledged .* worth it$", shown, re.MULTILINE)
    assert "acknowledged[2]: no slowdown of host by" in shown


def test_the_command_gives_json(toy, call):
    commits = toy.history(1, 1, 1, 1.05, 1.05)
    code, shown, _ = call("--json")
    outcome = json.loads(shown)
    assert (code, outcome["exit_code"], outcome["series"]) == (1, 1, 3)
    (change,) = outcome["changes"]
    assert (change["key"], change["commit"]["hash"], change["standing"]) == (KEYS[1], commits[3], "open")


def test_the_command_looks_where_it_is_told(toy, call):
    toy.history(1, 1, 1, 1.05, 1.05)
    assert call("--bench", "tokens|host")[0] == 0
    assert call("--margin-percent", "5.5")[0] == 0
    assert call("--bench", r"layout\('big \(256, 8\)', 1\)$")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--bench", "("], "--bench: expected a regular expression, got '('", id="regex"),
        pytest.param(["--bench", "no-such"], "--bench: no recorded time matches 'no-such'", id="no-benchmark"),
        pytest.param(["--margin-percent", "-1"], "margin_percent: expected a finite number", id="margin"),
        pytest.param(["--family-alpha", "1"], "family_alpha: expected a number above 0", id="alpha"),
        pytest.param(["--policy", "no-such.toml"], "no-such.toml", id="policy"),
    ],
)
def test_usage_errors(toy, call, arguments, message):
    toy.history(1, 1, 1)
    code, shown, errors = call(*arguments)
    assert (code, shown) == (2, "")
    assert message in errors.splitlines()[-1]


def test_no_configuration(toy, call):
    toy.config.unlink()
    assert call() == (2, "", f"asv-gpu: --config: expected a file, got {toy.config}\n")


def test_nothing_recorded(call):
    code, shown, _ = call()
    assert code == 2
    assert shown.startswith("UNKNOWN: ")


def test_a_damaged_file_is_no_pass(toy, call):
    toy.history(1, 1, 1)
    (toy.results / "m/deadbeef-gpu.json").write_text("{")
    code, shown, _ = call()
    assert code == 2
    assert shown.startswith("UNKNOWN: part of the record could not be read\n")
    assert "not read: m/deadbeef-gpu.json" in shown


def test_all_that_is_open_is_shown_and_some_of_the_rest(toy):
    toy.history(*[1] * 4, *[1.05] * 4)
    found = toy.changes()
    many = [found.changes[0]] * 20
    lines = summary.changes(dataclasses.replace(found, changes=many)).splitlines()
    assert sum(line.startswith("OPEN ") for line in lines) == 20
    faster = [dataclasses.replace(change, standing="faster") for change in many]
    shown = summary.changes(dataclasses.replace(found, changes=faster))
    assert sum(line.startswith("faster ") for line in shown.splitlines()) == 15
    assert "and 5 more that are not open" in shown


def page(toy):
    index = report.build(toy.config, progress=lambda line: None)
    return index.with_name("changes.html").read_text(encoding="utf-8")


def test_the_page_lists_the_same(toy):
    commits = toy.history(1, 1, 1, 1.05, 1.05, 1.05, 1.1, 1.1, 1.1)
    toy.policy(acknowledged("flat", commits[3]), acknowledged("host", commits[3]))
    shown = page(toy)
    words = visible(shown)
    assert "Yes: 1 slowdown by 1 commit. 1 open 1 acknowledged 0 recovered since 0 faster" in words
    assert f"open {commits[6][:8]} (2026-01-07)number 6 1.048" in words
    assert f"acknowledged: worth it {commits[3][:8]} (2026-01-04)number 3 1.050" in words
    assert "acknowledged[2]: no slowdown of host by" in words
    assert "2.00 µs 2.10 µs" in words
    assert f'<a href="asv/index.html#{TIMES}">{html.escape(KEYS[1], quote=False)}' in shown.replace("&#39;", "'")
    assert f"With {toy.changes().tests} tests that were possible in 3 series" in words
    assert "is at most 0.01" in words
    assert remote(toy.folder / "reports/html") == []


@pytest.mark.parametrize(
    ("levels", "answer"),
    [
        pytest.param([1, 1, 1, 1], "No. 0 open", id="nothing"),
        pytest.param([1], "Not known: nothing is recorded that could show a change.", id="one-commit"),
        pytest.param([], "Not known: nothing is recorded that could show a change.", id="no-results"),
    ],
)
def test_the_page_never_claims_more_than_was_measured(toy, levels, answer):
    toy.history(*levels)
    assert answer in visible(page(toy))


def test_the_page_claims_nothing_of_a_damaged_record(toy):
    toy.history(1, 1, 1, 1)
    (toy.results / "m/deadbeef-gpu.json").write_text("{")
    words = visible(page(toy))
    assert "Not known: part of the record could not be read." in words
    assert "m/deadbeef-gpu.json" in words


def test_the_pages_are_linked_and_every_header_has_a_scope(toy):
    toy.history(1, 1, 1, 1.05, 1.05)
    shown = page(toy)
    folder = toy.folder / "reports/html"
    assert 'href="changes.html"' in (folder / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="([^"]+)"', shown))
    for target in re.findall(r'(?:src|href|aria-labelledby)="(?!asv/)([^"]+)"', shown):
        path, _, anchor = target.partition("#")
        assert (folder / path).exists() or target in ids
        assert path or anchor in ids
    assert all("scope=" in header for header in re.findall(r"<th\b[^>]*>", shown))


def test_a_commit_is_linked_where_commits_have_addresses(toy):
    commits = toy.history(1, 1, 1, 1.05, 1.05)
    settings = json.loads(toy.config.read_text())
    address = "https://example.invalid/commit/"
    toy.config.write_text(json.dumps(settings | {"show_commit_url": address}))
    assert f'<a href="{address}{commits[3]}"><code>{commits[3][:8]}</code></a>' in page(toy)


def test_names_in_results_cannot_inject_html(tmp_path, toy):
    for number, level in enumerate([1, 1, 1, 1.05, 1.05, 1.05]):
        given = {TIMES: {("big (256, 8)", "1"): around(2e-6 * level, 20, 0.005)}}
        toy.measure("m", toy.commit(f"{number} {HOSTILE}"), given)
    toy.policy(acknowledged("flat", "main~2", HOSTILE.replace("'", "")))
    shown = page(toy)
    assert "acknowledged: &lt;script&gt;" in shown
    assert "<script" not in shown
    assert "onerror=alert(1)>" not in shown

import doctest
import hashlib
import html.parser
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import asv
import pytest
from asv_bench_gpu import report
from asv_bench_gpu.report import assets, asv_pages, data, ratio, site, text
from asv_bench_gpu.report.ratio import Comparison, Comparisons, Verdict

from tests.tracking.report_data import GPU, SITE, Project, Skip, around

ROWS = "order.Rows.gputime_rows"
EMPTY = "order.Empty.gputime_empty"
LAYOUTS = "layouts.Repeats.track_layouts"
REGISTERS = "codegen.Kernels.track_registers"
ATOMICS = "codegen.Kernels.track_atomics"
MODELS = ["big (256, 8)", "small (8, 2)"]
TOKENS = [1, 64]
SERIES = ["ours", "theirs", "floor"]
SPEC = site.RatioSpec(
    "?", "method", ROWS, "implementation", "ours", "theirs", "tokens", "model", "floor", EMPTY, "empty kernel"
)
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No test asks npm for anything: a cache folder that is empty, and no npm."""
    monkeypatch.setenv(assets.ENVIRONMENT_VARIABLE, str(tmp_path / "assets"))
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    project.benchmark(ROWS, "seconds", {"model": MODELS, "tokens": TOKENS, "implementation": SERIES})
    project.benchmark(EMPTY, "seconds", {})
    project.benchmark(LAYOUTS, "layouts", {"model": MODELS, "tokens": TOKENS, "implementation": SERIES[:2]})
    project.benchmark(REGISTERS, "registers", {"kernel": ["scan"], "target": ["sm_90", "gfx942"]})
    project.benchmark(ATOMICS, "atomics", {"kernel": ["scan"], "target": ["sm_90", "gfx942"]})
    return project


def rows(*ratios, baseline=4e-6, spread=0.01):
    """Figures for every shape in order; a ratio of None leaves the shape out."""
    shapes = [(model, str(tokens)) for model in MODELS for tokens in TOKENS]
    values = {}
    for (model, tokens), r in zip(shapes, ratios, strict=True):
        if r is not None:
            values[model, tokens, "ours"] = around(r * baseline, spread=spread)
            values[model, tokens, "theirs"] = around(baseline, spread=spread)
            values[model, tokens, "floor"] = around(1e-6)
    return {ROWS: values, EMPTY: {(): around(0.7e-6)}}


def code():
    return {REGISTERS: {("scan", "sm_90"): 32, ("scan", "gfx942"): Skip("no disassembler")}}


@pytest.fixture(autouse=True)
def _publish(request, monkeypatch):
    """asv's own pages take most of the time: only tests that ask for `with_asv` build them."""
    if "with_asv" not in request.fixturenames:
        monkeypatch.setattr(asv_pages, "publish", lambda *arguments: asv_pages.Published(there=True))


@pytest.fixture
def with_asv():
    """Let the report build asv's pages."""


def build(project):
    return report.build(project.config, progress=lambda line: None).read_text(encoding="utf-8")


def visible(page):
    """The page's text, as a reader sees it: white space collapsed, no tags."""

    class Reader(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.words = []

        def handle_starttag(self, tag, attrs):
            self.words.append(" " if tag in {"td", "th", "li"} else "")

        def handle_data(self, words):
            self.words.append(words)

    reader = Reader()
    reader.feed(page)
    return re.sub(r"\s+", " ", "".join(reader.words))


def remote(folder):
    """Everything in built pages that another host would have to serve."""
    pattern = re.compile(r"(?:src|href|srcset)\s*=\s*[\"']?\s*(?:https?:)?//[^\s\"'>]*|url\(\s*[\"']?(?:https?:)?//")
    pages = [path for kind in ("html", "css", "svg") for path in folder.rglob(f"*.{kind}")]
    assert pages
    return [(path.name, found) for path in pages for found in pattern.findall(path.read_text(encoding="utf-8"))]


def figure(low, value, high, rounds=5):
    return data.Figure(value, low, high, rounds)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(figure(1, 2, 3), Verdict.FASTER, id="ranges-apart-below"),
        pytest.param(figure(12, 13, 14), Verdict.SLOWER, id="ranges-apart-above"),
        pytest.param(figure(6, 7, 9), Verdict.EQUAL, id="ranges-touch-from-below"),
        pytest.param(figure(11, 12, 13), Verdict.EQUAL, id="ranges-touch-from-above"),
        pytest.param(figure(11.01, 12, 13), Verdict.SLOWER, id="just-apart"),
        pytest.param(figure(1, 1, 1, rounds=1), Verdict.UNJUDGED, id="one-round-has-no-spread"),
        pytest.param(data.Figure(1.0), Verdict.UNJUDGED, id="no-quartiles"),
    ],
)
def test_equal_only_where_interquartile_ranges_overlap(subject, expected):
    assert Comparison(("m", "1"), subject, figure(9, 10, 11)).verdict is expected


def test_geometric_mean_treats_half_and_double_alike():
    assert ratio.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert ratio.geometric_mean([1.0, 8.0, 27.0]) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [(0.981, 2, "0.99"), (1.0, 2, "1.00"), (1.0000001, 2, "1.01"), (1.1, 2, "1.10"), (0.9999, 3, "1.000")],
)
def test_a_ratio_is_never_rounded_down(value, digits, expected):
    assert text.ratio(value, digits) == expected


def measured(day, verdicts):
    """Comparisons of one commit: shape -> "f"aster, "e"qual, "s"lower or "?" for too few rounds."""
    of = data.Measurement(data.Commit(f"{day:040d}", (day, ""), f"2026-01-{day:02d}", "", True), "m", (), {}, {})
    sides = {"f": figure(4, 5, 6), "e": figure(9, 10, 11), "s": figure(19, 20, 21), "?": data.Figure(5)}
    found = {s: Comparison(s, sides[v], figure(9, 10, 11)) for s, v in verdicts.items()}
    return Comparisons(of, found, {})


A, B, C = ("a", "1"), ("b", "1"), ("c", "1")


def told(groups):
    return [(group.costs, group.commit.order[0], group.shapes) for group in groups]


def test_since_when_walks_back_to_the_last_change():
    series = [
        measured(1, {A: "s", B: "f", C: "f"}),
        measured(2, {A: "f", B: "e", C: "s"}),
        measured(3, {A: "e", B: "f", C: "s"}),
    ]
    assert told(ratio.since(series)) == [(False, 2, [A]), (False, 1, [B]), (True, 2, [C])]


@pytest.mark.parametrize("gap", [{B: "f"}, {A: "?", B: "f"}], ids=["no-figure", "too-few-rounds"])
def test_since_when_does_not_count_what_was_not_shown(gap):
    series = [measured(1, {A: "f", B: "f"}), measured(2, gap), measured(3, {A: "f", B: "f"})]
    assert told(ratio.since(series)) == [(False, 3, [A]), (False, 1, [B])]


def test_since_when_stops_at_a_commit_without_figures():
    refusal = data.Refusal(data.Commit("f" * 40, (2, ""), "", "", True), "m", "verification", "")
    series = [measured(1, {A: "f"}), measured(3, {A: "f"})]
    assert told(ratio.since(series, [refusal])) == [(False, 3, [A])]


def test_history_is_over_the_shapes_that_all_commits_have():
    points = ratio.history([measured(1, {A: "s", B: "f"}), measured(2, {A: "f"})])
    assert [(p.mean, p.low, p.high, p.not_above_one, p.shapes) for p in points] == [
        (pytest.approx(2.0), 2.0, 2.0, 0, 1),
        (pytest.approx(0.5), 0.5, 0.5, 1, 1),
    ]


def test_history_without_common_shapes_is_empty():
    assert ratio.history([measured(1, {A: "f"}), measured(2, {B: "f"})]) == []


def test_numbers_carry_units_people_read():
    assert text.quantity(2.5e-6, "seconds") == "2.50\u202fµs"
    assert text.quantity(5 * 1024**2, "bytes") == "5.00\u202fMiB"
    assert text.quantity(7, "registers") == "7"


@pytest.mark.parametrize("module", [data, ratio, text])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def load(project):
    return data.load(project.results, project.folder, ["main"])


def test_figures_are_what_was_measured(project):
    commit = project.commit("one")
    project.measure("m", commit, rows(0.5, 1, 2, None))
    (measurement,) = load(project).measurements
    got = measurement.results[ROWS].figures["big (256, 8)", "1", "ours"]
    assert got == data.Figure(2e-6, pytest.approx(1.99e-6), pytest.approx(2.01e-6), 5)
    assert measurement.results[ROWS].missing["small (8, 2)", "64", "ours"] == "failed"
    assert (measurement.commit.hash, measurement.commit.subject) == (commit, "one")
    assert (measurement.rounds, measurement.verified) == (5, 35)
    assert measurement.states["sm_clock_mhz"] == "1975 to 1979"


def test_figures_of_another_version_of_the_benchmark_do_not_count(project):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    project.benchmark(ROWS, "seconds", {"model": MODELS, "tokens": TOKENS, "implementation": SERIES}, version="2")
    (measurement,) = load(project).measurements
    assert ROWS not in measurement.results


def test_commits_stand_in_git_order_not_in_order_of_measurement(project):
    first, second = project.commit("first"), project.commit("second")
    project.measure("m", second, rows(1, 1, 1, 1))
    project.measure("m", first, rows(1, 1, 1, 1))
    assert [m.commit.subject for m in load(project).measurements] == ["first", "second"]


def test_commits_that_git_does_not_know_are_kept_apart(project):
    project.measure("m", project.commit("known"), rows(1, 1, 1, 1))
    project.measure("m", "ab" * 20, rows(9, 9, 9, 9))
    history = load(project)
    assert [m.commit.subject for m in history.measurements] == ["known"]
    assert [m.commit.hash for m in history.elsewhere] == ["ab" * 20]


def test_commits_that_git_does_not_know_do_not_stop_asv(project, with_asv):
    project.measure("m", project.commit("known"), rows(1, 1, 1, 1))
    project.measure("m", "ab" * 20, rows(9, 9, 9, 9))
    assert "Measured, but not on the branch this page follows" in build(project)
    index = json.loads((project.folder / "reports/html/asv/index.json").read_text())
    assert len(index["revision_to_hash"]) == 1


def test_what_a_commit_measured_before_it_failed_verification_does_not_count(project):
    commit = project.commit("one")
    project.measure("m", commit, rows(1, 1, 1, 1))
    project.fail("m", commit, "verification", "slot 3 differs")
    history = load(project)
    assert history.measurements == []
    assert [(r.reason, r.message) for r in history.refusals] == [("verification", "slot 3 differs")]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 2, "results": 3}'])
def test_a_damaged_result_file_is_named_and_the_others_are_shown(project, content):
    project.measure("m", project.commit("good"), rows(1, 1, 1, 1))
    (project.results / "m/deadbeef-gpu.json").write_text(content)
    history = load(project)
    assert len(history.measurements) == 1
    assert any("deadbeef-gpu.json" in problem for problem in history.problems)


def test_a_damaged_journal_is_named(project):
    path = project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    path.with_name(path.stem + ".rounds.jsonl").write_text("nonsense\n")
    history = load(project)
    assert history.measurements == []
    assert any("line 1" in problem for problem in history.problems)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('title = "Does it cost?"\n', "", "missing title"),
        ('lead = "', 'leed = "', "missing lead"),
        ('subject = "ours"', "subject = 3", "'subject' must be of type str"),
        ('columns = "target"', 'colums = "target"', "unknown key 'colums'"),
        ("[ratio]", "[ratio", "site.toml"),
        ('benchmark = "layouts', 'benchmarks = {}\nbenchmark = "layouts', "either"),
    ],
)
def test_mistakes_in_the_site_file_are_named(tmp_path, old, new, complaint):
    assert old in SITE
    (tmp_path / "site.toml").write_text(SITE.replace(old, new, 1))
    with pytest.raises(site.SiteError, match=re.escape(complaint)):
        site.load(tmp_path / "site.toml")


def test_a_missing_site_file_is_named(tmp_path):
    with pytest.raises(site.SiteError, match="No such file"):
        site.load(tmp_path / "site.toml")


def test_front_page_answers_from_the_data(project):
    project.measure("m", project.commit("slow"), rows(3, 3, 3, 3) | code())
    head = project.commit("fast")
    project.measure("m", head, rows(0.5, 1.001, 2.345, 1.5) | code())
    words = visible(build(project))
    assert "Yes, on 2 of 4 shapes." in words
    assert f"Test GPU (m), commit {head[:8]} (2026-01-02)" in words
    assert "1 faster 1 equal within the spread 2 slower" in words
    assert f"Worst: 2.35{text.TIMES} the time of theirs (small (8, 2), tokens = 1: 9.38 against 4.00 µs)." in words
    assert f"Best: 0.50{text.TIMES} (big (256, 8), tokens = 1: 2.00 against 4.00 µs)." in words
    assert f"Not slower: 2 shapes since {head[:8]}" in words
    assert "Slower: 2 shapes since" in words
    assert "5 rounds" in words


@pytest.mark.parametrize(
    ("ratios", "spread", "answer"),
    [
        pytest.param((0.5, 0.9, 1, 1), 0.01, "No, on none of 4 shapes.", id="nothing-slower"),
        pytest.param((0.5, 0.9, 1, None), 0.01, "On none of the 3 shapes judged; 1 not measured.", id="partial"),
        pytest.param((1.02, 0.9, 1, 1), 0.001, "Yes, on 1 of 4 shapes.", id="one-slower"),
    ],
)
def test_answer_never_claims_more_than_was_measured(project, ratios, spread, answer):
    project.measure("m", project.commit("one"), rows(*ratios, spread=spread))
    assert answer in visible(build(project))


def test_no_results_at_all(tmp_path):
    project = Project(tmp_path / "empty")
    words = visible(build(project))
    assert "Not known: there are no results yet." in words
    assert "There are no figures to publish yet." in words
    assert remote(project.folder / "reports/html") == []


def test_results_of_a_machine_without_gpu(project):
    project.measure("ci", project.commit("one"), code(), facts={"torch": "2.11.0+cpu"})
    words = visible(build(project))
    assert "Not known: no machine has figures for it yet." in words
    assert "ci (no GPU)" in words
    assert "no disassembler" in words
    assert list((project.folder / "reports/html").glob("figures/*")) == []


def test_each_machine_gets_its_own_answer(project):
    commit = project.commit("one")
    project.measure("a", commit, rows(2, 2, 2, 2))
    project.measure("b", commit, rows(0.5, 0.5, 0.5, 0.5), facts=GPU | {"gpu": "Other GPU"})
    words = visible(build(project))
    assert "Yes, on 4 of 4 shapes. On Test GPU (a)" in words
    assert "No, on none of 4 shapes. On Other GPU (b)" in words


def test_a_change_of_set_up_is_marked_in_the_history(project):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    project.measure("m", project.commit("two"), rows(1, 1, 1, 1), facts=GPU | {"torch": "2.12.0"})
    assert "Dotted: here the set-up changed." in visible(build(project))
    assert "torch 2.12.0" in (project.folder / "reports/html/figures/history-1.svg").read_text()


def test_missing_shapes_and_failed_commits_are_listed_with_reasons(project):
    good, bad = project.commit("good"), project.commit("bad")
    given = rows(1, 1, 1, 1)
    for series in SERIES:
        given[ROWS]["small (8, 2)", "64", series] = Skip("needs 3 GiB more")
    project.measure("m", good, given)
    project.fail("m", bad, "verification", "slot_index[3, 17] is 912, expected 911")
    words = visible(build(project))
    assert "No ratio for 1 of 4 shapes" in words
    assert "needs 3 GiB more 3 of 12" in words
    assert f"The newer commit {bad[:8]} (2026-01-02) has no figures: verification" in words
    assert "slot_index[3, 17] is 912, expected 911" in words


def test_names_in_results_cannot_inject_html(tmp_path):
    project = Project(tmp_path / "project")
    models = [HOSTILE, "$x_{"]
    project.benchmark(ROWS, "seconds", {"model": models, "tokens": TOKENS, "implementation": SERIES})
    project.benchmark(HOSTILE, HOSTILE, {})
    given = {(m, str(t), s): around(1e-6) for m in models for t in TOKENS for s in SERIES}
    given[HOSTILE, "64", "ours"] = Skip(HOSTILE)
    project.measure("m", project.commit(HOSTILE), {ROWS: given}, facts={"gpu": HOSTILE, "driver": HOSTILE})
    project.fail("m", project.commit("bad"), "verification", HOSTILE)
    page = build(project)
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert "&lt;script&gt;" in page
    for path in (project.folder / "reports/html/figures").glob("*.svg"):
        names = {element.tag.rpartition("}")[2] for element in ET.fromstring(path.read_text()).iter()}  # noqa: S314
        assert "script" not in names
        assert "img" not in names


def test_nothing_is_loaded_from_another_host(project, with_asv):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1) | code())
    build(project)
    assert (project.folder / "reports/html/asv/index.html").exists()
    assert remote(project.folder / "reports/html") == []


def test_links_and_images_of_the_front_page_exist(project, with_asv):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1) | code())
    page = build(project)
    folder = project.folder / "reports/html"
    ids = set(re.findall(r'id="([^"]+)"', page))
    for target in re.findall(r'(?:src|href|srcset)="([^"]+)"', page):
        path, _, anchor = target.partition("#")
        assert (folder / path).exists()
        assert path or anchor in ids


def test_every_image_has_a_description_and_every_header_a_scope(project):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1) | code())
    page = build(project)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 3
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert all("scope=" in header for header in re.findall(r"<th\b[^>]*>", page))


def test_building_twice_gives_the_same_bytes(project, tmp_path):
    project.measure("m", project.commit("one"), rows(0.5, 1, 2, 1))
    digests = []
    for name in ("a", "b"):
        folder = report.build(project.config, html_dir=tmp_path / name, progress=lambda line: None).parent
        files = [folder / "index.html", *sorted(folder.glob("figures/*.svg"))]
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert len(digests[0]) == 7
    assert digests[0] == digests[1]


def test_site_that_does_not_fit_the_benchmark_is_refused(project):
    site_file = project.folder / "reports/site.toml"
    site_file.write_text(SITE.replace('x_param = "tokens"', 'x_param = "token"'))
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    with pytest.raises(site.SiteError, match="token"):
        build(project)


def asv_index():
    return (Path(asv.__file__).parent / "www/index.html").read_text(encoding="utf-8")


def test_asvs_page_is_rewritten_to_local_files(tmp_path):
    page = asv_pages.rewrite(asv_index(), tmp_path)
    assert re.findall(r"(?:src|href)=\"(?:https?:)?//", page) == []
    assert "integrity" not in page
    assert "crossorigin" not in page
    for asset in assets.FILES:
        assert page.count(f"vendor/{asset.name}") == 1
    assert page.index("vendor/jquery.min.js") < page.index("offline.js") < page.index('src="asv.js"')


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("jquery-3.3.1.min.js", "jquery-9.min.js", id="another-version"),
        pytest.param("<head>", '<head><script src="https://example.invalid/x.js"></script>', id="one-more"),
        pytest.param("<head>", '<head><script src="//example.invalid/x.js"></script>', id="no-scheme"),
        pytest.param("https://cdnjs.cloudflare.com/ajax/libs/blueimp-md5/2.19.0/js/", "", id="one-less"),
        pytest.param('<ul class="nav navbar-nav navbar-left">', "<ul>", id="no-navigation"),
    ],
)
def test_a_changed_asv_page_is_refused(tmp_path, old, new):
    assert old in asv_index()
    with pytest.raises(asv_pages.PublishError):
        asv_pages.rewrite(asv_index().replace(old, new, 1), tmp_path)


def test_a_file_that_is_not_the_one_asv_names_is_refused(tmp_path):
    (tmp_path / "jquery.min.js").write_text("something else")
    with pytest.raises(asv_pages.PublishError, match=r"jquery\.min\.js is not the file"):
        asv_pages.rewrite(asv_index(), tmp_path)


def test_without_the_files_the_page_says_which_and_how_to_get_them(project, with_asv):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    words = visible(build(project))
    assert "npm is not installed" in words
    assert "npm install --ignore-scripts" in words
    assert "flot/jquery.flot.js" in words


def some_assets(folder):
    for asset in assets.FILES:
        path = folder / "node_modules" / asset.source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(asset.source)
    return [
        assets.dataclasses.replace(asset, sha256=hashlib.sha256(asset.source.encode()).hexdigest(), identical=False)
        for asset in assets.FILES
    ]


def test_files_in_the_cache_are_used_without_npm(project, with_asv, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FILES", some_assets(tmp_path / "assets"))
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    words = visible(build(project))
    assert "need neither a network nor a web server" in words
    vendor = project.folder / "reports/html/asv/vendor"
    assert {path.name for path in vendor.iterdir()} == {asset.name for asset in assets.FILES}


def test_a_file_with_another_hash_is_never_published(project, with_asv, tmp_path):
    some_assets(tmp_path / "assets")
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    with pytest.raises(assets.AssetsChangedError, match="jquery"):
        build(project)
    assert not (project.folder / "reports/html/asv").exists()


def test_npm_installs_exactly_what_is_pinned():
    package = json.loads(Path(assets.__file__).with_name("package.json").read_text())
    assert package["private"] is True
    assert set(package["dependencies"]) == {asset.source.partition("/")[0] for asset in assets.FILES}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())


def test_npm_without_network_is_not_fatal(tmp_path, monkeypatch):
    monkeypatch.setattr(assets.shutil, "which", lambda name: "/usr/bin/npm")

    def failing(command, **options):
        assert "--ignore-scripts" in command
        return subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\n")

    monkeypatch.setattr(assets.subprocess, "run", failing)
    with pytest.raises(assets.AssetsUnavailableError, match="ENOTFOUND"):
        assets.fetch(tmp_path / "cache", progress=lambda line: None)


def test_every_json_file_of_asv_has_a_script_twin(project, with_asv):
    project.measure("m", project.commit("one"), rows(1, 1, 1, 1))
    build(project)
    folder = project.folder / "reports/html/asv"
    files = list(folder.rglob("*.json"))
    assert files
    for path in files:
        key, _, content = path.with_name(f"{path.name}.js").read_text().partition(" = ")
        assert key == f'asvOffline["{path.relative_to(folder).as_posix()}"]'
        assert json.loads(content.rstrip(";\n")) == json.loads(path.read_text())


def test_the_front_page_is_there_even_when_asv_fails(project, with_asv, monkeypatch):
    project.measure("m", project.commit("one"), rows(2, 1, 1, 1))
    monkeypatch.setattr(asv_pages.sys, "executable", "/bin/false")
    with pytest.raises(asv_pages.PublishError, match="ended with 1"):
        build(project)
    words = visible((project.folder / "reports/html/index.html").read_text())
    assert "Yes, on 1 of 4 shapes." in words
    assert "asv publish ended with 1" in words
    assert 'href="asv/' not in (project.folder / "reports/html/index.html").read_text()

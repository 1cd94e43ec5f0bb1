"""What a reviewer would have to check by eye in every change of a workflow."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = {path.stem: path for path in sorted((GITHUB / "workflows").glob("*.y*ml"))}

# A pin is a full commit; the comment says which release it is, for readers and for Dependabot.
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
PINNED_LINE = re.compile(rf"\s*(- )?uses: {PINNED.pattern} # v\d+\.\d+\.\d+")

# Triggers that outsiders cannot cause.
TRUSTED_TRIGGERS = {"push", "schedule", "workflow_dispatch"}

# Every right to write in the whole repository, by job.
WRITES = {
    ("benchmark", "record"): {"contents"},
    ("benchmark", "deploy"): {"id-token", "pages"},
    ("release", "release"): {"contents"},
}

ASV_GPU = {"calibrate", "changes", "compare", "gate", "report", "run"}
GIT = {"add", "commit", "diff", "push", "restore", "tag"}
PLAIN = {"cp", "mkdir"}


def triggers(workflow: dict[Any, Any]) -> set[str]:
    on = workflow[True]  # YAML 1.1 reads the key "on" as a boolean
    return {on} if isinstance(on, str) else set(on)


def labels(job: dict[str, Any]) -> set[str]:
    runs_on = job["runs-on"]
    return {runs_on} if isinstance(runs_on, str) else set(runs_on)


def writes(permissions: object) -> set[str]:
    if isinstance(permissions, str):  # read-all, write-all
        return set() if permissions == "read-all" else {permissions}
    assert isinstance(permissions, dict), "permissions are not declared"
    return {scope for scope, access in permissions.items() if access not in ("read", "none")}


def make_targets(makefile: str) -> set[str]:
    rules = re.findall(r"^([A-Za-z][\w./ -]*?)\s*:(?![:=])", makefile, flags=re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


def forbidden(script: str, targets: set[str]) -> str | None:
    """The first command of a script that a reader could not run at home as it stands; None if all can."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, "&&"]:
            if token not in ("&&", "||", ";"):
                command.append(token)
                continue
            if command and not allowed(command, targets):
                return shlex.join(command)
            command = []
    return None


def allowed(command: list[str], targets: set[str]) -> bool:
    if any(set(word) <= set("();<>|&") for word in command) or any("$(" in word or "`" in word for word in command):
        return False  # pipes, redirections, substitutions
    name, *arguments = command
    if name == "make":
        named = [word for word in arguments if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        return bool(named) and set(named) <= targets
    if name == ".venv/bin/asv-gpu":
        return bool(arguments) and arguments[0] in ASV_GPU
    if name == "git":
        return bool(arguments) and arguments[0] in GIT
    return name in PLAIN or command[:3] in (["gh", "auth", "setup-git"], ["gh", "release", "create"])


def load(name: str) -> dict[Any, Any]:
    workflow = yaml.safe_load(WORKFLOWS[name].read_text())
    assert isinstance(workflow, dict)
    return workflow


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in WORKFLOWS:
        for job_name, job in load(name)["jobs"].items():
            yield name, job_name, job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job_name, job in jobs():
        for number, step in enumerate(job["steps"]):
            yield f"{name}-{job_name}-{step.get('name') or step.get('run') or step.get('uses', number)}", step


def script(name: str, job: str, step_name: str) -> str:
    (step,) = [step for step in load(name)["jobs"][job]["steps"] if step.get("name") == step_name]
    run = step["run"]
    assert isinstance(run, str)
    return run


JOBS = [pytest.param(*job, id=f"{job[0]}-{job[1]}") for job in jobs()]
STEPS = [pytest.param(step, id=label.splitlines()[0]) for label, step in steps()]
RUNS = [pytest.param(step["run"], id=label.splitlines()[0]) for label, step in steps() if "run" in step]
NAMES = [pytest.param(name, id=name) for name in WORKFLOWS]


def test_the_workflows_are_the_ones_reviewed_here():
    assert set(WORKFLOWS) == {"benchmark", "ci", "release"}


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_pinned_by_commit_and_names_its_release(name):
    lines = [line for line in WORKFLOWS[name].read_text().splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert lines
    assert [line for line in lines if not PINNED_LINE.fullmatch(line)] == []


@pytest.mark.parametrize("step", STEPS)
def test_a_step_runs_one_thing_and_pinned(step):
    assert ("uses" in step) != ("run" in step)
    if "uses" in step:
        assert PINNED.fullmatch(step["uses"])


def test_one_action_has_one_pin():
    pins = {}
    for _, step in steps():
        if "uses" in step:
            action, commit = step["uses"].split("@")
            pins.setdefault(action, set()).add(commit)
    assert {action: commits for action, commits in pins.items() if len(commits) > 1} == {}


@pytest.mark.parametrize("step", STEPS)
def test_checkout_leaves_no_token_behind(step):
    if step.get("uses", "").startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", NAMES)
def test_no_workflow_runs_code_from_outside_with_our_rights(name):
    assert not triggers(load(name)) & {"issue_comment", "pull_request_target", "workflow_run"}


@pytest.mark.parametrize(("name", "job_name", "job"), JOBS)
def test_own_machines_run_only_what_is_on_main(name, job_name, job):
    if "self-hosted" not in labels(job):
        assert labels(job) == {"ubuntu-24.04"}
        return
    workflow = load(name)
    assert triggers(workflow) <= TRUSTED_TRIGGERS
    assert workflow[True].get("push", {"branches": ["main"]}) == {"branches": ["main"]}
    assert "github.ref == 'refs/heads/main'" in job["if"]
    assert "!github.event.repository.fork" in job["if"]
    assert writes(job["permissions"]) == set()
    assert "secrets." not in str(job)
    assert "github.token" not in str(job)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_has_no_rights_by_default(name):
    assert load(name)["permissions"] == {}


@pytest.mark.parametrize(("name", "job_name", "job"), JOBS)
def test_only_named_jobs_write(name, job_name, job):
    assert writes(job["permissions"]) == WRITES.get((name, job_name), set())


@pytest.mark.parametrize(("name", "job_name", "job"), JOBS)
def test_code_of_the_repository_never_runs_with_a_right_to_write(name, job_name, job):
    if writes(job["permissions"]):
        runs = " ".join(step.get("run", "") for step in job["steps"])
        assert "make" not in runs
        assert ".venv" not in runs


@pytest.mark.parametrize(("name", "job_name", "job"), JOBS)
def test_every_job_ends(name, job_name, job):
    assert 0 < job["timeout-minutes"] <= 360


@pytest.mark.parametrize(("name", "job_name"), [("benchmark", "measure"), ("release", "gate")])
def test_measurements_wait_for_each_other_and_are_never_cut_short(name, job_name):
    measure = load(name)["jobs"][job_name]
    assert measure["concurrency"] == {
        "group": "benchmark-${{ matrix.machine }}",
        "queue": "max",
        "cancel-in-progress": False,
    }
    assert "${{ matrix.machine }}" in labels(measure)
    assert measure["strategy"] == load("benchmark")["jobs"]["measure"]["strategy"]


def test_a_release_waits_for_the_gate_and_nothing_passes_it_by():
    jobs = load("release")["jobs"]
    assert triggers(load("release")) == {"workflow_dispatch"}
    assert jobs["release"]["needs"] == "gate"
    assert "if" not in jobs["release"]  # so it runs only after success
    decisive = [step for step in jobs["gate"]["steps"] if "run" in step]
    assert [step for step in decisive if "if" in step or "continue-on-error" in step] == []
    assert "continue-on-error" not in jobs["gate"]
    assert decisive[-1]["run"].splitlines()[-1].startswith(".venv/bin/asv-gpu gate ")
    assert "startsWith(inputs.version, 'v')" in jobs["gate"]["if"]


def test_a_release_is_the_gated_commit_or_none(tmp_path, shell):
    origin, runner = tmp_path / "origin", tmp_path / "runner"
    shell(
        f"""git init -q -b main {origin} && cd {origin} && git commit -q --allow-empty -m old && git tag v1
        git commit -q --allow-empty -m gated && git clone -q --depth 1 --no-tags file://{origin} {runner}""",
        tmp_path,
    )
    publish = script("release", "release", "Tag and publish")
    for _ in range(2):  # a second run changes nothing
        shell(f"git tag -d v2 || true\nVERSION=v2\n{publish}", runner)
        assert shell("git rev-parse v2 main", origin).split()[0] == shell("git rev-parse main", origin).strip()
    with pytest.raises(AssertionError, match=r"v1 .*already exists"):
        shell(f"VERSION=v1\n{publish}", runner)


@pytest.mark.parametrize("run", RUNS)
def test_no_expression_inside_a_script(run):
    assert "${{" not in run


@pytest.mark.parametrize("run", RUNS)
def test_a_step_is_a_command_that_runs_at_home(run):
    assert forbidden(run, make_targets((ROOT / "Makefile").read_text())) is None


@pytest.mark.parametrize(
    "run",
    [
        pytest.param("make deploy", id="no-such-target"),
        pytest.param("make", id="default-target"),
        pytest.param(".venv/bin/asv-gpu upload", id="no-such-command"),
        pytest.param(".venv/bin/pip install x", id="pip"),
        pytest.param("make check && curl x", id="after-and"),
        pytest.param("make check;curl x", id="after-semicolon"),
        pytest.param("make check\ncurl x", id="second-line"),
        pytest.param("cp a b | sh", id="pipe"),
        pytest.param("cp a b > c", id="redirection"),
        pytest.param('cp "$(curl x)" b', id="substitution"),
        pytest.param("git clone x", id="git-clone"),
        pytest.param("gh api x", id="gh-api"),
    ],
)
def test_other_commands_are_refused(run):
    assert forbidden(run, {"check"}) is not None


@pytest.mark.parametrize(
    "run",
    [
        pytest.param("make check PYTHON=python3", id="variable"),
        pytest.param("make setup check", id="two-targets"),
        pytest.param("mkdir -p a\ncp -r a/. b", id="lines"),
        pytest.param('.venv/bin/asv-gpu run \\\n  --rounds 10 -- "$COMMITS"', id="continued"),
    ],
)
def test_commands_of_the_project_are_accepted(run):
    assert forbidden(run, make_targets(".PHONY: x\nA := 1\ncheck: setup\n\ttrue\nsetup:\n")) is None


PUSH = {"before": "old", "created": False, "forced": False}


@pytest.mark.parametrize(
    ("event_name", "event", "commits", "expected"),
    [
        pytest.param("push", PUSH, None, "old..new", id="push"),
        pytest.param("push", {**PUSH, "created": True, "before": "0" * 40}, None, "new", id="first-push"),
        pytest.param("push", {**PUSH, "forced": True}, None, "new", id="forced-push"),
        pytest.param("workflow_dispatch", {}, "", "new", id="by-hand"),
        pytest.param("workflow_dispatch", {}, "v1..v2", "v1..v2", id="by-hand-with-range"),
    ],
)
def test_commits_to_measure(event_name, event, commits, expected):
    (step,) = [s for s in load("benchmark")["jobs"]["measure"]["steps"] if "COMMITS" in s.get("env", {})]
    expression = step["env"]["COMMITS"].removeprefix("${{").removesuffix("}}").strip()
    # "&&" and "||" yield an operand there as "and" and "or" do here; an absent property is null.
    absent = {"before": None, "created": None, "forced": None}
    names = {
        "github": SimpleNamespace(sha="new", event_name=event_name, event=SimpleNamespace(**{**absent, **event})),
        "inputs": SimpleNamespace(commits=commits),
        "format": str.format,
    }
    python = expression.replace("&&", "and").replace("||", "or")
    assert eval(python, {"__builtins__": {}}, names) == expected  # noqa: S307 - our own file


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs a script as a workflow step would, with nobody's settings and no network."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "gh").write_text("#!/bin/sh\n")  # hands git a token; a local remote needs none
    (stubs / "gh").chmod(0o755)
    bash = shutil.which("bash")
    path = f"{stubs}:{Path(shutil.which('git')).parent}:/usr/bin:/bin"
    environment = {
        "PATH": path,
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "MACHINE": "nvidia-h200",
        "SOURCE": "new, run 1",
        **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def run(code: str, directory: Path) -> str:
        done = subprocess.run([bash, "-ec", code], cwd=directory, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_results_accumulate_on_their_branch(tmp_path, shell):
    origin, gpu, record = tmp_path / "origin", tmp_path / "gpu", tmp_path / "record"
    shell(
        f"""git init -q -b main {origin} && cd {origin} && mkdir -p reports/results/nvidia-h200
        echo facts > reports/results/nvidia-h200/machine.json && git add . && git commit -qm main
        git switch -q --orphan benchmark-results && mkdir -p reports/results/nvidia-h200
        echo old > reports/results/nvidia-h200/old.json && git add . && git commit -qm results && git switch -q main
        git clone -q {origin} {gpu}""",
        tmp_path,
    )

    shell(script("benchmark", "measure", "Restore earlier results"), gpu)
    results = gpu / "reports/results"
    assert {path.name for path in (results / "nvidia-h200").iterdir()} == {"machine.json", "old.json"}
    (results / "nvidia-h200/new.json").write_text("new\n")
    (results / "benchmarks.json").write_text("{}\n")
    shell(script("benchmark", "measure", "Collect results"), gpu)

    (upload,) = [
        s["with"]["path"] for s in load("benchmark")["jobs"]["measure"]["steps"] if "path" in s.get("with", {})
    ]
    for expected_commits in (2, 2):  # a second run with the same results adds nothing
        shutil.rmtree(record, ignore_errors=True)
        shell(f"git clone -q -b benchmark-results {origin} {record}", tmp_path)
        shutil.copytree(gpu / upload, record / "incoming")
        shutil.copytree(gpu / upload / "nvidia-h200", record / "incoming/other-gpu")
        shell(script("benchmark", "record", "Merge results"), record)
        shell(script("benchmark", "record", "Commit and push"), record)
        tree = shell("git ls-tree -r --name-only benchmark-results", origin).split()
        assert tree == [
            "reports/results/benchmarks.json",
            "reports/results/nvidia-h200/machine.json",
            "reports/results/nvidia-h200/new.json",
            "reports/results/nvidia-h200/old.json",
        ]
        assert int(shell("git rev-list --count benchmark-results", origin)) == expected_commits


def test_dependabot_follows_actions_and_both_distributions():
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    followed = {(u["package-ecosystem"], d) for u in updates for d in u.get("directories", [u.get("directory")])}
    assert followed == {("github-actions", "/"), ("pip", "/"), ("pip", "/tracking")}
    assert all((ROOT / d.strip("/") / "pyproject.toml").is_file() for kind, d in followed if kind == "pip")


def test_the_runner_guide_names_what_the_workflow_uses():
    guide = (ROOT / "docs/runner.md").read_text()
    measure = load("benchmark")["jobs"]["measure"]
    record = load("benchmark")["jobs"]["record"]
    names = {label for label in labels(measure) if "$" not in label}
    names |= set(measure["strategy"]["matrix"]["machine"])
    names |= {step["with"]["ref"] for step in record["steps"] if "ref" in step.get("with", {})}
    names |= set(re.findall(r"vars\.(\w+)", "".join(path.read_text() for path in WORKFLOWS.values())))
    assert {name for name in names if f"`{name}`" not in guide} == set()

"""The tiny project, made once per test run and copied for each test: its wheels are built only once."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from asv_bench_gpu import runner

from tests.tracking.processes import TORCH_WITHOUT_GPU, once
from tests.tracking.tiny_project import CLOCKED_SUITE, TinyProject


@pytest.fixture(scope="session")
def _torch_without_gpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    (folder / "torch.py").write_text(TORCH_WITHOUT_GPU)
    return folder


@pytest.fixture(scope="session")
def _built(tmp_path_factory, _torch_without_gpu):
    """The project, with two commits measured in two rounds; "first" was the last one and is still installed."""

    def make():
        project = TinyProject(tmp_path_factory.mktemp("built") / "project")
        project.create()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(_torch_without_gpu))
            patch.delenv("TRITON_INTERPRET", raising=False)
            summary = project.run("root..second", rounds=2)
        return {"folder": str(project.folder), "summary": dataclasses.asdict(summary)}

    made = once(tmp_path_factory, "tiny-project", make)
    project = TinyProject(Path(made["folder"]))
    # JSON has no tuples.
    as_tuples = {key: [tuple(pair) for pair in made["summary"].pop(key)] for key in ("measured", "kept", "failures")}
    project.summary = runner.Summary(**made["summary"], **as_tuples)
    return project


@pytest.fixture
def measured(_built, _torch_without_gpu, tmp_path, monkeypatch):
    """A copy of the project with the commits "first" and "second" measured in two rounds; torch sees no GPU."""
    monkeypatch.setenv("PYTHONPATH", str(_torch_without_gpu))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("TINY_TROUBLE", raising=False)
    shutil.copytree(_built.folder, tmp_path / "project", symlinks=True)
    project = TinyProject(tmp_path / "project")
    project.summary = _built.summary
    return project


@pytest.fixture
def tiny(measured):
    """The same with nothing measured yet."""
    shutil.rmtree(measured.results)
    return measured


@pytest.fixture
def clocked(tiny):
    """That with a suite whose clock has no noise."""
    tiny.write_suite(CLOCKED_SUITE)
    return tiny


@pytest.fixture
def written(tmp_path):
    """Write a policy; returns its path."""

    def write(*parts):
        path = tmp_path / "gate.toml"
        path.write_text("".join(parts))
        return path

    return write

import importlib.metadata
import json
import os
import sys

import pytest
from asv.config import Config
from asv.environment import get_environment_class, get_environments
from asv.plugin_manager import plugin_manager
from asv_bench_gpu.environment import Inherit

from tests.tracking import processes, tiny_project

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = json.dumps(
        {
            "version": 1,
            "project": "tiny",
            "repo": ".",
            "plugins": [".asv_bench_gpu.environment"],
            "environment_type": "inherit",
            "env_dir": "environments",
        }
    )
    (tmp_path / "asv.conf.json").write_text(text)
    conf = Config.load("asv.conf.json")
    for plugin in conf.plugins:
        plugin_manager.import_plugin(plugin)
    return conf


def test_asv_finds_it_from_a_configuration(conf):
    (environment,) = get_environments(conf, None)
    assert type(environment) is Inherit


def test_asv_itself_loads_the_plugin(conf):
    script = """
from asv.config import Config
from asv.environment import get_environments
from asv.plugin_manager import plugin_manager
conf = Config.load("asv.conf.json")
for plugin in conf.plugins:
    plugin_manager.import_plugin(plugin)
print(*(environment.name for environment in get_environments(conf, None)))
"""
    assert processes.output("-c", script, cwd=os.getcwd()) == f"{tiny_project.ENVIRONMENT}\n"


def test_name_is_stable(conf):
    names = {environment.name for _ in range(2) for environment in get_environments(conf, None)}
    assert names == {tiny_project.ENVIRONMENT}
    folders = {environment.dir_name for _ in range(2) for environment in get_environments(conf, None)}
    assert len(folders) == 1


def test_figures_of_another_torch_or_triton_are_another_series(conf):
    (environment,) = get_environments(conf, None)
    assert environment.requirements == {name: importlib.metadata.version(name) for name in ("torch", "triton")}
    assert environment.python == VERSION


@pytest.mark.parametrize(
    ("python", "matches"),
    [
        pytest.param(VERSION, True, id="running"),
        pytest.param("3.1", False, id="its-prefix"),
        pytest.param("2.7", False, id="another"),
        pytest.param(f"{VERSION}.1", False, id="with-micro"),
        pytest.param("same", False, id="same"),
        pytest.param("", False, id="empty"),
    ],
)
def test_matches_only_the_running_python(conf, python, matches):
    assert Inherit.matches(python) is matches


def test_asv_does_not_take_it_for_another_python(conf):
    assert get_environment_class(conf, VERSION) is Inherit
    assert get_environment_class(conf, "2.7") is not Inherit


def test_runs_python_of_the_environment_it_creates(conf):
    (environment,) = get_environments(conf, None)
    environment.create()
    assert environment.check_presence()
    prefix = environment.run(["-c", "import sys; print(sys.prefix)"]).strip()
    assert os.path.realpath(prefix) == os.path.realpath(environment._path)
    assert environment.run(["-c", "import pytest; print(pytest.__version__)"]).strip() == pytest.__version__

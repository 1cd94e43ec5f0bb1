import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from asv_bench_gpu import inherit

from tests.tracking import processes

_OFFLINE = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.devnull}


def make_wheel(folder, name, version):
    """A wheel of one module that says its version."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


def install(environment, wheel):
    command = [environment / "bin" / "pip", "install", "--quiet", "--no-deps", wheel]
    done = subprocess.run(command, env=processes.environ(**_OFFLINE), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def ask(environment, expression, modules="demo"):
    script = f"import {modules}; print({expression})"
    return processes.output("-c", script, executable=environment / "bin" / "python").strip()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    return {version: make_wheel(folder, "demo", version) for version in ("1.0", "2.0")}


@pytest.fixture(scope="module")
def base(tmp_path_factory, wheels):
    """A virtual environment that inherits from the tests' own interpreter and has demo 1.0 itself."""
    path = tmp_path_factory.mktemp("base") / "environment"
    inherit.create(path)
    install(path, wheels["1.0"])
    return path


@pytest.fixture(scope="module")
def child(tmp_path_factory, base):
    """A virtual environment that inherits from ``base``, made by the script as the Makefile calls it."""
    folder = tmp_path_factory.mktemp("child with spaces")
    (folder / "constraints.txt").write_text("Demo==1.0\npytest==0\nnot-inherited==3\n")
    processes.output(inherit.__file__, "environment", "constraints.txt", cwd=folder, executable=base / "bin" / "python")
    return folder / "environment"


def test_sees_the_packages_of_its_base(base):
    assert ask(base, "pytest.__file__", "pytest") == pytest.__file__


def test_runs_in_an_environment_of_its_own(base):
    assert Path(ask(base, "sys.prefix", "sys")).resolve() == base.resolve()


def test_base_may_be_a_virtual_environment_itself(child):
    assert ask(child, "demo.VERSION") == "1.0"
    assert ask(child, "pytest.__version__", "pytest") == pytest.__version__


def test_plugins_of_the_base_are_distributions_there_too(child):
    expression = "{dist.name for dist in importlib.metadata.distributions()} >= {'asv_bench_gpu', 'demo'}"
    assert ask(child, expression, "importlib.metadata") == "True"


def test_constraints_are_left_without_what_is_inherited(child):
    assert (child / "constraints.txt").read_text() == "not-inherited==3\n"


def test_what_is_installed_shadows_what_is_inherited(child, base, wheels):
    install(child, wheels["2.0"])
    assert ask(child, "demo.VERSION") == "2.0"
    assert ask(child, "importlib.metadata.version('demo')", "importlib.metadata") == "2.0"
    assert Path(ask(child, "demo.__file__")).is_relative_to(child)
    assert ask(base, "demo.VERSION") == "1.0"


def test_works_for_an_interpreter_outside_any_virtual_environment(tmp_path):
    if sys.prefix == sys.base_prefix:
        pytest.skip("the tests run in no virtual environment")
    executable = os.path.realpath(sys.executable)
    # Without -m pip in the base there is nothing to inherit that every interpreter has.
    if processes.python("-c", "import pip", executable=executable).returncode:
        pytest.skip("that interpreter has no pip")
    (tmp_path / "constraints.txt").write_text("")
    processes.output(inherit.__file__, "environment", "constraints.txt", cwd=tmp_path, executable=executable)
    environment = tmp_path / "environment"
    seen = ask(environment, "pip.__file__", "pip")
    assert seen == processes.output("-c", "import pip; print(pip.__file__)", executable=executable).strip()
    install(environment, make_wheel(tmp_path, "demo", "3.0"))
    assert ask(environment, "demo.VERSION") == "3.0"


@pytest.mark.parametrize("name", ["pytest-xdist", "pytest_xdist", "Pytest.XDIST", "pytest--_xdist"])
def test_constraints_drop_inherited_packages_however_spelt(name):
    assert inherit.without_inherited(f"{name}==1.0\n") == ""


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("# a comment\n", id="comment"),
        pytest.param("\n", id="empty"),
        pytest.param("no-such-package==1.0\n", id="not-inherited"),
        pytest.param("pytest-xdist-extra==1.0\n", id="inherited-is-a-prefix"),
        pytest.param("xdist==1.0\n", id="inherited-is-a-suffix"),
        pytest.param("last-line==1", id="no-newline"),
    ],
)
def test_constraints_keep_every_other_line(line):
    assert inherit.without_inherited(line) == line


def test_constraints_keep_their_order():
    text = "b-not-here==2\npytest==1\na-not-here==1\nasv==0\n"
    assert inherit.without_inherited(text) == "b-not-here==2\na-not-here==1\n"


def test_script_needs_nothing_but_the_standard_library():
    shown = processes.output("-S", "-I", "-c", f"import runpy; runpy.run_path({inherit.__file__!r}); print('ok')")
    assert shown == "ok\n"


def test_site_directories_exist_and_hold_packages():
    directories = inherit.site_directories()
    assert any(Path(directory, "pytest").is_dir() for directory in directories)
    assert all(Path(directory).is_dir() for directory in directories)

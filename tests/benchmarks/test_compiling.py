import contextlib
import functools
import itertools
import shutil
from pathlib import Path

import pytest
import triton

import moe_align
from benchmarks import compiling, flat, order, verification
from benchmarks.shapes import MODELS, TOKENS
from tests.tracking import processes


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def started(monkeypatch):
    """Commands of the processes that would have been started."""
    commands = []

    class Process:
        def __init__(self, command, **options):
            assert options["env"]["PYTHONPATH"]
            commands.append(command)

        def wait(self):
            return 1  # what a share cannot compile is not its business

    monkeypatch.setattr(compiling.subprocess, "Popen", Process)
    monkeypatch.setattr(compiling.os, "sched_getaffinity", lambda _: {0, 4, 5})
    return commands


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shares_make_every_call_once(monkeypatch, number):
    made = []
    monkeypatch.setattr(
        compiling.verification,
        "cases",
        lambda device: ((name, functools.partial(made.append, name)) for name in "abcde"),
    )
    monkeypatch.setattr(compiling, "suite_calls", lambda device: iter([lambda: made.append("f")]))
    for share in range(number):
        compiling.launch_share("cpu", share, number)
    assert sorted(made) == list("abcdef")


def test_a_call_that_fails_does_not_end_a_share(monkeypatch):
    made = []
    cases = [("wrong", lambda: 1 / 0), ("right", lambda: made.append("right"))]
    monkeypatch.setattr(compiling.verification, "cases", lambda device: iter(cases))
    monkeypatch.setattr(compiling, "suite_calls", lambda device: iter([]))
    compiling.launch_share("cpu", 0, 1)
    assert made == ["right"]


def test_every_shape_of_the_suites_is_called(monkeypatch):
    called = {"align_rows": [], "align_blocks": [], "align_offsets": []}
    for name, calls in called.items():
        record = lambda ids, *arguments, calls=calls, **options: calls.append((*ids.shape, *options.values()))  # noqa: E731
        monkeypatch.setattr(moe_align, name, record)
    for call in compiling.suite_calls("cpu"):
        call()
    assert called["align_rows"] == [
        (tokens, MODELS[model].top_k, option)
        for model, tokens in itertools.product(MODELS, TOKENS)
        for option in (
            "deterministic",
            "atomic",
            *(order.untuned(model, tokens, name) for name in order.tried(model, tokens)),
        )
    ]
    layouts, models, tokens = flat.Layouts.params
    shapes = [(num_tokens, MODELS[model].top_k) for model, num_tokens in itertools.product(models, tokens)]
    assert called["align_offsets"] == shapes
    assert called["align_blocks"] == shapes * (len(layouts) - 1)


def test_a_commit_without_flat_layouts_or_strategies_has_the_rows(monkeypatch):
    monkeypatch.delattr(moe_align, "align_blocks")
    monkeypatch.setattr(compiling.verification, "strategies", list)
    assert len(list(compiling.suite_calls("cpu"))) == 2 * len(MODELS) * len(TOKENS)


def test_one_process_a_core(started):
    compiling.ahead("cpu")
    assert [command[-3:] for command in started] == [["cpu", str(share), "3"] for share in range(3)]


@contextlib.contextmanager
def changed(monkeypatch, tmp_path, module, name):
    """The module's folder, with another text in a file."""
    folder = shutil.copytree(Path(module.__file__).parent, tmp_path / module.__name__)
    (folder / name).write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(module, "__file__", str(folder / Path(module.__file__).name))
        yield


def is_first():
    with compiling.first_time() as first:
        return first


def test_once_a_package_and_its_verifications(cache, monkeypatch, tmp_path):
    assert (is_first(), is_first()) == (True, False)
    with changed(monkeypatch, tmp_path, moe_align, "kernels/scan.py"):
        assert (is_first(), is_first()) == (True, False)
    with changed(monkeypatch, tmp_path, verification, "verification.py"):
        assert (is_first(), is_first()) == (True, False)
    assert not is_first()


def test_what_fails_is_done_again(cache):
    with pytest.raises(KeyError), compiling.first_time():
        raise KeyError
    assert (is_first(), is_first()) == (True, False)


def test_a_share_is_a_command():
    path = [processes.ROOT / "src", processes.ROOT]
    assert processes.output("-m", "benchmarks.compiling", "cpu", "0", "10000", path=path) == ""

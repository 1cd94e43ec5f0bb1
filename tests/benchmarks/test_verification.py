"""The gate bites: each of these mistakes must keep a commit from having figures."""

import contextlib
import json
import re
import subprocess
import sys

import pytest
from asv_bench_gpu import inherit
from asv_bench_gpu.verification import Unavailable

from benchmarks import compiling, verification
from moe_align import strategy
from tests.benchmarks import gate_script
from tests.tracking import processes

ROOT = processes.ROOT


@pytest.fixture(autouse=True)
def nothing_verified_yet():
    """What another test of the process verified must not serve the next."""
    verification.verified_on_gpu.cache_clear()
    yield
    verification.verified_on_gpu.cache_clear()


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    def make():
        folder = tmp_path_factory.mktemp("mutants")
        script = ROOT / "tests" / "benchmarks" / "gate_script.py"
        return json.loads(processes.output(script, folder, path=[ROOT], TRITON_INTERPRET="1"))

    return processes.once(tmp_path_factory, "gate-verdicts", make)


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        pytest.param("rank-off-by-one", "slot_index[", id="rank-off-by-one"),
        pytest.param("order-reversed-in-a-row", "slot_index[", id="order-reversed-in-a-row"),
        pytest.param("ids-not-dropped", "counts[", id="ids-not-dropped"),
        pytest.param("counts-not-written", "counts[0] is -7", id="counts-not-written"),
        pytest.param("counts-of-the-last-expert-not-written", "counts[4] is -7", id="last-count-not-written"),
        pytest.param("weights-of-slot-0", "weights[", id="weights-of-another-slot"),
        pytest.param("last-slot-dropped", "counts[", id="last-slot-dropped"),
        pytest.param("one-written-beyond-the-counts", "written beyond the counts", id="written-beyond-the-counts"),
        pytest.param(
            "ids-past-the-end-claimed",
            "5 experts, {'EXPERT_BLOCK': 4, 'BLOCK_SIZE': 64}: written outside",
            id="ids-past-the-end-claimed",
        ),
        pytest.param("sift-forgets-the-hits-of-earlier-warps", "deterministic sift, ", id="sift-earlier-warps"),
        pytest.param("sift-forgets-the-earlier-hits-of-a-lane", "deterministic sift, ", id="sift-earlier-hits"),
        pytest.param("sift-takes-only-the-hits-loaded-ahead", "deterministic sift, ", id="sift-loaded-ahead"),
        pytest.param("sift-counts-itself-among-many-hits", "deterministic sift, one expert", id="sift-many-hits"),
        pytest.param("collect-reverses-the-hits-of-a-lane", "deterministic collect, ", id="collect-reverses"),
        pytest.param("collect-counts-itself", "deterministic collect, ", id="collect-itself"),
        pytest.param(
            "collect-places-only-the-first-of-a-long-list", "deterministic collect, one expert", id="collect-long-list"
        ),
        pytest.param("tiles-keep-their-counts", "deterministic tiles, ", id="tiles-keep-their-counts"),
        pytest.param("tiles-reverse-a-tile", "deterministic tiles, ", id="tiles-reverse-a-tile"),
        pytest.param("tiles-forget-the-smaller-experts", "deterministic tiles, ", id="tiles-smaller-experts"),
        pytest.param("tiles-ids-not-dropped", "deterministic tiles, ", id="tiles-ids-not-dropped"),
        pytest.param("atomic-weights-of-slot-0", "atomic, ", id="atomic-weights-of-another-slot"),
        pytest.param("atomic-ids-not-dropped", "atomic, ", id="atomic-ids-not-dropped"),
        pytest.param("regions-one-too-far", "offsets[0] is 1, expected 0", id="regions-one-too-far"),
        pytest.param("regions-padding-not-written", "sorted_token_ids[", id="regions-padding-not-written"),
        pytest.param("regions-tail-not-written", "slots[0] is -7", id="regions-tail-not-written"),
        pytest.param("regions-labels-of-the-next-expert", "expert_ids[0] is 1, expected 0", id="regions-labels"),
        pytest.param(
            "regions-of-ids-outside-the-range", "sorted_token_ids[22] is 8", id="regions-ids-outside-the-range"
        ),
        pytest.param("regions-start-after-their-own-slots", "offsets, 3 x 3", id="regions-own-slots"),
        pytest.param("regions-of-columns-start-after-their-own-slots", "offsets, 1031 x 2", id="regions-of-columns"),
        pytest.param("regions-of-many-slots-not-padded", "blocks of 4, 127 x 1", id="regions-many-padding"),
        pytest.param("regions-forget-what-was-counted-before", "blocks of 4, ", id="regions-counted-before"),
        pytest.param("regions-count-one-too-many", "blocks of 4, ", id="regions-one-too-many"),
        pytest.param("pairs-count-the-slot-itself", "blocks of 4, 3 x 3", id="pairs-itself"),
        pytest.param("pairs-open-one-block-an-expert", "blocks of 4, 8 x 8", id="pairs-one-block"),
        pytest.param("pairs-forget-full-blocks", "blocks of 4, 8 x 8", id="pairs-full-blocks"),
        pytest.param("pairs-place-dropped-slots", "blocks of 4, ", id="pairs-dropped"),
        pytest.param("pairs-labels-of-the-next-expert", "expert_ids[0] is 1, expected 0", id="pairs-labels"),
        pytest.param("pairs-last-place-not-written", "is -7, expected", id="pairs-last-place"),
        pytest.param("reference-order-reversed", "slot_index[", id="reference-order-reversed"),
    ],
)
def test_a_mistake_fails_verification(verdicts, name, difference):
    assert verdicts[name] is not None
    assert verdicts[name].startswith("VerificationError: ")
    assert difference in verdicts[name]


def test_a_kernel_that_raises_does_not_pass(verdicts):
    assert "no_such_function" in verdicts["kernel-raises"]


@pytest.mark.parametrize("who", ["atomic", *(f"deterministic {name}" for name in strategy.strategies("deterministic"))])
def test_ids_of_both_types_are_compared(monkeypatch, who):
    def types(interpreting):
        monkeypatch.setattr(verification, "_is_interpreting", lambda: interpreting)
        found = (re.fullmatch(rf"{who}, (.*) (torch.int\d\d) of .*", what) for what, _ in verification.cases("cpu"))
        return [match.groups() for match in found if match and "of 4" not in match[1] and "offsets" not in match[1]]

    each = types(False)
    assert {size for size, kind in each if kind == "torch.int32"} == {
        size for size, kind in each if kind == "torch.int64"
    }
    fewer = types(True)
    assert len(fewer) == len(verification._SIZES) == len(each) / 2
    assert {kind for _, kind in fewer} == {"torch.int32", "torch.int64"}


def test_every_mutant_is_judged(verdicts):
    assert set(verdicts) == set(gate_script.MUTANTS)


class Environment:
    """A virtual environment with a copy of the package, as asv makes one for a commit."""

    def __init__(self, folder, source):
        inherit.create(folder)
        self.python = folder / "bin" / "python"
        query = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = processes.output("-c", query, executable=self.python).strip()
        with open(f"{site}/moe_align.pth", "w") as file:
            file.write(f"{source}\n")

    def verify_interpreted(self, *what):
        script = f"""
from benchmarks.verification import interpreted
with interpreted(*{what!r}) as interpreter:
    print(interpreter().comparisons)
"""
        return processes.python("-c", script, executable=self.python, cwd=ROOT)


def test_the_package_passes_with_many_comparisons(tmp_path):
    done = Environment(tmp_path / "environment", ROOT / "src").verify_interpreted("comparisons", "stores")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 50


def test_a_kernel_that_raises_fails_verification_without_a_gpu(tmp_path):
    gate_script.mutate(gate_script.MUTANTS["kernel-raises"], tmp_path / "source")
    done = Environment(tmp_path / "environment", tmp_path / "source").verify_interpreted("comparisons")
    assert done.returncode != 0
    assert "VerificationError: Triton's interpreter ended with code 1\n" in done.stderr
    assert "no_such_function" in done.stderr


def test_the_module_fails_as_a_command_when_the_package_is_missing():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.verification", "comparisons"],
        cwd=ROOT,
        env=processes.environ(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "No module named 'moe_align'" in done.stderr


def test_a_package_from_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ASV_ENV_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"moe_align comes from .*src.*, not from the environment of the commit"):
        verification.assert_installed()


@pytest.mark.parametrize("folder", ["sr", "src/moe_alig", "src/moe_align/__init__.py"])
def test_a_name_that_begins_alike_is_elsewhere_too(monkeypatch, folder):
    monkeypatch.setenv("ASV_ENV_DIR", str(ROOT / folder))
    with pytest.raises(RuntimeError, match="not from the environment"):
        verification.assert_installed()


def test_the_environments_own_package_is_accepted(monkeypatch):
    monkeypatch.setenv("ASV_ENV_DIR", str(ROOT / "src"))
    verification.assert_installed()
    monkeypatch.delenv("ASV_ENV_DIR")
    verification.assert_installed()


@pytest.mark.parametrize("suite", [verification.OnGpu, verification.OnCpu])
def test_suites_refuse_a_package_from_elsewhere(tmp_path, monkeypatch, suite):
    monkeypatch.setenv("ASV_ENV_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="not from the environment"):
        suite().setup_cache()


@pytest.mark.parametrize("suite", [verification.OnGpu, verification.OnCpu])
def test_suites_fail_when_a_comparison_does(monkeypatch, suite):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compiling, "first_time", lambda: contextlib.nullcontext(False))
    monkeypatch.setattr(verification, "comparisons", lambda device: [(f"on {device}", "differs")])
    device = "cuda" if suite is verification.OnGpu else "cpu"
    with pytest.raises(verification.VerificationError, match=f"on {device}: differs"):
        suite().setup_cache()


@pytest.mark.parametrize("first", [True, False])
def test_the_interpreter_is_asked_once_a_package_and_must_agree(monkeypatch, first):
    def differs():
        raise verification.VerificationError("stores: 3 elements were written more than once")

    asked = []
    monkeypatch.setattr(compiling, "ahead", lambda: asked.append("compiled"))
    monkeypatch.setattr(compiling, "first_time", lambda: contextlib.nullcontext(first))
    monkeypatch.setattr(verification, "interpreted", lambda *what: contextlib.nullcontext(differs))
    monkeypatch.setattr(verification, "comparisons", lambda device: [("a", None)])
    if first:
        with pytest.raises(verification.VerificationError, match="written more than once"):
            verification.verified_on_gpu()
    else:
        assert verification.verified_on_gpu().comparisons == 1
    assert asked == ["compiled"] * first


def test_without_a_gpu_the_suite_is_unavailable(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(verification.OnGpu().setup_cache(), Unavailable)


@pytest.mark.gpu
def test_the_package_passes_on_the_gpu():
    assert verification.OnGpu().setup_cache().comparisons >= 50


def test_experts_processed_twice_fail_verification(tmp_path):
    # Wrapping around repeats the same stores, so no result shows it: the stores themselves are looked at.
    wrapped = gate_script.mistake(
        gate_script.SCAN,
        (
            "hits = owned_by(ids, first, num_owned, EXPERT_BLOCK)",
            "wrapped = (ids - first + num_experts) % num_experts\n"
            "        hits = (ids >= 0) & (ids < num_experts) & (wrapped < EXPERT_BLOCK)",
        ),
        ("local = (ids - first).to(tl.int32)", "local = wrapped.to(tl.int32)"),
        ("+ local * num_slots", "+ ((first + local) % num_experts - first) * num_slots"),
        (
            "counts_ptr + first + owned, counts, mask=owned < num_owned",
            "counts_ptr + (first + owned) % num_experts, counts",
        ),
    )
    gate_script.mutate(wrapped, tmp_path / "source")
    done = Environment(tmp_path / "environment", tmp_path / "source").verify_interpreted("stores")
    assert done.returncode != 0
    assert "stores, 5 experts" in done.stderr
    assert "elements were written more than once" in done.stderr

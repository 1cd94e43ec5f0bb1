import contextlib
import json

import pytest
import torch

from benchmarks import codegen as suite
from benchmarks import verification
from tests.tracking import processes

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
#: Of this commit; the suite also names one of earlier commits.
KERNELS = set(suite.KERNELS) - {"count_experts_kernel"}
DTYPES = [f"{ids} {weights}" for ids in ("int32", "int64") for weights in ("float32", "float16", "bfloat16")]
each_target = pytest.mark.parametrize("target", TARGETS)
each_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: dtypes.replace(" ", "-"))
DETERMINISTIC = ["scan", "sift", "collect", "tiles"]
FLAT = [
    "blocks",
    "blocks-weights",
    "blocks-map",
    "blocks-labels",
    "blocks-remote-first",
    "blocks-4096-experts",
    "offsets",
]
# In this order one process of pytest compiles the one while the other compiles the other.
each_part = pytest.mark.parametrize("part", [*DETERMINISTIC, "atomic"])
each_flat_layout = pytest.mark.parametrize("layout", FLAT)
each_deterministic = pytest.mark.parametrize("part", DETERMINISTIC)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """What code is generated for a strategy; no GPU needed, and none of Triton's interpreter."""

    def generated(*parts):
        script = processes.ROOT / "tests" / "benchmarks" / "codegen_suite_script.py"
        make = lambda: json.loads(processes.output(script, *parts, path=[processes.ROOT / "src", processes.ROOT]))  # noqa: E731
        return processes.once(tmp_path_factory, f"codegen-suite-{parts[0]}", make)

    return lambda part: generated("atomic", "schedule", "pairs", "columns") if part == "atomic" else generated(part)


@each_dtype
@each_part
def test_compiles_without_spilling(generated, part, dtypes):
    for target, launches in generated(part)[f"{part} {dtypes}"].items():
        assert launches, target
        for launch in launches:
            assert launch["spill_bytes"] == 0, (target, launch)
            assert 1 <= launch["registers"] <= 255, (target, launch)
            assert launch["instructions"] > 10, (target, launch)


@each_dtype
@each_deterministic
def test_deterministic_code_has_no_atomic_instruction_on_global_memory(generated, part, dtypes):
    for target, launches in generated(part)[f"{part} {dtypes}"].items():
        assert [launch["atomics"] for launch in launches] == [0] * len(launches), target


@each_flat_layout
@each_deterministic
def test_flat_layouts_compile_without_spilling_or_atomics_on_global_memory(generated, part, layout):
    for target, launches in generated(f"flat:{part}")[f"flat:{part} {layout}"].items():
        assert launches, target
        for launch in launches:
            assert (launch["spill_bytes"], launch["atomics"]) == (0, 0), (target, launch)
            assert 1 <= launch["registers"] <= 255, (target, launch)


@pytest.mark.parametrize("layout", [layout for layout in FLAT if layout != "offsets"])
def test_pairs_compile_without_spilling_or_any_atomics(generated, layout):
    for target, (launch,) in generated("atomic")[f"pairs {layout}"].items():
        assert (launch["spill_bytes"], launch["atomics"], launch["shared_atomics"]) == (0, 0, 0), target
        assert 1 <= launch["registers"] <= 128, target


@each_part
def test_every_strategy_is_compiled_for_every_target(generated, part):
    of_rows = [generated(part)[f"{part} {dtypes}"] for dtypes in ("int32 float32", "int64 bfloat16")]
    if part == "atomic":
        of_flat_layouts = [generated(part)["pairs blocks"], generated(part)["schedule"]]
    else:
        of_flat_layouts = [generated(f"flat:{part}")[f"flat:{part} {layout}"] for layout in ("blocks", "offsets")]
    assert [sorted(compiled) for compiled in of_rows + of_flat_layouts] == [sorted(TARGETS)] * 4


def test_launches_that_overlap_wait_before_they_read_or_write(generated):
    launches = generated("overlap")["overlap"]
    assert {launch["kernel"] for launch in launches} == KERNELS - {"schedule_blocks_kernel"}
    for launch in launches:
        opcodes = launch["opcodes"]
        assert launch["spill_bytes"] == 0, launch
        assert (opcodes.count("ACQBULK"), opcodes.count("PREEXIT")) == (1, 1), launch
        if launch["first"]:
            # The first of several starts when all before it has ended, so that the others may read the inputs early.
            assert launch["early"] == (launch["alone"] and not launch["zeroed"]), launch
            assert opcodes[:2] == ["ACQBULK", "PREEXIT"], launch
        else:
            assert launch["early"], launch
            before, after = opcodes[: opcodes.index("ACQBULK")], opcodes[opcodes.index("ACQBULK") :]
            assert before[0] == "PREEXIT", launch
            # But for its list, which is nobody else's.
            written_early = {"STG"} if launch["kernel"] == "align_rows_collect_kernel" else set()
            assert set(before) <= {"PREEXIT", "LDG"} | written_early, launch
            assert {"LDG", "STG"} <= set(after), launch


def test_a_warp_keeps_its_slots_where_they_were_loaded(generated):
    opcodes = generated("atomic")["columns"]
    assert {"LDG", "SHFL", "STG"} <= set(opcodes)
    # Moves between threads, and what waits for them.
    assert not {"LDS", "STS", "BAR"} & set(opcodes)


@each_dtype
def test_the_baseline_has_one(generated, dtypes):
    # Which shows that the count would see one in the others.
    for target, launches in generated("atomic")[f"atomic {dtypes}"].items():
        assert sum(launch["atomics"] for launch in launches) >= 1, target


@each_target
def test_the_schedule_compiles_without_atomics_or_spills(generated, target):
    (launch,) = generated("atomic")["schedule"][target]
    assert (launch["atomics"], launch["shared_atomics"], launch["spill_bytes"]) == (0, 0, 0)


def test_the_suite_covers_every_kernel(generated):
    shown = generated("atomic")
    assert shown["kernels"] != []
    assert shown["covered"] == shown["kernels"]


def test_the_suite_measures_every_target(generated):
    assert suite.TARGETS == TARGETS == generated("atomic")["targets"]


def test_every_strategy_is_compiled_here(generated):
    assert generated("atomic")["strategies"] == sorted([*DETERMINISTIC, "atomic"])


def test_every_kernel_has_a_name_in_the_suite(generated):
    assert sorted(KERNELS) == generated("atomic")["kernels"]


def test_on_a_gpu_the_kernels_are_verified_there(monkeypatch):
    def differs():
        raise verification.VerificationError("on the GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(suite, "verified_on_gpu", differs)
    with pytest.raises(verification.VerificationError, match="on the GPU"):
        suite.Kernels().setup_cache()


def test_a_kernel_that_does_not_compile_is_judged_by_its_verification(monkeypatch):
    @contextlib.contextmanager
    def interpreted(*what):
        yield differs

    def differs():
        raise verification.VerificationError("in the interpreter")

    def does_not_compile():
        raise AttributeError("no_such_function")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(suite, "assert_installed", lambda: None)
    monkeypatch.setattr(suite, "interpreted", interpreted)
    monkeypatch.setattr(suite, "_compile_all", does_not_compile)
    with pytest.raises(verification.VerificationError, match="in the interpreter"):
        suite.Kernels().setup_cache()

import functools
import json

import pytest

from tests.tracking import processes

NVIDIA = ["sm_80", "sm_90", "sm_100"]
TARGETS = [*NVIDIA, "gfx942"]
# Parts of the script that share a process: Triton takes a second to import.
_GROUPS = [["records", "types"], ["gfx942", "sm_100"], ["sm_80", "sm_90", "spills"]]


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """What `codegen_script` prints of a part; without Triton's interpreter, which the tests themselves may use."""

    @functools.cache
    def part(name):
        (group,) = (group for group in _GROUPS if name in group)
        script = processes.ROOT / "tests" / "tracking" / "codegen_script.py"
        make = lambda: json.loads(processes.output(script, *group))  # noqa: E731
        return processes.once(tmp_path_factory, f"codegen-{group[0]}", make)[name]

    return part


def test_records_kernels_with_arguments_by_name_and_options_apart(part):
    assert part("records")["both"] == [
        {
            "kernel": "copy_kernel",
            "arguments": {"source_ptr": "torch.float32", "target_ptr": "torch.float32", "size": 8, "TILE": 16},
            "options": {"num_warps": 2},
        },
        {
            "kernel": "count_kernel",
            "arguments": {"ids_ptr": "torch.int32", "counts_ptr": "torch.int32", "size": 8, "TILE": 16},
            "options": {},
        },
    ]


def test_records_launch_options(part):
    (launch,) = part("records")["options"]
    assert launch["options"] == {"num_warps": 8, "num_stages": 2}


def test_a_recorded_launch_is_not_carried_out(part):
    assert part("records")["carried_out"] is False


def test_nothing_launched_raises(part):
    assert part("records")["nothing"] == "no Triton kernel was launched"


def test_launches_work_again_after_an_exception(part):
    assert part("records")["restored"] is True


@pytest.mark.parametrize(("case", "type_"), [("int32", "i32"), ("int64", "i64")], ids=["up-to-2**31-1", "from-2**31"])
def test_integers_are_as_wide_as_their_value_needs(part, case, type_):
    assert part("types")[case]["signature"]["size"] == type_


@pytest.mark.parametrize(
    ("dtype", "pointer"), [("torch.int64", "*i64"), ("torch.float16", "*fp16"), ("torch.bfloat16", "*bf16")]
)
def test_pointers_have_the_tensors_type(part, dtype, pointer):
    signature = part("types")[dtype]["signature"]
    assert signature == {"source_ptr": pointer, "target_ptr": pointer, "size": "i32", "TILE": "constexpr"}


@pytest.mark.parametrize(
    ("case", "integers"),
    [("torch.int64", []), ("multiple-of-16", ["size"]), ("int64", ["size"])],
    ids=["1000", "1024", "2**31"],
)
def test_divisible_by_16_as_triton_specialises(part, case, integers):
    assert part("types")[case]["divisible"] == [*integers, "source_ptr", "target_ptr"]


def test_tuples_none_and_defaults_are_what_triton_makes_of_them(part):
    seen = part("types")["tuple"]
    assert seen["signature"] == {
        "source_ptr": "*i32",
        "pair": ["*i32", "i32", "constexpr", "constexpr"],
        "missing": "constexpr",
        "FACTOR": "constexpr",
    }
    assert seen["constants"] == {"1.2": None, "1.3": 64, "2": None, "3": 3}
    assert seen["divisible"] == ["pair.0", "pair.1", "source_ptr"]


@pytest.mark.parametrize("target", TARGETS)
def test_reads_resources_of_every_target(part, target):
    resources = part(target)
    for kernel in ("copy", "count", "prefix"):
        assert 1 <= resources[kernel]["registers"] <= 255
        assert 5 <= resources[kernel]["instructions"] <= 1000
        assert resources[kernel]["spill_bytes"] == 0
    # One warp copies what four did: more elements, hence more registers and instructions, each.
    assert resources["wide"]["registers"] > resources["copy"]["registers"]
    assert resources["wide"]["instructions"] > resources["copy"]["instructions"]


@pytest.mark.parametrize("target", TARGETS)
def test_instructions_are_in_the_order_of_the_code(part, target):
    load, store, end = ("LDG", "STG", "EXIT") if target in NVIDIA else ("global_load", "global_store", "s_endpgm")
    opcodes = part(target)["opcodes"]
    assert len(opcodes) == part(target)["copy"]["instructions"]
    first = {name: next(i for i, opcode in enumerate(opcodes) if opcode.startswith(name)) for name in (load, store)}
    assert first[load] < first[store]
    assert any(opcode.startswith(end) for opcode in opcodes[first[store] :])


@pytest.mark.parametrize("target", TARGETS)
def test_shared_memory_is_that_of_one_float_per_warp(part, target):
    assert part(target)["copy"]["shared_bytes"] == 0
    assert part(target)["prefix"]["shared_bytes"] == 4 * 4


@pytest.mark.parametrize("target", TARGETS)
def test_counts_atomic_instructions(part, target):
    assert part(target)["count"]["atomics"] >= 1
    assert part(target)["count"]["shared_atomics"] == 0
    assert part(target)["copy"]["atomics"] == part(target)["prefix"]["atomics"] == 0


def test_detects_spills(part):
    squeezed, roomy = part("spills")["squeezed"], part("spills")["roomy"]
    assert squeezed["registers"] <= 32
    # 256 floats in one thread, of which 32 registers hold few.
    assert squeezed["spill_bytes"] >= 4 * 128
    assert roomy["spill_bytes"] == 0


@pytest.mark.parametrize(
    ("instruction", "spilled"), [("STL [R1], R2 ;", 8), ("@P0 LDL R2, [R1] ;", 8), ("STG.E desc[UR4][R2.64], R3 ;", 0)]
)
def test_a_frame_that_nothing_is_stored_to_is_no_spill(monkeypatch, instruction, spilled):
    from asv_bench_gpu import codegen

    outputs = {"-res-usage": "REG:40 STACK:8 SHARED:0", "-c": f"        /*0010*/                   {instruction}\n"}
    monkeypatch.setattr(codegen, "_examine", lambda cubin, tool, option: outputs[option])
    assert codegen._read_nvidia(b"", shared_bytes=0).spill_bytes == spilled


def test_module_imports_neither_torch_nor_triton():
    script = "import sys, asv_bench_gpu.codegen; print({'torch', 'triton'} & set(sys.modules))"
    assert processes.output("-c", script) == "set()\n"


@pytest.mark.gpu
@pytest.mark.parametrize(("tile", "num_warps"), [(256, 4), (1024, 1), (1024, 8)])
def test_resources_are_those_of_the_kernel_that_runs(tile, num_warps):
    import torch
    from asv_bench_gpu import codegen

    from tests.tracking import codegen_script

    major, minor = torch.cuda.get_device_capability()
    target = f"sm_{major}{minor}"
    if target not in codegen.TARGETS:
        pytest.skip(f"no target {target}")
    tensors = [torch.zeros(tile, device="cuda") for _ in range(2)]

    def launch():
        return codegen_script.prefix_kernel[(1,)](*tensors, TILE=tile, num_warps=num_warps)

    (recorded,) = codegen.record(launch)
    predicted = codegen.resources(recorded, target)
    compiled = launch()
    assert (predicted.registers, predicted.shared_bytes) == (compiled.n_regs, compiled.metadata.shared)

import contextlib
import json
import struct
import sys
import types

import pytest
from asv_bench_gpu import clock, device, fingerprint

from tests.tracking import processes

_KERNEL = """\
import triton
import triton.language as tl


@triton.jit
def double(source_ptr, target_ptr, size, TILE: tl.constexpr):
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    values = tl.load(source_ptr + places, mask=places < size)
    tl.store(target_ptr + places, 2 * values, mask=places < size)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What is said of the kernel, of the same one in another file and at other lines, and of one that triples."""
    folder = tmp_path_factory.mktemp("kernels")
    sources = {"one": _KERNEL, "moved": "# A line more.\n\n" + _KERNEL, "other": _KERNEL.replace("2 *", "3 *")}
    for name, source in sources.items():
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(source)
    script = processes.ROOT / "tests" / "tracking" / "fingerprint_script.py"
    paths = [folder / name / f"{name}.py" for name in sources]
    found = json.loads(processes.output(script, *paths, TRITON_CACHE_DIR=str(folder / "cache")))
    return dict(zip(sources, found, strict=True))


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_lines_and_paths_change_the_binary_and_not_what_is_loaded(compiled, target):
    one, moved, other = (compiled[name][target] for name in ("one", "moved", "other"))
    assert one["binary"] != moved["binary"]
    assert one["loaded"] == moved["loaded"]
    assert one["loaded"] != other["loaded"]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_warps_are_part_of_a_compiled_kernel(compiled, target):
    assert compiled["one"][target]["kernel"] != compiled["one"][target]["two warps"]


def elf(*sections):
    """As much of an ELF file as is read: sections of (type, flags, data)."""
    header, size = 0x40, 0x40
    place = header + size * len(sections)
    table, data = b"", b""
    for kind, flags, content in sections:
        table += struct.pack("<IIQQQQIIQQ", 0, kind, flags, 0, place + len(data), len(content), 0, 0, 0, 0)
        data += content
    head = bytearray(header)
    struct.pack_into("<Q", head, 0x28, header)
    struct.pack_into("<HH", head, 0x3A, size, len(sections))
    return bytes(head) + table + data


CODE, CONSTANTS, DEBUG = (1, 6, b"code"), (1, 2, b"constants"), (1, 0, b"lines")


@pytest.mark.parametrize(
    ("sections", "same"),
    [
        pytest.param([CODE, CONSTANTS, (1, 0, b"other lines")], True, id="lines"),
        pytest.param([DEBUG, CODE, CONSTANTS], True, id="place-in-the-file"),
        pytest.param([(1, 6, b"cod3"), CONSTANTS, DEBUG], False, id="code"),
        pytest.param([CODE, (1, 2, b"constant5"), DEBUG], False, id="constants"),
        pytest.param([CODE, DEBUG], False, id="no-constants"),
        pytest.param([CODE, CONSTANTS, (8, 3, b""), DEBUG], False, id="shared-memory"),
    ],
)
def test_what_is_loaded(sections, same):
    assert (fingerprint._loaded(elf(*sections)) == fingerprint._loaded(elf(CODE, CONSTANTS, DEBUG))) == same


class Tensor:
    def __init__(self, address, shape=(8,), dtype="torch.float32"):
        self.address, self.shape, self.dtype = address, shape, dtype

    def data_ptr(self):
        return self.address

    def stride(self):
        return (1,) * len(self.shape)


class constexpr:  # noqa: N801  (Triton's own spelling)
    def __init__(self, value):
        self.value = value


class Gpu:
    """Stands for Triton's launches and the graph they are captured in."""

    def __init__(self, monkeypatch):
        self.unknown_nodes = 0
        self.captured = self.launched = 0
        gpu = self

        class JITFunction:
            def __init__(self, code=b"code", **metadata):
                metadata = types.SimpleNamespace(**{"num_warps": 4, "shared": 0, **metadata})
                self.compiled = types.SimpleNamespace(kernel=elf((1, 6, code)), n_regs=32, metadata=metadata)

            def run(self, *args, grid, warmup, **kwargs):
                if callable(grid):
                    grid(kwargs)
                gpu.launched += not warmup
                return self.compiled

        self.kernel = JITFunction
        self.run = JITFunction.run
        self.hooks = set()
        knobs = types.SimpleNamespace(runtime=types.SimpleNamespace(launch_enter_hook=self.hooks))
        jit = types.SimpleNamespace(JITFunction=JITFunction, knobs=knobs)
        monkeypatch.setitem(sys.modules, "triton.runtime.jit", jit)

        class Autotuner:
            def __init__(self, kernel):
                self.kernel = kernel

            def run(self, *args, **kwargs):
                return self.kernel.run(*args, **kwargs)

        self.tuner, self.tuned_run = Autotuner, Autotuner.run
        monkeypatch.setitem(sys.modules, "triton.runtime.autotuner", types.SimpleNamespace(Autotuner=Autotuner))
        monkeypatch.setattr(device, "is_present", lambda: True)
        monkeypatch.setattr(clock, "side_stream", lambda: contextlib.nullcontext("stream"))
        monkeypatch.setattr(clock, "capture", self.capture)
        monkeypatch.setattr(fingerprint, "_nodes", lambda graph: graph)

    def capture(self, call, calls, stream, *, keep_graph):
        assert (calls, stream, keep_graph) == (1, "stream", True)
        self.launched = 0
        call()
        return self.launched + self.unknown_nodes

    def of(self, *launches):
        """Of a call with these launches: a kernel, its grid, its arguments."""
        return fingerprint.of(lambda: [self.launch(*launch) for launch in launches])

    def launch(self, kernel, grid, *args, **kwargs):
        kernel.run(*args, grid=grid, warmup=False, **kwargs)


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


def test_the_same_launches_in_another_process_have_the_same_fingerprint(gpu):
    first = gpu.of((gpu.kernel(), (4,), Tensor(100), Tensor(200), 8, constexpr(256), None, (Tensor(100), 1)))
    again = gpu.of((gpu.kernel(), (4,), Tensor(700), Tensor(300), 8, constexpr(256), None, (Tensor(700), 1)))
    assert first == again
    assert len(first) == 16
    assert gpu.kernel.run is gpu.run


def test_somebody_listens_to_launches_meanwhile(gpu):
    kernel, listeners = gpu.kernel(), []

    def call():
        listeners.append(len(gpu.hooks))
        gpu.launch(kernel, (4,), 8)

    assert fingerprint.of(call)
    assert listeners == [1]
    assert not gpu.hooks


@pytest.mark.parametrize(
    "launches",
    [
        pytest.param(lambda kernel: [(kernel(b"c0de"), (4,), Tensor(1), Tensor(2), 8)], id="code"),
        pytest.param(lambda kernel: [(kernel(num_warps=8), (4,), Tensor(1), Tensor(2), 8)], id="warps"),
        pytest.param(lambda kernel: [(kernel(shared=64), (4,), Tensor(1), Tensor(2), 8)], id="shared-memory"),
        pytest.param(lambda kernel: [(kernel(), (5,), Tensor(1), Tensor(2), 8)], id="grid"),
        pytest.param(lambda kernel: [(kernel(), lambda _: (5,), Tensor(1), Tensor(2), 8)], id="computed-grid"),
        pytest.param(lambda kernel: [(kernel(), (4,), Tensor(1), Tensor(2), 9)], id="number"),
        pytest.param(lambda kernel: [(kernel(), (4,), Tensor(1), Tensor(1), 8)], id="one-tensor-for-two"),
        pytest.param(lambda kernel: [(kernel(), (4,), Tensor(1), Tensor(2, (9,)), 8)], id="shape"),
        pytest.param(lambda kernel: [(kernel(), (4,), Tensor(1), Tensor(2, dtype="torch.int32"), 8)], id="dtype"),
        pytest.param(lambda kernel: [(kernel(), (4,), Tensor(1), Tensor(2), 8)] * 2, id="launched-twice"),
        pytest.param(lambda kernel: [(kernel(), (4,), Tensor(1), Tensor(2), object())], id="unknown-argument"),
    ],
)
def test_other_launches_have_another(gpu, launches):
    first = gpu.of((gpu.kernel(), (4,), Tensor(1), Tensor(2), 8))
    assert gpu.of(*launches(gpu.kernel)) not in (first, None)


def test_a_computed_grid_is_as_good_as_a_given_one(gpu):
    assert gpu.of((gpu.kernel(), lambda _: (4,), 8)) == gpu.of((gpu.kernel(), (4,), 8))


def test_what_cannot_be_described_is_like_nothing_else(gpu):
    argument = object()
    assert gpu.of((gpu.kernel(), (4,), argument)) != gpu.of((gpu.kernel(), (4,), argument))


@pytest.mark.parametrize("number", [1, -1], ids=["more-nodes", "fewer-nodes"])
def test_a_graph_with_something_else_in_it_has_none(gpu, number):
    gpu.unknown_nodes = number
    assert gpu.of((gpu.kernel(), (4,), 8), (gpu.kernel(), (4,), 8)) is None


@pytest.mark.parametrize("number", [0, 1], ids=["alone", "beside-something-else"])
def test_what_an_autotuner_chose_has_none(gpu, number):
    gpu.unknown_nodes = number
    assert gpu.of((gpu.kernel(), (4,), 8), (gpu.tuner(gpu.kernel()), (4,), 8)) is None


def test_a_call_without_triton_has_none(gpu, monkeypatch):
    assert fingerprint.of(lambda: None) is None
    monkeypatch.delitem(sys.modules, "triton.runtime.jit")
    assert fingerprint.of(lambda: 1 / 0) is None


def test_triton_is_as_before_after_an_error(gpu):
    with pytest.raises(ZeroDivisionError):
        fingerprint.of(lambda: 1 / 0)
    assert (gpu.kernel.run, gpu.tuner.run) == (gpu.run, gpu.tuned_run)
    assert not gpu.hooks


_ON_GPU = """
import sys
import torch
from asv_bench_gpu import clock, fingerprint
sys.path.insert(0, sys.argv[1])
from kernels import double

source = torch.zeros(4096, device="cuda")
target = torch.empty_like(source)

def launch(size=4096, **options):
    double[(16,)](source, target, size, TILE=256, **options)

def with_torch():
    launch()
    target.zero_()

def of(call):
    clock.calls_per_graph(call)
    return fingerprint.of(call)

print([of(call) for call in (launch, lambda: launch(num_warps=2), lambda: launch(4095), with_torch)])
"""


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    shown = []
    for name in ("one", "moved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernels.py").write_text("# A line more.\n" * (name == "moved") + _KERNEL)
        shown.append(processes.output("-c", _ON_GPU, tmp_path / name))
    assert shown[0] == shown[1]
    plain, warps, size, with_torch = json.loads(shown[0].replace("'", '"').replace("None", "null"))
    assert len({plain, warps, size} - {None}) == 3
    assert with_torch is None

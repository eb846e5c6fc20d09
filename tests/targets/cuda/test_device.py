"""What needs a GPU: driver, memory, graphs, streams, arrays of others. `make test-cuda` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from planish import native
from planish.builder import build_graph
from planish.errors import DeviceError, InputError
from planish.graph.graph import Graph, Value
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.runtime.engine import Engine
from planish.targets.base import Layout
from planish.targets.cuda.memory import DeviceArray
from planish.targets.cuda.staging import PIECE, PIECES
from planish.targets.cuda.target import CudaTarget, cuda
from planish.tuning import sample as sample_module
from planish.tuning.sample import Sample

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def target() -> CudaTarget:
    return cuda("cuda:0")


def engine_of(target: CudaTarget, write: Callable[[Graph, Value], Value], rows: int = 64) -> Engine:
    graph = Graph("net")
    x = graph.input("x", TensorType((rows, 100), DType.FLOAT32))
    graph.mark_output(write(graph, x), "y")
    return build_graph(graph, target, tuning_seconds=2)


def branches(graph: Graph, x: Value) -> Value:
    """Two branches that may overlap, of several layers, and what they have in common."""
    parts = []
    for scale in (2.0, 3.0):
        factor = graph.constant(np.full((1, 100), scale, np.float32))
        parts.append(graph.add(ew.Tanh(), graph.add(ew.Mul(), x, factor)))
    return graph.add(ew.Add(), graph.add(ew.Relu(), parts[0]), graph.add(ew.Neg(), parts[1]))


def expected(x: np.ndarray) -> np.ndarray:
    return np.maximum(np.tanh(2 * x), 0) - np.tanh(3 * x)


@pytest.fixture(scope="module")
def engine(target: CudaTarget) -> Engine:
    return engine_of(target, branches)


def batch(seed: int, rows: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 100)).astype(np.float32)


@pytest.mark.parametrize(
    "layout", [Layout((7,), (1,)), Layout((900, 33), (33, 1)), Layout((40, 9), (16, 1), 4)], ids=str
)
def test_tensors_of_tuning_hold_their_sample(
    target: CudaTarget, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_module, "PERIOD", 97)  # repeats, also in parts
    sample = Sample(layout, np.dtype(np.float32), 1)
    tensor = target.tensor(layout, np.dtype(np.float32))
    tensor.fill(sample.period)
    np.testing.assert_array_equal(tensor.read(), np.asarray(sample))


def test_the_machine_is_read(target: CudaTarget) -> None:
    machine = target.machine
    assert machine.capability >= (7, 0)
    assert machine.multiprocessors > 0
    assert machine.shared >= 48 << 10
    assert machine.memory > 1 << 30
    assert machine.name in target.timing_key


def test_host_arrays(engine: Engine) -> None:
    for seed in range(5):
        x = batch(seed)
        y = engine(x)
        assert isinstance(y, np.ndarray)
        np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-6)


def test_large_host_arrays(target: CudaTarget) -> None:
    """Of more bytes than the pinned pieces of a context have, both ways; two contexts at once."""
    rows = 3 * PIECES * PIECE // 400 // 2
    engine = engine_of(target, branches, rows)
    right: list[bool] = []

    def use(seed: int) -> None:
        with engine.create_execution_context() as context:
            for number in range(4):
                x = batch(seed + number, rows)
                right.append(np.allclose(context.execute(x), expected(x), 1e-5, 1e-6))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in (0, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 8


def test_replays_are_bit_stable(engine: Engine) -> None:
    x = batch(1)
    first = engine(x)
    assert all(np.array_equal(engine(x), first) for _ in range(50))


def test_device_arrays_stay_on_the_device(engine: Engine, target: CudaTarget) -> None:
    x = batch(2)
    memory = target.new_array(x.shape, x.dtype)
    target.gpu.upload(memory.address, x)
    y = engine(memory)
    assert isinstance(y, DeviceArray)
    np.testing.assert_allclose(y.numpy(), expected(x), rtol=1e-5, atol=1e-6)
    out = target.new_array(x.shape, x.dtype)
    assert engine(memory, out=out) is out
    np.testing.assert_array_equal(out.numpy(), y.numpy())
    with pytest.raises(InputError, match="overlaps"):
        engine(memory, out=memory)
    with pytest.raises(InputError, match="out="):
        engine(memory, out=target.new_array((1, 100), x.dtype))


def test_arrays_of_pytorch(engine: Engine) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'planish[torch]'")
    x = torch.randn(64, 100, device="cuda")
    torch.cuda.synchronize()
    y = engine(x)
    back = torch.as_tensor(y, device="cuda")
    np.testing.assert_allclose(back.cpu().numpy(), expected(x.cpu().numpy()), rtol=1e-5, atol=1e-6)
    stream = torch.cuda.Stream()
    out = torch.empty_like(x)
    with torch.cuda.stream(stream), engine.create_execution_context(stream=stream) as context:
        doubled = x * 2
        context.enqueue({"x": doubled}, {"y": out})
        again = out * 1
    stream.synchronize()
    np.testing.assert_allclose(
        again.cpu().numpy(), expected(2 * x.cpu().numpy()), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(DeviceError, match="not dense"):
        engine(torch.randn(100, 64, device="cuda").t())


def test_dlpack_both_ways_with_pytorch(engine: Engine, target: CudaTarget) -> None:
    """Nothing is synchronized by hand: writers and readers follow the protocol."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'planish[torch]'")
    side = torch.cuda.Stream()
    for seed in range(5):
        with torch.cuda.stream(side):
            torch.cuda._sleep(2_000_000)
            x = torch.as_tensor(batch(seed), device="cuda") * 1
            y = torch.from_dlpack(engine(x)) * 1
        side.synchronize()
        np.testing.assert_allclose(y.cpu().numpy(), expected(batch(seed)), rtol=1e-5, atol=1e-6)
    out = target.new_array((64, 100), np.dtype(np.float32))
    with torch.cuda.stream(side), engine.create_execution_context(stream=side) as context:
        torch.cuda._sleep(20_000_000)
        context.enqueue({"x": x}, {"y": out})
        assert out.__cuda_array_interface__["stream"] == side.cuda_stream
    elsewhere = torch.cuda.Stream()
    with torch.cuda.stream(elsewhere):
        found = torch.from_dlpack(out) * 1  # on a stream that must wait for the other
    elsewhere.synchronize()
    np.testing.assert_allclose(found.cpu().numpy(), expected(batch(4)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.numpy(), found.cpu().numpy())


def test_results_that_are_dropped_are_not_overwritten(engine: Engine) -> None:
    """What PyTorch still reads on its stream keeps its memory until then."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'planish[torch]'")
    x = torch.as_tensor(batch(1), device="cuda")
    other = torch.as_tensor(batch(2), device="cuda")
    torch.cuda.synchronize()
    for _ in range(5):
        y = torch.from_dlpack(engine(x))
        torch.cuda._sleep(5_000_000)
        kept = y * 1
        del y
        engine(other)
        np.testing.assert_allclose(kept.cpu().numpy(), expected(batch(1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", ["cupy", "jax.numpy"])
def test_arrays_of_other_libraries(engine: Engine, library: str) -> None:
    module = pytest.importorskip(library)
    x = module.asarray(batch(3)) * 1
    y = engine(x)
    assert isinstance(y, DeviceArray)
    np.testing.assert_allclose(y.numpy(), expected(batch(3)), rtol=1e-5, atol=1e-6)
    back = module.from_dlpack(y)
    np.testing.assert_allclose(np.asarray(back.get() if library == "cupy" else back), y.numpy())
    if library == "cupy":
        out = module.zeros((64, 100), np.float32)
        engine(x, out=out)
        np.testing.assert_array_equal(out.get(), y.numpy())


def test_running_needs_no_compiler(engine: Engine, tmp_path: Path) -> None:
    """In a new process without Triton, with an empty kernel cache."""
    engine.save(tmp_path / "m.plan")
    np.save(tmp_path / "x.npy", batch(5))
    code = """
import sys
sys.modules["triton"] = None
import numpy as np
import planish
engine = planish.load(sys.argv[1], allow_device_code=True)
np.save(sys.argv[3], engine(np.load(sys.argv[2])))
"""
    files = [str(tmp_path / name) for name in ("m.plan", "x.npy", "y.npy")]
    environment = {**os.environ, "PLANISH_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, *files], check=True, env=environment)
    np.testing.assert_array_equal(np.load(files[2]), engine(batch(5)))


def test_layers_are_rated(engine: Engine) -> None:
    limits = engine.ceilings()
    assert limits is not None
    assert limits.flops["fp16"] > limits.flops["fp32"]
    assert 1e11 < limits.bytes < 2e13
    for row in engine.layers():
        assert row["tensor_cores"] is False
        assert row["why_no_tensor_cores"] == "the layer is no product of matrices"
        assert row["of_ceiling"] is None or row["of_ceiling"] > 0
        assert row["kernels"]


def test_two_contexts_in_two_threads(engine: Engine) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = batch(seed)
        wanted = engine(x)
        with engine.create_execution_context() as context:
            for _ in range(100):
                if not np.array_equal(context.execute(x), wanted):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_profiling(engine: Engine) -> None:
    with engine.create_execution_context() as context:
        times = context.profile(batch(0))
        assert times.shape[1] == 2
        assert (times[:, 1] > times[:, 0]).all()
        told: dict[str, float] = {}
        context.profiler = told.__setitem__
        context.execute(batch(0))
        assert set(told) == {layer["name"] for layer in engine.layers()}


def test_a_plan_is_saved_and_loaded(engine: Engine, target: CudaTarget) -> None:
    from planish.plan.load import load

    again = load(engine.serialize())
    assert again.device == "cuda:0"
    x = batch(3)
    np.testing.assert_array_equal(again(x), engine(x))


def test_too_little_memory_is_a_clear_error(target: CudaTarget) -> None:
    with pytest.raises(DeviceError, match="no device memory") as caught:
        target.gpu.allocate(1 << 50, "a test")
    assert "are free" in str(caught.value)


def test_no_allocation_per_inference(engine: Engine, target: CudaTarget) -> None:
    x = batch(0)
    engine(x)
    before = target.gpu.memory_info()[0]
    for _ in range(200):
        engine(x)
    assert target.gpu.memory_info()[0] == before


def test_host_steps_run_between_graphs(target: CudaTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """An op that no kernel has runs by its reference."""
    from planish.ops.sampling import GridSample

    others = tuple(f for f in target.families() if f.name != "sampling")
    monkeypatch.setattr(target, "_families", others)
    graph = Graph("net")
    x = graph.input("x", TensorType((1, 6, 5, 3), DType.FLOAT32))
    grid = graph.input("grid", TensorType((1, 4, 4, 2), DType.FLOAT32))
    sampled = graph.add(GridSample("linear", "zeros"), graph.add(ew.Relu(), x), grid)
    graph.mark_output(graph.add(ew.Neg(), sampled), "y")
    engine = build_graph(graph, target, tuning_seconds=1)
    random = np.random.default_rng(0)
    a = random.standard_normal((1, 6, 5, 3)).astype(np.float32)
    b = random.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)
    wanted = -GridSample("linear", "zeros").reference(np.maximum(a, 0), b)[0]
    np.testing.assert_allclose(engine(a, b), wanted, rtol=1e-5, atol=1e-6)
    assert len(engine.host_steps()) == 1


def test_callers_in_c_get_a_program(engine: Engine) -> None:
    x = batch(4)
    wanted, y = engine(x), np.empty_like(x)
    program = engine.bound({}).executable.program
    for _ in range(3):
        y[...] = np.nan
        program.execute(native.Arena(64), [x.ctypes.data], [y.ctypes.data], 1)
        np.testing.assert_array_equal(y, wanted)

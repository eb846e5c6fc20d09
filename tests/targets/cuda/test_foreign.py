"""Arrays of other libraries on a GPU, whose protocols are followed: who waits for whom."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.simulated_gpu import SimulatedGpu, SimulatedStream, SimulatedTarget
from planish.builder import build_graph
from planish.errors import DeviceError, InputError
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.runtime.engine import Engine
from planish.targets.cuda import dlpack
from planish.targets.cuda.memory import DeviceArray

SHAPE = (4, 16)


class Tensor:
    """As PyTorch's: DLPack, told on which stream it is read."""

    def __init__(
        self, gpu: SimulatedGpu, array: np.ndarray, device: tuple[int, int] = (dlpack.CUDA, 0)
    ) -> None:
        self._memory = gpu.allocate(array.nbytes, "a test")
        gpu.upload(self._memory.address, np.ascontiguousarray(array))
        self._array, self._device = array, device
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        self.streams.append(stream)
        a = self._array
        return dlpack.export(
            self._memory.address,
            a.shape,
            a.dtype,
            self._device,
            self,
            versioned=max_version is not None,
        )


class OldTensor(Tensor):
    """As of before DLPack 1.0."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


class Interface:
    """As CuPy's and Numba's arrays: the other protocol, which names the stream it is written on."""

    def __init__(self, gpu: SimulatedGpu, array: np.ndarray, **more: Any) -> None:
        self._memory = gpu.allocate(array.nbytes, "a test")
        gpu.upload(self._memory.address, np.ascontiguousarray(array))
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self._memory.address, False),
            "version": 3,
            **more,
        }


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    patch = pytest.MonkeyPatch()
    patch.setenv("PLANISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    graph = Graph("net")
    x = graph.input("x", TensorType(SHAPE, DType.FLOAT32))
    graph.mark_output(graph.add(ew.Relu(), x), "y")
    made = build_graph(graph, SimulatedTarget(), tuning_seconds=0)
    patch.undo()
    return made


@pytest.fixture
def gpu(engine: Engine) -> SimulatedGpu:
    gpu = engine.target.gpu  # type: ignore[attr-defined]
    gpu.notes.clear()
    return gpu


def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("kind", [Tensor, OldTensor, Interface])
def test_results_are_where_inputs_are(engine: Engine, gpu: SimulatedGpu, kind: type) -> None:
    y = engine(kind(gpu, x()))
    assert isinstance(y, DeviceArray)
    np.testing.assert_array_equal(y.numpy(), np.maximum(x(), 0))


def test_without_a_stream_the_caller_waits(engine: Engine, gpu: SimulatedGpu) -> None:
    tensor = Tensor(gpu, x())
    engine(tensor)
    assert tensor.streams == [gpu.stream.handle]
    assert ("sync", "gpu") in gpu.notes
    gpu.notes.clear()
    writer = gpu.wrap_stream(SimulatedStream(gpu, "writer", 77))
    gpu.wrap_stream = lambda given: writer  # type: ignore[method-assign]
    engine(Interface(gpu, x(), stream=77))
    assert gpu.notes[1] == ("sync", "writer")  # after the upload of the test itself
    del gpu.wrap_stream


def test_on_a_stream_the_stream_waits(engine: Engine, gpu: SimulatedGpu) -> None:
    user, writer = SimulatedStream(gpu, "user", 5), SimulatedStream(gpu, "writer", 77)
    gpu.wrap_stream = lambda given: writer if given == 77 else given  # type: ignore[method-assign]
    out = engine.target.new_array(SHAPE, np.dtype(np.float32))
    with engine.create_execution_context(stream=user) as context:
        tensor = Tensor(gpu, x())
        context.enqueue({"x": tensor}, {"y": out})
        assert tensor.streams == [5]
        gpu.notes.clear()  # memory of the context was made
        context.enqueue({"x": tensor}, {"y": out})
        assert not [note for note in gpu.notes if note[0] == "sync"]
        array = Interface(gpu, x(), stream=77)
        gpu.notes.clear()
        context.enqueue({"x": array}, {"y": out})
        assert gpu.notes[0] == ("wait", "user", writer)
        gpu.notes.clear()
        context.enqueue({"x": Interface(gpu, x(), stream=5)}, {"y": out})
        assert [note[0] for note in gpu.notes] == ["copy", "graph", "record"]
    del gpu.wrap_stream


def test_readers_wait_for_what_is_queued(engine: Engine, gpu: SimulatedGpu) -> None:
    user, reader = SimulatedStream(gpu, "user", 5), SimulatedStream(gpu, "reader", 9)
    gpu.wrap_stream = lambda given: reader if given == 9 else given  # type: ignore[method-assign]
    out = engine.target.new_array(SHAPE, np.dtype(np.float32))
    assert out.__cuda_array_interface__["stream"] is None
    with engine.create_execution_context(stream=user) as context:
        context.enqueue({"x": Tensor(gpu, x())}, {"y": out})
    assert out.__cuda_array_interface__["stream"] == 5
    gpu.notes.clear()
    out.__dlpack__(stream=5)
    out.__dlpack__(stream=-1)
    assert not gpu.notes
    out.__dlpack__(stream=9)
    assert gpu.notes == [("wait", "reader", user)]
    gpu.notes.clear()
    np.testing.assert_array_equal(out.numpy(), np.maximum(x(), 0))
    assert gpu.notes[0] == ("sync", "user")
    assert out.__cuda_array_interface__["stream"] is None  # it is there now
    del gpu.wrap_stream


def test_results_go_round_through_dlpack(engine: Engine, gpu: SimulatedGpu) -> None:
    y = engine(Tensor(gpu, x()))
    assert y.__dlpack_device__() == (dlpack.CUDA, 0)
    for version in (None, (1, 0), (1, 1)):
        capsule = y.__dlpack__(stream=None, max_version=version)
        found = dlpack.read(capsule)
        assert found.address == y.address
        assert (found.shape, found.dtype, found.strides) == (SHAPE, y.dtype, (16, 1))
        assert not found.read_only
    for wanted in ({"dl_device": (dlpack.CPU, 0)}, {"copy": True}):
        with pytest.raises(BufferError, match=r"\.numpy\(\) is a copy"):
            y.__dlpack__(**wanted)
    assert y.__dlpack__(dl_device=(dlpack.CUDA, 0), copy=False)


class Owner:
    """Whoever owns memory."""


def test_what_was_given_on_outlives_the_array(engine: Engine, gpu: SimulatedGpu) -> None:
    y = engine(Tensor(gpu, x()))
    y._owner = Owner()
    capsule, owner = y.__dlpack__(), weakref.ref(y._owner)
    del y
    gc.collect()
    assert owner() is not None
    del capsule
    gc.collect()
    assert owner() is None


def test_given_outputs_are_written(engine: Engine, gpu: SimulatedGpu) -> None:
    out = Tensor(gpu, np.zeros(SHAPE, np.float32))
    engine(Tensor(gpu, x()), out=out)
    result = np.empty(SHAPE, np.float32)
    gpu.download(result, out._memory.address)
    np.testing.assert_array_equal(result, np.maximum(x(), 0))
    with pytest.raises(InputError, match="must be a writeable"):
        engine(x(), out=Interface(gpu, x(), data=(4096, True)))
    with pytest.raises(InputError, match="must be a writeable"):
        engine(x(), out=Tensor(gpu, x()[:2]))


def test_arrays_that_are_not_dense(engine: Engine, gpu: SimulatedGpu) -> None:
    with pytest.raises(DeviceError, match="not dense") as caught:
        engine(Interface(gpu, x(), strides=(4, 16)))
    assert "strides (1, 4) elements" in caught.value.where
    row = Interface(gpu, x()[:1], strides=(4000, 4))  # whatever the step between one row is
    assert engine.target.foreign_array(row).shape == (1, 16)


def test_arrays_on_another_gpu(engine: Engine, gpu: SimulatedGpu) -> None:
    with pytest.raises(DeviceError, match=r"lies on cuda:1, and the engine runs on cuda:0"):
        engine(Tensor(gpu, x(), device=(dlpack.CUDA, 1)))


def test_arrays_that_their_library_keeps(engine: Engine, gpu: SimulatedGpu) -> None:
    class Refusing(Tensor):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("it requires gradients")

    with pytest.raises(InputError, match="A Refusing on the GPU cannot be read") as caught:
        engine(Refusing(gpu, x()))
    assert caught.value.why == "its library refuses (it requires gradients)"


def test_arrays_of_dlpack_on_the_host(engine: Engine, gpu: SimulatedGpu) -> None:
    class OnHost:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

        def __dlpack__(self, **more: Any) -> Any:
            return x().__dlpack__(**more)

    y = engine(OnHost())
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, np.maximum(x(), 0))


def test_known_addresses_are_one_launch(engine: Engine, gpu: SimulatedGpu) -> None:
    user = SimulatedStream(gpu, "user", 5)
    arrays = [engine.target.new_array(SHAPE, np.dtype(np.float32)) for _ in range(2)]
    with engine.create_execution_context(stream=user) as context:
        context.enqueue({"x": arrays[0]}, {"y": arrays[1]})
        gpu.notes.clear()
        gpu.is_device_address = None  # type: ignore[method-assign,assignment]
        context.enqueue({"x": arrays[0]}, {"y": arrays[1]})
        assert gpu.notes == [("graph", "user"), ("record", "user")]
        del gpu.is_device_address

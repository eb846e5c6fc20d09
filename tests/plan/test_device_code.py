"""Machine code in plans: stored with kernels of GPUs, run only where that is allowed and fits."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.plan_bytes import join, split
from helpers.simulated_gpu import SimulatedGpu, SimulatedTarget
from planish.builder import build_graph
from planish.errors import PlanError
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.plan.file import read_device_code
from planish.plan.load import load
from planish.runtime.engine import Engine
from planish.targets.cuda import target as cuda_target
from planish.targets.cuda.machine import H200

WEIGHTS = np.linspace(-1, 1, 16 * 8, dtype=np.float32).reshape(16, 8)


def network() -> Graph:
    graph = Graph("net")
    x = graph.input("x", TensorType((4, 16), DType.FLOAT32))
    product = graph.add(MatMul(), x, graph.constant(WEIGHTS))
    graph.mark_output(graph.add(ew.Relu(), product), "y")
    return graph


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    patch = pytest.MonkeyPatch()
    patch.setenv("PLANISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    # what was compiled by an installation elsewhere names other files for its lines
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    made = build_graph(network(), SimulatedTarget(), tuning_seconds=0)
    patch.undo()
    return made


@pytest.fixture(scope="module")
def data(engine: Engine) -> bytes:
    return engine.serialize()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimulatedTarget:
    """The target in another process, with an empty cache, that `load` finds."""
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    target = SimulatedTarget(SimulatedGpu())
    monkeypatch.setattr(cuda_target, "cuda", lambda device: target)
    return target


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("something was compiled")

    monkeypatch.setattr("planish.targets.workers.CompilerPool._compile", fail)
    monkeypatch.setattr("planish.targets.cuda.kernel.TritonKernel.compile", fail)


def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)


def test_the_header_says_what_is_inside(data: bytes, engine: Engine) -> None:
    header, blob = split(data)
    entry = header["device_code"]
    assert entry["for"] == engine.target.code_key
    assert "sm_90" in entry["for"]
    assert entry["count"] == len(entry["kernels"]) >= 1
    assert entry["bytes"] == sum(size for _, size in entry["kernels"])
    assert len(blob) == header["weights"]["bytes"] + entry["bytes"]


def test_what_is_inside_can_be_read(data: bytes, engine: Engine) -> None:
    said = read_device_code(data)
    assert said is not None
    assert said.startswith(f"{split(data)[0]['device_code']['count']} kernel(s), ")
    assert said.endswith(engine.target.code_key)
    assert read_device_code(engine.serialize(device_code=False)) is None


def test_running_needs_no_compiler(
    data: bytes, elsewhere: SimulatedTarget, no_compiler: None
) -> None:
    loaded = load(data, allow_device_code=True)
    np.testing.assert_allclose(loaded(x()), np.maximum(x() @ WEIGHTS, 0), rtol=1e-5, atol=1e-6)
    assert not list(elsewhere._cache._folder.iterdir())  # nothing of it is kept
    assert loaded.serialize() == data


def test_without_leave_it_is_compiled_again(
    data: bytes, elsewhere: SimulatedTarget, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "planish"):
        loaded = load(data)
    assert "which is not used: load(..., allow_device_code=True) permits it" in caplog.text
    assert list(elsewhere._cache._folder.iterdir())
    np.testing.assert_allclose(loaded(x()), np.maximum(x() @ WEIGHTS, 0), rtol=1e-5, atol=1e-6)


def test_an_engine_without_leave_does_not_get_it(data: bytes, elsewhere: SimulatedTarget) -> None:
    load(data, allow_device_code=True)
    load(data)
    symbols = [name.partition(" ")[0] for name in elsewhere.gpu.loaded]
    assert len(symbols) == 2 * len(set(symbols))


def test_of_another_compute_capability(
    data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    target = SimulatedTarget(SimulatedGpu(replace(H200, capability=(8, 0))))
    monkeypatch.setattr(cuda_target, "cuda", lambda device: target)
    load(data, allow_device_code=True)
    assert "does not fit cuda:0" in caplog.text
    assert {code.arch for code in target.gpu.loaded.values()} == {"sm_80"}


def test_a_single_kernel_of_another_capability(
    engine: Engine, elsewhere: SimulatedTarget, caplog: pytest.LogCaptureFixture
) -> None:
    code = elsewhere.device_code(_kernels(engine))
    other = {n: data.replace(b'"sm_90"', b'"sm_80"') for n, data in code.items()}
    assert not elsewhere.with_code(other)._given
    assert "device code for sm_80 is not used: cuda:0 is sm_90" in caplog.text


def _kernels(engine: Engine) -> list:
    bound = engine.bound({})
    schedule = bound.executable._schedule  # type: ignore[attr-defined]
    return [s.launch.kernel for s in schedule.launches]


def test_damage_is_found(data: bytes, elsewhere: SimulatedTarget) -> None:
    changed = bytearray(data)
    changed[-1] ^= 1
    for allowed in (False, True):
        with pytest.raises(PlanError, match="damaged") as caught:
            load(bytes(changed), allow_device_code=allowed)
        assert "device code does not fit its checksum" in caught.value.why
    with pytest.raises(PlanError, match="damaged") as caught:
        load(data[:-1])
    assert "of weights and device code instead of" in caught.value.why


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(bytes=-1),
        lambda e: e.update(bytes="many"),
        lambda e: e.update(kernels=[]),
        lambda e: e.update(kernels=[[name, float(n)] for name, n in e["kernels"]]),
        lambda e: e.update(kernels=[[name, -n] for name, n in e["kernels"]]),
        lambda e: e.update(kernels=2 * e["kernels"]),
        lambda e: e.pop("for"),
        lambda e: e.pop("sha256"),
    ],
)
def test_descriptions_that_are_none(data: bytes, elsewhere: SimulatedTarget, change) -> None:
    header, blob = split(data)
    change(header["device_code"])
    with pytest.raises(PlanError):
        load(join(header, blob, described=False), allow_device_code=True)


def test_code_that_is_none(engine: Engine, elsewhere: SimulatedTarget) -> None:
    with pytest.raises(PlanError, match="Device code of the plan is damaged") as caught:
        elsewhere.with_code({"matrix_1": b"{}\nno cubin"})
    assert caught.value.where == "matrix_1"


def test_it_may_be_left_out(engine: Engine, data: bytes, tmp_path: Path) -> None:
    assert "device_code" not in split(engine.serialize(device_code=False))[0]
    engine.save(tmp_path / "with.plan")
    engine.save(tmp_path / "without.plan", device_code=False)
    assert (tmp_path / "with.plan").read_bytes() == data
    assert (tmp_path / "without.plan").stat().st_size < len(data)


def test_builds_are_byte_equal(
    data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton compiles the same text to the same code, also in another process, cold."""
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "planish"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    assert build_graph(network(), SimulatedTarget(), tuning_seconds=0).serialize() == data


def test_what_libraries_wrote_is_at_hand(elsewhere: SimulatedTarget) -> None:
    elsewhere.with_code({"library cudnn_1": b"what cuDNN wrote"})
    assert elsewhere.gpu.library_code == {"cudnn_1": b"what cuDNN wrote"}

"""Sessions with libraries: what is asked once, what is kept, what becomes of errors."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest

from planish.errors import TuningError
from planish.targets.cuda.kernel import LibraryKernel
from planish.targets.cuda.libraries import cublaslt, cudnn
from planish.targets.cuda.libraries.session import ALIGNMENT, Session, aligned, workspace_bytes
from planish.targets.cuda.machine import H200


class FakeGpu:
    ordinal = 0

    def __init__(self) -> None:
        self.library_code: dict[str, bytes] = {}

    def machine(self):
        return H200

    def enter(self) -> None:
        pass


@dataclass(frozen=True)
class Kernel(LibraryKernel):
    """A kernel that exists if its number is even."""

    family = "fake"

    number: int

    def load(self, gpu: Any) -> Any:
        return SESSIONS[-1].call(self, self._made)

    def _made(self) -> str:
        MADE.append(self.number)
        if self.number % 2:
            raise RuntimeError("odd")
        return f"call {self.number}"


SESSIONS: list[Session] = []
MADE: list[int] = []


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    MADE.clear()


def session(version: int = 1) -> Session:
    SESSIONS.append(Session("fake", version, FakeGpu()))  # type: ignore[arg-type]
    return SESSIONS[-1]


def test_a_library_is_asked_once() -> None:
    asked = []

    def ask() -> list[int]:
        asked.append(1)
        return [4, 2]

    for own in (session(), session()):  # the second as another process would
        for _ in range(2):
            assert own.recommended("problem", ask, Kernel) == [Kernel(4), Kernel(2)]
    assert len(asked) == 1
    session(2).recommended("problem", ask, Kernel)
    session(2).recommended("another", ask, Kernel)
    assert len(asked) == 3


def test_a_library_that_refuses_offers_nothing() -> None:
    def ask() -> list[int]:
        raise ValueError("not supported")

    assert session().recommended("problem", ask, Kernel) == []


def test_kernels_are_made_once_and_failures_remembered() -> None:
    own = session()
    gpu: Any = own.gpu
    for _ in range(2):
        assert Kernel(2).load(gpu) == "call 2"
        with pytest.raises(TuningError, match="odd"):
            Kernel(3).load(gpu)
    assert MADE == [2, 3]
    assert own.has(Kernel(2))
    assert not own.has(Kernel(3))
    assert not own.has(Kernel(5))


def test_what_was_recommended_is_there_until_it_fails() -> None:
    own = session()
    own.recommended("problem", lambda: [7], Kernel)
    assert own.has(Kernel(7))
    assert MADE == []
    with pytest.raises(TuningError):
        Kernel(7).load(own.gpu)
    assert not own.has(Kernel(7))


def test_errors_of_a_library_are_tuning_errors() -> None:
    with pytest.raises(TuningError, match="broken"), session().calling():
        raise RuntimeError("broken")


def test_code_is_kept() -> None:
    session().keep("symbol", b"code")
    assert session().code("symbol") == b"code"
    assert session(2).code("symbol") is None


def test_code_of_a_plan_stands_in() -> None:
    own = session(3)
    own.gpu.library_code["other"] = b"a plan's"
    assert own.code("other") == b"a plan's"
    own.keep("other", b"code")
    assert own.code("other") == b"code"


def test_workspace_is_aligned() -> None:
    for address in (4096, 4097, 4351):
        place = aligned(address)
        assert place % ALIGNMENT == 0
        assert place + 1000 <= address + workspace_bytes(1000)
    assert workspace_bytes(0) == 0


@pytest.mark.parametrize(
    ("module", "package"),
    [(cudnn, "cudnn"), (cublaslt, "nvmath.bindings")],
    ids=["cudnn", "cublaslt"],
)
def test_a_missing_library_is_one_line_in_the_log(module, package, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    module.session.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "planish"):
            assert module.session(0) is None
            assert module.session(0) is None
        assert len(caplog.records) == 1
        assert "pip install" in caplog.text
    finally:
        module.session.cache_clear()


def test_another_version_is_refused(monkeypatch) -> None:
    from planish.graph.types import DType
    from planish.targets.cuda.libraries.cudnn_graph import ConvGraph, Tensor
    from planish.targets.cuda.libraries.product import Matrix, Product

    tensor = Tensor((1,) * 4, (1,) * 4, DType.FLOAT16)
    pair = (1, 1)
    graph = ConvGraph(tensor, tensor, pair, pair, pair, pair, (), (), ((0, tensor),))
    conv = cudnn.ConvKernel(graph, 2, "eng0")
    matrix = Matrix(DType.FLOAT16, 1, 1, 1, False, 0, 16)
    product = Product(matrix, matrix, matrix, None, False, "", 1.0, 1)
    gemm = cublaslt.ProductKernel(product, 2, (0,) * len(cublaslt.SETTINGS))
    for module, kernel in ((cudnn, conv), (cublaslt, gemm)):
        monkeypatch.setattr(module, "session", lambda ordinal: session(1))
        with pytest.raises(TuningError, match="retune"):
            kernel.load(FakeGpu())  # type: ignore[arg-type]
        assert replace(kernel, version=1).symbol != kernel.symbol  # type: ignore[type-var]


def test_several_engines_are_among_the_first() -> None:
    names = ["a_1", "a_2", "b_1", "a_3", "c_1", "c_2", "d_1", "e"]
    assert cudnn.varied(names) == ["a_1", "a_2", "b_1", "c_1", "d_1", "a_3", "c_2", "e"]
    assert cudnn.varied(["a"]) == ["a"]
    assert cudnn.varied([]) == []

"""Other processes plan what takes a library long, while an engine is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from helpers.simulated_gpu import SimulatedTarget
from planish.errors import TuningError
from planish.targets.base import Kernel
from planish.targets.cuda.kernel import LibraryKernel
from planish.targets.workers import CompilerPool

kept: dict[str, bytes] = {}


@dataclass(frozen=True)
class Planned(LibraryKernel):
    family = "planned"
    is_planned = True

    number: int

    def load(self, gpu: Any) -> Any:
        raise NotImplementedError

    def stored(self, gpu: Any) -> bytes | None:
        return kept.get(self.symbol)

    def keep(self, gpu: Any, code: bytes) -> None:
        kept[self.symbol] = code

    def compile(self, machine: Any) -> bytes:
        if self.number < 0:
            raise TuningError("There is no such kernel")
        return str(self.number).encode()


@dataclass(frozen=True)
class Quick(Planned):
    family = "quick"
    is_planned = False


class Here(CompilerPool):
    """Compiles in this process, and counts."""

    def __init__(self) -> None:
        super().__init__(None, 1)
        self.compiled, self.closed = 0, 0

    def compile(self, kernels: Sequence[Kernel], done: Callable[[Kernel, bytes], None]) -> None:
        self.compiled += len(kernels)
        super().compile(kernels, done)

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SimulatedTarget:
    target, pool = SimulatedTarget(), Here()
    monkeypatch.setattr(target, "_planners", pool)
    monkeypatch.setattr(target._compiling, "_others", (pool,))
    kept.clear()
    return target


def test_each_is_planned_once_and_kept(target: SimulatedTarget) -> None:
    with target.compiling():
        for _ in range(2):
            target.prepare([Planned(1), Planned(2), Planned(1), Quick(3)])
    assert kept == {Planned(1).symbol: b"1", Planned(2).symbol: b"2"}
    assert target._planners.compiled == 2  # type: ignore[attr-defined]
    assert target._planners.closed == 1  # type: ignore[attr-defined]


def test_where_nothing_is_built_they_are_left_to_be_loaded(target: SimulatedTarget) -> None:
    target.prepare([Planned(1)])
    assert not kept


def test_what_the_library_does_not_have_keeps_nothing_back(target: SimulatedTarget) -> None:
    with target.compiling(), pytest.raises(TuningError, match="no such kernel"):
        target.prepare([Planned(-1), Planned(4)])
    assert kept == {Planned(4).symbol: b"4"}

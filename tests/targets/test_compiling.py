"""What a target lacks is compiled once; its compilers stay while engines are built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from planish.targets.base import Kernel
from planish.targets.cache import KernelCache
from planish.targets.compiling import Compiling
from planish.targets.workers import CompilerPool


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    return KernelCache("compiling")


@dataclass(frozen=True)
class Numbered(Kernel):
    family: ClassVar[str] = "numbered"
    number: int

    def compile(self, machine: Any) -> bytes:
        return str(self.number).encode()


class Counting(CompilerPool):
    """Compiles here, and counts what it compiles and how often it is closed."""

    def __init__(self) -> None:
        super().__init__(None, 1)
        self.compiled, self.closed = 0, 0

    def compile(self, kernels: Sequence[Kernel], done: Callable[[Kernel, bytes], None]) -> None:
        self.compiled += len(kernels)
        super().compile(kernels, done)

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_each_kernel_is_compiled_once(cache: KernelCache) -> None:
    compilers = Counting()
    compiling, told = Compiling(cache, compilers), []
    kernels = [Numbered(1), Numbered(2), Numbered(1)]
    compiling.prepare(kernels, lambda done, of: told.append((done, of)))
    assert cache.get(Numbered(2).symbol) == b"2"
    assert told == [(1, 2), (2, 2)]
    compiling.prepare(kernels)
    assert compilers.compiled == 2


def test_compilers_stay_until_the_last_build_ends(cache: KernelCache) -> None:
    compilers = Counting()
    compiling = Compiling(cache, compilers)
    with compiling.held():
        with compiling.held():
            compiling.prepare([Numbered(3)])
        assert not compilers.closed
    assert compilers.closed == 1
    compiling.prepare([Numbered(4)])
    assert compilers.closed == 2

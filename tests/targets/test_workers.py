"""Compiling in processes of their own."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from planish.errors import TuningError
from planish.targets.base import Kernel
from planish.targets.cpu.codegen.compile import Library
from planish.targets.cpu.kernels.pack_matrix import PackMatrixKernel
from planish.targets.cpu.machine import Machine, host
from planish.targets.workers import CompilerPool, _Worker, compile_kernels


@dataclass(frozen=True)
class BrokenKernel(PackMatrixKernel):
    family = "broken"

    def assembly(self, machine) -> str:
        return "this is no assembly"


@dataclass(frozen=True)
class LoudKernel(PackMatrixKernel):
    """Compiling it prints more than a pipe holds, as C++ code does."""

    def compile(self, machine) -> bytes:
        os.write(1, b"not yet understood\n" * 9999)
        return super().compile(machine)


def compile_all(kernels: list[Kernel], processes: int) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    compile_kernels(kernels, host(), processes, lambda k, code: made.update({k.symbol: code}))
    return made


def test_workers_give_the_same_code() -> None:
    kernels: list[Kernel] = [PackMatrixKernel(v, c) for v in (1, 2, 3) for c in (True, False)]
    apart, here = compile_all(kernels, 2), compile_all(kernels, 1)
    assert apart == here
    assert len(apart) == 6
    addresses = Library(apart, host()).addresses
    assert all(addresses.values())


def test_invalid_assembly_is_a_tuning_error() -> None:
    with pytest.raises(TuningError, match="not valid LLVM assembly"):
        compile_all([BrokenKernel(1, True)], 1)


def test_worker_that_dies_is_a_tuning_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.targets.workers.sys.executable", "/bin/false")
    with pytest.raises(TuningError, match="ended unexpectedly"):
        compile_all([PackMatrixKernel(v, True) for v in (1, 2, 3, 4)], 2)


def test_what_compilers_print_is_no_answer() -> None:
    loud: list[Kernel] = [LoudKernel(v, True) for v in (1, 2, 3, 4)]
    assert compile_all(loud, 2) == compile_all(loud, 1)


def test_a_worker_without_an_answer_has_no_more_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "talks"
    program.write_text("#!/bin/sh\nexec yes nonsense\n")
    program.chmod(0o755)
    monkeypatch.setattr("planish.targets.workers.sys.executable", str(program))
    with CompilerPool(host(), 1, apart=True) as pool:
        with pytest.raises(TuningError, match="ended unexpectedly"):
            pool.compile([PackMatrixKernel(1, True)], lambda kernel, code: None)
        assert not pool._workers


def test_no_worker_outlives_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is ended while it compiles is not replaced, nor are those begun that wait for it."""
    at_work, started = threading.Event(), []

    class Stuck(_Worker):
        def __init__(self, machine: Machine) -> None:
            super().__init__(machine)
            started.append(self)

        def compile(self, kernel: Kernel) -> bytes:
            at_work.set()
            self._process.wait(60)
            raise TuningError("It has ended")

    monkeypatch.setattr("planish.targets.workers._Worker", Stuck)
    pool, kernels = CompilerPool(host(), 1, apart=True), [PackMatrixKernel(v, True) for v in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(pool.compile, [k], lambda *_: None) for k in kernels]
        assert at_work.wait(60)
        while not pool._changed._waiters:
            time.sleep(0.001)
        pool.close()
        for end in ends:
            with pytest.raises(TuningError, match="ended"):
                end.result(60)
    assert not any(worker.is_alive for worker in started)
    assert len(started) == 1


def test_apart_nothing_is_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackMatrixKernel, "compile", lambda self, machine: b"made here")
    made: dict[str, bytes] = {}
    kernel = PackMatrixKernel(1, True)
    with CompilerPool(host(), 1, apart=True) as pool:
        pool.compile([kernel], lambda k, code: made.update({k.symbol: code}))
    assert made[kernel.symbol] != b"made here"


def test_a_kernel_that_fails_keeps_none_back() -> None:
    made: dict[str, bytes] = {}
    good = [PackMatrixKernel(v, True) for v in (1, 2, 3)]
    for processes in (1, 2):
        made.clear()
        with CompilerPool(host(), processes) as pool, pytest.raises(TuningError, match="not valid"):
            pool.compile(
                [good[0], BrokenKernel(1, True), *good[1:]], lambda k, c: made.update({k.symbol: c})
            )
        assert set(made) == {k.symbol for k in good}

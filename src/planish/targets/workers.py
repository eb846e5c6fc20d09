"""Compiles kernels in processes of their own: compilers hold one lock per process.

A worker is ``python -m planish.targets.workers``: it reads pickled kernels from its standard
input, each with the machine it is for, and writes pickled object code to its standard output. (The
`multiprocessing` module is not used because it imports the user's main script again.)
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO

from planish.errors import PlanishError, TuningError
from planish.targets.base import Kernel

FEW = 3
"""So many kernels are compiled sooner here than a worker starts."""


def compile_kernels(
    kernels: Sequence[Kernel],
    machine: Any,
    processes: int,
    done: Callable[[Kernel, bytes], None],
) -> None:
    """Compiles kernels, several at a time, and hands each one's object code to `done`.

    Raises
    ------
    TuningError
        A kernel does not compile, or a worker died.
    """
    if len(kernels) <= FEW or processes <= 1:
        for kernel in kernels:
            done(kernel, kernel.compile(machine))
        return
    idle: SimpleQueue[_Worker] = SimpleQueue()
    workers: list[_Worker] = []

    def run(kernel: Kernel) -> tuple[Kernel, bytes]:
        worker = idle.get()
        try:
            return kernel, worker.compile(kernel)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(min(processes, len(kernels)))
    try:
        for _ in range(min(processes, len(kernels))):
            workers.append(_Worker(machine))
            idle.put(workers[-1])
        for future in as_completed([pool.submit(run, kernel) for kernel in kernels]):
            done(*future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    def __init__(self, machine: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its workers
        )
        assert self._process.stdin and self._process.stdout
        self._to: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._from: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._machine = machine

    def compile(self, kernel: Kernel) -> bytes:
        try:
            _send(self._to, (kernel, self._machine))
            answer = pickle.load(self._from)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise TuningError(
                "A process that compiles kernels ended unexpectedly",
                why=f"exit code {self._process.poll()}",
                cure="look for a lack of memory; threads=1 compiles in this process",
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):  # closing flushes into a broken pipe
                pipe.close()


def _send(stream: BinaryIO, thing: object) -> None:
    pickle.dump(thing, stream)
    stream.flush()


def _serve() -> None:
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            kernel, machine = pickle.load(source)
        except EOFError:
            return
        answer: bytes | Exception
        try:
            answer = kernel.compile(machine)
        except PlanishError as error:
            answer = error
        except Exception as error:
            answer = TuningError("A kernel cannot be generated", why=f"{kernel}: {error!r}")
        _send(target, answer)


if __name__ == "__main__":
    _serve()

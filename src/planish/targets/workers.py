"""Compiles kernels in processes of their own: compilers hold one lock per process.

A worker is ``python -m planish.targets.workers``: it reads pickled kernels from its standard
input, each with the machine it is for, and writes pickled object code to its standard output. (The
`multiprocessing` module is not used because it imports the user's main script again.)
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
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
    with CompilerPool(machine, processes) as pool:
        pool.compile(kernels, done)


class CompilerPool:
    """Workers for one machine, started when they are first needed; several threads may use them.

    With `apart` nothing is ever compiled in this process: for compilers that do not get on with
    other libraries in it.
    """

    def __init__(self, machine: Any, processes: int, apart: bool = False) -> None:
        self._machine, self._processes, self._apart = machine, processes, apart
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._closings = 0
        self._changed = threading.Condition()

    def compile(self, kernels: Sequence[Kernel], done: Callable[[Kernel, bytes], None]) -> None:
        """See `compile_kernels`. A kernel that does not compile keeps none of the others back."""
        failed: list[TuningError] = []
        few = (len(kernels) <= FEW and not self._workers) or self._processes <= 1
        if few and not self._apart:
            for kernel in kernels:
                try:
                    done(kernel, kernel.compile(self._machine))
                except TuningError as error:
                    failed.append(error)
        elif kernels:
            failed = self._compile(kernels, done)
        if failed:
            raise failed[0]

    def _compile(
        self, kernels: Sequence[Kernel], done: Callable[[Kernel, bytes], None]
    ) -> list[TuningError]:
        failed: list[TuningError] = []
        pool = ThreadPoolExecutor(min(self._processes, len(kernels)))
        closings = self._closings
        try:
            jobs = [pool.submit(self._run, kernel, closings) for kernel in kernels]
            for future in as_completed(jobs):
                try:
                    done(*future.result())
                except TuningError as error:
                    failed.append(error)
        except BaseException:
            self.close()  # those that are at work would answer whoever comes next
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return failed

    def _run(self, kernel: Kernel, closings: int) -> tuple[Kernel, bytes]:
        worker = self._taken(closings)
        try:
            return kernel, worker.compile(kernel)
        finally:
            self._give_back(worker)

    def _taken(self, closings: int) -> _Worker:
        """A worker that has nothing to do; a new one as long as there may be more.

        Raises
        ------
        TuningError
            The pool has been closed more than `closings` times: nobody would end the worker.
        """
        with self._changed:
            while not self._idle and len(self._workers) >= self._processes:
                self._changed.wait()
            if self._closings != closings:
                raise TuningError("Compiling was ended")
            if self._idle:
                return self._idle.pop()
            self._workers.append(_Worker(self._machine))
            return self._workers[-1]

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            if worker not in self._workers:
                return  # the pool was closed meanwhile, and the worker with it
            if worker.is_alive:
                self._idle.append(worker)
            else:
                worker.close()
                self._workers.remove(worker)
            self._changed.notify()

    def close(self) -> None:
        """Ends the workers; the next kernels get new ones."""
        with self._changed:
            workers, self._workers, self._idle = self._workers, [], []
            self._closings += 1
            self._changed.notify_all()
        for worker in workers:
            worker.close()

    def __enter__(self) -> CompilerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
        except Exception as error:  # of many kinds, where what it reads is no answer
            self._process.kill()  # unless it has ended: the rest of that would answer the next one
            raise TuningError(
                "A process that compiles kernels ended unexpectedly",
                why=f"exit code {self._process.wait()}, {type(error).__name__}: {error}",
                cure="look for a lack of memory; threads=1 compiles in this process",
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

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
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)  # compilers print there what they could not compile
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

"""Compiles what a target's kernel cache lacks; the compilers stay while engines are built."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from planish.targets.base import Kernel
from planish.targets.cache import KernelCache
from planish.targets.workers import CompilerPool


class Compiling:
    """A target's compilers and where it keeps what they make; several threads may use it.

    Other pools of processes that only builds use may end with the compilers: `others`.
    """

    def __init__(self, cache: KernelCache, compilers: CompilerPool, *others: CompilerPool) -> None:
        self._cache, self._compilers, self._others = cache, compilers, others
        self._lock = threading.Lock()
        self._builds = 0

    @property
    def is_held(self) -> bool:
        """Whether an engine is being built."""
        return self._builds > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, the compilers stay; see `Target.compiling`."""
        with self._lock:
            self._builds += 1
        try:
            yield
        finally:
            with self._lock:
                self._builds -= 1
                idle = self._builds == 0
            if idle:
                for pool in (self._compilers, *self._others):
                    pool.close()

    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Compiles those that the cache does not hold, several at a time; see `Target.prepare`."""
        missing = {k.symbol: k for k in kernels if self._cache.get(k.symbol) is None}
        finished = 0

        def done(kernel: Kernel, code: bytes) -> None:
            nonlocal finished
            finished += 1
            self._cache.put(kernel.symbol, code)
            if progress:
                progress(finished, len(missing))

        self._compilers.compile(list(missing.values()), done)
        if not self._builds:
            self._compilers.close()

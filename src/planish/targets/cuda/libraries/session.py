"""A library on one GPU of this process: what it recommends, and its kernels made ready.

Asking a library what it recommends takes up to a tenth of a second, making a kernel ready up to
one. So both are done once: recommendations are kept in the user's kernel cache, by the library's
version, the GPU and the problem; what was made ready stays for as long as the process lives.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from planish.errors import TuningError
from planish.targets.base import Kernel
from planish.targets.cache import KernelCache, generator_version
from planish.targets.cuda.driver import Gpu
from planish.targets.cuda.kernel import LibraryCall, LibraryKernel

log = logging.getLogger("planish")

ALIGNMENT = 256
"""What libraries want the address of their workspace to be a multiple of."""


class ReadyCall(LibraryCall, Protocol):
    """A kernel that is ready."""

    workspace: int
    """Bytes of workspace it needs."""


K = TypeVar("K", bound=LibraryKernel)


class Session:
    """A library on a GPU. Thread-safe: `lock` is held while the library is called.

    Parameters
    ----------
    name : str
        What the library is called, for people and caches.
    version : int
        As the library gives it.
    gpu : Gpu
    """

    def __init__(self, name: str, version: int, gpu: Gpu) -> None:
        self.name, self.version, self.gpu = name, version, gpu
        self.lock = threading.RLock()
        key = gpu.machine().timing_key
        self._cache = KernelCache(f"{name} {version} {key} {generator_version('cuda', name)}")
        self._offered: set[str] = set()
        self._ready: dict[str, ReadyCall | TuningError] = {}

    def recommended(
        self, problem: str, ask: Callable[[], Sequence[Any]], kernel: Callable[[Any], K]
    ) -> list[K]:
        """The kernels that the library recommends for a problem, the likely best first.

        Parameters
        ----------
        problem : str
            The problem's symbol: a name that is the same in every process.
        ask : callable
            Asks the library; what it gives can be written as JSON.
        kernel : callable
            Makes a kernel of each answer, as JSON gives it back.
        """
        symbol = f"{problem}_choices"
        self.gpu.enter()
        with self.lock:
            known = self._cache.get(symbol)
            if known is None:
                known = json.dumps(list(self._asked(ask))).encode()
                self._cache.put(symbol, known)
            kernels = [kernel(answer) for answer in json.loads(known)]
            self._offered.update(k.symbol for k in kernels)
            return kernels

    def _asked(self, ask: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        try:
            return ask()
        except Exception as error:  # the libraries raise classes of their own, and plain ones
            log.debug("%s has nothing for a problem: %s", self.name, error)
            return []

    def has(self, kernel: LibraryKernel) -> bool:
        """Whether the library has a kernel: it recommended it, or could make it ready."""
        self.gpu.enter()
        with self.lock:
            known = self._ready.get(kernel.symbol)
            if known is None and kernel.symbol in self._offered:
                return True
            try:
                kernel.load(self.gpu)
            except TuningError:
                return False
            return True

    def call(self, kernel: Kernel, make: Callable[[], Any]) -> Any:
        """A kernel made ready, once.

        Raises
        ------
        TuningError
            The library does not have it.
        """
        self.gpu.enter()
        with self.lock:
            known = self._ready.get(kernel.symbol)
            if known is None:
                known = self._made(kernel, make)
                self._ready[kernel.symbol] = known
            if isinstance(known, TuningError):
                raise known
            return known

    def _made(self, kernel: Kernel, make: Callable[[], ReadyCall]) -> ReadyCall | TuningError:
        try:
            return make()
        except Exception as error:  # see above
            return TuningError(
                f"{self.name} does not have one of its kernels",
                where=f"cuda:{self.gpu.ordinal}, {kernel.symbol}",
                why=str(error),
                cure="tune again with this version of the library (retune=True)",
            )

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Holds the lock; what the library raises becomes a `TuningError`."""
        with self.lock:
            try:
                yield
            except Exception as error:  # see above
                raise TuningError(
                    f"{self.name} does not run one of its kernels",
                    where=f"cuda:{self.gpu.ordinal}",
                    why=str(error),
                    cure="tune again (retune=True)",
                ) from error

    def code(self, symbol: str) -> bytes | None:
        """A kernel as the library wrote it before: here, or where a plan is from."""
        return self._cache.get(f"{symbol}_plan") or self.gpu.library_code.get(symbol)

    def keep(self, symbol: str, code: bytes) -> None:
        """Keeps a kernel as the library writes it."""
        self._cache.put(f"{symbol}_plan", code)


def aligned(address: int) -> int:
    """The first address at or after another that libraries take as workspace."""
    return address + -address % ALIGNMENT


def workspace_bytes(needed: int) -> int:
    """Bytes to ask for so that `needed` are left after `aligned`."""
    return needed + ALIGNMENT if needed else 0

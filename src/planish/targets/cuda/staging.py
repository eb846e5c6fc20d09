"""Copies between a caller's memory on the host and the device, through pinned pieces.

    caller's array ─(threads)─▶ pinned piece ─(copy engine)─▶ device, and back

Some pieces are filled or emptied while others travel. A few serve tensors of any size: pinning as
much memory as a tensor has takes longer than copying it.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from planish.targets.cuda.driver import Gpu

PIECE = 1 << 20
"""Bytes of a piece."""
PIECES = 8
"""Pieces of one caller, at most."""
WORKERS = 4
"""Threads of a process that copy beside its callers, at most; fewer than pieces."""


class Transfer(NamedTuple):
    """So many bytes at an address of the host and at one of the device."""

    host: int
    device: int
    size: int


class _Piece:
    """Pinned memory, and when what it holds has left for the device."""

    def __init__(self, gpu: Gpu) -> None:
        self._memory = gpu.allocate_host(PIECE)
        self.address = self._memory.address
        self.left = gpu.event()
        self.is_leaving = False


class StagingRing:
    """Pinned pieces of one caller, which are taken in turn."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._pieces: list[_Piece] = []

    def send(self, transfers: Sequence[Transfer], stream: Any) -> None:
        """Queues copies to the device; memory on the host may change when it returns."""
        filled: deque[tuple[_Piece, Transfer, Callable[[], Any]]] = deque()

        def depart() -> None:
            piece, part, finish = filled.popleft()
            finish()
            self._gpu.copy(part.device, piece.address, part.size, stream)
            stream.record(piece.left)
            piece.is_leaving = True

        parts, copy = _parts(transfers), _copier(transfers)
        for number, part in enumerate(parts):
            if len(filled) == WORKERS:
                depart()
            piece = self._piece(number % PIECES)
            if piece.is_leaving:
                self._gpu.wait(piece.left)
            filled.append((piece, part, copy(piece.address, part.host, part.size)))
        while filled:
            depart()

    def fetch(self, transfers: Sequence[Transfer], stream: Any) -> None:
        """Copies from the device what a stream will have written; returns when all is there."""
        parts, copy = _parts(transfers), _copier(transfers)
        for start in range(0, len(parts), PIECES):
            held = [(self._piece(i), p) for i, p in enumerate(parts[start : start + PIECES])]
            for piece, part in held:  # behind whatever leaves it: in the order of the stream
                self._gpu.copy(piece.address, part.device, part.size, stream)
            self._gpu.wait(stream)
            for finish in [copy(part.host, piece.address, part.size) for piece, part in held]:
                finish()

    def _piece(self, number: int) -> _Piece:
        if number == len(self._pieces):
            self._pieces.append(_Piece(self._gpu))
        return self._pieces[number]


def _parts(transfers: Sequence[Transfer]) -> list[Transfer]:
    """The same in parts that fit into a piece."""
    return [
        Transfer(t.host + start, t.device + start, min(PIECE, t.size - start))
        for t in transfers
        for start in range(0, t.size, PIECE)
    ]


def _copier(transfers: Sequence[Transfer]) -> Callable[[int, int, int], Callable[[], Any]]:
    """What begins a copy on the host and returns what waits for its end: by threads if it is large
    enough to gain by them.
    """
    if sum(t.size for t in transfers) > PIECE:
        return lambda *copied: _workers().submit(ctypes.memmove, *copied).result

    def at_once(target: int, source: int, size: int) -> Callable[[], Any]:
        ctypes.memmove(target, source, size)
        return lambda: None

    return at_once


@cache
def _workers() -> ThreadPoolExecutor:
    count = min(WORKERS, len(os.sched_getaffinity(0)))
    return ThreadPoolExecutor(count, thread_name_prefix="planish-staging")

"""Copies through pinned pieces, with a GPU that does what is queued as late as it may."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planish.targets.cuda import staging
from planish.targets.cuda.staging import PIECE, PIECES, StagingRing, Transfer


class LateGpu:
    """Device memory is the host's; what is queued is done when someone waits for it."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], None]] = []
        self.done = 0
        self.pinned: list[np.ndarray] = []

    def allocate_host(self, size: int) -> SimpleNamespace:
        self.pinned.append(np.full(size, 0xA5, np.uint8))
        return SimpleNamespace(address=self.pinned[-1].ctypes.data, nbytes=size)

    def event(self) -> SimpleNamespace:
        return SimpleNamespace(place=0)

    def record(self, event: SimpleNamespace) -> None:
        event.place = len(self.queued)

    def copy(self, target: int, source: int, size: int, stream: LateGpu) -> None:
        self.queued.append(lambda: void(ctypes.memmove(target, source, size)))

    def wait(self, what: Any) -> None:
        until = len(self.queued) if what is self else what.place
        while self.done < until:
            self.queued[self.done]()
            self.done += 1


def void(_: object) -> None:
    """So that a lambda has no result."""


@pytest.fixture
def gpu() -> LateGpu:
    return LateGpu()


def arrays(*sizes: int) -> tuple[list[np.ndarray], list[np.ndarray], list[Transfer]]:
    """On the host and on the device, at addresses of any alignment."""
    rng = np.random.default_rng()
    host = [rng.integers(0, 255, 1 + size, np.uint8)[1:] for size in sizes]
    device = [rng.integers(0, 255, size, np.uint8) for size in sizes]
    pairs = zip(host, device, strict=True)
    return host, device, [Transfer(h.ctypes.data, d.ctypes.data, h.nbytes) for h, d in pairs]


SIZES = [
    (1,),
    (PIECE,),
    (PIECE + 1,),
    (100, 0, 3 * PIECE - 5),
    ((PIECES + 3) * PIECE + 17,),
    (7,) * (2 * PIECES + 1),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_there(sizes: tuple[int, ...], gpu: LateGpu) -> None:
    ring = StagingRing(gpu)  # type: ignore[arg-type]
    for _ in range(2):  # nobody waits in between
        host, device, transfers = arrays(*sizes)
        ring.send(transfers, gpu)
        sent = [h.copy() for h in host]
        for h in host:
            h[...] = 0  # the caller's again
        gpu.wait(gpu)
        assert all(np.array_equal(d, s) for d, s in zip(device, sent, strict=True))


def test_the_next_call_waits_for_pieces_that_travel(gpu: LateGpu) -> None:
    ring = StagingRing(gpu)  # type: ignore[arg-type]
    calls = [arrays(2 * PIECE) for _ in range(3)]
    for _, _, transfers in calls:
        ring.send(transfers, gpu)
    assert gpu.done == len(gpu.queued) - 2
    gpu.wait(gpu)
    assert all(np.array_equal(d[0], h[0]) for h, d, _ in calls)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_and_back(sizes: tuple[int, ...], gpu: LateGpu) -> None:
    ring = StagingRing(gpu)  # type: ignore[arg-type]
    host, device, transfers = arrays(*sizes)
    written = [255 - d for d in device]

    def compute() -> None:
        for d, w in zip(device, written, strict=True):
            d[...] = w

    ring.send(transfers, gpu)
    gpu.queued.append(compute)
    ring.fetch(transfers, gpu)
    assert all(np.array_equal(h, w) for h, w in zip(host, written, strict=True))


def test_little_is_pinned(gpu: LateGpu) -> None:
    ring = StagingRing(gpu)  # type: ignore[arg-type]
    for size, pieces in ((600_000, 1), (600_000, 1), (2 * PIECE, 2), (90 * PIECE, PIECES)):
        kept = arrays(size)
        ring.send(kept[2], gpu)
        assert sum(p.nbytes for p in gpu.pinned) == pieces * PIECE
        gpu.wait(gpu)


def test_small_tensors_need_no_threads(gpu: LateGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_workers", lambda: pytest.fail("threads"))
    ring = StagingRing(gpu)  # type: ignore[arg-type]
    _, _, transfers = arrays(1000, PIECE - 1000)
    ring.send(transfers, gpu)
    ring.fetch(transfers, gpu)

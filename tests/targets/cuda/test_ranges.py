"""Layers are named to NVIDIA's profilers, if the package for that is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from planish.targets.cuda import ranges
from planish.targets.cuda.executable import CudaExecutable
from planish.targets.execution import Schedule, ScheduledLaunch


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    ranges._annotate.cache_clear()
    yield
    ranges._annotate.cache_clear()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with ranges.layer_range("conv1"):
        pass


def test_every_layer_is_a_range_while_profiling(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")
    from helpers.simulated_gpu import SimulatedGpu
    from planish.targets.base import Launch
    from planish.targets.cuda.memory import CudaArena

    open_ranges: list[tuple[str, str]] = []
    seen: list[tuple[str, str]] = []

    @contextmanager
    def annotate(message: str, domain: str) -> Iterator[None]:
        open_ranges.append((message, domain))
        yield
        open_ranges.pop()

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    gpu = SimulatedGpu()
    launch = Launch(lambda: seen.extend(open_ranges), ())
    steps = tuple(ScheduledLaunch(launch, (), (), (), name) for name in ("conv1", "relu1"))
    executable = CudaExecutable(Schedule(steps, (), (), 0), gpu, lambda kernel: None)  # type: ignore[arg-type]
    arena = CudaArena(gpu, 64)  # type: ignore[arg-type]
    executable.run(arena, (), (), 1, np.zeros((2, 2), np.int64))
    assert seen == [("conv1", "planish"), ("relu1", "planish")]
    executable.run(arena, (), (), 1)
    assert len(seen) == 2  # nothing is named without a profiler

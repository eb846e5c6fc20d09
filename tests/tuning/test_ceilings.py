"""What a machine can reach: measured once, kept, and of a plausible size."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish.targets.cpu.target import CpuTarget
from planish.tuning import ceilings as module
from planish.tuning.ceilings import Ceilings, ceilings


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CpuTarget:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    monkeypatch.setattr(CpuTarget, "ceiling_sizes", (128, 1 << 18))
    monkeypatch.setattr(module, "SECONDS", 0.005)
    return CpuTarget()


def test_measured_once_and_kept(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ceilings(target, measure=False) is None
    found = ceilings(target)
    assert found is not None
    assert set(found.flops) == target.precisions
    assert all(1e8 < rate < 1e14 for rate in found.flops.values())
    assert 1e8 < found.bytes < 1e13
    monkeypatch.setattr(module, "_measured", None)
    assert ceilings(target) == ceilings(target, measure=False) == found
    assert ceilings(target, threads=target.threads + 1, measure=False) is None


def test_where_nothing_runs(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "tactics", lambda task, binding: [])
    assert ceilings(target) is None


def test_floors() -> None:
    limits = Ceilings({"fp32": 1e12, "fp16": 1e13}, 1e11)
    assert limits.floor(1e9, 1e6, "fp16") == pytest.approx(1e-4)
    assert limits.floor(1e9, 1e9, "fp16") == pytest.approx(1e-2)
    assert limits.floor(1e9, 0, "int8") == pytest.approx(1e-3)  # as of float32
    assert Ceilings({}, 1e11).floor(1e9, 1e9, "fp32") == pytest.approx(1e-2)

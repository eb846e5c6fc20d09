from __future__ import annotations

import numpy as np
import pytest

from helpers.networks import N, Net, build
from planish.runtime.engine import Engine
from planish.targets.cpu.target import CpuTarget


def test_code_that_the_cache_lost_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder may be emptied between the moment code is prepared and the moment it runs."""
    net = Net()
    plan = build(net.output(net.relu(net.input(N, 3)))).plan
    target = CpuTarget()
    monkeypatch.setattr(target, "prepare", lambda kernels: None)
    monkeypatch.setattr(target._cache, "get", lambda symbol: None)
    kept: list[str] = []
    monkeypatch.setattr(target._cache, "put", lambda symbol, code: kept.append(symbol))
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_array_equal(Engine(plan, target)(x), np.maximum(x, 0))
    assert kept

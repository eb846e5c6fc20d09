"""Whole networks on a CPU with tiles (AMX), whose instructions are emulated; asking for tiles."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace

import numpy as np
import pytest

import planish
from helpers.networks import feeds, mobile_net, residual_net
from helpers.tiles import FEATURES, EmulatingTarget, watched
from planish.builder import build_graph
from planish.runtime.engine import Engine
from planish.targets.cpu import machine
from planish.targets.cpu.machine import host
from planish.targets.cpu.target import EMULATED_BF16, CpuTarget

BF16 = frozenset({"fp32", "bf16"})

needs_avx512 = pytest.mark.skipif(
    host().isa != "avx512", reason="all kernels but those in tiles run on this CPU: needs AVX-512"
)


def families(engine: Engine) -> list[str]:
    return [str(row["tactic"]).split("(")[0] for row in engine.layers()]


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of this machine may have no products of bfloat16."""
    monkeypatch.setenv(EMULATED_BF16, "1")


@needs_avx512
@pytest.mark.parametrize("make", [lambda: mobile_net(32), residual_net], ids=["mobile", "residual"])
def test_networks_in_bfloat16(make) -> None:
    arrays = feeds(make(), 2)
    exact = build_graph(make(), CpuTarget(), tuning_seconds=0, precision=frozenset({"fp32"}))(
        arrays
    )
    engine = build_graph(make(), EmulatingTarget(), tuning_seconds=0, precision=BF16)
    assert "tile_matrix" in families(engine)
    with watched():
        result = engine(arrays)
    error = np.abs(result - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 3e-2


@needs_avx512
def test_a_network_in_int8(tmp_path) -> None:
    """Sums of integers are exact, so that vectors give the same."""
    arrays = feeds(mobile_net(32), 3)

    def built(target: CpuTarget) -> Engine:
        return build_graph(
            mobile_net(32),
            target,
            tuning_seconds=0,
            precision=frozenset({"fp32", "int8"}),
            calibration=arrays,
            timing_cache=tmp_path / "timing",
        )

    with watched():
        engine = built(EmulatingTarget())
        result = engine(arrays)
    assert "tile_matrix" in families(engine)
    np.testing.assert_array_equal(result, built(CpuTarget())(arrays))


@needs_avx512
def test_a_plan_is_used_without_tiles_where_there_are_none(tmp_path, caplog) -> None:
    arrays = feeds(residual_net(), 2)
    engine = build_graph(residual_net(), EmulatingTarget(), tuning_seconds=0, precision=BF16)
    with watched():
        expected = engine(arrays)
    engine.save(tmp_path / "plan")
    again = planish.load(tmp_path / "plan")
    assert "tile_matrix" not in families(again)
    assert "another machine" in caplog.text
    np.testing.assert_allclose(again(arrays), expected, rtol=0, atol=0.02 * np.abs(expected).max())


# ---- the system's permission ---------------------------------------------------------------------


class Refusing:
    """A C library whose system calls give an answer."""

    def __init__(self, answer: int) -> None:
        self.answer, self.asked = answer, []

    def syscall(self, *arguments: int) -> int:
        self.asked.append(arguments)
        ctypes.set_errno(1)
        return self.answer


@pytest.mark.parametrize("answer", [0, -1])
def test_tiles_are_asked_for(answer, monkeypatch, caplog) -> None:
    """Once, by `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`; without them it goes on."""
    import llvmlite.binding as llvm

    library = Refusing(answer)
    flags = dict.fromkeys((f[1:] for f in (*host().features, *FEATURES)), True)
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: flags)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.delenv("PLANISH_CPU_ISA", raising=False)
    with caplog.at_level(logging.INFO, logger="planish"):
        found = host.__wrapped__()
    assert library.asked == [(158, 0x1023, 18)]
    told = [r for r in caplog.records if "AMX is not used" in r.message]
    assert bool(told) == (answer != 0)
    offered = {f for f in found.features if f.startswith("+amx")}
    assert offered == (set() if answer else {"+amx-bf16", "+amx-int8", "+amx-tile"})


def test_nobody_is_asked_where_there_are_none(monkeypatch) -> None:
    monkeypatch.setattr(machine, "may_use_tiles", lambda: pytest.fail("asked"))
    if not any(f.startswith("+amx") for f in host().features):
        host.__wrapped__()


def test_times_with_tiles_are_times_of_another_machine() -> None:
    with_tiles = replace(host(), isa="avx512", features=(*host().features, *FEATURES))
    assert with_tiles.timing_key != with_tiles.without_tiles().timing_key
    assert with_tiles.code_key != with_tiles.without_tiles().code_key
    assert with_tiles.restricted("avx512") == with_tiles.without_tiles()

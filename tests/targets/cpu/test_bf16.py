"""Whole networks in BF16 on a CPU, emulated where it has no products of bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from helpers.attentions import Form, attention
from helpers.networks import feeds, mobile_net, residual_net
from planish.builder import build_graph
from planish.graph import Graph
from planish.runtime.engine import Engine
from planish.targets.cpu.machine import generic, host
from planish.targets.cpu.target import EMULATED_BF16, CpuTarget

ATTENTION = "attention_dots" if host().has_bf16 else "attention"

FP32, BF16 = frozenset({"fp32"}), frozenset({"fp32", "bf16"})


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> CpuTarget:
    monkeypatch.setenv(EMULATED_BF16, "1")
    return CpuTarget()


def build(graph: Graph, target: CpuTarget, precision: frozenset[str]) -> Engine:
    return build_graph(graph, target, tuning_seconds=0, precision=precision)


@pytest.mark.parametrize(
    ("make", "families"),
    [
        (lambda: mobile_net(32), {"bfloat_matrix", "depthwise"}),
        (lambda: residual_net(), {"bfloat_matrix", "reduction"}),
        (lambda: attention(Form(mask="keys"), queries=20, keys=20), {ATTENTION}),
    ],
    ids=["mobile", "residual", "attention"],
)
def test_networks(make: Callable[[], Graph], families: set[str], target: CpuTarget) -> None:
    arrays = feeds(make(), 2)
    exact = build(make(), target, FP32)(arrays)
    engine = build(make(), target, BF16)
    error = np.abs(engine(arrays) - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 3e-2  # computed in bfloat16 indeed, and right
    assert not engine.report.tuning.host_steps
    lowered = [row["tactic"] for row in engine.layers() if row["precision"] == "bf16"]
    assert families <= {tactic.split("(")[0] for tactic in lowered}


def test_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EMULATED_BF16, raising=False)
    assert ("bf16" in CpuTarget().precisions) == host().has_bf16
    assert "bf16" not in CpuTarget(generic("avx2")).precisions

"""Networks in INT8 on the CUDA target, interpreted: the CPU's results, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted_target import InterpretedTarget
from helpers.networks import N, Net
from planish.builder import build_graph
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph
from planish.ops import AvgPool, MaxPool
from planish.passes import optimize
from planish.profile import settle_ranges
from planish.quantization import Ranges
from planish.quantization.calibration import calibrate
from planish.targets.cpu.target import CpuTarget, cpu

X = np.random.default_rng(3).standard_normal((3, 9, 9, 3)).astype(np.float32)
SAME = ((1, 1), (1, 1))
FAMILIES = ("matrix", "depthwise", "contraction", "pool", "movement", "pointwise", "reduction")


def net() -> Graph:
    """A residual, depthwise and grouped convolutions, poolings, a concatenation, a product."""
    n = Net("int8", 4)
    first = n.relu(n.bias(n.conv(n.input(N, 9, 9, 3), 16, 3, 2)))
    depthwise = n.relu(n.bias(n.conv(first, 16, 3, groups=16)))
    added = n.relu(n.add(n.bias(n.conv(depthwise, 16)), first))
    grouped = n.relu(n.conv(added, 16, 3, groups=2))
    pooled = n.graph.add(MaxPool((3, 3), (1, 1), SAME, (1, 1)), added)
    mean = n.graph.add(AvgPool((3, 3), (1, 1), SAME), added)
    joined = n.conv(n.concat(grouped, pooled, n.conv(mean, 24)), 24, 3)
    n.graph.mark_output(n.bias(n.dense(n.pooled(n.relu(joined)), 10)), "y")
    return n.graph


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    graph = net()
    settle_ranges(graph)
    optimize(graph)
    return calibrate(graph, X)


def built(target, ranges, *precisions: str):
    precision = frozenset({"fp32", *precisions})
    options = {"calibration": ranges, "tuning_seconds": 0}
    return build_graph(duplicate(net())[0], target, precision=precision, **options)


@pytest.mark.parametrize(("symmetric", "short"), [(True, False), (False, False), (False, True)])
def test_results_are_those_of_the_cpu(symmetric, short, ranges, monkeypatch) -> None:
    """With a CPU's levels and weights, too: plans move between machines."""
    monkeypatch.setattr(cpu(), "adds_short", short)
    monkeypatch.setattr(InterpretedTarget, "adds_short", short)
    monkeypatch.setattr(CpuTarget, "symmetric_levels", symmetric)
    monkeypatch.setattr(InterpretedTarget, "symmetric_levels", symmetric)
    engine, other = built(InterpretedTarget(), ranges, "int8"), built(cpu(), ranges, "int8")
    assert len(engine.report.quantized) == 7
    assert engine.report.quantized == other.report.quantized
    assert not engine.host_steps()
    np.testing.assert_allclose(engine(X), other(X), rtol=1e-6, atol=1e-6)
    exact = np.asarray(build_graph(net(), cpu(), tuning_seconds=0)(X))
    error = np.square(np.asarray(engine(X)) - exact).sum()
    assert 0 < error < 1e-3 * np.square(exact).sum()


def test_only_bytes_lie_between_layers(ranges) -> None:
    engine = built(InterpretedTarget(), ranges, "int8")
    *inner, last = engine.layers()
    *convolutions, averaged = [r for r in inner if r["op"].startswith(("conv", "max_pool"))]
    assert {row["output"].split("[")[0] for row in convolutions} == {"i8"}
    assert averaged["output"].startswith("f32")
    assert last["precision"] == "int8" and last["output"].startswith("f32")
    assert {row["tactic"].split("(")[0] for row in inner} <= set(FAMILIES)


def test_halves_where_levels_end(ranges) -> None:
    engine = built(InterpretedTarget(), ranges, "int8", "fp16")
    assert len(engine.report.quantized) == 7
    whole = built(InterpretedTarget(), ranges, "int8")
    np.testing.assert_allclose(engine(X), whole(X), rtol=0.02, atol=0.02)

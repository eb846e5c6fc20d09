"""Graphs for tests of precision, lowering them, and a CPU that claims to have halves."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np

from helpers.networks import N, Net
from planish.graph.graph import DimRange, Graph, Node
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.graph.verify import verify
from planish.ops import CombinedNonMaxSuppression, MatMul, ReduceSum, Softmax, ew
from planish.passes import optimize
from planish.precision.lower import lower
from planish.precision.policy import Decision, decide
from planish.targets.cpu.target import CpuTarget

F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32


class HalfCpu(CpuTarget):
    """The CPU, as if FP16 and BF16 paid there."""

    precisions = frozenset({"fp32", "fp16", "bf16"})


def lowered(
    graph: Graph, dtype: DType = F16, asked: Mapping[str, DType] | None = None
) -> tuple[Graph, Graph, Decision]:
    """The optimised graph, a lowered copy of it, and what was decided."""
    optimize(graph)
    result = copy.deepcopy(graph)
    nodes = {node.name: node for node in result.nodes}
    decision = decide(result, dtype, {nodes[n]: d for n, d in (asked or {}).items()})
    lower(result, decision.lowered)
    verify(result)
    return graph, result, decision


def named(graph: Graph, name: str) -> Node:
    """The node of a name."""
    return next(node for node in graph.nodes if node.name == name)


def deviation(
    before: Graph, after: Graph, feeds: Mapping[str, np.ndarray]
) -> list[tuple[float, float]]:
    """For each result its largest error, and its scale; dtypes and shapes must be the same."""
    found = []
    for a, b in zip(interpret(before, feeds), interpret(after, feeds), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        error = np.abs(a.astype(np.float64) - b.astype(np.float64))
        found.append((float(error.max()), float(np.abs(a).max())))
    return found


def detector(batch: int = 2) -> Graph:
    """A single-shot detector: a feature map, boxes decoded from anchors, scores, suppression."""
    net = Net("detector", seed=3)
    x = net.relu(net.bias(net.conv(net.input(batch, 8, 8, 3), 16, 3, 2)))
    x = net.relu(net.bias(net.conv(x, 16, 3)))
    anchors, classes = 16, 4
    raw = net.reshape(net.bias(net.conv(x, 4)), batch, anchors, 4)
    scores = net.reshape(net.bias(net.conv(x, classes)), batch, anchors, classes)
    places = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(16, 2).astype(np.float32)
    centres = net.graph.constant((places + 0.5) * 75, "centres")
    sizes = net.graph.constant(np.full((anchors, 2), 60, np.float32), "sizes")
    tenth = net.graph.constant(np.float32(0.1), "tenth")
    moved = net.graph.add(ew.Mul(), net.slice(raw, 2, 0, 2), tenth, name="moved")
    centre = net.graph.add(ew.Add(), net.graph.add(ew.Mul(), moved, sizes), centres, name="centre")
    grown = net.graph.add(ew.Exp(), net.slice(raw, 2, 2, 2), name="grown")
    half = net.graph.add(ew.Mul(), grown, sizes, name="half")
    corners = net.concat(
        net.graph.add(ew.Sub(), centre, half), net.graph.add(ew.Add(), centre, half), axis=2
    )
    boxes = net.reshape(corners, batch, anchors, 1, 4)
    likely = net.graph.add(ew.Sigmoid(), scores, name="likely")
    op = CombinedNonMaxSuppression(5, 8, 0.5, 0.3, False, False)
    node = net.graph.add_node(op, (boxes, likely), name="suppress")
    return net.output(*node.outputs)


def growing() -> Graph:
    """Values grow past 65504 in the second product; the third layer only hands them on."""
    net = Net()
    x = net.input(2, 4)
    for name in ("small", "large", "larger"):
        w = net.graph.constant(np.full((4, 4), 30.0, np.float32))
        x = net.graph.add(MatMul(), x, w, name=name, origin=f"model/{name} (Dense)")
    return net.output(net.graph.add(Softmax(1), x, name="softmax"))


def normalized(epsilon: float) -> Graph:
    """A product whose rows are divided by their length, spelled out, and another product."""
    net = Net("normalized", seed=5)
    x = net.dense(net.input(N, 8), 16)
    squares = net.graph.add(ew.Square(), x, name="squares")
    total = net.graph.add(ReduceSum((1,), True), squares, name="total")
    shifted = net.add(total, net.graph.constant(np.float32(epsilon), "epsilon"))
    inverse = net.graph.add(ew.Rsqrt(), shifted, name="inverse")
    unit = net.graph.add(ew.Mul(), x, inverse, name="unit")
    net.graph.ranges["N"] = DimRange(1, 2, 8)
    return net.output(net.dense(unit, 4))


def masked_attention() -> Graph:
    """Scores, a mask of 0 and the least float, softmax, and a product."""
    net = Net("attention", seed=7)
    x, mask = net.input(2, 6, 8), net.input(2, 1, 6, name="mask")
    scores = net.graph.add(MatMul(False, True), net.dense(x, 8), net.dense(x, 8), name="scores")
    least = net.graph.constant(np.float32(np.finfo(np.float32).min), "least")
    off = net.graph.add(ew.Mul(), mask, least, name="off")
    total = net.graph.add(ew.Add(), scores, off, name="total")
    weights = net.graph.add(Softmax(2), total, name="weights")
    return net.output(net.graph.add(MatMul(), weights, x, name="mixed"))

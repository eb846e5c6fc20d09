"""Which nodes are an inverted bottleneck."""

from __future__ import annotations

import numpy as np

from planish.fusion.bottleneck import bottleneck_of
from planish.fusion.candidates import propose
from planish.graph import DType, Graph, TensorType
from planish.graph.graph import Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Add, Relu

F32 = DType.FLOAT32


def conv(graph: Graph, x: Value, window: int, channels: int, groups: int = 1) -> Value:
    depth = int(x.shape[-1]) // groups  # type: ignore[arg-type]
    filters = graph.constant(np.ones((window, window, depth, channels), np.float32))
    pads = ((window // 2, window // 2),) * 2
    return graph.add(Conv((1, 1), pads, (1, 1), groups), x, filters)


def block(graph: Graph, x: Value) -> tuple[Value, Value]:
    """What the first convolution gives, and the block's result."""
    wide = graph.add(Relu(), conv(graph, x, 1, 24))
    return wide, graph.add(Add(), conv(graph, conv(graph, wide, 3, 24, 24), 1, 8), x)


def patterns(graph: Graph, *outputs: Value) -> list[str]:
    for value in outputs:
        graph.outputs.append(value)
        graph.output_names.append(value.name)
    return [t.pattern for t in propose(graph)]


def test_a_block_is_proposed_with_and_without_its_residual() -> None:
    graph = Graph()
    x = graph.input("x", TensorType((1, 9, 9, 8), F32))
    _, result = block(graph, x)
    graph.outputs.append(result)
    graph.output_names.append("y")
    tasks = [t for t in propose(graph) if t.pattern == "bottleneck"]
    assert sorted(len(t.nodes) for t in tasks) == [4, 5]
    for task in tasks:
        found = bottleneck_of(task.nodes)
        assert found is not None and found.first is task.nodes[0]
        assert task.anchor is found.pair.second
        assert task.inputs[0] is x
        assert "groups=24" in task.key and task.key.count("conv(") == 3


def test_what_others_read_is_not_inside() -> None:
    graph = Graph()
    x = graph.input("x", TensorType((1, 9, 9, 8), F32))
    wide, result = block(graph, x)
    assert "bottleneck" not in patterns(graph, result, wide)


def test_a_residual_between_the_convolutions_is_none() -> None:
    graph = Graph()
    x = graph.input("x", TensorType((1, 9, 9, 24), F32))
    wide = graph.add(Add(), conv(graph, x, 1, 24), x)
    result = conv(graph, conv(graph, wide, 3, 24, 24), 1, 8)
    found = patterns(graph, result)
    assert "bottleneck" not in found and "pair" in found


def test_three_other_convolutions_are_none() -> None:
    graph = Graph()
    x = graph.input("x", TensorType((1, 9, 9, 8), F32))
    y = conv(graph, conv(graph, conv(graph, x, 1, 24), 1, 24), 1, 8)
    assert "bottleneck" not in patterns(graph, y)
    assert bottleneck_of(list(graph.nodes)) is None

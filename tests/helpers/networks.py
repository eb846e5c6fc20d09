"""Small networks for tests of whole engines, and comparing engines with the references."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np

from planish.builder import build_graph
from planish.graph.dims import DimLike, symbol
from planish.graph.graph import DimRange, Graph, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import Concat, Conv, MatMul, ReduceMean, Reshape, Slice, ew
from planish.runtime.engine import Engine
from planish.targets.cpu.target import cpu

N = symbol("N")


class Net:
    """A float32 graph under construction."""

    def __init__(self, name: str = "net", seed: int = 0) -> None:
        self.graph = Graph(name)
        self._random = np.random.default_rng(seed)

    def input(self, *shape: DimLike, name: str = "x") -> Value:
        return self.graph.input(name, TensorType(shape, DType.FLOAT32))

    def weights(self, *shape: int) -> Value:
        data = self._random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]) or 1)
        return self.graph.constant(data.astype(np.float32), "w")

    def conv(
        self, x: Value, channels: int, window: int = 1, stride: int = 1, groups: int = 1
    ) -> Value:
        deep = x.shape[-1]
        assert isinstance(deep, int)
        around = ((window // 2, window // 2),) * 2
        op = Conv((stride, stride), around, (1, 1), groups)
        w = self.weights(window, window, deep // groups, channels)
        return self.graph.add(op, x, w)

    def dense(self, x: Value, channels: int) -> Value:
        deep = x.shape[-1]
        assert isinstance(deep, int)
        return self.graph.add(MatMul(), x, self.weights(deep, channels))

    def relu(self, x: Value) -> Value:
        return self.graph.add(ew.Relu(), x)

    def add(self, a: Value, b: Value) -> Value:
        return self.graph.add(ew.Add(), a, b)

    def bias(self, x: Value) -> Value:
        deep = x.shape[-1]
        assert isinstance(deep, int)
        return self.add(x, self.weights(deep))

    def reshape(self, x: Value, *shape: DimLike) -> Value:
        return self.graph.add(Reshape(shape), x)

    def concat(self, *values: Value, axis: int = -1) -> Value:
        return self.graph.add(Concat(axis), *values)

    def slice(self, x: Value, axis: int, begin: int, size: int) -> Value:
        rank = len(x.shape)
        begins = tuple(begin if i == axis else 0 for i in range(rank))
        sizes = tuple(size if i == axis else d for i, d in enumerate(x.shape))
        return self.graph.add(Slice(begins, sizes, (1,) * rank), x)

    def pooled(self, x: Value) -> Value:
        return self.graph.add(ReduceMean((1, 2), False), x)

    def output(self, *values: Value) -> Graph:
        for value in values:
            self.graph.mark_output(value, f"out{len(self.graph.results())}")
        return self.graph


def residual_net(batch: DimLike = N, seed: int = 0) -> Graph:
    """Two convolutions with a residual connection, pooled, and a dense layer."""
    net = Net("residual", seed)
    x = net.input(batch, 6, 6, 4)
    a = net.relu(net.bias(net.conv(x, 8, 3)))
    b = net.relu(net.add(net.bias(net.conv(a, 8, 3)), a))
    if batch == N:
        net.graph.ranges["N"] = DimRange(1, 2, 8)
    return net.output(net.bias(net.dense(net.pooled(b), 5)))


def mobile_net(size: int = 224, batch: DimLike = N) -> Graph:
    """Inverted residual blocks: expand, depthwise, project, and the input added."""
    net = Net("mobile")
    x = net.relu(net.bias(net.conv(net.input(batch, size, size, 3), 16, 3, 2)))
    for channels, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (32, 1), (64, 2)):
        deep = x.shape[-1]
        assert isinstance(deep, int)
        wide = net.relu(net.bias(net.conv(x, 4 * deep)))
        wide = net.relu(net.bias(net.conv(wide, 4 * deep, 3, stride, 4 * deep)))
        y = net.bias(net.conv(wide, channels))
        x = net.add(y, x) if stride == 1 and deep == channels else y
    return net.output(net.dense(net.pooled(x), 10))


def build(graph: Graph, tuning_seconds: float = 0, **options: object) -> Engine:
    """An engine by heuristics only."""
    return build_graph(graph, cpu(), tuning_seconds=tuning_seconds, **options)  # type: ignore[arg-type]


def feeds(graph: Graph, size: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for the inputs; every symbol has the given size."""
    random = np.random.default_rng(seed)
    bound = dict.fromkeys(graph.symbols(), size)
    arrays = {}
    for value in graph.inputs:
        shape = value.type.bind(bound)
        made = (
            random.standard_normal(shape) if value.dtype.is_float else random.integers(0, 2, shape)
        )
        arrays[value.name] = np.asarray(made).astype(value.dtype.numpy)
    return arrays


def as_list(result: object) -> list[np.ndarray]:
    """An engine's result as a list of its outputs."""
    return list(result.values()) if isinstance(result, dict) else [result]  # type: ignore[list-item]


def check(make: Callable[[], Graph] | Graph, sizes: Sequence[int] = (1, 3)) -> Engine:
    """Builds a graph and compares the engine with the references of the graph as it was."""
    graph = make if isinstance(make, Graph) else make()
    before = copy.deepcopy(graph)
    engine = build(graph)
    for size in sizes:
        given = feeds(before, size, seed=size)
        have, want = as_list(engine(given)), interpret(before, given)
        assert len(have) == len(want)
        for a, b in zip(have, want, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return engine

"""Passes are tested by meaning: the same results before and after, for two batch sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest

from planish.graph.dims import evaluate
from planish.graph.graph import Graph, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.graph.verify import verify
from planish.ops.base import Op


class Network:
    """A graph under construction, with the shorthand that tests want."""

    def __init__(self) -> None:
        self.graph = Graph("test")
        self.random = np.random.default_rng(0)

    def input(self, *shape, dtype: DType = DType.FLOAT32, name: str = "x") -> Value:
        return self.graph.input(name, TensorType(tuple(shape), dtype))

    def weights(self, *shape: int, dtype=np.float32) -> Value:
        return self.graph.constant(self.random.standard_normal(shape).astype(dtype), "w")

    def constant(self, data, dtype=np.float32) -> Value:
        return self.graph.constant(np.asarray(data, dtype))

    def add(self, op: Op, *inputs: Value, name: str = "") -> Value:
        return self.graph.add(op, *inputs, name=name, origin=f"{name} ({op.name})" if name else "")

    def output(self, *values: Value) -> None:
        for value in values:
            self.graph.mark_output(value, f"out{len(self.graph.outputs)}")


def feeds(graph: Graph, size: int) -> dict[str, np.ndarray]:
    """Random arrays for the inputs; every symbol has the given size."""
    random = np.random.default_rng(size)
    arrays = {}
    for value in graph.inputs:
        shape = [evaluate(d, dict.fromkeys(graph.symbols(), size)) for d in value.shape]
        if value.dtype.is_float:
            array = 2 * random.standard_normal(shape)
        else:
            array = random.integers(0, 2 if value.dtype is DType.BOOL else 100, shape)
        arrays[value.name] = np.asarray(array).astype(value.dtype.numpy)
    return arrays


@pytest.fixture
def net() -> Network:
    return Network()


@pytest.fixture
def check() -> Callable:
    """Runs a pass and compares results; returns the names of the ops that are left, in order."""

    def run(net: Network | Graph, change: Callable[[Graph], object], rtol=2e-5, atol=2e-5):
        graph = net if isinstance(net, Graph) else net.graph
        before = copy.deepcopy(graph)
        graph.tidy()
        change(graph)
        graph.tidy()
        verify(graph)
        assert graph.output_names == before.output_names
        assert [v.type for v in graph.outputs] == [v.type for v in before.outputs]
        for size in (1, 3):
            given = feeds(graph, size)
            for old, new in zip(interpret(before, given), interpret(graph, given), strict=True):
                np.testing.assert_allclose(
                    np.asarray(new, np.float64), np.asarray(old, np.float64), rtol=rtol, atol=atol
                )
        return [node.op.name for node in graph.nodes]

    return run

"""Scales folded between sums and levels: the same levels, but for the last bit before rounding."""

from __future__ import annotations

import numpy as np
import pytest

from planish.graph.graph import Graph, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import Cast, Clip, ConvInteger, Dequantize, Quantize, ew
from planish.quantization.requantize import fold_scales

F32, U8 = DType.FLOAT32, DType.UINT8


class Chain:
    """From integer sums to levels, one step after the other."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.random = np.random.default_rng(0)
        x = self.graph.input("x", TensorType((1, 4, 4, 8), U8))
        w = self.random.integers(-127, 128, (1, 1, 8, 6)).astype(np.int8)
        zeros = self.number(7, U8), self.number(0, DType.INT8)
        conv = ConvInteger((1, 1), ((0, 0), (0, 0)), (1, 1))
        sums = self.graph.add(conv, x, self.graph.constant(w), *zeros)
        self.value = self.graph.add(Dequantize(), sums, self.vector(2e-5, 1e-4), self.number(0))

    def number(self, value: float, dtype: DType = F32) -> Value:
        return self.graph.constant(np.asarray(value, dtype.numpy))

    def vector(self, low: float, high: float) -> Value:
        return self.graph.constant(self.random.uniform(low, high, 6).astype(np.float32))

    def then(self, op: object, *others: Value) -> Chain:
        self.value = self.graph.add(op, self.value, *others)  # type: ignore[arg-type]
        return self

    def residual(self, scale: Value | None = None) -> Chain:
        r = self.graph.input("r", TensorType((1, 4, 4, 6), U8))
        scale = scale or self.number(0.03)
        return self.then(ew.Add(), self.graph.add(Dequantize(), r, scale, self.number(90)))

    def levels(self, scale: float | Value = 0.05, zero: int = 100) -> Graph:
        steps = scale if isinstance(scale, Value) else self.number(scale)
        self.then(Quantize(U8, 0, 255), steps, self.number(zero))
        self.graph.mark_output(self.value, "y")
        return self.graph


CHAINS = {
    "plain": lambda: Chain().levels(),
    "bias": lambda: (c := Chain()).then(ew.Add(), c.vector(-1, 1)).levels(),
    "relu": lambda: (c := Chain()).then(ew.Add(), c.vector(-1, 1)).then(ew.Relu()).levels(0.03, 0),
    "relu6": lambda: Chain().then(Clip(0.0, 6.0)).levels(0.05, 20),
    "residual": lambda: Chain().residual().then(ew.Relu()).levels(),
    "factors": lambda: (
        (c := Chain()).residual(c.vector(0.01, 0.05)).then(ew.Relu()).levels(c.vector(0.02, 0.1), 0)
    ),
    "wide relu6": lambda: (c := Chain()).then(Clip(0.0, 6.0)).levels(c.vector(0.01, 0.02), 0),
    "scaled": lambda: (c := Chain()).residual().then(ew.Mul(), c.vector(-2, 2)).levels(),
}


@pytest.mark.parametrize("case", CHAINS)
def test_levels_are_the_same(case: str) -> None:
    graph = CHAINS[case]()
    rng = np.random.default_rng(1)
    inputs = {v.name: rng.integers(0, 256, v.shape).astype(np.uint8) for v in graph.inputs}
    (expected,) = interpret(graph, inputs)
    assert fold_scales(graph)
    graph.tidy()
    assert not any(isinstance(n.op, Dequantize | ew.Relu | Clip) for n in graph.nodes)
    (have,) = interpret(graph, inputs)
    difference = np.abs(have.astype(int) - expected.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    assert len(np.unique(expected)) > 20


def test_limits_are_levels() -> None:
    graph = CHAINS["relu6"]()
    fold_scales(graph)
    last = graph.outputs[0].producer
    assert last is not None and last.op == Quantize(U8, 20, 140)


def test_layers_share_kernels() -> None:
    """No number of the scheme is compiled in: two layers differ in their vectors alone."""
    for graph in (CHAINS["residual"](), CHAINS["bias"]()):
        fold_scales(graph)
        graph.tidy()
        for node in graph.nodes:
            if isinstance(node.op, ew.Mul | ew.Add):
                assert all(not v.is_constant or v.shape == (6,) for v in node.inputs)


@pytest.mark.parametrize(
    "chain",
    [
        lambda: Chain().then(ew.Sigmoid()).levels(0.01, 0),
        lambda: (c := Chain()).then(ew.Relu()).then(ew.Add(), c.vector(0, 1)).levels(),
        lambda: (c := Chain()).then(ew.Add(), c.value).levels(),
        # a limit that is another level in each channel
        lambda: (c := Chain()).then(Clip(0.0, 6.0)).levels(c.vector(0.03, 0.1), 0),
    ],
)
def test_what_is_not_linear_stays(chain) -> None:
    graph = chain()
    before = str(graph)
    assert not fold_scales(graph)
    assert str(graph) == before


def test_sums_that_others_read_stay() -> None:
    c = Chain()
    sums = c.value.producer.inputs[0]
    graph = c.levels()
    graph.mark_output(graph.add(Cast(F32), sums), "sums")
    assert not fold_scales(graph)

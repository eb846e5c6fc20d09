"""Zero points that are computed: exact wherever they move, and products that fast kernels take."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import ConvInteger, MatMulInteger, ew
from planish.passes.zero_points import move_zero_points

U8 = DType.UINT8
RNG = np.random.default_rng(0)


def graph_of(op: MatMulInteger | ConvInteger, x: tuple, w: tuple, zero: tuple, v: tuple) -> Graph:
    graph = Graph()
    columns = RNG.integers(-5, 6, v).astype(np.int8)
    given = graph.input("x", TensorType(x, U8)), graph.input("zero", TensorType(zero, U8))
    weights = graph.constant(RNG.integers(-128, 128, w).astype(np.int8), "w")
    y = graph.add(op, given[0], weights, given[1], graph.constant(columns), name="product")
    graph.mark_output(y, "y")
    return graph


CONV = ConvInteger((2, 1), ((0, 0), (0, 0)), (1, 1))
CASES = {
    "matrix": (MatMulInteger(), (3, 4, 7), (7, 5), (), ()),
    "transposed": (MatMulInteger(transpose_b=True), (4, 7), (5, 7), (), (5,)),
    "by row": (MatMulInteger(), (4, 7), (7, 5), (4, 1), (5,)),
    "convolution": (CONV, (2, 6, 5, 4), (3, 2, 4, 6), (), (6,)),
    "grouped": (ConvInteger((1,), ((0, 0),), (2,), 2), (2, 9, 4), (3, 2, 6), (), ()),
}


@pytest.mark.parametrize("case", CASES)
def test_sums_stay_exact(case: str) -> None:
    graph = graph_of(*CASES[case])
    before = copy.deepcopy(graph)
    feeds = {v.name: RNG.integers(0, 256, v.shape).astype(np.uint8) for v in graph.inputs}
    assert move_zero_points(graph)
    graph.tidy()
    (product,) = [n for n in graph.nodes if isinstance(n.op, MatMulInteger | ConvInteger)]
    assert product.name == "product" and product.inputs[2].is_constant
    assert isinstance(graph.outputs[0].op, ew.Sub)
    np.testing.assert_array_equal(interpret(graph, feeds)[0], interpret(before, feeds)[0])
    assert not move_zero_points(graph)


def test_padding_counts_as_the_zero_point() -> None:
    op = ConvInteger((1, 1), ((1, 0), (0, 0)), (1, 1))
    assert not move_zero_points(graph_of(op, (2, 6, 5, 4), (3, 2, 4, 6), (), ()))

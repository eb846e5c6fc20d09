"""Rounding of constants to halves."""

from __future__ import annotations

import numpy as np
import pytest

from planish.graph import DType, Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.precision.rounding import rounded


def reader(filters: np.ndarray, groups: int):
    graph = Graph()
    channels = filters.shape[-2] * groups
    x = graph.input("x", TensorType((1, 9, 9, channels), DType.FLOAT32))
    ones = (1, 1)
    return graph.add(
        Conv(ones, ((0, 0), (0, 0)), ones, groups), x, graph.constant(filters)
    ).producer


@pytest.mark.parametrize("shape", [(3, 3, 1, 64), (1, 1, 128, 40), (3, 3, 8, 16)])
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_errors_of_a_filter_cancel(dtype: DType, shape: tuple[int, ...]) -> None:
    filters = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    filters -= filters.mean(axis=(0, 1, 2))
    node = reader(filters, 64 if shape[2] == 1 else 1)
    made = rounded(node.inputs[1].data, dtype, node).astype(np.float64)
    nearest = filters.astype(dtype.numpy).astype(np.float64)
    shift, plain = (np.abs((w - filters).sum(axis=(0, 1, 2))).mean() for w in (made, nearest))
    assert shift < plain / 20
    # by at most a unit in the last place of the largest of them
    assert np.abs(made - filters).max() <= 2 * np.abs(nearest - filters).max()


def test_matrices_are_rounded_to_the_nearest() -> None:
    matrix = np.random.default_rng(1).standard_normal((72, 16)).astype(np.float32)
    graph = Graph()
    x = graph.input("x", TensorType((5, 72), DType.FLOAT32))
    node = graph.add(MatMul(), x, graph.constant(matrix)).producer
    made = rounded(node.inputs[1].data, DType.BFLOAT16, node)
    np.testing.assert_array_equal(made, matrix.astype(DType.BFLOAT16.numpy))


def test_infinities_stay() -> None:
    filters = np.full((3, 3, 1, 2), np.inf, np.float32)
    node = reader(filters, 2)
    assert np.isinf(rounded(node.inputs[1].data, DType.BFLOAT16, node).astype(np.float32)).all()

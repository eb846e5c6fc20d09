import numpy as np
import pytest

from planish.errors import InputError, ShapeError
from planish.graph.dims import symbol
from planish.graph.graph import Graph
from planish.graph.interpret import bind, interpret
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.ops.shape import BroadcastTo, Pad, Reshape

N = symbol("N")


def doubled_and_flat():
    graph = Graph()
    x = graph.input("x", TensorType((N, 2), DType.FLOAT32))
    y = graph.add(ew.Add(), x, x)
    graph.mark_output(graph.add(Reshape((N * 2,)), y), "flat")
    graph.mark_output(x, "same")
    graph.mark_output(graph.constant(np.arange(3)), "constant")
    return graph


def test_outputs_in_order():
    x = np.float32([[1, 2], [3, 4], [5, 6]])
    flat, same, constant = interpret(doubled_and_flat(), {"x": x})
    np.testing.assert_array_equal(flat, [2, 4, 6, 8, 10, 12])
    assert same is x
    np.testing.assert_array_equal(constant, [0, 1, 2])


def test_dimensions_deep_in_attributes():
    assert bind(Pad(((0, N), (N + 1, 2))), {"N": 3}) == Pad(((0, 3), (4, 2)))
    static = BroadcastTo((2, 3))
    assert bind(static, {"N": 3}) is static


def test_wrong_inputs():
    graph = doubled_and_flat()
    with pytest.raises(InputError, match="'x' is missing"):
        interpret(graph, {})
    with pytest.raises(InputError, match="float64"):
        interpret(graph, {"x": np.zeros((1, 2))})
    with pytest.raises(ShapeError):
        interpret(graph, {"x": np.zeros((1, 3), np.float32)})

"""Products take in transposes, and lose the reshapes around them."""

import pytest

from planish.graph.dims import symbol
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.shape import Reshape, Transpose
from planish.passes.matmul import simplify_matmuls

N = symbol("N")


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_transposed_operands(net, check, flags):
    a, b = net.input(N, 4, 4, name="a"), net.input(N, 4, 4, name="b")
    a, b = (net.add(Transpose((0, 2, 1)), v) for v in (a, b))
    net.output(net.add(MatMul(*flags), a, b))
    assert check(net, simplify_matmuls) == ["mat_mul"]


def test_keys_of_an_attention_keep_their_rows_together(net, check):
    q, k = (net.input(N, 5, 2, 4, name=n) for n in "qk")
    q = net.add(Transpose((0, 2, 1, 3)), q)
    k = net.add(Transpose((0, 2, 3, 1)), k)
    net.output(net.add(MatMul(), q, k))
    assert check(net, simplify_matmuls) == ["transpose", "transpose", "mat_mul"]
    assert {n.op.perm for n in net.graph.nodes if n.op.name == "transpose"} == {(0, 2, 1, 3)}


def test_constant_operands_are_stored_the_right_way(net, check):
    net.output(net.add(MatMul(False, True), net.input(N, 4), net.weights(6, 4)))
    check(net, simplify_matmuls)
    assert net.graph.nodes[0].op == MatMul()


@pytest.mark.parametrize("spatial", [(3, 5), (1, 5), (1, 1)])
def test_flattened_channels_last_reorder_the_weights(net, check, spatial):
    x = net.add(Transpose((0, 3, 1, 2)), net.input(N, *spatial, 4))
    flat = net.add(Reshape((N, 4 * spatial[0] * spatial[1])), x)
    net.output(net.add(MatMul(), flat, net.weights(4 * spatial[0] * spatial[1], 6)))
    assert check(net, simplify_matmuls, rtol=1e-4) == ["reshape", "mat_mul"]


def test_a_transpose_of_rows_stays(net, check):
    x = net.add(Transpose((1, 0, 2)), net.input(3, N, 4))
    net.output(net.add(MatMul(), net.add(Reshape((N, 12)), x), net.weights(12, 2)))
    assert check(net, simplify_matmuls) == ["transpose", "reshape", "mat_mul"]


def test_flattened_rows_come_back(net, check):
    x = net.add(Reshape((N * 5, 4)), net.input(N, 5, 4))
    y = net.add(ew.Add(), net.add(MatMul(), x, net.weights(4, 6)), net.weights(6))
    net.output(net.add(Reshape((N, 5, 6)), net.add(ew.Relu(), y)))
    assert check(net, simplify_matmuls) == ["mat_mul", "add", "relu"]


def test_rows_come_back_where_the_depth_is_flattened_too(net, check):
    """As after attention: the heads of a row become its depth."""
    x = net.add(Reshape((N * 5, 12)), net.input(N, 5, 3, 4))
    y = net.add(ew.Add(), net.add(MatMul(), x, net.weights(12, 6)), net.weights(6))
    net.output(net.add(Reshape((N, 5, 6)), y))
    assert check(net, simplify_matmuls) == ["reshape", "mat_mul", "add"]
    assert net.graph.nodes[0].op == Reshape((N, 5, 12))


def test_two_dense_layers_between_reshapes(net, check):
    x = net.add(Reshape((N * 5, 4)), net.input(N, 5, 4))
    y = net.add(MatMul(), net.add(MatMul(), x, net.weights(4, 6)), net.weights(6, 2))
    net.output(net.add(Reshape((N, 5, 2)), y))
    names = check(net, simplify_matmuls)
    assert names == ["mat_mul", "mat_mul"]


def test_other_row_counts_stay(net, check):
    x = net.add(Reshape((N * 5, 4)), net.input(N, 5, 4))
    net.output(net.add(Reshape((N, 30)), net.add(MatMul(), x, net.weights(4, 6))))
    assert check(net, simplify_matmuls) == ["reshape", "mat_mul", "reshape"]


def test_a_vector_stays_a_row(net, check):
    x = net.add(Reshape((1, 4)), net.input(4))
    y = net.add(ew.Relu(), net.add(MatMul(), x, net.weights(4, 6)))
    net.output(net.add(Reshape((6,)), y))
    assert check(net, simplify_matmuls) == ["reshape", "mat_mul", "relu", "reshape"]

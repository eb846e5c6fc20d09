"""Equal nodes and equal constants are shared."""

import numpy as np

from planish.graph.dims import symbol
from planish.ops.elementwise import LeakyRelu, ew
from planish.ops.reduce import TopK
from planish.passes.common_subexpressions import share_common_subexpressions

N = symbol("N")


def test_chains_are_shared(net, check):
    x = net.input(N, 3)
    values = [net.add(ew.Exp(), net.add(ew.Add(), x, net.constant([1, 2, 3]))) for _ in range(3)]
    net.output(net.add(ew.Mul(), values[0], values[1]), values[2])
    assert check(net, share_common_subexpressions) == ["add", "exp", "mul"]


def test_operands_of_commutative_ops_have_no_order(net, check):
    x, y = net.input(N, 3), net.input(N, 3, name="y")
    net.output(net.add(ew.Mul(), x, y), net.add(ew.Mul(), y, x))
    net.output(net.add(ew.Sub(), x, y), net.add(ew.Sub(), y, x))
    assert check(net, share_common_subexpressions) == ["mul", "sub", "sub"]


def test_attributes_and_dtypes_tell_nodes_apart(net, check):
    x = net.input(N, 3)
    net.output(net.add(LeakyRelu(0.1), x), net.add(LeakyRelu(0.2), x))
    net.graph.constant(np.zeros(3, np.int32))
    assert check(net, share_common_subexpressions) == ["leaky_relu", "leaky_relu"]


def test_nodes_of_several_outputs(net, check):
    x = net.input(N, 5)
    a, b = (net.graph.add_node(TopK(2), [x]) for _ in range(2))
    net.output(a.outputs[0], b.outputs[1])
    assert check(net, share_common_subexpressions) == ["top_k"]

"""The matcher and the driver: captures, commutativity, private values, names and origins."""

import numpy as np

from planish.graph.dims import symbol
from planish.ops.elementwise import ew
from planish.ops.shape import Concat
from planish.passes.rewrite import (
    Apply,
    Const,
    Number,
    Product,
    Rest,
    Rule,
    Var,
    join_origins,
    rewrite,
)

N = symbol("N")
X, Y = Var("x"), Var("y")


def rule(pattern, build=lambda m: m.add(ew.Abs(), m["x"]), **kwargs):
    return Rule("test", pattern, build, **kwargs)


def test_the_same_variable_is_the_same_value(net):
    x, y = net.input(N, 3), net.input(N, 3, name="y")
    net.output(net.add(ew.Mul(), x, x), net.add(ew.Mul(), x, y))
    assert rewrite(net.graph, [rule(Apply(ew.Mul, X, X))])
    assert {n.op.name for n in net.graph.nodes} == {"abs", "mul"}


def test_commutative_ops_match_in_either_order(net):
    x = net.input(N, 3)
    net.output(net.add(ew.Add(), net.constant(2.0), net.add(ew.Neg(), x)))
    assert rewrite(net.graph, [rule(Apply(ew.Add, Apply(ew.Neg, X), Number(2)))])


def test_ordered_ops_match_in_their_order_only(net):
    x = net.input(N, 3)
    net.output(net.add(ew.Sub(), net.constant(2.0), x))
    assert not rewrite(net.graph, [rule(Apply(ew.Sub, X, Const("c")))])


def test_a_product_matches_in_every_association(net):
    x, y = net.input(N, 3), net.input(N, 3, name="y")
    a = net.add(ew.Mul(), net.add(ew.Mul(), y, net.constant(3.0)), net.add(ew.Square(), x))
    b = net.add(ew.Mul(), net.add(ew.Mul(), x, net.add(ew.Mul(), y, x)), net.constant(3.0))
    net.output(a, b)
    assert rewrite(net.graph, [rule(Product(X, X, Y, Number(3)))])
    assert [n.op.name for n in net.graph.nodes] == ["abs", "abs"]


def test_rest_matches_any_number_of_inputs(net):
    x = net.input(N, 3)
    net.output(net.add(Concat(1), x, x, x))
    found = []
    rewrite(net.graph, [rule(Apply(Concat, X, Rest()), lambda m: found.append(m["x"]))])
    assert found == [x]


def test_inner_values_with_other_users_are_left_alone(net):
    x = net.input(N, 3)
    inner = net.add(ew.Neg(), x)
    net.output(net.add(ew.Relu(), inner), inner)
    pattern = Apply(ew.Relu, Apply(ew.Neg, X))
    assert not rewrite(net.graph, [rule(pattern)])
    assert rewrite(net.graph, [rule(pattern, shared=True)])


def test_a_result_of_another_type_is_declined(net, check):
    x = net.input(N, 1)
    net.output(net.add(ew.Add(), x, net.constant([0.0, 0.0])))
    rules = [rule(Apply(ew.Add, X, Number(0)), lambda m: m["x"])]
    assert check(net, lambda g: rewrite(g, rules)) == ["add"]


def test_declined_results_leave_nothing_behind(net, check):
    x = net.input(N, 1)
    net.output(net.add(ew.Add(), x, net.constant([0.0, 0.0])))
    rules = [rule(Apply(ew.Add, X, Number(0)))]
    assert check(net, lambda g: rewrite(g, rules)) == ["add"]
    assert len(x.users) == 1


def test_the_successor_takes_name_and_origins(net):
    x = net.input(N, 3)
    y = net.add(ew.Neg(), x, name="a")
    net.output(net.add(ew.Relu(), y, name="b"))
    rewrite(net.graph, [rule(Apply(ew.Relu, Apply(ew.Neg, X)))])
    (node,) = net.graph.nodes
    assert (node.name, node.output.name, node.origin) == ("b", "b", "a (neg) + b (relu)")


def test_many_origins_are_shortened(net):
    x = net.input(N, 3)
    for name in "abcdef":
        x = net.add(ew.Relu(), x, name=name)
    text = join_origins(reversed(net.graph.nodes))
    assert text == "a (relu) + b (relu) + c (relu) + … + f (relu)"


def test_numbers_match_within_rounding(net):
    x = net.input(N, 3)
    net.output(net.add(ew.Mul(), x, net.constant(np.float32(1 / 3))))
    assert not rewrite(net.graph, [rule(Apply(ew.Mul, X, Number(0.3334)))])
    assert rewrite(net.graph, [rule(Apply(ew.Mul, X, Number(1 / 3)))])

"""Building and changing graphs: values, nodes, users, order, bindings, text, errors."""

import numpy as np
import pytest

from helpers.one_op import tensor
from planish.errors import ShapeError
from planish.graph import DimRange, DType, Graph, Node, Value, symbol
from planish.ops import Concat, MatMul, ReduceSum, Reshape, TopK, ew


def _diamond():
    """x -> relu -> (neg, abs) -> add"""
    graph = Graph("diamond")
    x = graph.input("x", tensor("f32", "N", 4))
    relu = graph.add(ew.Relu(), x, name="relu")
    left, right = graph.add(ew.Neg(), relu), graph.add(ew.Abs(), relu)
    total = graph.add(ew.Add(), left, right, name="sum", origin="sum (AddV2)")
    graph.mark_output(total, "y")
    return graph, x, relu, left, right, total


def test_building():
    graph, x, relu, left, right, total = _diamond()
    assert [n.name for n in graph.nodes] == ["relu", "neg", "abs", "sum"]
    assert relu.type == x.type == tensor("f32", "N", 4)
    assert list(relu.users) == [left.producer, right.producer]
    assert total.producer.origin == "sum (AddV2)"
    assert total.op == ew.Add()
    assert x.op is None
    assert graph.outputs == [total]
    assert graph.output_names == ["y"]
    assert graph.symbols() == {"N"}
    assert set(graph.values()) == {x, relu, left, right, total}


def test_names_are_unique():
    graph = Graph()
    a = graph.input("x", tensor("f32", 2))
    b = graph.add(ew.Neg(), a, name="x")
    c = graph.add(ew.Neg(), b, name="x")
    d = graph.add(ew.Neg(), c, name="x_1")
    assert len({v.name for v in (a, b, c, d)}) == 4


def test_constants():
    graph = Graph()
    data = np.array([[1, 2], [3, 4]])
    value = graph.constant(data)
    assert value.is_constant
    assert value.data is data
    assert value.dtype is DType.INT64
    assert value.content.tolist() == [[1, 2], [3, 4]]
    assert type(value.content[0, 0]) is int
    assert graph.constant(np.ones(2, np.float32)).content is None
    assert graph.constant(np.arange(5000)).content is None
    assert list(graph.constants()) == []
    graph.add(ew.Neg(), value)
    assert list(graph.constants()) == [value]


def test_several_outputs():
    graph = Graph()
    node = graph.add_node(TopK(2), [graph.input("x", tensor("f32", 5))], name="top")
    assert [v.name for v in node.outputs] == ["top_0", "top_1"]
    with pytest.raises(ValueError, match="unpack"):
        _ = node.output
    with pytest.raises(ValueError, match="unpack"):
        graph.add(TopK(2), graph.inputs[0])


def test_replace():
    graph, x, relu, left, _, total = _diamond()
    graph.replace(relu, x)
    assert not relu.users
    assert list(x.users) == [relu.producer, left.producer, graph.nodes[2]]
    graph.replace(total, left)
    assert graph.outputs == [left]
    graph.replace(left, left)
    assert graph.outputs == [left]


def test_replace_does_not_make_a_node_its_own_input():
    graph, _, relu, *_ = _diamond()
    wrapped = graph.add(ew.Neg(), relu)
    graph.replace(relu, wrapped)
    assert wrapped.producer.inputs == (relu,)
    assert list(relu.users) == [wrapped.producer]
    graph.tidy()
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in graph.nodes:
        assert all(order[v.producer] < order[node] for v in node.inputs if v.producer)


def test_tidy_drops_what_is_not_needed():
    graph, _, relu, left, right, _ = _diamond()
    graph.outputs = [left]
    graph.tidy()
    assert [n.name for n in graph.nodes] == ["relu", "neg"]
    assert list(relu.users) == [left.producer]
    assert right.producer not in graph.nodes


def test_tidy_is_stable():
    graph, *_ = _diamond()
    before = list(graph.nodes)
    graph.tidy()
    assert graph.nodes == before
    graph.nodes.reverse()
    graph.tidy()
    assert graph.nodes[0].name == "relu"
    assert graph.nodes[-1].name == "sum"


def test_tidy_survives_deep_graphs():
    graph = Graph()
    value = graph.input("x", tensor("f32", 2))
    for _ in range(5000):
        value = graph.add(ew.Neg(), value)
    graph.mark_output(value, "y")
    graph.nodes.reverse()
    graph.tidy()
    assert len(graph.nodes) == 5000
    assert graph.nodes[-1] is value.producer


def test_tidy_finds_cycles():
    graph, _, relu, left, *_ = _diamond()
    graph.set_inputs(relu.producer, [left])
    with pytest.raises(ShapeError, match="cycle"):
        graph.tidy()


def test_errors_name_the_users_op():
    graph = Graph()
    x = graph.input("x", tensor("f32", 2, 3))
    with pytest.raises(ShapeError) as error:
        graph.add(MatMul(), x, x, name="dense", origin="block/dense (MatMul)")
    assert error.value.where == "block/dense (MatMul)"
    with pytest.raises(ShapeError) as error:
        graph.add(Concat(7), x, name="join")
    assert error.value.where == "join"
    assert not graph.nodes
    assert not x.users


def test_bindings():
    graph = Graph()
    graph.input("a", tensor("f32", "N", 3))
    graph.input("b", tensor("f32", "N", "M"))
    graph.ranges["M"] = DimRange(1, 4, 8)
    assert graph.bindings({"a": (2, 3), "b": (2, 8)}) == {"N": 2, "M": 8}
    for shapes, message in [
        ({"a": (2,), "b": (2, 8)}, "1 dimensions, not 2"),
        ({"a": (2, 4), "b": (2, 8)}, "is 4, not 3"),
        ({"a": (2, 3), "b": (5, 8)}, "but N is 2"),
        ({"a": (2, 3), "b": (2, 9)}, "outside 1 to 8"),
    ]:
        with pytest.raises(ShapeError, match=message):
            graph.bindings(shapes)


def test_text():
    graph, *_ = _diamond()
    graph.ranges["N"] = DimRange(1, 8, 32)
    half = graph.constant(np.float32(0.5))
    graph.mark_output(graph.add(ew.Mul(), graph.outputs[0], half), "z")
    assert str(graph) == (
        "graph diamond(%x: f32[N, 4])\n"
        "  where N in 1..32, usually 8\n"
        "  %relu: f32[N, 4] = relu %x\n"
        "  %neg: f32[N, 4] = neg %relu\n"
        "  %abs: f32[N, 4] = abs %relu\n"
        "  %sum: f32[N, 4] = add %neg %abs  # sum (AddV2)\n"
        "  %mul: f32[N, 4] = mul %sum 0.5:f32\n"
        "  return y=%sum, z=%mul"
    )


def test_types():
    type = tensor("f16", "N", 4)
    assert str(type) == "f16[N, 4]"
    assert type.rank == 2
    assert type.elements == symbol("N") * 4
    assert not type.is_static
    assert type.bind({"N": 3}) == (3, 4)
    assert DType.of(np.int8) is DType.INT8
    assert DType.BFLOAT16.size == 2
    with pytest.raises(TypeError, match="no element type"):
        DType.of(np.complex64)


def test_values_and_nodes_compare_by_identity():
    type = tensor("f32", 2)
    assert Value("x", type) != Value("x", type)
    graph = Graph()
    x = graph.input("x", type)
    nodes = [Node(ew.Neg(), (x,), (), "n") for _ in range(2)]
    assert nodes[0] != nodes[1]
    assert len(set(nodes)) == 2


def test_shapes_are_inferred_through_contents():
    graph = Graph()
    x = graph.input("x", tensor("f32", "N", 2, 3))
    flat = graph.add(Reshape((symbol("N"), 6)), x)
    assert graph.add(ReduceSum((1,), True), flat).shape == (symbol("N"), 1)

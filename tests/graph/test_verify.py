"""Each rule of the verifier catches the graph that breaks it, and names the pass."""

import numpy as np
import pytest

from planish.errors import ModelError
from planish.graph.dims import symbol
from planish.graph.graph import Count, Graph, Value
from planish.graph.types import DType, TensorType
from planish.graph.verify import RULES, verify
from planish.ops.elementwise import ew
from planish.ops.shape import ShapeOf


def f32(*shape) -> TensorType:
    return TensorType(shape, DType.FLOAT32)


@pytest.fixture
def graph() -> Graph:
    graph = Graph("g")
    x = graph.input("x", f32(symbol("N"), 4))
    y = graph.add(ew.Add(), x, graph.constant(np.ones(4, np.float32)), name="y", origin="y (Add)")
    graph.mark_output(graph.add(ew.Relu(), y, name="z"), "z")
    return graph


def test_a_sound_graph_passes(graph):
    verify(graph)


def _twice_written(graph):
    graph.nodes[1].outputs = graph.nodes[0].outputs


def _wrong_order(graph):
    graph.nodes.reverse()


def _output_from_nowhere(graph):
    graph.outputs = [Value("stray", f32(1))]


def _output_names(graph):
    graph.mark_output(graph.outputs[0], "z")


def _forgotten_user(graph):
    graph.nodes[0].output.users.clear()


def _stray_user(graph):
    graph.inputs[0].users[graph.nodes[1]] = None


def _same_name(graph):
    graph.nodes[1].name = graph.nodes[0].name


def _wrong_data(graph):
    (constant,) = graph.constants()
    constant.data = constant.data.astype(np.float64)


def _wrong_type(graph):
    graph.nodes[1].output.type = f32(symbol("N"), 5)


def _wrong_op(graph):
    graph.nodes[1].op = ew.BitwiseNot()


def _unbound_symbol(graph):
    graph.inputs[0].type = f32(4)
    for node in graph.nodes:
        node.output.type = f32(symbol("M"), 4)


def _wrong_content(graph):
    value = graph.add(ShapeOf(), graph.inputs[0])
    graph.mark_output(value, "shape")
    value.content = value.content[:1]


def _count_of_floats(graph):
    graph.counts["n"] = Count("z", 9)


def _count_without_output(graph):
    graph.counts["n"] = Count("nothing", 9)


def _cut_of_another_rank(graph):
    graph.trims["z"] = (symbol("N"),)


BREAKS = {
    _twice_written: "every value is written once",
    _wrong_order: "nodes stand in topological order",
    _output_from_nowhere: "outputs are reachable",
    _output_names: "outputs are reachable",
    _forgotten_user: "users are consistent",
    _stray_user: "users are consistent",
    _same_name: "names are unique",
    _wrong_data: "constants match their types",
    _wrong_type: "types are those the ops infer",
    _wrong_op: "types are those the ops infer",
    _unbound_symbol: "symbols are bound by inputs",
    _wrong_content: "contents match their types",
    _count_of_floats: "counts are integers of the graph",
    _count_without_output: "counts are integers of the graph",
    _cut_of_another_rank: "outputs are cut to known sizes",
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda f: f.__name__)
def test_a_broken_graph_is_caught(graph, broken):
    broken(graph)
    rule = BREAKS[broken]
    assert list(RULES[rule](graph)), "the rule itself must complain"
    with pytest.raises(ModelError) as error:
        verify(graph, after="some_pass")
    assert "some_pass" in error.value.why


def test_every_rule_is_tested():
    assert set(BREAKS.values()) == set(RULES)


def test_the_message_names_the_users_op(graph):
    _wrong_type(graph)
    graph.nodes[1].origin = "block/relu (Relu)"
    with pytest.raises(ModelError, match=r"block/relu \(Relu\)"):
        verify(graph)

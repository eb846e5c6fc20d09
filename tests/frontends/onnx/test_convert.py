"""`import_model`: inputs, outputs, names, ranges, functions, and errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

from helpers.onnx_graph import compare, model, node
from planish.errors import InputError, ModelError, ShapeError, UnsupportedOpError
from planish.frontends.onnx import import_model
from planish.frontends.onnx.inputs import DEFAULT_RANGE
from planish.graph import DimRange

W = np.arange(2 * 3 * 3 * 3, dtype=np.float32).reshape(2, 3, 3, 3)
IMAGE = {"x": (np.float32, ["N", 3, 8, 8])}


def chain() -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "a", "block/conv"), node("Relu", "a", "b"), node("Neg", "b", "y")]
    return model(nodes, IMAGE, ["y"], {"w": W})


def shapes(graph) -> dict[str, list[str]]:
    return {v.name: [str(d) for d in v.shape] for v in graph.inputs}


def unary(shape, name: str = "x") -> onnx.ModelProto:
    return model([node("Neg", name, "y")], {name: (np.float32, shape)}, ["y"])


# ---- names ----------------------------------------------------------------------------------


def test_nodes_carry_the_users_names() -> None:
    graph = import_model(chain(), name="net")
    by_op = {n.op.name: n for n in graph.nodes}
    assert graph.name == "net"
    assert by_op["conv"].name == "block/conv"
    assert by_op["conv"].origin == "block/conv (Conv)"
    assert by_op["relu"].name == "b"
    assert all(n.origin in ("block/conv (Conv)", "b (Relu)", "y (Neg)") for n in graph.nodes)


def test_weights_are_transposed_right_away() -> None:
    graph = import_model(chain())
    conv = next(n for n in graph.nodes if n.op.name == "conv")
    np.testing.assert_array_equal(conv.inputs[1].data, W.transpose(2, 3, 1, 0))


# ---- inputs ---------------------------------------------------------------------------------


def test_unknown_dimensions_become_symbols() -> None:
    assert shapes(import_model(unary([None, 3, None, 5])))["x"] == ["N", "3", "x_2", "5"]
    graph = import_model(unary(["batch size", 2, "7up", "if", "batch_size"]))
    assert shapes(graph)["x"] == ["batch_size", "2", "_7up", "_if", "batch_size_1"]
    assert set(graph.ranges) == {"batch_size", "_7up", "_if", "batch_size_1"}
    assert set(graph.ranges.values()) == {DEFAULT_RANGE}


def test_equal_names_stay_equal_sizes() -> None:
    inputs = {"a": (np.float32, ["B", 3]), "b": (np.float32, [None, "B"])}
    proto = model([node("MatMul", "b a", "y")], inputs, ["y"])
    # N is free here, but must not be confused with a named one
    assert shapes(import_model(proto)) == {"a": ["B", "3"], "b": ["N", "B"]}
    inputs = {"a": (np.float32, ["x", "N"]), "b": (np.float32, [None, 3])}
    proto = model([node("MatMul", "a b", "y")], {**inputs, "b": (np.float32, ["N", 3])}, ["y"])
    assert shapes(import_model(proto))["a"] == ["x", "N"]


def test_overriding_shapes() -> None:
    proto = unary(["N", 3, 8, 8])
    assert shapes(import_model(proto, inputs={"x": (4, 3, 16, 16)}))["x"] == ["4", "3", "16", "16"]
    assert shapes(import_model(proto, inputs={"x": (None, 3, "H", -1)}))["x"] == [
        "N",
        "3",
        "H",
        "x_3",
    ]


def test_fixing_a_named_dimension_fixes_it_in_the_other_inputs() -> None:
    inputs = {"a": (np.float32, ["N", 3]), "b": (np.float32, ["N", 3])}
    proto = model([node("Add", "a b", "y")], inputs, ["y"])
    assert shapes(import_model(proto, inputs={"a": (8, 3)})) == {"a": ["8", "3"], "b": ["8", "3"]}


def test_profiles_give_ranges() -> None:
    profile = SimpleNamespace(min=(1, 3, 8, 8), opt=(4, 3, 8, 8), max=(16, 3, 8, 8))
    graph = import_model(chain(), inputs={"x": profile})
    assert shapes(graph)["x"] == ["N", "3", "8", "8"]
    assert graph.ranges == {"N": DimRange(1, 4, 16)}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"y": (1, 3, 8, 8)}, "no input 'y'"),
        ({"x": (1, 3)}, "declares 4 dimensions"),
        ({"x": (1, 3, 8, 2.5)}, "dimension 3 is 2.5"),
        ({"x": (1, 3, 8, -4)}, "dimension 3 is -4"),
        ({"x": 7}, "neither a shape nor a profile"),
        ({"x": SimpleNamespace(min=(2, 3, 8, 8), opt=(1, 3, 8, 8), max=(4, 3, 8, 8))}, "min, opt"),
        ({"x": SimpleNamespace(min=(1, 3), opt=(1, 3, 8, 8), max=(4, 3, 8, 8))}, "differ"),
    ],
)
def test_wrong_inputs_are_refused(wanted, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_model(chain(), inputs=wanted)


def test_profiles_must_agree_about_a_name() -> None:
    inputs = {"a": (np.float32, ["N", 3]), "b": (np.float32, ["N", 3])}
    proto = model([node("Add", "a b", "y")], inputs, ["y"])
    narrow = SimpleNamespace(min=(1, 3), opt=(1, 3), max=(4, 3))
    wide = SimpleNamespace(min=(1, 3), opt=(1, 3), max=(8, 3))
    with pytest.raises(InputError, match="is called N"):
        import_model(proto, inputs={"a": narrow, "b": wide})


def test_an_input_without_a_shape_needs_one() -> None:
    proto = unary([2])
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="has no shape"):
        import_model(proto)
    assert shapes(import_model(proto, inputs={"x": (None, 4)}))["x"] == ["N", "4"]


def test_initializers_among_the_inputs_are_constants() -> None:
    proto = chain()
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, W.shape))
    assert [v.name for v in import_model(proto).inputs] == ["x"]


def test_inputs_of_strings_and_sequences_are_refused() -> None:
    proto = unary([2])
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    with pytest.raises(UnsupportedOpError, match="'x'"):
        import_model(proto)
    proto.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    with pytest.raises(UnsupportedOpError, match="not a tensor"):
        import_model(proto)


# ---- outputs --------------------------------------------------------------------------------


def test_middle_tensors_can_be_outputs() -> None:
    graph = import_model(chain(), outputs=["b", "a", "x"])
    assert graph.output_names == ["b", "a", "x"]
    assert "neg" not in {n.op.name for n in graph.nodes}
    assert graph.outputs[2] is graph.inputs[0]


def test_unknown_outputs_are_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="no output 'yy'") as caught:
        import_model(chain(), outputs=["yy"])
    assert "'y'" in caught.value.cure
    with pytest.raises(InputError):
        import_model(chain(), outputs="y")


def test_what_no_output_needs_is_not_converted() -> None:
    nodes = [node("Neg", "x", "y"), node("NonZero", "x", "unused")]
    graph = import_model(model(nodes, {"x": (np.float32, [2, 3])}, ["y"]), allow_fallback=False)
    assert [n.op.name for n in graph.nodes] == ["neg"]


# ---- structure ------------------------------------------------------------------------------


def test_nodes_may_stand_in_any_order() -> None:
    proto = chain()
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [n.op.name for n in import_model(proto).nodes if n.op.name != "transpose"] == [
        "conv",
        "relu",
        "neg",
    ]


def test_cycles_are_refused() -> None:
    nodes = [node("Add", "x b", "a", "first"), node("Neg", "a", "b", "second")]
    with pytest.raises(ModelError, match="cycle") as caught:
        import_model(model(nodes, {"x": (np.float32, [2])}, ["b"]))
    assert caught.value.where == "first (Add)"


def test_tensors_from_nowhere_are_refused() -> None:
    proto = model([node("Add", "x ghost", "y", "sum")], {"x": (np.float32, [2])}, ["y"])
    with pytest.raises(ModelError, match="'ghost'") as caught:
        import_model(proto)
    assert caught.value.where == "sum (Add)"
    with pytest.raises(ModelError, match="'ghost'"):
        import_model(model([node("Neg", "x", "y")], {"x": (np.float32, [2])}, ["ghost"]))


def test_two_producers_are_refused() -> None:
    nodes = [node("Neg", "x", "y"), node("Abs", "x", "y")]
    with pytest.raises(ModelError, match="Two nodes"):
        import_model(model(nodes, {"x": (np.float32, [2])}, ["y"]))


def test_a_missing_input_is_refused() -> None:
    proto = model([node("Conv", "x", "y", "c")], IMAGE, ["y"])
    with pytest.raises(ModelError, match="lacks its input 1"):
        import_model(proto)


def test_shapes_that_do_not_fit_name_the_node() -> None:
    proto = model([node("Add", "x w", "y", "sum")], {"x": (np.float32, [2])}, ["y"], {"w": W})
    with pytest.raises(ShapeError) as caught:
        import_model(proto)
    assert caught.value.where == "sum (Add)"


def test_constants_that_an_operator_does_not_take_name_the_node() -> None:
    constants = {"t": np.arange(3), "i": np.int64(7)}
    nodes = [node("Gather", "t i", "g", "pick"), node("Add", "x g", "y")]
    with pytest.raises(ModelError, match="index 7") as caught:
        import_model(model(nodes, {"x": (np.int64, [2])}, ["y"], constants))
    assert caught.value.where == "pick (Gather)"


def test_a_model_without_outputs_is_refused() -> None:
    with pytest.raises(ModelError, match="no outputs"):
        import_model(model([node("Neg", "x", "y")], {"x": (np.float32, [2])}, []))


def test_sparse_initializers() -> None:
    proto = model([node("Add", "x s", "y")], {"x": (np.float32, [2, 3])}, ["y"])
    values = helper.make_tensor("s", 1, [2], [5.0, 7.0])
    indices = helper.make_tensor("i", 7, [2, 2], [0, 1, 1, 2])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    x = np.ones((2, 3), np.float32)
    compare(proto, {"x": x}, expected=[np.array([[1, 6, 1], [1, 1, 8]], np.float32)])


# ---- functions ------------------------------------------------------------------------------


def _with_function(body: list[onnx.NodeProto], call: onnx.NodeProto) -> onnx.ModelProto:
    function = helper.make_function(
        "mine", "Twice", ["a", "b"], ["r"], body, [helper.make_opsetid("", 18)], ["alpha"]
    )
    proto = model([call], {"x": (np.float32, ["N", 3])}, ["y"])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    return proto


def test_functions_of_the_model_are_expanded() -> None:
    leaky = node("LeakyRelu", "a", "t")
    reference = onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT)
    reference.ref_attr_name = "alpha"
    leaky.attribute.append(reference)
    body = [leaky, node("Add", "t t", "r", "sum")]
    proto = _with_function(body, node("Twice", "x _", "y", "call", alpha=0.5, domain="mine"))
    x = np.array([[-2, 0, 3]], np.float32)
    graph = compare(proto, {"x": x}, expected=[np.array([[-2, 0, 6]], np.float32)])
    assert [n.name for n in graph.nodes] == ["call/t", "call/sum"]


def test_endless_recursion_is_refused() -> None:
    body = [node("Twice", "a b", "r", domain="mine")]
    proto = _with_function(body, node("Twice", "x x", "y", domain="mine"))
    proto.functions[0].opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(ModelError, match="without end"):
        import_model(proto)


def test_operators_that_onnx_defines_by_others_are_expanded() -> None:
    proto = model(
        [node("MeanVarianceNormalization", "x", "y")], {"x": (np.float32, ["N", 3, 4, 5])}, ["y"]
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)
    graph = compare(proto, {"x": x}, tolerance=1e-4)
    assert "onnx_fallback" not in {n.op.name for n in graph.nodes}


def test_an_operator_set_must_be_imported() -> None:
    proto = model([node("Thing", "x", "y", domain="other")], {"x": (np.float32, [2])}, ["y"])
    with pytest.raises(ModelError, match="'other'"):
        import_model(proto)

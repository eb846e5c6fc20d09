"""Operators without a converter: run by ONNX's reference, or refused with a clear error."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from onnx import helper

from helpers.onnx_graph import compare, model, node
from planish.errors import PlanishError, UnsupportedOpError
from planish.frontends.onnx import OnnxFallback, import_model
from planish.frontends.onnx.fallback import fallback_op, run_reference

RNG = np.random.default_rng(4)


def determinants():
    """Of matrices that are too large to be written out."""
    nodes = [node("Tanh", "x", "a"), node("Det", "a", "y", "volume")]
    return model(nodes, {"x": (np.float32, ["N", 3, 5, 5])}, ["y"])


def test_a_fallback_computes_the_same() -> None:
    x = RNG.standard_normal((2, 3, 5, 5)).astype(np.float32)
    graph = compare(determinants(), {"x": x}, allow_fallback=True)
    (fallback,) = [n for n in graph.nodes if isinstance(n.op, OnnxFallback)]
    assert fallback.origin == "volume (Det)"
    assert [str(d) for d in graph.outputs[0].shape] == ["N", "3"]


def test_fallbacks_can_be_forbidden() -> None:
    with pytest.raises(UnsupportedOpError, match="Det") as caught:
        import_model(determinants(), allow_fallback=False)
    assert caught.value.where == "volume (Det)"
    assert "ai.onnx" in caught.value.what
    assert caught.value.cure


def test_what_gives_no_numbers_is_refused() -> None:
    op = fallback_op(node("StringConcat", "a b", "y"), "", 20, ["a", "b"])
    with pytest.raises(UnsupportedOpError, match="not tensors of numbers"):
        run_reference(op, [np.array(["x"], object), np.array(["y"], object)])


def test_fallbacks_of_several_and_omitted_outputs() -> None:
    w = RNG.standard_normal((1, 12, 2)).astype(np.float32)
    r = RNG.standard_normal((1, 12, 3)).astype(np.float32)
    nodes = [node("LSTM", "x w r", "_ h c", hidden_size=3)]
    proto = model(nodes, {"x": (np.float32, [4, 2, 2])}, ["h", "c"], {"w": w, "r": r})
    feeds = {"x": RNG.standard_normal((4, 2, 2)).astype(np.float32)}
    compare(proto, feeds, allow_fallback=True)


def test_a_fallback_of_known_inputs_is_computed_while_importing() -> None:
    constants = {"data": np.array([[0, 1], [1, 1]], np.int64)}
    nodes = [node("NonZero", "data", "places"), node("Gather", "x places", "y")]
    proto = model(nodes, {"x": (np.float32, ["N", 3])}, ["y"], constants)
    graph = compare(proto, {"x": RNG.standard_normal((2, 3)).astype("f4")}, allow_fallback=True)
    assert [n.op.name for n in graph.nodes] == ["gather"]


def test_subgraphs_may_use_the_tensors_around_them() -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [node(op, "x", f"{name}_y")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, [2, 3])],
        )
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    nodes = [node("If", "c", "y", **branches)]
    proto = model(nodes, {"x": (np.float32, [2, 3]), "c": (np.bool_, [])}, ["y"])
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    for condition in (True, False):
        compare(proto, {"x": x, "c": np.array(condition)}, allow_fallback=True)


def test_shapes_that_only_the_data_know_are_refused() -> None:
    nodes = [node("ImageDecoder", "x", "y", "picture")]
    proto = model(nodes, {"x": (np.uint8, ["N"])}, ["y"], opset=20)
    with pytest.raises(UnsupportedOpError) as caught:
        import_model(proto)
    assert caught.value.where == "picture (ImageDecoder)"
    assert "shape of its output 0 is not known" in caught.value.why


def test_unknown_operators_are_refused() -> None:
    proto = model([node("Magic", "x", "y", "m", domain="acme")], {"x": (np.float32, [2])}, ["y"])
    proto.opset_import.append(helper.make_opsetid("acme", 3))
    with pytest.raises(UnsupportedOpError, match=r"Magic \(domain acme") as caught:
        import_model(proto)
    assert caught.value.where == "m (Magic)"


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniform"])
def test_random_numbers_are_refused(op_type: str) -> None:
    nodes = [node(op_type, "", "r", shape=[2]), node("Add", "x r", "y")]
    with pytest.raises(UnsupportedOpError, match="cannot be converted"):
        import_model(model(nodes, {"x": (np.float32, [2])}, ["y"]))


def test_dropout_in_training_mode_is_refused() -> None:
    constants = {"ratio": np.float32(0.5), "training": np.bool_(True)}
    nodes = [node("Dropout", "x ratio training", "y")]
    with pytest.raises(UnsupportedOpError, match="training mode"):
        import_model(model(nodes, {"x": (np.float32, [2])}, ["y"], constants))


def test_what_the_fallback_cannot_do_is_refused_with_the_converters_reason() -> None:
    inputs = {"x": (np.float32, [6, 4, 1]), "length": (np.int64, [])}
    proto = model([node("DFT", "x length", "y")], inputs, ["y"], opset=20)
    with pytest.raises(UnsupportedOpError, match="its length depends on the data"):
        import_model(proto)


def test_fallbacks_are_plain_values() -> None:
    graph = import_model(determinants())
    (op,) = [n.op for n in graph.nodes if isinstance(n.op, OnnxFallback)]
    assert pickle.loads(pickle.dumps(op)) == op
    again = import_model(determinants())
    assert op in [n.op for n in again.nodes]
    assert issubclass(UnsupportedOpError, PlanishError)

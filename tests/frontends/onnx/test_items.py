"""Sequences and optionals inside a model, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from helpers.onnx_graph import compare, model, node
from helpers.refusal import refused
from planish.errors import PlanishError, UnsupportedOpError
from planish.frontends.onnx import import_model

RNG = np.random.default_rng(12)
X = RNG.standard_normal((6, 4)).astype(np.float32)


def check(nodes: list[Any], outputs: str = "y", **constants: Any) -> None:
    arrays = {n: np.asarray(a, np.int64) for n, a in constants.items()}
    compare(model(nodes, {"x": (np.float32, [6, 4])}, outputs.split(), arrays), {"x": X})


def test_split_and_concatenate() -> None:
    check([node("SplitToSequence", "x n", "s", axis=0), node("SequenceAt", "s p", "y")], n=4, p=-1)
    check([node("SplitToSequence", "x n", "s", axis=1), node("SequenceAt", "s p", "y")],
          n=[1, 3], p=1)  # fmt: skip
    rows = node("SplitToSequence", "x", "s", axis=0, keepdims=0)
    check([rows, node("ConcatFromSequence", "s", "y", axis=1, new_axis=1)])
    check([rows, node("ConcatFromSequence", "s", "y", axis=0)])
    check([rows, node("SequenceLength", "s", "n"), node("Mul", "n n", "y")])


def test_inserting_and_erasing() -> None:
    nodes = [
        node("Neg", "x", "a"),
        node("Abs", "x", "b"),
        node("SequenceConstruct", "x a", "s0"),
        node("SequenceInsert", "s0 b first", "s1"),
        node("SequenceInsert", "s1 x", "s2"),
        node("SequenceErase", "s2 middle", "s3"),
        node("SequenceErase", "s3", "s4"),
        node("ConcatFromSequence", "s4", "y", axis=0),
    ]
    check(nodes, first=0, middle=-3)


def test_an_empty_sequence_that_is_filled() -> None:
    nodes = [
        node("SequenceEmpty", "", "s0"),
        node("SequenceInsert", "s0 x", "s1"),
        node("SequenceAt", "s1 p", "y"),
    ]
    check(nodes, p=0)


def test_a_position_that_depends_on_the_data() -> None:
    nodes = [
        node("Neg", "x", "a"),
        node("SequenceConstruct", "x a", "s"),
        node("SequenceAt", "s p", "y"),
    ]
    proto = model(nodes, {"x": (np.float32, [6, 4]), "p": (np.int64, [])}, ["y"])
    for place in (0, 1, -1):
        compare(proto, {"x": X, "p": np.array(place)})


def test_mapping() -> None:
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", "a b", "c"), node("ReduceSum", "c", "d")],
        "body",
        [tensor("a", TensorProto.FLOAT, [1, 4]), tensor("b", TensorProto.FLOAT, [6, 4])],
        [tensor("c", TensorProto.FLOAT, [6, 4]), tensor("d", TensorProto.FLOAT, [1, 1])],
    )
    nodes = [
        node("SplitToSequence", "x", "s", axis=0),
        node("SequenceMap", "s x", "t u", body=body),
        node("ConcatFromSequence", "t", "y", axis=0),
        node("ConcatFromSequence", "u", "z", axis=0),
    ]
    check(nodes, "y z")


def test_optionals() -> None:
    nodes = [
        node("Optional", "x", "o"),
        node("OptionalHasElement", "o", "has"),
        node("OptionalGetElement", "o", "g"),
        node("Where", "has g x", "y"),
    ]
    check(nodes)


def test_sequences_as_inputs_and_outputs_are_refused() -> None:
    proto = model([node("SequenceConstruct", "x x", "s")], {"x": (np.float32, [2])}, ["s"])
    with refused(UnsupportedOpError, "Output 's' is not a tensor", "sequence of 2 tensor(s)"):
        import_model(proto)
    proto = model([node("SequenceAt", "s p", "y")], {"p": (np.int64, [])}, ["y"])
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [None]))
    with refused(UnsupportedOpError, "Input 's' is not a tensor", "sequence"):
        import_model(proto)


def test_a_tensor_operator_on_a_sequence_is_refused() -> None:
    nodes = [node("SequenceConstruct", "x x", "s"), node("Neg", "s", "y", "minus")]
    with pytest.raises(UnsupportedOpError) as caught:
        import_model(model(nodes, {"x": (np.float32, [2])}, ["y"]))
    assert caught.value.where == "minus (Neg)"


def test_a_position_outside_the_sequence() -> None:
    nodes = [node("SequenceConstruct", "x x", "s"), node("SequenceAt", "s p", "y")]
    with pytest.raises(Exception, match="no position 2"):
        import_model(model(nodes, {"x": (np.float32, [2])}, ["y"], {"p": np.int64(2)}))


def test_more_parts_than_memory_are_refused() -> None:
    """A few bytes of a damaged file can ask for them."""
    split = node("SplitToSequence", "x one", "s")
    damaged = model([split, node("SequenceLength", "s", "y")], {"x": (np.float32, [2**40])}, ["y"])
    damaged.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [], [1]))
    with pytest.raises(PlanishError, match="SplitToSequence"):
        import_model(damaged)

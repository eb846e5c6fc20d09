"""Sequences and optionals inside a model, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import planish
from helpers.onnx_graph import compare, model, node, runtime
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


def test_a_sequence_is_an_output_for_each_of_its_tensors() -> None:
    nodes = [node("SplitToSequence", "x n", "s", axis=0), node("Neg", "x", "y")]
    proto = model(nodes, {"x": (np.float32, ["N", 4])}, ["s", "y"], {"n": np.array([1, 2, 3])})
    proto.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    parts, negative = runtime(proto, {"x": X})
    results = planish.build(proto, tuning_seconds=0)(X)
    assert list(results) == ["s_0", "s_1", "s_2", "y"]
    for result, expected in zip(results.values(), [*parts, negative], strict=True):
        np.testing.assert_array_equal(result, expected)


def test_a_sequence_whose_tensors_have_the_name_of_another_output() -> None:
    nodes = [node("SequenceConstruct", "x x", "s"), node("Neg", "x", "s_1")]
    for outputs in (["s", "s_1"], ["s_1", "s"]):
        proto = model(nodes, {"x": (np.float32, [2])}, outputs)
        with refused(UnsupportedOpError, "Output 's' is a sequence", "'s_1' is an output, too"):
            import_model(proto)


def test_a_sequence_of_nothing_is_no_output() -> None:
    proto = model([node("SequenceEmpty", "", "s")], {"x": (np.float32, [2])}, ["s"])
    with refused(UnsupportedOpError, "Output 's' is not a tensor", "sequence of 0 tensor(s)"):
        import_model(proto)


def test_sequences_as_inputs_are_refused() -> None:
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

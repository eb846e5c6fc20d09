"""If, Loop and Scan: what is known is inlined, what the data decide is selected."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers.networks import build
from helpers.onnx_graph import assert_close, compare, model, node, runtime
from helpers.refusal import refused
from planish.errors import PlanishError, UnsupportedOpError
from planish.frontends.onnx import OnnxFallback, import_model
from planish.graph.interpret import interpret

RNG = np.random.default_rng(13)
FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def graph(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **constants: Any):
    infos = [
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in part.items()]
        for part in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    return helper.make_graph(nodes, "body", *infos, stored)


def conditional(then: list[Any], other: list[Any], shape: Any = None) -> onnx.ModelProto:
    shapes = (shape, shape) if not isinstance(shape, tuple) else shape
    branches = {
        "then_branch": graph(then, {}, {"a": (FLOAT, shapes[0])}),
        "else_branch": graph(other, {}, {"b": (FLOAT, shapes[1])}),
    }
    return model(
        [node("If", "flag", "y", "choice", **branches)],
        {"x": (np.float32, [2, 3]), "flag": (np.bool_, [])},
        ["y"],
    )


def test_both_branches_are_computed_where_the_data_decide() -> None:
    proto = conditional([node("Neg", "x", "a")], [node("Exp", "x", "b")], [2, 3])
    for flag in (True, False):
        made = compare(proto, {"x": floats(2, 3), "flag": np.array(flag)})
        assert not any(isinstance(n.op, OnnxFallback) for n in made.nodes)


def test_one_branch_is_left_where_the_condition_is_known() -> None:
    proto = conditional([node("Neg", "x", "a")], [node("Flatten", "x", "b", axis=0)])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    made = compare(proto, {"x": floats(2, 3)})
    assert [n.op.name for n in made.nodes] == ["neg"]


def test_branches_of_different_ranks_are_refused_with_the_reason() -> None:
    other = [node("ReduceSum", "x", "b", keepdims=0)]
    proto = conditional([node("Neg", "x", "a")], other, ([2, 3], []))
    with refused(UnsupportedOpError, "the data decide between"):
        import_model(proto)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        [node("Flatten", "x", "b", axis=0)],  # [1, 6]
        [node("Concat", "x x", "b", axis=0)],  # [4, 3]
        [node("Concat", "x x", "wide", axis=1), node("Compress", "wide two", "b", axis=0)],
        [node("Compress", "x none", "b", axis=1)],  # [2, 0]
        [node("Relu", "x", "r"), node("NonZero", "r", "i"), node("Cast", "i", "b", to=FLOAT)],
    ],
)
def test_the_size_is_that_of_the_branch_that_the_data_take(other: list[Any], swapped: bool) -> None:
    branches = [[node("Neg", "x", "a")], other]
    if swapped:
        branches = [[*other, node("Identity", "b", "a")], [node("Neg", "x", "b")]]
        branches[0] = [relabelled(n) for n in branches[0]]
    proto = conditional(*branches, (["rows", "columns"], ["rows", "columns"]))
    for name, mask in (("two", [True, False]), ("none", [False] * 3)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(mask), name))
    # what is then done with it sees that size
    proto.graph.node.extend([node("Exp", "y", "e"), node("ReduceSum", "e", "sum", keepdims=0)])
    proto.graph.output.append(helper.make_tensor_value_info("sum", FLOAT, []))
    one_engine(proto, *({"x": floats(2, 3), "flag": np.array(f)} for f in (True, False)))


def one_engine(proto: onnx.ModelProto, *runs: dict[str, np.ndarray]) -> None:
    """One engine without host steps gives what ONNX Runtime gives, run after run."""
    engine = build(import_model(proto, allow_fallback=False))
    for feeds in runs:
        have = engine(feeds)
        results = list(have.values()) if isinstance(have, dict) else [have]
        for result, other in zip(results, runtime(proto, feeds), strict=True):
            assert_close(result, other, 1e-5)


def relabelled(made: onnx.NodeProto) -> onnx.NodeProto:
    """The node with its ``b`` under another name."""
    for names in (made.input, made.output):
        names[:] = ["c" if n == "b" else n for n in names]
    return made


def test_no_boxes_or_those_that_are_left() -> None:
    """As torchvision's detectors are recorded: without a box nothing is suppressed."""
    then = [node("Identity", "nothing", "none")]
    other = [
        node("Unsqueeze", "kept zero", "boxes_of_one"),
        node("Unsqueeze", "scores first", "scores_of_one"),
        node("NonMaxSuppression", "boxes_of_one scores_of_one most half", "rows"),
        node("Gather", "rows second", "indices", axis=1),
    ]
    branches = {
        "then_branch": graph(then, {}, {"none": (INT64, [0])}),
        "else_branch": graph(other, {}, {"indices": (INT64, ["n"])}),
    }
    proto = model(
        [
            node("Greater", "x least", "inside"),
            node("Compress", "boxes inside", "kept", axis=0),
            node("Compress", "x inside", "scores", axis=0),
            node("Size", "scores", "size"),
            node("Equal", "size no", "empty"),
            node("If", "empty", "chosen", "choice", **branches),
            node("Gather", "kept chosen", "y", axis=0),
        ],
        {"x": (np.float32, [8]), "boxes": (np.float32, [8, 4])},
        ["y"],
        {
            "least": np.float32(0.3), "no": np.int64(0), "nothing": np.zeros(0, np.int64),
            "zero": np.array([0]), "first": np.array([0, 1]), "most": np.array([8]),
            "half": np.array([0.5], np.float32), "second": np.int64(2),
        },
    )  # fmt: skip
    corners = np.sort(RNG.random((8, 2, 2)).astype(np.float32), 1).reshape(8, 4)
    scores = (RNG.random(8), np.zeros(8), np.arange(8) / 8)
    one_engine(proto, *({"x": s.astype(np.float32), "boxes": corners} for s in scores))


def test_a_branch_that_does_not_fit_may_still_never_be_taken() -> None:
    """An exporter's test of the rank: the other branch could not even be typed."""
    proto = conditional([node("Neg", "x", "a")], [node("MatMul", "x x", "b")])
    shape = [node("Shape", "x", "s"), node("Size", "s", "r"), node("Equal", "r two", "flag")]
    proto.graph.node.extend(shape)
    del proto.graph.input[1]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "two"))
    made = import_model(proto, allow_fallback=False)
    assert [n.op.name for n in made.nodes] == ["neg"]


def looping(body_nodes: list[Any], condition: str, **constants: Any) -> onnx.ModelProto:
    body = graph(
        body_nodes,
        {"i": (INT64, []), "going": (BOOL, []), "v": (FLOAT, [2, 3])},
        {condition: (BOOL, []), "w": (FLOAT, [2, 3])},
        **constants,
    )
    return model(
        [node("Loop", "most start x", "y", "repeat", body=body)],
        {"x": (np.float32, [2, 3])},
        ["y"],
        {"most": np.int64(6), "start": np.array(True)},
    )


def test_a_loop_that_the_data_end() -> None:
    """It doubles until the sum passes a limit, at most six times."""
    nodes = [
        node("Add", "v v", "w"),
        node("ReduceSum", "w", "total", keepdims=0),
        node("Less", "total limit", "more"),
    ]
    proto = looping(nodes, "more", limit=np.float32(100))
    for scale in (0.3, 3.0, 40.0, 1000.0):
        x = np.full((2, 3), scale, np.float32)
        made = compare(proto, {"x": x})
        assert not any(isinstance(n.op, OnnxFallback) for n in made.nodes)


def test_a_loop_that_never_ends_by_the_data() -> None:
    proto = looping([node("Add", "v v", "w"), node("Identity", "going", "on")], "on")
    compare(proto, {"x": floats(2, 3)})


def test_a_loop_whose_rounds_the_data_decide_falls_back() -> None:
    proto = looping([node("Add", "v v", "w"), node("Identity", "going", "on")], "on")
    del proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info("most", INT64, []))
    for rounds in (0, 1, 5):
        feeds = {"x": floats(2, 3), "most": np.array(rounds)}
        made = compare(proto, feeds, allow_fallback=True)
    (step,) = [n for n in made.nodes if isinstance(n.op, OnnxFallback)]
    assert step.origin == "repeat (Loop)"


def test_a_long_loop_falls_back() -> None:
    """Known or not how long: what would be too large a graph is left to ONNX's reference."""
    halve = [node("Mul", "v half", "w"), node("Identity", "going", "on")]
    proto = looping(halve, "on", half=np.float32(0.99))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(300), "most"))
    compare(proto, {"x": floats(2, 3)}, allow_fallback=True)
    until = [
        node("Mul", "v half", "w"),
        node("ReduceSum", "w", "total", keepdims=0),
        node("Greater", "total limit", "more"),
    ]
    proto = looping(until, "more", half=np.float32(0.9), limit=np.float32(1))
    del proto.graph.initializer[0]
    proto.graph.node[0].input[0] = ""
    made = compare(proto, {"x": np.full((2, 3), 50, np.float32)}, allow_fallback=True)
    assert any(isinstance(n.op, OnnxFallback) for n in made.nodes)


def test_a_state_that_grows_is_refused_where_the_data_decide_how_far() -> None:
    """In its first round it does not: what is added has as many rows as rounds are done."""
    body = graph(
        [node("Unsqueeze", "i axes", "n"), node("Slice", "v zero n", "rows"),
         node("Concat", "v rows", "w", axis=0), node("Identity", "going", "on")],
        {"i": (INT64, []), "going": (BOOL, []), "v": (FLOAT, ["R", 3])},
        {"on": (BOOL, []), "w": (FLOAT, ["S", 3])},
        axes=np.array([0]), zero=np.array([0]),
    )  # fmt: skip
    proto = model([node("Loop", "most start x", "y", "repeat", body=body)],
                  {"x": (np.float32, [2, 3]), "most": (np.int64, [])}, ["y"],
                  {"start": np.array(True)})  # fmt: skip
    with refused(UnsupportedOpError, "its number of rounds depends on the data"):
        import_model(proto)


def growing(nodes: list[Any], condition: str = "going") -> onnx.ModelProto:
    """A loop for every row of ``x`` that is positive at first: a state grows, rows are kept."""
    body = graph(
        [node("Gather", "kept i", "one", axis=0), *nodes, node("Concat", "v two", "w", axis=0),
         node("ReduceSum", "one", "sum", keepdims=1), node("Identity", condition, "on")],
        {"i": (INT64, []), "going": (BOOL, []), "v": (FLOAT, ["R", 3])},
        {"on": (BOOL, []), "w": (FLOAT, ["S", 3]), "sum": (FLOAT, [1])},
    )  # fmt: skip
    return model(
        [node("Slice", "x zero one_ one_", "column"), node("Squeeze", "column one_", "flat"),
         node("Greater", "flat nought", "inside"), node("Compress", "x inside", "kept", axis=0),
         node("Shape", "kept", "s"), node("Gather", "s nought_", "count", axis=0),
         node("Loop", "count start begin", "y sums", "repeat", body=body),
         node("Neg", "y", "z")],
        {"x": (np.float32, ["N", 3])}, ["z", "sums"],
        {"start": np.array(True), "begin": np.ones((1, 3), np.float32), "zero": np.array([0]),
         "one_": np.array([1]), "nought": np.float32(0), "nought_": np.array(0)},
    )  # fmt: skip


def test_a_state_that_grows_by_the_same_every_round_has_a_known_size() -> None:
    """As torchvision's loops over what was found: a host step, and all around it compiled."""
    twice = [node("Unsqueeze", "one zero", "row"), node("Concat", "row row", "two", axis=0)]
    proto = growing(twice)
    engine = build(import_model(proto))
    assert engine.host_steps() == ["repeat"]
    for rows in (5, 1, 9):
        x = floats(rows, 3)
        have = engine({"x": x})
        assert have["z"].shape == (1 + 2 * (x[:, 0] > 0).sum(), 3)
        for result, other in zip(have.values(), runtime(proto, {"x": x}), strict=True):
            assert_close(result, other, 1e-6)


def test_a_loop_that_the_data_may_end_before_has_no_known_size() -> None:
    early = [
        node("Unsqueeze", "one zero", "two"),
        node("ReduceMax", "one", "most", keepdims=0),
        node("Less", "most two_", "more"),
    ]
    proto = growing(early, "more")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two_"))
    with refused(UnsupportedOpError, "its number of rounds depends on the data"):
        import_model(proto)


def test_loops_in_loops_are_not_tried_without_end() -> None:
    """Each of 20 loops tries three rounds of the one in it: 3^20 rounds in all."""
    nodes = [node("Exp", "v", "w")]
    for depth in range(20):
        body = graph([*nodes, node("Identity", "going", "on")],
                     {"i": (INT64, []), "going": (BOOL, []), "v": (FLOAT, [2, 3])},
                     {"on": (BOOL, []), "w": (FLOAT, [2, 3])})  # fmt: skip
        nodes = [node("Loop", "most start v", "w", f"loop{depth}", body=body)]
    nodes[0].input[2], nodes[0].output[0] = "x", "y"
    proto = model(nodes, {"x": (np.float32, [2, 3]), "most": (np.int64, [])}, ["y"],
                  {"start": np.array(True)})  # fmt: skip
    with refused(UnsupportedOpError, "its number of rounds depends on the data"):
        import_model(proto)


def test_a_loop_that_grows_otherwise_later_tells_so_when_it_runs() -> None:
    """The fourth round adds a row more than the first ones, by which its size was told."""
    some = [
        node("Unsqueeze", "one zero", "row"), node("Greater", "i last", "late"),
        node("Cast", "late", "n", to=INT64), node("Add", "n one_", "times"),
        node("Concat", "times one_", "repeats", axis=0), node("Tile", "row repeats", "two"),
    ]  # fmt: skip
    proto = growing(some)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2), "last"))
    engine = build(import_model(proto))
    x = np.abs(floats(4, 3)) + 0.1
    assert engine({"x": x[:3]})["z"].shape == (4, 3)
    with refused(UnsupportedOpError, "where its first rounds let"):
        engine({"x": x})


def test_outputs_of_unknown_length_are_refused() -> None:
    body = graph(
        [node("Add", "v v", "w"), node("ReduceSum", "w", "t", keepdims=0),
         node("Less", "t limit", "more"), node("Identity", "w", "row")],
        {"i": (INT64, []), "going": (BOOL, []), "v": (FLOAT, [2, 3])},
        {"more": (BOOL, []), "w": (FLOAT, [2, 3]), "row": (FLOAT, [2, 3])},
        limit=np.float32(9),
    )  # fmt: skip
    proto = model([node("Loop", "most start x", "y rows", body=body)],
                  {"x": (np.float32, [2, 3])}, ["y", "rows"],
                  {"most": np.int64(4), "start": np.array(True)})  # fmt: skip
    with refused(UnsupportedOpError, "how long its outputs are"):
        import_model(proto)


SCANNING = {
    "plain": {},
    "backwards": {"scan_input_directions": [1], "scan_output_directions": [1]},
    "axes": {"scan_input_axes": [1], "scan_output_axes": [1]},
    "last axis": {"scan_input_axes": [-1], "scan_output_axes": [-1]},
}


@pytest.mark.parametrize("kind", SCANNING)
def test_scan(kind: str) -> None:
    x = floats(4, 5, 3)
    options: dict[str, Any] = SCANNING[kind]
    axis = options.get("scan_input_axes", [0])[0]
    rest = [int(d) for d in np.delete(x.shape, axis)]
    body = graph(
        [node("Add", "s e", "t"), node("Mul", "t e", "row")],
        {"s": (FLOAT, rest), "e": (FLOAT, rest)},
        {"t": (FLOAT, rest), "row": (FLOAT, rest)},
    )
    scan = node("Scan", "start x", "last rows", body=body, num_scan_inputs=1, **options)
    declared = {"start": (np.float32, rest), "x": (np.float32, x.shape)}
    compare(model([scan], declared, ["last", "rows"]), {"start": floats(*rest), "x": x})


def test_scan_of_opset_8() -> None:
    """Every tensor has a batch dimension, and the body sees one element of it."""
    body = graph(
        [node("Add", "s e", "t"), node("Identity", "t", "row")],
        {"s": (FLOAT, [3]), "e": (FLOAT, [3])},
        {"t": (FLOAT, [3]), "row": (FLOAT, [3])},
    )
    scan = node("Scan", "_ start x", "last rows", body=body, num_scan_inputs=1)
    start, x = floats(2, 3), floats(2, 4, 3)
    declared = {"start": (np.float32, start.shape), "x": (np.float32, x.shape)}
    sums = start[:, None] + np.cumsum(x, 1)
    proto = model([scan], declared, ["last", "rows"], opset=8)
    compare(proto, {"start": start, "x": x}, expected=[sums[:, -1], sums])


def test_a_scan_of_unknown_length_falls_back() -> None:
    body = graph([node("Add", "s e", "t"), node("Neg", "t", "row")],
                 {"s": (FLOAT, [3]), "e": (FLOAT, [3])},
                 {"t": (FLOAT, [3]), "row": (FLOAT, [3])})  # fmt: skip
    scan = node("Scan", "start x", "last rows", body=body, num_scan_inputs=1)
    declared = {"start": (np.float32, [3]), "x": (np.float32, ["N", 3])}
    proto = model([scan], declared, ["last", "rows"])
    feeds = {"start": floats(3), "x": floats(4, 3)}
    results = interpret(import_model(proto), feeds)
    for result, other in zip(results, runtime(proto, feeds), strict=True):
        assert_close(result, other, 1e-5)


@pytest.mark.parametrize("opset", [1, 8, 9])  # 1: by ONNX's reference
def test_a_scan_of_more_inputs_than_it_has(opset: int) -> None:
    body = graph([node("Identity", "e", "row")], {"e": (FLOAT, [3])}, {"row": (FLOAT, [3])})
    scan = node("Scan", "_ x" if opset == 8 else "x", "rows", body=body, num_scan_inputs=2**40)
    proto = model([scan], {"x": (np.float32, [2, 4, 3])}, ["rows"], opset=opset)
    with pytest.raises(PlanishError) as caught:
        import_model(proto)
    assert "said to read" in str(caught.value)
    assert "Scan" in caught.value.where

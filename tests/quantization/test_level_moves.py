"""Conversions that go past moves: only bytes are left between, and the results are the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers.onnx_graph import runtime
from helpers.qdq import Qdq, residual_model
from planish.frontends.onnx import import_model
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops import Concat, Dequantize, Identity, MaxPool, Pad, Quantize, Reshape
from planish.passes import optimize
from planish.quantization.explicit import holds_weights, settle_scales
from planish.quantization.level_moves import move_levels


def moved(proto: onnx.ModelProto) -> Graph:
    graph = import_model(proto)
    settle_scales(graph)
    optimize(graph, keep=holds_weights)
    move_levels(graph)
    return graph


def conversions(graph: Graph) -> int:
    return sum(isinstance(n.op, Quantize | Dequantize) for n in graph.nodes)


def two(*scales_: float) -> Qdq:
    q = Qdq("N", 4, 6, 6)
    a = q.levels(q.op("Relu", "x", "a"), scales_[0], np.uint8(3))
    b = q.levels(q.op("Sigmoid", "x", "b"), scales_[1], np.uint8(3))
    q.op("Concat", f"{a} {b}", "both", axis=1)
    q.levels("both", scales_[2], np.uint8(3))
    return q


def check(q: Qdq, output: str) -> Graph:
    """Compares with ONNX Runtime, bit by bit."""
    proto = q.proto(output)
    graph = moved(proto)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(interpret(graph, {"x": x})[0], runtime(proto, {"x": x})[0])
    moves = [n for n in graph.nodes if isinstance(n.op, Concat | MaxPool | Pad)]
    assert moves and all(n.output.dtype is DType.UINT8 for n in moves)
    return graph


def test_concatenations_of_one_scale_leave_no_conversion() -> None:
    assert conversions(check(two(0.02, 0.02, 0.02), "both_dq")) == 3


def test_concatenations_of_several_scales_convert_before() -> None:
    graph = check(two(0.02, 0.01, 0.03), "both_dq")
    (joined,) = [n for n in graph.nodes if isinstance(n.op, Concat)]
    assert all(v.producer and isinstance(v.producer.op, Quantize) for v in joined.inputs)
    assert conversions(graph) == 7


def test_windows_borders_and_shapes() -> None:
    q = Qdq("N", 4, 6, 6)
    a = q.levels(q.op("Relu", "x", "a"), 0.02, np.uint8(9))
    a = q.op("Pad", f"{a} {q.constant('pads', np.int64([0, 0, 1, 1, 0, 0, 1, 1]))}", "padded")
    a = q.op("MaxPool", q.levels(a, 0.02, np.uint8(9)), "pool", kernel_shape=[3, 3])
    a = q.op("Flatten", q.levels(a, 0.02, np.uint8(9)), "flat")
    graph = check(q, q.levels(a, 0.02, np.uint8(9)))
    assert conversions(graph) == 2
    (pad,) = [n for n in graph.nodes if isinstance(n.op, Pad)]
    assert isinstance(pad.op, Pad) and pad.op.value == 9


def test_borders_of_another_number_stay_floats() -> None:
    q = Qdq("N", 4, 6, 6)
    a = q.levels(q.op("Relu", "x", "a"), 0.02, np.uint8(9))
    pads = q.constant("pads", np.int64([0, 0, 1, 1, 0, 0, 1, 1]))
    q.op("Pad", f"{a} {pads} {q.constant('value', np.float32(1))}", "padded")
    graph = moved(q.proto(q.levels("padded", 0.02, np.uint8(9))))
    (pad,) = [n for n in graph.nodes if isinstance(n.op, Pad)]
    assert pad.output.dtype is DType.FLOAT32
    assert conversions(graph) == 4


@pytest.mark.parametrize("zero", [np.uint8(3), np.uint8(4)])
def test_other_levels_are_converted(zero: np.uint8) -> None:
    q = Qdq("N", 4, 6, 6)
    a = q.levels(q.op("Relu", "x", "a"), 0.02, np.uint8(3))
    graph = moved(q.proto(q.levels(a, 0.02, zero)))
    assert conversions(graph) == (2 if zero == 3 else 4)


def test_floats_that_users_see_stay() -> None:
    q = two(0.02, 0.02, 0.02)
    graph = moved(q.proto("both", "both_dq"))
    assert all(isinstance(v.op, Dequantize | Concat | Reshape | Identity) for v in graph.outputs)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    for have, want in zip(
        interpret(graph, {"x": x}),
        runtime(q.proto("both", "both_dq"), {"x": x}),
        strict=True,
    ):
        np.testing.assert_array_equal(have, want)


def test_a_network_keeps_its_results() -> None:
    proto = residual_model()
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    (have,) = interpret(moved(proto), {"x": x})
    (want,) = runtime(proto, {"x": x})
    assert np.abs(have - want).max() <= 0.2001 and (have != want).mean() < 0.2

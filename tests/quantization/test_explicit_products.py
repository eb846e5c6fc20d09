"""Layers whose scales the model gives: exact sums, and the roundings of ONNX's QLinearConv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from helpers.onnx_graph import model, node, runtime
from helpers.qdq import OPSET, Qdq, scales
from planish.frontends.onnx import import_model
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.ops import Conv, ConvInteger, MatMul, MatMulInteger
from planish.passes import optimize
from planish.quantization.explicit import holds_weights, settle_scales
from planish.quantization.explicit_products import explicit_candidates, use_scales
from planish.quantization.level_moves import move_levels


def settled(proto: onnx.ModelProto) -> Graph:
    graph = import_model(proto)
    assert settle_scales(graph)
    optimize(graph, keep=holds_weights)
    move_levels(graph)
    return graph


def integers(graph: Graph) -> Graph:
    """A copy in which every layer that can be is quantized."""
    copy, _ = duplicate(graph)
    use_scales(copy, frozenset(explicit_candidates(copy, {}).free))
    assert not any(isinstance(n.op, Conv | MatMul) for n in copy.nodes)
    return copy


X_ZERO, Y_ZERO = np.uint8(119), np.uint8(131)

CASES: dict[str, dict[str, Any]] = {
    "per channel": {},
    "signed": {"x_zero": np.int8(-7), "y_zero": np.int8(11)},
    "per tensor, asymmetric": {"scale": np.float32(0.01), "zero": np.int8(-9)},
    "unsigned weights": {"zero": np.full(12, 131, np.uint8)},
    "no bias": {"bias": False},
    # everything is exact then, and many sums lie half-way between two levels
    "powers of two": {"scale": np.float32(2**-7), "x_scale": 2**-5, "y_scale": 2**-4},
    "depthwise": {"groups": 12},
    "grouped": {"groups": 2},
}


def build(
    *,
    x_scale: float = 0.03,
    x_zero: Any = X_ZERO,
    y_scale: float = 0.07,
    y_zero: Any = Y_ZERO,
    scale: Any = None,
    zero: Any = None,
    bias: bool = True,
    groups: int = 1,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution and ReLU between levels, and the same with QLinearConv."""
    scale = scales(12) if scale is None else scale
    zero = np.zeros(np.shape(scale), np.int8) if zero is None else zero
    q = Qdq("N", 12, 7, 8)
    x = q.levels("x", x_scale, x_zero)
    w = q.weights("w", (12, 12 // groups, 3, 3), scale, zero)
    inputs = f"{x} {w}" + (f" {q.bias('b', x, w, 12)}" if bias else "")
    q.op("Conv", inputs, "conv", pads=[1, 1, 0, 1], group=groups)
    proto = q.proto(q.levels("conv", y_scale, y_zero))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    operands = "x_q x_scale x_zero w w_scale w_zero conv_scale conv_zero"
    nodes = [
        node("QuantizeLinear", "x x_scale x_zero", "x_q"),
        node(
            "QLinearConv",
            operands + (" b" if bias else ""),
            "y_q",
            pads=[1, 1, 0, 1],
            group=groups,
        ),
        node("DequantizeLinear", "y_q conv_scale conv_zero", "y"),
    ]
    other = model(nodes, {"x": (np.float32, ["N", 12, 7, 8])}, ["y"], constants, OPSET)
    return proto, other


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_between_levels_is_qlinearconv(case: str) -> None:
    """Bit by bit, as ONNX Runtime computes it too, which makes one of the other."""
    proto, qlinear = build(**CASES[case])
    x = np.random.default_rng(3).standard_normal((2, 12, 7, 8)).astype(np.float32) * 2
    (have,) = interpret(integers(settled(proto)), {"x": x})
    (want,) = interpret(import_model(qlinear), {"x": x})
    np.testing.assert_array_equal(have, want)
    if "asymmetric" not in case:  # which ONNX Runtime refuses
        np.testing.assert_array_equal(have, runtime(qlinear, {"x": x})[0])
    assert len(np.unique(have)) > 60


@pytest.mark.parametrize("chosen", [True, False])
def test_levels_are_the_nearest(chosen: bool) -> None:
    """To the exact result, computed in float64: in floats and in integers."""
    q = Qdq("N", 6, 5, 5)
    x = q.levels("x", 0.03, np.uint8(119))
    w = q.weights("w", (8, 6, 3, 3), scales(8), np.zeros(8, np.int8))
    bias = q.random.standard_normal((8, 1, 1)).astype(np.float32)
    q.op("Add", f"{q.op('Conv', f'{x} {w}', 'conv')} {q.constant('bias', bias)}", "sum")
    q.op("Mul", f"sum {q.constant('factor', np.float32(1.3))}", "scaled")
    q.op("Clip", f"scaled {q.constant('low', np.float32(-3))}", "clipped")
    proto = q.proto(q.levels("clipped", 0.02, np.int8(-3)))
    graph = settled(proto)
    copy = integers(graph) if chosen else duplicate(graph)[0]
    if not chosen:
        use_scales(copy, frozenset())
    given = q.random.standard_normal((3, 6, 5, 5)).astype(np.float32)
    (have,) = interpret(copy, {"x": given})
    levels = np.clip(np.rint(given / np.float32(0.03)) + 119, 0, 255) - 119
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    wide = constants["w"].astype(np.float64) * constants["w_scale"].reshape(-1, 1, 1, 1)
    windows = np.lib.stride_tricks.sliding_window_view(levels * np.float32(0.03), (3, 3), (2, 3))
    exact = (np.einsum("nchwij,kcij->nkhw", windows, wide) + bias) * np.float32(1.3)
    places = np.clip(np.maximum(exact, -3) / np.float32(0.02), -125, 130)
    assert np.abs(have / np.float32(0.02) - places).max() < 0.5 + 1e-3


def dense(
    transpose: bool, axis: int, weights: Callable[[Qdq], str] | None = None
) -> onnx.ModelProto:
    q = Qdq("N", 9)
    x = q.levels("x", 0.03, np.uint8(119))
    shape = (5, 9) if transpose else (9, 5)
    zero = np.zeros(shape[axis], np.int8)
    w = weights(q) if weights else q.weights("w", shape, scales(shape[axis]), zero, axis)
    q.op("Gemm", f"{x} {w}", "dense", transB=int(transpose))
    y = q.levels("dense", 0.0531, np.uint8(100))
    q.op("MatMul", f"{y} {q.weights('v', (5, 5), np.float32(0.01), np.int8(0))}", "next")
    return q.proto(y if not weights else q.levels("next", 0.05, np.uint8(100)))


@pytest.mark.parametrize(("transpose", "axis"), [(True, 0), (False, 1)])
def test_matrices_in_either_order(transpose: bool, axis: int) -> None:
    graph = integers(settled(dense(transpose, axis)))
    assert sum(isinstance(n.op, MatMulInteger) for n in graph.nodes) == 1
    x = np.random.default_rng(2).standard_normal((4, 9)).astype(np.float32)
    want = runtime(dense(transpose, axis), {"x": x})[0]
    (have,) = interpret(graph, {"x": x})
    assert np.abs(have - want).max() <= 0.0532 and (have != want).mean() < 0.1


REASONS = {
    "the scales of its weights differ within an output channel": lambda: dense(True, 1),
    "the model gives no scales for its weights": lambda: dense(
        False, 1, lambda q: q.constant("w", q.random.standard_normal((9, 5)).astype(np.float32))
    ),
}
"""Of a layer called "dense", which another one follows that can be quantized."""


@pytest.mark.parametrize("reason", REASONS)
def test_what_stays_in_floats_says_why(reason: str) -> None:
    graph = settled(REASONS[reason]())
    found = explicit_candidates(graph, {})
    assert found.kept == {"dense": reason} and found.free in ((), ("next",))
    use_scales(graph, frozenset())
    products = [n for n in graph.nodes if isinstance(n.op, MatMul)]
    assert all(n.inputs[1].is_constant for n in products)


def test_inputs_without_levels_stay_in_floats() -> None:
    q = Qdq("N", 9)
    w = q.weights("w", (9, 9), scales(9), np.zeros(9, np.int8), 1)
    x = q.op("Sigmoid", q.levels(q.op("MatMul", f"x {w}", "first"), 0.1, np.uint8(128)), "middle")
    q.op("MatMul", f"{x} {w}", "second")
    found = explicit_candidates(settled(q.proto("second")), {})
    why = "the model gives no scale for its input"
    assert (found.free, found.kept) == ((), {"first": why, "second": why})


def test_every_float_product_is_a_candidate_once() -> None:
    graph = settled(build()[0])
    (node_,) = [n for n in graph.nodes if isinstance(n.op, Conv)]
    assert explicit_candidates(graph, {}).free == (node_.name,)
    assert explicit_candidates(graph, {node_: "fp32"}).kept == {
        node_.name: "layer_precision says so"
    }
    done = integers(graph)
    assert [n.name for n in done.nodes if isinstance(n.op, ConvInteger)] == [node_.name]

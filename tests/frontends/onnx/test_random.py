"""Converters with many attributes, on random shapes and attributes, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.onnx_graph import compare_op

random_cases = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def array(draw: Any, *shape: int) -> np.ndarray:
    seed = draw(st.integers(0, 2**16))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numbers(draw: Any, low: int, high: int, count: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))


@random_cases
@given(st.data())
def test_conv(data: st.DataObject) -> None:
    draw = data.draw
    spatial, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    window, dilations = numbers(draw, 1, 3, spatial), numbers(draw, 1, 2, spatial)
    x = array(draw, draw(st.integers(1, 3)), groups * 2, *numbers(draw, 5, 8, spatial))
    w = array(draw, groups * draw(st.integers(1, 2)), 2, *window)
    attributes: dict[str, Any] = {"group": groups, "dilations": dilations}
    attributes["strides"] = numbers(draw, 1, 3, spatial)
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = numbers(draw, 0, 2, 2 * spatial)
    else:
        attributes["auto_pad"] = padding
    # for dilated windows ONNX Runtime refuses SAME
    if padding.startswith("SAME"):
        attributes["dilations"] = [1] * spatial
    compare_op("Conv", [x, w, array(draw, w.shape[0])], constant=[1, 2], **attributes)


@random_cases
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    draw = data.draw
    spatial = draw(st.integers(1, 3))
    window = numbers(draw, 1, 4, spatial)
    x = array(draw, 2, 3, *numbers(draw, 4, 9, spatial))
    attributes: dict[str, Any] = {"kernel_shape": window, "ceil_mode": draw(st.integers(0, 1))}
    attributes["strides"] = numbers(draw, 1, 3, spatial)
    attributes["pads"] = [draw(st.integers(0, n - 1)) for n in window * 2]
    compare_op("MaxPool", [x], **attributes)
    include = draw(st.integers(0, 1))
    compare_op("AveragePool", [x], opset=19, count_include_pad=include, **attributes)


@random_cases
@given(st.data())
def test_slice(data: st.DataObject) -> None:
    draw = data.draw
    shape = numbers(draw, 1, 6, draw(st.integers(1, 4)))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    # what means "to the end" forwards means nothing backwards, and runtimes disagree about it
    far = {1: [2**31 - 1, 2**63 - 1], -1: [-(2**31), -(2**63) + 1]}
    rows = []
    for axis in axes:
        step = draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
        start = draw(st.integers(-8, 8))
        end = draw(st.one_of(st.integers(-8, 8), st.sampled_from(far[1 if step > 0 else -1])))
        rows.append((start, end, draw(st.sampled_from([axis, axis - len(shape)])), step))
    vectors = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    compare_op("Slice", [array(draw, *shape), *vectors], constant=[1, 2, 3, 4], symbolic=False)


@random_cases
@given(st.data())
def test_pad(data: st.DataObject) -> None:
    draw = data.draw
    shape = numbers(draw, 3, 5, draw(st.integers(1, 4)))
    mode = draw(st.sampled_from(["constant", "reflect", "edge"]))
    low = -1 if mode == "constant" else 0
    pads = np.array(numbers(draw, low, 2, 2 * len(shape)), np.int64)
    value = np.float32(draw(st.sampled_from([0.0, 1.5])))
    compare_op("Pad", [array(draw, *shape), pads, value], constant=[1, 2], mode=mode)


@random_cases
@given(st.data())
def test_resize(data: st.DataObject) -> None:
    draw = data.draw
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    coordinates = draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners"]))
    x = array(draw, 2, 2, *numbers(draw, 3, 7, 2))
    flags: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "cubic":
        flags["cubic_coeff_a"] = draw(st.sampled_from([-0.75, -0.5]))
        flags["exclude_outside"] = draw(st.integers(0, 1))
    scales = [1, 1, *(draw(st.sampled_from([0.5, 0.75, 1, 1.5, 2, 2.5])) for _ in range(2))]
    inputs = [x, None, np.array(scales, np.float32)]
    compare_op("Resize", inputs, constant=[2], tolerance=1e-4, **flags)


@random_cases
@given(st.data())
def test_reductions(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 4))
    axes = draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1))
    signed = [draw(st.sampled_from([a, a - rank])) for a in axes]
    names = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"]
    op_type, keep = draw(st.sampled_from(names)), draw(st.integers(0, 1))
    x = array(draw, *numbers(draw, 1, 4, rank))
    compare_op(op_type, [x, np.array(signed, np.int64)], constant=[1], keepdims=keep)


@random_cases
@given(st.data())
def test_softmax_before_opset_13(data: st.DataObject) -> None:
    draw = data.draw
    x = array(draw, *numbers(draw, 1, 4, draw(st.integers(2, 4))))
    axis = draw(st.integers(0, x.ndim - 1))
    compare_op(draw(st.sampled_from(["Softmax", "LogSoftmax"])), [x], opset=11, axis=axis)


@random_cases
@given(st.data())
def test_einsum(data: st.DataObject) -> None:
    draw = data.draw
    letters = draw(st.permutations("abcd"))
    terms = ["".join(draw(st.permutations(letters))[: draw(st.integers(1, 4))]) for _ in range(2)]
    used = sorted(set("".join(terms)))
    output = "".join(draw(st.lists(st.sampled_from(used), unique=True)))
    operands = [array(draw, *("abcd".index(x) + 2 for x in term)) for term in terms]
    equation = f"{','.join(terms)}->{output}"
    compare_op("Einsum", operands, equation=equation, symbolic=False, tolerance=1e-4)

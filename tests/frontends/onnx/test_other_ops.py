"""Operators and variants of them that exporters write rarely, against ONNX Runtime or NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.onnx_graph import compare, compare_op, model, node
from helpers.refusal import refused
from planish.errors import UnsupportedOpError
from planish.frontends.onnx import import_model

RNG = np.random.default_rng(16)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumulative_products(exclusive: int, reverse: int, axis: int) -> None:
    x = floats(3, 1, 11)
    ordered = np.flip(x, axis) if reverse else x
    wanted = np.cumprod(ordered, axis)
    if exclusive:
        wanted = np.roll(wanted, 1, axis)
        first: list[Any] = [slice(None)] * 3
        first[axis] = 0
        wanted[tuple(first)] = 1
    wanted = np.flip(wanted, axis) if reverse else wanted
    compare_op("CumProd", [x, np.int64(axis)], constant=[1], opset=26, exclusive=exclusive,
               reverse=reverse, symbolic=False, expected=[wanted])  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layer_normalization_with_its_statistics(axis: int) -> None:
    x = floats(2, 3, 4)
    shape = x.shape[axis:]
    compare_op("LayerNormalization", [x, floats(*shape), floats(*shape)], outputs=3, axis=axis,
               symbolic=False)  # fmt: skip


def test_batch_normalization_in_training_mode() -> None:
    x, parameters = floats(4, 3, 5, 5), [floats(3), floats(3), floats(3), np.abs(floats(3))]
    scale, offset, mean, variance = (p[:, None, None] for p in parameters)
    own_mean = x.mean((0, 2, 3), keepdims=True)[0]
    own_variance = x.var((0, 2, 3), keepdims=True)[0]
    y = (x - own_mean) / np.sqrt(own_variance + 1e-5) * scale + offset
    running = [mean * 0.9 + own_mean * 0.1, variance * 0.9 + own_variance * 0.1]
    compare_op("BatchNormalization", [x, *parameters], outputs=3, opset=15, training_mode=1,
               expected=[y, *(r.reshape(3) for r in running)])  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hardmax_of_several_axes(axis: int) -> None:
    compare_op("Hardmax", [floats(2, 3, 4)], opset=11, axis=axis)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_of_a_symbolic_batch(reduction: str) -> None:
    data, updates = floats(4, 5), floats(4, 2)
    indices = np.stack([RNG.permutation(5)[:2] for _ in range(4)])
    for axis in (0, 1):
        places = indices % 4 if axis == 0 else indices
        if reduction == "none" and axis == 0:
            places = np.stack([RNG.permutation(4) for _ in range(2)], 1)
        compare_op("ScatterElements", [data, places, updates], axis=axis, reduction=reduction)


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_reversing_sequences_of_symbolic_length(axes: tuple[int, int]) -> None:
    time, batch = axes
    x = floats(4, 4, 3)
    lengths = np.array([1, 4, 2, 3], np.int64)
    names = ["T", "B"] if time == 0 else ["B", "T"]
    nodes = [node("ReverseSequence", "x n", "y", time_axis=time, batch_axis=batch)]
    proto = model(nodes, {"x": (np.float32, [*names, 3]), "n": (np.int64, ["B"])}, ["y"])
    compare(proto, {"x": x, "n": lengths})


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [1, 2, -2])
def test_writing_to_a_cache(mode: str, axis: int) -> None:
    cache = floats(3, 6, 6, 2)
    update = np.take(floats(3, 6, 6, 2), range(2), axis)
    start = np.array([0, 4, 3] if mode == "linear" else [5, 0, 3], np.int64)
    wanted = cache.copy()
    for i in range(3):
        for j in range(2):
            place = (start[i] + j) % 6
            np.moveaxis(wanted[i], axis % 4 - 1, 0)[place] = np.moveaxis(
                update[i], axis % 4 - 1, 0
            )[j]
    compare_op("TensorScatter", [cache, update, start], opset=24, mode=mode, axis=axis,
               symbolic=False, expected=[wanted])  # fmt: skip


def test_writing_to_the_start_of_a_cache() -> None:
    cache, update = floats(2, 5, 3), floats(2, 2, 3)
    wanted = np.concatenate([update, cache[:, 2:]], 1)
    compare_op("TensorScatter", [cache, update], opset=24, expected=[wanted])


def test_padding_with_a_value_that_is_an_input() -> None:
    pads = np.array([1, 0, 2, 1], np.int64)
    compare_op("Pad", [floats(2, 3), pads, np.float32(7.5)], constant=[1])


def test_padding_that_wraps_around() -> None:
    x = floats(2, 3)
    for pads in ([1, 1, 0, 2], [3, 0, 0, 7]):
        wanted = np.pad(x, [(pads[0], pads[2]), (pads[1], pads[3])], "wrap")
        compare_op("Pad", [x, np.array(pads, np.int64)], constant=[1], opset=19, mode="wrap",
                   symbolic=False, expected=[wanted])  # fmt: skip


# ---- operator sets before 7, which runtimes no longer read ------------------------------------


def old(nodes: list[Any], feeds: dict[str, np.ndarray], wanted: np.ndarray, opset: int = 6) -> None:
    declared = {n: (a.dtype, a.shape) for n, a in feeds.items()}
    compare(model(nodes, declared, ["y"], opset=opset), feeds, expected=[wanted])


def test_broadcasting_along_an_axis() -> None:
    a, b = floats(2, 3, 4, 5), floats(3, 4)
    for op_type, function in {"Add": np.add, "Mul": np.multiply, "Div": np.divide}.items():
        nodes = [node(op_type, "a b", "y", broadcast=1, axis=1)]
        old(nodes, {"a": a, "b": b}, function(a, b[..., None]))
    row = floats(5)
    old([node("Sub", "a b", "y", broadcast=1)], {"a": a, "b": row}, a - row)
    powers = floats(2)
    nodes = [node("Pow", "a b", "y", broadcast=1, axis=0)]
    wanted = np.abs(a) ** powers[:, None, None, None]
    old(nodes, {"a": np.abs(a), "b": powers}, wanted)


def test_slopes_of_channels() -> None:
    x, slope = floats(2, 3, 4), floats(3)
    old([node("PRelu", "x s", "y")], {"x": x, "s": slope}, np.where(x > 0, x, x * slope[:, None]))


def test_batch_normalization_of_opset_6() -> None:
    x, parameters = floats(2, 3, 4), [floats(3), floats(3), floats(3), np.abs(floats(3))]
    scale, offset, mean, variance = (p[:, None] for p in parameters)
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * scale + offset
    feeds = dict(zip("xsbmv", [x, *parameters], strict=True))
    old([node("BatchNormalization", "x s b m v", "y", is_test=1)], feeds, wanted)
    proto = model([node("BatchNormalization", "x s b m v", "y")],
                  {n: (a.dtype, a.shape) for n, a in feeds.items()}, ["y"], opset=6)  # fmt: skip
    with refused(UnsupportedOpError, "training mode"):
        import_model(proto, allow_fallback=False)


def test_older_operator_sets_work_where_nothing_has_changed() -> None:
    x = floats(2, 3)
    old([node("Transpose", "x", "y")], {"x": x}, x.T, opset=1)
    proto = model([node("Relu", "x", "y", "r")], {"x": (np.float32, [2])}, ["y"], opset=1)
    with refused(UnsupportedOpError, "Relu of opset 1", "r (Relu)"):
        import_model(proto)

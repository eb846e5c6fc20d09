"""Converters of reshaping, slicing, indexing and generating operators against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.onnx_graph import compare, compare_op, model, node
from planish.frontends.onnx.convert import import_model
from planish.ops.conv import Conv

RNG = np.random.default_rng(1)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


X = floats(2, 3, 4)


@pytest.mark.parametrize("target", [(2, 12), (-1, 4), (0, -1), (0, 0, 2, 2), (4, 3, 2)])
def test_reshape(target: tuple[int, ...]) -> None:
    compare_op("Reshape", [X, ints(*target)], constant=[1], symbolic=4 not in target[:1])


def test_reshape_to_nothing_with_allowzero() -> None:
    compare_op("Reshape", [floats(0, 3), ints(3, 0)], constant=[1], symbolic=False, allowzero=1)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    compare_op("Flatten", [X], axis=axis)


@pytest.mark.parametrize("axes", [[1], [1, 3], [-1]])
def test_squeeze(axes: list[int]) -> None:
    x = floats(2, 1, 3, 1)
    compare_op("Squeeze", [x], opset=11, axes=axes)
    compare_op("Squeeze", [x, ints(*axes)], constant=[1], opset=13)


def test_squeeze_all() -> None:
    compare_op("Squeeze", [floats(2, 1, 3, 1)], symbolic=False)


@pytest.mark.parametrize("axes", [[0], [1, 3], [-1], [4, 0]])
def test_unsqueeze(axes: list[int]) -> None:
    compare_op("Unsqueeze", [X, ints(*axes)], constant=[1], opset=13)
    compare_op("Unsqueeze", [X], opset=11, axes=axes)


def test_transpose() -> None:
    compare_op("Transpose", [X])
    compare_op("Transpose", [X], perm=[1, 0, 2])


def test_expand() -> None:
    compare_op("Expand", [floats(3, 1), ints(2, 1, 4)], constant=[1])
    compare_op("Expand", [floats(3, 4), ints(1, 4)], constant=[1])


def test_tile() -> None:
    compare_op("Tile", [X, ints(1, 2, 3)], constant=[1])


@pytest.mark.parametrize(("start", "end"), [(0, None), (1, None), (-2, None), (0, 2), (-1, 9)])
def test_shape(start: int, end: int | None) -> None:
    limits = {"start": start} | ({} if end is None else {"end": end})
    compare_op("Shape", [X], opset=15, **limits)


def test_size() -> None:
    compare_op("Size", [X])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode: str) -> None:
    pads = [0, 1, 2, 0, 0, 1]
    compare_op("Pad", [X], opset=10, mode=mode, pads=pads)
    compare_op("Pad", [X, ints(*pads)], constant=[1], opset=13, mode=mode)


def test_pad_with_value_axes_and_cuts() -> None:
    value = np.float32(1.5)
    compare_op("Pad", [X, ints(1, -1, 2, 0), value, ints(1, -1)], constant=[1, 2, 3])
    compare_op("Pad", [X, ints(0, 0, -1, 0, 0, 2), value], constant=[1, 2])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    compare_op("DepthToSpace", [floats(2, 8, 3, 5)], blocksize=2, mode=mode)


def test_space_to_depth() -> None:
    compare_op("SpaceToDepth", [floats(2, 3, 4, 6)], blocksize=2)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    compare_op("Concat", [X, X + 1, X * 2], axis=axis)


FAR = 2**63 - 1
SLICES = [
    ([0], [2], [1], [1]),
    ([1], [FAR], [1], [1]),
    ([-2], [-1], [2], [1]),
    ([0, 1], [2**31 - 1, 3], [0, 2], [1, 2]),
    ([-1], [-FAR], [2], [-1]),
    ([FAR], [-(2**31)], [1], [-2]),
    ([5], [9], [1], [1]),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    values = [X, *(ints(*v) for v in (starts, ends, axes, steps))]
    compare_op("Slice", values, constant=[1, 2, 3, 4])
    if set(steps) == {1}:
        compare_op("Slice", [X], opset=9, starts=starts, ends=ends, axes=axes)


def test_slice_of_leading_axes() -> None:
    compare_op("Slice", [X, ints(0, 1), ints(1, 3)], constant=[1, 2], symbolic=False)


def test_split() -> None:
    x = floats(3, 6)
    compare_op("Split", [x], outputs=3, opset=11, axis=1)
    compare_op("Split", [x], outputs=2, opset=11, axis=1, split=[2, 4])
    compare_op("Split", [x, ints(1, 5)], constant=[1], outputs=2, opset=13, axis=-1)
    compare_op("Split", [floats(3, 7)], outputs=3, axis=1, num_outputs=3)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis: int) -> None:
    compare_op("Gather", [X, np.array([[0, -1], [1, 0]], np.int32)], axis=axis, symbolic=False)
    compare_op("Gather", [X, np.int64(1)], axis=axis, constant=[1], symbolic=False)


def test_gather_nd() -> None:
    compare_op("GatherND", [X, np.array([[0, 1], [-1, 2]])], symbolic=False)
    compare_op("GatherND", [X, np.array([[[0]], [[2]]])], batch_dims=1, symbolic=False)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3)])
def test_gather_elements(axis: int, shape: tuple[int, ...]) -> None:
    indices = RNG.integers(-2, 2, shape)
    compare_op("GatherElements", [X, indices], axis=axis, symbolic=shape == X.shape)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction: str) -> None:
    indices = np.array([[[0, 1, 2]], [[-1, 1, 0]]])
    compare_op(
        "ScatterElements",
        [X, indices, floats(2, 1, 3)],
        axis=2,
        symbolic=False,
        reduction=reduction,
    )
    places = np.array([[0, 1], [-1, 2]])
    compare_op("ScatterND", [X, places, floats(2, 4)], symbolic=False, reduction=reduction)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    indices = np.array([[0, 2], [-1, 9]])
    values = np.array([0.5, 3], np.float32)
    compare_op("OneHot", [indices, np.int64(4), values], constant=[1], axis=axis)


@pytest.mark.parametrize("time_axis", [0, 1])
def test_reverse_sequence(time_axis: int) -> None:
    compare_op(
        "ReverseSequence",
        [floats(4, 4, 2), ints(1, 4, 2, 3)],
        time_axis=time_axis,
        batch_axis=1 - time_axis,
        symbolic=False,
    )


def test_constant_of_shape() -> None:
    import onnx

    value = onnx.numpy_helper.from_array(ints(7))
    compare_op("ConstantOfShape", [ints(2, 3)], constant=[0], value=value)
    compare_op("ConstantOfShape", [ints(2, 3)], constant=[0])


@pytest.mark.parametrize(
    "numbers", [np.array([1, 9, 2]), np.array([5, -1, -2]), np.array([0, 1, 0.25], np.float32)]
)
def test_range(numbers: np.ndarray) -> None:
    compare_op("Range", list(numbers), constant=[0, 1, 2])


def test_range_of_a_symbolic_size() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Range", "zero n one", "places"),
        node("Range", "n zero minus", "down"),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "minus": np.int64(-1)}
    proto = model(nodes, {"x": (np.float32, ["N", 3])}, ["places", "down"], constants)
    compare(proto, {"x": floats(5, 3)})


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 2])
def test_trilu(upper: int, k: int | None) -> None:
    inputs = [X] if k is None else [X, np.int64(k)]
    compare_op("Trilu", inputs, constant=[1], upper=upper)


def test_trilu_of_a_symbolic_size() -> None:
    proto = model([node("Trilu", "x", "y")], {"x": (np.float32, ["N", "N"])}, ["y"])
    compare(proto, {"x": floats(5, 5)})


def test_eye_like() -> None:
    compare_op("EyeLike", [floats(4, 5)], k=1, dtype=7)


def test_conditions_known_while_converting_choose_their_branch() -> None:
    from onnx import helper

    branches = {
        f"{name}_branch": helper.make_graph(
            [node(op, "x", f"{name}_y")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, None)],
        )
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "d", axis=0),
        node("Equal", "d three", "c"),
        node("If", "c", "y", **branches),
    ]
    constants = {"one": np.int64(1), "three": np.int64(3)}
    graph = compare(
        model(nodes, {"x": (np.float32, ["N", 3])}, ["y"], constants), {"x": floats(2, 3)}
    )
    assert [n.op.name for n in graph.nodes] == ["neg"]


def test_loops_of_known_length_are_unrolled() -> None:
    from onnx import helper

    body = helper.make_graph(
        [
            node("Add", "state x", "next"),
            node("Identity", "next", "scan"),
            node("Identity", "going", "still"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", 7, []),
            helper.make_tensor_value_info("going", 9, []),
            helper.make_tensor_value_info("state", 1, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("still", 9, []),
            helper.make_tensor_value_info("next", 1, [2, 3]),
            helper.make_tensor_value_info("scan", 1, [2, 3]),
        ],
    )
    nodes = [node("Loop", "three true x", "last all", body=body)]
    constants = {"three": np.int64(3), "true": np.bool_(True)}
    proto = model(nodes, {"x": (np.float32, [2, 3])}, ["last", "all"], constants)
    graph = compare(proto, {"x": floats(2, 3)})
    assert sum(n.op.name == "add" for n in graph.nodes) == 3


def test_wrapping_to_a_huge_size_is_left_to_the_reference() -> None:
    """The indices for a generated kernel would take 16 GB."""
    pad = node("Pad", "x pads", "y", mode="wrap")
    proto = model([pad], {"x": (np.float32, [3])}, ["y"], {"pads": ints(0, 2**31)}, opset=19)
    (pad,) = import_model(proto).nodes
    assert pad.op.name == "onnx_fallback"


def test_convolutions_of_constants_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their padding may be gigabytes: a dilation is any number that a file says."""
    monkeypatch.setattr(Conv, "reference", None)
    conv = node("Conv", "a w", "y", dilations=[2**28], auto_pad="SAME_UPPER")
    constants = {"a": floats(1, 1, 4), "w": floats(1, 1, 3)}
    (output,) = import_model(model([conv], {}, ["y"], constants)).outputs
    assert output.shape == (1, 1, 4)

"""Operators whose results' sizes depend on the data, beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import planish
from helpers.networks import build
from planish.errors import ShapeError
from planish.frontends.onnx import import_model

Arrays = dict[str, np.ndarray]


def model_of(nodes: Sequence[Any], arrays: Arrays, outputs: Sequence[str], dims: Any) -> Any:
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(a.dtype), dims(name, a.shape)
        )
        for name, a in arrays.items()
    ]
    graph = helper.make_graph(
        list(nodes), "test", infos, [onnx.ValueInfoProto(name=name) for name in outputs]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def check(
    nodes: Sequence[Any],
    runs: Sequence[Arrays],
    outputs: Sequence[str] = ("y",),
    stages: int | None = None,
    symbolic: bool = True,
) -> planish.Engine:
    """One engine for all runs gives what ONNX Runtime gives; with fixed sizes, and without."""
    kinds = [lambda name, shape: shape]
    if symbolic:
        kinds.append(
            lambda name, shape: [f"x_{i}" for i in range(len(shape))] if name == "x" else shape
        )
    for dims in kinds:
        model = model_of(nodes, runs[0], outputs, dims)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        engine = build(import_model(model, allow_fallback=False))
        assert not engine.host_steps()
        if stages is not None:
            assert len(engine.plan.stages.parts) == stages
        for arrays in runs:
            expected = session.run(None, arrays)
            got = engine(arrays)
            results = list(got.values()) if isinstance(got, dict) else [got]
            for wanted, result in zip(expected, results, strict=True):
                assert result.shape == wanted.shape
                assert result.dtype == wanted.dtype
                if wanted.dtype.kind == "f":
                    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
                else:
                    np.testing.assert_array_equal(result, wanted)
    return engine


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    names = ["" if n == "_" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def constant(name: str, value: Any) -> Any:
    tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
    return helper.make_node("Constant", [], [name], value=tensor)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


def masks(rng, *shape: int) -> list[np.ndarray]:
    one = np.zeros(shape, bool)
    one.reshape(-1)[-1] = True
    return [rng.random(shape) < 0.4, np.ones(shape, bool), one, np.zeros(shape, bool)]


@pytest.mark.parametrize("dtype", ["bool", "float32", "int64"])
@pytest.mark.parametrize("shape", [(9,), (4, 5), (2, 3, 4)])
def test_nonzero(rng, dtype, shape) -> None:
    check([node("NonZero", "x")], [{"x": m.astype(dtype)} for m in masks(rng, *shape)], stages=1)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_compress(rng, axis) -> None:
    attributes = {} if axis is None else {"axis": axis}
    x = rng.standard_normal((6, 6)).astype(np.float32)
    runs = [{"x": x, "c": m} for m in masks(rng, 5)]
    check([node("Compress", "x c", **attributes)], runs, stages=1)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("in_order", [0, 1])
def test_unique(rng, axis, in_order) -> None:
    attributes = {} if axis is None else {"axis": axis}
    shape = (20,) if axis == 0 else (4, 5)
    runs = [{"x": rng.integers(0, k, shape)} for k in (5, 1, 100)]
    nodes = [node("Unique", "x", "y first inverse counts", sorted=in_order, **attributes)]
    check(nodes, runs, ["y", "first", "inverse", "counts"], stages=1)


def boxes(rng, images: int, count: int, center: bool) -> np.ndarray:
    corners = rng.uniform(0, 1, (images, count, 2))
    return np.concatenate([corners, np.full_like(corners, 0.3) + (0 if center else corners)], -1)


@pytest.mark.parametrize("filler", [None, -1.5])
def test_rows_filled_up_to_a_fixed_number(rng, filler) -> None:
    """One stage: padding is put in by numbers, and rows past the count may be anything before."""
    nodes = [
        node("Compress", "x c", "rows", axis=0),
        node("Shape", "rows", "n", start=0, end=1),
        constant("most", ints(8)),
        node("Sub", "most n", "after"),
        constant("none", ints(0)),
        constant("one", ints(1)),
        node("Concat", "one none after none", "pads", axis=0),
        constant("filler", np.float32(filler or 0)),
        node("Pad", "rows pads" + (" filler" if filler else ""), "filled"),
        node("ReduceSum", "filled", "z", keepdims=0),
        node("Neg", "filled"),
    ]
    x = rng.standard_normal((6, 3)).astype(np.float32)
    runs = [{"x": x, "c": m} for m in masks(rng, 6)]
    check(nodes, runs, ["y", "z"], stages=1, symbolic=False)


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize(("images", "classes"), [(1, 1), (2, 3), (1, 20)])
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_suppression(rng, center, images, classes, threshold) -> None:
    given = "b s most overlap" + (" least" if threshold is not None else "")
    nodes = [
        constant("most", ints(4)),
        constant("overlap", np.array([0.4], np.float32)),
        constant("least", np.array([threshold or 0], np.float32)),
        node("NonMaxSuppression", given, center_point_box=center),
    ]
    runs = []
    for scale in (1.0, 0.45, 0.1):
        scores = rng.random((images, classes, 15)) * scale
        runs.append(
            {
                "b": boxes(rng, images, 15, bool(center)).astype(np.float32),
                "s": scores.astype(np.float32),
            }
        )
    check(nodes, runs, stages=1, symbolic=False)


def test_detection_tail(rng) -> None:
    """Suppression, boxes and features of what is left, a dense layer on them."""
    nodes = [
        constant("most", ints(50)),
        constant("overlap", np.array([0.5], np.float32)),
        constant("least", np.array([0.3], np.float32)),
        node("NonMaxSuppression", "b s most overlap least", "kept"),
        constant("two", ints(2)),
        node("Gather", "kept two", "column", axis=1),
        constant("flat", ints(-1)),
        node("Reshape", "column flat", "index"),
        node("Gather", "features index", "rows"),
        constant("w", rng.standard_normal((8, 5)).astype(np.float32)),
        node("MatMul", "rows w", "dense"),
        node("Relu", "dense", "y"),
        node("Shape", "y", "shape"),
    ]
    runs = []
    for scale in (1.0, 0.45, 0.1):
        runs.append(
            {
                "b": boxes(rng, 1, 60, False).astype(np.float32),
                "s": (rng.random((1, 2, 60)) * scale).astype(np.float32),
                "features": rng.standard_normal((60, 8)).astype(np.float32),
            }
        )
    check(nodes, runs, ["y", "kept", "shape"], stages=2, symbolic=False)


def test_top_k_of_a_number_that_is_computed(rng) -> None:
    x = rng.permutation(24).reshape(4, 6).astype(np.float32)
    nodes = [node("TopK", "x k", "y i", axis=1)]
    runs = [{"x": x, "k": ints(k)} for k in (2, 6, 1, 0)]
    check(nodes, runs, ["y", "i"])


def test_as_many_as_are_positive(rng) -> None:
    nodes = [
        constant("zero", np.float32(0)),
        node("Greater", "x zero", "good"),
        node("Cast", "good", "number", to=onnx.TensorProto.INT64),
        node("ReduceSum", "number", "total", keepdims=0),
        constant("axis", ints(0)),
        node("Unsqueeze", "total axis", "k"),
        node("TopK", "x k", "y i"),
    ]
    runs = [{"x": rng.permutation(12).astype(np.float32) - s} for s in (6, 2, -1, 12)]
    check(nodes, runs, ["y", "i"])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_range(dtype) -> None:
    bounds = [(0, 5, 1), (3, 20, 4), (9, -4, -2), (5, 5, 1), (5, 1, 1)]
    runs = [{n: np.array(v, dtype) for n, v in zip("abd", b, strict=True)} for b in bounds]
    check([node("Range", "a b d")], runs)


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_slice(rng, step) -> None:
    nodes = [
        constant("axes", ints(1)),
        constant("steps", ints(step)),
        node("Slice", "x start end axes steps"),
    ]
    x = rng.standard_normal((3, 10)).astype(np.float32)
    bounds = [(0, 10), (2, 7), (-3, 100), (7, 2), (9, -100), (-1, -11), (20, 30), (5, 5)]
    check(nodes, [{"x": x, "start": ints(a), "end": ints(b)} for a, b in bounds])


def test_slice_to_a_computed_end(rng) -> None:
    nodes = [
        constant("start", ints(0)),
        node("Slice", "x start end", "part"),
        node("ReduceSum", "part", "sum", keepdims=0),
        node("Exp", "part", "y"),
    ]
    x = rng.standard_normal((10, 3)).astype(np.float32)
    check(nodes, [{"x": x, "end": ints(n)} for n in (3, 10, 0, -2)], ["y", "sum"])


def test_reshape(rng) -> None:
    x = rng.standard_normal((4, 6)).astype(np.float32)
    shapes = [(2, 3, 4), (24, 1, 1), (-1, 2, 2), (1, -1, 3), (0, 3, 2), (0, 0, -1)]
    check([node("Reshape", "x s")], [{"x": x, "s": ints(*s)} for s in shapes], symbolic=False)


def test_reshape_to_an_impossible_shape(rng) -> None:
    x = rng.standard_normal((4, 6)).astype(np.float32)
    engine = build(
        import_model(
            model_of([node("Reshape", "x s")], {"x": x, "s": ints(2, 3, 4)}, ["y"], lambda n, s: s)
        )
    )
    with pytest.raises(ShapeError, match="reshape"):
        engine({"x": x, "s": ints(5, 1, 5)})


def test_expand(rng) -> None:
    x = rng.standard_normal((3, 1)).astype(np.float32)
    shapes = [(2, 3, 4), (1, 1, 1), (5, 3, 1), (2, 1, 0)]
    check([node("Expand", "x s")], [{"x": x, "s": ints(*s)} for s in shapes], symbolic=False)


def test_tile(rng) -> None:
    x = rng.standard_normal((3, 2)).astype(np.float32)
    check([node("Tile", "x r")], [{"x": x, "r": ints(*r)} for r in ((2, 3), (1, 1), (0, 2))])


RESIZES = {
    "nearest": {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    "linear": {"coordinate_transformation_mode": "half_pixel"},
    "cubic": {"cubic_coeff_a": -0.75, "coordinate_transformation_mode": "half_pixel"},
}


@pytest.mark.parametrize("mode", RESIZES)
def test_resize_to_a_computed_size(rng, mode) -> None:
    """An image as large as the box that it goes into, which may be of no size, too."""
    nodes = [
        node("Ceil", "size", "whole"),
        node("Cast", "whole", "sizes", to=onnx.TensorProto.INT64),
        node("Resize", "x _ _ sizes", "large", mode=mode, axes=[2, 3], **RESIZES[mode]),
        node("Neg", "large"),
    ]
    x = rng.standard_normal((2, 3, 5, 6)).astype(np.float32)
    sizes = ((7.5, 9.0), (3.2, 30.0), (5.0, 6.0), (1.0, 1.0))
    runs = [{"x": x, "size": np.array(s, np.float32)} for s in sizes]
    engine = check(nodes, runs, stages=2)
    with pytest.raises(ShapeError):
        engine({"x": x, "size": np.array([-3, 4], np.float32)})


def test_constant_of_shape() -> None:
    value = onnx.numpy_helper.from_array(np.array([2.5], np.float32))
    nodes = [node("ConstantOfShape", "s", value=value)]
    check(nodes, [{"s": ints(*s)} for s in ((2, 3), (1, 1), (0, 2), (7, 1))], symbolic=False)


def test_constants_are_computed_at_once(rng) -> None:
    nodes = [
        constant("mask", np.array([0, 1, 1, 0, 1])),
        node("NonZero", "mask", "rows"),
        constant("flat", ints(-1)),
        node("Reshape", "rows flat", "index"),
        node("Gather", "x index", "y"),
    ]
    engine = check(nodes, [{"x": rng.standard_normal((5, 2)).astype(np.float32)}])
    assert not engine.plan.graph.counts

"""Resize against TensorFlow's kernels and ONNX Runtime."""

import itertools

import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import ShapeError
from planish.graph import symbol
from planish.ops import Resize
from planish.ops.spatial import interpolation, nearest_indices, source_positions

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
SIZES = [
    ((4, 7), (9, 7)),
    ((5, 6), (2, 3)),
    ((1, 3), (4, 1)),
    ((8, 8), (16, 24)),
    ((9, 10), (4, 13)),
]
TF_COORDINATES = {
    (False, False): "asymmetric",
    (True, False): "align_corners",
    (False, True): "half_pixel",
}


@pytest.mark.parametrize(("extent", "size"), SIZES)
@pytest.mark.parametrize("flags", TF_COORDINATES)
def test_linear_like_tensorflow(extent, size, flags):
    x = RNG.normal(size=(2, *extent, 3)).astype(np.float32)
    expected = tf.raw_ops.ResizeBilinear(
        images=x, size=size, align_corners=flags[0], half_pixel_centers=flags[1]
    ).numpy()
    check(Resize(size, "linear", TF_COORDINATES[flags]), [x], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flags", TF_COORDINATES)
def test_nearest_like_tensorflow(flags):
    """Every pair of sizes up to 24: the last bit of a position decides."""
    coordinates = "tf_half_pixel_for_nn" if flags[1] else TF_COORDINATES[flags]
    rounding = "round_prefer_ceil" if flags[0] else "floor"
    for extent in range(1, 25):
        x = np.arange(extent, dtype=np.int32).reshape(1, 1, extent, 1)
        for size in range(1, 25):
            expected = tf.raw_ops.ResizeNearestNeighbor(
                images=x, size=(1, size), align_corners=flags[0], half_pixel_centers=flags[1]
            ).numpy()
            check(Resize((1, size), "nearest", coordinates, rounding), [x], expected)


@pytest.mark.parametrize(("extent", "size"), SIZES)
@pytest.mark.parametrize("half_pixel", [False, True])
def test_cubic_like_tensorflow(extent, size, half_pixel):
    x = RNG.normal(size=(2, *extent, 3)).astype(np.float32)
    expected = tf.raw_ops.ResizeBicubic(images=x, size=size, half_pixel_centers=half_pixel).numpy()
    op = (
        Resize(size, "cubic", "half_pixel", cubic_coeff=-0.5, exclude_outside=True)
        if half_pixel
        else Resize(size, "cubic", "asymmetric")
    )
    # TensorFlow looks the weights up in a table of 1024 steps
    check(op, [x], expected, rtol=1e-3, atol=1e-2)


COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _onnx_resize(x, size, scales, **attributes):
    spatial = len(x.shape) - 2
    target = [
        None,
        None if scales is None else np.array([1, 1, *scales], np.float32),
        np.array([*x.shape[:1], x.shape[-1], *size]) if scales is None else None,
    ]
    if scales is None:
        assert spatial == len(size)
    (output,) = onnx_op("Resize", [np.moveaxis(x, -1, 1), *target], **attributes)
    return np.moveaxis(output, 1, -1)


@pytest.mark.parametrize(("extent", "size"), SIZES)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    ("mode", "exclude_outside"), [("linear", False), ("cubic", False), ("cubic", True)]
)
def test_interpolation_like_onnx(extent, size, coordinates, mode, exclude_outside):
    x = RNG.normal(size=(2, *extent, 3)).astype(np.float32)
    expected = _onnx_resize(
        x,
        size,
        None,
        mode=mode,
        coordinate_transformation_mode=coordinates,
        cubic_coeff_a=-0.6,
        exclude_outside=int(exclude_outside),
    )
    op = Resize(size, mode, coordinates, cubic_coeff=-0.6, exclude_outside=exclude_outside)
    check(op, [x], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    ("mode", "rounding"),
    [("linear", "floor"), ("cubic", "floor"), *(("nearest", r) for r in ROUNDINGS)],
)
def test_scales_like_onnx(coordinates, rounding, mode):
    x = RNG.normal(size=(1, 6, 5, 2)).astype(np.float32)
    for scales in [(2.0, 2.0), (0.6, 1.7), (1.5, 3.3), (0.5, 0.35)]:
        size = tuple(int(np.floor(n * s)) for n, s in zip((6, 5), scales, strict=True))
        expected = _onnx_resize(
            x,
            size,
            scales,
            mode=mode,
            coordinate_transformation_mode=coordinates,
            nearest_mode=rounding,
        )
        op = Resize(size, mode, coordinates, rounding, scales=scales)
        check(op, [x], expected, rtol=1e-4, atol=1e-5)


def test_one_and_three_dimensions():
    x = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    expected = _onnx_resize(x, (7,), None, mode="linear")
    check(Resize((7,), "linear", "half_pixel"), [x], expected, rtol=1e-5, atol=1e-5)
    x = RNG.normal(size=(1, 2, 3, 4, 2)).astype(np.float32)
    expected = _onnx_resize(x, (4, 3, 9), None, mode="linear")
    check(Resize((4, 3, 9), "linear", "half_pixel"), [x], expected, rtol=1e-5, atol=1e-5)


def test_dtypes():
    half = RNG.normal(size=(1, 3, 3, 2)).astype(np.float16)
    (output,) = run(Resize((5, 5), "linear", "half_pixel"), half)
    (wide,) = run(Resize((5, 5), "linear", "half_pixel"), half.astype(np.float32))
    np.testing.assert_array_equal(output, wide.astype(np.float16))
    for dtype in (np.uint8, np.int64, np.bool_):
        run(Resize((5, 5), "nearest", "asymmetric", "floor"), (half > 0).astype(dtype))


@pytest.mark.parametrize("coordinates", [*COORDINATES, "tf_half_pixel_for_nn"])
def test_tables(coordinates):
    for extent, size in itertools.product((1, 2, 5), (1, 3, 9)):
        positions = source_positions(extent, size, coordinates)
        assert positions.dtype == np.float32
        assert positions.shape == (size,)
        for rounding in ROUNDINGS:
            indices = nearest_indices(positions, extent, rounding)
            assert 0 <= indices.min() <= indices.max() < extent
        for mode, taps in (("linear", 2), ("cubic", 4)):
            indices, weights = interpolation(positions, extent, mode)
            assert indices.shape == weights.shape == (size, taps)
            assert weights.dtype == np.float32
            assert 0 <= indices.min() <= indices.max() < extent
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_symbols():
    n, h = symbol("N"), symbol("H")
    op, bound = Resize((h * 2, n), "linear", "half_pixel"), Resize((6, 2), "linear", "half_pixel")
    check_symbolic(op, [tensor("f32", "N", "H", 4, 3)], {"N": 2, "H": 3}, bound)
    with pytest.raises(ShapeError, match="symbolic"):
        op.reference(np.ones((2, 3, 4, 3), np.float32))


@pytest.mark.parametrize(
    ("op", "type"),
    [
        (Resize((2,), "linear", "half_pixel"), tensor("f32", 1, 2, 2, 1)),
        (Resize((2, 2), "area", "half_pixel"), tensor("f32", 1, 2, 2, 1)),
        (Resize((2, 2), "linear", "centre"), tensor("f32", 1, 2, 2, 1)),
        (Resize((2, 2), "nearest", "half_pixel", "up"), tensor("f32", 1, 2, 2, 1)),
        (Resize((2, 2), "linear", "half_pixel"), tensor("i32", 1, 2, 2, 1)),
        (Resize((2, -2), "linear", "half_pixel"), tensor("f32", 1, 2, 2, 1)),
        (Resize((2, 2), "linear", "half_pixel"), tensor("f32", 1, 0, 2, 1)),
        (Resize((2, 2), "linear", "half_pixel", scales=(1.0,)), tensor("f32", 1, 2, 2, 1)),
        (Resize((2, 2), "linear", "half_pixel", scales=(0.0, 1.0)), tensor("f32", 1, 2, 2, 1)),
    ],
)
def test_refuses(op, type):
    with pytest.raises(ShapeError):
        infer(op, type)

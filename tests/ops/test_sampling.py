"""Sampling ops: simple cases worked out by hand, symbolic shapes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.one_op import check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.graph import DType
from planish.ops.sampling import CropAndResize, DeformSample, GridSample, RoiAlign

IMAGE = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)


def test_a_grid_of_corners():
    grid = np.float32([[[[-1, -1], [1, -1]], [[-1, 1], [1, 1]]]])
    (y,) = run(GridSample("linear", "zeros", True), IMAGE, grid)
    np.testing.assert_array_equal(y[0, ..., 0], [[0, 3], [8, 11]])
    # at the outer edges, three quarters of what is seen are zeros
    (y,) = run(GridSample("linear", "zeros", False), IMAGE, grid)
    np.testing.assert_allclose(y[0, ..., 0], [[0, 0.75], [2, 2.75]])


@pytest.mark.parametrize(("border", "wanted"), [("zeros", 0), ("border", 3), ("reflection", 1)])
def test_borders(border, wanted):
    """Three elements beyond the last one of a row of four: 0 1 2 3 | 3 2 1 0."""
    place = np.float32([[[[(2 * 6 + 1) / 4 - 1, -2 / 3]]]])
    (y,) = run(GridSample("nearest", border), IMAGE, place)
    assert y.item() == wanted


def test_nan_is_far_outside():
    grid = np.full((1, 1, 1, 2), np.nan, np.float32)
    (y,) = run(GridSample("linear", "zeros"), IMAGE, grid)
    assert y.item() == 0


def test_crops():
    boxes = np.float32([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 2, 2]])
    (y,) = run(CropAndResize((2, 2), "linear", -1.0), IMAGE, boxes, np.int32([0, 0, 0]))
    np.testing.assert_array_equal(y[0, ..., 0], [[0, 3], [8, 11]])
    np.testing.assert_array_equal(y[1, ..., 0], [[11, 8], [3, 0]])
    np.testing.assert_array_equal(y[2, ..., 0], [[0, -1], [-1, -1]])


def test_a_region_of_one_element_per_bin():
    regions = np.float32([[0, 0, 4, 3]])
    (y,) = run(RoiAlign((3, 4), sampling=1), IMAGE, regions, np.int64([0]))
    np.testing.assert_allclose(y, IMAGE)
    (y,) = run(RoiAlign((1, 1), sampling=1, mode="max"), IMAGE, regions, np.int64([0]))
    # the sample lies at (1, 1.5), between elements 5 and 6, of which each weighs a half
    assert y.item() == 3


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_beyond_the_image(mode):
    """A sample for each pixel, of which those outside are 0, as in the definition."""
    regions = np.float32([[-7.3, -6.1, 11.8, 9.4], [1.2, 0.7, 40, 2.9], [-90, -80, -50, -40]])
    op = RoiAlign((3, 2), 1.0, 0, mode)
    (y,) = run(op, IMAGE, regions, np.zeros(3, np.int64))
    image = IMAGE[0, ..., 0].astype(np.float64)
    for number, (x1, y1, x2, y2) in enumerate(regions.astype(np.float64) - 0.5):
        for row, column in np.ndindex(3, 2):
            axes = []
            for low, high, bins, place in ((y1, y2, 3, row), (x1, x2, 2, column)):
                width = (high - low) / bins
                count = int(np.ceil(width))
                axes.append(low + (place + (np.arange(count) + 0.5) / count) * width)
            found = [corners(image, a, b) for a in axes[0] for b in axes[1]]
            wanted = np.max(found) if mode == "max" else np.mean(np.sum(found, 1))
            assert y[number, row, column, 0] == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def corners(image, row, column):
    """The four weighted neighbours of a sample."""
    height, width = image.shape
    if not (-1 <= row <= height and -1 <= column <= width):
        return [0.0] * 4
    sides = []
    for at, extent in ((row, height), (column, width)):
        at = min(max(at, 0), extent - 1)
        low = int(at)
        sides.append([(low, 1 - (at - low)), (min(low + 1, extent - 1), at - low)])
    return [image[i, j] * a * b for i, a in sides[0] for j, b in sides[1]]


def test_windows_that_are_not_deformed():
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 4)).astype(np.float32)
    op = DeformSample((3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 2)
    (y,) = run(op, x, np.zeros((2, 3, 5, 24), np.float32))
    for tap, (i, j) in enumerate(np.ndindex(3, 2)):
        np.testing.assert_array_equal(y[:, :, :, tap], x[:, i : i + 3, j : j + 5])
    (halved,) = run(op, x, np.zeros((2, 3, 5, 24), np.float32), np.full((2, 3, 5, 12), 0.5, "f"))
    np.testing.assert_array_equal(halved, y / 2)


@pytest.mark.parametrize("missing", [(0, 3, 4, 1), (1, 0, 4, 1), (1, 3, 0, 1)])
@pytest.mark.parametrize("op", [CropAndResize((2, 2)), RoiAlign((2, 2))])
def test_regions_of_no_image_are_zeros(op, missing):
    """A batch of 0 that only a call says; the regions may be constants."""
    image = np.zeros(missing, np.float32)
    (y,) = op.reference(image, np.float32([[0, 0, 1, 1]]), np.int32([0]))
    np.testing.assert_array_equal(y, np.zeros((1, 2, 2, 1)))


@pytest.mark.parametrize("op", [CropAndResize((2, 2)), RoiAlign((2, 2))])
def test_no_images_of_absurd_size(op) -> None:
    """Nothing is there, so nothing as large is made of it."""
    images = np.zeros((0, 5, 1 << 40, 16), np.float32)
    (y,) = op.reference(images, np.float32([[0, 0, 1, 1]]), np.int32([0]))
    assert y.shape == (1, 2, 2, 16)
    assert not y.any()


def test_grids_over_no_image_are_zeros():
    grid = np.zeros((1, 2, 5, 2), np.float32)
    (y,) = GridSample("linear", "border").reference(IMAGE[:, :0], grid)
    np.testing.assert_array_equal(y, np.zeros((1, 2, 5, 1)))


def test_symbols():
    bindings = {"N": 2, "H": 5, "W": 6, "R": 3}
    image = tensor("f32", "N", "H", "W", 3)
    grid = tensor("f32", "N", "R", "W", 2)
    check_symbolic(GridSample("linear", "zeros"), [image, grid], bindings)
    regions = [image, tensor("f32", "R", 4), tensor("i64", "R")]
    check_symbolic(RoiAlign((2, 2)), regions, bindings)
    check_symbolic(CropAndResize((2, 2)), regions, bindings)


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (GridSample("linear", "wrap"), [("f32", 1, 4, 4, 3), ("f32", 1, 2, 2, 2)]),
        (GridSample("linear", "zeros"), [("f32", 1, 4, 4, 3), ("f32", 1, 2, 2, 3)]),
        (GridSample("linear", "zeros"), [("f32", 2, 4, 4, 3), ("f32", 1, 2, 2, 2)]),
        (GridSample("linear", "zeros"), [("i32", 1, 4, 4, 3), ("f32", 1, 2, 2, 2)]),
        (CropAndResize((2, 2), "cubic"), [("f32", 1, 4, 4, 3), ("f32", 5, 4), ("i32", 5)]),
        (CropAndResize((2, 2)), [("f32", 1, 4, 4, 3), ("f32", 5, 4), ("i32", 6)]),
        (RoiAlign((0, 2)), [("f32", 1, 4, 4, 3), ("f32", 5, 4), ("i64", 5)]),
        (RoiAlign((2, 2)), [("f32", 1, 4, 4, 3), ("f32", 5, 5), ("i64", 5)]),
        (
            DeformSample((3,), (1,), ((0, 0),), (1,)),
            [("f32", 1, 8, 4), ("f32", 1, 6, 4)],
        ),
        (
            DeformSample((3,), (1,), ((0, 0),), (1,), 3),
            [("f32", 1, 8, 4), ("f32", 1, 6, 9)],
        ),
    ],
)
def test_refuses(op, types):
    with pytest.raises(ShapeError):
        infer(op, *(tensor(dtype, *shape) for dtype, *shape in types))


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
def test_floats(dtype):
    grid = np.zeros((1, 1, 1, 2), dtype.numpy)
    (y,) = run(GridSample("linear", "border"), IMAGE.astype(dtype.numpy), grid)
    assert float(y.item()) == 5.5


@pytest.mark.parametrize("sampling", [-1, 2**31 - 1])
def test_absurd_numbers_of_samples_are_refused(sampling):
    """The largest took for ever to run."""
    with pytest.raises(ShapeError, match="cannot take"):
        infer(
            RoiAlign((1, 1), sampling=sampling),
            tensor(DType.FLOAT32, 1, 3, 4, 1),
            tensor(DType.FLOAT32, 1, 4),
            tensor(DType.INT64, 1),
        )

"""Sampling: grids, boxes, regions and deformed windows equal the references or nearly so."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import ew
from planish.ops.sampling import (
    BORDERS,
    SAMPLE_MODES,
    CropAndResize,
    DeformSample,
    GridSample,
    RoiAlign,
)
from planish.targets.base import Binding
from planish.targets.cpu.kernels.sampling import SamplingFamily

FAMILY = SamplingFamily()
TOLERANCE = {DType.FLOAT64: 1e-10, DType.FLOAT32: 2e-5, DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def check(rng, op, *arrays: np.ndarray, channels: int, layout: str = "dense") -> None:
    """The op and an addition behind it."""
    bias = rng.standard_normal(channels).astype(arrays[0].dtype)
    inputs = [(a.shape, DType.of(a.dtype)) for a in (*arrays, bias)]
    task = task_of((op, len(arrays)), (ew.Add(),), inputs=inputs)
    layouts = {"dense": None, "gaps": row_padded, "any order": lambda v: strided(v, rng)}[layout]
    check_tactics(
        FAMILY,
        task,
        rng,
        arrays=[*arrays, bias],
        layouts=layouts,
        tolerance=TOLERANCE[DType.of(arrays[0].dtype)],
    )


@pytest.mark.parametrize("mode", SAMPLE_MODES)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_grids(mode, border, align_corners, rng):
    x = rng.standard_normal((2, 5, 6, 20)).astype(np.float32)
    grid = rng.uniform(-1.7, 1.7, (2, 3, 4, 2)).astype(np.float32)
    grid[0, 0, 0] = [np.nan, np.inf]
    check(rng, GridSample(mode, border, align_corners), x, grid, channels=20, layout="any order")


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_grids_of_volumes_and_lines(mode, rng):
    volume = rng.standard_normal((2, 3, 4, 5, 3))
    grid = rng.uniform(-1.3, 1.3, (2, 2, 3, 2, 3))
    check(rng, GridSample(mode, "zeros"), volume, grid, channels=3)
    line, places = rng.standard_normal((2, 7, 40)), rng.uniform(-1.3, 1.3, (2, 5, 1))
    check(rng, GridSample(mode, "reflection"), line, places, channels=40, layout="gaps")


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda d: d.value)
def test_grids_of_every_float(dtype, rng):
    x = rng.standard_normal((1, 5, 6, 70)).astype(dtype.numpy)
    grid = rng.uniform(-1, 1, (1, 3, 4, 2)).astype(dtype.numpy)
    check(rng, GridSample("linear", "zeros"), x, grid, channels=70)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_crops(mode, size, rng):
    x = rng.standard_normal((3, 6, 7, 20)).astype(np.float32)
    boxes = rng.uniform(-0.3, 1.3, (6, 4)).astype(np.float32)
    boxes[0] = [0, 0, 1, 1]
    images = np.int32([0, 2, 1, 2, 0, 1])
    check(rng, CropAndResize(size, mode, 7.5), x, boxes, images, channels=20, layout="any order")


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("half_pixel", [False, True])
def test_regions(mode, sampling, half_pixel, rng):
    x = rng.standard_normal((2, 6, 7, 20)).astype(np.float32)
    regions = rng.uniform(-2, 12, (6, 4)).astype(np.float32)  # some upside down
    images = rng.integers(0, 2, 6)
    op = RoiAlign((3, 2), 0.7, sampling, mode, half_pixel)
    check(rng, op, x, regions, images, channels=20, layout="any order")


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("half_pixel", [False, True])
def test_regions_as_large_as_floats_can_be(mode, half_pixel, rng):
    """Of the samples, one for each pixel of a region, only those in the image are visited."""
    x = rng.standard_normal((1, 6, 7, 20)).astype(np.float32)
    far = np.float32([[-90, 2, 300, 4], [-5e4, -1e9, 8e4, 3], [0, 0, 3e38, 3e38], [5, 5, 1e5, 6]])
    regions = np.concatenate([far, np.float32([[np.nan, 0, 5, 5], [0, 0, np.inf, 4]])])
    op = RoiAlign((3, 2), 1.0, 0, mode, half_pixel)
    check(rng, op, x, regions, np.zeros(6, np.int64), channels=20)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_deformed_windows(masked, groups, rng):
    op = DeformSample((2, 3), (2, 1), ((0, 1), (1, 0)), (1, 2), groups)
    x = rng.standard_normal((2, 6, 7, 12)).astype(np.float32)
    offsets = 3 * rng.standard_normal((2, 3, 4, groups * 12)).astype(np.float32)
    factors = [rng.standard_normal((2, 3, 4, groups * 6)).astype(np.float32)] if masked else []
    for layout in ("gaps", "any order"):
        check(rng, op, x, offsets, *factors, channels=12, layout=layout)


def test_another_machine(rng):
    op = GridSample("cubic", "border")
    task = task_of((op, 2), inputs=[((1, 5, 6, 35), DType.FLOAT32), ((1, 2, 3, 2), DType.FLOAT32)])
    check_tactics(FAMILY, task, rng, machine=restricted("avx2"), tolerance=2e-4)


def test_nothing_to_do():
    task = task_of(
        (GridSample("linear", "zeros"), 2),
        inputs=[((2, 5, 4, 3), DType.FLOAT32), ((2, 0, 4, 2), DType.FLOAT32)],
    )
    assert next(iter(FAMILY.tactics(task, Binding({})))).launches(Binding({})) == []


@pytest.mark.parametrize("parameters", [{}, {"vectors": 0}, {"vectors": True}])
def test_nonsense_in_a_plan(parameters):
    task = task_of(
        (GridSample("linear", "zeros"), 2),
        inputs=[((2, 5, 4, 3), DType.FLOAT32), ((2, 1, 4, 2), DType.FLOAT32)],
    )
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, parameters)

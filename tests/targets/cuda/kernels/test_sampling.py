"""Sampling in Triton's interpreter: grids, boxes, regions and deformed windows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import row_padded, strided, task_of
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
from planish.targets.cuda.kernels.sampling import Sampling, SamplingFamily

FAMILY = SamplingFamily()
TOLERANCE = {DType.FLOAT64: 1e-10, DType.FLOAT32: 2e-5, DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2}
F32 = DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def check(rng, op, *arrays: np.ndarray, layout: str = "dense") -> None:
    """The op, a negation before it, and an addition behind it."""
    bias = rng.standard_normal(arrays[0].shape[-1]).astype(arrays[0].dtype)
    inputs = [(a.shape, DType.of(a.dtype)) for a in (*arrays, bias)]
    task = task_of((ew.Neg(),), (op, len(arrays)), (ew.Add(),), inputs=inputs)
    layouts = {"dense": None, "gaps": row_padded, "any order": lambda v: strided(v, rng)}[layout]
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=[Sampling(task, 16, 4, 1)],
        arrays=[*arrays, bias],
        layouts=layouts,
        tolerance=TOLERANCE[DType.of(arrays[0].dtype)],
    )


@pytest.mark.parametrize("mode", SAMPLE_MODES)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_grids(mode, border, align_corners, rng):
    x = rng.standard_normal((2, 5, 6, 3)).astype(np.float32)
    grid = rng.uniform(-1.7, 1.7, (2, 3, 2, 2)).astype(np.float32)
    grid[0, 0, 0] = [np.nan, np.inf]
    check(rng, GridSample(mode, border, align_corners), x, grid, layout="any order")


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_grids_of_volumes_and_lines(mode, rng):
    volume = rng.standard_normal((1, 3, 4, 5, 3))
    grid = rng.uniform(-1.3, 1.3, (1, 2, 3, 2, 3))
    check(rng, GridSample(mode, "zeros"), volume, grid)
    line, places = rng.standard_normal((2, 7, 5)), rng.uniform(-1.3, 1.3, (2, 5, 1))
    check(rng, GridSample(mode, "reflection"), line, places, layout="gaps")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("border", BORDERS)
def test_images_of_one_element(border, align_corners, rng):
    x = rng.standard_normal((1, 1, 1, 1)).astype(np.float32)
    grid = rng.uniform(-2, 2, (1, 3, 3, 2)).astype(np.float32)
    check(rng, GridSample("linear", border, align_corners), x, grid)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda d: d.value)
def test_grids_of_every_float(dtype, rng):
    x = rng.standard_normal((1, 5, 6, 7)).astype(dtype.numpy)
    grid = rng.uniform(-1, 1, (1, 3, 4, 2)).astype(dtype.numpy)
    check(rng, GridSample("linear", "zeros"), x, grid)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_crops(mode, size, rng):
    x = rng.standard_normal((3, 6, 7, 5)).astype(np.float32)
    boxes = rng.uniform(-0.3, 1.3, (4, 4)).astype(np.float32)
    boxes[0] = [0, 0, 1, 1]
    boxes[3, 2] = np.nan
    images = np.int32([0, 2, 1, 2])
    check(rng, CropAndResize(size, mode, 7.5), x, boxes, images, layout="any order")


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("half_pixel", [False, True])
def test_regions(mode, sampling, half_pixel, rng):
    x = rng.standard_normal((2, 6, 7, 3)).astype(np.float32)
    regions = rng.uniform(-2, 12, (4, 4)).astype(np.float32)  # some upside down
    op = RoiAlign((2, 2), 0.7, sampling, mode, half_pixel)
    check(rng, op, x, regions, rng.integers(0, 2, 4), layout="any order")


def test_regions_beside_the_image(rng):
    """Their samples are 0, in a maximum too."""
    x = -1 - rng.random((1, 4, 4, 2)).astype(np.float32)
    regions = np.float32([[-9, -9, -5, -5], [3, 3, 9, 9], [0, 0, 4, 4]])
    for mode in ("avg", "max"):
        check(rng, RoiAlign((1, 1), 1.0, 2, mode, False), x, regions, np.zeros(3, np.int64))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_deformed_windows(masked, groups, rng):
    op = DeformSample((2, 3), (2, 1), ((0, 1), (1, 0)), (1, 2), groups)
    x = rng.standard_normal((1, 6, 7, 6)).astype(np.float32)
    offsets = 3 * rng.standard_normal((1, 3, 4, groups * 12)).astype(np.float32)
    factors = [rng.standard_normal((1, 3, 4, groups * 6)).astype(np.float32)] if masked else []
    check(rng, op, x, offsets, *factors, layout="any order" if masked else "gaps")


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (GridSample("linear", "reflection"), ((8, 32, 32, 64), (8, 16, 16, 2))),
        (CropAndResize((14, 14)), ((2, 32, 32, 64), (50, 4), (50,))),
        (RoiAlign((7, 7)), ((1, 50, 50, 256), (1000, 4), (1000,))),
        (
            DeformSample((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
            ((1, 14, 14, 64), (1, 14, 14, 72)),
        ),
    ],
)
def test_offered_tactics_compile(op, shapes):
    dtypes = (F32, F32, DType.INT32)
    task = task_of((op, len(shapes)), inputs=list(zip(shapes, dtypes, strict=False)))
    tactic = next(iter(FAMILY.tactics(task, Binding({}))))
    assert all(code.cubin for code in compiled(tactic, Binding({})))


def test_nothing_to_do():
    shapes = [((2, 5, 4, 3), F32), ((2, 0, 4, 2), F32)]
    task = task_of((GridSample("linear", "zeros"), 2), inputs=shapes)
    assert next(iter(FAMILY.tactics(task, Binding({})))).launches(Binding({})) == []


def test_plans_cannot_ask_for_impossible_parameters():
    shapes = [((2, 5, 4, 3), F32), ((2, 1, 4, 2), F32)]
    task = task_of((GridSample("linear", "zeros"), 2), inputs=shapes)
    with pytest.raises(PlanError, match="impossible sampling kernel"):
        FAMILY.restore(task, {"rows": 3, "channels": 4, "warps": 1})

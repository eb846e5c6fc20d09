"""Resizing dimension by dimension: wide filters, regions with extrapolation, many dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.tactics import check_tactics, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import ew
from planish.ops.spatial import MODES, Resize
from planish.targets.base import Binding
from planish.targets.cpu.kernels.resample import ResampleFamily
from planish.targets.cpu.kernels.resize import ResizeFamily

FAMILY = ResampleFamily()
F32 = DType.FLOAT32
REGION = {
    "coordinates": "tf_crop_and_resize",
    "region": ((-0.2, 1.1), (0.1, 0.8)),
    "extrapolation": 3.0,
}
WIDE = {"coordinates": "half_pixel", "antialias": True}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [WIDE, WIDE | {"exclude_outside": True}, REGION])
def test_modes(mode, options, rng):
    task = task_of(
        (Resize((4, 13), mode, **options), 1),
        (ew.Add(),),
        inputs=[((2, 9, 8, 20), F32), ((4, 13, 20), F32)],
    )
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        check_tactics(FAMILY, task, rng, layouts=layouts, tolerance=1e-5)


@pytest.mark.parametrize("dtype", list(DType), ids=lambda d: d.value)
def test_nearest_of_every_dtype(dtype, rng):
    task = task_of((Resize((4, 13), "nearest", **REGION), 1), inputs=[((1, 9, 8, 40), dtype)])
    check_tactics(FAMILY, task, rng)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
def test_floats(dtype, rng):
    allowed = {DType.FLOAT16: 2e-3, DType.BFLOAT16: 2e-2, DType.FLOAT64: 1e-6}[dtype]
    task = task_of((Resize((4, 5), "cubic", **WIDE), 1), inputs=[((1, 9, 8, 20), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=allowed)


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((2, 12, 6), (5,), WIDE),
        ((1, 5, 6, 7, 3), (3, 9, 2), WIDE),
        ((1, 2, 3, 4, 5, 6), (3, 4, 5, 6), {"coordinates": "half_pixel"}),
    ],
)
def test_dimensions(shape, size, options, rng):
    task = task_of((Resize(size, "linear", **options), 1), inputs=[(shape, F32)])
    check_tactics(FAMILY, task, rng, tolerance=1e-5)


def test_each_resize_has_one_family():
    for options in (WIDE, REGION, {"coordinates": "half_pixel"}):
        task = task_of((Resize((3, 4), "linear", **options), 1), inputs=[((1, 9, 8, 4), F32)])
        ours = FAMILY, ResizeFamily()
        offered = [bool(list(family.tactics(task, Binding({})))) for family in ours[:1]]
        if offered == [True]:
            with pytest.raises(PlanError):
                ours[1].restore(task, {"vectors": 1})
        else:
            assert ours[1].restore(task, {"vectors": 1})


def test_nonsense_in_a_plan():
    task = task_of((Resize((3, 9), "linear", **WIDE), 1), inputs=[((2, 5, 4, 20), F32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, {"vectors": 1})


@pytest.mark.parametrize("options", [WIDE, REGION])
def test_weights_of_float64_are_those_of_the_reference(options, rng):
    """One minus a weight in float32 is another number than in float64."""
    op = Resize((14, 13), "linear", **options)
    task = task_of((op, 1), inputs=[((1, 7, 6, 3), DType.FLOAT64)])
    check_tactics(FAMILY, task, rng, tolerance=1e-13)

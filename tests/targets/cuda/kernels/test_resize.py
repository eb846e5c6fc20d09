"""Resizing on GPUs: every mode and coordinate transformation, dimensions, dtypes and layouts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import ew
from planish.ops.spatial import COORDINATES, ROUNDINGS, Resize
from planish.targets.base import Binding
from planish.targets.cuda.kernels.resize import ResizeFamily, Resizing

FAMILY = ResizeFamily()
F32, F16 = DType.FLOAT32, DType.FLOAT16


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def check(op, shape, rng, dtype=F32, tolerance=2e-5):
    task = task_of((op, 1), inputs=[(shape, dtype)])
    tactics = [Resizing(task, 64, 4, 1)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=tolerance)


def resize(size, mode, coordinates, **more):
    if coordinates == "tf_crop_and_resize":
        more = {"region": ((0.1, 1.2), (0.7, 0.2)), "extrapolation": 7.5, **more}
    if coordinates == "half_pixel_symmetric" and "scales" not in more:
        more["scales"] = (1.9, 0.7)
    return Resize(size, mode, coordinates, **more)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("size", [(11, 5), (4, 14)])
def test_nearest_is_exact(size, rounding, coordinates, rng):
    op = resize(size, "nearest", coordinates, rounding=rounding)
    check(op, (2, 6, 7, 3), rng, tolerance=0.0)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(11, 5), (1, 14)])
def test_interpolation(size, mode, coordinates, rng):
    check(resize(size, mode, coordinates), (2, 6, 7, 3), rng, tolerance=1e-4)


@pytest.mark.parametrize(
    "op",
    [
        Resize((9, 4), "cubic", "half_pixel", cubic_coeff=-0.5, exclude_outside=True),
        Resize((9, 4), "cubic", "half_pixel", cubic_coeff=-0.5, steps=1024),
        Resize((3, 2), "linear", "half_pixel", antialias=True),
        Resize((3, 2), "cubic", "half_pixel", antialias=True, exclude_outside=True),
        Resize((9, 3), "linear", "half_pixel", scales=(1.57, 0.5), antialias=True),
        Resize((9, 4), "linear", "asymmetric", scales=(1.6, 0.6)),
        Resize((9, 4), "nearest", "half_pixel", scales=(1.57, 0.6)),
    ],
)
def test_other_attributes(op, rng):
    check(op, (1, 6, 7, 5), rng, tolerance=1e-4)


@pytest.mark.parametrize(
    ("size", "shape"), [((9,), (2, 4, 3)), ((5, 3, 7), (1, 3, 4, 5, 2)), ((1, 1), (1, 1, 1, 1))]
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_dimensions(mode, size, shape, rng):
    check(Resize(size, mode, "half_pixel"), shape, rng)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [F16, DType.BFLOAT16, DType.FLOAT64])
def test_dtypes(dtype, antialias, rng):
    tolerance = {F16: 4e-3, DType.BFLOAT16: 4e-2, DType.FLOAT64: 1e-13}[dtype]
    op = Resize((7, 9), "linear", "half_pixel", antialias=antialias)
    check(op, (1, 4, 5, 4), rng, dtype, tolerance)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT64, DType.BOOL])
def test_nearest_of_integers(dtype, rng):
    check(Resize((7, 9), "nearest", "asymmetric"), (1, 4, 5, 4), rng, dtype, 0.0)


def test_plans_take_all_that_is_offered_for_bytes(rng):
    task = task_of(
        (Resize((7, 9), "nearest", "asymmetric"), 1), inputs=[((1, 4, 5, 1), DType.UINT8)]
    )
    check_interpreted(FAMILY, task, rng, limit=None)


@pytest.mark.parametrize("layouts", [None, "gaps", "any order"])
def test_epilogue_prologue_and_layouts(layouts, rng):
    op = Resize((6, 8), "linear", "half_pixel")
    inputs = [((2, 3, 4, 9), F32), ((9,), F32), ((2, 6, 8, 9), F32)]
    task = task_of((ew.Neg(),), (op, 1), (ew.Add(),), (ew.Add(),), inputs=inputs)
    assert task.prologue is not None
    layout = row_padded if layouts == "gaps" else (lambda v: strided(v, rng)) if layouts else None
    check_interpreted(FAMILY, task, rng, layouts=layout, tolerance=1e-5, limit=2)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_loads_are_16_bytes_wide_and_positions_are_not_contracted(mode):
    op = Resize((64, 64), mode, "half_pixel")
    task = task_of((op, 1), inputs=[((8, 32, 32, 64), F16)])
    text = assembly(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))
    loads = [line for line in text.splitlines() if "ld.global" in line]
    assert len(loads) == (1 if mode == "nearest" else 4)
    assert all(".v4.b32" in line for line in loads)
    if mode == "nearest":
        assert "fma.rn.f32" not in text


@pytest.mark.parametrize(
    "op",
    [
        Resize((24, 20), "cubic", "tf_crop_and_resize", region=((0.0, 1.0), (0.2, 0.8))),
        Resize((3, 2), "cubic", "half_pixel", antialias=True, exclude_outside=True),
    ],
)
def test_rare_modes_compile(op):
    task = task_of((op, 1), inputs=[((2, 12, 12, 16), F16)])
    assert compiled(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_of((Resize((2, 2), "nearest", "half_pixel"), 1), inputs=[((1, 1, 1, 4), F32)])
    with pytest.raises(PlanError, match="impossible resize kernel"):
        FAMILY.restore(task, {"rows": 3, "channels": 4, "warps": 1})

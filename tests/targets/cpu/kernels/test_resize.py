"""Resizing: every mode and coordinate rule equals the reference to the last bit or nearly so."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import ew
from planish.ops.spatial import COORDINATES, MODES, ROUNDINGS, Resize
from planish.targets.base import Binding
from planish.targets.cpu.kernels.resize import ResizeFamily

FAMILY = ResizeFamily()
F32 = DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def tolerance(mode: str) -> float:
    """Cubic sums are close only; the others are equal."""
    return 1e-5 if mode == "cubic" else 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coordinates", sorted({*COORDINATES} - {"tf_crop_and_resize"}))
def test_coordinates(mode, coordinates, rng):
    op = Resize((7, 9), mode, coordinates)
    task = task_of((op, 1), (ew.Relu(),), inputs=[((2, 5, 12, 5), F32)])
    check_tactics(FAMILY, task, rng, tolerance=tolerance(mode))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding(rounding, rng):
    op = Resize((8, 3), "nearest", "asymmetric", rounding=rounding)
    check_tactics(FAMILY, task_of((op, 1), inputs=[((1, 5, 12, 3), DType.UINT8)]), rng)


@pytest.mark.parametrize("dtype", list(DType))
def test_nearest_of_every_dtype(dtype, rng):
    op = Resize((8, 3), "nearest", "half_pixel")
    check_tactics(FAMILY, task_of((op, 1), inputs=[((1, 5, 12, 40), dtype)]), rng, limit=1)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
def test_floats(mode, dtype, rng):
    allowed = {DType.FLOAT16: 2e-3, DType.BFLOAT16: 2e-2, DType.FLOAT64: 1e-6}[dtype]
    task = task_of((Resize((8, 3), mode, "half_pixel"), 1), inputs=[((1, 5, 12, 20), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=allowed, limit=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 9, 33), (5,)), ((1, 4, 3, 5, 8), (6, 2, 5)), ((1, 1, 1, 4), (3, 3))]
)
def test_dimensions(mode, shape, size, rng):
    task = task_of((Resize(size, mode, "half_pixel"), 1), inputs=[(shape, F32)])
    check_tactics(FAMILY, task, rng, tolerance=tolerance(mode))


@pytest.mark.parametrize("mode", MODES)
def test_layouts_and_operands(mode, rng):
    op = Resize((7, 9), mode, "half_pixel", scales=(1.5, 2.0))
    task = task_of((op, 1), (ew.Add(),), inputs=[((2, 5, 4, 300), F32), ((2, 7, 9, 300), F32)])
    for layouts in (row_padded, lambda v: strided(v, rng)):
        check_tactics(FAMILY, task, rng, layouts=layouts, tolerance=tolerance(mode), limit=1)


def test_cubic_options(rng):
    op = Resize((7, 9), "cubic", "align_corners", cubic_coeff=-0.5, exclude_outside=True)
    machine = restricted("avx2")
    task = task_of((op, 1), inputs=[((2, 5, 4, 20), F32)])
    check_tactics(FAMILY, task, rng, tolerance=1e-5, machine=machine)


def test_nothing_to_do():
    task = task_of((Resize((0, 9), "linear", "half_pixel"), 1), inputs=[((2, 5, 4, 20), F32)])
    assert next(iter(FAMILY.tactics(task, Binding({})))).launches(Binding({})) == []


@pytest.mark.parametrize("parameters", [{}, {"vectors": 0}, {"vectors": 2.0}, {"rows": 1}])
def test_nonsense_in_a_plan(parameters):
    task = task_of((Resize((3, 9), "linear", "half_pixel"), 1), inputs=[((2, 5, 4, 20), F32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, parameters)

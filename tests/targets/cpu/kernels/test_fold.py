"""Windows put back where they were taken from, beside the reference."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.tactics import check_tactics, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.conv import Fold
from planish.ops.elementwise import ew
from planish.targets.cpu.kernels.fold import FoldFamily

FAMILY = FoldFamily()
OP = Fold((7, 8), (2, 3), (2, 1), (1, 0), (1, 2))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL], ids=lambda d: d.value)
def test_every_dtype(dtype, rng):
    task = task_of((OP, 1), inputs=[((2, 4, 4, 6, 20), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=2e-2 if dtype.is_float else 0)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Fold((9,), (2,), (3,), (1,), (2,)), (2, 3, 2, 5)),
        (Fold((3, 4, 2), (2, 2, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1)), (1, 2, 3, 2, 4, 33)),
    ],
)
def test_dimensions_and_layouts(op, shape, rng):
    task = task_of(
        (op, 1), (ew.Add(),), inputs=[(shape, DType.FLOAT32), ((*op.size, 1), DType.FLOAT32)]
    )
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        check_tactics(FAMILY, task, rng, layouts=layouts, tolerance=1e-5)


def test_nonsense_in_a_plan():
    task = task_of((OP, 1), inputs=[((2, 4, 4, 6, 20), DType.FLOAT32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, {"vectors": 1})

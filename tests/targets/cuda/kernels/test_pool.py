"""Pooling on GPUs: windows, padding, dilations, dtypes, layouts and epilogues."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.graph.dims import symbol
from planish.ops.conv import same_padding
from planish.ops.elementwise import Cast, ew
from planish.ops.pool import AvgPool, MaxPool
from planish.targets.base import Binding
from planish.targets.cuda.kernels.pool import Pool, PoolFamily

FAMILY = PoolFamily()
F32, F16 = DType.FLOAT32, DType.FLOAT16
MAX = MaxPool((3, 3), (2, 2), ((0, 1), (1, 1)), (1, 1))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL])
def test_max_of_every_dtype(dtype, rng):
    task = task_of((MAX, 1), inputs=[((2, 8, 9, 20), dtype)])
    check_interpreted(FAMILY, task, rng)


@pytest.mark.parametrize("dtype", [F32, DType.BFLOAT16, DType.FLOAT64, DType.UINT64, DType.INT8])
def test_max_of_every_kind_of_dtype_compiles(dtype):
    task = task_of((MAX, 1), inputs=[((2, 8, 9, 20), dtype)])
    assert compiled(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))


@pytest.mark.parametrize("channels", [3, 16, 34])
def test_channels_and_epilogue(channels, rng):
    task = task_of(
        (MAX, 1),
        (ew.Add(),),
        (ew.Relu(),),
        inputs=[((1, 7, 9, channels), F32), ((channels,), F32)],
    )
    check_interpreted(FAMILY, task, rng, limit=2)


MEANS = [
    (F32, (1, 4)),
    (F32, (2, 2)),
    (F16, (4, 1)),
    (DType.BFLOAT16, (1, 2)),
    (DType.FLOAT64, (1, 1)),
]


@pytest.mark.parametrize(("dtype", "tile"), MEANS)
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_mean(count_include_pad, dtype, tile, rng):
    op = AvgPool((3, 2), (1, 2), ((1, 2), (1, 1)), count_include_pad)
    task = task_of((op, 1), (ew.Add(),), inputs=[((2, 6, 7, 17), dtype), ((2, 7, 4, 17), dtype)])
    tolerance = {F32: 1e-5, F16: 4e-3, DType.BFLOAT16: 4e-2, DType.FLOAT64: 1e-13}[dtype]
    tactics = [Pool(task, *tile, 4, 16, 1)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=tolerance)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (MaxPool((2,), (1,), ((1, 0),), (3,)), (2, 9, 5)),
        (MaxPool((2, 2, 2), (1, 2, 1), ((1, 1),) * 3, (2, 1, 1)), (1, 5, 4, 4, 8)),
        (AvgPool((5,), (1,), ((4, 4),)), (1, 3, 8)),
        (AvgPool((7, 7), (7, 7), ((0, 0), (0, 0))), (1, 14, 14, 20)),
        (AvgPool((9, 8), (1, 1), ((4, 4), (2, 5))), (1, 9, 8, 4)),
        (AvgPool((2, 3), (2, 1), ((2, 1), (0, 3)), False, (2, 3)), (1, 5, 6, 4)),
        (AvgPool((2, 3), (2, 1), ((2, 1), (0, 3)), True, (2, 3)), (1, 5, 6, 4)),
        (MaxPool((2, 2), (1, 1), ((3, 3), (3, 3)), (1, 1)), (1, 1, 1, 4)),
        (MaxPool((12, 12), (2, 2), ((6, 6), (6, 6)), (1, 1)), (2, 5, 6, 4)),
    ],
)
def test_dimensions_and_windows(op, shape, rng):
    check_interpreted(FAMILY, task_of((op, 1), inputs=[(shape, F32)]), rng, tolerance=1e-5)


@pytest.mark.parametrize("layouts", ["gaps", "any order"])
def test_layouts(layouts, rng):
    task = task_of((MAX, 1), (ew.Add(),), inputs=[((2, 5, 6, 20), F32), ((2, 2, 3, 1), F32)])
    layout = row_padded if layouts == "gaps" else lambda v: strided(v, rng)
    check_interpreted(FAMILY, task, rng, layouts=layout)


def test_a_prologue_comes_before_the_padding(rng):
    task = task_of((ew.Neg(),), (Cast(F16),), (MAX, 1), inputs=[((1, 5, 5, 8), F32)])
    assert task.prologue is not None
    check_interpreted(FAMILY, task, rng)


def test_nan_wins(rng):
    task = task_of((MAX, 1), inputs=[((1, 8, 9, 20), F32)])
    x = random_array(rng, (1, 8, 9, 20), F32)
    x[:, 2:5, 3, ::2] = np.nan
    check_interpreted(FAMILY, task, rng, arrays=[x])


def test_padding_of_an_unknown_size():
    """The padding is evaluated for the sizes bound."""
    height = symbol("H")
    pads = (same_padding(height, 3, 2), (1, 1))
    task = task_of((MaxPool((3, 3), (2, 2), pads, (1, 1)), 1), inputs=[((1, height, 6, 4), F32)])
    windows = [Pool(task, 1, 1, 8, 4, 1).windows(Binding({"H": h})) for h in (6, 7)]
    assert [w.before[0] for w in windows] == [0, 1]
    assert [w.extents[0] for w in windows] == [6, 7]


def test_loads_are_16_bytes_wide():
    op = MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    task = task_of((op, 1), inputs=[((8, 112, 112, 64), F16)])
    text = assembly(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))
    loads = [line for line in text.splitlines() if "ld.global" in line]
    assert loads and all(".v4.b32" in line for line in loads)


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_of((MAX, 1), inputs=[((1, 8, 9, 20), F32)])
    with pytest.raises(PlanError, match="impossible pool kernel"):
        FAMILY.restore(task, {"rows": 5, "columns": 1, "patches": 1, "channels": 16, "warps": 1})

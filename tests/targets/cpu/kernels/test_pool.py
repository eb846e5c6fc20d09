"""Pooling: windows, padding, dilations, dtypes, layouts and epilogues."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.elementwise import ew
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.quantization import Dequantize
from planish.targets.base import Binding
from planish.targets.cpu.kernels.pool import PoolFamily

FAMILY = PoolFamily()
F32 = DType.FLOAT32
MAX = MaxPool((3, 3), (2, 2), ((0, 1), (1, 1)), (1, 1))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL])
def test_max_of_every_dtype(dtype, rng):
    task = task_of((MAX, 1), inputs=[((2, 8, 9, 70), dtype)])
    check_tactics(FAMILY, task, rng, limit=1)


@pytest.mark.parametrize("channels", [3, 64, 130])
def test_channels_and_epilogue(channels, rng):
    task = task_of(
        (MAX, 1),
        (ew.Add(),),
        (ew.Relu(),),
        inputs=[((1, 7, 9, channels), F32), ((channels,), F32)],
    )
    check_tactics(FAMILY, task, rng)


@pytest.mark.parametrize("machine", ["host", "avx2"])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_mean(count_include_pad, machine, rng):
    op = AvgPool((3, 2), (1, 2), ((1, 2), (1, 1)), count_include_pad)
    task = task_of((op, 1), (ew.Add(),), inputs=[((2, 6, 7, 33), F32), ((2, 7, 4, 33), F32)])
    check_tactics(
        FAMILY,
        task,
        rng,
        tolerance=1e-5,
        machine=restricted(machine) if machine == "avx2" else None,
    )


@pytest.mark.parametrize("op", [MAX, AvgPool((2, 3), (2, 1), ((1, 0), (1, 1)))])
def test_levels_become_floats_as_they_are_read(op, rng):
    graph = Graph()
    x = graph.input("x", TensorType((2, 7, 6, 37), DType.UINT8))
    scale, zero = graph.constant(np.float32(0.03)), graph.constant(np.float32(117))
    pooled = graph.add(op, graph.add(Dequantize(), x, scale, zero))
    graph.mark_output(graph.add(ew.Relu(), pooled), "y")
    task = make_task(graph.nodes, pooled.producer)
    assert task.prologue is not None
    check_tactics(FAMILY, task, rng, tolerance=1e-6, limit=2)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (MaxPool((2,), (1,), ((1, 0),), (3,)), (2, 9, 5)),
        (MaxPool((2, 2, 2), (1, 2, 1), ((1, 1),) * 3, (2, 1, 1)), (1, 5, 4, 4, 8)),
        (AvgPool((5,), (1,), ((4, 4),)), (1, 3, 8)),
        (AvgPool((7, 7), (7, 7), ((0, 0), (0, 0))), (1, 14, 14, 20)),
        (MaxPool((2, 2), (1, 1), ((3, 3), (3, 3)), (1, 1)), (1, 1, 1, 4)),
    ],
)
def test_dimensions_and_windows(op, shape, rng):
    check_tactics(FAMILY, task_of((op, 1), inputs=[(shape, F32)]), rng, tolerance=1e-5, limit=1)


@pytest.mark.parametrize("layouts", ["gaps", "any order"])
def test_layouts(layouts, rng):
    task = task_of((MAX, 1), (ew.Add(),), inputs=[((2, 5, 6, 20), F32), ((2, 2, 3, 1), F32)])
    layout = row_padded if layouts == "gaps" else lambda v: strided(v, rng)
    check_tactics(FAMILY, task, rng, layouts=layout, limit=1)


def test_nan_wins(rng):
    task = task_of((MAX, 1), inputs=[((1, 8, 9, 20), F32)])
    x = random_array(rng, (1, 8, 9, 20), F32)
    x[0, 3, 4, 5:9] = np.nan
    check_tactics(FAMILY, task, rng, arrays=[x], limit=1)


def test_nothing_to_do():
    task = task_of((MAX, 1), inputs=[((0, 8, 9, 20), F32)])
    assert next(t.launches(Binding({})) for t in FAMILY.tactics(task, Binding({}))) == []


@pytest.mark.parametrize("parameters", [{}, {"vectors": 0}, {"vectors": "4"}, {"columns": 1}])
def test_nonsense_in_a_plan(parameters):
    task = task_of((MAX, 1), inputs=[((1, 8, 9, 20), F32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, parameters)

"""Sums of two convolutions as one product: sizes, strides, dtypes, layouts, what is offered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.sums import SumNet, sum_of_levels, sum_tasks
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.matrix_sum import MatrixSum, MatrixSumFamily
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT
from planish.targets.cuda.machine import H200

FAMILY = MatrixSumFamily()
TOLERANCES = {DType.FLOAT16: 1e-2, DType.BFLOAT16: 1e-1}
TILES = [(16, 32, 16, 4, 2), (64, 64, 32, 4, 3, 3), (32, 64, 16, 4, 2, 2, True)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("shape", "other", "columns", "more"),
    [
        ((2, 5, 7, 24), (2, 5, 7, 40), 36, {}),
        ((3, 4, 5, 16), (3, 7, 9, 33), 20, {"stride": 2}),
        ((1, 6, 5, 24), (1, 6, 5, 8), 70, {"window": 3, "swapped": True}),
        ((129, 1, 1, 9), (129, 2, 2, 70), 17, {"stride": 2, "bias": False, "relu": False}),
    ],
)
def test_sizes(shape, other, columns, more, dtype: DType, rng: np.random.Generator) -> None:
    task, *_ = sum_tasks(SumNet(shape, other, columns, dtype=dtype, **more).graph)
    tactics = [MatrixSum(task, *tile) for tile in TILES]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=TOLERANCES[dtype], limit=None)


@pytest.mark.parametrize("to", [DType.INT8, None], ids=["levels", "halves"])
@pytest.mark.parametrize(
    ("shape", "other", "columns", "more"),
    [
        ((2, 5, 7, 32), (2, 5, 7, 48), 64, {}),
        ((3, 4, 5, 16), (3, 7, 9, 33), 80, {"stride": 2}),
        ((1, 6, 5, 24), (1, 6, 5, 8), 70, {"window": 3, "swapped": True}),
    ],
)
def test_sums_of_levels_have_sums_of_their_own(shape, other, columns, more, to, rng) -> None:
    graph = sum_of_levels(rng, shape, other, columns, to=to, **more)
    task = sum_tasks(graph)[0]
    assert len(task.nodes) == len(graph.nodes) and task.precision == "int8"
    small = [(64, 64, 32, 4, 2), (32, 32, 64, 4, 3), (64, 128, 32, 4, 2)]
    tactics = [MatrixSum(task, *tile) for tile in small]
    if "window" not in more:
        tactics.append(MatrixSum(task, 64, 64, 64, 4, 3, PERSISTENT, False, FEW))
    tolerance = 0.0 if to else 2e-3
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=tolerance, limit=None)
    assert not replace(tactics[0], split=2).accepts(Binding({}))


def test_sums_of_levels_are_offered(rng) -> None:
    graph = sum_of_levels(rng, (128, 28, 28, 128), (128, 56, 56, 256), 512, stride=2)
    task = sum_tasks(graph)[0]
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert len(tactics) >= 6 and {t.split for t in tactics} <= {1, PERSISTENT}
    assert "wgmma" in assembly(tactics[0], Binding({}))
    (code,) = compiled(tactics[0], Binding({}))
    assert code.shared <= H200.shared


FEW = replace(H200, multiprocessors=1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_programs_of_many_tiles(dtype: DType, rng: np.random.Generator) -> None:
    net = SumNet((3, 9, 11, 24), (3, 18, 21, 32), 40, stride=2, dtype=dtype)
    task, *_ = sum_tasks(net.graph)
    tactics = [
        MatrixSum(task, 16, 64, 32, 4, 3, PERSISTENT, transposed, FEW)
        for transposed in (False, True)
    ]
    (launch,) = tactics[0].launches(Binding({}))
    assert launch.tasks < launch.params[0] // 16
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=TOLERANCES[dtype], limit=None)
    assert not replace(tactics[0], depth=16).accepts(Binding({}))


def test_they_are_offered_where_depths_are_small() -> None:
    net = SumNet((128, 56, 56, 64), (128, 56, 56, 64), 256)
    task, *_ = sum_tasks(net.graph)
    many = [t for t in FAMILY.tactics(task, Binding({})) if t.split == PERSISTENT]
    assert many
    for tactic in many:
        (code,) = compiled(tactic, Binding({}))
        assert code.shared <= H200.shared


def test_one_loop_goes_over_both_depths(rng: np.random.Generator) -> None:
    task, *_ = sum_tasks(SumNet((2, 5, 6, 64), (2, 10, 11, 32), 24, stride=2).graph)
    for split, transposed in ((1, False), (3, True)):
        tactic = MatrixSum(task, 32, 64, 32, 4, 2, split, transposed)
        (launch,) = tactic.launches(Binding({}))
        assert launch.kernel.is_one_loop
        check_interpreted(FAMILY, task, rng, tactics=[tactic], tolerance=1e-2)


def test_rows_with_gaps(rng: np.random.Generator) -> None:
    task, *_ = sum_tasks(SumNet((2, 5, 6, 24), (2, 9, 12, 16), 24, stride=2).graph)
    tactics = [MatrixSum(task, *tile) for tile in TILES]

    def layout(value):
        return row_padded(value, 8 if value.data is None else 0)

    check_interpreted(
        FAMILY, task, rng, tactics=tactics, layouts=layout, tolerance=1e-2, limit=None
    )


@pytest.mark.parametrize("batch", [1, 128])
def test_tactics_of_a_network_compile(batch: int) -> None:
    net = SumNet((batch, 28, 28, 128), (batch, 56, 56, 256), 512, stride=2)
    task, *_ = sum_tasks(net.graph)
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert 6 <= len(tactics) == len(set(tactics)) <= 18
    assert compiled(tactics[0], Binding({}))
    text = assembly(tactics[0], Binding({}))
    assert "mma" in text and "cp.async" in text
    with pytest.raises(PlanError):
        FAMILY.restore(task, {**tactics[0].parameters, "columns": 32, "transposed": True})


def test_what_it_declines() -> None:
    single = SumNet((2, 4, 4, 8), (2, 4, 4, 8), 8, dtype=DType.FLOAT32)
    task, *_ = sum_tasks(single.graph)
    assert not list(FAMILY.tactics(task, Binding({})))

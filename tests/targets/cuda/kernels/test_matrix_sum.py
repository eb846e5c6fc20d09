"""Sums of two convolutions as one product: sizes, strides, dtypes, layouts, what is offered."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.sums import SumNet, sum_tasks
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.matrix_sum import MatrixSum, MatrixSumFamily

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
    assert 6 <= len(tactics) == len(set(tactics)) <= 14
    assert compiled(tactics[0], Binding({}))
    text = assembly(tactics[0], Binding({}))
    assert "mma" in text and "cp.async" in text
    with pytest.raises(PlanError):
        FAMILY.restore(task, {**tactics[0].parameters, "columns": 32, "transposed": True})


def test_what_it_declines() -> None:
    single = SumNet((2, 4, 4, 8), (2, 4, 4, 8), 8, dtype=DType.FLOAT32)
    task, *_ = sum_tasks(single.graph)
    assert not list(FAMILY.tactics(task, Binding({})))

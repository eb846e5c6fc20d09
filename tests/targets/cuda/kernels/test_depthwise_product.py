"""Depthwise and 1x1 convolutions as one kernel: windows, sizes, dtypes, layouts, what follows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.pairs import PairNet, pair_task
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.depthwise_product import DepthwiseProduct, DepthwiseProductFamily
from planish.targets.cuda.kernels.matrix import MatrixFamily

FAMILY = DepthwiseProductFamily()
TOLERANCES = {DType.FLOAT16: 1e-2, DType.BFLOAT16: 1e-1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("residual", [False, True])
def test_dtypes_and_what_follows(dtype: DType, residual: bool, rng: np.random.Generator) -> None:
    task = pair_task(PairNet((2, 6, 7, 24), 20, dtype=dtype, residual=residual))
    check_interpreted(FAMILY, task, rng, tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("shape", "columns", "arguments"),
    [
        ((1, 9, 11, 5), 3, {"stride": 2}),
        ((3, 7, 7, 33), 40, {"stride": 3, "padding": (0, 2)}),
        ((1, 8, 9, 16), 16, {"dilation": 2, "padding": (2, 2)}),
        ((2, 5, 6, 8), 24, {"window": 5, "padding": (2, 2)}),
        ((1, 6, 7, 16), 17, {"padding": (0, 0), "bias": False}),
        ((5, 1, 1, 8), 1, {}),
        ((129, 2, 2, 16), 16, {}),
        ((2, 5, 6, 16), 24, {"lead": 3}),  # as Keras has them
    ],
)
def test_windows(shape, columns, arguments, rng: np.random.Generator) -> None:
    task = pair_task(PairNet(shape, columns, **arguments))
    check_interpreted(FAMILY, task, rng, tolerance=1e-2)


@pytest.mark.parametrize("tile", [(16, 16, 16, 2), (64, 32, 32, 4), (32, 64, 16, 2)], ids=str)
def test_tiles(tile: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    task = pair_task(PairNet((2, 5, 6, 40), 72))
    check_interpreted(FAMILY, task, rng, tactics=[DepthwiseProduct(task, *tile)], tolerance=1e-2)


def test_rows_with_gaps(rng: np.random.Generator) -> None:
    task = pair_task(PairNet((2, 5, 6, 24), 16, residual=True))

    def layout(value):
        return row_padded(value) if value in (task.inputs[0], task.output) else row_padded(value, 0)

    check_interpreted(FAMILY, task, rng, layouts=layout, tolerance=1e-2)


def test_tactics_of_a_network_compile_to_tensor_cores() -> None:
    task = pair_task(PairNet((8, 28, 28, 192), 32))
    binding = Binding({})
    tactics = list(FAMILY.tactics(task, binding))
    assert 4 <= len(tactics) <= 10
    assert len(set(tactics)) == len(tactics)
    assert compiled(tactics[0], binding)
    assert "mma" in assembly(tactics[0], binding)


def test_what_it_declines() -> None:
    single = pair_task(PairNet((1, 5, 5, 16), 16, dtype=DType.FLOAT32))
    large = pair_task(PairNet((1, 20, 20, 16), 16, window=9, padding=(4, 4)))
    for task in (single, large):
        assert not list(FAMILY.tactics(task, Binding({})))
    pair = pair_task(PairNet((1, 5, 5, 16), 16))
    assert MatrixFamily.pattern != FAMILY.pattern == pair.pattern


@pytest.mark.parametrize(
    "change",
    [{"rows": 48}, {"columns": 8}, {"warps": 3}, {"rows": 128, "columns": 256, "warps": 2}],
)
def test_impossible_parameters(change: dict[str, int]) -> None:
    task = pair_task(PairNet((1, 5, 5, 16), 16))
    (tactic, *_) = FAMILY.tactics(task, Binding({}))
    with pytest.raises(PlanError, match="depthwise_product"):
        FAMILY.restore(task, {**tactic.parameters, **change})

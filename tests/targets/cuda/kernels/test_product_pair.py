"""Two 1x1 convolutions as one kernel: sizes, dtypes, layouts, what is kept and what follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.pairs import PairNet, PointwiseNet, pair_task
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.product_pair import (
    ProductPair,
    ProductPairFamily,
    parts_of,
    shared_bytes,
)
from planish.targets.cuda.machine import H200

FAMILY = ProductPairFamily()
FEW = replace(H200, multiprocessors=1)
"""A machine on which a program goes through many tiles of small tasks."""
TOLERANCES = {DType.FLOAT16: 1e-2, DType.BFLOAT16: 1e-1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_what_is_kept_and_added(
    dtype: DType, kept: bool, residual: bool, rng: np.random.Generator
) -> None:
    net = PointwiseNet((2, 5, 7, 24), 72, 20, dtype=dtype, kept=kept, residual=residual)
    task = pair_task(net)
    tactics = [ProductPair(task, 32, 32, 4, 2), ProductPair(task, 32, 32, 4, 2, True, FEW)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=TOLERANCES[dtype], limit=None)


@pytest.mark.parametrize(
    ("shape", "middle", "columns", "tile"),
    [
        ((1, 1, 1, 8), 16, 1, (32, 32, 4, 2)),
        ((3, 3, 7, 100), 48, 40, (64, 32, 4, 3)),
        ((1, 6, 6, 64), 128, 64, (32, 64, 4, 2)),
        ((129, 1, 1, 16), 33, 17, (64, 32, 4, 2)),
        ((1, 4, 4, 130), 70, 129, (32, 128, 8, 4)),
    ],
)
def test_sizes(shape, middle, columns, tile, rng: np.random.Generator) -> None:
    task = pair_task(PointwiseNet(shape, middle, columns))
    tactics = [ProductPair(task, *tile), ProductPair(task, *tile, True, FEW)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=1e-2, limit=None)


def test_rows_with_gaps(rng: np.random.Generator) -> None:
    task = pair_task(PointwiseNet((2, 5, 6, 24), 40, 16))

    def layout(value):
        read = value.data is None
        return row_padded(value, 8 if read else 0)

    tactics = [ProductPair(task, 32, 32, 4, 2), ProductPair(task, 32, 32, 4, 2, True, FEW)]
    check_interpreted(
        FAMILY, task, rng, tactics=tactics, layouts=layout, tolerance=1e-2, limit=None
    )


@pytest.mark.parametrize(
    ("shape", "middle", "columns"),
    [((8, 56, 56, 64), 256, 64), ((8, 28, 28, 128), 512, 128), ((128, 14, 14, 256), 1024, 256)],
)
def test_tactics_of_a_network_compile(shape, middle, columns) -> None:
    task = pair_task(PointwiseNet(shape, middle, columns))
    binding = Binding({})
    tactics = list(FAMILY.tactics(task, binding))
    assert 2 <= len(tactics) <= 10
    assert len(set(tactics)) == len(tactics)
    assert compiled(tactics[0], binding)
    assert "wgmma" in assembly(tactics[0], binding)


def test_programs_of_many_tiles_are_offered_where_all_weights_fit() -> None:
    def offered(shape, middle, columns) -> list[ProductPair]:
        task = pair_task(PointwiseNet(shape, middle, columns, residual=True))
        return [t for t in FAMILY.tactics(task, Binding({})) if t.persistent]

    first, *_ = offered((128, 56, 56, 64), 256, 64)
    parts = parts_of(first.task, Binding({}))
    assert parts is not None
    assert 0 < shared_bytes(parts, first.choice) <= H200.shared
    (launch,) = first.launches(Binding({}))
    assert launch.tasks % H200.multiprocessors == 0
    assert launch.tasks * first.rows < launch.params[0] / 3
    (code,) = compiled(first, Binding({}))
    assert code.shared <= H200.shared
    text = assembly(first, Binding({}))
    loop = text[text.index("wgmma.mma_async") :]
    assert "cp.async.cg" in loop  # what the next tiles read
    assert not offered((128, 14, 14, 256), 1024, 256)  # a megabyte of weights
    assert not offered((1, 56, 56, 64), 256, 64)  # few tiles


def test_what_it_declines() -> None:
    single = pair_task(PointwiseNet((8, 28, 28, 64), 64, 64, dtype=DType.FLOAT32))
    small = pair_task(PointwiseNet((1, 7, 7, 64), 64, 64))
    wide = pair_task(PointwiseNet((8, 28, 28, 64), 64, 1024))
    depthwise = pair_task(PairNet((8, 28, 28, 64), 64))
    for task in (single, small, wide, depthwise):
        assert not list(FAMILY.tactics(task, Binding({})))


@pytest.mark.parametrize(
    "change", [{"rows": 48}, {"block": 8}, {"warps": 3}, {"stages": 9}, {"persistent": 2}]
)
def test_impossible_parameters(change: dict[str, int]) -> None:
    task = pair_task(PointwiseNet((8, 28, 28, 64), 64, 64))
    (tactic, *_) = FAMILY.tactics(task, Binding({}))
    with pytest.raises(PlanError, match="product_pair"):
        FAMILY.restore(task, {**tactic.parameters, **change})
    deep = pair_task(PointwiseNet((8, 28, 28, 64), 1024, 64))
    with pytest.raises(PlanError, match="no tile is"):
        FAMILY.restore(deep, {**tactic.parameters, "block": 32, "persistent": True})
    wide = pair_task(PointwiseNet((8, 28, 28, 64), 64, 512))
    with pytest.raises(PlanError, match="no tile is"):
        FAMILY.restore(wide, {**tactic.parameters, "rows": 128, "block": 128, "warps": 4})

"""Convolutions with a pooling as one kernel: sizes, odd sides, dtypes, NaN, what is offered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.pooled import PooledNet, pooled_tasks
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.mapped_pool import MappedPoolFamily, MappedPoolTactic
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import run_tactic

FAMILY = MappedPoolFamily()
TOLERANCES = {DType.FLOAT16: 1e-2, DType.BFLOAT16: 1e-1}
BOXES = [(16, 64, 64, 4, 3, 1, True, 2, 4), (64, 64, 64, 4, 3, 1, True, 4, 8)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(31)


def pooled(*shape: int, filters: int = 24, **more) -> Task:
    (task,) = pooled_tasks(PooledNet(shape, filters, **more).graph)
    return task


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((2, 6, 8, 16), {}),
        ((5, 9, 7, 72), {"filters": 70}),
        ((1, 3, 11, 8), {"filters": 5, "activation": "clip"}),
        ((3, 4, 5, 24), {"window": 5, "activation": "none"}),
        ((2, 12, 8, 64), {"strides": 2}),
    ],
    ids=str,
)
def test_sizes(shape, more, dtype: DType, rng: np.random.Generator) -> None:
    task = pooled(*shape, dtype=dtype, **more)
    tactics = [MappedPoolTactic(task, *box) for box in BOXES]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=TOLERANCES[dtype], limit=None)


@pytest.mark.parametrize("split", [2, 3])
def test_programs_share_tiles(split: int, rng: np.random.Generator) -> None:
    task = pooled(2, 5, 6, 72, filters=70)
    tactics = [MappedPoolTactic(task, 32, 64, 64, 4, 3, split, True, 2, 8)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=1e-2)


def test_results_with_gaps(rng: np.random.Generator) -> None:
    task = pooled(2, 6, 8, 16)

    def layout(value):
        return row_padded(value, 8 if value.data is None else 0)

    tactics = [MappedPoolTactic(task, *BOXES[0])]
    check_interpreted(FAMILY, task, rng, tactics=tactics, layouts=layout, tolerance=1e-2)


def test_a_nan_reaches_its_windows_only(rng: np.random.Generator) -> None:
    task = pooled(1, 12, 16, 16, window=1 + 2, activation="none")
    arrays = [
        v.data if v.data is not None else rng.standard_normal(v.type.bind({})).astype(np.float16)
        for v in task.inputs
    ]
    arrays[0][0, 5, 8] = np.nan
    (output,) = run_tactic(MappedPoolTactic(task, *BOXES[0]), Binding({}), arrays)
    (wanted,) = task.evaluate(arrays)
    assert np.isnan(wanted).any()
    np.testing.assert_array_equal(np.isnan(output), np.isnan(wanted))


def test_what_is_declined() -> None:
    for task in (
        pooled(2, 6, 8, 12),  # rows of 24 bytes
        pooled(2, 6, 8, 16, dtype=DType.FLOAT32),
        pooled(2, 5, 6, 64, strides=2),
        pooled(2, 6, 8, 16, window=1),  # no image to the kernel
    ):
        assert not list(FAMILY.tactics(task, Binding({})))
    old = replace(H200, capability=(8, 0))
    assert not list(MappedPoolFamily(old).tactics(pooled(2, 6, 8, 16), Binding({})))


@pytest.mark.parametrize(
    "change", [dict(high=1), dict(wide=1), dict(high=0, wide=0), dict(rows=48)], ids=str
)
def test_impossible_parameters(change) -> None:
    task = pooled(2, 6, 8, 16)
    good = MappedPoolTactic(task, *BOXES[0]).parameters
    assert FAMILY.restore(task, good).parameters == good
    with pytest.raises(PlanError):
        FAMILY.restore(task, dict(good) | change)


@pytest.mark.parametrize(
    ("shape", "filters"),
    [((8, 56, 56, 256), 256), ((1, 14, 14, 512), 512), ((8, 14, 14, 512), 512)],
)
def test_tactics_of_a_network(shape: tuple[int, ...], filters: int) -> None:
    task = pooled(*shape, filters=filters)
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert len({(t.rows, t.columns) for t in tactics}) >= 3
    assert all(min(t.high, t.wide) >= 2 for t in tactics)
    text = assembly(tactics[0], Binding({}))
    assert "cp.async.bulk.tensor.4d" in text and "wgmma" in text
    assert "shfl.sync.bfly" not in text  # a window's pixels belong to one thread
    for tactic in tactics:
        (code,) = compiled(tactic, Binding({}))
        assert code.shared <= H200.shared and len(code.maps) == 2

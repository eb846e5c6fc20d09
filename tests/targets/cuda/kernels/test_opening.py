"""First layers as one kernel: sizes, dtypes, what is outside an image, what is offered."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.openings import OpeningNet, opening_tasks
from helpers.tactics import row_padded
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.opening import OpeningFamily, OpeningTactic
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import run_tactic

FAMILY = OpeningFamily()
TOLERANCES = {DType.FLOAT16: 1e-2, DType.BFLOAT16: 1e-1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def opening(*shape: int, **more):
    (task,) = opening_tasks(OpeningNet(*shape, **more).graph)
    return task


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((2, 6, 8), {}),
        ((5, 9, 7, 1, 16, 32), {"transposed": False}),
        ((1, 17, 35, 4, 32, 16), {"activation": "clip"}),
        ((1, 3, 2, 2), {"activation": "none"}),
    ],
)
def test_sizes(shape, more, dtype: DType, rng: np.random.Generator) -> None:
    task = opening(*shape, dtype=dtype, **more)
    tactics = [OpeningTactic(task, 32, 8, 3), OpeningTactic(task, 64, 14, 2)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=TOLERANCES[dtype], limit=None)


def test_what_is_offered(rng: np.random.Generator) -> None:
    task = opening(3, 10, 12, dtype=DType.FLOAT16)
    check_interpreted(FAMILY, task, rng, tolerance=1e-2, limit=None)
    assert not list(FAMILY.tactics(opening(2, 6, 8, dtype=DType.FLOAT32), Binding({})))
    assert not list(FAMILY.tactics(opening(2, 6, 8, 3, 24), Binding({})))


def test_results_with_gaps(rng: np.random.Generator) -> None:
    task = opening(2, 6, 8)

    def layout(value):
        return row_padded(value, 8 if value.data is None else 0)

    tactics = [OpeningTactic(task, 32, 8, 3)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, layouts=layout, tolerance=1e-2)


def test_a_nan_reaches_its_windows_only(rng: np.random.Generator) -> None:
    task = opening(1, 12, 40, activation="none", transposed=False)
    arrays = [
        v.data if v.data is not None else rng.standard_normal(v.type.bind({})).astype(np.float16)
        for v in task.inputs
    ]
    arrays[0][0, 5, 20] = np.nan
    (output,) = run_tactic(OpeningTactic(task, 32, 8, 3), Binding({}), arrays)
    (wanted,) = task.evaluate(arrays)
    missing, more = np.isnan(wanted) & ~np.isnan(output), np.isnan(output) & ~np.isnan(wanted)
    assert np.isnan(wanted).any() and not missing.any()
    rows, columns = np.nonzero(more.any((0, 3)))
    assert set(rows) <= {1, 2, 3, 4} and set(columns) <= set(range(8, 13))


@pytest.mark.parametrize("batch", [1, 8, 128])
def test_tactics_of_a_network_compile(batch: int) -> None:
    task = opening(batch, 224, 224, 3, 64, 64)
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert 2 <= len(tactics) == len(set(tactics)) <= 6
    for code in compiled(tactics[0], Binding({})):
        assert code.shared <= H200.shared
    assert "wgmma" in assembly(tactics[0], Binding({}))

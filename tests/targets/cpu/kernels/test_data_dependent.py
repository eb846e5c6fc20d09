"""Kernels whose results are counted: indices of what is not zero, boxes kept, distinct elements."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, strided
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.base import Op
from planish.ops.data_dependent import NonZero, SelectBoxes, Unique
from planish.targets.base import Family
from planish.targets.cpu.kernels.nonzero import NonZeroFamily
from planish.targets.cpu.kernels.selection import SelectionFamily
from planish.targets.cpu.kernels.unique import UniqueFamily

DTYPES = list(DType)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def task_for(op: Op, *arrays: np.ndarray) -> Task:
    graph = Graph()
    values = [
        graph.input(f"x{i}", TensorType(a.shape, DType.of(a.dtype))) for i, a in enumerate(arrays)
    ]
    node = graph.add_node(op, values)
    return make_task([node], node)


def check(family: Family, op: Op, rng: np.random.Generator, *arrays: np.ndarray) -> None:
    """Every tactic, for dense tensors and for strided ones."""
    task = task_for(op, *arrays)
    for layouts in (None, lambda v: strided(v, rng)):
        check_tactics(family, task, rng, arrays=arrays, layouts=layouts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonzero_of_every_dtype(dtype, rng) -> None:
    x = random_array(rng, (3, 5, 41), dtype)
    x[rng.random(x.shape) < 0.6] = 0
    check(NonZeroFamily(), NonZero(), rng, x)


@pytest.mark.parametrize("shape", [(1,), (7,), (70_000,), (5, 20_000), (33, 3, 1), (300, 300)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_nonzero_of_every_size(shape, share, rng) -> None:
    check(NonZeroFamily(), NonZero(), rng, rng.random(shape) < share)


def test_a_nan_is_not_zero_and_a_negative_zero_is(rng) -> None:
    x = np.array([0.0, -0.0, np.nan, np.inf, -1.0, 1e-45] * 9, np.float32)
    check(NonZeroFamily(), NonZero(), rng, x)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
@pytest.mark.parametrize("classes", [1, 5, 37])
def test_selection(dtype, classes, rng) -> None:
    corners = rng.random((2, 40, 1, 4))
    scores = np.round(rng.random((2, 40, classes)) * 20) / 20
    arrays = [a.astype(dtype.numpy) for a in (corners, scores)]
    check(SelectionFamily(), SelectBoxes(7, 0.3, 0.4), rng, *arrays)


@pytest.mark.parametrize("threshold", [float("-inf"), 0.5, 9.0])
@pytest.mark.parametrize("limit", [1, 600, 2000])
def test_selection_of_many(threshold, limit, rng) -> None:
    corners = rng.random((1, 700, 1, 4)).astype(np.float32)
    scores = rng.standard_normal((1, 700, 3)).astype(np.float32)
    check(SelectionFamily(), SelectBoxes(limit, 0.6, threshold), rng, corners, scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ascending", [True, False])
def test_unique_of_every_dtype(dtype, ascending, rng) -> None:
    x = random_array(rng, (200,), dtype)
    check(UniqueFamily(), Unique(ascending), rng, x[rng.integers(0, 60, 200)])


@pytest.mark.parametrize("count", [1, 2, 1000])
@pytest.mark.parametrize("distinct", [1, 1000])
@pytest.mark.parametrize("ascending", [True, False])
def test_unique_of_every_size(count, distinct, ascending, rng) -> None:
    check(UniqueFamily(), Unique(ascending), rng, rng.integers(0, distinct, count))


def test_on_another_machine(rng) -> None:
    x = (rng.random((9, 50)) < 0.3).astype(np.float32)
    machine = restricted("avx2")
    check_tactics(NonZeroFamily(), task_for(NonZero(), x), rng, arrays=[x], machine=machine)


@pytest.mark.parametrize(
    ("family", "op"),
    [(NonZeroFamily(), NonZero()), (UniqueFamily(), Unique())],
)
def test_wrong_parameters_are_refused(family, op) -> None:
    task = task_for(op, np.zeros(4, np.float32))
    with pytest.raises(PlanError):
        family.restore(task, {"block": 3})
    other = task_for(SelectBoxes(3, 0.5, 0.5), np.zeros((1, 3, 1, 4)), np.zeros((1, 3, 2)))
    with pytest.raises(PlanError):
        family.restore(other, {})

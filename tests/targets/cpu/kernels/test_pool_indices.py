"""Max pooling with indices equals the reference."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.tactics import check_tactics, row_padded, strided
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.pool import MaxPoolIndices
from planish.targets.cpu.kernels.pool_indices import PoolIndicesFamily

FAMILY = PoolIndicesFamily()
OP = MaxPoolIndices((2, 3), (2, 1), ((1, 0), (2, 2)), (1, 2))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def task_of(op: MaxPoolIndices, shape, dtype=DType.FLOAT32) -> Task:
    graph = Graph()
    node = graph.add_node(op, (graph.input("x", TensorType(shape, dtype)),))
    return make_task([node], node)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL], ids=lambda d: d.value)
def test_every_dtype(dtype, rng):
    check_tactics(FAMILY, task_of(OP, (2, 6, 7, 19), dtype), rng)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (MaxPoolIndices((3,), (2,), ((1, 1),), (1,)), (2, 9, 5)),
        (
            MaxPoolIndices((2, 2, 2), (2, 1, 2), ((1, 0), (2, 2), (0, 1)), (1, 2, 1)),
            (1, 6, 7, 4, 11),
        ),
    ],
)
def test_dimensions_and_layouts(op, shape, rng):
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        check_tactics(FAMILY, task_of(op, shape), rng, layouts=layouts)


def test_the_first_of_equals_and_nothing_greater(rng):
    x = rng.integers(0, 3, (1, 6, 7, 20)).astype(np.float32)
    x[0, :3, :3] = np.nan
    x[0, 3:, 3:] = -np.inf
    check_tactics(FAMILY, task_of(OP, x.shape), rng, arrays=[x])


def test_nonsense_in_a_plan():
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task_of(OP, (1, 6, 7, 2)), {"vectors": 1})

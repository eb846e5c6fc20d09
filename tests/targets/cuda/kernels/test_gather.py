"""Gathers and scatters in Triton's interpreter: every dtype, layout, and order of updates."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted
from helpers.tactics import random_array, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import Cast, ew
from planish.ops.indexing import Gather, GatherNd, ScatterNd
from planish.ops.shape import Transpose
from planish.targets.base import Binding
from planish.targets.cuda.kernels import gather
from planish.targets.cuda.kernels.gather import (
    FAMILIES,
    GatherFamily,
    GatherTactic,
    ScatterFamily,
    ScatterTactic,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import run_tactic

GATHER, SCATTER = GatherFamily(), ScatterFamily()
F16, F32, I64 = DType.FLOAT16, DType.FLOAT32, DType.INT64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def indices_for(rng, shape, sizes, dtype=I64):
    """Valid indices, negative ones too if the dtype has them; the last axis counts in `sizes`."""
    low = [0 if dtype.value[0] == "u" else -n for n in sizes]
    found = rng.integers(low, sizes, (*shape, len(sizes)))
    return found.astype(dtype.numpy)


def check(family, task, rng, arrays, **options):
    for layouts in (None, lambda v: strided(v, rng)):
        check_interpreted(family, task, rng, arrays=arrays, layouts=layouts, **options)


def test_families():
    assert [f.name for f in FAMILIES] == ["gather", "scatter"]
    assert GATHER.on(H200) == GATHER
    assert SCATTER.on(H200) == SCATTER


# ---- gathers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "indices", "axis", "batch"),
    [
        ((7, 40), (3,), 0, 0),
        ((7, 5), (2, 3), 0, 0),
        ((4, 7, 3), (5,), 1, 0),
        ((4, 7), (2, 3), 1, 0),
        ((7,), (), 0, 0),
        ((2, 7, 3), (2, 4), 1, 1),
        ((2, 3, 6, 2), (2, 4), 2, 1),
        ((2, 3, 6), (2, 3), 2, 2),
        ((1, 1), (1, 1), 0, 0),
    ],
)
def test_gather(data, indices, axis, batch, rng):
    task = task_of((Gather(axis, batch), 2), inputs=[(data, F32), (indices, I64)])
    arrays = [random_array(rng, data, F32), indices_for(rng, indices, [data[axis]])[..., 0]]
    check(GATHER, task, rng, arrays)


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.INT8, F16, DType.BFLOAT16, DType.FLOAT64])
@pytest.mark.parametrize(
    "index", [DType.INT32, DType.INT8, DType.UINT8, DType.UINT32, DType.UINT64]
)
def test_gather_dtypes(dtype, index, rng):
    task = task_of((Gather(0), 2), inputs=[((9, 5), dtype), ((2, 3), index)])
    arrays = [random_array(rng, (9, 5), dtype), indices_for(rng, (2, 3), [9], index)[..., 0]]
    check_interpreted(GATHER, task, rng, arrays=arrays, limit=None)


def test_indices_outside_are_clamped(rng):
    task = task_of((Gather(0), 2), inputs=[((5, 3), F32), ((4,), I64)])
    data = random_array(rng, (5, 3), F32)
    arrays = [data, np.array([7, -9, 1 << 40, -(1 << 40)])]
    (result,) = run_tactic(GatherTactic(task), Binding({}), arrays)
    np.testing.assert_array_equal(result, data[[4, 0, 4, 0]])


def test_gather_with_work_before_and_after(rng):
    """What an embedding looks like: rows, their positions' added."""
    task = task_of(
        (Cast(F32),),
        (Gather(0), 2),
        (ew.Add(),),
        inputs=[((11, 24), F16), ((2, 5), DType.INT32), ((5, 24), F32)],
    )
    assert task.prologue
    arrays = [
        random_array(rng, (11, 24), F16),
        indices_for(rng, (2, 5), [11], DType.INT32)[..., 0],
        random_array(rng, (5, 24), F32),
    ]
    check(GATHER, task, rng, arrays)


@pytest.mark.parametrize(
    ("data", "places", "depth", "batch"),
    [
        ((4, 5, 6), (3,), 2, 0),
        ((4, 5, 6), (2, 2), 3, 0),
        ((2, 5, 6), (2, 3), 1, 1),
        ((6,), (), 1, 0),
    ],
)
def test_gather_nd(data, places, depth, batch, rng):
    sizes = data[batch : batch + depth]
    task = task_of((GatherNd(batch), 2), inputs=[(data, F16), ((*places, depth), I64)])
    arrays = [random_array(rng, data, F16), indices_for(rng, places, sizes)]
    check(GATHER, task, rng, arrays)


def test_embeddings_compiled_for_hopper():
    """Whole rows are moved 16 bytes at a time, and batches share the kernel."""
    kernels = []
    for batch in (1, 8):
        task = task_of((Gather(0), 2), inputs=[((30522, 768), F16), ((batch, 128), DType.INT32)])
        tactic = next(iter(GATHER.tactics(task, Binding({}))))
        kernels.append(GatherTactic(task).launches(Binding({}))[0].kernel)
    assert kernels[0] == kernels[1]
    text = assembly(tactic, Binding({}))
    assert "ld.global.v4.b32" in text
    assert "st.global.v4.b32" in text


# ---- scatters ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize(
    ("data", "places", "depth"),
    [
        ((5, 7), (9,), 1),
        ((4, 3, 6), (2, 3), 2),
        ((6,), (8,), 1),
        ((3, 2, 2), (), 1),
        ((1,), (3,), 1),
    ],
)
def test_scatter(data, places, depth, reduction, rng):
    """Of equal indices the last wins, and sums are in the order of the updates: exactly equal."""
    inputs = [(data, F32), ((*places, depth), I64), ((*places, *data[depth:]), F32)]
    task = task_of((ScatterNd(reduction), 3), inputs=inputs)
    arrays = [random_array(rng, s, d) for s, d in inputs]
    arrays[1] = indices_for(rng, places, data[:depth])
    check(SCATTER, task, rng, arrays)
    if reduction == "none":
        marked = [ScatterTactic(task, marked=True)]
        check(SCATTER, task, rng, arrays, tactics=marked)


@pytest.mark.parametrize("dtype", [F16, DType.BFLOAT16, DType.INT8, DType.UINT64, DType.BOOL])
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max"])
def test_scatter_dtypes(dtype, reduction, rng):
    """Halves are rounded after every update."""
    inputs = [((3, 5), dtype), ((7, 1), DType.INT32), ((7, 5), dtype)]
    task = task_of((ScatterNd(reduction), 3), inputs=inputs)
    arrays = [random_array(rng, s, d) for s, d in inputs]
    arrays[1] = indices_for(rng, (7,), [3], DType.INT32)
    check_interpreted(SCATTER, task, rng, arrays=arrays, limit=None)


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of the reference
def test_scatter_with_nan(rng):
    task = task_of((ScatterNd("max"), 3), inputs=[((3,), F32), ((4, 1), I64), ((4,), F32)])
    arrays = [
        np.array([1, np.nan, 2], np.float32),
        np.array([[0], [1], [2], [2]]),
        np.array([5, 9, np.nan, 7], np.float32),
    ]
    check_interpreted(SCATTER, task, rng, arrays=arrays)


def test_scatter_with_work_before_and_after(rng):
    task = task_of(
        (Cast(F32),),
        (ScatterNd("add"), 3),
        (ew.Mul(),),
        inputs=[((6, 4), F16), ((5, 1), I64), ((5, 4), F32), ((4,), F32)],
    )
    arrays = [random_array(rng, v.type.bind({}), v.dtype) for v in task.inputs]
    arrays[1] = indices_for(rng, (5,), [6])
    check(SCATTER, task, rng, arrays)


def test_scatter_of_many_updates_is_refused_or_marked(monkeypatch):
    """Adding them up in parallel would not be deterministic, looking for them takes too long."""
    monkeypatch.setattr(gather, "SEARCHED", 100)
    inputs = [((50, 4), F32), ((90, 1), I64), ((90, 4), F32)]
    adding = task_of((ScatterNd("add"), 3), inputs=inputs)
    assert not list(SCATTER.tactics(adding, Binding({})))
    replacing = task_of((ScatterNd(), 3), inputs=inputs)
    offered = list(SCATTER.tactics(replacing, Binding({})))
    assert offered
    assert all(t.parameters["marked"] for t in offered)


def test_understands_only_its_own():
    other = task_of((Transpose((1, 0)),), inputs=[((2, 3), F32)])
    for family in (GATHER, SCATTER):
        assert not list(family.tactics(other, Binding({})))
        with pytest.raises(PlanError):
            family.restore(other, {"elements": 1024, "warps": 4})
    inputs = [((50, 4), F32), ((9, 1), I64), ((9, 4), F32)]
    adding = task_of((ScatterNd("add"), 3), inputs=inputs)
    with pytest.raises(PlanError):
        SCATTER.restore(adding, {"elements": 1024, "warps": 4, "marked": True})


def test_scatter_compiled_for_hopper():
    inputs = [((256, 64), F16), ((128, 1), I64), ((128, 64), F16)]
    for tactic in (
        ScatterTactic(task_of((ScatterNd("add"), 3), inputs=inputs)),
        ScatterTactic(task_of((ScatterNd(), 3), inputs=inputs), marked=True),
    ):
        assert "ld.global" in assembly(tactic, Binding({}))

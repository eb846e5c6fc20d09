"""Softmax and the normalizations: axes, layouts, dtypes, fusion, long rows, special values."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import ew
from planish.ops.normalization import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    Lrn,
    QuantizedSoftmax,
    Softmax,
)
from planish.targets.base import Binding
from planish.targets.cpu.kernels.lrn import LrnFamily
from planish.targets.cpu.kernels.rows import FAMILIES, RowsFamily
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.run import run_tactic

FAMILY, LRN = RowsFamily(), LrnFamily()
F32 = DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.fixture(params=["host", "avx2"])
def machine(request) -> Machine:
    return host() if request.param == "host" else restricted("avx2")


def positive(task, rng):
    """Arrays for a task; the anchor's parameters are positive."""
    return [
        random_array(rng, v.type.bind({}), v.dtype)
        if i == 0
        else (rng.random(v.type.bind({})) + 0.5).astype(v.dtype.numpy)
        for i, v in enumerate(task.inputs)
    ]


@pytest.mark.parametrize("op", [Softmax, LogSoftmax])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 70), -1), ((3, 5, 70), 1), ((6, 1001), 1), ((4, 7), 0), ((5,), 0)]
)
def test_softmax(op, shape, axis, machine, rng):
    task = task_of((op(axis), 1), inputs=[(shape, F32)])
    check_tactics(FAMILY, task, rng, tolerance=2e-6, machine=machine, limit=1)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 70), -1), ((6, 1001), 1), ((4, 7), 0)])
def test_quantized_softmax(shape, axis, machine, rng):
    """Weights half-way between two levels are as many as digits of float32 leave."""
    task = task_of((QuantizedSoftmax(axis, 255), 1), inputs=[(shape, F32)])
    (x,) = positive(task, rng)
    x *= 3
    (wanted,) = task.evaluate([x])
    for tactic in list(FAMILY.on(machine).tactics(task, Binding({})))[:1]:
        (got,) = run_tactic(tactic, Binding({}), [x], machine)
        off = np.abs(got - wanted)
        assert off.max() < 1.5 / 255
        assert np.mean(off > 1e-5) < 0.05


@pytest.mark.parametrize("layouts", ["gaps", "any order"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_attention(axis, layouts, rng):
    """A scale and a mask before the softmax, a product after it."""
    task = task_of(
        (ew.Mul(),),
        (ew.Add(),),
        (Softmax(axis), 1),
        (ew.Mul(),),
        inputs=[((2, 3, 5, 20), F32), ((1,), F32), ((2, 1, 1, 20), F32), ((2, 3, 5, 20), F32)],
    )
    assert task.prologue
    layout = row_padded if layouts == "gaps" else lambda v: strided(v, rng)
    check_tactics(FAMILY, task, rng, layouts=layout, tolerance=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((2, 90_000), 1), ((9_000, 20), 0)])
def test_rows_longer_than_scratch(shape, axis, rng):
    task = task_of((ew.Exp(),), (Softmax(axis), 1), inputs=[(shape, F32)])
    (launch,) = next(iter(FAMILY.tactics(task, Binding({})))).launches(Binding({}))
    assert launch.scratch == 0
    check_tactics(FAMILY, task, rng, tolerance=1e-5, limit=1)


def test_softmax_of_special_values(rng):
    x = random_array(rng, (4, 40), F32)
    x[0] = -np.inf
    x[1, 3] = np.inf
    x[2, 3] = np.nan
    x[3, 3] = -np.inf
    task = task_of((Softmax(1), 1), inputs=[((4, 40), F32)])
    check_tactics(FAMILY, task, rng, arrays=[x], tolerance=2e-6)


def test_softmax_is_as_accurate_as_float32_allows(rng):
    x = (rng.standard_normal((64, 1000)) * 0.5).astype(np.float32)
    e = np.exp(x.astype(np.float64))
    exact = e / e.sum(1, keepdims=True)
    task = task_of((Softmax(1), 1), inputs=[((64, 1000), F32)])
    (got,) = run_tactic(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}), [x])
    assert np.abs(got / exact - 1).max() < 4 * 2.0**-23


@pytest.mark.parametrize(
    ("shape", "axis", "parameter"),
    [
        ((3, 5, 70), 2, (70,)),
        ((3, 4, 6, 7), 2, (6, 7)),
        ((3, 4, 6, 7), 2, (6, 1)),
        ((3, 5, 70), 1, (70,)),
        ((2, 9), 1, ()),
    ],
)
def test_layer_norm(shape, axis, parameter, rng):
    task = task_of(
        (LayerNorm(axis, 1e-5), 3),
        (ew.Add(),),
        inputs=[(shape, F32), (parameter, F32), (parameter, F32), (shape, F32)],
    )
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        arrays = positive(task, rng)
        check_tactics(FAMILY, task, rng, arrays=arrays, layouts=layouts, tolerance=1e-5, limit=1)


@pytest.mark.parametrize("shape", [(2, 5, 6, 20), (2, 300, 3), (1, 40, 50, 70)])
def test_instance_norm(shape, rng):
    task = task_of(
        (InstanceNorm(1e-5), 3), (ew.Relu(),), inputs=[(shape, F32), *[(shape[-1:], F32)] * 2]
    )
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        arrays = positive(task, rng)
        check_tactics(FAMILY, task, rng, arrays=arrays, layouts=layouts, tolerance=2e-5, limit=1)


@pytest.mark.parametrize("shape", [(2, 5, 6, 20), (20,), (7, 130)])
def test_batch_norm(shape, rng):
    task = task_of(
        (BatchNorm(1e-5), 5), (ew.Relu(),), inputs=[(shape, F32), *[(shape[-1:], F32)] * 4]
    )
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        arrays = positive(task, rng)
        check_tactics(FAMILY, task, rng, arrays=arrays, layouts=layouts, tolerance=1e-5, limit=1)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
def test_dtypes(dtype, rng):
    tolerance = {DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2, DType.FLOAT64: 1e-12}[dtype]
    task = task_of((Softmax(-1), 1), inputs=[((3, 5, 70), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=tolerance)
    norm = (LayerNorm(-1, 1e-5), 3)
    for parameter in (dtype, F32):
        inputs = [((3, 70), dtype), ((70,), parameter), ((70,), parameter)]
        task = task_of(norm, inputs=inputs)
        check_tactics(FAMILY, task, rng, arrays=positive(task, rng), tolerance=tolerance)


@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 0.6])
@pytest.mark.parametrize("shape", [(2, 3, 70), (4, 1), (9,)])
def test_lrn(beta, shape, machine, rng):
    task = task_of((Lrn(2, 1.0, 0.02, beta), 1), (ew.Relu(),), inputs=[(shape, F32)])
    check_tactics(LRN, task, rng, tolerance=2e-6, machine=machine)
    check_tactics(LRN, task, rng, tolerance=2e-6, layouts=lambda v: strided(v, rng))


def test_nothing_to_do():
    for op in (Softmax(1), Lrn(2, 1.0, 0.02, 0.5)):
        task = task_of((op, 1), inputs=[((0, 9), F32)])
        (tactic, *_) = (t for family in FAMILIES for t in family.tactics(task, Binding({})))
        assert tactic.launches(Binding({})) == []


@pytest.mark.parametrize("parameters", [{}, {"vectors": 0}, {"vectors": 2.0}, {"rows": 1}])
def test_nonsense_in_a_plan(parameters):
    task = task_of((Softmax(0), 1), inputs=[((9,), F32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, parameters)

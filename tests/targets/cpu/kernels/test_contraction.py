"""The plain contraction kernel against the references: products of every dtype and kind."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.tactics import check_tactics, row_padded, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import make_task
from planish.graph import DType, Graph, TensorType, symbol
from planish.ops import Cast, Clip, Conv, ConvInteger, MatMul, MatMulInteger, ew
from planish.targets.base import Binding
from planish.targets.cpu.kernels.contraction import ContractionFamily
from planish.targets.cpu.run import run_tactic

FAMILY = ContractionFamily()
OTHERS = [d for d in DType if d not in (DType.FLOAT32, DType.BOOL)]
TOLERANCE = {DType.FLOAT64: 1e-13, DType.FLOAT32: 2e-5, DType.FLOAT16: 1e-3, DType.BFLOAT16: 8e-3}


@pytest.fixture
def rng():
    return np.random.default_rng(17)


@pytest.mark.parametrize("dtype", OTHERS, ids=lambda d: d.value)
def test_matrices_of_every_dtype(dtype, rng):
    task = task_of((MatMul(), 2), inputs=[((2, 5, 9), dtype), ((9, 37), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=TOLERANCE.get(dtype, 0))


@pytest.mark.parametrize("dtype", OTHERS, ids=lambda d: d.value)
def test_convolutions_of_every_dtype(dtype, rng):
    op = Conv((2, 1), ((1, 1), (0, 2)), (1, 2))
    task = task_of((op, 2), inputs=[((2, 6, 7, 3), dtype), ((3, 2, 3, 5), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=TOLERANCE.get(dtype, 0))


@pytest.mark.parametrize("transposed", [(True, False), (False, True), (True, True)])
def test_transposed_matrices_of_any_layout(transposed, rng):
    left, right = (3, 1, 6, 11), (4, 11, 17)
    a, b = (
        ((*s[:-2], s[-1], s[-2]) if t else s)
        for s, t in zip((left, right), transposed, strict=True)
    )
    task = task_of(
        (MatMul(*transposed), 2),
        (ew.Add(), 2),
        inputs=[(a, DType.INT32), (b, DType.INT32), ((17,), DType.INT32)],
    )
    check_tactics(FAMILY, task, rng)
    check_tactics(FAMILY, task, rng, layouts=lambda v: strided(v, rng))


def test_constant_transposed_matrix(rng):
    graph = Graph()
    x = graph.input("x", TensorType((symbol("N"), 5), DType.FLOAT64))
    node = graph.add_node(MatMul(False, True), (x, graph.constant(rng.standard_normal((21, 5)))))
    task = make_task([node], node)
    for rows in (1, 2, 7):
        binding = Binding({"N": rows})
        array = rng.standard_normal((rows, 5))
        for tactic in FAMILY.tactics(task, binding):
            (got,) = run_tactic(tactic, binding, [array, task.inputs[1].data])
            np.testing.assert_allclose(got, task.evaluate([array, task.inputs[1].data])[0], 1e-12)


@pytest.mark.parametrize(
    ("shape", "filters", "op"),
    [
        ((2, 9, 4), (3, 4, 6), Conv((2,), ((2, 1),), (2,))),
        ((1, 4, 5, 6, 3), (2, 3, 2, 3, 4), Conv((1, 2, 1), ((1, 0), (1, 1), (0, 1)), (1, 1, 2))),
        ((1, 3, 3, 3, 3, 2), (2, 2, 2, 2, 2, 3), Conv((1,) * 4, ((0, 1),) * 4, (1,) * 4)),
        ((2, 5, 6, 8), (3, 3, 2, 12), Conv((1, 2), ((1, 1), (1, 1)), (1, 1), 4)),
        ((2, 5, 6, 40), (3, 3, 1, 40), Conv((2, 1), ((1, 1), (1, 1)), (1, 2), 40)),
        ((2, 5, 6, 4), (3, 3, 1, 8), Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 4)),
        ((1, 3, 3, 2), (5, 5, 2, 3), Conv((1, 1), ((3, 3), (4, 4)), (1, 1))),
    ],
    ids=["1d", "3d", "4d", "grouped", "depthwise", "multiplier", "mostly_padding"],
)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.INT16])
def test_convolutions_of_every_kind(shape, filters, op, dtype, rng):
    task = task_of((op, 2), (ew.Relu(),), inputs=[(shape, dtype), (filters, dtype)])
    tolerance = TOLERANCE.get(dtype, 0)
    families = list(FAMILY.tactics(task, Binding({})))
    if not families:  # the depthwise kernel has them
        assert dtype is DType.FLOAT32 and op.groups > 1
        return
    check_tactics(FAMILY, task, rng, tolerance=tolerance)
    check_tactics(FAMILY, task, rng, tolerance=tolerance, layouts=lambda v: strided(v, rng))


@pytest.mark.parametrize("a", [DType.INT8, DType.UINT8], ids=lambda d: d.value)
@pytest.mark.parametrize("b", [DType.INT8, DType.UINT8], ids=lambda d: d.value)
def test_integer_matrices_with_zero_points(a, b, rng):
    for a_zero, b_zero in (((), ()), ((5, 1), (37,))):
        task = task_of(
            (MatMulInteger(), 4),
            (Cast(DType.FLOAT32),),
            (ew.Mul(), 2),
            (Clip(-900.0, 900.0),),
            (Cast(DType.INT8),),
            inputs=[((5, 9), a), ((9, 37), b), (a_zero, a), (b_zero, b), ((37,), DType.FLOAT32)],
        )
        extremes = [np.iinfo(d.numpy) for d in (a, b)]
        arrays = [
            rng.integers(info.min, info.max + 1, shape).astype(info.dtype)
            for info, shape in zip(extremes * 2, ((5, 9), (9, 37), a_zero, b_zero), strict=True)
        ]
        arrays.append(rng.standard_normal(37).astype(np.float32) * np.float32(0.01))
        check_tactics(FAMILY, task, rng, arrays=arrays)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_integer_convolutions_with_zero_points(groups, rng):
    op = ConvInteger((2, 1), ((1, 2), (2, 0)), (1, 2), groups)
    shapes = (2, 6, 7, 4), (3, 3, 4 // groups, 20)
    for channels in ((), (20,)):
        inputs = [(shapes[0], DType.UINT8), (shapes[1], DType.INT8)]
        inputs += [((), DType.UINT8), (channels, DType.INT8)]
        task = task_of((op, 4), inputs=inputs)
        check_tactics(FAMILY, task, rng)
        check_tactics(FAMILY, task, rng, layouts=row_padded)


def test_sums_wrap_around():
    """The largest products of 8-bit integers, and products that leave the accumulator."""
    rng = np.random.default_rng(0)
    for a, b in ((DType.INT8, DType.INT8), (DType.UINT8, DType.INT8)):
        inputs = [((1, 70000), a), ((70000, 3), b), ((), a), ((), b)]
        task = task_of((MatMulInteger(), 4), inputs=inputs)
        least = [np.iinfo(d.numpy) for d in (a, b)]
        arrays = [
            np.full((1, 70000), least[0].max, a.numpy),
            np.full((70000, 3), least[1].min, b.numpy),
            np.array(least[0].min, a.numpy),
            np.array(least[1].max, b.numpy),
        ]
        check_tactics(FAMILY, task, rng, arrays=arrays)


def test_what_faster_kernels_do_is_left_to_them():
    f32 = DType.FLOAT32
    task = task_of((MatMul(), 2), inputs=[((4, 8), f32), ((8, 16), f32)])
    assert not list(FAMILY.tactics(task, Binding({})))


def test_impossible_parameters_are_refused():
    task = task_of((MatMul(), 2), inputs=[((4, 8), DType.INT8), ((8, 16), DType.INT8)])
    for parameters in ({}, {"pixels": 3, "vectors": 1}, {"pixels": 1, "vectors": True}):
        with pytest.raises(PlanError, match="contraction"):
            FAMILY.restore(task, parameters)

"""The plain contraction kernel on GPUs: products and convolutions of every dtype and kind."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.levels import conv_of_levels
from helpers.tactics import random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops import Cast, Clip, Conv, ConvInteger, ConvTranspose, MatMul, MatMulInteger, ew
from planish.targets.base import Binding
from planish.targets.cuda.kernels.contraction import Contraction, ContractionFamily
from planish.targets.cuda.kernels.depthwise import DepthwiseFamily

FAMILY = ContractionFamily()
F16, BF16, F32, F64 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64
I8, U8, I32 = DType.INT8, DType.UINT8, DType.INT32
NUMBERS = [d for d in DType if d is not DType.BOOL]
TOLERANCE = {F64: 1e-12, F32: 1e-4, F16: 4e-2, BF16: 4e-1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(17)


def plain(task, rows=16, columns=16, unroll=2):
    """The tactic without tensor cores."""
    return [Contraction(task, rows, columns, unroll, 1, 1, False)]


def dots(task, rows=16, columns=16, deep=16):
    """The tactic with tensor cores."""
    return [Contraction(task, rows, columns, deep, 1, 2, True)]


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.value)
def test_matrices_of_every_dtype(dtype, rng):
    task = task_of((MatMul(), 2), inputs=[((2, 5, 9), dtype), ((9, 37), dtype)])
    check_interpreted(FAMILY, task, rng, tolerance=TOLERANCE.get(dtype, 0), limit=None)


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.value)
def test_convolutions_of_every_dtype(dtype, rng):
    op = Conv((2, 1), ((1, 1), (0, 2)), (1, 2))
    task = task_of((op, 2), inputs=[((2, 6, 7, 3), dtype), ((3, 2, 3, 5), dtype)])
    tactics = plain(task)
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=TOLERANCE.get(dtype, 0))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, I8, DType.UINT64], ids=lambda d: d.value)
def test_every_kind_of_dtype_compiles(dtype):
    task = task_of((MatMul(), 2), inputs=[((2, 5, 9), dtype), ((9, 37), dtype)])
    assert compiled(plain(task)[0], Binding({}))


@pytest.mark.parametrize("transposed", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("batches", [((3, 1), (4,)), ((), ()), ((2, 3), ()), ((), (3,))])
def test_transposed_matrices_of_any_layout(batches, transposed, rng):
    left, right = (*batches[0], 6, 11), (*batches[1], 11, 17)
    a, b = (
        ((*s[:-2], s[-1], s[-2]) if t else s)
        for s, t in zip((left, right), transposed, strict=True)
    )
    inputs = [(a, I32), (b, I32), ((17,), I32)]
    task = task_of((MatMul(*transposed), 2), (ew.Add(), 2), inputs=inputs)
    layouts = lambda v: strided(v, rng)  # noqa: E731
    check_interpreted(FAMILY, task, rng, tactics=plain(task), layouts=layouts)


CONVOLUTIONS = [
    (Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 2), (2, 5, 6, 8), (3, 3, 4, 6)),
    (Conv((2, 3), ((0, 2), (3, 0)), (2, 1), 2), (1, 9, 8, 6), (3, 2, 3, 40)),
    (Conv((1,), ((1, 1),), (1,)), (3, 9, 4), (3, 4, 5)),
    (Conv((1, 2, 1), ((1, 1), (0, 1), (2, 0)), (1, 1, 2)), (1, 3, 4, 5, 3), (3, 2, 2, 3, 4)),
    (Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 6), (1, 5, 5, 6), (3, 3, 1, 12)),
    (Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), (5, 1, 1, 7), (1, 1, 7, 1)),
    (ConvTranspose((9, 11), (2, 2), (1, 0), (1, 1)), (2, 4, 5, 3), (3, 4, 3, 5)),
    (ConvTranspose((12, 9), (3, 2), (2, 1), (1, 2)), (1, 4, 4, 4), (2, 3, 4, 3)),
    (ConvTranspose((8, 8), (1, 4), (0, 3), (2, 2), 2), (1, 4, 3, 4), (3, 3, 2, 6)),
    (ConvTranspose((7,), (2,), (0,), (1,)), (2, 3, 4), (2, 4, 6)),
    (ConvTranspose((9,), (3,), (0,), (3,)), (2, 3, 4), (2, 4, 6)),
    (ConvTranspose((5, 6, 7), (2, 2, 2), (1, 1, 1), (1, 1, 1)), (1, 3, 3, 4, 2), (3, 3, 3, 2, 3)),
]


@pytest.mark.parametrize(("op", "shape", "filters"), CONVOLUTIONS)
def test_convolutions(op, shape, filters, rng):
    inputs = [(shape, F32), (filters, F32), ((filters[-1],), F32)]
    task = task_of((op, 2), (ew.Add(),), (ew.Relu(),), inputs=inputs)
    layouts = lambda v: strided(v, rng)  # noqa: E731
    check_interpreted(FAMILY, task, rng, tactics=plain(task), layouts=layouts, tolerance=1e-4)


DEEP = [
    (Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 2), (1, 4, 5, 40), (3, 3, 20, 36)),
    (Conv((2, 2), ((1, 0), (0, 1)), (1, 2)), (1, 7, 8, 17), (2, 3, 17, 33)),
    (ConvTranspose((9, 8), (2, 2), (1, 1), (1, 1)), (1, 4, 4, 16), (4, 3, 16, 18)),
]


@pytest.mark.parametrize("dtype", [F16, F32], ids=lambda d: d.value)
@pytest.mark.parametrize(("op", "shape", "filters"), DEEP)
def test_convolutions_in_blocks_of_depth(op, shape, filters, dtype, rng):
    inputs = [(shape, dtype), (filters, dtype), ((filters[-1],), dtype)]
    task = task_of((op, 2), (ew.Add(),), (Clip(0.0, 6.0),), inputs=inputs)
    layouts = row_padded if dtype is F32 else None
    check_interpreted(
        FAMILY, task, rng, tactics=dots(task), layouts=layouts, tolerance=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("batches", [((3,), (3,)), ((2, 1), (2,)), ((2,), ()), ((), (4,))])
def test_matrices_in_blocks_of_depth(batches, rng):
    inputs = [((*batches[0], 18, 33), BF16), ((*batches[1], 21, 33), BF16)]
    task = task_of((MatMul(False, True), 2), inputs=inputs)
    check_interpreted(FAMILY, task, rng, tactics=dots(task), tolerance=TOLERANCE[BF16])


def test_operands_of_each_matrix_and_of_each_row(rng):
    inputs = [((19, 24), F32), ((4, 10, 19), F32), ((4, 1, 1), F32), ((24, 1), F32)]
    task = task_of((MatMul(True, True), 2), (ew.Add(),), (ew.Mul(),), inputs=inputs)
    for tactics in (plain(task), dots(task)):
        check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=1e-4)


@pytest.mark.parametrize("depth", ["blocks", "one by one"])
@pytest.mark.parametrize("dtypes", [(I8, I8), (U8, I8), (U8, U8)])
def test_bytes_with_zero_points(dtypes, depth, rng):
    a, b = dtypes
    inputs = [((2, 6, 40), a), ((40, 18), b), ((6, 1), a), ((18,), b), ((18,), I32)]
    task = task_of((MatMulInteger(), 4), (ew.Add(),), inputs=inputs)
    tactics = dots(task) if depth == "blocks" else plain(task)
    arrays = [_any_bytes(rng, v) for v in task.inputs]
    check_interpreted(FAMILY, task, rng, tactics=tactics, arrays=arrays)
    op = ConvInteger((1, 2), ((1, 1), (1, 0)), (1, 1))
    inputs = [((2, 4, 5, 18), a), ((3, 3, 18, 17), b), ((), a), ((17,), b)]
    task = task_of((op, 4), inputs=inputs)
    tactics = dots(task) if depth == "blocks" else plain(task)
    arrays = [_any_bytes(rng, v) for v in task.inputs]
    check_interpreted(FAMILY, task, rng, tactics=tactics, arrays=arrays)


def _any_bytes(rng, value):
    if value.dtype is I32:
        return random_array(rng, value.type.bind({}), I32)
    limits = np.iinfo(value.dtype.numpy)
    shape = value.type.bind({})
    return rng.integers(limits.min, limits.max + 1, shape).astype(value.dtype.numpy)


@pytest.mark.parametrize("kind", ["dots", "plain"])
def test_a_prologue_comes_before_the_padding(kind, rng):
    op = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 2)
    inputs = [((1, 4, 5, 32), F32), ((32,), F32), ((3, 3, 16, 32), F16)]
    task = task_of((ew.Add(),), (Cast(F16),), (op, 2), inputs=inputs)
    assert task.prologue is not None
    tactics = dots(task) if kind == "dots" else plain(task)
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=4e-2)


def test_blocks_of_halves_go_through_tensor_cores():
    op = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 32)
    inputs = [((8, 14, 14, 1024), F16), ((3, 3, 32, 1024), F16)]
    task = task_of((op, 2), inputs=inputs)
    text = assembly(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))
    assert "wgmma" in text or "mma.sync" in text
    assert "ld.local" not in text


def test_bytes_go_through_tensor_cores():
    zeros = [((), U8), ((), I8)]
    task = task_of((MatMulInteger(), 4), inputs=[((64, 64), U8), ((64, 64), I8), *zeros])
    text = assembly(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))
    assert "wgmma" in text or "mma.sync" in text


def test_faster_families_go_first():
    depthwise = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 8)
    task = task_of((depthwise, 2), inputs=[((1, 5, 5, 8), F32), ((3, 3, 1, 8), F32)])
    assert list(FAMILY.tactics(task, Binding({})))
    behind = ContractionFamily((DepthwiseFamily(),))
    assert not list(behind.tactics(task, Binding({})))
    task = task_of((MatMul(), 2), inputs=[((5, 8), F64), ((8, 3), F64)])
    assert list(behind.tactics(task, Binding({})))


def test_batches_share_kernels():
    kernels = set()
    for batch in (2, 5):
        op = ConvTranspose((9, 8), (2, 2), (1, 1), (1, 1))
        inputs = [((batch, 4, 4, 16), F16), ((4, 3, 16, 18), F16)]
        (launch,) = dots(task_of((op, 2), inputs=inputs))[0].launches(Binding({}))
        kernels.add(launch.kernel)
    assert len(kernels) == 1


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_of((MatMul(), 2), inputs=[((5, 8), F64), ((8, 3), F64)])
    (good,) = plain(task)
    with pytest.raises(PlanError, match="impossible contraction kernel"):
        FAMILY.restore(task, {**good.parameters, "rows": 5})


@pytest.mark.parametrize("depth", [8, 20, 48])
def test_tensor_cores_are_given_signed_bytes(depth, rng):
    case = dict(window=(3, 3), padding=((1, 1),) * 2, groups=2, residual=True)
    task = conv_of_levels(rng, (2, 5, 6, 2 * depth), 64, **case)
    offered = [t for t in FAMILY.tactics(task, Binding({})) if t.dot]
    kernels = [t.launches(Binding({}))[0].kernel for t in offered]
    assert kernels and all(k.multiplies_bytes for k in kernels)
    check_interpreted(FAMILY, task, rng, tactics=offered, limit=2)
    shifted = conv_of_levels(rng, (2, 5, 6, 2 * depth), 64, zero=3, **case)
    check_interpreted(FAMILY, shifted, rng)

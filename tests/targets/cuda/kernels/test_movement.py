"""Tasks that move elements, in Triton's interpreter: every op, dtype and layout."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import strided, task_of
from planish.errors import PlanError
from planish.fusion.task import make_task
from planish.graph import DType
from planish.graph.dims import symbol
from planish.graph.graph import Graph
from planish.graph.types import TensorType
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.indexing import OneHot
from planish.ops.reduce import ReduceSum
from planish.ops.shape import (
    BroadcastTo,
    Concat,
    Dims,
    Identity,
    Pad,
    Reshape,
    ShapeOf,
    Slice,
    Tile,
    Transpose,
)
from planish.targets.base import Binding
from planish.targets.cuda.kernels.movement import (
    FAMILIES,
    MovementFamily,
    MovementTactic,
    common_axes,
)
from planish.targets.cuda.kernels.moves import tile_choices
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import run_tactic

FAMILY = MovementFamily()
F16, F32, I64 = DType.FLOAT16, DType.FLOAT32, DType.INT64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def check(task, rng, **options):
    """Dense, and with gaps and axes in any order."""
    for layouts in (None, lambda v: strided(v, rng)):
        check_interpreted(FAMILY, task, rng, layouts=layouts, **options)


def test_families():
    assert [f.name for f in FAMILIES] == ["movement"]
    assert FAMILY.on(H200) == MovementFamily(H200)


# ---- transpose -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.UINT8, F16, DType.FLOAT64, DType.BOOL])
@pytest.mark.parametrize("size", [(1, 1), (50, 3), (40, 70), (5, 1)])
def test_transpose_matrix(dtype, size, rng):
    check(task_of((Transpose((1, 0)),), inputs=[(size, dtype)]), rng)


@pytest.mark.parametrize("perm", [(0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1, 3), (3, 2, 1, 0)])
@pytest.mark.parametrize("channels", [3, 8, 19])
def test_transpose_images(perm, channels, rng):
    check(task_of((Transpose(perm),), inputs=[((2, 5, 7, channels), F32)]), rng)


@pytest.mark.parametrize("seed", range(6))
def test_transpose_randomly(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(2, 7))
    shape = tuple(int(n) for n in rng.integers(1, 20 if rank < 4 else 5, rank))
    perm = tuple(int(a) for a in rng.permutation(rank))
    dtype = rng.choice([DType.INT8, DType.BFLOAT16, DType.INT32, DType.UINT64])  # type: ignore[arg-type]
    check(task_of((Transpose(perm),), inputs=[(shape, dtype)]), rng)


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 5, 6, 20)])
def test_transpose_with_work_before_and_after(shape, rng):
    """An image as bytes becomes normalised channels-first floats."""
    n, h, w, c = shape
    task = task_of(
        (Cast(F32),),
        (ew.Sub(),),
        (Transpose((0, 3, 1, 2)),),
        (ew.Mul(),),
        (ew.Add(),),
        inputs=[(shape, DType.UINT8), ((c,), F32), ((c, 1, 1), F32), ((n, c, h, w), F32)],
    )
    assert task.prologue
    check(task, rng, tolerance=1e-6)


def test_every_tactic_is_right(rng):
    task = task_of((Transpose((0, 2, 1)),), inputs=[((3, 70, 90), F16)])
    check_interpreted(FAMILY, task, rng, limit=None)


def test_batches_share_a_kernel():
    kernels = []
    for batch in (2, 7):
        task = task_of((Transpose((0, 2, 1, 3)),), inputs=[((batch, 128, 12, 64), F16)])
        (launch,) = MovementTactic(task).launches(Binding({}))
        kernels.append(launch.kernel)
    assert kernels[0] == kernels[1]


# ---- other views ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "begin", "size", "strides"),
    [
        ((10,), (2,), (5,), (1,)),
        ((10,), (9,), (10,), (-1,)),
        ((4, 50), (1, 3), (2, 40), (1, 1)),
        ((4, 50), (3, 48), (4, 17), (-1, -2)),
        ((2, 9, 9, 5), (0, 1, 8, 0), (2, 4, 3, 5), (1, 2, -3, 1)),
        ((3, 4), (2, 3), (1, 1), (1, 1)),
        ((), (), (), ()),
    ],
)
def test_slice(shape, begin, size, strides, rng):
    check(task_of((Slice(begin, size, strides),), inputs=[(shape, F32)]), rng)


def test_slice_with_work_before_and_after(rng):
    task = task_of(
        (Cast(F32),),
        (ew.Mul(),),
        (Slice((1, 0, 2), (2, 5, 4), (1, 1, 1)),),
        (Clip(-5.0, 5.0),),
        inputs=[((4, 5, 8), F16), ((5, 1), F32)],
    )
    check(task, rng, tolerance=1e-6)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((3, 1), (3, 7)), ((5,), (2, 3, 5)), ((), (4,)), ((1, 4, 1), (3, 4, 2)), ((2, 3), (2, 3))],
)
@pytest.mark.parametrize("dtype", [DType.BOOL, DType.BFLOAT16])
def test_broadcast(shape, wanted, dtype, rng):
    check(task_of((BroadcastTo(wanted),), inputs=[(shape, dtype)]), rng)


@pytest.mark.parametrize(
    ("shape", "repeats"), [((3,), (4,)), ((2, 3), (1, 2)), ((2, 3, 4), (2, 1, 3)), ((1, 5), (3, 1))]
)
def test_tile(shape, repeats, rng):
    check(task_of((Tile(repeats),), inputs=[(shape, DType.INT16)]), rng)
    after = task_of((Tile(repeats),), (ew.Add(),), inputs=[(shape, F32), ((1,), F32)])
    check(after, rng)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((6, 4), (4, 6)),
        ((2, 3, 4), (6, 4)),
        ((24,), (2, 3, 4)),
        ((4, 6), (8, 3)),
        ((4, 6), (3, 8)),
        ((5, 1, 3), (1, 15)),
        ((), (1, 1)),
        ((1,), ()),
        ((2, 9, 10), (2, 6, 15)),
    ],
)
def test_reshape(old, new, rng):
    check(task_of((Reshape(new),), inputs=[(old, F16)]), rng)
    around = task_of(
        (Cast(F32),),
        (Reshape(new),),
        (ew.Mul(),),
        inputs=[(old, F16), (new[-1:], F32)],
    )
    check(around, rng)


def test_common_axes():
    assert common_axes((4, 6), (8, 3)) == (4, 2, 3)
    assert common_axes((2, 3, 4), (6, 4)) == (2, 3, 4)
    assert common_axes((4, 6), (3, 8)) is None
    assert common_axes((), (1, 1)) == ()


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.UINT64, F16])
def test_identity(dtype, rng):
    check(task_of((Identity(),), inputs=[((2, 5, 9), dtype)]), rng)


# ---- padding, one-hot, shapes ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric", "edge"])
@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((7,), ((3, 2),)),
        ((2, 5, 6, 3), ((0, 0), (1, 2), (3, 0), (0, 0))),
        ((4, 5), ((3, 3), (0, 4))),
        ((2, 3, 4), ((0, 0), (0, 0), (0, 0))),
    ],
)
def test_pad(mode, shape, padding, rng):
    check(task_of((Pad(padding, mode, 1.5),), inputs=[(shape, F32)]), rng)


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.INT8, DType.UINT16, I64, F16, DType.FLOAT64])
def test_pad_dtypes(dtype, rng):
    check(task_of((Pad(((1, 1), (0, 2)), "constant", 3.0),), inputs=[((3, 4), dtype)]), rng)


def test_pad_with_work_before_and_after(rng):
    """The padding is not worked on before, but after."""
    task = task_of(
        (ew.Add(),),
        (Pad(((0, 0), (1, 1), (2, 2), (0, 0)), "constant", -2.0),),
        (ew.Mul(),),
        inputs=[((2, 3, 4, 5), F32), ((5,), F32), ((2, 5, 8, 5), F32)],
    )
    check(task, rng, tolerance=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [I64, DType.INT32, DType.UINT8])
def test_one_hot(axis, dtype, rng):
    task = task_of((OneHot(5, axis), 3), inputs=[((3, 4), dtype), ((), F32), ((), F32)])
    indices = rng.integers(-2 if dtype is not DType.UINT8 else 0, 7, (3, 4)).astype(dtype.numpy)
    check(task, rng, arrays=[indices, np.float32(2.5), np.float32(-1)])


def test_one_hot_of_computed_indices(rng):
    task = task_of(
        (Cast(DType.INT32),),
        (OneHot(1, 0), 3),
        (ew.Neg(),),
        inputs=[((3,), F32), ((), F16), ((), F16)],
    )
    arrays = [np.array([0, 1.7, 0.4], np.float32), np.float16(3), np.float16(0.5)]
    check(task, rng, arrays=arrays)


@pytest.mark.parametrize("axis", [0, 1])
def test_concat(axis, rng):
    shapes = [(2, 3, 4), (2, 3, 4), (2, 3, 4)]
    parts = [((*s[:axis], n, *s[axis + 1 :]), F32) for s, n in zip(shapes, (1, 4, 2), strict=True)]
    check(task_of((Concat(axis), 3), inputs=parts), rng)
    check(task_of((Cast(F32),), (Concat(axis), 3), inputs=[(parts[0][0], F16), *parts[1:]]), rng)
    check(task_of((Concat(axis), 3), (ew.Mul(),), inputs=[*parts, ((4,), F32)]), rng)


def test_shapes_as_tensors():
    graph = Graph()
    n = symbol("N")
    x = graph.input("x", TensorType((n, 3), F32))
    shape = graph.add_node(ShapeOf(), (x,))
    dims = graph.add_node(Dims((n * 2, 7), DType.INT32), ())
    single = graph.add_node(Dims(n), ())
    for node, wanted in ((shape, [5, 3]), (dims, [10, 7]), (single, 5)):
        task = make_task([node], node)
        binding = Binding({"N": 5})
        (tactic,) = FAMILY.tactics(task, binding)
        arrays = [np.zeros((5, 3), np.float32)] * len(task.inputs)
        (result,) = run_tactic(tactic, binding, arrays)
        np.testing.assert_array_equal(result, wanted)
        assert result.dtype == task.output.dtype.numpy


# ---- what is offered -------------------------------------------------------------------------


def test_understands_only_its_own():
    other = task_of((ReduceSum((0,)),), inputs=[((2, 3), F32)])
    assert not list(FAMILY.tactics(other, Binding({})))
    with pytest.raises(PlanError):
        FAMILY.restore(other, {"elements": 1024, "warps": 4})
    own = task_of((Transpose((1, 0)),), inputs=[((2, 3), F32)])
    for wrong in ({"elements": 1000, "warps": 4}, {"elements": 1024}, {"elements": 1, "warps": 1}):
        with pytest.raises(PlanError):
            FAMILY.restore(own, wrong)


def test_small_tensors_get_small_tiles():
    assert tile_choices(1000, H200)[0] == (256, 1)
    assert tile_choices(1 << 26, H200)[0] == (2048, 8)


def test_compiled_for_hopper(rng):
    """The transpose of heads moves 16 bytes at a time on both sides, through shared memory."""
    task = task_of((Transpose((0, 2, 3, 1)),), inputs=[((2, 128, 12, 64), F16)])
    tactic = MovementTactic(task, 4096, 4)
    (code,) = compiled(tactic, Binding({}))
    assert code.shared
    text = assembly(tactic, Binding({}))
    assert "ld.global.v4.b32" in text
    assert "st.global.v4.b32" in text
    heads = task_of((Transpose((0, 2, 1, 3)),), inputs=[((2, 128, 12, 64), F16)])
    text = assembly(MovementTactic(heads, 2048, 8), Binding({}))
    assert "ld.global.v4.b32" in text
    assert "st.global.v4.b32" in text

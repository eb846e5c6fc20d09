"""Tasks that move elements: every op, dtype and layout, with prologues and epilogues."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded, strided, task_of
from planish.fusion.task import make_task
from planish.graph import DType
from planish.graph.dims import symbol
from planish.graph.graph import Graph
from planish.graph.types import TensorType
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.indexing import Gather, GatherNd, OneHot, ScatterNd
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
from planish.targets.cpu.kernels.movement import FAMILIES, MovementFamily, MovementTactic
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.run import run_tactic

FAMILY = MovementFamily()
F32, I64 = DType.FLOAT32, DType.INT64


@pytest.fixture(params=["host", "avx2"])
def machine(request) -> Machine:
    if request.param == "host":
        return host()
    if host().isa not in ("avx2", "avx512"):
        pytest.skip("this machine has no AVX2")
    return restricted("avx2")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def check(task, rng, machine=None, **options):
    """Dense; on the host's machine also with gaps in rows, and with axes in any order."""
    check_tactics(FAMILY, task, rng, machine=machine, **options)
    if machine in (None, host()):
        check_tactics(FAMILY, task, rng, layouts=row_padded, **options)
        check_tactics(FAMILY, task, rng, layouts=lambda v: strided(v, rng), **options)


def test_families():
    assert [f.name for f in FAMILIES] == ["movement"]


# ---- transpose -----------------------------------------------------------------------------

SIZES = [(1, 1), (3, 50), (50, 3), (4, 33), (33, 2), (16, 16), (17, 31), (40, 70), (5, 1)]


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.FLOAT16, F32, DType.FLOAT64])
@pytest.mark.parametrize("size", SIZES)
def test_transpose_matrix(dtype, size, rng, machine):
    check(task_of((Transpose((1, 0)),), inputs=[(size, dtype)]), rng, machine)


@pytest.mark.parametrize("perm", [(0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1, 3), (3, 2, 1, 0)])
@pytest.mark.parametrize("channels", [3, 8, 19])
def test_transpose_images(perm, channels, rng, machine):
    check(task_of((Transpose(perm),), inputs=[((2, 5, 7, channels), F32)]), rng, machine)


@pytest.mark.parametrize("seed", range(10))
def test_transpose_randomly(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(2, 7))
    shape = tuple(int(n) for n in rng.integers(1, 24 if rank < 4 else 6, rank))
    perm = tuple(int(a) for a in rng.permutation(rank))
    dtype = rng.choice([DType.INT8, DType.BFLOAT16, DType.INT32, DType.UINT64])  # type: ignore[arg-type]
    check(task_of((Transpose(perm),), inputs=[(shape, dtype)]), rng)


@pytest.mark.parametrize("shape", [(2, 20, 30, 3), (2, 5, 6, 20)])
def test_transpose_with_work_before_and_after(shape, rng, machine):
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
    check(task, rng, machine)


# ---- other views ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "begin", "size", "strides"),
    [
        ((10,), (2,), (5,), (1,)),
        ((10,), (9,), (10,), (-1,)),
        ((4, 50), (1, 3), (2, 40), (1, 1)),
        ((4, 50), (3, 48), (4, 17), (-1, -2)),
        ((2, 9, 9, 5), (0, 1, 8, 0), (2, 4, 3, 5), (1, 2, -3, 1)),
        ((3, 4), (0, 0), (3, 0), (1, 1)),
        ((), (), (), ()),
    ],
)
@pytest.mark.parametrize("dtype", [F32, DType.INT8])
def test_slice(shape, begin, size, strides, dtype, rng, machine):
    check(task_of((Slice(begin, size, strides),), inputs=[(shape, dtype)]), rng, machine)


def test_slice_with_epilogue(rng, machine):
    op = Slice((0, 5), (6, 20), (1, 1))
    task = task_of(
        (ew.Abs(),), (op,), (ew.Add(),), (ew.Relu(),), inputs=[((6, 33), F32), ((6, 1), F32)]
    )
    check(task, rng, machine)


def test_attributes_may_be_symbolic(rng):
    n = symbol("N")
    graph = Graph()
    x = graph.input("x", TensorType((n, 8), F32))
    node = graph.add_node(Slice((0, 2), (n - 1, 4), (1, 1)), (x,))
    task, binding = make_task([node], node), Binding({"N": 5})
    (tactic,) = FAMILY.tactics(task, binding)
    array = random_array(rng, (5, 8), F32)
    np.testing.assert_array_equal(run_tactic(tactic, binding, [array])[0], array[:4, 2:6])


@pytest.mark.parametrize(
    ("shape", "target"), [((3, 1), (2, 3, 17)), ((), (4, 5)), ((1, 33), (6, 33)), ((5,), (5,))]
)
def test_broadcast(shape, target, rng, machine):
    task = task_of((BroadcastTo(target),), (ew.Mul(),), inputs=[(shape, F32), (target, F32)])
    check(task, rng, machine)
    check(task_of((BroadcastTo(target),), inputs=[(shape, DType.UINT16)]), rng, machine)


@pytest.mark.parametrize(
    ("shape", "repeats"), [((5,), (3,)), ((2, 3, 4), (2, 1, 5)), ((3, 20), (4, 2)), ((2,), (0,))]
)
def test_tile(shape, repeats, rng, machine):
    total = tuple(n * r for n, r in zip(shape, repeats, strict=True))
    task = task_of((Tile(repeats),), (ew.Add(),), inputs=[(shape, F32), (total, F32)])
    check(task, rng, machine)
    check(task_of((Tile(repeats),), inputs=[(shape, DType.BOOL)]), rng, machine)


RESHAPES = [
    ((4, 6), (24,)),
    ((4, 6), (6, 4)),
    ((2, 3, 4, 5), (6, 20)),
    ((2, 3, 4, 5), (2, 12, 5)),
    ((2, 12, 5), (2, 3, 2, 2, 5)),
    ((8, 1, 9), (1, 72, 1)),
    ((6, 10), (4, 15)),
    ((1,), ()),
    ((0, 3), (3, 0)),
]


@pytest.mark.parametrize(("before", "after"), RESHAPES)
def test_reshape(before, after, rng, machine):
    check(task_of((Reshape(after),), inputs=[(before, DType.BFLOAT16)]), rng, machine)
    task = task_of(
        (ew.Square(),), (Reshape(after),), (ew.Add(),), inputs=[(before, F32), (after, F32)]
    )
    check(task, rng, machine)


def test_dense_reshape_is_one_launch():
    task = task_of((Reshape((6, 4)),), inputs=[((4, 6), F32)])
    assert len(MovementTactic(task).launches(Binding({}))) == 1
    assert MovementTactic(task).workspace(Binding({})) == 0


def test_identity(rng, machine):
    check(task_of((Identity(),), inputs=[((3, 4, 21), DType.INT16)]), rng, machine)


# ---- pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric", "edge"])
@pytest.mark.parametrize("dtype", [F32, DType.INT8, DType.FLOAT16])
def test_pad(mode, dtype, rng, machine):
    for shape, padding in [
        ((7,), ((2, 3),)),
        ((5, 20), ((0, 0), (4, 1))),
        ((2, 6, 7, 3), ((0, 0), (2, 1), (3, 0), (0, 0))),
        ((4, 5), ((1, 1), (2, 2))),
    ]:
        task = task_of((Pad(padding, mode, 5.0),), inputs=[(shape, dtype)])
        check(task, rng, machine)


def test_pad_with_epilogue(rng):
    task = task_of(
        (ew.Neg(),),
        (Pad(((1, 2), (0, 3)), "constant", -1.0),),
        (ew.Mul(),),
        inputs=[((4, 5), F32), ((7, 8), F32)],
    )
    check(task, rng)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [F32, DType.UINT8, I64])
def test_concat(axis, dtype, rng, machine):
    sizes = [3, 1, 20]
    shapes = []
    for size in sizes:
        shape = [2, 5, 6]
        shape[axis] = size
        shapes.append(tuple(shape))
    inputs = [(shape, dtype) for shape in shapes]
    check(task_of((Concat(axis), 3), inputs=inputs), rng, machine)


def test_concat_with_epilogue(rng):
    task = task_of((Concat(1), 2), (ew.Add(),), inputs=[((3, 4), F32), ((3, 5), F32), ((9,), F32)])
    check(task, rng)


# ---- indices -------------------------------------------------------------------------------


def indexed(op, data, indices, rng, dtype=F32, index_dtype=I64, epilogue=(), extra=()):
    """A gather whose indices are valid, negative ones among them."""
    task = task_of(
        (op, 2), *epilogue, inputs=[(data, dtype), (np.shape(indices), index_dtype), *extra]
    )
    arrays = [random_array(rng, data, dtype), np.asarray(indices, index_dtype.numpy)]
    arrays += [random_array(rng, shape, kind) for shape, kind in extra]
    return task, arrays


@pytest.mark.parametrize(
    ("data", "indices", "axis", "batch"),
    [
        ((10, 33), (4,), 0, 0),
        ((10, 33), (4, 5), 0, 0),
        ((6, 10), (40,), 1, 0),
        ((6, 10, 7), (3, 2), 1, 0),
        ((50,), (37,), 0, 0),
        ((50,), (), 0, 0),
        ((4, 10, 5), (4, 3), 1, 1),
        ((4, 3, 10), (4, 6), 2, 1),
        ((4, 3, 10), (4, 3, 6), 2, 2),
        ((6, 10), (0,), 1, 0),
    ],
)
@pytest.mark.parametrize("dtype", [F32, DType.INT8])
def test_gather(data, indices, axis, batch, dtype, rng, machine):
    size = data[axis]
    places = rng.integers(-size, size, indices)
    index_dtype = I64 if dtype is F32 else DType.INT32
    task, arrays = indexed(Gather(axis, batch), data, places, rng, dtype, index_dtype)
    check(task, rng, machine, arrays=arrays)


def test_gather_with_epilogue(rng):
    places = rng.integers(0, 9, (2, 3))
    task, arrays = indexed(
        Gather(0),
        (9, 20),
        places,
        rng,
        epilogue=[(ew.Mul(),), (Clip(-1.0, 2.0),)],
        extra=[((2, 1, 20), F32)],
    )
    check(task, rng, arrays=arrays)


def test_gather_clamps_what_is_outside(rng):
    task, arrays = indexed(Gather(0), (5, 20), np.zeros(4), rng)
    arrays[1] = np.array([99, -99, 4, -5])
    (tactic,) = FAMILY.tactics(task, Binding({}))
    (got,) = run_tactic(tactic, Binding({}), arrays)
    np.testing.assert_array_equal(got, arrays[0][[4, 0, 4, 0]])


def test_gather_from_nothing_is_declined():
    task = task_of((Gather(0), 2), inputs=[((0, 3), F32), ((2,), I64)])
    assert not list(FAMILY.tactics(task, Binding({})))


@pytest.mark.parametrize(
    ("data", "places", "depth", "batch"),
    [
        ((6, 7, 30), (5,), 1, 0),
        ((6, 7, 30), (5, 2), 2, 0),
        ((6, 7, 30), (40,), 3, 0),
        ((4, 6, 7), (4, 5), 1, 1),
        ((4, 6, 7), (4,), 2, 1),
        ((6, 7), (3,), 0, 0),
    ],
)
def test_gather_nd(data, places, depth, batch, rng, machine):
    columns = [rng.integers(-n, n, places) for n in data[batch : batch + depth]]
    indices = np.stack(columns, -1) if columns else np.zeros((*places, 0), np.int64)
    task, arrays = indexed(GatherNd(batch), data, indices, rng)
    check(task, rng, machine, arrays=arrays)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize(
    ("data", "places", "depth"),
    [((8, 20), (12,), 1), ((5, 6), (40,), 2), ((3, 4, 5), (2, 7), 2), ((30,), (0,), 1)],
)
def test_scatter_nd(reduction, data, places, depth, rng, machine):
    """With indices that occur several times, whose order matters."""
    indices = np.stack([rng.integers(-n, n, places) for n in data[:depth]], -1)
    updates = (*places, *data[depth:])
    for dtype in (F32, DType.INT16):
        inputs = [(data, dtype), (indices.shape, I64), (updates, dtype)]
        task = task_of((ScatterNd(reduction), 3), inputs=inputs)
        arrays = [
            random_array(rng, data, dtype),
            indices,
            random_array(rng, updates, dtype),
        ]
        check(task, rng, machine, arrays=arrays)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [F32, DType.BOOL, I64])
def test_one_hot(axis, dtype, rng, machine):
    for index_dtype in (DType.INT32, I64, DType.UINT8):
        inputs = [((3, 7), index_dtype), ((), dtype), ((), dtype)]
        task = task_of((OneHot(19, axis), 3), inputs=inputs)
        low = 0 if index_dtype is DType.UINT8 else -3
        indices = rng.integers(low, 25, (3, 7)).astype(index_dtype.numpy)
        arrays = [indices, *(np.array(v).astype(dtype.numpy) for v in (5, 0))]
        check(task, rng, machine, arrays=arrays)


# ---- shapes as data ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [I64, DType.INT32])
def test_dims(dtype):
    n = symbol("N")
    for values, expected in (((n, 3, n * 2), [5, 3, 10]), (n, 5)):
        graph = Graph()
        node = graph.add_node(Dims(values, dtype), ())
        task, binding = make_task([node], node), Binding({"N": 5})
        (tactic,) = FAMILY.tactics(task, binding)
        (got,) = run_tactic(tactic, binding, [])
        np.testing.assert_array_equal(got, np.array(expected, dtype.numpy))


def test_shape_of(rng):
    check(task_of((ShapeOf(DType.INT32),), inputs=[((4, 5, 6), F32)]), rng)


# ---- what is declined ----------------------------------------------------------------------


def test_other_anchors_are_declined():
    for op in (ReduceSum((0,), False), ew.Relu()):
        task = task_of((op,), inputs=[((4, 5), F32)])
        assert not list(FAMILY.tactics(task, Binding({})))


def test_empty_tensors_give_no_tasks():
    task = task_of((Transpose((1, 0)),), inputs=[((0, 5), F32)])
    launches = MovementTactic(task).launches(Binding({}))
    assert [launch.tasks for launch in launches] == [0]

"""Ops that move elements: against NumPy, TensorFlow and ONNX Runtime; contents; refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import ShapeError
from planish.graph import DType, Graph, symbol
from planish.ops import (
    BroadcastTo,
    Cast,
    Concat,
    Dims,
    Gather,
    Identity,
    Pad,
    Reshape,
    ShapeOf,
    Slice,
    Tile,
    Transpose,
    ew,
    slice_bounds,
)

N = symbol("N")
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def test_reshape():
    check(Reshape((4, 6)), [X], X.reshape(4, 6))
    check(Reshape(()), [X[:1, :1, :1]], X[0, 0, 0])
    check_symbolic(Reshape((N * 12,)), [tensor("f32", "N", 3, 4)], {"N": 5}, Reshape((60,)))
    assert infer(Reshape((symbol("M"), 2)), tensor("f32", "N", 4))  # cannot be known to be wrong


def test_transpose():
    check(Transpose((2, 0, 1)), [X], X.transpose(2, 0, 1))
    check(Transpose(()), [X[0, 0, 0]], X[0, 0, 0])
    check_symbolic(Transpose((1, 2, 0)), [tensor("f32", "N", 2, "M")], {"N": 3, "M": 4})


def test_broadcast_to():
    x = X[:, :1]
    check(BroadcastTo((5, 2, 3, 4)), [x], np.broadcast_to(x, (5, 2, 3, 4)))
    check_symbolic(
        BroadcastTo((N, N, 2)), [tensor("f32", "N", 1)], {"N": 3}, BroadcastTo((3, 3, 2))
    )


@given(st.data())
def test_slice_like_numpy(data):
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    bound = st.one_of(st.none(), st.integers(-7, 7))
    slices = [
        slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([1, 2, -1, -2, 3])))
        for _ in shape
    ]
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    bounds = [slice_bounds(d, s.start, s.stop, s.step) for d, s in zip(shape, slices, strict=True)]
    op = Slice(*zip(*bounds, strict=True), tuple(s.step for s in slices))
    check(op, [x], x[tuple(slices)])


def test_symbolic_slice():
    op = Slice((0, N - 2), (symbol("M"), 2), (1, 1))
    bound = Slice((0, 3), (4, 2), (1, 1))
    check_symbolic(op, [tensor("f32", "M", "N")], {"M": 4, "N": 5}, bound)
    with pytest.raises(ShapeError, match="symbolic"):
        op.reference(np.ones((4, 5), np.float32))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pad_like_onnx(mode, dtype):
    x = (X * 9).astype(dtype)
    pads = np.array([1, 0, 2, 0, 2, 3])
    value = np.array(7, dtype)
    expected = onnx_op("Pad", [x, pads, value if mode == "constant" else None], mode=mode)
    check(Pad(((1, 0), (0, 2), (2, 3)), mode, 7.0), [x], expected)


@pytest.mark.parametrize("mode", ["reflect", "symmetric"])
def test_mirror_pad_like_tensorflow(mode):
    tf = pytest.importorskip("tensorflow")
    padding = ((1, 1), (2, 0), (3, 3))
    check(Pad(padding, mode), [X], tf.pad(X, padding, mode).numpy())


def test_pad_of_infinity_and_bool():
    x = np.zeros((1,), np.float32)
    assert run(Pad(((1, 0),), value=-np.inf), x)[0].tolist() == [-np.inf, 0]
    assert run(Pad(((1, 0),), value=1.0), x.astype(bool))[0].tolist() == [True, False]
    check(Pad(()), [x[0]], x[0])


def test_symbolic_pad():
    op = Pad(((0, 0), (N, N + 1)))
    check_symbolic(op, [tensor("f32", 2, "M")], {"N": 3, "M": 4}, Pad(((0, 0), (3, 4))))


def test_concat():
    y = X[:, :1]
    check(Concat(1), [X, y, X], np.concatenate([X, y, X], 1))
    check(Concat(-1), [X], X)
    types = [tensor("f32", "N", 2), tensor("f32", "N", "M"), tensor("f32", "N", "M")]
    check_symbolic(Concat(1), types, {"N": 3, "M": 4})
    assert str(infer(Concat(-1), *types)[0]) == "f32[N, 2*M + 2]"


def test_tile():
    check(Tile((2, 1, 3)), [X], np.tile(X, (2, 1, 3)))
    check(Tile((0, 1, 1)), [X], X[:0])
    check_symbolic(Tile((N, 2)), [tensor("f32", 3, "M")], {"N": 4, "M": 5}, Tile((4, 2)))


def test_shape_of_and_dims():
    check(ShapeOf(), [X], np.array([2, 3, 4]))
    check(ShapeOf(DType.INT32), [X[0, 0, 0]], np.zeros(0, np.int32))
    check(Dims((2, 3), DType.INT32), [], np.array([2, 3], np.int32))
    check(Dims(7), [], np.array(7))
    with pytest.raises(ShapeError, match="symbolic"):
        Dims((N,)).reference()


def test_identity():
    check(Identity(), [X], X)


def test_contents_flow():
    """The chain Shape, Slice, Concat, Gather, Reshape of an exporter, on symbols."""
    graph = Graph()
    x = graph.input("x", tensor("f32", "N", 4, 6))
    shape = graph.add(Cast(DType.INT32), graph.add(ShapeOf(), x))
    head = graph.add(Slice((0,), (1,), (1,)), shape)
    assert head.content.tolist() == [N]
    rest = graph.add(Gather(), shape, graph.constant(np.array([1, -1])))
    assert rest.content.tolist() == [4, 6]
    last = graph.add(Gather(), shape, graph.constant(np.array(-1)))
    assert last.content.shape == ()
    assert last.content[()] == 6
    one = graph.constant(np.array([1], np.int32))
    joined = graph.add(Concat(0), head, graph.add(ew.Mul(), rest, one), one)
    assert joined.content.tolist() == [N, 4, 6, 1]
    square = graph.add(Transpose((1, 0)), graph.add(Reshape((2, 2)), joined))
    assert square.content.tolist() == [[N, 6], [4, 1]]
    assert graph.add(Tile((1, 2)), square).content.tolist() == [[N, 6, N, 6], [4, 1, 4, 1]]
    wide = graph.add(BroadcastTo((2, 2)), head)
    assert graph.add(Identity(), wide).content.tolist() == [[N, N], [N, N]]
    backwards = graph.add(Slice((3,), (4,), (-1,)), joined)
    assert backwards.content.tolist() == [1, 6, 4, N]
    scalar = graph.add(Dims(N * 2))
    assert scalar.shape == ()
    assert scalar.content[()] == 2 * N
    assert graph.add(Dims((N, 3))).content.tolist() == [N, 3]


def test_contents_end_where_they_are_unknown_or_large():
    graph = Graph()
    unknown = graph.input("x", tensor("i64", 4))
    assert graph.add(Reshape((2, 2)), unknown).content is None
    one = graph.constant(np.array([1]))
    assert graph.add(Concat(0), unknown, one).content is None
    assert graph.add(BroadcastTo((5000,)), one).content is None
    assert graph.add(Tile((5000,)), one).content is None
    assert graph.add(Tile((N,)), one).content is None
    assert graph.add(Slice((0,), (N,), (1,)), one).content is None
    many = graph.constant(np.arange(1000))
    assert graph.add(Concat(0), many, many).content is None


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (Reshape((5,)), [tensor("f32", 2, 3)]),
        (Reshape((-1,)), [tensor("f32", 2, 3)]),
        (Reshape((N, 5, N)), [tensor("f32", 2, 3), tensor("f32", 2, 3)]),
        (Transpose((0, 0)), [tensor("f32", 2, 3)]),
        (Transpose((0,)), [tensor("f32", 2, 3)]),
        (BroadcastTo((3,)), [tensor("f32", 2)]),
        (BroadcastTo((3,)), [tensor("f32", 1, 3)]),
        (BroadcastTo((symbol("M"),)), [tensor("f32", "N")]),
        (Slice((0,), (4,), (1,)), [tensor("f32", 3)]),
        (Slice((2,), (2,), (-3,)), [tensor("f32", 3)]),
        (Slice((0,), (1,), (0,)), [tensor("f32", 3)]),
        (Slice((0,), (-1,), (1,)), [tensor("f32", 3)]),
        (Slice((0, 0), (1, 1), (1, 1)), [tensor("f32", 3)]),
        (Pad(((0, 0),), "wrap"), [tensor("f32", 3)]),
        (Pad(((0, -1),)), [tensor("f32", 3)]),
        (Pad(((3, 0),), "reflect"), [tensor("f32", 3)]),
        (Pad(((4, 0),), "symmetric"), [tensor("f32", 3)]),
        (Pad(((1, 0),), "edge"), [tensor("f32", 0)]),
        (Pad(()), [tensor("f32", 3)]),
        (Concat(0), []),
        (Concat(0), [tensor("f32", 2, 3), tensor("f32", 2, 4)]),
        (Concat(0), [tensor("f32", 2), tensor("f32", 2, 4)]),
        (Concat(0), [tensor("f32", 2), tensor("f16", 2)]),
        (Concat(1), [tensor("f32", 2)]),
        (Tile((2,)), [tensor("f32", 2, 3)]),
        (Tile((-1,)), [tensor("f32", 2)]),
        (ShapeOf(DType.FLOAT32), [tensor("f32", 2)]),
        (Dims((1,), DType.BOOL), []),
        (Identity(), []),
    ],
)
def test_refuses(op, types):
    with pytest.raises(ShapeError):
        infer(op, *types)

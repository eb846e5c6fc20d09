"""Reductions, arg max, cumulative sums and top k against TensorFlow and ONNX Runtime."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import ShapeError
from planish.graph import DType, Graph, symbol
from planish.ops import (
    ArgMax,
    ArgMin,
    CumSum,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    ShapeOf,
    TopK,
)

tf = pytest.importorskip("tensorflow")

REDUCTIONS = {
    ReduceSum: tf.reduce_sum,
    ReduceMean: tf.reduce_mean,
    ReduceMax: tf.reduce_max,
    ReduceMin: tf.reduce_min,
    ReduceProd: tf.reduce_prod,
}


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("axes", [(), (0,), (1, -1), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.float16])
def test_like_tensorflow(kind, axes, keepdims, dtype):
    x = (np.random.default_rng(0).normal(size=(3, 4, 5)) * 3).astype(dtype)
    expected = REDUCTIONS[kind](x, axes, keepdims).numpy()
    tolerance = {np.float32: 1e-5, np.float64: 1e-12, np.float16: 1e-2}.get(dtype, 0)
    check(kind(axes, keepdims), [x], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "theirs"), [(ReduceAny, tf.reduce_any), (ReduceAll, tf.reduce_all)]
)
@pytest.mark.parametrize("axes", [(), (1,), (0, 1)])
def test_logical_like_tensorflow(kind, theirs, axes):
    x = np.random.default_rng(0).random((4, 3)) > 0.4
    check(kind(axes, True), [x], theirs(x, axes, True).numpy())
    check(kind(axes), [x], theirs(x, axes).numpy())


def test_of_nothing():
    nothing = np.zeros((2, 0), np.float32)
    assert run(ReduceMax((1,)), nothing)[0].tolist() == [-np.inf] * 2
    assert run(ReduceMin((1,)), nothing.astype(np.int32))[0].tolist() == [2**31 - 1] * 2
    assert run(ReduceSum((1,)), nothing)[0].tolist() == [0, 0]
    assert run(ReduceProd((1,)), nothing)[0].tolist() == [1, 1]
    assert np.isnan(run(ReduceMean((1,)), nothing)[0]).all()


def test_integers_wrap_around_and_halves_do_not_overflow():
    assert run(ReduceSum((0,)), np.full(3, 100, np.int8))[0] == 44
    half = np.full(4096, 1.5, np.float16)
    assert run(ReduceSum((0,)), half)[0] == np.float16(6144)
    assert run(ReduceMean((0,)), half.astype(ml_dtypes.bfloat16))[0] == 1.5


@pytest.mark.parametrize(("kind", "name"), [(ArgMax, "ArgMax"), (ArgMin, "ArgMin")])
@pytest.mark.parametrize("select_last", [False, True])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, -1])
def test_arg_like_onnx(kind, name, select_last, keepdims, axis):
    x = np.random.default_rng(0).integers(0, 3, (4, 6)).astype(np.float32)  # many ties
    expected = onnx_op(
        name, [x], axis=axis, keepdims=int(keepdims), select_last_index=int(select_last)
    )
    check(kind(axis, keepdims, select_last=select_last), [x], expected)


def test_arg_max_like_tensorflow():
    x = np.random.default_rng(0).integers(-9, 9, (3, 5, 2))
    expected = tf.argmax(x, 1, tf.int32).numpy()
    check(ArgMax(1, dtype=DType.INT32), [x], expected)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_cumsum_like_tensorflow(exclusive, reverse, axis, dtype):
    x = (np.random.default_rng(0).normal(size=(4, 5)) * 5).astype(dtype)
    expected = tf.cumsum(x, axis, exclusive, reverse).numpy()
    tolerance = 0 if dtype is np.int32 else 1e-5
    check(CumSum(axis, exclusive, reverse), [x], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("k", [0, 1, 3, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_top_k_like_tensorflow(k, dtype):
    x = np.random.default_rng(0).integers(0, 5, (3, 7)).astype(dtype)  # many ties
    values, indices = tf.math.top_k(x, k)
    check(TopK(k, index_dtype=DType.INT32), [x], [values.numpy(), indices.numpy()])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("largest", [False, True])
def test_top_k_like_onnx(axis, largest):
    x = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
    expected = onnx_op("TopK", [x, np.array([3])], 2, axis=axis, largest=int(largest))
    check(TopK(3, axis, largest), [x], expected)


def test_contents_are_reduced():
    graph = Graph()
    n = symbol("N")
    shape = graph.add(ShapeOf(), graph.input("x", tensor("f32", "N", 2, 3)))
    assert graph.add(ReduceProd((0,)), shape).content[()] == 6 * n
    assert graph.add(ReduceSum((0,), True), shape).content.tolist() == [n + 5]
    assert str(graph.add(ReduceMax((-1,)), shape).content[()]) == "max(max(N, 2), 3)"
    assert str(graph.add(ReduceMin((0,)), shape).content[()]) == "min(N, 2)"
    assert graph.add(ReduceMean((0,)), shape).content is None
    matrix = graph.constant(np.arange(6).reshape(2, 3))
    assert graph.add(ReduceSum((0, 1)), matrix).content[()] == 15
    assert graph.add(ReduceSum((1,)), matrix).content.tolist() == [3, 12]


@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
    st.sets(st.integers(0, 2)),
    st.booleans(),
)
def test_symbols(sizes, axes, keepdims):
    type = tensor("f32", "A", "B", "C")
    bindings = dict(zip("ABC", sizes, strict=True))
    op = ReduceSum(tuple(axes), keepdims)
    check_symbolic(op, [type], bindings)
    run(op, np.ones(type.bind(bindings), np.float32))


def test_symbolic_top_k():
    op, bound = TopK(symbol("K"), 0), TopK(2, 0)
    check_symbolic(op, [tensor("f32", "N", 2)], {"N": 5, "K": 2}, bound)
    with pytest.raises(ShapeError, match="symbolic"):
        op.reference(np.ones((3, 2), np.float32))


@pytest.mark.parametrize(
    ("op", "type"),
    [
        (ReduceSum((2,)), tensor("f32", 2, 3)),
        (ReduceSum((0, -2)), tensor("f32", 2, 3)),
        (ReduceMax((0,)), tensor("bool", 2)),
        (ReduceAny((0,)), tensor("f32", 2)),
        (ArgMax(1), tensor("f32", 2, 0)),
        (ArgMax(0, dtype=DType.FLOAT32), tensor("f32", 2)),
        (TopK(4), tensor("f32", 3)),
        (CumSum(1), tensor("f32", 3)),
    ],
)
def test_refuses(op, type):
    with pytest.raises(ShapeError):
        infer(op, type)

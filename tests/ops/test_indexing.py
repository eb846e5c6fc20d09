"""Gather, scatter and one-hot against TensorFlow and ONNX Runtime."""

import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import InputError, ShapeError
from planish.graph import Graph, symbol
from planish.ops import Gather, GatherNd, OneHot, ScatterNd, ShapeOf

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gather_like_onnx(axis, shape, dtype):
    size = DATA.shape[axis]
    indices = RNG.integers(-size, size, shape).astype(dtype)
    check(Gather(axis), [DATA, indices], onnx_op("Gather", [DATA, indices], axis=axis))


@pytest.mark.parametrize(("axis", "batch_dims"), [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)])
def test_gather_in_batches_like_tensorflow(axis, batch_dims):
    indices = RNG.integers(0, DATA.shape[axis], (*DATA.shape[:batch_dims], 2, 3))
    expected = tf.gather(DATA, indices, axis=axis, batch_dims=batch_dims).numpy()
    check(Gather(axis, batch_dims), [DATA, indices], expected)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_gather_nd_like_tensorflow(depth, batch_dims):
    sizes = DATA.shape[batch_dims : batch_dims + depth]
    places = (*DATA.shape[:batch_dims], 2, 3)
    indices = np.stack([RNG.integers(0, n, places) for n in sizes], -1) if depth else None
    indices = np.zeros((*places, 0), np.int64) if indices is None else indices
    expected = tf.gather_nd(DATA, indices, batch_dims=batch_dims).numpy()
    check(GatherNd(batch_dims), [DATA, indices], expected)


def test_gather_nd_counts_negative_indices_from_the_end():
    indices = np.array([[0, -1], [-3, 2]])
    check(GatherNd(), [DATA, indices], onnx_op("GatherND", [DATA, indices]))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_scatter_nd_like_onnx(reduction, depth):
    sizes = DATA.shape[:depth]
    if reduction == "none":  # equal indices have no defined winner there
        flat = RNG.choice(np.prod(sizes), 3, replace=False)
        indices = np.stack(np.unravel_index(flat, sizes), -1)
    else:
        indices = np.stack([RNG.integers(-n, n, 4) for n in sizes], -1)
    updates = RNG.normal(size=(len(indices), *DATA.shape[depth:])).astype(np.float32)
    expected = onnx_op("ScatterND", [DATA, indices, updates], reduction=reduction)
    check(ScatterNd(reduction), [DATA, indices, updates], expected, rtol=1e-5, atol=1e-6)


def test_scatter_nd_last_update_wins():
    (output,) = run(
        ScatterNd(), np.zeros(2, np.int32), np.array([[1], [1]]), np.array([5, 6], np.int32)
    )
    assert output.tolist() == [0, 6]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_])
def test_one_hot_like_tensorflow(axis, dtype):
    indices = RNG.integers(-1, 5, (3, 4))
    on, off = np.array(1, dtype), np.array(0, dtype)
    expected = tf.one_hot(indices, 4, on, off, axis=axis).numpy()
    check(OneHot(4, axis), [indices, on, off], expected)


def test_out_of_range():
    with pytest.raises(InputError, match="index 3 for a dimension of 3"):
        Gather().reference(DATA, np.array([0, 3]))
    with pytest.raises(InputError, match="index -5 for a dimension of 4"):
        GatherNd().reference(DATA, np.array([[0, -5]]))


def test_symbols():
    bindings = {"N": 3, "M": 4, "I": 2}
    data, indices = tensor("f32", "N", "M", 5), tensor("i64", "N", "I")
    check_symbolic(Gather(1), [data, indices], bindings)
    check_symbolic(Gather(2, 1), [data, indices], bindings)
    check_symbolic(GatherNd(1), [data, tensor("i64", "N", "I", 2)], bindings)
    updates = tensor("f32", "I", "M", 5)
    check_symbolic(ScatterNd(), [data, tensor("i64", "I", 1), updates], bindings)
    scalar = tensor("f32")
    check_symbolic(OneHot(symbol("M"), 1), [indices, scalar, scalar], bindings, OneHot(4, 1))


def test_contents():
    graph = Graph()
    shape = graph.add(ShapeOf(), graph.input("x", tensor("f32", "N", 3)))
    matrix = graph.constant(np.arange(6).reshape(2, 3))
    picked = graph.add(Gather(1), matrix, graph.constant(np.array([2, -3])))
    assert picked.content.tolist() == [[2, 0], [5, 3]]
    unknown = graph.input("i", tensor("i64", 1))
    assert graph.add(Gather(), shape, unknown).content is None
    assert graph.add(Gather(), shape, graph.constant(np.array([7]))).content is None
    assert graph.add(Gather(), shape, shape).content is None


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (Gather(2), [tensor("f32", 3, 4), tensor("i64", 2)]),
        (Gather(0, 1), [tensor("f32", 3, 4), tensor("i64", 3)]),
        (Gather(1, 1), [tensor("f32", 3, 4), tensor("i64", 2)]),
        (Gather(), [tensor("f32", 3, 4), tensor("f32", 2)]),
        (GatherNd(), [tensor("f32", 3, 4), tensor("i64", 2, 3)]),
        (GatherNd(), [tensor("f32", 3, 4), tensor("i64", 2, "N")]),
        (GatherNd(), [tensor("f32", 3, 4), tensor("i64")]),
        (GatherNd(1), [tensor("f32", 3, 4), tensor("i64", 2, 1)]),
        (ScatterNd(), [tensor("f32", 3, 4), tensor("i64", 2, 1), tensor("f32", 2, 3)]),
        (ScatterNd(), [tensor("f32", 3), tensor("i64", 2, 1), tensor("i32", 2)]),
        (ScatterNd("mean"), [tensor("f32", 3), tensor("i64", 2, 1), tensor("f32", 2)]),
        (OneHot(3), [tensor("i64", 2), tensor("f32", 1), tensor("f32")]),
        (OneHot(3, 2), [tensor("i64", 2), tensor("f32"), tensor("f32")]),
        (OneHot(-1), [tensor("i64", 2), tensor("f32"), tensor("f32")]),
    ],
)
def test_refuses(op, types):
    with pytest.raises(ShapeError):
        infer(op, *types)

"""Ops that count, against NumPy, TensorFlow and ONNX Runtime; and which ops work row by row."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.one_op import infer, run, tensor
from planish.errors import ShapeError
from planish.graph import DType, Graph, TensorType, symbol
from planish.graph.interpret import bind
from planish.ops import (
    Concat,
    CumSum,
    Gather,
    GatherNd,
    MatMul,
    NonZero,
    Pad,
    ReduceSum,
    Reshape,
    Select,
    SelectBoxes,
    Slice,
    Softmax,
    Tile,
    Transpose,
    Unique,
    ew,
)
from planish.ops.row_wise import is_row_wise


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (0, 2), (2, 3, 2)])
def test_nonzero_like_tensorflow(share, shape) -> None:
    tf = pytest.importorskip("tensorflow")
    x = np.random.default_rng(1).random(shape) < share
    rows, count = run(NonZero(), x)
    assert rows.shape == (x.size, x.ndim)
    np.testing.assert_array_equal(rows[:count], tf.where(x))
    assert not rows[count:].any()


@pytest.mark.parametrize("in_order", [True, False])
def test_unique_like_onnx(in_order) -> None:
    pytest.importorskip("onnxruntime")
    from helpers.onnx_op import onnx_op

    x = np.random.default_rng(2).integers(0, 9, 30)
    *results, count = run(Unique(in_order), x)
    expected = onnx_op("Unique", [x], 4, sorted=int(in_order))
    assert len(expected[0]) == count
    for i, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        np.testing.assert_array_equal(result if i == 2 else result[:count], wanted)


@pytest.mark.parametrize("limit", [0, 3, 50])
def test_selection_like_onnx(limit) -> None:
    pytest.importorskip("onnxruntime")
    from helpers.onnx_op import onnx_op

    rng = np.random.default_rng(3)
    boxes, scores = rng.random((2, 20, 4)).astype("f"), rng.random((2, 20, 3)).astype("f")
    rows, count = run(SelectBoxes(limit, 0.4, 0.5), boxes[:, :, None], scores)
    assert rows.shape == (2 * 3 * min(limit, 20), 3)
    arguments = [np.int64([limit]), np.float32([0.4]), np.float32([0.5])]
    (expected,) = onnx_op("NonMaxSuppression", [boxes, scores.transpose(0, 2, 1), *arguments])
    np.testing.assert_array_equal(rows[:count], expected)


def test_types() -> None:
    n = symbol("N")
    rows, count = infer(NonZero(), tensor("f32", n, 4))
    assert str(rows) == "i64[4*N, 2]"
    assert str(count) == "i64[]"
    rows, _ = infer(SelectBoxes(9, 0.5, 0.5), tensor("f32", 2, n, 1, 4), tensor("f32", 2, n, 3))
    assert rows.bind({"N": 5}) == (30, 3)
    assert rows.bind({"N": 100}) == (54, 3)
    for op, shape in ((NonZero(), ()), (Unique(), (2, 3))):
        with pytest.raises(ShapeError):
            infer(op, tensor("f32", *shape))


n = symbol("n")

ROW_WISE = [
    (ew.Add(), [(n, 3), (3,)], True),
    (ew.Mul(), [(n, 1), (1, n)], True),
    (Transpose((1, 0)), [(n, 3)], True),
    (Reshape((n, 3, 2)), [(n, 6)], True),
    (Reshape((n * 6,)), [(n, 6)], True),
    (Reshape((2, n * 3)), [(2, n, 3)], True),
    (Reshape((n * 2,)), [(2, n)], False),
    (Slice((0, 1), (n, 2), (1, 1)), [(n, 3)], True),
    (Slice((0, 0), (n, 3), (1, 1)), [(8, 3)], True),
    (Slice((0, 0), (n, 3), (1, 1)), [(7, 3)], False),
    (Slice((1, 0), (n, 3), (1, 1)), [(9, 3)], False),
    (MatMul(), [(n, 3), (3, 4)], True),
    (MatMul(), [(2, 3), (3, n)], True),
    (MatMul(), [(2, n), (n, 4)], False),
    (MatMul(transpose_a=True), [(3, n), (3, 4)], True),
    (ReduceSum((1,), False), [(n, 3)], True),
    (ReduceSum((0,), False), [(n, 3)], False),
    (Softmax(1), [(n, 3)], True),
    (Softmax(0), [(n, 3)], False),
    (CumSum(0), [(n, 3)], True),
    (CumSum(0, reverse=True), [(n, 3)], False),
    (Concat(1), [(n, 3), (n, 2)], True),
    (Concat(0), [(n, 3), (2, 3)], False),
    (Pad(((0, 0), (1, 2))), [(n, 3)], True),
    (Pad(((1, 0), (0, 0))), [(n, 3)], False),
    (Pad(((0, 10 - n), (0, 0))), [(n, 3)], False),
    (Tile((1, 2)), [(n, 3)], True),
    (Tile((2, 1)), [(n, 3)], False),
    (Gather(0), [(5, 3), (n,)], True),
    (Gather(1), [(n, 5), (4,)], True),
    (Gather(0), [(n, 3), (4,)], False),
    (GatherNd(), [(5, 3), (n, 1)], True),
    (GatherNd(), [(n, 3), (4, 1)], False),
    (NonZero(), [(n, 3)], False),
]


@pytest.mark.parametrize(("op", "shapes", "expected"), ROW_WISE, ids=str)
def test_row_wise(op, shapes, expected) -> None:
    """What is called row by row gives the same first rows, however many there are."""
    graph = Graph()
    indexing = isinstance(op, Gather | GatherNd)
    values = [
        graph.input(f"x{i}", TensorType(s, DType.INT64 if indexing and i else DType.FLOAT32))
        for i, s in enumerate(shapes)
    ]
    node = graph.add_node(op, values)
    assert is_row_wise(node, "n", 8) is expected
    assert is_row_wise(node, "other", 8)
    if not expected:
        return
    rng = np.random.default_rng(5)
    large = [
        (
            rng.integers(0, 3, v.type.bind({"n": 8}))
            if v.dtype is DType.INT64
            else rng.standard_normal(v.type.bind({"n": 8})).astype(np.float32)
        )
        for v in values
    ]
    small = [
        a[tuple(map(slice, v.type.bind({"n": 5})))] for a, v in zip(large, values, strict=True)
    ]
    (padded,) = bind(op, {"n": 8}).reference(*large)
    (exact,) = bind(op, {"n": 5}).reference(*small)
    cut = padded[tuple(map(slice, node.output.type.bind({"n": 5})))]
    np.testing.assert_allclose(cut, exact, rtol=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(8, True), (10, True), (11, False)])
def test_filling_up_is_row_wise_where_a_select_discards_the_rest(limit, expected) -> None:
    graph = Graph()
    x = graph.input("x", TensorType((n, 3), DType.FLOAT32))
    inside = graph.input("inside", TensorType((10, 1), DType.BOOL))
    filled = graph.add(Pad(((0, 10 - n), (0, 0))), x)
    graph.add(Select(), inside, filled, graph.constant(np.float32(0)))
    assert is_row_wise(filled.producer, "n", limit) is expected
    graph.add(ew.Neg(), filled)
    assert not is_row_wise(filled.producer, "n", limit)


@pytest.mark.parametrize("wrong", [dict(rows=2 * n), dict(mode="edge")], ids=str)
def test_other_padding_is_not_row_wise_whatever_selects(wrong) -> None:
    rows = wrong.get("rows", n)
    graph = Graph()
    x = graph.input("x", TensorType((rows, 3), DType.FLOAT32))
    inside = graph.input("inside", TensorType((20, 1), DType.BOOL))
    filled = graph.add(Pad(((0, 20 - rows), (0, 0)), wrong.get("mode", "constant")), x)
    graph.add(Select(), inside, filled, graph.constant(np.float32(0)))
    assert not is_row_wise(filled.producer, "n", 8)

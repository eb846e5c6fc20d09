"""Matrix products against TensorFlow."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.one_op import check, check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.ops import MatMul

tf = pytest.importorskip("tensorflow")


def _operands(rng, batch_a, batch_b, m, k, n, transpose_a, transpose_b, dtype):
    a = rng.normal(size=(*batch_a, *((k, m) if transpose_a else (m, k)))) * 3
    b = rng.normal(size=(*batch_b, *((n, k) if transpose_b else (k, n)))) * 3
    return a.astype(dtype), b.astype(dtype)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(
    ("batch_a", "batch_b"), [((), ()), ((2,), (2,)), ((3, 1), (4,)), ((), (5,))]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.float16])
def test_like_tensorflow(transpose_a, transpose_b, batch_a, batch_b, dtype):
    a, b = _operands(
        np.random.default_rng(0), batch_a, batch_b, 3, 7, 5, transpose_a, transpose_b, dtype
    )
    expected = tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b).numpy()
    tolerance = {np.float32: 1e-5, np.float64: 1e-12, np.float16: 2e-3}.get(dtype, 0)
    op = MatMul(transpose_a, transpose_b)
    check(op, [a, b], expected, rtol=tolerance, atol=tolerance * 20)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_rounded_once(dtype):
    a, b = _operands(np.random.default_rng(1), (), (), 8, 300, 4, False, False, dtype)
    (output,) = run(MatMul(), a, b)
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    expected = exact.astype(dtype).astype(np.float32)
    step = np.abs(expected) * 2.0 ** (-10 if dtype is np.float16 else -7)
    assert np.all(np.abs(output.astype(np.float32) - expected) <= step + 1e-3)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_integers_wrap_around(dtype):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(2)
    a = rng.integers(limits.min, limits.max, (4, 9), dtype, endpoint=True)
    b = rng.integers(limits.min, limits.max, (9, 3), dtype, endpoint=True)
    exact = a.astype(object) @ b.astype(object)
    width = 8 * np.dtype(dtype).itemsize
    expected = np.array([int(v) % 2**width for v in exact.flat], np.uint64).astype(dtype)
    check(MatMul(), [a, b], expected.reshape(exact.shape))


@given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 4), st.integers(1, 3), st.booleans())
def test_symbols(m, k, n, batch, transposed):
    op = MatMul(False, transposed)
    b = tensor("f32", "N", "K") if transposed else tensor("f32", "K", "N")
    bindings = {"M": m, "K": k, "N": n, "B": batch}
    check_symbolic(op, [tensor("f32", "B", 1, "M", "K"), b], bindings)
    run(op, *(np.ones(t.bind(bindings), np.float32) for t in (tensor("f32", "M", "K"), b)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (tensor("f32", 2, 3), tensor("f32", 4, 2)),
        (tensor("f32", 2, "K"), tensor("f32", "L", 2)),
        (tensor("f32", 2, 3), tensor("f16", 3, 2)),
        (tensor("f32", 3), tensor("f32", 3, 2)),
        (tensor("bool", 2, 3), tensor("bool", 3, 2)),
        (tensor("f32", 2, 2, 3), tensor("f32", 3, 3, 2)),
    ],
)
def test_refuses(a, b):
    with pytest.raises(ShapeError):
        infer(MatMul(), a, b)

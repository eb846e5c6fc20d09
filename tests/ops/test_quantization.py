"""Products of 8-bit integers against NumPy's arithmetic on wide integers."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.graph import DType
from planish.ops import Conv, ConvInteger, MatMulInteger

rng = np.random.default_rng(4)


def integers(dtype: type, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("a_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("b_dtype", [np.int8, np.uint8])
def test_matrices(a_dtype, b_dtype):
    a, b = integers(a_dtype, 3, 5, 7), integers(b_dtype, 7, 4)
    a_zero, b_zero = integers(a_dtype, 5, 1), integers(b_dtype, 4)
    wide = (a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero)
    check(MatMulInteger(), (a, b, a_zero, b_zero), wide.astype(np.int32))
    swapped = MatMulInteger(True, True)
    inputs = (np.swapaxes(a, 1, 2), b.T, a_zero, b_zero)
    np.testing.assert_array_equal(run(swapped, *inputs)[0], wide)


def test_convolution_pads_with_the_zero_point():
    x, w = integers(np.uint8, 2, 5, 6, 4), integers(np.int8, 3, 3, 2, 6)
    zero, zeros = integers(np.uint8)[()], integers(np.int8, 6)
    op = ConvInteger((2, 1), ((1, 1), (0, 2)), (1, 2), 2)
    plain = Conv(op.strides, op.padding, op.dilations, op.groups)
    shifted = x.astype(np.int32) - zero, w.astype(np.int32) - zeros
    check(op, (x, w, zero, zeros), plain.reference(*shifted))


def test_symbolic_shapes():
    types = [tensor("u8", "N", 5, 7), tensor("i8", 7, 4), tensor("u8"), tensor("i8", 4)]
    check_symbolic(MatMulInteger(), types, {"N": 3})
    conv = ConvInteger((1,), ((1, 1),), (1,))
    types = [tensor("u8", "N", "W", 3), tensor("u8", 3, 3, 5), tensor("u8"), tensor("u8")]
    check_symbolic(conv, types, {"N": 2, "W": 9})


@pytest.mark.parametrize(
    "types",
    [
        (tensor("i32", 3, 4), tensor("i8", 4, 5), tensor("i32"), tensor("i8")),
        (tensor("i8", 3, 4), tensor("i8", 4, 5), tensor("u8"), tensor("i8")),
        (tensor("i8", 3, 4), tensor("i8", 4, 5), tensor("i8", 4), tensor("i8")),
        (tensor("i8", 3, 4), tensor("i8", 4, 5), tensor("i8"), tensor("i8", 3)),
        (tensor("i8", 3, 4), tensor("i8", 5, 5), tensor("i8"), tensor("i8")),
        (tensor("i8", 3, 4), tensor("i8", 4, 5)),
    ],
)
def test_what_does_not_fit_is_refused(types):
    with pytest.raises(ShapeError, match="mat_mul"):
        infer(MatMulInteger(), *types)


def test_result_is_int32():
    types = tensor("u8", 2, 3), tensor("u8", 3, 4), tensor("u8"), tensor("u8")
    (result,) = infer(MatMulInteger(), *types)
    assert result.dtype is DType.INT32

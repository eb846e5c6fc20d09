"""Codes of FP8 against their definition, and products of codes."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.ops import DecodeFloat8, EncodeFloat8, MatMulFloat8
from planish.ops.float8 import decode, encode

rng = np.random.default_rng(6)

NUMBERS = np.array(
    [m * 2.0**-9 for m in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
)
"""What codes 0 to 126 stand for, by the format's definition."""


def test_codes_stand_for_numbers() -> None:
    codes = np.arange(127).astype(np.int8)
    np.testing.assert_array_equal(decode(codes), NUMBERS)
    np.testing.assert_array_equal(decode((codes.view(np.uint8) | 0x80).view(np.int8)), -NUMBERS)
    assert np.isnan(decode(np.array([0x7F, -1], np.int8))).all()
    np.testing.assert_array_equal(encode(NUMBERS), codes)


def test_numbers_become_the_nearest_code() -> None:
    x = np.concatenate([rng.standard_normal(4000) * s for s in (1e-3, 0.1, 10, 300)])
    x = x.astype(np.float32)
    inside = np.clip(x, -448, 448)
    apart = np.abs(np.concatenate([-NUMBERS, NUMBERS])[None] - inside[:, None])
    np.testing.assert_array_equal(np.abs(decode(encode(x)) - inside), apart.min(1))
    middle = (NUMBERS[:-1] + NUMBERS[1:]) / 2
    even = np.arange(126) + np.arange(126) % 2
    np.testing.assert_array_equal(encode(middle), even)


def test_scales() -> None:
    x = (rng.standard_normal((5, 7)) * 20).astype(np.float32)
    x[0, :4] = [np.inf, -np.inf, 1e30, 0]
    scale = np.float32(0.25)
    check(EncodeFloat8(), (x, scale), encode(x / scale))
    assert np.isnan(decode(run(EncodeFloat8(), np.float32(np.nan), scale)[0]))
    codes = encode(x)
    check(DecodeFloat8(), (codes, scale), decode(codes) * scale)
    check(DecodeFloat8(), (x, scale), x * scale)


@pytest.mark.parametrize("swapped", [False, True])
def test_products(swapped) -> None:
    a, b = encode(rng.standard_normal((3, 5, 7))), encode(rng.standard_normal((7, 4)))
    wide = decode(a).astype(np.float64) @ decode(b).astype(np.float64)
    inputs = (np.swapaxes(a, 1, 2), b.T) if swapped else (a, b)
    (y,) = run(MatMulFloat8(swapped, swapped), *inputs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, wide, rtol=1e-6, atol=1e-6)


def test_symbolic_shapes() -> None:
    check_symbolic(MatMulFloat8(), [tensor("i8", "N", 5, 7), tensor("i8", 7, 4)], {"N": 3})


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (MatMulFloat8(), (tensor("u8", 3, 4), tensor("i8", 4, 5))),
        (MatMulFloat8(), (tensor("i8", 3, 4), tensor("i8", 5, 5))),
        (MatMulFloat8(), (tensor("i8", 3, 4),)),
        (EncodeFloat8(), (tensor("f16", 3), tensor("f32"))),
        (DecodeFloat8(), (tensor("u8", 3), tensor("f32"))),
    ],
    ids=str,
)
def test_what_does_not_fit(op, types) -> None:
    with pytest.raises(ShapeError):
        infer(op, *types)

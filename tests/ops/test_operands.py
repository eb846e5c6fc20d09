"""What the ops share: checks, concrete attributes, wide arithmetic."""

import ml_dtypes
import numpy as np
import pytest

from planish.errors import ShapeError
from planish.graph import symbol
from planish.ops import Identity
from planish.ops.operands import concrete, content_array, matmul, normalize_axes, widen


def test_concrete():
    assert concrete(Identity(), (2, 3)) == (2, 3)
    with pytest.raises(ShapeError, match="its dimension 2\\*N is symbolic"):
        concrete(Identity(), (2, symbol("N") * 2))


def test_normalize_axes():
    assert normalize_axes((-1, 0), 3) == (0, 2)
    with pytest.raises(ShapeError, match="twice"):
        normalize_axes((0, -3), 3)


def test_widen():
    for dtype, wide in [
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float64, np.float64),
        (np.int8, np.int8),
        (np.bool_, np.bool_),
    ]:
        assert widen(np.zeros(2, dtype)).dtype == wide


def test_matmul_of_large_integers_is_exact():
    """Beyond the 53 bits of float64."""
    a, b = np.full((1, 4), 2**30 + 1, np.int64), np.full((4, 1), 2**30 + 3, np.int64)
    assert matmul(a, b).item() == 4 * (2**30 + 1) * (2**30 + 3)
    assert matmul(np.zeros((2, 0), np.int8), np.zeros((0, 3), np.int8)).tolist() == [[0] * 3] * 2


def test_content_array():
    n = symbol("N")
    assert content_array([n, 2]).tolist() == [n, 2]
    assert content_array([]).shape == (0,)

"""How far arrays are apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planish.cli.deviation import deviation
from planish.errors import InputError


def test_figures() -> None:
    reference = np.array([[1.0, 4.0], [3.0, 2.0]], np.float32)
    found = deviation("y", reference, reference + np.array([[0.5, 0], [0, 2]], np.float32))
    assert found.largest == 2.0
    assert found.relative == 0.5
    assert found.top1 == 0.5
    assert 0.9 < found.cosine < 1


def test_equal_arrays() -> None:
    x = np.array([0.0, np.nan, np.inf])
    found = deviation("y", x, x)
    assert (found.largest, found.relative, found.top1) == (0.0, 0.0, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    assert math.isinf(deviation("y", np.ones(2), np.array([1.0, bad])).relative)
    assert math.isinf(deviation("y", np.array([1.0, bad]), np.ones(2)).relative)


def test_zeros_and_nothing() -> None:
    assert deviation("y", np.zeros(3), np.zeros(3)).cosine == 1.0
    assert deviation("y", np.zeros(3), np.ones(3)).cosine == 0.0
    assert deviation("y", np.zeros((0, 3)), np.zeros((0, 3))).largest == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="another shape"):
        deviation("y", np.zeros(3), np.zeros((3, 1)))

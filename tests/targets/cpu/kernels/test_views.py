"""Strides of views against NumPy's own views."""

from __future__ import annotations

import numpy as np
import pytest

from planish.graph import DType
from planish.targets.base import Layout
from planish.targets.cpu.kernels.views import View, reshaped_strides

SHAPES = [(24,), (4, 6), (2, 3, 4), (6, 1, 4), (2, 2, 6), (8, 3), (1, 24, 1), (2, 12), (3, 2, 2, 2)]


def layout(array: np.ndarray) -> Layout:
    return Layout(array.shape, tuple(s // array.itemsize for s in array.strides))


@pytest.mark.parametrize("before", SHAPES)
@pytest.mark.parametrize("gap", [0, 1, 2])
def test_reshaped_strides(before, gap):
    """The same views as NumPy finds without a copy, and no others."""
    padded = [n + (gap if axis % 2 else 0) for axis, n in enumerate(before)]
    array = np.zeros(padded)[tuple(slice(n) for n in before)]
    for axes in {tuple(range(len(before))), tuple(reversed(range(len(before))))}:
        source = array.transpose(axes)
        for after in SHAPES:
            reshaped = source.reshape(after)
            strides = reshaped_strides(layout(source), after)
            if strides is None:
                assert not np.shares_memory(reshaped, array)
                continue
            assert np.shares_memory(reshaped, array)
            for n, ours, theirs in zip(after, strides, layout(reshaped).strides, strict=True):
                assert n == 1 or ours == theirs


def test_reshape_of_nothing_and_of_scalars():
    assert reshaped_strides(Layout((0, 3), (3, 1)), (3, 0)) == (1, 1)
    assert reshaped_strides(Layout((1, 1), (7, 7)), ()) == ()
    assert View(None, DType.INT8, (1,), (5,)).reshape(()) == View(None, DType.INT8, (), ())


def test_moves():
    array = np.arange(60).reshape(3, 4, 5)
    view = View(None, DType.INT64, array.shape, layout(array).strides)

    def elements(view: View) -> np.ndarray:
        flat = array.reshape(-1)[view.offset :]
        return np.lib.stride_tricks.as_strided(flat, view.shape, [8 * s for s in view.strides])

    np.testing.assert_array_equal(elements(view.transpose((2, 0, 1))), array.transpose(2, 0, 1))
    sliced = view.slice((0, 3, 1), (3, 2, 2), (1, -2, 3))
    np.testing.assert_array_equal(elements(sliced), array[:, 3::-2, 1::3])
    split = view.split([(3,), (2, 2), (1, 5)])
    np.testing.assert_array_equal(elements(split), array.reshape(3, 2, 2, 1, 5))
    row = View(None, DType.INT64, (4, 1), (5, 1))
    np.testing.assert_array_equal(
        elements(row.broadcast((2, 4, 3))), np.broadcast_to(array[0, :, :1], (2, 4, 3))
    )

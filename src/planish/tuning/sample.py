"""Random data for the inputs of a task that is measured, without making all of it on the host.

A tensor's memory, gaps included, is filled with a period of random elements again and again. What
the tensor then holds follows by its layout, so that any rows of it can be had for a reference while
the whole exists only where kernels read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from planish.targets.base import Layout

PERIOD = (1 << 22) - 3
"""Elements drawn at most. No power of two, or rows of large tensors would be equal."""

APART = 7919
"""Elements by which the periods of two inputs are shifted."""


class Sample:
    """What an input holds.

    Parameters
    ----------
    layout : Layout
        Of the input, for concrete shapes.
    dtype : numpy.dtype
        Of its elements: floats are normally distributed, others are from 0 to `greatest`.
    number : int
        The input's: different inputs hold different data.
    levels : bool
        Whether bytes are levels of quantized tensors, and take all values.
    codes : bool
        Whether bytes are codes of FP8, of numbers below 2.
    greatest : int
        1 suits any op, but for indices into a dimension of 1, which are 0.
    """

    def __init__(
        self,
        layout: Layout,
        dtype: np.dtype,
        number: int,
        levels: bool = False,
        greatest: int = 1,
        codes: bool = False,
    ) -> None:
        self._layout = layout
        reach = _reach(layout.shape, layout.strides)
        start = APART * number % PERIOD
        drawn = _drawn(dtype, levels or codes, greatest)[start:]
        if codes:
            drawn = drawn & np.int8(~0x40)  # the first bit of the exponent
        self.period = np.resize(drawn, min(reach, PERIOD))

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self._layout.shape)

    def __len__(self) -> int:
        return self._layout.shape[0]

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self._part(0, self._layout.shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Some rows of the first axis, by ascending numbers."""
        step, *_ = self._layout.strides
        parts = [
            self._part(first * step, (count, *self._layout.shape[1:]))
            for first, count in _runs(rows)
        ]
        return np.concatenate(parts)

    def _part(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """An array of the tensor's strides that begins at an element of its memory."""
        strides = self._layout.strides
        reach = _reach(shape, strides)
        start %= max(len(self.period), 1)
        head = self.period[start : start + reach]
        memory = np.concatenate([head, np.resize(self.period, reach - len(head))])
        return as_strided(memory, shape, [s * memory.itemsize for s in strides])


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from a tensor's first one to its last one."""
    if 0 in shape:
        return 0
    return 1 + sum(s * (n - 1) for n, s in zip(shape, strides, strict=True))


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ascending numbers as runs: the first one and how many."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        yield int(run[0]), len(run)


@lru_cache(maxsize=4)
def _drawn(dtype: np.dtype, levels: bool, greatest: int) -> np.ndarray:
    """The random elements that all inputs of a dtype take theirs from."""
    random = np.random.default_rng(0)
    if dtype.kind in "fV":
        return random.standard_normal(PERIOD, np.float32).astype(dtype)
    if levels and dtype.kind in "iu":
        info = np.iinfo(dtype)
        return random.integers(info.min, info.max + 1, PERIOD).astype(dtype)
    return random.integers(0, greatest + 1, PERIOD).astype(dtype)

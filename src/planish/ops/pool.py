"""Pooling over windows of the spatial dimensions; activations are channels-last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require, window_output
from planish.ops.operands import expect_count, expect_float, expect_number, widen

Padding = tuple[tuple[int, int], ...]
"""Positions before and after each spatial dimension."""


@dataclass(frozen=True)
class MaxPool(Op):
    """Largest element of each window of ``[N, *spatial, C]``; padding never wins.

    A window that holds nothing but padding gives ``-inf``, or the lowest integer.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding
    dilations: tuple[int, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_number(self, *inputs)
        return [_pooled(self, inputs[0], self.window, self.strides, self.padding, self.dilations)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        dtype = DType.of(x.dtype)
        lowest = -np.inf if dtype.is_float else np.iinfo(x.dtype).min
        wide = widen(x)
        padded = np.pad(wide, ((0, 0), *self.padding, (0, 0)), constant_values=lowest)
        size = _output_size(x, self.window, self.strides, self.padding, self.dilations)
        output = np.full((x.shape[0], *size, x.shape[-1]), lowest, wide.dtype)
        for patch in _patches(padded, size, self.window, self.strides, self.dilations):
            np.maximum(output, patch, out=output)
        return [output.astype(x.dtype, copy=False)]


@dataclass(frozen=True)
class AvgPool(Op):
    """Mean of each window of ``[N, *spatial, C]``.

    Divides by the number of real elements under the window, or with `count_include_pad` by the
    window's size. A window that holds nothing but padding gives 0.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding
    count_include_pad: bool = False

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_float(self, *inputs)
        ones = (1,) * len(self.window)
        return [_pooled(self, inputs[0], self.window, self.strides, self.padding, ones)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        ones = (1,) * len(self.window)
        size = _output_size(x, self.window, self.strides, self.padding, ones)
        wide = widen(x)
        padded = np.pad(wide, ((0, 0), *self.padding, (0, 0)))
        total = np.zeros((x.shape[0], *size, x.shape[-1]), wide.dtype)
        for patch in _patches(padded, size, self.window, self.strides, ones):
            total += patch
        count = self.counts(x.shape[1:-1], size).astype(wide.dtype)
        return [(total / count[None, ..., None]).astype(x.dtype, copy=False)]

    def counts(self, spatial: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """What the sum at each output position is divided by.

        Parameters
        ----------
        spatial : sequence of int
            The spatial dimensions of the input.
        size : sequence of int
            The spatial dimensions of the output.

        Returns
        -------
        np.ndarray
            int64 of shape `size`, at least 1 everywhere.
        """
        count = np.ones((), np.int64)
        for extent, positions, window, stride, (before, _) in zip(
            spatial, size, self.window, self.strides, self.padding, strict=True
        ):
            start = np.arange(positions) * stride - before
            inside = np.minimum(start + window, extent) - np.maximum(start, 0)
            along = np.full(positions, window) if self.count_include_pad else inside
            count = count[..., None] * np.maximum(along, 0)
        return np.maximum(count, 1)


def _pooled(
    op: Op,
    x: Value,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Padding,
    dilations: tuple[int, ...],
) -> TensorType:
    spatial = len(window)
    require(
        len(strides) == len(padding) == len(dilations) == spatial,
        f"{op.name} over {spatial} dimensions needs a stride, padding and dilation for each",
    )
    require(x.type.rank == spatial + 2, f"{op.name} over {spatial} dimensions was given {x.type}")
    require(
        min((*window, *strides, *dilations), default=1) > 0,
        f"{op.name} needs positive windows, strides and dilations",
    )
    require(
        all(p >= 0 for pair in padding for p in pair), f"{op.name} cannot pad by negative amounts"
    )
    size = [
        window_output(x.shape[1 + i], window[i], strides[i], dilations[i], *padding[i])
        for i in range(spatial)
    ]
    return TensorType((x.shape[0], *size, x.shape[-1]), x.dtype)


def _output_size(
    x: np.ndarray,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Padding,
    dilations: tuple[int, ...],
) -> list[int]:
    return [
        int(window_output(x.shape[1 + i], w, s, d, *p))  # type: ignore[arg-type]
        for i, (w, s, d, p) in enumerate(zip(window, strides, dilations, padding, strict=True))
    ]


def _patches(
    padded: np.ndarray,
    size: Sequence[int],
    window: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Iterator[np.ndarray]:
    """For each place in the window, what all windows hold there."""
    if 0 in size:
        return
    for tap in itertools.product(*(range(n) for n in window)):
        rows = [
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, size, strides, strict=True)
        ]
        index = (slice(None), *rows)
        yield padded[index]

"""Pooling over windows of the spatial dimensions; activations are channels-last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require, window_output
from planish.ops.conv import Padding, concrete_padding
from planish.ops.operands import expect_count, expect_float, expect_number, widen


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
        around = ((0, 0), *concrete_padding(self, self.padding), (0, 0))
        padded = np.pad(wide, around, constant_values=lowest)
        size = _output_size(x, self.window, self.strides, self.padding, self.dilations)
        output = np.full((x.shape[0], *size, x.shape[-1]), lowest, wide.dtype)
        for patch in _patches(padded, size, self.window, self.strides, self.dilations):
            np.maximum(output, patch, out=output)
        return [output.astype(x.dtype, copy=False)]


@dataclass(frozen=True)
class MaxPoolIndices(Op):
    """As `MaxPool`, and where each maximum stands: outputs the maxima, and int64 indices.

    An index counts the elements of an image's spatial dimensions in row-major order. Of equal
    maxima the first counts; NaN is none. Where nothing exceeds the lowest number, it is the index
    of the window's first element inside the image, or 0.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding
    dilations: tuple[int, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_number(self, *inputs)
        pooled = _pooled(self, inputs[0], self.window, self.strides, self.padding, self.dilations)
        return [pooled, TensorType(pooled.shape, DType.INT64)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        extents, spatial = x.shape[1:-1], len(self.window)
        lowest = -np.inf if DType.of(x.dtype).is_float else np.iinfo(x.dtype).min
        wide = widen(x)
        size = _output_size(x, self.window, self.strides, self.padding, self.dilations)
        values = np.full((x.shape[0], *size, x.shape[-1]), lowest, wide.dtype)
        indices = np.full(values.shape, -1, np.int64)
        before = [pair[0] for pair in concrete_padding(self, self.padding)]
        for tap in itertools.product(*(range(n) for n in self.window)) if values.size else ():
            flat: np.ndarray = np.zeros((1,) * spatial, np.int64)
            inside: np.ndarray = np.ones((1,) * spatial, bool)
            places: list[Any] = [slice(None)]
            for axis, t in enumerate(tap):
                place: np.ndarray = np.arange(size[axis]) * self.strides[axis] - before[axis]
                place = place + t * self.dilations[axis]
                shape = (-1, *(1,) * (spatial - 1 - axis))
                valid = (place >= 0) & (place < extents[axis])
                inside = inside & valid.reshape(shape)
                place = np.clip(place, 0, max(extents[axis] - 1, 0)).reshape(shape)
                flat = flat * extents[axis] + place
                places.append(place)
            here, valid = wide[tuple(places)], inside[..., None]
            number = np.broadcast_to(flat[..., None], values.shape)
            indices = np.where(valid & (indices < 0), number, indices)
            better = valid & (here > values)
            values = np.where(better, here, values)
            indices = np.where(better, number, indices)
        return [values.astype(x.dtype, copy=False), np.maximum(indices, 0)]


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
    dilations: tuple[int, ...] = ()
    """All 1 where there are none."""

    @property
    def spread(self) -> tuple[int, ...]:
        """The dilation of each spatial dimension."""
        return self.dilations or (1,) * len(self.window)

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_float(self, *inputs)
        return [_pooled(self, inputs[0], self.window, self.strides, self.padding, self.spread)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        size = _output_size(x, self.window, self.strides, self.padding, self.spread)
        wide = widen(x)
        padded = np.pad(wide, ((0, 0), *concrete_padding(self, self.padding), (0, 0)))
        total = np.zeros((x.shape[0], *size, x.shape[-1]), wide.dtype)
        for patch in _patches(padded, size, self.window, self.strides, self.spread):
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
        pads = concrete_padding(self, self.padding)
        for extent, positions, window, stride, dilation, (before, _) in zip(
            spatial, size, self.window, self.strides, self.spread, pads, strict=True
        ):
            taps = np.arange(positions)[:, None] * stride - before + np.arange(window) * dilation
            inside = ((taps >= 0) & (taps < extent)).sum(1)
            along = np.full(positions, window) if self.count_include_pad else inside
            count = count[..., None] * along
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
        all(not isinstance(p, int) or p >= 0 for pair in padding for p in pair),
        f"{op.name} cannot pad by negative amounts",
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

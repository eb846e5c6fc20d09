"""Convolutions: channels-last activations, filters ``[*window, channels / groups, filters]``."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from planish.graph.dims import DimLike, ceildiv, dim_max, floordiv
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require, window_output
from planish.ops.operands import concrete, matmul, widen

Padding = tuple[tuple[DimLike, DimLike], ...]
"""Zeros before and after each spatial dimension; symbolic where they depend on its size.

A negative number after it leaves out elements that no window needs.
"""


@dataclass(frozen=True)
class Conv(Op):
    """Convolution (correlation) over any number of spatial dimensions.

    Inputs: activations ``[N, *spatial, C]``, filters ``[*window, C / groups, K]``; output
    ``[N, *spatial', K]``. A depthwise convolution has ``groups == C``. There is no bias here: an
    `Add` after it is one, and is fused.
    """

    strides: tuple[int, ...]
    padding: Padding
    dilations: tuple[int, ...]
    groups: int = 1

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) == 2, "conv takes activations and filters")
        x, w = inputs
        _expect_filters(self, x, w, self.strides, self.dilations, self.groups)
        outer = [
            window_output(x.shape[1 + i], int(w.shape[i]), s, d, *p)  # type: ignore[arg-type]
            for i, (s, d, p) in enumerate(
                zip(self.strides, self.dilations, self.padding, strict=True)
            )
        ]
        return [TensorType((x.shape[0], *outer, w.shape[-1]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Halves are summed in float32; sums of integers wrap around."""
        x, w = widen(inputs[0]), widen(inputs[1])
        padded = np.pad(x, ((0, 0), *concrete_padding(self, self.padding), (0, 0)))
        window, filters = w.shape[:-2], w.shape[-1]
        size = [
            int(window_output(x.shape[1 + i], window[i], s, d, *p))  # type: ignore[arg-type]
            for i, (s, d, p) in enumerate(
                zip(self.strides, self.dilations, self.padding, strict=True)
            )
        ]
        output = np.zeros((x.shape[0], *size, filters), x.dtype)
        for tap in itertools.product(*(range(n) for n in window)) if output.size else ():
            rows = [
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilations, size, self.strides, strict=True)
            ]
            index = (slice(None), *rows)
            output += _product(padded[index], w[tap], self.groups)
        return [output.astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class ConvTranspose(Op):
    """Transposed convolution (the gradient of a convolution) over any number of dimensions.

    Inputs: activations ``[N, *spatial, C]``, filters ``[*window, C / groups, K]``; output
    ``[N, *size, K]``. Element ``i`` of a dimension, times element ``t`` of the window, is added to
    ``i * stride + t * dilation - before`` of the output, if that lies inside it. Dumoulin & Visin,
    "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, section 4.
    """

    size: tuple[DimLike, ...]
    strides: tuple[int, ...]
    before: tuple[DimLike, ...]
    dilations: tuple[int, ...]
    groups: int = 1

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) == 2, f"{self.name} takes activations and filters")
        x, w = inputs
        _expect_filters(self, x, w, self.strides, self.dilations, self.groups)
        require(
            len(self.size) == len(self.before) == len(self.strides),
            f"{self.name} over {len(self.strides)} dimensions gives the size {self.size}",
        )
        require(
            all(not isinstance(d, int) or d >= 0 for d in self.size),
            f"{self.name} cannot give the size {self.size}",
        )
        return [TensorType((x.shape[0], *self.size, w.shape[-1]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Halves are summed in float32; sums of integers wrap around."""
        x, w = widen(inputs[0]), widen(inputs[1])
        size, before = concrete(self, self.size), concrete(self, self.before)
        extents = x.shape[1:-1]
        output = np.zeros((x.shape[0], *size, w.shape[-1]), x.dtype)
        for tap in itertools.product(*(range(n) for n in w.shape[:-2])):
            reads, writes = [slice(None)], [slice(None)]
            for i, t in enumerate(tap):
                stride, shift = self.strides[i], t * self.dilations[i] - before[i]
                read, written = _overlap(extents[i], size[i], stride, shift)
                reads.append(read)
                writes.append(written)
            part = output[tuple(writes)]
            if part.size:
                part += _product(x[tuple(reads)], w[tap], self.groups)
        return [output.astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class Fold(Op):
    """Puts sliding windows back where they were taken from, adding where they overlap.

    Input ``[N, *positions, taps, C]``, the elements of each window in row-major order; output
    ``[N, *size, C]``. Tap ``t`` of position ``i`` is added to element ``i * stride + t * dilation -
    before`` of each dimension, if there is one.
    """

    size: tuple[DimLike, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    dilations: tuple[int, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) == 1, f"{self.name} takes one input")
        (x,) = inputs
        spatial = len(self.size)
        require(
            len(self.window) == len(self.strides) == len(self.before) == spatial
            and len(self.dilations) == spatial
            and min((*self.window, *self.strides, *self.dilations), default=1) > 0,
            f"{self.name} to {self.size} needs a window, stride and dilation for each dimension",
        )
        require(
            x.type.rank == spatial + 3 and x.shape[-2] == math.prod(self.window),
            f"{self.name} needs windows [N, *positions, {math.prod(self.window)}, C], not {x.type}",
        )
        require(x.dtype is not DType.BOOL, f"{self.name} does not accept bool")
        return [TensorType((x.shape[0], *self.size, x.shape[-1]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Halves are summed in float32; sums of integers wrap around."""
        x, size = widen(inputs[0]), concrete(self, self.size)
        output = np.zeros((x.shape[0], *size, x.shape[-1]), x.dtype)
        for number, tap in enumerate(itertools.product(*(range(n) for n in self.window))):
            reads, writes = [slice(None)], [slice(None)]
            for i, t in enumerate(tap):
                shift = t * self.dilations[i] - self.before[i]
                read, written = _overlap(x.shape[1 + i], size[i], self.strides[i], shift)
                reads.append(read)
                writes.append(written)
            windows = x[..., number, :]
            output[tuple(writes)] += windows[tuple(reads)]
        return [output.astype(inputs[0].dtype, copy=False)]


def _overlap(source: int, size: int, stride: int, shift: int) -> tuple[slice, slice]:
    """The elements ``i`` for which ``i * stride + shift`` lies inside a dimension; these places."""
    first = max(0, -(shift // stride))
    end = max(first, min(source, -((shift - size) // stride)))
    start = first * stride + shift
    return slice(first, end), slice(start, start + (end - first) * stride, stride)


def same_padding(
    size: DimLike, window: int, stride: int, dilation: int = 1, *, lower: bool = False
) -> tuple[DimLike, DimLike]:
    """Padding of a dimension so that its windows have ``ceil(size / stride)`` positions.

    Of an odd number of zeros the last one stands after the dimension, or with `lower` before it.
    For a symbolic size the padding is symbolic too, unless all sizes agree.
    """
    span = (window - 1) * dilation + 1
    rest = size % stride  # all that matters of the size
    total: DimLike
    if isinstance(rest, int):
        total = max(span - (rest or stride), 0)
        less = total // 2
        return (total - less, less) if lower else (less, total - less)
    # negative where the last elements are not needed; written so that the positions come out as
    # ceil(size / stride), which is then known to equal other such dimensions
    total = (ceildiv(size, stride) - 1) * stride + span - size
    room = total if span >= stride else dim_max(total, 0)
    before = floordiv(room + 1, 2) if lower else floordiv(room, 2)
    return before, total - before


def concrete_padding(op: Op, padding: Padding) -> list[tuple[int, int]]:
    """Padding as plain integers of at least 0.

    Raises
    ------
    ShapeError
        A symbolic dimension is left in it.
    """
    pairs = (concrete(op, pair) for pair in padding)
    return [(max(before, 0), max(after, 0)) for before, after in pairs]


def _expect_filters(
    op: Op, x: Value, w: Value, strides: tuple[int, ...], dilations: tuple[int, ...], groups: int
) -> None:
    """Raises `ShapeError` unless the filters fit the activations."""
    spatial = len(strides)
    require(len(dilations) == spatial, f"{op.name} needs a dilation for each of {spatial} strides")
    require(x.type.rank == spatial + 2, f"{op.name} over {spatial} dimensions was given {x.type}")
    require(w.type.rank == spatial + 2, f"{op.name} over {spatial} dimensions has filters {w.type}")
    require(x.dtype is w.dtype, f"{op.name} of {x.dtype.value} has filters of {w.dtype.value}")
    require(groups > 0, f"{op.name} cannot have {groups} groups")
    require(
        x.shape[-1] == w.shape[-2] * groups,
        f"{op.name} of {x.shape[-1]} channels in {groups} group(s) has filters for "
        f"{w.shape[-2]} channels",
    )
    require(
        isinstance(w.shape[-1], int) and w.shape[-1] % groups == 0,
        f"{op.name} of {groups} groups has {w.shape[-1]} filters",
    )
    require(
        all(isinstance(d, int) and d > 0 for d in w.shape[:-2]),
        f"{op.name} needs a filter window of known, positive size, not {w.shape[:-2]}",
    )
    require(min((*strides, *dilations)) > 0, f"{op.name} needs positive strides and dilations")


def _product(patch: np.ndarray, kernel: np.ndarray, groups: int) -> np.ndarray:
    """``[..., C]`` times the ``[C / groups, K]`` of one place in the window: ``[..., K]``."""
    channels, filters = kernel.shape
    if groups == 1:
        return matmul(patch, kernel)
    if channels == 1 and filters == groups:
        return patch * kernel[0]
    *outer, _ = patch.shape
    grouped = patch.reshape(*outer, groups, 1, channels)
    per_group = kernel.reshape(channels, groups, -1).swapaxes(0, 1)
    if channels == 1:
        return (grouped * per_group).reshape(*outer, filters)
    by_group = np.moveaxis(grouped.reshape(-1, groups, channels), 1, 0)
    product = matmul(np.ascontiguousarray(by_group), np.ascontiguousarray(per_group))
    return np.moveaxis(product, 0, 1).reshape(*outer, filters)

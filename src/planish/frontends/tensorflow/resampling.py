"""Resizing by wide filters: what `tf.image.resize` does with antialias=True, and by area.

Such a resizing is a product with a matrix of weights along each dimension, which are computed here:
sizes, scale and translation must be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.matmul import MatMul

Filter = Callable[[np.ndarray], np.ndarray]
"""Weights by distance, in elements."""


@converter("ScaleAndTranslate")
def _scale_and_translate(
    ctx: Context, x: Value, size: Value, scale: Value, translation: Value
) -> Value:
    name = ctx.attr("kernel_type")
    if name not in FILTERS:
        raise ctx.unsupported(f"its kernel_type is {name}")
    extents = _extents(ctx, x)
    sizes = ctx.ints(size, "size")
    _expect_room(ctx, extents, sizes)
    scales, shifts = ctx.array(scale, "scale"), ctx.array(translation, "translation")
    matrices = [
        _filter_weights(*dimension, *FILTERS[name], antialias=ctx.attr("antialias"))
        for dimension in zip(extents, sizes, scales.astype("f"), shifts.astype("f"), strict=True)
    ]
    return _resampled(ctx, x, matrices)


@converter("ResizeArea")
def _resize_area(ctx: Context, x: Value, size: Value) -> Value:
    align = ctx.attr("align_corners")
    extents, sizes = _extents(ctx, x), ctx.ints(size, "size")
    _expect_room(ctx, extents, sizes)
    matrices = [
        _area_weights(extent, wanted, align) for extent, wanted in zip(extents, sizes, strict=True)
    ]
    return _resampled(ctx, x, matrices)


def _extents(ctx: Context, x: Value) -> tuple[int, int]:
    height, width = x.shape[1:3]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ctx.unsupported(
            f"its weights depend on the size of the image, {height} x {width}, which is not fixed",
            "give height and width fixed sizes (inputs={name: shape})",
        )
    return height, width


def _expect_room(ctx: Context, extents: Sequence[int], sizes: Sequence[int]) -> None:
    for extent, size in zip(extents, sizes, strict=True):
        ctx.expect_room(extent * size, "matrix of weights")


def _resampled(ctx: Context, x: Value, matrices: Sequence[np.ndarray]) -> Value:
    """``[N, H, W, C]`` times a matrix ``[size, extent]`` along W, then along H."""
    rows, columns = (ctx.constant(m, DType.FLOAT32, part="weights") for m in matrices)
    batch, height, _, channels = x.shape
    x = ctx.cast(x, DType.FLOAT32)
    x = ctx.add(MatMul(), columns, x, part="columns")
    width = columns.shape[0]
    x = ctx.reshape(x, (batch, height, width * channels), part="lines")
    x = ctx.add(MatMul(), rows, x, part="rows")
    return ctx.reshape(x, (batch, rows.shape[0], width, channels), part="image")


def _filter_weights(
    extent: int,
    size: int,
    scale: np.float32,
    shift: np.float32,
    radius: float,
    weigh: Filter,
    *,
    antialias: bool,
) -> np.ndarray:
    """Weights of every element for every position; nothing is sampled outside of the image."""
    inverse = np.float32(1) / scale
    wide = max(inverse, np.float32(1)) if antialias else np.float32(1)
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * inverse - inverse * shift
    reach = np.float32(radius) * wide
    first = np.clip(np.ceil(place - reach - np.float32(0.5)), 0, extent - 1)
    last = np.clip(np.floor(place + reach - np.float32(0.5)), 0, extent - 1)
    element = np.arange(extent, dtype=np.float32)
    distance = np.abs(element + np.float32(0.5) - place[:, None]) / wide
    weights = weigh(distance).astype(np.float32)
    weights *= (element >= first[:, None]) & (element <= last[:, None])
    total = weights.sum(1, keepdims=True)
    known = np.abs(total) >= 1000 * np.finfo(np.float32).tiny
    weights = np.where(known, weights / np.where(known, total, 1), weights)
    inside = (place >= 0) & (place <= extent)
    return weights * inside[:, None]


def _area_weights(extent: int, size: int, align_corners: bool) -> np.ndarray:
    """How much of every output element each element covers."""
    scale = np.float32(extent) / np.float32(size)
    if align_corners and size > 1:
        scale = np.float32(extent - 1) / np.float32(size - 1)
    start = np.arange(size, dtype=np.float32)[:, None] * scale
    end = (np.arange(size, dtype=np.float32)[:, None] + 1) * scale
    count = int(np.ceil(end.max(initial=0)))
    element = np.arange(count, dtype=np.float32)
    covered = np.clip(np.minimum(element + 1, end) - np.maximum(element, start), 0, None) / scale
    weights = np.zeros((size, extent), np.float32)
    for i in range(count):  # beyond the last element stands the last element
        weights[:, min(i, extent - 1)] += covered[:, i]
    return weights


def _lanczos(radius: int) -> tuple[float, Filter]:
    def weigh(x: np.ndarray) -> np.ndarray:
        return np.where(x > radius, 0, np.sinc(x) * np.sinc(x / radius))

    return float(radius), weigh


def _gaussian(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 1.5, 0, np.exp(-2 * x * x))  # a standard deviation of a half


def _box(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0.5, 1.0, np.where(x == 0.5, 0.5, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(b: float, c: float) -> Filter:
    """Mitchell & Netravali, "Reconstruction Filters in Computer Graphics", SIGGRAPH 1988."""

    def weigh(x: np.ndarray) -> np.ndarray:
        near = (12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)
        far = (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x
        far = far + (8 * b + 24 * c)
        return np.where(x < 1, near, np.where(x < 2, far, 0)) / 6

    return weigh


FILTERS: dict[str, tuple[float, Filter]] = {
    "lanczos1": _lanczos(1),
    "lanczos3": _lanczos(3),
    "lanczos5": _lanczos(5),
    "gaussian": (1.5, _gaussian),
    "box": (1.0, _box),
    "triangle": (1.0, _triangle),
    "keyscubic": (2.0, _cubic(0, 0.5)),
    "mitchellcubic": (2.0, _cubic(1 / 3, 1 / 3)),
}
"""Radius and weights of each filter, by TensorFlow's name."""

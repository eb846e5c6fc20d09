"""Resizing: Resize and its predecessor Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import channels_first, channels_last, reshaped
from planish.frontends.onnx.converters.sizes import sizes
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.graph.dims import floordiv
from planish.ops import Resize, normalize_axis

_LARGEST_DENOMINATOR = 4096


@dataclass(frozen=True)
class _Sampling:
    """How to sample: `Resize`'s attributes, with a size and scale for every axis."""

    size: tuple[DimLike, ...]
    scales: tuple[float | None, ...]
    """As the node states them; None: the ratio of the sizes."""
    mode: str
    coordinates: str
    rounding: str = "round_prefer_floor"
    cubic_coeff: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    region: tuple[tuple[float, float], ...] | None = None
    """Of every axis, for tf_crop_and_resize."""
    extrapolation: float = 0.0


@converter("Upsample")
def _upsample_by_attribute(c: Conversion) -> Value:
    return _asymmetric(c, c.attr("scales", ()))


@converter("Upsample", since=9)
def _upsample(c: Conversion) -> Value:
    return _asymmetric(c, c.constant_input(1, "the scale").reshape(-1).tolist())


@converter("Resize", since=10)
def _resize_10(c: Conversion) -> Value:
    return _asymmetric(c, c.constant_input(1, "the scale").reshape(-1).tolist())


def _asymmetric(c: Conversion, scales: Sequence[float]) -> Value:
    """Before opset 11: asymmetric; nearest rounds down where it grows and up where it shrinks."""
    x, mode = c.input(0), c.attr("mode", "nearest")
    shrinks = [s < 1 for s in scales if s != 1]
    if mode == "nearest" and any(shrinks) and not all(shrinks):
        raise c.unsupported("it shrinks some dimensions and grows others")
    rounding = "ceil" if any(shrinks) else "floor"
    size, factors = _scaled(c, x.shape, scales)
    sampling = _Sampling(size, factors, _mode(c, mode), "asymmetric", rounding)
    return _resized(c, x, sampling)


@converter("Resize", since=11)
def _resize(c: Conversion) -> Value:
    x, mode = c.input(0), _mode(c, c.attr("mode", "nearest"))
    axes = [normalize_axis(a, x.type.rank) for a in c.attr("axes", range(x.type.rank))]
    size, scales, exact = _targets(c, x, axes)
    coordinates = c.attr("coordinate_transformation_mode", "half_pixel")
    if coordinates == "half_pixel_symmetric" and exact:
        coordinates = "half_pixel"  # they differ only where the size was rounded
    sampling = _Sampling(
        size,
        scales,
        mode,
        coordinates,
        c.attr("nearest_mode", "round_prefer_floor"),
        c.attr("cubic_coeff_a", -0.75),
        bool(c.attr("exclude_outside", 0)),
        bool(c.attr("antialias", 0)) and mode != "nearest" and _shrinks(x.shape, size, scales),
    )
    if coordinates == "tf_crop_and_resize":
        region = _region(c, axes, x.type.rank)
        extrapolation = c.attr("extrapolation_value", 0.0)
        sampling = replace(sampling, region=region, extrapolation=extrapolation)
    return _resized(c, x, sampling)


def _region(c: Conversion, axes: Sequence[int], rank: int) -> tuple[tuple[float, float], ...]:
    """Start and end of every axis; the input holds those of `axes`, all starts first."""
    given = c.constant_input(1, "the region of interest").reshape(-1).tolist()
    if len(given) != 2 * len(axes):
        raise c.shape_error(f"Resize along {len(axes)} axes has a region of {len(given)} numbers")
    region = [(0.0, 1.0)] * rank
    for axis, start, end in zip(axes, given[: len(axes)], given[len(axes) :], strict=True):
        region[axis] = (start, end)
    return tuple(region)


def _mode(c: Conversion, mode: str) -> str:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if mode not in ("nearest", "linear", "cubic"):
        raise c.unsupported(f"mode {mode!r}")
    return mode


def _targets(
    c: Conversion, x: Value, axes: Sequence[int]
) -> tuple[tuple[DimLike, ...], tuple[float | None, ...], bool]:
    """Size and scale of every axis, and whether each size is exactly the scaled dimension."""
    stated = c.optional(3)
    if stated is None or stated.shape == (0,):
        given = c.constant_input(2, "the scale").reshape(-1).tolist()
        scales = [1.0] * x.type.rank
        for axis, scale in zip(axes, given, strict=True):
            scales[axis] = scale
        size, factors = _scaled(c, x.shape, scales)
        exact = all(_is_ratio(*axis) for axis in zip(x.shape, size, factors, strict=True))
        return size, factors, exact
    target = list(x.shape)
    wanted = sizes(c, 3, "the size")
    for axis, dim in zip(axes, wanted, strict=True):
        target[axis] = dim
    policy = c.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return tuple(target), (None,) * len(target), True
    pairs = [(x.shape[a], target[a]) for a in axes]
    if not all(isinstance(d, int) for pair in pairs for d in pair):
        raise c.unsupported(f"keep_aspect_ratio_policy {policy!r} needs fixed sizes")
    ratios = [int(wide) / int(dim) for dim, wide in pairs]  # type: ignore[arg-type]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    factors_of: list[float | None] = [None] * len(target)
    for axis in axes:
        target[axis] = math.floor(int(x.shape[axis]) * ratio + 0.5)  # type: ignore[arg-type]
        factors_of[axis] = ratio
    return tuple(target), tuple(factors_of), False


def _scaled(
    c: Conversion, shape: Sequence[DimLike], scales: Sequence[float]
) -> tuple[tuple[DimLike, ...], tuple[float | None, ...]]:
    if len(scales) != len(shape):
        raise c.shape_error(f"{c.node.op_type} of {len(shape)} dimensions has {len(scales)} scales")
    pairs = [_scaled_dim(c, dim, scale) for dim, scale in zip(shape, scales, strict=True)]
    return tuple(size for size, _ in pairs), tuple(scale for _, scale in pairs)


def _scaled_dim(c: Conversion, dim: DimLike, scale: float) -> tuple[DimLike, float]:
    """``floor(dim * scale)``, and the scale."""
    if isinstance(dim, int):
        # in float32, as runtimes do it: 10 * 0.7f is 7 there
        return int(np.floor(np.float32(dim) * np.float32(scale))), scale
    ratio = Fraction(scale).limit_denominator(_LARGEST_DENOMINATOR)
    if np.float32(float(ratio)) != np.float32(scale):
        raise c.unsupported(f"the scale {scale} of the size {dim}, which is not fixed")
    return floordiv(dim * ratio.numerator, ratio.denominator), scale


def _is_ratio(dim: DimLike, size: DimLike, scale: float | None) -> bool:
    """Whether the scale is the ratio of the sizes, to the last bit of what is computed with it."""
    if scale is None or (scale == 1 and dim == size):
        return True
    power_of_two = math.frexp(scale)[0] == 0.5
    if isinstance(dim, int) and isinstance(size, int):
        return power_of_two and size == dim * scale
    return power_of_two and scale >= 1


def _shrinks(
    shape: Sequence[DimLike], size: Sequence[DimLike], scales: Sequence[float | None]
) -> bool:
    for dim, target, scale in zip(shape, size, scales, strict=True):
        if scale is not None:
            if scale < 1:
                return True
        elif dim != target and not (isinstance(less := target - dim, int) and less >= 0):
            return True
    return False


def _resized(c: Conversion, x: Value, s: _Sampling) -> Value:
    """Brings the axes that change between the first and the last, where our op has them."""
    rank = x.type.rank
    changed = [i for i in range(rank) if _changes(s, i, x.shape[i])]
    if not changed:
        return x
    if s.mode != "nearest" and not x.dtype.is_float:  # what is computed in floats is truncated
        return c.cast(_resized(c, c.cast(x, DType.FLOAT32), s), x.dtype)
    if rank > 2 and set(changed) <= set(range(2, rank)):
        y = c.add(_op(s, x.shape, range(2, rank)), channels_last(c, x))
        return channels_first(c, y)
    if set(changed) <= set(range(1, rank - 1)):
        return c.add(_op(s, x.shape, range(1, rank - 1)), x)
    wide = reshaped(c, x, (1, *x.shape, 1))
    return reshaped(c, c.add(_op(s, x.shape, range(rank)), wide), s.size)


def _changes(s: _Sampling, axis: int, dim: DimLike) -> bool:
    crops = s.region is not None and s.region[axis] != (0.0, 1.0)
    return crops or s.size[axis] != dim or s.scales[axis] not in (None, 1.0)


def _op(s: _Sampling, shape: Sequence[DimLike], axes: Sequence[int]) -> Resize:
    size = tuple(s.size[a] for a in axes)
    picked = [s.scales[a] for a in axes]
    scales = None
    if not all(_is_ratio(shape[a], s.size[a], s.scales[a]) for a in axes):
        # a scale is either stated for all axes or for those of a kept aspect ratio; others stay
        scales = tuple(1.0 if scale is None else scale for scale in picked)
    return Resize(
        size,
        s.mode,
        s.coordinates,
        s.rounding,
        s.cubic_coeff,
        s.exclude_outside,
        scales,
        s.antialias,
        None if s.region is None else tuple(s.region[a] for a in axes),
        s.extrapolation,
    )

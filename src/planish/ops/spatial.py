"""Resizing of images and other spatial data; activations are channels-last.

Positions are computed in float32 in the order of TensorFlow's kernels, because a nearest
neighbour depends on the last bit. Kernels take them from `source_positions`, `nearest_indices` and
`interpolation`, so that all agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.graph.types import TensorType
from planish.ops.base import Op, require
from planish.ops.operands import concrete, expect_count, expect_float, widen

MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Resize(Op):
    """Samples ``[N, *spatial, C]`` at `size` positions per spatial dimension.

    Attributes follow the ONNX operator of this name. `rounding` picks the nearest neighbour,
    `cubic_coeff` is the ``a`` of Keys' cubic, and `exclude_outside` leaves positions outside the
    input without weight (cubic only). `scales` (output / input) stands where the scale is not the
    ratio of the sizes. TensorFlow's nearest neighbour is asymmetric or tf_half_pixel_for_nn with
    rounding floor, or align_corners with round_prefer_ceil. Keys, "Cubic Convolution
    Interpolation for Digital Image Processing", IEEE TASSP 29(6), 1981.

    With `antialias` a linear or cubic filter is as wide as an output element where the size
    shrinks. `region` is the part of each dimension that tf_crop_and_resize looks at, from 0 at the
    first element's center to 1 at the last one's; there, positions outside of the input hold
    `extrapolation`. TensorFlow's cubic knows only so many `steps` between two elements (0: all).
    """

    size: tuple[DimLike, ...]
    mode: str
    coordinates: str
    rounding: str = "round_prefer_floor"
    cubic_coeff: float = -0.75
    exclude_outside: bool = False
    scales: tuple[float, ...] | None = None
    antialias: bool = False
    region: tuple[tuple[float, float], ...] | None = None
    extrapolation: float = 0.0
    steps: int = 0

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        for what, value, known in (
            ("mode", self.mode, MODES),
            ("coordinates", self.coordinates, COORDINATES),
            ("rounding", self.rounding, ROUNDINGS),
        ):
            require(value in known, f"resize knows the {what} {', '.join(known)}, not {value!r}")
        if self.mode != "nearest":
            expect_float(self, x)
        require(
            x.type.rank == len(self.size) + 2,
            f"resize of {len(self.size)} dimensions was given {x.type}",
        )
        require(
            all(not isinstance(d, int) or d >= 0 for d in self.size),
            f"resize cannot give the size {self.size}",
        )
        for dim, size in zip(x.shape[1:-1], self.size, strict=True):
            require(dim != 0 or size == 0, f"resize cannot sample the empty {x.type}")
        if self.scales is not None:
            require(
                len(self.scales) == len(self.size) and min(self.scales, default=1.0) > 0,
                f"resize needs a positive scale for each of {len(self.size)} dimensions, "
                f"not {self.scales}",
            )
        crops = self.coordinates == "tf_crop_and_resize"
        require(
            crops == (self.region is not None)
            and (self.region is None or len(self.region) == len(self.size)),
            "resize needs a region of every dimension for tf_crop_and_resize, and only for it",
        )
        return [TensorType((x.shape[0], *self.size, x.shape[-1]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        output = widen(x)
        size = concrete(self, self.size)
        outside = np.zeros((), bool)
        # the innermost dimension first, as TensorFlow does it
        for i in reversed(range(len(size))):
            beyond = self.outside(i, x.shape[1 + i], size[i])
            outside = outside | beyond.reshape(-1, *(1,) * (len(size) - i))
            output = self._along(output, i, size[i])
        output = np.where(outside, np.array(self.extrapolation, output.dtype), output)
        return [np.ascontiguousarray(output.astype(x.dtype, copy=False))]

    def positions(self, axis: int, extent: int, size: int) -> np.ndarray:
        """`source_positions` of a spatial dimension."""
        scale = self.scales[axis] if self.scales else None
        region = self.region[axis] if self.region else (0.0, 1.0)
        return source_positions(extent, size, self.coordinates, scale, region)

    def taps(self, axis: int, extent: int, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The elements that each position of a dimension is made from, and their weights.

        Returns
        -------
        indices : np.ndarray
            int64 of shape ``[size, taps]``, inside the dimension.
        weights : np.ndarray or None
            float32, likewise; None for nearest neighbours, of which there is one.
        """
        positions = self.positions(axis, extent, size)
        if self.mode == "nearest":
            return nearest_indices(positions, extent, self.rounding)[:, None], None
        scale = 1.0
        if self.antialias:
            scale = self.scales[axis] if self.scales else size / max(extent, 1)
        return interpolation(
            positions,
            extent,
            self.mode,
            self.cubic_coeff,
            self.exclude_outside,
            min(scale, 1.0),
            self.steps,
        )

    def outside(self, axis: int, extent: int, size: int) -> np.ndarray:
        """Which positions of a dimension hold `extrapolation`: bool of shape ``[size]``."""
        if self.region is None:
            return np.zeros(size, bool)
        positions = self.positions(axis, extent, size)
        return (positions < 0) | (positions > extent - 1)

    def _along(self, x: np.ndarray, dimension: int, size: int) -> np.ndarray:
        axis = 1 + dimension
        indices, weights = self.taps(dimension, x.shape[axis], size)
        if weights is None:
            return np.take(x, indices[:, 0], axis)
        # with antialiasing a weighted sum, however few taps: the two differ by a float32 rounding,
        # which shows in float64
        if self.mode == "linear" and not self.antialias:
            low, high = (np.take(x, indices[:, tap], axis) for tap in (0, 1))
            return low + (high - low) * _along_axis(weights[:, 1], axis, x)
        total = np.take(x, indices[:, 0], axis) * _along_axis(weights[:, 0], axis, x)
        for tap in range(1, indices.shape[1]):
            total += np.take(x, indices[:, tap], axis) * _along_axis(weights[:, tap], axis, x)
        return total


def source_positions(
    extent: int,
    size: int,
    coordinates: str,
    scale: float | None = None,
    region: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Where in a dimension of `extent` elements each of `size` output elements lies.

    Parameters
    ----------
    extent, size : int
        Elements of the input and of the output.
    coordinates : str
        One of `COORDINATES`.
    scale : float, optional
        Output over input where it is not the ratio of the sizes; does not matter to
        align_corners and tf_crop_and_resize.
    region : tuple of float
        For tf_crop_and_resize: the part of the dimension to look at.

    Returns
    -------
    np.ndarray
        float32 of shape ``[size]``; may lie outside the input.
    """
    places = np.arange(size, dtype=np.float32)
    one = np.float32(1)
    if coordinates == "align_corners":
        return places * (np.float32(extent - 1) / np.float32(max(size - 1, 1)))
    if coordinates == "tf_crop_and_resize":
        start, end = (np.float32(edge) for edge in region)
        last = np.float32(extent - 1)
        if size <= 1:
            return np.full(size, np.float32(0.5) * (start + end) * last, np.float32)
        return start * last + places * (end - start) * last / np.float32(size - 1)
    if coordinates == "pytorch_half_pixel" and size <= 1:
        return places * np.float32(0)
    half = np.float32(0 if coordinates == "asymmetric" else 0.5)
    if scale is None:
        positions = (places + half) * (np.float32(extent) / np.float32(max(size, 1)))
    else:
        positions = (places + half) / (one * np.float32(scale))
        if coordinates == "half_pixel_symmetric":
            # the part of an element that rounding the size left out stands at both ends
            kept = np.float32(size) / (np.float32(scale) * np.float32(extent))
            positions = positions + np.float32(extent) / np.float32(2) * (one - kept)
    return positions if coordinates == "tf_half_pixel_for_nn" else positions - half


def nearest_indices(positions: np.ndarray, extent: int, rounding: str) -> np.ndarray:
    """The element nearest to each position (one of `ROUNDINGS`), kept inside the dimension."""
    rounded = {
        "round_prefer_floor": lambda: np.ceil(positions - np.float32(0.5)),
        "round_prefer_ceil": lambda: np.floor(positions + np.float32(0.5)),
        "floor": lambda: np.floor(positions),
        "ceil": lambda: np.ceil(positions),
    }[rounding]()
    return np.clip(rounded.astype(np.int64), 0, max(extent - 1, 0))


def interpolation(
    positions: np.ndarray,
    extent: int,
    mode: str,
    cubic_coeff: float = -0.75,
    exclude_outside: bool = False,
    scale: float = 1.0,
    steps: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The elements that each position is interpolated from, and their weights.

    Parameters
    ----------
    positions : np.ndarray
        From `source_positions`.
    extent : int
        Elements of the dimension.
    mode : str
        "linear" (2 taps) or "cubic" (4 taps).
    cubic_coeff, exclude_outside
        As in `Resize`.
    scale : float
        If less than 1, the filter is wider by that factor, and has as many more taps.
    steps : int
        Distances are rounded to so many steps between two elements, unless it is 0.

    Returns
    -------
    indices : np.ndarray
        int64 of shape ``[size, taps]``, inside the dimension.
    weights : np.ndarray
        float32 of shape ``[size, taps]``; the weights of a position add up to 1.
    """
    floor = np.floor(positions)
    fraction = (positions - floor)[:, None]
    if steps:
        fraction = np.rint(fraction * np.float32(steps)) / np.float32(steps)
    reach = math.ceil((1 if mode == "linear" else 2) / scale)
    offsets = np.arange(1 - reach, reach + 1)
    indices = floor.astype(np.int64)[:, None] + offsets
    if mode == "linear" and scale >= 1:
        weights = np.concatenate([1 - fraction, fraction], 1)
    else:
        distance = np.abs(fraction - offsets.astype(np.float32)) * np.float32(scale)
        if mode == "linear":
            weights = np.maximum(1 - distance, np.float32(0))
        else:
            weights = _cubic_weights(distance, cubic_coeff)
    inside = np.clip(indices, 0, max(extent - 1, 0))
    if exclude_outside:
        weights = np.where(indices == inside, weights, np.float32(0))
    if exclude_outside or scale < 1:
        weights = weights / weights.sum(1, keepdims=True)
    return inside, weights.astype(np.float32)


def _cubic_weights(distance: np.ndarray, coefficient: float) -> np.ndarray:
    a, t = np.float32(coefficient), distance
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, np.float32(0)))


def _along_axis(weights: np.ndarray, axis: int, x: np.ndarray) -> np.ndarray:
    return weights.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - axis - 1))

"""Sampling of images at positions that are computed: grids, boxes, regions, deformed windows.

Activations are channels-last. Between the elements of an image, values are interpolated; the
arithmetic of positions is float32 (float64 for float64) in the order of the frameworks' kernels,
because which element is nearest depends on the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.graph.types import TensorType
from planish.ops.base import Op, require, window_output
from planish.ops.conv import Padding
from planish.ops.operands import concrete, expect_count, expect_float, expect_index, widen

SAMPLE_MODES = ("nearest", "linear", "cubic")
BORDERS = ("zeros", "border", "reflection")
CUBIC = -0.75
"""The ``a`` of Keys' cubic that the frameworks sample grids with."""
FAR = 2.0**30
"""Positions further away than this are taken to be so far: they are outside of every image."""


@dataclass(frozen=True)
class GridSample(Op):
    """Samples ``[N, *spatial, C]`` at the positions of a grid ``[N, *size, dimensions]``.

    A grid's coordinates run from -1 to 1 over the image, the innermost dimension's first: between
    the centers of the outermost elements (`align_corners`), or between their outer edges. `border`
    says what lies outside. Output ``[N, *size, C]``. Jaderberg et al., "Spatial Transformer
    Networks", arXiv:1506.02025; attributes follow ONNX's operator of this name.
    """

    mode: str
    border: str
    align_corners: bool = False

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        expect_float(self, inputs[0])
        expect_float(self, inputs[1])
        x, grid = inputs
        for what, value, known in (
            ("mode", self.mode, SAMPLE_MODES),
            ("border", self.border, BORDERS),
        ):
            require(value in known, f"{self.name} knows the {what} {', '.join(known)}")
        require(
            grid.type.rank == x.type.rank >= 3 and grid.shape[-1] == x.type.rank - 2,
            f"{self.name} of {x.type} needs a grid [N, *size, {x.type.rank - 2}], not {grid.type}",
        )
        require(grid.shape[0] == x.shape[0], f"{self.name}: {x.type} and {grid.type} do not fit")
        require(0 not in x.shape[1:-1], f"{self.name} cannot sample the empty {x.type}")
        require(
            x.dtype.size == 8 or grid.dtype.size != 8,
            f"{self.name} of {x.dtype.value} needs a grid of float32",
        )
        return [TensorType((x.shape[0], *grid.shape[1:-1], x.shape[-1]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x = _pixels(inputs[0])
        grid = widen(inputs[1]).astype(x.dtype)
        axes = []
        for axis, extent in enumerate(x.shape[1:-1]):
            place = grid[..., x.ndim - 3 - axis] + x.dtype.type(1)
            if self.align_corners:
                place = place / x.dtype.type(2) * x.dtype.type(extent - 1)
            else:
                place = (place * x.dtype.type(extent) - x.dtype.type(1)) / x.dtype.type(2)
            axes.append(neighbours(place, extent, self.mode, self.border, self.align_corners))
        images = np.arange(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 2))
        return [interpolate(x, images, axes).astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class CropAndResize(Op):
    """Boxes cut out of images and resized to one size, as TensorFlow's op of this name does it.

    Inputs: images ``[N, H, W, C]``, boxes ``[B, 4]`` as (y1, x1, y2, x2) from 0 at the first
    element's center to 1 at the last one's, and the image of each box, int32 ``[B]``. Output
    ``[B, *size, C]``; positions outside the image hold `extrapolation`. `mode` is linear or
    nearest (halves away from zero). A box of no image is undefined here.
    """

    size: tuple[DimLike, ...]
    mode: str = "linear"
    extrapolation: float = 0.0

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 3)
        x, boxes, images = inputs
        expect_float(self, x, boxes)
        expect_index(self, images)
        require(
            self.mode in ("linear", "nearest"), f"{self.name} knows the modes linear and nearest"
        )
        _expect_regions(self, x, boxes, images)
        require(
            len(self.size) == 2 and all(not isinstance(d, int) or d > 0 for d in self.size),
            f"{self.name} cannot give the size {self.size}",
        )
        return [TensorType((boxes.shape[0], *self.size, x.shape[3]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, boxes = _pixels(inputs[0]), widen(inputs[1])
        images = np.clip(inputs[2].astype(np.int64), 0, max(x.shape[0] - 1, 0))
        kind = x.dtype.type
        axes, inside = [], []
        for axis, size in enumerate(concrete(self, self.size)):
            low, high = boxes[:, axis, None], boxes[:, 2 + axis, None]
            last = kind(x.shape[1 + axis] - 1)
            if size > 1:
                scale = (high - low) * last / kind(size - 1)
                place = low * last + np.arange(size, dtype=x.dtype) * scale
            else:
                place = kind(0.5) * (low + high) * last
            within = (place >= 0) & (place <= last)
            place = np.where(within, place, kind(0))
            if self.mode == "nearest":
                place = np.floor(place) + (place - np.floor(place) >= kind(0.5))
            shape = (len(boxes), size, 1) if axis == 0 else (len(boxes), 1, size)
            axes.append(neighbours(place.reshape(shape), x.shape[1 + axis], "linear", "border"))
            inside.append(within.reshape(shape))
        low_x, low_y = axes[1], axes[0]
        rows = []
        for index, _, _ in low_y:
            left, right = (x[images[:, None, None], index, column] for column, _, _ in low_x)
            rows.append(left + (right - left) * low_x[1][1][..., None])
        result = rows[0] + (rows[1] - rows[0]) * low_y[1][1][..., None]
        kept = (inside[0] & inside[1])[..., None]
        result = np.where(kept, result, kind(self.extrapolation))
        return [result.astype(inputs[0].dtype, copy=False)]


MOST_SAMPLES = 1024
"""Points along a side of a bin: more would say a damaged model, and take for ever."""


@dataclass(frozen=True)
class RoiAlign(Op):
    """Mean or maximum of samples of regions, as ONNX's operator of this name defines it.

    Inputs: images ``[N, H, W, C]``, regions ``[R, 4]`` as (x1, y1, x2, y2), and the image of each,
    integers ``[R]``. Output ``[R, *size, C]``. A region is cut into bins, each sampled at
    `sampling` x `sampling` points, or as many as it has elements (0). The maximum is that of the
    weighted neighbours, as the runtimes have it. He et al., "Mask R-CNN", arXiv:1703.06870.
    """

    size: tuple[DimLike, ...]
    scale: float = 1.0
    sampling: int = 0
    mode: str = "avg"
    half_pixel: bool = True

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 3)
        x, regions, images = inputs
        expect_float(self, x, regions)
        expect_index(self, images)
        require(self.mode in ("avg", "max"), f"{self.name} knows the modes avg and max")
        require(
            0 <= self.sampling <= MOST_SAMPLES, f"{self.name} cannot take {self.sampling} samples"
        )
        _expect_regions(self, x, regions, images)
        require(
            len(self.size) == 2 and all(not isinstance(d, int) or d > 0 for d in self.size),
            f"{self.name} cannot give the size {self.size}",
        )
        return [TensorType((regions.shape[0], *self.size, x.shape[3]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, regions = _pixels(inputs[0]), widen(inputs[1])
        images = np.clip(inputs[2].astype(np.int64), 0, max(x.shape[0] - 1, 0))
        size = concrete(self, self.size)
        output = np.zeros((len(regions), *size, x.shape[3]), x.dtype)
        for number, region in enumerate(regions):
            rows, columns = (
                self._samples(region[1 - a], region[3 - a], size[a], x.shape[1 + a], x.dtype.type)
                for a in range(2)
            )
            output[number] = self._pool(x[images[number]], rows, columns)
        return [output.astype(inputs[0].dtype, copy=False)]

    def _samples(
        self, start: np.floating, end: np.floating, size: int, extent: int, kind: type
    ) -> _Samples:
        offset = kind(0.5 if self.half_pixel else 0)
        first = start * kind(self.scale) - offset
        length = end * kind(self.scale) - offset - first
        if not self.half_pixel:
            length = max(length, kind(1))
        width = length / kind(size)
        origin = first + np.arange(size).astype(kind)[:, None] * width
        if self.sampling:
            count = self.sampling
            begin, stop = np.zeros((size, 1), np.int64), np.full((size, 1), count)
        else:
            count = max(int(_near(np.ceil(width))), 0)
            pitch = width / kind(max(count, 1))
            begin = _near(np.ceil((kind(-1) - origin) / pitch - kind(0.5))).astype(np.int64) - 1
            stop = _near(np.floor((kind(extent) - origin) / pitch - kind(0.5))).astype(np.int64) + 2
            begin, stop = np.clip(begin, 0, count), np.clip(stop, 0, count)
        taken = np.maximum(stop - begin, 0)
        number = begin + np.arange(taken.max(initial=0))[None]
        place = origin + (number.astype(kind) + kind(0.5)) * width / kind(max(count, 1))
        inside = (place >= -1) & (place <= extent) & (number < stop)
        place = np.where(inside, np.maximum(place, kind(0)), kind(0))
        low = np.minimum(place.astype(np.int64), extent - 1)
        high = np.minimum(low + 1, extent - 1)
        weight = np.where(low >= extent - 1, kind(0), place - low.astype(kind))
        return _Samples(count, low, high, weight, inside, taken[:, 0] < count)

    def _pool(self, x: np.ndarray, rows: _Samples, columns: _Samples) -> np.ndarray:
        kind = x.dtype.type
        low_y, high_y, y, inside_y = (a[:, None, :, None] for a in rows.arrays)
        low_x, high_x, w, inside_x = (a[None, :, None, :] for a in columns.arrays)
        inside = (inside_y & inside_x)[..., None]
        y, w = y[..., None], w[..., None]
        one = kind(1)
        corners = [
            np.where(inside, weight * x[row, column], kind(0))
            for row, column, weight in (
                (low_y, low_x, (one - y) * (one - w)),
                (low_y, high_x, (one - y) * w),
                (high_y, low_x, y * (one - w)),
                (high_y, high_x, y * w),
            )
        ]
        samples = rows.count * columns.count
        if not samples:
            return np.zeros((inside.shape[0], inside.shape[1], x.shape[2]), x.dtype)
        if self.mode == "max":
            left_out = (rows.left_out[:, None] | columns.left_out[None])[..., None]
            lowest = np.where(left_out, kind(0), kind(-np.inf))
            return np.maximum(np.maximum.reduce(corners).max((2, 3), initial=-np.inf), lowest)
        total = ((corners[0] + corners[1]) + corners[2]) + corners[3]
        return total.sum((2, 3)) / kind(samples)


@dataclass(frozen=True)
class _Samples:
    """The samples of all bins along one side, ``[bins, samples]``.

    Those that are surely outside of the image are left out, as each is 0: a region may be as
    large as floats can be, and has a sample for each of its pixels.
    """

    count: int
    """Samples of a bin, those left out included."""
    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    """Lower and upper neighbour, and the weight of the upper one."""
    inside: np.ndarray
    left_out: np.ndarray
    """Whether any of a bin are, ``[bins]``."""

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.low, self.high, self.weight, self.inside


@dataclass(frozen=True)
class DeformSample(Op):
    """What the windows of a deformable convolution hold.

    Inputs: activations ``[N, *spatial, C]``; offsets ``[N, *size, groups * taps * dimensions]`` in
    elements, the outermost dimension's first; and, if there are three, factors ``[N, *size,
    groups * taps]``. Each of the `groups` of channels has offsets of its own. Output
    ``[N, *size, taps, C]``: a product with filters completes the convolution. Zeros lie outside.
    Zhu et al., "Deformable ConvNets v2", arXiv:1811.11168.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding
    dilations: tuple[int, ...]
    groups: int = 1

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) in (2, 3), f"{self.name} takes activations, offsets, and factors")
        expect_float(self, *inputs)
        x, offsets = inputs[:2]
        spatial, taps = len(self.window), self.taps
        require(
            x.type.rank == offsets.type.rank == spatial + 2,
            f"{self.name} over {spatial} dimensions was given {x.type} and {offsets.type}",
        )
        require(
            isinstance(x.shape[-1], int) and self.groups > 0 and x.shape[-1] % self.groups == 0,
            f"{self.name} of {self.groups} groups has {x.shape[-1]} channels",
        )
        size = [
            window_output(x.shape[1 + i], self.window[i], self.strides[i], self.dilations[i], *p)  # type: ignore[arg-type]
            for i, p in enumerate(self.padding)
        ]
        for value, per_tap in zip(inputs[1:], (spatial, 1), strict=False):
            wanted = (x.shape[0], *size, self.groups * taps * per_tap)
            require(
                value.shape == wanted,
                f"{self.name} needs offsets or factors of the shape {wanted}, not {value.type}",
            )
        return [TensorType((x.shape[0], *size, taps, x.shape[-1]), x.dtype)]

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return int(np.prod(self.window))

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, offsets = _pixels(inputs[0]), widen(inputs[1])
        spatial, groups = len(self.window), self.groups
        size = offsets.shape[1:-1]
        moved = offsets.reshape(*offsets.shape[:-1], groups, self.taps, spatial)
        taps = np.array(list(itertools.product(*map(range, self.window))))
        axes = []
        for axis in range(spatial):
            (before,) = concrete(self, self.padding[axis][:1])
            start = np.arange(size[axis]) * self.strides[axis] - before
            start = start.reshape(-1, *(1,) * (spatial - 1 - axis), 1, 1)
            grid = (start + taps[:, axis] * self.dilations[axis]).astype(x.dtype)
            place = grid + moved[..., axis]
            axes.append(neighbours(place, x.shape[1 + axis], "linear", "zeros"))
        images = np.arange(x.shape[0]).reshape(-1, *(1,) * (spatial + 2))
        grouped = x.reshape(*x.shape[:-1], groups, -1)
        choice = np.arange(groups)[:, None]
        result = interpolate(grouped, images, axes, choice)
        if len(inputs) == 3:
            factors = widen(inputs[2]).reshape(*moved.shape[:-1], 1)
            result = result * factors
        # [N, *size, groups, taps, C / groups] to [N, *size, taps, C]
        result = np.moveaxis(result, -3, -2)
        shape = (x.shape[0], *size, self.taps, x.shape[-1])
        return [np.ascontiguousarray(result).reshape(shape).astype(inputs[0].dtype, copy=False)]


# ---- interpolation -----------------------------------------------------------------------------

Neighbours = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Of every position: elements inside the image, their weights, and whether they count."""


def _near(positions: np.ndarray) -> np.ndarray:
    """Positions, NaN and what is further than `FAR` away brought to `FAR`."""
    kind = positions.dtype.type
    return np.where(np.isnan(positions), kind(-FAR), np.clip(positions, kind(-FAR), kind(FAR)))


def neighbours(
    positions: np.ndarray, extent: int, mode: str, border: str, align_corners: bool = False
) -> Neighbours:
    """The elements of a dimension that each position is made from.

    Parameters
    ----------
    positions : np.ndarray
        In elements.
    extent : int
        Elements of the dimension.
    mode, border, align_corners
        As in `GridSample`.
    """
    kind = positions.dtype.type
    places = _near(positions)
    if mode == "nearest":
        index = np.rint(places).astype(np.int64)
        return [
            (
                *_inside(index, extent, border, align_corners)[:1],
                np.ones_like(places),
                _inside(index, extent, border, align_corners)[1],
            )
        ]
    floor = np.floor(places)
    fraction, first = places - floor, floor.astype(np.int64)
    if mode == "linear":
        weights = [kind(1) - fraction, fraction]
        offsets = range(2)
    else:
        weights = cubic_weights(fraction)
        offsets = range(-1, 3)
    found = []
    for offset, weight in zip(offsets, weights, strict=True):
        index, inside = _inside(first + offset, extent, border, align_corners)
        found.append((index, weight, inside))
    return found


def cubic_weights(fraction: np.ndarray) -> list[np.ndarray]:
    """The weights of the four neighbours of a position, by its distance from the second."""
    kind = fraction.dtype.type
    a = kind(CUBIC)

    def near(t: np.ndarray) -> np.ndarray:
        return ((a + kind(2)) * t - (a + kind(3))) * t * t + kind(1)

    def far(t: np.ndarray) -> np.ndarray:
        return ((a * t - kind(5) * a) * t + kind(8) * a) * t - kind(4) * a

    rest = kind(1) - fraction
    return [far(fraction + kind(1)), near(fraction), near(rest), far(rest + kind(1))]


def interpolate(
    x: np.ndarray, images: np.ndarray, axes: Sequence[Neighbours], *more: np.ndarray
) -> np.ndarray:
    """The weighted sum of neighbours, the innermost dimension summed first.

    `more` are indices of further axes of `x` after the spatial ones.
    """

    def total(chosen: tuple[np.ndarray, ...], inside: np.ndarray) -> np.ndarray:
        if len(chosen) == len(axes):
            place = (images, *chosen, *more)
            value = x[place]
            return np.where(inside[..., None], value, x.dtype.type(0))
        parts = [
            total((*chosen, index), inside & here) * weight[..., None]
            for index, weight, here in axes[len(chosen)]
        ]
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result

    return total((), np.ones((), bool))


def _inside(
    index: np.ndarray, extent: int, border: str, align_corners: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Indices inside a dimension, and which of them count."""
    last = extent - 1
    if border != "reflection":
        kept = np.clip(index, 0, last)
        return kept, (kept == index) if border == "zeros" else np.ones(index.shape, bool)
    period = max(2 * last if align_corners else 2 * extent, 1)
    turned = index % period
    mirrored = period - turned if align_corners else period - 1 - turned
    return np.minimum(np.where(turned > last, mirrored, turned), last), np.ones(index.shape, bool)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Images as they are sampled: a pixel of zeros where there is none, which one axis may say."""
    x = widen(images)
    return x if x.size else np.broadcast_to(np.zeros((), x.dtype), [max(d, 1) for d in x.shape])


def _expect_regions(op: Op, x: Value, regions: Value, images: Value) -> None:
    require(
        x.type.rank == 4 and regions.type.rank == 2 and regions.shape[1] == 4,
        f"{op.name} needs images [N, H, W, C] and regions [R, 4], not {x.type} and {regions.type}",
    )
    require(
        images.shape == regions.shape[:1],
        f"{op.name} needs an image number for each of {regions.type}, not {images.type}",
    )
    require(0 not in x.shape[1:3], f"{op.name} cannot sample the empty {x.type}")

"""Images of few channels, copied with more of them and with their borders, for the matrix kernel.

Three channels of a half take six bytes: tiles of them can only be gathered element by element, and
windows that leave the image need conditions. With four channels, and zeros around the image,
windows are runs of memory that start at multiples of eight bytes. A prologue is applied on the way.

Or the copy is *folded*: the pixels that a stride steps over become channels of one pixel, so that
windows step by one, and a row of the product computes several neighbouring pixels of the result,
from the one run of memory that their windows cover:

    7x7 by 2 of 3 channels, two pixels a row:    4 runs of (2 - 1 + 4) x 12 elements a row,
                                                 2 x 64 columns

The weights, which hold zeros where a pixel's window does not reach, make a third more products; but
windows overlap, so that each element is read half as often, and that is what such layers wait for.
Where an image has enough channels, rows of several pixels read it as it lies (`by_pixels`): that
pays for few filters, of which tensor cores take too few columns at once. Where windows are single
pixels of few channels, neighbours fill a step of the depth, and tiles of the columns, which are
powers of two: pixels of 16 bytes and 96 filters are multiplied two by two, as 32 and 192.

As with Winograd's algorithm, an infinity or NaN in an image also reaches pixels beside those whose
windows cover it: zeros do not stop it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planish.fusion.expression import identity
from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import WIDE, Access, Work, apply, decompose
from planish.targets.cuda.kernels.matrix_problem import BYTES, Problem
from planish.targets.cuda.kernels.matrix_tile import Window, ceil

BLOCK = 1024
"""Elements of the copy that a program writes, at least."""
CHANNELS = (4, 8, 16, 24, 32)
"""What a pixel of a copy may have; of a folded one also as many as the image."""
PIXELS = (1, 2, 4)
"""Neighbouring pixels of the result that a row may compute."""
DEEPEST, WIDEST = 64, 256
"""Channels of a folded pixel, and columns of all pixels of a row, at most."""


@dataclass(frozen=True)
class ImageKernel(TritonKernel):
    """Copies images. Parameter: the folded pixels of the copy.

    Attributes
    ----------
    image : Work
        What is copied, and what happens to its elements; axes image, row, column, channel.
    size : tuple of int
        Rows, columns and channels of an image.
    copy : tuple of int
        The same of its copy; but for `fold`.
    pads : tuple of int
        Rows and columns of the copy before the image's first.
    dtype : DType
        Of the copy.
    zero : int
        What stands around the image: 0, or the zero point of levels.
    fold : tuple of int
        Rows and columns that became channels of one pixel.
    """

    family = "matrix_image"

    image: Work
    size: tuple[int, int, int]
    copy: tuple[int, int, int]
    pads: tuple[int, int]
    dtype: DType
    zero: int = 0
    fold: tuple[int, int] = (1, 1)

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.image.pointers, Pointer(self.dtype))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def pixels(self) -> int:
        """Folded pixels that a program writes; a thread has all channels of its own."""
        return max(32 * self.warps, BLOCK // self._width)

    def write(self, k: Source) -> None:
        k.name("place")
        k.line(f"place = tl.program_id(0) * {self.pixels} + tl.arange(0, {self.pixels})")
        rows, columns, deep = self._copied
        image, *corner = decompose(k, "place", (-1, rows, columns))
        places = [self._places(k, axis, name) for axis, name in enumerate(corner)]
        values = [self._value(k, image, places, channel) for channel in range(self._width)]
        k.line(f"channel = tl.arange(0, {self._width})")
        whole = f"tl.reshape({_interleaved(values)}, ({self.pixels}, {self._width}))"
        where = f"p{len(self.image.pointers)} + (place[:, None] * {deep} + channel[None, :])"
        mask = "(place < n0)[:, None]" + (f" & (channel < {deep})" if self._width > deep else "")
        k.line(f"tl.store({where}, {whole}, mask={mask})")

    def _places(self, k: Source, axis: int, name: str) -> list[tuple[str, str | None]]:
        """Rows or columns of the image that a folded pixel covers, and whether they exist."""
        step, pad, size = self.fold[axis], self.pads[axis], self.size[axis]
        found = []
        for inside in range(step):
            shift = inside - pad
            at = name if step == 1 else f"{name} * {step}"
            at = k.let("i", f"{at} + {shift}") if shift or step > 1 else at
            tests = [f"({at} >= 0)"] * (shift < 0)
            if size < self.copy[axis] + shift:
                tests.append(f"({at} < {size})")
            found.append((at, k.let("exists", " & ".join(tests)) if tests else None))
        return found

    def _value(
        self, k: Source, image: str, places: list[list[tuple[str, str | None]]], channel: int
    ) -> str:
        """A channel of all folded pixels."""
        kind = storage_type(self.dtype)
        around = self.zero if self.dtype in BYTES else 0.0
        pixel, own = divmod(channel, self.copy[2])
        if own >= self.size[2] or channel >= self._copied[2]:
            return k.let("none", f"tl.full(({self.pixels},), {around}, {kind})")
        down, across = divmod(pixel, self.fold[1])
        (row, above), (column, beside) = places[0][down], places[1][across]
        masks = ["(place < n0)", above, beside, None]
        (value,) = apply(k, self.image, 0, [image, row, column, str(own)], masks)
        exists = " & ".join(mask for mask in masks if mask)
        return k.let("value", f"tl.where({exists}, {value}, {around}).to({kind})")

    @property
    def _copied(self) -> tuple[int, int, int]:
        """Rows, columns and channels of a copied image as they lie."""
        rows, columns, channels = self.copy
        down, across = self.fold
        return rows // down, columns // across, channels * down * across

    @property
    def _width(self) -> int:
        """The channels of a copied image, as a power of two."""
        return 1 << (self._copied[2] - 1).bit_length()


def _interleaved(values: Sequence[str]) -> str:
    """Tensors, a power of two of them, as one whose last axes count them."""
    if len(values) == 1:
        return values[0]
    return f"tl.join({_interleaved(values[::2])}, {_interleaved(values[1::2])})"


@dataclass(frozen=True)
class ImageCopy:
    """A copy of a problem's images, and the problem on it.

    Attributes
    ----------
    source : Problem
    channels : int
        Of a pixel of the copy.
    pixels : int
        Pixels of the result that a row computes, of a folded copy; 0: it is not folded.
    """

    source: Problem
    channels: int
    pixels: int

    @property
    def window(self) -> Window:
        """That of the source."""
        window = self.source.window
        assert window is not None
        return window

    @property
    def fold(self) -> tuple[int, int]:
        """Rows and columns that become channels of one pixel."""
        return self.window.strides if self.pixels else (1, 1)

    @property
    def taps(self) -> tuple[int, int]:
        """Of windows over folded pixels."""
        down, across = (ceil(n, by) for n, by in zip(self.window.taps, self.fold, strict=True))
        return down, across

    @property
    def deep(self) -> int:
        """Channels of a folded pixel."""
        return self.channels * math.prod(self.fold)

    @property
    def run(self) -> int:
        """Elements of a row of folded pixels that a row reads: what the windows of its pixels
        cover, and a few more.
        """
        return _run(self.taps[1], self.deep, self.pixels, self.source.dtype.size)

    @property
    def makes_sense(self) -> bool:
        """Whether it can be, is of use, and fits 32-bit offsets."""
        source, window = self.source, self.source.window
        if window is None or window.taps == (1, 1) or self.channels < source.channels:
            return False
        if self.pixels:
            if window.dilations != (1, 1) or source.axes[-1] % self.pixels:
                return False
            if self.pixels * source.columns > WIDEST or self.fold == (1, 1) == (1, self.pixels):
                return False
            if self.deep > DEEPEST or self.deep * self.pixels % 4:
                return False  # runs start at multiples of eight bytes, of halves
        return self.bytes // source.dtype.size < WIDE

    @cached_property
    def size(self) -> tuple[int, int, int]:
        """Rows, columns and channels of an image's copy as they lie: what the windows reach."""
        if self.pixels:
            _, down, across = self.source.axes
            rows = down - 1 + self.taps[0]
            columns = across - self.pixels + ceil(self.run, self.deep)
        else:
            window = self.window
            rows, columns = (
                (positions - 1) * stride + (taps - 1) * dilation + 1
                for positions, stride, taps, dilation in zip(
                    self.source.axes[1:],
                    window.strides,
                    window.taps,
                    window.dilations,
                    strict=True,
                )
            )
        return rows, columns + -columns % 4, self.deep

    @property
    def places(self) -> int:
        """Folded pixels of all images' copies."""
        images = self.source.rows // (self.source.axes[1] * self.source.axes[2])
        return self.size[0] * self.size[1] * images

    @property
    def bytes(self) -> int:
        """Of the copy, so many that what follows it is aligned."""
        size = self.places * self.deep * self.source.dtype.size
        return size + -size % 256

    @property
    def problem(self) -> Problem:
        """The problem on the copied images; where they lie is not among its values."""
        rows, columns, deep = self.size
        image = Access(Pointer(self.source.dtype), (rows * columns * deep, columns * deep, deep, 1))
        on_copy = replace(
            self.source,
            channels=self.channels,
            left=Work((), identity(self.source.dtype), (image,), ()),
            left_values=(),
            window=replace(self.window, size=(rows, columns), pads=(0, 0), checked=(False, False)),
        )
        if not self.pixels:
            return on_copy
        size, taps = (rows, columns), (self.taps[0], 1)
        window = Window(size, taps, (1, self.pixels), (1, 1), (0, 0), (False, False))
        *outer, wide = self.source.axes
        return replace(
            on_copy,
            rows=self.source.rows // self.pixels,
            columns=self.source.columns * self.pixels,
            channels=self.run,
            axes=(*outer, wide // self.pixels),
            window=window,
            result=_by_pixels(self.source.result, self.pixels),
            pixels=self.pixels,
        )

    @property
    def kernel(self) -> ImageKernel:
        """The kernel that copies."""
        (rows, columns, _), (down, across) = self.size, self.fold
        return ImageKernel(
            warps=4,
            stages=1,
            image=self.source.left,
            size=(*self.window.size, self.source.channels),
            copy=(rows * down, columns * across, self.channels),
            pads=self.window.pads,
            dtype=self.source.dtype,
            zero=self.source.zero,
            fold=self.fold,
        )


def by_pixels(problem: Problem, pixels: int) -> Problem | None:
    """The problem with so many neighbouring pixels of the result a row; None if it cannot be."""
    window = problem.window
    if window is None:
        return _together(problem, pixels)
    if window.dilations != (1, 1) or window.taps[1] == 1:
        return None
    *outer, wide = problem.axes
    if wide % pixels or problem.columns * pixels > WIDEST:
        return None
    (down, across), (rows, columns) = window.taps, window.strides
    return replace(
        problem,
        rows=problem.rows // pixels,
        columns=problem.columns * pixels,
        axes=(*outer, wide // pixels),
        window=replace(
            window,
            taps=(down, across + (pixels - 1) * columns),
            strides=(rows, columns * pixels),
        ),
        result=_by_pixels(problem.result, pixels),
        pixels=pixels,
    )


def _together(problem: Problem, pixels: int) -> Problem | None:
    """The problem with so many neighbouring rows as one, if these lie dense. Those of the result
    may lie apart, but not within as many.
    """
    leaves, (lead, *more) = problem.left.leaves, problem.axes
    item, near = leaves[0], problem.result.shape[-2]
    if problem.right is not None or problem.rows % pixels or more or len(leaves) > 1:
        return None
    if near > 0 and near % pixels:
        return None
    if item is None or item.strides != (problem.channels, 1):
        return None
    wide = replace(item, strides=(pixels * problem.channels, 1))
    return replace(
        problem,
        rows=problem.rows // pixels,
        columns=problem.columns * pixels,
        channels=problem.channels * pixels,
        left=replace(problem.left, leaves=(wide,)),
        axes=(lead,),
        result=_by_pixels(problem.result, pixels),
        pixels=pixels,
    )


def filters_by_pixels(filters: np.ndarray, stride: int, pixels: int) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` of taps as those of rows of several pixels.

    Returns
    -------
    array
        ``[rows, columns + (pixels - 1) * stride, C, pixels * K]``, zeros where a pixel's window
        does not reach; of single pixels ``[1, 1, pixels * C, pixels * K]``.
    """
    down, across, channels, columns = filters.shape
    if (down, across) == (1, 1):
        together = np.zeros((pixels, channels, pixels, columns), filters.dtype)
        for pixel in range(pixels):
            together[pixel, :, pixel] = filters
        return together.reshape(1, 1, pixels * channels, pixels * columns)
    taps = across + (pixels - 1) * stride
    found = np.zeros((down, taps, channels, pixels, columns), filters.dtype)
    for pixel in range(pixels):
        found[:, pixel * stride : pixel * stride + across, :, pixel] = filters
    return found.reshape(down, taps, channels, -1)


def filters_on_copy(
    filters: np.ndarray, channels: int, strides: Sequence[int], pixels: int
) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` of taps as those of the problem on a copy; see `ImageCopy`.

    Returns
    -------
    array
        ``[rows, columns, channels, K]``, zeros in channels that the image lacks; for a folded copy
        ``[folded rows, 1, run, pixels * K]``, zeros where a pixel's window does not reach.
    """
    down, across, own, columns = filters.shape
    by, beside = strides if pixels else (1, 1)
    rows, taps = ceil(down, by), ceil(across, beside)
    widths = ((0, rows * by - down), (0, taps * beside - across), (0, channels - own), (0, 0))
    whole = np.pad(filters, widths)
    if not pixels:
        return whole
    parts = whole.reshape(rows, by, taps, beside, channels, columns).transpose(0, 2, 1, 3, 4, 5)
    deep = by * beside * channels
    folded = parts.reshape(rows, taps, deep, columns)
    runs = filters_by_pixels(folded, 1, pixels).reshape(rows, 1, -1, pixels * columns)
    more = _run(taps, deep, pixels, filters.itemsize) - runs.shape[2]
    return np.pad(runs, ((0, 0), (0, 0), (0, more), (0, 0)))


def _run(taps: int, deep: int, pixels: int, size: int) -> int:
    """Elements of a row of folded pixels that so many taps of so many pixels cover; to the end of
    16 bytes, which a thread loads at once, where such rows begin with 16 bytes: the next pixel is
    then multiplied by zeros.
    """
    run, whole = (pixels - 1 + taps) * deep, 16 // size
    return run if pixels * deep % whole else run + -run % whole


def _by_pixels(work: Work, pixels: int) -> Work:
    """The work on a result whose rows are so many pixels: these get an axis before the columns."""

    def split(item: Access) -> Access:
        *outer, row, column = item.strides
        return replace(item, strides=(*outer, row * pixels, row, column))

    *outer, rows, columns = work.shape
    return replace(
        work,
        shape=(*outer, rows if rows < 0 else rows // pixels, pixels, columns),
        leaves=tuple(None if leaf is None else split(leaf) for leaf in work.leaves),
        outputs=tuple(split(item) for item in work.outputs),
    )

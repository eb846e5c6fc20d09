"""Images of few channels, copied with more of them and with their borders, for the matrix kernel.

Three channels of a half take six bytes: tiles of them can only be gathered element by element, and
windows that leave the image need conditions. With four channels, and zeros around the image,
windows are runs of memory that start at multiples of eight bytes. A prologue is applied on the way.

A copy may also be folded: where windows go two pixels at a time, two by two pixels become one of
four times the channels, and windows of it go one at a time: what is read then starts at multiples
of 16 bytes, and half as many taps cover the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planish.fusion.expression import identity
from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import WIDE, Access, Work, apply, decompose
from planish.targets.cuda.kernels.matrix_problem import BYTES, Problem
from planish.targets.cuda.kernels.matrix_tile import ceil

BLOCK = 2048
"""Elements of the copy that a program writes."""
FOLD = 2
"""How many pixels of a row, and of a column, a folded copy has in one."""
CHANNELS = (4, 8, 16, 24, 32)
"""What a copy may have."""


@dataclass(frozen=True)
class ImageKernel(TritonKernel):
    """Copies images. Parameter: the pixels of all copies.

    Attributes
    ----------
    image : Work
        What is copied, and what happens to its elements; axes image, row, column, channel.
    size : tuple of int
        Rows, columns and channels of an image.
    copy : tuple of int
        The same of its copy.
    pads : tuple of int
        Rows and columns of the copy before the image's first.
    dtype : DType
        Of the copy.
    zero : int
        What stands around the image: 0, or the zero point of levels.
    fold : int
        How many pixels each way a pixel of the copy is.
    """

    family = "matrix_image"

    image: Work
    size: tuple[int, int, int]
    copy: tuple[int, int, int]
    pads: tuple[int, int]
    dtype: DType
    zero: int = 0
    fold: int = 1

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.image.pointers, Pointer(self.dtype))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def pixels(self) -> int:
        """Pixels of the copy that a program writes."""
        return BLOCK // _power(self.copy[2])

    def write(self, k: Source) -> None:
        for name in ("place", "channel", "inside"):
            k.name(name)
        rows, columns, channels = self.copy
        k.line(f"place = tl.program_id(0) * {self.pixels} + tl.arange(0, {self.pixels})")
        k.line(f"channel = tl.arange(0, {_power(channels)})[None, :]")
        image, *pixel = decompose(k, "place", (-1, rows, columns))
        own = self.size[2]
        part = k.let("part", f"channel // {own}") if self.fold > 1 else None
        exists = ["(place < n0)[:, None]", f"(channel < {own * self.fold**2})"]
        index = [f"{image}[:, None]"]
        for axis, name in enumerate(pixel):
            at = f"({name} * {self.fold} - {self.pads[axis]})[:, None]"
            if part:
                at += f" + {part} // {self.fold}" if axis == 0 else f" + {part} % {self.fold}"
            at = k.let("at", at)
            index.append(at)
            exists.append(f"({at} >= 0) & ({at} < {self.size[axis]})")
        index.append(k.let("own", f"channel % {own}") if part else "channel")
        mask = k.let("exists", " & ".join(exists))
        (value,) = apply(k, self.image, 0, index, mask)
        kind = storage_type(self.dtype)
        target = f"p{len(self.image.pointers)} + place[:, None] * {channels} + channel"
        around = self.zero if self.dtype in BYTES else 0.0
        value = f"tl.where({mask}, {value}, {around}).to({kind})"
        k.line(f"inside = (place < n0)[:, None] & (channel < {channels})")
        k.line(f"tl.store({target}, {value}, mask=inside)")


def _power(count: int) -> int:
    """The power of two that is no less."""
    return 1 << (count - 1).bit_length()


def copy_size(problem: Problem, channels: int, fold: int = 1) -> tuple[int, int, int]:
    """Rows, columns and channels of an image's copy: what the windows reach."""
    window = problem.window
    assert window is not None
    rows, columns = (
        ceil((positions - 1) * stride + (taps - 1) * dilation + 1, fold)
        for positions, stride, taps, dilation in zip(
            problem.axes[1:], window.strides, window.taps, window.dilations, strict=True
        )
    )
    return rows, columns + -columns % 4, channels


def copied_images(problem: Problem) -> int:
    """How many images there are."""
    return problem.rows // (problem.axes[1] * problem.axes[2])


def copied_pixels(problem: Problem, fold: int = 1) -> int:
    """Pixels of all copies."""
    rows, columns, _ = copy_size(problem, 1, fold)
    return rows * columns * copied_images(problem)


def copy_bytes(problem: Problem, channels: int, fold: int = 1) -> int:
    """Bytes of the copy, so many that what follows it is aligned."""
    size = copied_pixels(problem, fold) * channels * problem.dtype.size
    return size + -size % 256


def may_copy(problem: Problem, channels: int, fold: int = 1) -> bool:
    """Whether a copy with so many channels makes sense and fits 32-bit offsets."""
    window = problem.window
    if window is None or window.taps == (1, 1) or channels < problem.channels * fold**2:
        return False
    if fold > 1 and (window.strides != (fold, fold) or window.dilations != (1, 1)):
        return False
    return copy_bytes(problem, channels, fold) // problem.dtype.size < WIDE


def on_copy(problem: Problem, channels: int, fold: int = 1) -> Problem:
    """The problem on the copied images; where they lie is not among its values."""
    rows, columns, _ = copy_size(problem, channels, fold)
    window = problem.window
    assert window is not None
    strides = (rows * columns * channels, columns * channels, channels, 1)
    image = Access(Pointer(problem.dtype), strides)
    down, across = window.strides
    window = replace(
        window,
        size=(rows, columns),
        pads=(0, 0),
        checked=(False, False),
        strides=(down // fold, across // fold),
        taps=(ceil(window.taps[0], fold), ceil(window.taps[1], fold)),
    )
    return replace(
        problem,
        channels=channels,
        left=Work((), identity(problem.dtype), (image,), ()),
        left_values=(),
        window=window,
    )


def image_kernel(problem: Problem, channels: int, fold: int = 1) -> ImageKernel:
    """The kernel that copies."""
    window = problem.window
    assert window is not None
    return ImageKernel(
        warps=4,
        stages=1,
        image=problem.left,
        size=(*window.size, problem.channels),
        copy=copy_size(problem, channels, fold),
        pads=window.pads,
        dtype=problem.dtype,
        zero=problem.zero,
        fold=fold,
    )


def filters_on_copy(weights: np.ndarray, channels: int, fold: int = 1) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` as they are for copied images."""
    rows, columns, own, count = weights.shape
    down, across = ceil(rows, fold), ceil(columns, fold)
    more = (0, down * fold - rows), (0, across * fold - columns)
    whole = np.pad(weights, (*more, (0, 0), (0, 0)))
    parts = whole.reshape(down, fold, across, fold, own, count).transpose(0, 2, 1, 3, 4, 5)
    folded = parts.reshape(down, across, fold * fold * own, count)
    return np.pad(folded, ((0, 0), (0, 0), (0, channels - folded.shape[2]), (0, 0)))

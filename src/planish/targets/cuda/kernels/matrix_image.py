"""Images of few channels, copied with more of them and with their borders, for the matrix kernel.

Three channels of a half take six bytes: tiles of them can only be gathered element by element, and
windows that leave the image need conditions. With four channels, and zeros around the image,
windows are runs of memory that start at multiples of eight bytes. A prologue is applied on the way.
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

BLOCK = 1024
"""Elements of the copy that a program writes."""
CHANNELS = (4, 8, 16, 24, 32)
"""What a copy may have."""


@dataclass(frozen=True)
class ImageKernel(TritonKernel):
    """Copies images. Parameter: the elements of the copy.

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
    """

    family = "matrix_image"

    image: Work
    size: tuple[int, int, int]
    copy: tuple[int, int, int]
    pads: tuple[int, int]
    dtype: DType
    zero: int = 0

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.image.pointers, Pointer(self.dtype))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        k.name("place")
        k.line(f"place = tl.program_id(0) * {BLOCK} + tl.arange(0, {BLOCK})")
        index = decompose(k, "place", (-1, *self.copy))
        exists = ["(place < n0)"]
        for axis, (size, extent) in enumerate(zip(self.size, self.copy, strict=True)):
            name = index[1 + axis]
            if axis < 2 and self.pads[axis]:
                index[1 + axis] = name = k.let("i", f"{name} - {self.pads[axis]}")
                exists.append(f"({name} >= 0)")
            if axis == 2 or self.pads[axis] + size < extent or self.pads[axis]:
                exists.append(f"({name} < {size})")
        mask = k.let("exists", " & ".join(exists))
        (value,) = apply(k, self.image, 0, index, mask)
        kind = storage_type(self.dtype)
        target = f"p{len(self.image.pointers)} + place"
        around = self.zero if self.dtype in BYTES else 0.0
        value = f"tl.where({mask}, {value}, {around}).to({kind})"
        k.line(f"tl.store({target}, {value}, mask=place < n0)")


def copy_size(problem: Problem, channels: int) -> tuple[int, int, int]:
    """Rows, columns and channels of an image's copy: what the windows reach."""
    window = problem.window
    assert window is not None
    rows, columns = (
        (positions - 1) * stride + (taps - 1) * dilation + 1
        for positions, stride, taps, dilation in zip(
            problem.axes[1:], window.strides, window.taps, window.dilations, strict=True
        )
    )
    return rows, columns + -columns % 4, channels


def copied_images(problem: Problem) -> int:
    """How many images there are."""
    return problem.rows // (problem.axes[1] * problem.axes[2])


def copy_bytes(problem: Problem, channels: int) -> int:
    """Bytes of the copy, so many that what follows it is aligned."""
    size = int(np.prod(copy_size(problem, channels))) * copied_images(problem)
    return size * problem.dtype.size + -(size * problem.dtype.size) % 256


def may_copy(problem: Problem, channels: int) -> bool:
    """Whether a copy with so many channels makes sense and fits 32-bit offsets."""
    if problem.window is None or problem.window.taps == (1, 1) or channels < problem.channels:
        return False
    return copy_bytes(problem, channels) // problem.dtype.size < WIDE


def on_copy(problem: Problem, channels: int) -> Problem:
    """The problem on the copied images; where they lie is not among its values."""
    rows, columns, _ = copy_size(problem, channels)
    window = problem.window
    assert window is not None
    strides = (rows * columns * channels, columns * channels, channels, 1)
    image = Access(Pointer(problem.dtype), strides)
    return replace(
        problem,
        channels=channels,
        left=Work((), identity(problem.dtype), (image,), ()),
        left_values=(),
        window=replace(window, size=(rows, columns), pads=(0, 0), checked=(False, False)),
    )


def image_kernel(problem: Problem, channels: int) -> ImageKernel:
    """The kernel that copies."""
    window = problem.window
    assert window is not None
    return ImageKernel(
        warps=4,
        stages=1,
        image=problem.left,
        size=(*window.size, problem.channels),
        copy=copy_size(problem, channels),
        pads=window.pads,
        dtype=problem.dtype,
        zero=problem.zero,
    )

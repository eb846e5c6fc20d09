"""Convolutions of images of few channels, with the pooling behind them, on Hopper's tensor cores.

What makes such layers slow is not their products: every element of the image is read once for each
tap, and what they give, the largest tensor of the network, is written and read again by a pooling.
Here a block goes down a strip of one image. Rows of the image are loaded once, as they lie, made
numbers of the factors' type, and laid into a ring in shared memory with four channels a pixel, the
missing ones repeated or zero. The matrix of windows is never written anywhere: descriptors by which
tensor cores find a factor in shared memory may say that its parts *overlap*:

    a row of the image    | p0 p1 | p2 p3 | p4 p5 | p6 p7 | p8 p9 | …      8 bytes a pixel of halves
    result 0's window       0       16      32      48                    bytes: the depth of a row
    result 1's window               0       16      32      48            of taps; steps of two

Without exchanged places a descriptor's smallest part is eight rows of 16 bytes, 128 bytes that lie
side by side: here eight neighbouring results by two pixels. The next 16 bytes of depth begin 16
bytes further on. So a row of 8 taps (7, and one of zeros) is two instructions of depth 16, whose
factor is a row of the image as it lies. Where a step is fewer than 16 bytes, of bytes or by steps
of one, the row is kept in two or four copies that begin that much later, for the even and the odd
results; as the stride between eight and eight results is one number, each eight of them have a
block of their own, and the blocks of the copies alternate.

The weights are the other factor, 64 filters at a time. They stay in registers for the life of a
block, so that tensor cores read nothing but pixels from shared memory: half a row of the result at
once, while the other half is finished. A warp's rows r and r + 8 are neighbouring filters, which a
thread stores together.

Four of the block's warps load, four compute; two blocks share a multiprocessor. Of a pooling by
steps of two, rows of the convolution are computed once: what is largest along a row stays in
registers until all rows of a window are there. That is found before bias and activation, which keep
the order of numbers. As with copies of images (`matrix_image`), an infinity or NaN in an image also
reaches results beside those whose windows cover it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from planish.graph.types import DType
from planish.targets.cuda.kernel import Pointer, PtxKernel
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.first_conv.writer import FirstConvWriter
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER

CHANNELS = 4
"""Of a pixel in shared memory."""
FILTERS = 64
"""That a block computes."""
CHUNK = 16
"""Bytes of the smallest part of a factor along its depth."""
STEP = 32
"""Bytes of depth of an instruction."""
QUAD = 4
"""Neighbouring pixels that a thread loads at a time."""
FEW_REGISTERS = 168
"""For weights and sums, with which two blocks share a multiprocessor."""
MOST_SUMS = 96
"""Of them of an instruction: the assembler wants all of them, and more, among the first 128."""
SPARE = 16
"""Registers for all else."""
BESIDE = 26, 36
"""Registers of a thread that loads, beside elements: of halves, and of levels, which take more."""
EDGE = 12
"""More of them, where a row's last pixels are looked after one by one; for each item but one."""
FEWEST = 160
"""Of a thread that computes."""
REGISTERS = 256
"""Of two threads, one that computes and one that loads, of such a block."""


@dataclass(frozen=True)
class Pooling:
    """Largest elements of windows, by steps of two.

    Attributes
    ----------
    window : int
        Rows and columns of a window, 2 or 3.
    pads : tuple of int
        Rows and columns of the first window before the first row and column: 0 or, of 3, 1.
    size : tuple of int
        Rows and columns of the pooled result.
    """

    window: int
    pads: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class FirstConvKernel(PtxKernel):
    """One specialisation. Parameter: the images.

    Attributes
    ----------
    high : int
        Rows of the (pooled) result that a block computes.
    ring : int
        Units in shared memory: as many rows of the image as a row of the convolution steps over.
    halves : int
        Parts of a row, 1 or 2: of two, tensor cores compute one while the other one is finished.
    ahead : int
        Units that threads have in registers, or ask for, while earlier ones are computed.
    dtype : DType
        Of the factors.
    image : Work
        What happens to an image's elements, and how they lie: axes image, row, column, channel.
    size : tuple of int
        Rows, columns and channels of an image.
    taps, strides, pads : tuple of int
        Of the convolution, by rows and columns.
    positions : tuple of int
        Rows and columns of what the convolution gives.
    columns : int
        Filters.
    result : Work
        What happens to (the largest) sums.
    pool : Pooling or None
    """

    family = "first_conv"
    warps: ClassVar[int] = 8
    codes: ClassVar[bool] = False

    high: int
    ring: int
    halves: int
    ahead: int
    dtype: DType
    image: Work
    size: tuple[int, int, int]
    taps: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    positions: tuple[int, int]
    columns: int
    result: Work
    pool: Pooling | None

    @property
    def source(self) -> Access:
        """The image."""
        (found,) = (leaf for leaf in self.image.leaves if leaf is not None)
        return found

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (self.source.pointer, Pointer(self.dtype), *self.result.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def place_of(self, leaf: int) -> int:
        """The number of a leaf's pointer among the result's."""
        return sum(a is not None for a in self.result.leaves[:leaf])

    # ---- what a block computes ------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[int, int]:
        """Rows and columns of the (pooled) result."""
        return self.pool.size if self.pool else self.positions

    @property
    def strips(self) -> int:
        """Blocks for an image and the same filters."""
        return ceil(self.outputs[0], self.high)

    @property
    def parts(self) -> int:
        """Blocks for the same rows."""
        return ceil(self.columns, FILTERS)

    # ---- pixels ---------------------------------------------------------------------------------

    @property
    def pixel(self) -> int:
        """Bytes of a pixel in shared memory."""
        return CHANNELS * self.dtype.size

    @property
    def copies(self) -> int:
        """Of each row."""
        return CHUNK // (self.strides[1] * self.pixel)

    @property
    def lead(self) -> int:
        """Pixels in shared memory before an image's first."""
        return self.pads[1] + idle_taps(self.pads[1], self.dtype.size)

    @property
    def steps(self) -> int:
        """Instructions for each row of taps."""
        return steps_of(self.taps[1], self.pads[1], self.dtype.size)

    @property
    def chunks(self) -> int:
        """Smallest parts of a row of taps."""
        return self.steps * STEP // CHUNK

    @property
    def runs(self) -> int:
        """Runs of neighbouring columns of the convolution's result that a thread has."""
        return ceil(self.positions[1], 8 * self.copies)

    @property
    def run(self) -> int:
        """Columns of such a run."""
        return 2 * self.copies

    @property
    def across(self) -> int:
        """Columns of an instruction: a row of the convolution's result, and what is beside it."""
        return 8 * self.copies * self.runs

    @property
    def shares(self) -> list[range]:
        """Runs of the halves of a row, in the order in which they are computed: the one that a
        window of the other one reaches into comes first.
        """
        if self.halves == 1 or self.runs == 1:
            return [range(self.runs)]
        middle = ceil(self.runs, 2)
        both = [range(middle), range(middle, self.runs)]
        is_left_first = self.pool is None or self.pool.pads[1] > 0
        return both if is_left_first else both[::-1]

    def sum_of(self, run: int, column: int, half: int) -> int:
        """The number among the sums of a thread's half of a row: of a column of a run, of the
        first or second filter.
        """
        beside, copy = divmod(column, self.copies)
        return 4 * (self.copies * run + copy) + 2 * half + beside

    # ---- shared memory --------------------------------------------------------------------------

    @property
    def block(self) -> int:
        """Bytes from eight results' pixels to the next ones'."""
        return 8 * CHUNK if self.copies == 1 else (8 + self.chunks - 1) * CHUNK

    @property
    def row_bytes(self) -> int:
        """Of a row of the image."""
        if self.copies > 1:
            return self.across // 8 * self.block
        loaded = (ceil(self.size[1], QUAD) * QUAD + self.lead) * self.pixel
        read = (self.across - 1 + self.chunks) * CHUNK
        return ceil(max(loaded, read), CHUNK) * CHUNK

    @property
    def seen(self) -> int:
        """Units that a row of the convolution reads."""
        return ceil(self.taps[0], self.strides[0])

    @property
    def unit_bytes(self) -> int:
        """Of a unit."""
        return self.strides[0] * self.row_bytes

    @property
    def barriers(self) -> int:
        """Where they begin: one for each unit that is there, one for each that was read."""
        return self.ring * self.unit_bytes

    @property
    def shared(self) -> int:
        """Bytes in all. NVIDIA's memory checker knows no parts that overlap: what it takes for the
        last row's factor is also there.
        """
        last = self.barriers - self.row_bytes + self.steps * STEP + self.across * STEP
        return max(self.barriers + 2 * BARRIER * self.ring, last)

    # ---- registers ------------------------------------------------------------------------------

    @property
    def weights(self) -> int:
        """Registers of a thread for weights."""
        return self.taps[0] * self.steps * STEP // 8

    @property
    def registers(self) -> int:
        """Of a thread, for weights and sums."""
        return self.weights + self.across // 2 * (2 if self.pool else 1)

    @property
    def at_once(self) -> int:
        """Blocks that registers are left for on a multiprocessor."""
        few = self.registers <= FEW_REGISTERS and self.across // 2 <= MOST_SUMS
        return 2 if few else 1

    @property
    def computing(self) -> int:
        """Registers of a thread that computes, where two blocks share a multiprocessor."""
        return max(ceil(self.registers + SPARE, 8) * 8, FEWEST)

    @property
    def loading(self) -> int:
        """The same of a thread that loads."""
        return REGISTERS - self.computing

    @property
    def items(self) -> int:
        """Groups of four pixels of a unit that a thread loads."""
        return ceil(self.strides[0] * ceil(self.size[1], QUAD), 4 * self.warps * QUAD)

    @property
    def most_ahead(self) -> int:
        """Units that there are registers for to load ahead."""
        each = self.items * QUAD * self.size[2]
        beside = BESIDE[self.dtype is DType.INT8] + EDGE * (self.size[1] % QUAD > 0)
        loading = self.loading if self.at_once > 1 else REGISTERS // 2
        return max((loading - beside - EDGE * (self.items - 1)) // each, 1)

    # ---- code -----------------------------------------------------------------------------------

    @cached_property
    def _text(self) -> str:
        return FirstConvWriter(self).write()

    def text(self) -> str:
        """The kernel as PTX.

        Raises
        ------
        NotExpressible
            What happens to elements has something that PTX is not written for here.
        """
        return self._text


def idle_taps(pad: int, size: int) -> int:
    """Taps of zeros before a row's first, so that four pixels of elements of so many bytes can be
    stored at once behind a padding.
    """
    return -pad % (CHUNK // (CHANNELS * size))


def steps_of(taps: int, pad: int, size: int) -> int:
    """Instructions for a row of taps; see `idle_taps`."""
    return ceil((idle_taps(pad, size) + taps) * CHANNELS * size, STEP)


def packed(filters: np.ndarray, pad: int) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` of taps as threads hold them; see `idle_taps`.

    Returns
    -------
    array, ``[parts, instructions, 128, 16 bytes]``
        Per thread the four registers of an instruction's left factor.
    """
    rows, across, channels, count = filters.shape
    size, idle = filters.itemsize, idle_taps(pad, filters.itemsize)
    steps, parts = steps_of(across, pad, size), ceil(count, FILTERS)
    more = steps * STEP // (CHANNELS * size) - idle - across
    widths = ((0, 0), (idle, more), (0, CHANNELS - channels), (0, parts * FILTERS - count))
    each = 4 // size  # of a register
    # instruction, half of its depth, thread of four, of a register; part, warp, of eight, of two
    shape = (rows * steps, 2, 4, each, parts, 4, 8, 2)
    found = np.pad(filters, widths).reshape(shape).transpose(4, 0, 5, 6, 2, 1, 7, 3)
    return np.ascontiguousarray(found).reshape(parts, rows * steps, 128, 4 * each)

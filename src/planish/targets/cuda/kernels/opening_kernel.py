"""Two 3x3 convolutions and a 2x2 pooling as one kernel, for a network's first layers.

A program goes down a strip of some images, row by row. It computes a row of the first convolution,
three times, as the second one's taps see it; each goes, from registers, into the sums of the three
rows of the second result that it belongs to:

    image (copied) ─▶ first, row y ─┬─ x taps of row 2 ─▶ sums of row y - 1: complete, pooled
                                    ├─ x taps of row 1 ─▶ sums of row y
                                    └─ x taps of row 0 ─▶ sums of row y + 1

All weights stay in shared memory. What the first convolution gives is never stored, and of the
second one the largest of every window. Pixels lie in a tile so that two neighbours, of which the
pooling takes the larger, belong to the same thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Work, apply, decompose, finish, load
from planish.targets.cuda.kernels.matrix_tile import ceil

CHANNELS = 4
"""Of a pixel of the copied image."""
PADS = (1, 2)
"""Rows and columns of the copy before the image's first."""
RUN = 16
"""Elements of a row of the copy that a pixel's window takes: of one pixel more than it has."""
PARTS = (32, 16)
"""Rows of the first convolution's window as products: two, and the last one."""

_NAMES = (
    *("pid", "rest", "across", "down", "first_image", "row", "image", "x", "y", "step", "inside"),
    *("middle", "column", "total0", "total1", "total2", "kept", "larger", "half", "window"),
)


@dataclass(frozen=True)
class OpeningKernel(TritonKernel):
    """One specialisation. Parameter: the images.

    Attributes
    ----------
    images, width : int
        Of a tile: powers of two, `width` neighbouring pixels of each image.
    height : int
        Rows of the second result that a program computes, an even number.
    dtype : DType
    size : tuple of int
        Rows and columns of an image, and of what both convolutions give.
    pitches : tuple of int
        From one image of the copy to the next, and from one row to the next. It begins a row, and
        two pixels, before the image.
    middle, columns : int
        Channels that the convolutions give: powers of two.
    between : Work
        What happens to the first result, without outputs.
    result : Work
        What happens to the pooled one.
    """

    family = "opening"

    images: int
    width: int
    height: int
    dtype: DType
    size: tuple[int, int]
    pitches: tuple[int, int]
    middle: int
    columns: int
    between: Work
    result: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        own = Pointer(self.dtype)
        return (own, own, *self.between.pointers, own, *self.result.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def rows(self) -> int:
        """Pixels of a tile."""
        return self.images * self.width

    @property
    def programs(self) -> tuple[int, int]:
        """Down and across an image."""
        return ceil(self.size[0], self.height), ceil(self.size[1], self.width)

    def write(self, k: Source) -> None:
        for name in _NAMES:
            k.name(name)
        self._place(k)
        small, large = self._weights(k)
        given = self._constants(k, self.between, 2, "middle")
        added = self._constants(k, self.result, self._result_pointer, "column")
        starts = self._starts(k)
        for name in ("total0", "total1"):
            k.line(f"{name} = tl.full(({self.rows}, {self.columns}), 0.0, tl.float32)")
        k.line(f"kept = tl.full(({self.rows // 2}, {self.columns}), 0.0, tl.float32)")
        window = self._window(k)
        with k.block(f"for step in tl.range(0, {self.height + 2}, num_stages={self.stages}):"):
            k.line(f"y = down * {self.height} - 1 + step")
            loaded = [self._load(k, start) for start, _ in starts]
            taps = [
                self._first(k, tiles, inside, small, given)
                for tiles, (_, inside) in zip(loaded, starts, strict=True)
            ]
            for row, total in enumerate(("total0", "total1", "total2")):
                for column, tap in enumerate(taps):
                    sums = f", {total}" if row < 2 or column else ""
                    k.line(f"{total} = tl.dot({tap}, {large[2 - row][column]}{sums})")
            self._pool(k, window, added)
            for total in ("total1", "total2"):
                k.settle(total)
            k.line("total0 = total1")
            k.line("total1 = total2")

    @property
    def _result_pointer(self) -> int:
        return 3 + len(self.between.pointers)

    def _place(self, k: Source) -> None:
        """Names the program's pixels, in the order in which a tile has them."""
        down, across = self.programs
        k.line("pid = tl.program_id(0)")
        k.line(f"across = pid % {across}")
        k.line(f"rest = pid // {across}")
        k.line(f"down = rest % {down}")
        k.line(f"first_image = rest // {down} * {self.images}")
        k.line(f"row = tl.arange(0, {self.rows})")
        k.line("row = row // 16 * 16 + row % 8 * 2 + row // 8 % 2")
        k.line(f"image = first_image + row // {self.width}")
        k.line(f"x = across * {self.width} + row % {self.width}")
        k.line(f"middle = tl.arange(0, {self.middle})")
        k.line(f"column = tl.arange(0, {self.columns})")

    def _weights(self, k: Source) -> tuple[list[str], list[list[str]]]:
        """Loads the weights of both convolutions: by parts of the window, and by taps."""
        small, start = [], 0
        for part in PARTS:
            along = k.let("along", f"tl.arange(0, {part})")
            place = f"middle[None, :] * {sum(PARTS)} + ({along}[:, None] + {start})"
            small.append(k.let("w", f"tl.load(p1 + {place})"))
            start += part
        place = k.let("place", f"column[None, :] * {self.middle} + middle[:, None]")
        pointer, size = f"p{self._result_pointer - 1}", self.middle * self.columns
        large = [
            [
                k.let("w", f"tl.load({pointer} + {place} + {(3 * down + across) * size})")
                for across in range(3)
            ]
            for down in range(3)
        ]
        return small, large

    def _constants(self, k: Source, work: Work, pointer: int, channel: str) -> list[str | None]:
        """Loads what channels share."""
        found: list[str | None] = []
        index = [*["0"] * (len(work.shape) - 1), f"{channel}[None, :]"]
        for item in work.leaves:
            found.append(None if item is None else load(k, pointer, item, index, None))
            pointer += item is not None
        return found

    def _starts(self, k: Source) -> list[tuple[list[str], str]]:
        """For each column of taps pointers to the windows of the first convolution, by parts, and
        which pixels of its result exist.
        """
        pitch, line = self.pitches
        safe = k.let("safe", "tl.minimum(image, n0 - 1)")
        near = f"tl.minimum(x, {self.size[1] - 1}) * {CHANNELS}"
        near = k.let("near", f"({safe} * {pitch} + {near})[:, None]")
        parts, start = [], 0
        for part in PARTS:
            along = k.let("along", f"tl.arange(0, {part})")
            run = f"{along} // {RUN} * {line} + {along} % {RUN} + {start // RUN * line}"
            parts.append(k.let("start", f"p0 + ({near} + ({run})[None, :])"))
            start += part
        starts = []
        for shift in range(3):
            at = k.let("at", f"x + {shift - 1}")
            inside = k.let("inside", f"({at} >= 0) & ({at} < {self.size[1]})")
            starts.append(([f"{part} + {shift * CHANNELS}" for part in parts], inside))
        return starts

    def _load(self, k: Source, start: Sequence[str]) -> list[str]:
        """Loads the windows of a row of the first convolution's result, by parts."""
        line = f"tl.minimum(tl.maximum(y, 0), {self.size[0] - 1}) * {self.pitches[1]}"
        return [k.let("a", f"tl.load({part} + {line})") for part in start]

    def _first(
        self,
        k: Source,
        tiles: Sequence[str],
        inside: str,
        weights: Sequence[str],
        given: list[str | None],
    ) -> str:
        """A row of the first convolution's result, as one of the second one's taps sees it."""
        total = k.let("sum", f"tl.full(({self.rows}, {self.middle}), 0.0, tl.float32)")
        for tile, w in zip(tiles, weights, strict=True):
            total = k.let("sum", f"tl.dot({tile}, {w}, {total})")
        index = [*["0"] * (len(self.between.shape) - 1), "middle[None, :]"]
        (value,) = apply(k, self.between, 2, index, None, [total], given)
        exists = f"({inside} & (y >= 0) & (y < {self.size[0]}))[:, None]"
        kind = storage_type(self.dtype)
        return k.let("made", f"tl.where({exists}, {value}, 0.0).to({kind})")

    def _window(self, k: Source) -> tuple[str, str]:
        """Where the program's windows begin, as rows of the result, and which of them exist."""
        rows, columns = (extent // 2 for extent in self.size)
        k.line(f"half = tl.arange(0, {self.rows // 2}) * 2")
        image = k.let("image", f"first_image + half // {self.width}")
        column = k.let("x", f"(across * {self.width} + half % {self.width}) // 2")
        exists = k.let("exists", f"({image} < n0) & ({column} < {columns})")
        return k.let("window", f"{image} * {rows * columns} + {column}"), exists

    def _pool(self, k: Source, window: tuple[str, str], added: list[str | None]) -> None:
        """Takes the larger of neighbours of the row that is complete, and of it and the one before;
        stores it where that one ends windows.
        """
        rows, columns = (extent // 2 for extent in self.size)
        start, exists = window
        shape = f"({self.rows // 16}, 2, 8, {self.columns})"
        pairs = k.let("pairs", f"tl.permute(tl.reshape(total0, {shape}), (0, 2, 3, 1))")
        k.line(f"left, right = tl.split({pairs})")
        k.line(f"larger = {_larger('left', 'right')}")
        k.line(f"larger = tl.reshape(larger, ({self.rows // 2}, {self.columns}))")
        both = k.let("both", _larger("kept", "larger"))
        k.line("kept = larger")
        y = k.let("row", f"down * {self.height // 2} + step // 2 - 1")
        written = f"({exists} & (step > 1) & (step % 2 == 1) & ({y} < {rows}))[:, None]"
        mask = k.let("written", written)
        row = k.let("row", f"{start} + {y} * {columns}")
        index = [f"{name}[:, None]" for name in decompose(k, row, self.result.shape[:-1])]
        masks = [*([mask] * len(index)), None]
        place = [*index, "column[None, :]"]
        finish(k, self.result, self._result_pointer, place, masks, [both], added)


def _larger(a: str, b: str) -> str:
    """The larger of two tiles; NaN counts as larger than all."""
    return f"tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"

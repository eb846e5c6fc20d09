"""Writes a product of the matrix kernel: the loop over the depth, and the loads of both factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, emit, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Access, decompose, offset
from planish.targets.cuda.kernels.matrix_problem import BYTES
from planish.targets.cuda.kernels.matrix_tile import Walk

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel


@dataclass(frozen=True)
class Step:
    """A step of the loop: taps and channels it covers, and which of them exist.

    A tap is a scalar, or varies along the depth if the flag beside it is set. `along` is the place
    in the segment.
    """

    taps: tuple[str, str]
    varies: tuple[bool, bool]
    channel: str
    exists: str | None
    along: str


@dataclass(frozen=True)
class Pointers:
    """Where a product's factors are among a kernel's pointers, and where its packed weights lie.

    Attributes
    ----------
    left, right : int
        The numbers of the pointers of the left factor's first leaf, and of the right factor.
    start, pitch : int
        Elements of a packed column in front of this product's, and those of all products.
    """

    left: int
    right: int
    start: int
    pitch: int


class ProductWriter:
    """Writes the product of a `MatrixKernel`, which is added to the variable `total`."""

    def __init__(self, kernel: MatrixKernel, k: Source, total: str, pointers: Pointers) -> None:
        self.kernel, self.k, self.tile = kernel, k, kernel.tile
        self.total, self.pointers = total, pointers
        # where rows, depth and columns lie in the tiles of the factors
        if self.tile.vector:
            self.left_at = "[:, None, None]", "[None, None, :]"
            self.right_at = "[None, None, :]", "[None, :, None]"
        else:
            self.left_at = "[:, None]", "[None, :]"
            self.right_at = "[:, None]", "[None, :]"

    def sum_up(self) -> None:
        """The loop over the depth, or over a program's part of it."""
        k, tile = self.k, self.tile
        left, right = self.left_rows(), self.right_columns()
        begin, end = self.share(self.kernel.steps)
        blocks = self.kernel.segments[2]
        loop = f"range({begin}, {end})"
        if tile.vector and self.kernel.stages > 1:  # by itself Triton pipelines only dot's loads
            loop = f"tl.range({begin}, {end}, num_stages={self.kernel.stages})"
        with k.block(f"for step in {loop}:"):
            step = self.step(blocks)
            a = self.load_left(step, left)
            b = self.load_right(step, right)
            k.line(f"{self.total} = {self.added(a, b)}")
            if not tile.vector and self.kernel.is_left_computed:
                k.settle(self.total, storage_type(self.kernel.sums))

    def share(self, steps: int) -> tuple[str, str]:
        """The first of a program's steps, and the one behind its last."""
        split = self.tile.split
        if split <= 1:
            return "0", str(steps)
        begin = self.k.let("begin", f"part * {steps} // {split}")
        return begin, self.k.let("end", f"(part + 1) * {steps} // {split}")

    def added(self, a: str, b: str) -> str:
        """The sums with the product of two tiles, as text."""
        if self.tile.vector:
            wide = storage_type(self.kernel.sums)
            return f"{self.total} + {a}.to({wide}) * {b}.to({wide})"
        how = ", out_dtype=tl.int32" if self.kernel.sums is DType.INT32 else ""
        if self.kernel.codes and self.kernel.is_left_computed:
            a = f"{a}.to(tl.float8e4nv, bitcast=True)"
        if self.kernel.dtype is DType.FLOAT32:
            precision = {0: "ieee", 1: "tf32", 3: "tf32x3"}[self.tile.passes]
            how = f', input_precision="{precision}"'
        if self.tile.transposed:
            a, b = f"tl.trans({b})", f"tl.trans({a})"
        return f"tl.dot({a}, {b}, {self.total}{how})"

    def step(self, blocks: int) -> Step:
        """Names what a step covers."""
        k, tile, kernel = self.k, self.tile, self.kernel
        count, length, _ = kernel.segments
        segment = "step" if blocks == 1 else "0"
        if blocks > 1 and count > 1:
            segment = k.let("segment", f"step // {blocks}")
        along = "depth"
        if blocks > 1:
            block = "step" if count == 1 else f"(step - {segment} * {blocks})"
            along = k.let("along", f"{block} * {tile.depth} + depth")
        exists = k.let("exists", f"{along} < {length}") if length % tile.depth else None
        if kernel.window is None:
            return Step(("0", "0"), (False, False), along, exists, along)
        taps = kernel.window.taps
        if tile.walk is Walk.TAPS:
            return Step(self.taps(segment, taps), (False, False), along, exists, along)
        tap = k.let("tap", f"{along} // {kernel.channels}")
        channel = k.let("channel", f"{along} - {tap} * {kernel.channels}")
        if tile.walk is Walk.ROW:
            return Step((segment, tap), (False, True), channel, exists, along)
        row, column = self.taps(tap, taps)
        return Step((row, column), (row != "0", column != "0"), channel, exists, along)

    def taps(self, tap: str, taps: tuple[int, int]) -> tuple[str, str]:
        """Row and column of a tap."""
        if taps[0] == 1:
            return "0", tap
        if taps[1] == 1:
            return tap, "0"
        row = self.k.let("tap_row", f"{tap} // {taps[1]}")
        return row, self.k.let("tap_column", f"{tap} - {row} * {taps[1]}")

    # ---- the left factor --------------------------------------------------------------------

    def left_rows(self) -> list[str | None]:
        """Names of pointers to where the rows start, of each leaf; and names of rows in images."""
        k, window = self.k, self.kernel.window
        rows, _ = self.left_at
        safe = "row" if self._rows_side_by_side else k.let("safe", "tl.minimum(row, n0 - 1)")
        if window is not None:
            image, y, x = decompose(k, safe, self.kernel.axes)
            places = [image]
            for i, name in enumerate((y, x)):
                stride, pad = window.strides[i], window.pads[i]
                text = name if stride == 1 else f"{name} * {stride}"
                if pad:
                    text += f" - {pad}" if pad > 0 else f" + {-pad}"
                places.append(k.let("yx"[i], text))
            self.image_rows, self.image_columns = places[1:]
            index = [f"{name}{rows}" for name in places]
        else:
            index = matrix_index(k, self.kernel, safe, self.kernel.axes, rows)
        pointers: list[str | None] = []
        number = self.pointers.left
        for item in self.kernel.left.leaves:
            if item is None:
                pointers.append(None)
                continue
            start = offset(Access(item.pointer, item.strides[:-1], item.wide), index)
            pointers.append(k.let("left", f"p{number} + ({start})"))
            number += 1
        return pointers

    @property
    def _lead(self) -> int:
        """Axes of the left factor that are the same for a whole program: those of a stack."""
        return len(self.kernel.axes) - 1 if self.kernel.batched else 0

    @property
    def _rows_side_by_side(self) -> bool:
        """Whether the left factor is read along its rows: wide loads need masks, not clamping."""
        strides = [a.strides for a in self.kernel.left.leaves if a is not None]
        return self.kernel.window is None and any(s[-2] == 1 != s[-1] for s in strides)

    def load_left(self, step: Step, pointers: Sequence[str | None]) -> str:
        """Loads a tile of the left factor and applies its prologue."""
        k, work, kernel = self.k, self.kernel.left, self.kernel
        _, depth = self.left_at
        inside = self._inside(step)
        masks = [*inside, f"{step.exists}{depth}"] if step.exists else inside
        plain = work.expression.is_copy
        leaves: list[str | None] = []
        whole = by_rows = False
        for leaf, item, pointer in zip(work.expression.leaves, work.leaves, pointers, strict=True):
            if item is None or pointer is None:
                assert leaf.constant is not None, "a prologue reads nothing that is computed"
                leaves.append(None)
                continue
            *outer, along = item.strides
            by_rows = any(outer[self._lead :])
            whole = whole or (by_rows and along != 0)
            if by_rows:
                mask = " & ".join(masks)
            else:
                mask = f"{step.exists}{depth}" if step.exists and along else ""
            where = pointer + self._inner_offset(step, item.strides)
            around = "0.0" if kernel.codes and plain else kernel.zero if plain else 0
            masked = f", mask={mask}, other={around}" if mask else ""
            typed = "" if plain else f".to({compute_type(leaf.dtype)})"
            leaves.append(k.let("a", f"tl.load({where}{masked}){typed}"))
        (value,) = leaves if plain else emit(k, work.expression, leaves)
        assert value is not None
        # a single pixel was loaded once for all rows, also those whose windows see it nowhere
        if masks and (not plain or (inside and not by_rows)):
            is_level = kernel.dtype in BYTES and not (kernel.codes and plain)
            outside = str(kernel.zero) if is_level else "0.0"
            value = k.let("a", f"tl.where({' & '.join(masks)}, {value}, {outside})")
        if not plain:
            value = k.let("a", f"({value}).to({storage_type(kernel.dtype)})")
        if kernel.dtype is DType.UINT8:
            value = k.let("a", f"({value} ^ 128).to(tl.int8, bitcast=True)")
        return value if whole else self._whole(value, self.tile.rows, 1, self.tile.depth)

    def _whole(self, value: str, *shape: int) -> str:
        """A tile of which some axis may be missing, as tensors have no stride along extents of 1;
        its shape is that of factors without tensor cores.
        """
        if not self.tile.vector:
            rows, columns, depth = shape
            shape = (rows, depth) if columns == 1 else (depth, columns)
        return self.k.let("whole", f"tl.broadcast_to({value}, {shape})")

    def _inside(self, step: Step) -> list[str]:
        """Conditions for elements to be inside the image (or matrix)."""
        k, window = self.k, self.kernel.window
        rows, depth = self.left_at
        if window is None:
            return [f"(row < n0){rows}"] if self._rows_side_by_side else []
        masks = []
        for i, place in enumerate((self.image_rows, self.image_columns)):
            if not window.checked[i]:
                continue
            tap, spread = step.taps[i], window.dilations[i]
            shift = tap if spread == 1 else f"{tap} * {spread}"
            if step.varies[i]:
                at = k.let("at", f"{place}{rows} + ({shift}){depth}")
                masks.append(f"({at} >= 0) & ({at} < {window.size[i]})")
            else:
                at = place if tap == "0" else k.let("at", f"{place} + {shift}")
                masks.append(f"(({at} >= 0) & ({at} < {window.size[i]})){rows}")
        return masks

    def _inner_offset(self, step: Step, strides: tuple[int, ...]) -> str:
        """What a step adds to a leaf's pointers: taps and channels, as text to append."""
        _, depth = self.left_at
        scalars: list[str] = []
        vectors: list[str] = []
        window = self.kernel.window
        if window is None:
            vectors += _times(step.along, strides[-1])
        else:
            down = strides[1] * window.dilations[0]
            across, channel = strides[2] * window.dilations[1], strides[3]
            (vectors if step.varies[0] else scalars).extend(_times(step.taps[0], down))
            if step.varies[1] and across == channel * self.kernel.channels and not step.varies[0]:
                vectors += _times(step.along, channel)
            else:
                (vectors if step.varies[1] else scalars).extend(_times(step.taps[1], across))
                vectors += _times(step.channel, channel)
        text = f" + ({' + '.join(scalars)})" if scalars else ""
        return text + (f" + ({' + '.join(vectors)}){depth}" if vectors else "")

    # ---- the right factor -------------------------------------------------------------------

    def right_columns(self) -> str:
        """The name of pointers to where the columns start."""
        k, right = self.k, self.kernel.right
        depth, columns = self.right_at
        pointer = f"p{self.pointers.right}"
        if right is None:
            start = f" + {self.pointers.start}" if self.pointers.start else ""
            place = f"column{columns} * {self.pointers.pitch} + depth{depth}{start}"
            return k.let("weights", f"{pointer} + ({place})")
        index = decompose(k, "z", self.kernel.right_axes) if self.kernel.batched else []
        index += [f"depth{depth}", f"column{columns}"]
        return k.let("weights", f"{pointer} + ({offset(right, index)})")

    def load_right(self, step: Step, pointers: str) -> str:
        """Loads a tile of the right factor."""
        right, block = self.kernel.right, self.tile.depth
        depth, columns = self.right_at
        if right is None:
            return self.k.let("b", f"tl.load({pointers} + step * {block})")
        masks = [f"{step.exists}{depth}"] if step.exists else []
        if self.kernel.is_ragged:
            masks.append(f"(column < {self.kernel.columns}){columns}")
        around = "0.0" if self.kernel.codes else "0"
        mask = " & ".join(masks)
        is_single = not any(right.strides[-2:])  # Triton masks no single number
        masked = f", mask={mask}, other={around}" if mask and not is_single else ""
        stride = right.strides[-2] * block
        start = "step.to(tl.int64)" if right.wide else "step"
        value = self.k.let("b", f"tl.load({pointers} + {start} * {stride}{masked})")
        if mask and is_single:
            value = self.k.let("b", f"tl.where({mask}, {value}, {around})")
        if 0 not in right.strides[-2:]:
            return value
        return self._whole(value, 1, self.tile.columns, block)


def matrix_index(
    k: Source, kernel: MatrixKernel, row: str, axes: Sequence[int], rows: str
) -> list[str]:
    """The index of rows along `axes`, those of a stack of matrices first."""
    if not kernel.batched:
        return [f"{name}{rows}" for name in decompose(k, row, axes)]
    return [*decompose(k, "z", axes[:-1]), f"{row}{rows}"]


def _times(name: str, factor: int) -> list[str]:
    """A term of a sum, or none."""
    if factor == 0 or name == "0":
        return []
    return [name if factor == 1 else f"{name} * {factor}"]

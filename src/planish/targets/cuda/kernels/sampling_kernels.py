"""The kernels of `GridSample`, `CropAndResize`, `RoiAlign` and `DeformSample`; see
`sampling_kernel`. Formulas are those of `planish.ops.sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planish.targets.cuda.kernels.nest import reduced
from planish.targets.cuda.kernels.sampling_kernel import Neighbour, SampleKernel, Sampler

_NAN = "propagate_nan=tl.PropagateNan.ALL"
_MOST = 1 << 15
"""Samples along a side of a bin that a region may ask for: nonsense must come to an end."""


@dataclass(frozen=True)
class GridSampleKernel(SampleKernel):
    """`GridSample`; the further input is the grid."""

    family = "grid_sample"

    mode: str
    border: str
    align_corners: bool

    def sample(self, s: Sampler, index: Sequence[str]) -> str:
        axes = []
        for axis, extent in enumerate(self.extents):
            coordinate = len(self.extents) - 1 - axis
            grid = s.given(0, (*index, str(coordinate)))
            place = s.k.let("place", f"{grid} + {s.c(1)}")
            if self.align_corners:
                place = s.product(f"{place} * {s.c(0.5)}", s.c(extent - 1))
            else:
                scaled = s.product(place, s.c(extent))
                place = s.k.let("place", f"({scaled} - {s.c(1)}) * {s.c(0.5)}")
            axes.append(s.neighbours(place, axis, self.mode, self.border, self.align_corners))
        return s.interpolate(index[0], axes)


@dataclass(frozen=True)
class CropKernel(SampleKernel):
    """`CropAndResize`; further inputs are the boxes and the image of each.

    `size` holds the spatial dimensions of the result.
    """

    family = "crop_and_resize"

    mode: str
    extrapolation: float
    size: tuple[int, ...]

    def sample(self, s: Sampler, index: Sequence[str]) -> str:
        k, box = s.k, index[0]
        image = s.image(1, (box,))
        axes: list[list[Neighbour]] = []
        inside = []
        for axis, extent in enumerate(self.extents):
            low, high = (s.given(0, (box, str(side + axis))) for side in (0, 2))
            place = self._place(s, low, high, index[1 + axis], axis)
            inside.append(
                k.let("within", f"({place} >= {s.c(0)}) & ({place} <= {s.c(extent - 1)})")
            )
            place = k.let("place", f"tl.where({inside[-1]}, {place}, {s.c(0)})")
            if self.mode == "nearest":
                floor = k.let("floor", f"tl.floor({place})")
                up = f"tl.where({place} - {floor} >= {s.c(0.5)}, {s.c(1)}, {s.c(0)})"
                place = k.let("place", f"{floor} + {up}")
            axes.append(s.neighbours(place, axis, "linear", "border"))
        rows = []
        for y, _, _ in axes[0]:
            left, right = (s.read(image, (y, x), (None, None)) for x, _, _ in axes[1])
            rows.append(k.let("x", f"{left} + ({right} - {left}) * {axes[1][1][1]}"))
        value = k.let("x", f"{rows[0]} + ({rows[1]} - {rows[0]}) * {axes[0][1][1]}")
        test = f"{inside[0]} & {inside[1]}"
        return k.let("x", f"tl.where({test}, {value}, {s.c(self.extrapolation)})")

    def _place(self, s: Sampler, low: str, high: str, step: str, axis: int) -> str:
        size, last = self.size[axis], s.c(self.extents[axis] - 1)
        if size <= 1:
            middle = s.product(f"{s.c(0.5)} * ({low} + {high})", last)
            return s.k.let("place", f"{middle} + {s.number(step)} * 0")
        scale = s.quotient(s.product(f"{high} - {low}", last), s.c(size - 1))
        start, moved = s.product(low, last), s.product(s.number(step), scale)
        return s.k.let("place", f"{start} + {moved}")


class _Along(NamedTuple):
    """Names of the lower and upper neighbour of samples along a side, of the upper one's weight,
    whether they lie in the image, and whether their bins have so many.
    """

    low: str
    high: str
    weight: str
    inside: str
    exists: str


@dataclass(frozen=True)
class RoiAlignKernel(SampleKernel):
    """`RoiAlign`; further inputs are the regions and the image of each.

    `size` holds the bins along each side.
    """

    family = "roi_align"

    scale: float
    sampling: int
    mode: str
    half_pixel: bool
    size: tuple[int, ...]

    def sample(self, s: Sampler, index: Sequence[str]) -> str:
        k, region = s.k, index[0]
        image = s.image(1, (region,))
        bins = [self._bin(s, region, index[1 + axis], axis) for axis in range(2)]
        shape = f"({self.rows}, {self.block})"
        lowest = s.c(0) if self.mode == "avg" else s.c(float("-inf"))
        total = k.let("total", f"tl.broadcast_to({lowest}, {shape})")
        steps = [k.name("step") for _ in range(2)]
        with k.block(f"for {steps[0]} in range(0, {bins[0][3]}):"):
            rows = self._along(s, bins[0], steps[0], 0)
            with k.block(f"for {steps[1]} in range(0, {bins[1][3]}):"):
                columns = self._along(s, bins[1], steps[1], 1)
                self._add(s, image, rows, columns, total)
        count = k.let("count", f"{bins[0][2]} * {bins[1][2]}")
        result = total
        if self.mode == "avg":
            result = s.quotient(total, s.number(f"tl.maximum({count}, 1)"))
        return k.let("result", f"tl.where({count} > 0, {result}, {s.c(0)})")

    def _bin(self, s: Sampler, region: str, number: str, axis: int) -> tuple[str, str, str, str]:
        """Where a bin starts, its width, its samples, and those of the bin that has most."""
        k, scale = s.k, s.c(self.scale)
        offset = s.c(0.5 if self.half_pixel else 0.0)
        start, end = (s.product(s.given(0, (region, str(side - axis))), scale) for side in (1, 3))
        first = k.let("first", f"{start} - {offset}")
        length = k.let("length", f"{end} - {offset} - {first}")
        if not self.half_pixel:
            length = k.let("length", f"tl.maximum({length}, {s.c(1)}, {_NAN})")
        width = s.quotient(length, s.c(self.size[axis]))
        start = k.let("start", f"{first} + {s.product(s.number(number), width)}")
        if self.sampling:
            count = k.let("samples", f"{number} * 0 + {self.sampling}")
            return start, width, count, str(self.sampling)
        most = f"tl.minimum(tl.maximum(tl.ceil({width}), {s.c(0)}), {s.c(_MOST)})"
        count = k.let("samples", f"{most}.to(tl.int32)")
        flat = k.let("flat", f"tl.reshape({count}, [{self.rows}])")
        return start, width, count, k.let("most", reduced(flat, "max"))

    def _along(self, s: Sampler, bin: tuple[str, str, str, str], step: str, axis: int) -> _Along:
        """The neighbours of a sample along a side."""
        k, extent, (start, width, count, _) = s.k, self.extents[axis], bin
        half = k.let("half", f"{width} * 0 + {step} + {s.c(0.5)}")
        moved = s.quotient(s.product(half, width), s.number(f"tl.maximum({count}, 1)"))
        place = k.let("place", f"{start} + {moved}")
        exists = k.let("exists", f"{step} < {count}")
        inside = f"({place} >= {s.c(-1)}) & ({place} <= {s.c(extent)})"
        inside = k.let("within", f"{inside} & {exists}")
        place = k.let("place", f"tl.where({inside}, tl.maximum({place}, {s.c(0)}), {s.c(0)})")
        low = k.let("low", f"tl.minimum({place}.to(tl.int32), {extent - 1})")
        high = k.let("high", f"tl.minimum({low} + 1, {extent - 1})")
        rest = f"{place} - {s.number(low)}"
        weight = k.let("weight", f"tl.where({low} >= {extent - 1}, {s.c(0)}, {rest})")
        return _Along(low, high, weight, inside, exists)

    def _add(
        self,
        s: Sampler,
        image: str,
        rows: _Along,
        columns: _Along,
        total: str,
    ) -> None:
        """Takes a sample into the total."""
        k = s.k
        one, y, x = s.c(1), rows.weight, columns.weight
        corners = []
        for row, column, weight in (
            (rows.low, columns.low, f"(({one} - {y}) * ({one} - {x}))"),
            (rows.low, columns.high, f"(({one} - {y}) * {x})"),
            (rows.high, columns.low, f"({y} * ({one} - {x}))"),
            (rows.high, columns.high, f"({y} * {x})"),
        ):
            value = s.read(image, (row, column), (rows.inside, columns.inside))
            corners.append(k.let("corner", f"{value} * {weight}"))
        if self.mode == "avg":
            k.line(f"{total} += {' + '.join(corners)}")
            return
        best = corners[0]
        for corner in corners[1:]:
            best = k.let("best", f"tl.maximum({best}, {corner}, {_NAN})")
        # a sample beside the image is 0; one that a bin does not have is nothing
        exists = f"{rows.exists} & {columns.exists}"
        k.line(f"{total} = tl.where({exists}, tl.maximum({total}, {best}, {_NAN}), {total})")


@dataclass(frozen=True)
class DeformKernel(SampleKernel):
    """`DeformSample`; further inputs are the offsets and, perhaps, the factors."""

    family = "deform_sample"

    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    groups: int

    def sample(self, s: Sampler, index: Sequence[str]) -> str:
        k, spatial = s.k, len(self.window)
        image, *position, tap = index
        taps = 1
        for extent in self.window:
            taps *= extent
        group = "0"
        if self.groups > 1:
            channel = s.channel
            if self.work.shape[-1] % self.block:  # channels beyond the last have no group
                channel = k.let("own", f"tl.minimum({channel}, {self.work.shape[-1] - 1})")
            group = k.let("group", f"{channel} // {self.work.shape[-1] // self.groups}")
        number = k.let("number", f"{group} * {taps} + {tap}")
        axes, rest = [], tap
        places: list[str] = []
        for extent in reversed(self.window):
            places.insert(0, k.let("tap", f"{rest} % {extent}"))
            rest = k.let("tap", f"{rest} // {extent}")
        for axis in range(spatial):
            at = f"{position[axis]} * {self.strides[axis]} - {self.before[axis]}"
            grid = f"{at} + {places[axis]} * {self.dilations[axis]}"
            coordinate = k.let("coordinate", f"{number} * {spatial} + {axis}")
            moved = s.given(0, (image, *position, coordinate))
            place = k.let("place", f"{s.number(grid)} + {moved}")
            axes.append(s.neighbours(place, axis, "linear", "zeros"))
        value = s.interpolate(image, axes)
        if len(self.inputs) == 1:
            return value
        factor = s.given(1, (image, *position, number))
        return k.let("x", f"{value} * {factor}")

"""The kernel of resizing: where every output element lies in the input, and what it is made from.

Positions are computed in the kernel, so that sizes need not be known before. Which neighbour is
nearest depends on a position's last bit, so the steps are those of `planish.ops.spatial`, each
rounded to float32: `_Rounding` keeps the compiler from contracting two of them to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from planish.graph.types import DType
from planish.ops.spatial import Resize
from planish.targets.cuda.codegen.elementwise import compute_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Work, decompose, finish
from planish.targets.cuda.kernels.patches import read_source

UNROLLED = 64
"""Elements read for one output element that are written out; more are looped over."""
_FARTHEST = 1e9
"""Positions are kept within so many elements of the first: they fit 32 bits."""


@dataclass(frozen=True)
class ResizeKernel(TritonKernel):
    """A program does `rows` neighbouring positions x `block` channels. Parameter: the positions.

    Attributes
    ----------
    reads : Work
        The source, one axis each.
    work : Work
        The epilogue; the channels are its last axis.
    op : Resize
        Of the size bound.
    extents : tuple of int
        Spatial, of the source.
    dtype : DType
        Of the source.
    rows, block : int
    """

    family = "resize"

    reads: Work
    work: Work
    op: Resize
    extents: tuple[int, ...]
    dtype: DType
    rows: int
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.reads.pointers, *self.work.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        channels = self.work.shape[-1]
        blocks = -(-channels // self.block)
        program = k.let("program", "tl.program_id(0)")
        first = f"{program} % {blocks} * {self.block} + " if blocks > 1 else ""
        channel = f"({first}tl.arange(0, {self.block}))[None, :]"
        channel = k.let("channel", f"tl.broadcast_to({channel}, ({self.rows}, {self.block}))")
        inside = k.let("inside", f"{channel} < {channels}") if channels % self.block else None
        row = k.let(
            "row", f"({program} // {blocks} * {self.rows} + tl.arange(0, {self.rows}))[:, None]"
        )
        exists = k.let("exists", f"{row} < n0")
        row = k.let("row", f"tl.minimum({row}, n0 - 1)")  # reads need no mask
        size = tuple(n for n in self.op.size if isinstance(n, int))
        image, *place = decompose(k, row, (-1, *size))
        rounding = _Rounding(k)
        axes = [
            _Axis(k, self.op, axis, extent, size[axis], place[axis], rounding)
            for axis, extent in enumerate(self.extents)
        ]
        taps = math.prod(axis.taps for axis in axes)
        combine = self._unrolled if taps <= UNROLLED else self._looped
        value = combine(k, axes, image, channel, inside)
        outside = [test for axis in axes if (test := axis.outside()) is not None]
        if outside:
            number = self.op.extrapolation
            filler = float(number) if self.dtype.is_float else int(number)
            text = f'float("{filler}")' if isinstance(filler, float) else str(filler)
            value = k.let("value", f"tl.where({' | '.join(outside)}, {text}, {value})")
        index = [*decompose(k, row, self.work.shape[:-1]), channel]
        masks = [*[exists] * (len(index) - 1), inside]
        finish(k, self.work, len(self.reads.pointers), index, masks, [value])

    def _read(self, k: Source, index: Sequence[str], inside: str | None) -> str:
        return read_source(k, self.reads, index, [*[None] * (len(index) - 1), inside])

    def _unrolled(
        self, k: Source, axes: Sequence[_Axis], image: str, channel: str, inside: str | None
    ) -> str:
        """All elements written out, the innermost dimension combined first."""
        found = [axis.all_taps() for axis in axes]
        wide = compute_type(self.dtype)

        def combine(places: tuple[str, ...]) -> str:
            axis = len(places)
            if axis == len(axes):
                return self._read(k, [image, *places, channel], inside)
            parts = [combine((*places, index)) for index, _ in found[axis]]
            weights = [weight for _, weight in found[axis]]
            if len(parts) == 1:
                return parts[0]
            # with antialiasing a weighted sum: the two differ by a float32 rounding
            if axes[axis].is_linear and not self.op.antialias:
                low, high = parts
                return k.let("x", f"{low} + ({high} - {low}) * {weights[1]}.to({wide})")
            terms = (f"{x} * {w}.to({wide})" for x, w in zip(parts, weights, strict=True))
            return k.let("x", " + ".join(terms))

        return combine(())

    def _looped(
        self, k: Source, axes: Sequence[_Axis], image: str, channel: str, inside: str | None
    ) -> str:
        """A loop over the taps of each dimension."""
        wide = compute_type(self.dtype)
        sums = [axis.weight_sum() for axis in axes]
        total = k.let("total", f"tl.full(({self.rows}, {self.block}), 0, {wide})")
        places, weights = [], []
        with ExitStack() as loops:
            for axis, norm in zip(axes, sums, strict=True):
                tap = k.name("tap")
                loops.enter_context(k.block(f"for {tap} in range({axis.taps}):"))
                index, weight = axis.tap(tap)
                places.append(index)
                if weight is not None:
                    scaled = weight if norm is None else f"{weight} / {norm}"
                    weights.append(k.let("weight", f"({scaled}).to({wide})"))
            x = self._read(k, [image, *places, channel], inside)
            k.line(f"{total} += {' * '.join([x, *weights])}")
        return total


class _Rounding:
    """Makes a float32 result one that no other operation is contracted with."""

    def __init__(self, k: Source) -> None:
        self._k = k
        # 0, as the parameter is not negative, which the compiler does not know
        self._zero = k.let("zero", "n0 >> 31")

    def of(self, expression: str) -> str:
        bits = f"({expression}).to(tl.int32, bitcast=True) ^ {self._zero}"
        return self._k.let("rounded", f"({bits}).to(tl.float32, bitcast=True)")


class _Axis:
    """The taps of one dimension: names of tensors with an element per output position."""

    def __init__(
        self,
        k: Source,
        op: Resize,
        axis: int,
        extent: int,
        size: int,
        place: str,
        rounding: _Rounding,
    ) -> None:
        self._k, self._op, self._extent, self._rounding = k, op, extent, rounding
        scale = op.scales[axis] if op.scales else None
        region = op.region[axis] if op.region else (0.0, 1.0)
        position = self._position(k.let("place", f"{place}.to(tl.float32)"), size, scale, region)
        self._crops = op.region is not None
        self._beyond = None
        if self._crops:
            test = f"({position} < 0) | ({position} > {extent - 1})"
            self._beyond = k.let("outside", test)
            limited = f"tl.minimum(tl.maximum({position}, {-_FARTHEST}), {_FARTHEST})"
            position = k.let("position", limited)
        if op.mode == "nearest":
            self.taps = 1
            self._nearest = self._nearest_index(position)
            return
        narrower = scale if scale is not None else size / max(extent, 1)
        self._scale = min(narrower, 1.0) if op.antialias else 1.0
        self._reach = math.ceil((1 if op.mode == "linear" else 2) / self._scale)
        self.taps = 2 * self._reach
        floor = k.let("floor", f"tl.floor({position})")
        fraction = k.let("fraction", f"{position} - {floor}")
        if op.steps:
            # adding and taking away 1.5 * 2^23 rounds to an integer, halves to even
            scaled = rounding.of(f"{fraction} * {float(op.steps)}")
            whole = rounding.of(f"{scaled} + 12582912.0")
            fraction = k.let("fraction", f"({whole} - 12582912.0) / {float(op.steps)}")
        self._floor, self._fraction = k.let("floor", f"{floor}.to(tl.int32)"), fraction

    @property
    def is_linear(self) -> bool:
        """Whether it is plain interpolation between two neighbours."""
        return self._op.mode == "linear" and self.taps == 2 and self._scale >= 1

    def outside(self) -> str | None:
        """Which positions hold the extrapolation; None if none can."""
        return self._beyond

    def all_taps(self) -> list[tuple[str, str | None]]:
        """Index and weight of every tap; nearest neighbours have no weight."""
        found = [self.tap(str(t)) for t in range(self.taps)]
        if not self._is_normalized:
            return found
        total = self._k.let("norm", " + ".join(w for _, w in found if w is not None))
        return [(i, self._k.let("weight", f"{w} / {total}")) for i, w in found]

    def weight_sum(self) -> str | None:
        """What weights are to be divided by, computed in a loop; None where they add up to 1."""
        if not self._is_normalized:
            return None
        total = self._k.let("norm", f"{self._fraction} * 0")
        tap = self._k.name("tap")
        with self._k.block(f"for {tap} in range({self.taps}):"):
            _, weight = self.tap(tap)
            self._k.line(f"{total} += {weight}")
        return total

    @property
    def _is_normalized(self) -> bool:
        return self._op.mode != "nearest" and (self._op.exclude_outside or self._scale < 1)

    def tap(self, number: str) -> tuple[str, str | None]:
        """Index and weight of a tap, which a literal or a name numbers."""
        k, op = self._k, self._op
        if op.mode == "nearest":
            return self._nearest, None
        step = f"({number} - {self._reach - 1})"
        wanted = k.let("index", f"{self._floor} + {step}")
        index = k.let("index", f"tl.minimum(tl.maximum({wanted}, 0), {self._extent - 1})")
        if self.is_linear:
            weight = self._fraction if number == "1" else f"1 - {self._fraction}"
            return index, k.let("weight", weight)
        # an integer and a float32 are computed in float32, numbers that are written too
        distance = f"tl.abs({self._fraction} - {step}) * {float(np.float32(self._scale))}"
        t = k.let("distance", distance)
        if op.mode == "linear":
            weight = k.let("weight", f"tl.maximum(1 - {t}, 0)")
        else:
            a = np.float32(op.cubic_coeff)
            two, three, four = float(a + 2), float(a + 3), float(4 * a)
            near = f"(({two} * {t} - {three}) * {t} * {t} + 1)"
            far = f"((({float(a)} * {t} - {float(5 * a)}) * {t} + {float(8 * a)}) * {t} - {four})"
            weight = k.let("weight", f"tl.where({t} <= 1, {near}, tl.where({t} < 2, {far}, 0.0))")
        if op.exclude_outside:
            weight = k.let("weight", f"tl.where({index} == {wanted}, {weight}, 0.0)")
        return index, weight

    def _nearest_index(self, position: str) -> str:
        rounded = {
            "round_prefer_floor": f"tl.ceil({position} - 0.5)",
            "round_prefer_ceil": f"tl.floor({position} + 0.5)",
            "floor": f"tl.floor({position})",
            "ceil": f"tl.ceil({position})",
        }[self._op.rounding]
        index = f"{rounded}.to(tl.int32)"
        return self._k.let("index", f"tl.minimum(tl.maximum({index}, 0), {self._extent - 1})")

    def _position(
        self, place: str, size: int, scale: float | None, region: tuple[float, float]
    ) -> str:
        """The steps of `planish.ops.spatial.source_positions`."""
        op, exact, extent = self._op, self._rounding.of, self._extent
        if op.coordinates == "align_corners":
            factor = np.float32(extent - 1) / np.float32(max(size - 1, 1))
            return exact(f"{place} * {_text(factor)}")
        if op.coordinates == "tf_crop_and_resize":
            start, end = (np.float32(edge) for edge in region)
            last = np.float32(extent - 1)
            if size <= 1:
                middle = np.float32(0.5) * (start + end) * last
                return self._k.let("position", f"{place} * 0 + {_text(middle)}")
            moved = exact(f"{place} * {_text(end - start)}")
            moved = exact(f"{moved} * {_text(last)}")
            moved = exact(f"tl.div_rn({moved}, {moved} * 0 + {float(size - 1)})")
            return exact(f"{moved} + {_text(start * last)}")
        if op.coordinates == "pytorch_half_pixel" and size <= 1:
            return self._k.let("position", f"{place} * 0")
        half = 0.0 if op.coordinates == "asymmetric" else 0.5
        center = exact(f"{place} + {half}")
        if scale is None:
            factor = np.float32(extent) / np.float32(max(size, 1))
            position = exact(f"{center} * {_text(factor)}")
        else:
            divisor = f"{place} * 0 + {_text(np.float32(scale))}"
            position = exact(f"tl.div_rn({center}, {divisor})")
            if op.coordinates == "half_pixel_symmetric":
                kept = np.float32(size) / (np.float32(scale) * np.float32(extent))
                shift = np.float32(extent) / np.float32(2) * (np.float32(1) - kept)
                position = exact(f"{position} + {_text(shift)}")
        if op.coordinates == "tf_half_pixel_for_nn":
            return position
        return exact(f"{position} - {half}")


def _text(number: np.float32) -> str:
    """A float32 as text that is read as the same number."""
    return repr(float(number))

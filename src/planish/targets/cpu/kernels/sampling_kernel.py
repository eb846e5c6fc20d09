"""Sampling of images at computed positions; channels last, vectors along them.

    position ──▶ neighbours along each dimension ──▶ weighted sum of vectors of channels
     (scalars)    (element, weight, inside or not)

A task is one row of positions. The arithmetic of positions follows the references in
`planish.ops.sampling` operation by operation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.ops.sampling import CUBIC, FAR
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, apply, for_spans
from planish.targets.cpu.kernels.overlaps import wide_float


@dataclass(frozen=True)
class Neighbour:
    """An element that a position is made from: inside the image, but it may not count."""

    index: ir.Value
    weight: ir.Value | None
    counts: ir.Value | None


class Positions:
    """Scalar arithmetic of positions along one dimension."""

    def __init__(self, k: KernelBuilder, dtype: DType) -> None:
        self.k, self.b = k, k.b
        self.f = Floats(k, dtype, 1)

    def c(self, value: float) -> ir.Constant:
        """A constant."""
        return self.f.c(value)

    def number(self, value: int | ir.Value) -> ir.Value:
        """An integer as a float."""
        return self.b.sitofp(self.k.i64(value), self.f.type)

    def integer(self, value: ir.Value) -> ir.Value:
        """A float that holds an integer of at most `FAR` as an integer."""
        return self.b.fptosi(value, I64)

    def floor(self, value: ir.Value) -> ir.Value:
        return self.k.intrinsic("floor", value)

    def near(self, value: ir.Value) -> ir.Value:
        """The position, NaN and what is further than `FAR` away brought to `FAR`."""
        value = self.f.select(self.f.gt(value, self.c(-FAR)), value, self.c(-FAR))
        return self.f.select(self.f.lt(value, self.c(FAR)), value, self.c(FAR))

    def neighbours(
        self, position: ir.Value, extent: ir.Value, mode: str, border: str, align: bool
    ) -> list[Neighbour]:
        """As the function of this name in `planish.ops.sampling`."""
        f = self.f
        position = self.near(position)
        if mode == "nearest":
            index = self.integer(f.rint(position))
            return [Neighbour(*self._kept(index, extent, border, align, None))]
        floor = self.floor(position)
        fraction, first = f.sub(position, floor), self.integer(floor)
        if mode == "linear":
            weights, start = [f.sub(self.c(1), fraction), fraction], 0
        else:
            weights, start = self._cubic(fraction), -1
        return [
            Neighbour(*self._kept(self.k.add(first, start + i), extent, border, align, weight))
            for i, weight in enumerate(weights)
        ]

    def _kept(
        self, index: ir.Value, extent: ir.Value, border: str, align: bool, weight: ir.Value | None
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        k, b = self.k, self.b
        last = k.sub(extent, 1)
        if border != "reflection":
            kept = k.min(k.max(index, 0), last)
            return kept, weight, b.icmp_signed("==", kept, index) if border == "zeros" else None
        period = k.max(k.mul(last if align else extent, 2), 1)
        turned = b.srem(index, k.i64(period))
        negative = b.icmp_signed("<", turned, I64(0))
        turned = b.select(negative, b.add(turned, k.i64(period)), turned)
        mirrored = k.sub(k.sub(period, 0 if align else 1), turned)
        beyond = b.icmp_signed(">", turned, k.i64(last))
        return k.min(b.select(beyond, mirrored, turned), last), weight, None

    def _cubic(self, fraction: ir.Value) -> list[ir.Value]:
        f, kind = self.f, self.f.dtype.numpy.type
        a = kind(CUBIC)
        two, three, five, eight, four = (kind(n) for n in (2, 3, 5, 8, 4))

        def near(t: ir.Value) -> ir.Value:
            inner = f.sub(f.mul(self.c(float(a + two)), t), self.c(float(a + three)))
            return f.add(f.mul(f.mul(inner, t), t), self.c(1))

        def far(t: ir.Value) -> ir.Value:
            inner = f.sub(f.mul(self.c(float(a)), t), self.c(float(five * a)))
            inner = f.add(f.mul(inner, t), self.c(float(eight * a)))
            return f.sub(f.mul(inner, t), self.c(float(four * a)))

        rest = f.sub(self.c(1), fraction)
        one = self.c(1)
        return [far(f.add(fraction, one)), near(fraction), near(rest), far(f.add(rest, one))]


def interpolate(
    k: KernelBuilder,
    dtype: DType,
    source: Operands,
    place: Sequence[ir.Value | None],
    axes: Sequence[Sequence[Neighbour]],
    span: Span,
    counts: ir.Value | None = None,
    first: int = 1,
) -> ir.Value:
    """The weighted sum of neighbours along the axes of `source` from `first` on, the innermost
    summed first.
    """
    f = Floats(k, dtype, span.lanes)
    if not axes:
        (x,) = source.load(place, span)
        assert x is not None
        return x if counts is None else k.b.select(counts, x, f.c(0))
    total: ir.Value | None = None
    for n in axes[0]:
        both = n.counts if counts is None else counts
        if counts is not None and n.counts is not None:
            both = k.b.and_(counts, n.counts)
        here = source.move(place, first, n.index)
        part = interpolate(k, dtype, source, here, axes[1:], span, both, first + 1)
        if n.weight is not None:
            part = f.mul(part, k.splat(n.weight, span.lanes))
        total = part if total is None else f.add(total, part)
    assert total is not None
    return total


@dataclass(frozen=True)
class SampleKernel(CpuKernel):
    """What all sampling kernels share: rows of positions, channels in vectors.

    Pointers: source, further inputs, operands of the epilogue, outputs. Parameters: channels,
    blocks of channels, channels per block; those in `own`; the source's spatial extents; the
    outputs' extents between the first axis and the channels; then the strides of source, further
    inputs, operands, outputs.

    Attributes
    ----------
    dtype : DType
        Of the image.
    rank : int
        Spatial dimensions of the image.
    axes : int
        Axes of the outputs; those of the image's channels have as many as `channel_axes`.
    source, inputs : Accesses
        The image, and further inputs.
    ranks : tuple of int
        Axes of each further input.
    """

    dtype: DType
    rank: int
    axes: int
    channel_axes: int
    vectors: int
    source: Accesses
    inputs: Accesses
    ranks: tuple[int, ...]
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    @property
    def own(self) -> int:
        """How many parameters of its own the kernel has."""
        return 0

    def write(self, k: KernelBuilder) -> None:
        Sampler(self, k).write()

    @abstractmethod
    def sample(self, s: Sampler, place: list[Any]) -> Any:
        """What a position takes from the image: whatever `value` needs; scalars only."""

    @abstractmethod
    def value(self, s: Sampler, found: Any, span: Span) -> ir.Value:
        """A vector of channels of one position."""


class Sampler:
    """Writes a `SampleKernel`; what it knows is for the kernel's own methods.

    Attributes
    ----------
    wide : DType
        The dtype that is computed in.
    positions : Positions
    extents : list
        The source's spatial extents.
    sizes : list
        The outputs' extents between the first axis and the channels.
    own : list
        The kernel's own parameters.
    """

    def __init__(self, kernel: SampleKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        self.wide = wide_float(kernel.dtype)
        self.positions = Positions(k, self.wide)
        self.own = [k.param(3 + i) for i in range(kernel.own)]
        param = 3 + kernel.own
        self.extents = [k.param(param + i) for i in range(kernel.rank)]
        param += kernel.rank
        self.sizes = [k.param(param + i) for i in range(kernel.axes - 2)]
        param += kernel.axes - 2
        self.source = Operands(k, kernel.source, 0, param, kernel.rank + 1 + kernel.channel_axes)
        pointer, param = self.source.next_pointer, self.source.next_param
        self.inputs = []
        for access, rank in zip(kernel.inputs, kernel.ranks, strict=True):
            self.inputs.append(Operands(k, (access,), pointer, param, rank))
            pointer, param = self.inputs[-1].next_pointer, self.inputs[-1].next_param
        self.reads = Operands(k, kernel.accesses, pointer, param, kernel.axes)
        self.writes = Operands(
            k, kernel.outputs, self.reads.next_pointer, self.reads.next_param, kernel.axes
        )

    def scalar(self, number: int, place: Sequence[int | ir.Value]) -> ir.Value:
        """An element of a further input; floats in the dtype that is computed in."""
        k, operands = self.k, self.inputs[number]
        item = operands.accesses[0]
        assert item is not None
        (x,) = operands.load(operands.at(place[:-1]), Span(place[-1], 1))
        assert x is not None
        if item.dtype.is_integer:
            if item.dtype.size == 8:
                return x
            return k.b.sext(x, I64) if item.dtype.value[0] == "i" else k.b.zext(x, I64)
        if self.wide is DType.FLOAT64 and item.dtype is not DType.FLOAT64:
            return k.b.fpext(x, self.positions.f.type)
        return x

    def image(self, number: int, region: ir.Value) -> list[ir.Value | None]:
        """The source's place at the image that a further input names, kept inside the batch."""
        k = self.k
        last = k.sub(self.own[0], 1)
        index = k.min(k.max(self.scalar(number, [region]), 0), last)
        return self.source.at([index])

    def write(self) -> None:
        k, kernel = self.k, self.kernel
        channels, blocks, per_block = (k.param(i) for i in range(3))
        with k.loop(k.begin, k.end) as tasks:
            rest, block = k.divmod(tasks.index, blocks)
            first = k.mul(block, per_block)
            last = k.min(k.add(first, per_block), channels)
            outer = k.unravel(rest, self.sizes[:-1])
            with k.loop(0, self.sizes[-1]) as column:
                place = [*outer, column.index]
                found = kernel.sample(self, place)
                read, written = self.reads.at(place), self.writes.at(place)

                def body(
                    spans: list[Span],
                    _: Any,
                    found: Any = found,
                    read: Any = read,
                    written: Any = written,
                ) -> None:
                    for span in spans:
                        value = kernel.value(self, found, span)
                        loaded = self.reads.load(read, span)
                        results = apply(
                            k, kernel.expression, loaded, [value], kernel.accesses, span.lanes
                        )
                        self.writes.store(written, span, results)

                for_spans(k, first, last, self.lanes, body, vectors=kernel.vectors)

    @property
    def lanes(self) -> int:
        """Lanes of a vector of channels."""
        return max(self.k.lanes * 4 // self.wide.size, 1)

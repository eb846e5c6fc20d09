"""What the kernels of sampling have in common: neighbours and interpolation.

Which element is nearest depends on the last bit of a position, so arithmetic of positions follows
`planish.ops.sampling` step by step, products rounded for themselves; between the elements of an
image it may be contracted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from planish.graph.types import DType
from planish.ops.sampling import CUBIC, FAR
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.literals import HALVES
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Access, Work, finish, load
from planish.targets.cuda.kernels.patches import read_source
from planish.targets.cuda.kernels.positions import Positions, PositionsKernel

Neighbour = tuple[str, str | None, str | None]
"""An element inside the image, its weight (None: 1), and whether it counts (None: always)."""


@dataclass(frozen=True)
class SampleKernel(PositionsKernel):
    """Samples of images ``[N, *spatial, C]``. Parameters: positions of the result, images.

    Attributes
    ----------
    reads : Work
        The images, one axis each.
    inputs : tuple of Access
        What says where samples are taken, over its own axes.
    work : Work
        The epilogue, one axis each.
    dtype : DType
        Of the images.
    extents : tuple of int
        Spatial, of the images.

    Pointers: the images', the inputs', those of the work.
    """

    reads: Work
    inputs: tuple[Access, ...]
    work: Work
    dtype: DType
    extents: tuple[int, ...]

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        given = (a.pointer for a in self.inputs)
        return (*self.reads.pointers, *given, *self.work.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False)

    @abstractmethod
    def sample(self, s: Sampler, index: Sequence[str]) -> str:
        """The samples at an index of the result: one name per axis but the channels'."""

    def compute(self, k: Source, at: Positions) -> None:
        value = self.sample(Sampler(k, self, at.channel, at.inside), at.index)
        place = len(self.reads.pointers) + len(self.inputs)
        finish(k, self.work, place, at.whole, at.masks, [value])


class Sampler:
    """Writes the parts of a sample.

    Attributes
    ----------
    k : Source
    dtype : DType
        Of positions and weights: float32, or float64 of such images.
    channel : str
        A name of the channels ``[rows, block]``.
    """

    def __init__(self, k: Source, kernel: SampleKernel, channel: str, inside: str | None) -> None:
        self.k, self.channel = k, channel
        self.dtype = DType.FLOAT32 if kernel.dtype in HALVES else kernel.dtype
        self._kernel, self._inside = kernel, inside

    # ---- arithmetic -----------------------------------------------------------------------

    def c(self, value: float) -> str:
        """A number."""
        return constant(float(value), self.dtype)

    def number(self, text: str) -> str:
        """Integers as floats."""
        return f"({text}).to({compute_type(self.dtype)})"

    def product(self, a: str, b: str) -> str:
        """A product that is rounded for itself."""
        return self.k.let("product", f"libdevice.mul_rn({a}, {b})")

    def quotient(self, a: str, b: str) -> str:
        """A quotient, correctly rounded."""
        if self.dtype is DType.FLOAT32:
            return self.k.let("quotient", f"tl.div_rn({a}, ({a}) * 0 + {b})")
        return self.k.let("quotient", f"({a}) / ({b})")

    # ---- reading --------------------------------------------------------------------------

    def given(self, number: int, index: Sequence[str]) -> str:
        """Elements of an input, as floats that are computed with."""
        kernel = self._kernel
        pointer = len(kernel.reads.pointers) + number
        x = load(self.k, pointer, kernel.inputs[number], index, None)
        return self.k.let("given", self.number(x))

    def image(self, number: int, index: Sequence[str]) -> str:
        """The number of an image that an input holds; one of those there are."""
        kernel = self._kernel
        pointer = len(kernel.reads.pointers) + number
        x = load(self.k, pointer, kernel.inputs[number], index, None)
        wide = f"tl.maximum({x}.to(tl.int64), 0)"
        return self.k.let("image", f"tl.minimum({wide}, n1 - 1).to(tl.int32)")

    def read(self, image: str, places: Sequence[str], counts: Sequence[str | None]) -> str:
        """Elements of images; 0 where one of the tests (one a dimension) does not hold."""
        index, masks = [image, *places, self.channel], [None, *counts, self._inside]
        return read_source(self.k, self._kernel.reads, index, masks)

    # ---- interpolation --------------------------------------------------------------------

    def neighbours(
        self, place: str, axis: int, mode: str, border: str, align_corners: bool = False
    ) -> list[Neighbour]:
        """The elements of a dimension that positions are made from."""
        k, extent = self.k, self._kernel.extents[axis]
        far, near = self.c(FAR), self.c(-FAR)
        limited = f"tl.minimum(tl.maximum({place}, {near}), {far})"
        place = k.let("place", f"tl.where({place} == {place}, {limited}, {near})")
        if mode == "nearest":
            index = k.let("index", f"libdevice.rint({place}).to(tl.int32)")
            kept, counts = self._inside_of(index, extent, border, align_corners)
            return [(kept, None, counts)]
        floor = k.let("floor", f"tl.floor({place})")
        fraction, first = k.let("fraction", f"{place} - {floor}"), f"{floor}.to(tl.int32)"
        first = k.let("index", first)
        if mode == "linear":
            weights, start = [k.let("weight", f"{self.c(1)} - {fraction}"), fraction], 0
        else:
            weights, start = self._cubic(fraction), -1
        found: list[Neighbour] = []
        for step, weight in enumerate(weights, start):
            index = k.let("index", f"{first} + {step}")
            kept, counts = self._inside_of(index, extent, border, align_corners)
            found.append((kept, weight, counts))
        return found

    def interpolate(self, image: str, axes: Sequence[Sequence[Neighbour]]) -> str:
        """The weighted sum of neighbours, the innermost dimension summed first."""
        k = self.k

        def total(chosen: list[str], counts: list[str | None]) -> str:
            if len(chosen) == len(axes):
                return self.read(image, chosen, counts)
            terms = []
            for index, weight, here in axes[len(chosen)]:
                part = total([*chosen, index], [*counts, here])
                terms.append(part if weight is None else f"{part} * {weight}")
            return k.let("sum", " + ".join(terms))

        return total([], [])

    def _cubic(self, fraction: str) -> list[str]:
        """The weights of the four neighbours of a position."""
        k, a = self.k, self.dtype.numpy.type(CUBIC)

        def near(t: str) -> str:
            inner = f"({self.c(a + 2)} * {t} - {self.c(a + 3)}) * {t} * {t}"
            return k.let("weight", f"{inner} + {self.c(1)}")

        def far(t: str) -> str:
            inner = f"({self.c(a)} * {t} - {self.c(5 * a)}) * {t} + {self.c(8 * a)}"
            return k.let("weight", f"({inner}) * {t} - {self.c(4 * a)}")

        rest = k.let("rest", f"{self.c(1)} - {fraction}")
        outer = k.let("rest", f"{rest} + {self.c(1)}")
        return [
            far(k.let("t", f"{fraction} + {self.c(1)}")),
            near(fraction),
            near(rest),
            far(outer),
        ]

    def _inside_of(
        self, index: str, extent: int, border: str, align_corners: bool
    ) -> tuple[str, str | None]:
        """Indices inside a dimension, and which of them count."""
        k, last = self.k, extent - 1
        if border != "reflection":
            kept = k.let("kept", f"tl.minimum(tl.maximum({index}, 0), {last})")
            return kept, k.let("counts", f"{kept} == {index}") if border == "zeros" else None
        period = max(2 * last if align_corners else 2 * extent, 1)
        # the remainder has the sign of what is divided
        turned = k.let("turned", f"({index} % {period} + {period}) % {period}")
        mirrored = f"{period if align_corners else period - 1} - {turned}"
        kept = f"tl.minimum(tl.where({turned} > {last}, {mirrored}, {turned}), {last})"
        return k.let("kept", kept), None

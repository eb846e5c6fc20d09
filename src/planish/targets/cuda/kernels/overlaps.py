"""Boxes inside a kernel: their corners, and how much they overlap, as Triton text.

Overlaps are computed as the reference does it, operation by operation and each rounded for itself,
so that every decision that rests on them is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Access, load

_NAN = "propagate_nan=tl.PropagateNan.ALL"


@dataclass(frozen=True)
class Corners:
    """Names of the lower and the upper corner of boxes, and of their area."""

    low: tuple[str, str]
    high: tuple[str, str]
    area: str

    def seen(self, k: Source, side: str) -> Corners:
        """As rows or as columns: with `[:, None]` or `[None, :]`."""
        low, high = (
            tuple(k.let("side", f"{name}{side}") for name in pair) for pair in (self.low, self.high)
        )
        return Corners(low, high, k.let("side", f"{self.area}{side}"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Boxes:
    """Boxes by two opposite corners, in either order.

    Attributes
    ----------
    access : Access
        Over images, boxes, classes and coordinates.
    """

    access: Access

    @property
    def pointer(self) -> Pointer:
        return self.access.pointer

    def coordinates(
        self, k: Source, pointer: int, image: str, box: str, label: str, mask: str | None
    ) -> list[str]:
        """The four coordinates of boxes of that number."""
        masks = (None, mask, mask, None)
        return [load(k, pointer, self.access, (image, box, label, str(i)), masks) for i in range(4)]

    def corners(
        self, k: Source, pointer: int, image: str, box: str, label: str, mask: str | None
    ) -> Corners:
        """The corners of boxes of that number."""
        given = self.coordinates(k, pointer, image, box, label, mask)
        low, high = (
            tuple(
                k.let("corner", f"tl.{which}({given[a]}, {given[2 + a]}, {_NAN})") for a in range(2)
            )
            for which in ("minimum", "maximum")
        )
        sides = [k.let("length", f"{high[a]} - {low[a]}") for a in range(2)]
        area = k.let("area", f"libdevice.mul_rn({sides[0]}, {sides[1]})")
        return Corners(low, high, area)  # type: ignore[arg-type]

    def overlap(self, k: Source, a: Corners, b: Corners) -> str:
        """Intersection over union; 0 where a box has no area."""
        dtype = self.access.pointer.dtype
        zero = constant(0, dtype)
        sides = []
        for axis in range(2):
            upper = f"tl.minimum({a.high[axis]}, {b.high[axis]}, {_NAN})"
            lower = f"tl.maximum({a.low[axis]}, {b.low[axis]}, {_NAN})"
            side = k.let("length", f"{upper} - {lower}")
            sides.append(k.let("length", f"tl.maximum({side}, {zero}, {_NAN})"))
        shared = k.let("shared", f"libdevice.mul_rn({sides[0]}, {sides[1]})")
        union = k.let("union", f"{a.area} + {b.area} - {shared}")
        exact = compute_type(dtype) == "tl.float32"
        ratio = f"tl.div_rn({shared}, {union})" if exact else f"{shared} / {union}"
        return k.let(
            "overlap", f"tl.where(({a.area} > {zero}) & ({b.area} > {zero}), {ratio}, {zero})"
        )

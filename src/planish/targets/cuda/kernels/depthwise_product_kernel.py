"""A depthwise convolution and a convolution of single pixels on what it gives, as one kernel.

It is the matrix kernel with another left factor: a step's tile of it is not read but computed, the
depthwise convolution of some channels at the tile's pixels. Programs that share those pixels
compute it again, so that tiles as wide as the result has channels are best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.targets.cuda.codegen.elementwise import emit, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Access, Work, load
from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel
from planish.targets.cuda.kernels.matrix_product import ProductWriter, Step
from planish.targets.cuda.kernels.matrix_tile import segments
from planish.targets.cuda.kernels.matrix_writer import MatrixWriter


@dataclass(frozen=True, kw_only=True)
class DepthwiseProductKernel(MatrixKernel):
    """One specialisation. `window` is the depthwise convolution's, `left` its image.

    Attributes
    ----------
    filters : Access
        Its filters, with a stride per tap row, tap column, and channel.
    between : Work
        Elementwise work on its result, along the channels alone.
    """

    family = "depthwise_product"

    filters: Access
    between: Work

    @property
    def is_left_computed(self) -> bool:
        return True

    @property
    def left_pointers(self) -> tuple[Pointer, ...]:
        return (*self.left.pointers, self.filters.pointer, *self.between.pointers)

    @property
    def segments(self) -> tuple[int, int, int]:
        return segments(self.tile, (1, 1), self.channels)

    def write(self, k: Source) -> None:
        MatrixWriter(self, k, writer=_Writer).write()


class _Writer(ProductWriter):
    kernel: DepthwiseProductKernel

    def load_left(self, step: Step, pointers: Sequence[str | None]) -> str:
        """Computes a tile of the left factor: the sum over the window, then what follows it."""
        k, kernel, tile = self.k, self.kernel, self.tile
        window = kernel.window
        assert window is not None
        (source,), (start,) = kernel.left.leaves, pointers
        assert source is not None
        along, exists = f"({step.along})[None, :]", step.exists and f"({step.exists})[None, :]"
        total = k.let("sum", f"tl.full(({tile.rows}, {tile.depth}), 0.0, tl.float32)")
        for row in range(window.taps[0]):
            for column in range(window.taps[1]):
                tap = (row * window.dilations[0], column * window.dilations[1])
                shift = tap[0] * source.strides[1] + tap[1] * source.strides[2]
                masks = [*self._inside_at(tap), *([exists] if exists else [])]
                masked = f", mask={' & '.join(masks)}, other=0" if masks else ""
                place = f"{start} + {shift} + {along} * {source.strides[3]}"
                x = k.let("x", f"tl.load({place}{masked}).to(tl.float32)")
                index = [str(row), str(column), along]
                w = load(k, len(kernel.left.pointers), kernel.filters, index, exists, "w")
                total = k.let("sum", f"{total} + {x} * {w}.to(tl.float32)")
        value = self._followed(total, along, exists)
        return k.let("a", f"({value}).to({storage_type(kernel.dtype)})")

    def _inside_at(self, tap: tuple[int, int]) -> list[str]:
        """Conditions for a tap to lie inside the image."""
        window = self.kernel.window
        assert window is not None
        masks = []
        for axis, place in enumerate((self.image_rows, self.image_columns)):
            if window.checked[axis]:
                at = f"({place} + {tap[axis]})"
                masks.append(f"(({at} >= 0) & ({at} < {window.size[axis]}))[:, None]")
        return masks

    def _followed(self, total: str, along: str, exists: str | None) -> str:
        """What the elementwise work makes of the sums."""
        k, work = self.k, self.kernel.between
        number = len(self.kernel.left.pointers) + 1
        leaves: list[str | None] = []
        for leaf, item in zip(work.expression.leaves, work.leaves, strict=True):
            if item is not None:
                leaves.append(load(k, number, item, [along], exists))
                number += 1
            else:
                leaves.append(None if leaf.constant is not None else total)
        (value,) = emit(k, work.expression, leaves)
        return value

"""Tensors seen through other shapes: what movement ops do to strides instead of to elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.base import Binding, Layout, Pointer
from planish.targets.cpu.kernels.nest import Operand, Term


@dataclass(frozen=True)
class View:
    """A tensor with a shape: an `Operand` whose iteration space is its own shape."""

    pointer: Pointer | None
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    terms: tuple[Term, ...] = ()

    @staticmethod
    def of(value: Value, binding: Binding) -> View:
        """A value as it lies in memory."""
        layout = binding.layout(value)
        return View(value, value.dtype, layout.shape, layout.strides)

    def operand(self) -> Operand:
        """The view as an operand over its shape."""
        return Operand(self.pointer, self.dtype, self.strides, self.offset, self.terms)

    def broadcast(self, shape: Sequence[int]) -> View:
        """The view repeated to a shape, by NumPy's rules."""
        missing = len(shape) - len(self.shape)
        strides = [0] * missing
        strides += [0 if n == 1 else s for n, s in zip(self.shape, self.strides, strict=True)]
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def transpose(self, axes: Sequence[int]) -> View:
        """The view with its axes in another order."""
        shape = tuple(self.shape[a] for a in axes)
        return replace(self, shape=shape, strides=tuple(self.strides[a] for a in axes))

    def slice(
        self, begin: Sequence[int], size: Sequence[int], steps: Sequence[int] | None = None
    ) -> View:
        """The elements ``begin + i * step`` of each axis, `size` of them."""
        steps = steps or (1,) * len(begin)
        offset = self.offset + sum(b * s for b, s in zip(begin, self.strides, strict=True))
        strides = tuple(s * step for s, step in zip(self.strides, steps, strict=True))
        return replace(self, shape=tuple(size), strides=strides, offset=offset)

    def split(self, sizes: Sequence[Sequence[int]]) -> View:
        """Each axis as several, the last of them moving fastest."""
        shape: list[int] = []
        strides: list[int] = []
        for parts, stride in zip(sizes, self.strides, strict=True):
            steps: list[int] = []
            for part in reversed(parts):
                steps.insert(0, stride)
                stride *= part
            shape += parts
            strides += steps
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def reshape(self, shape: Sequence[int]) -> View | None:
        """The view with another shape of as many elements; None where that needs a copy."""
        strides = reshaped_strides(Layout(self.shape, self.strides), shape)
        if strides is None:
            return None
        return replace(self, shape=tuple(shape), strides=strides)


def reshaped_strides(layout: Layout, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The strides with which the same elements, in the same order, have another shape.

    Axes of both shapes are taken together from the back into groups of equally many elements;
    within a group the elements of the layout must lie at equal distances. None if they do not.
    """
    if 0 in shape:
        return (1,) * len(shape)
    old = [(n, s) for n, s in zip(layout.shape, layout.strides, strict=True) if n != 1]
    strides = [1] * len(shape)
    axis = len(shape) - 1
    while old:
        size, stride = old.pop()
        step, total = stride, 1
        while total != size:
            if total < size and axis >= 0:
                strides[axis] = step * total
                total *= shape[axis]
                axis -= 1
            elif old and old[-1][1] == stride * size:
                size *= old.pop()[0]
            else:
                return None
    return tuple(strides)

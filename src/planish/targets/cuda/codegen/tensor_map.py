"""Tensor maps: how Hopper's copies of boxes to shared memory see a tensor.

One thread asks for a box of up to five axes; the hardware computes addresses, and gives zeros where
a box leaves the tensor. A kernel's text says ``p0.load([n, y, x, c])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAPPED = {"fp16": 2, "bf16": 2, "i8": 1, "u8": 1, "fp32": 4, "i32": 4}
"""Bytes of elements that tensor maps are made for, by Triton's names of their types."""
LARGEST = 256
"""Extent of a box."""
AXES = 5
"""At most, of a tensor."""


def extents(shape: tuple[int, ...], each: int, params: Sequence[int]) -> tuple[int, ...]:
    """A tensor's shape in a launch with these parameters; see `TensorMap`."""
    return (params[0] // each, *shape[1:]) if each else shape


@dataclass(frozen=True)
class TensorMap:
    """How Hopper's copies of boxes read a tensor: without addresses, zeros where a box leaves it.

    Attributes
    ----------
    shape : tuple of int
        At most five axes; the first one's extent is the kernel's first parameter by `each`, if that
        is not 0.
    strides : tuple of int
        In elements; the last is 1, the others are multiples of 16 bytes.
    block : tuple of int
        The extents of a box, powers of two up to 256.
    each : int
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]
    each: int = 0

    def extents(self, params: Sequence[int]) -> tuple[int, ...]:
        """The tensor's shape in a launch with these parameters."""
        return extents(self.shape, self.each, params)


@dataclass(frozen=True)
class BoxedArgument:
    """A tensor map among a kernel's arguments, as the driver makes it.

    Attributes
    ----------
    argument : int
        Its number among the pointers.
    dtype : str
        Triton's name of the elements' type.
    shape, strides, each
        See `TensorMap`.
    box : tuple of int
        What one copy takes: a block, or a part of it.
    swizzle : int
        By how many bytes places in shared memory are exchanged: 32 times 2 to this, less one; 0:
        by none.
    """

    argument: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    each: int
    box: tuple[int, ...]
    swizzle: int

    def extents(self, params: Sequence[int]) -> tuple[int, ...]:
        """The tensor's shape in a launch with these parameters."""
        return extents(self.shape, self.each, params)

    @staticmethod
    def of(data: object) -> BoxedArgument:
        """What JSON made of one.

        Raises
        ------
        ValueError
            It is something else.
        """
        if not isinstance(data, dict):
            raise ValueError("a tensor map is no object")
        try:
            lists = {k: tuple(data[k]) for k in ("shape", "strides", "box")}
            found = BoxedArgument(**(data | lists))
        except (TypeError, KeyError) as error:
            raise ValueError("a tensor map lacks something") from error
        numbers = (*found.shape, *found.strides, *found.box)
        numbers = (*numbers, found.argument, found.each, found.swizzle)
        same = len(found.shape) == len(found.strides) == len(found.box)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor map is of numbers")
        if not (same and 1 <= len(found.box) <= AXES and found.dtype in MAPPED):
            raise ValueError("no GPU has such a tensor map")
        if not (all(1 <= n <= LARGEST for n in found.box) and found.swizzle <= 3):
            raise ValueError("no GPU has such a tensor map")
        return found

"""Arguments that say sizes and places, also where they depend on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from planish.frontends.counting import measured
from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped
from planish.graph import Dim, DimLike, DType, Value
from planish.graph.dims import floordiv, product
from planish.ops import Cast, Concat, Dims, ReduceProd, Reshape, Select, Slice, ew
from planish.profile import UNBOUNDED

LONGEST = 64
"""Elements of a vector of sizes that depends on the data."""

Item: TypeAlias = "DimLike | Value"
"""A size: known, or an int64 scalar that holds it."""


def sizes(c: Conversion, index: int, what: str, limit: DimLike = UNBOUNDED) -> tuple[DimLike, ...]:
    """An input vector as dimensions; those that depend on the data are at most `limit`.

    Raises
    ------
    UnsupportedOpError
        Its length is not known.
    """
    return tuple(size(c, item, limit) for item in items(c, index, what))


def items(c: Conversion, index: int, what: str) -> list[Item]:
    """The elements of an input vector of sizes; errors as `sizes`."""
    found = _items(c, c.input(index))
    if found is None:
        raise c.unsupported(
            f"{what} depends on the data",
            cure="export the model with a constant there, or simplify it (onnxsim)",
        )
    return found


def size(c: Conversion, item: Item, limit: DimLike = UNBOUNDED) -> DimLike:
    """An element as a dimension."""
    if not isinstance(item, Value):
        return item
    return measured(c.graph, item, limit, f"{c.name}_size")


def scalar(c: Conversion, item: Item) -> Value:
    """An element as an int64 scalar."""
    if isinstance(item, Value):
        return item
    if isinstance(item, Dim):
        return c.aux(Dims(item))
    return c.constant(item, DType.INT64)


def reshape_target(c: Conversion, x: Value, target: Sequence[Item]) -> tuple[DimLike, ...]:
    """The shape that a reshape asks for where some of it depends on the data.

    The last such dimension is what the others leave: a shape of another number of elements is none.
    """
    total, copies = product(x.shape), not c.attr("allowzero", 0)
    parts = [c.aux(Reshape((1,)), scalar(c, item)) for item in target]
    vector = c.aux(Concat(0), *parts) if len(parts) > 1 else parts[0]
    if copies:
        own = [*x.shape, *(0,) * len(target)][: len(target)]
        kept = c.aux(Dims(tuple(own)))
        vector = c.aux(Select(), c.aux(ew.Equal(), vector, _constant(c, 0)), kept, vector)
    is_open = c.aux(ew.Equal(), vector, _constant(c, -1))
    closed = c.aux(Select(), is_open, _constant(c, 1), vector)
    others = c.aux(ew.Maximum(), c.aux(ReduceProd((0,), True), closed), _constant(c, 1))
    rest = c.aux(ew.FloorDiv(), scalar(c, total), others)
    vector = c.aux(Select(), is_open, rest, vector)
    last = max(i for i, item in enumerate(target) if isinstance(item, Value))
    shape: list[DimLike] = []
    for place, item in enumerate(target):
        if place == last:
            shape.append(0)
        elif isinstance(item, Value) or item == -1:
            shape.append(size(c, _element(c, vector, place), _positive(total)))
        else:
            shape.append(x.shape[place] if item == 0 and copies else item)
    shape[last] = floordiv(total, product(d for i, d in enumerate(shape) if i != last))
    return tuple(shape)


def slice_bounds(
    c: Conversion, dim: DimLike, start: Item, end: Item, step: int
) -> tuple[DimLike, DimLike]:
    """First element and number of elements, for bounds that depend on the data; any are valid."""
    extent = scalar(c, dim)
    low, high = (0, 0) if step > 0 else (0, -1)
    top = extent if step > 0 else c.aux(ew.Sub(), extent, _constant(c, 1))

    def inside(item: Item, least: int) -> Value:
        place = scalar(c, item)
        negative = c.aux(ew.Less(), place, _constant(c, 0))
        place = c.aux(Select(), negative, c.aux(ew.Add(), place, extent), place)
        return c.aux(ew.Maximum(), c.aux(ew.Minimum(), place, top), _constant(c, least))

    first, last = inside(start, low), inside(end, high)
    span = c.aux(ew.Sub(), last, first) if step > 0 else c.aux(ew.Sub(), first, last)
    count = c.aux(ew.Add(), span, _constant(c, abs(step) - 1))
    count = c.aux(ew.FloorDiv(), count, _constant(c, abs(step)))
    number = size(c, c.aux(ew.Maximum(), count, _constant(c, 0)), dim)
    if isinstance(start, int) and isinstance(dim, int) and step > 0:
        begin: DimLike = min(max(start + (dim if start < 0 else 0), 0), dim)
    else:
        begin = 0 if start == 0 and step > 0 else size(c, first, dim)
    return begin, number


def _items(c: Conversion, x: Value) -> list[Item] | None:
    if x.content is not None and not any(isinstance(d, bool) for d in x.content.flat):
        return list(x.content.reshape(-1))
    if (array := c.known(x)) is not None:
        return [int(n) for n in array.reshape(-1)]
    count = x.type.elements
    if not isinstance(count, int) or count > LONGEST or not x.dtype.is_integer:
        return None
    node = x.producer
    if node is not None and isinstance(node.op, Concat) and x.type.rank == 1:
        parts = [_items(c, v) for v in node.inputs]
        return [i for part in parts for i in part or ()] if None not in parts else None
    if node is not None and isinstance(node.op, Reshape | Cast) and node.inputs[0].dtype.is_integer:
        return _items(c, node.inputs[0])
    flat = reshaped(c, x, (count,))
    return [_element(c, flat, i) for i in range(count)]


def _element(c: Conversion, vector: Value, place: int) -> Value:
    (count,) = vector.shape
    one = vector if count == 1 else c.aux(Slice((place,), (1,), (1,)), vector)
    return c.cast(reshaped(c, one, ()), DType.INT64)


def _constant(c: Conversion, number: int) -> Value:
    return c.constant(np.int64(number))


def _positive(total: DimLike) -> DimLike:
    """A limit for the dimensions of a tensor; without elements they may be anything."""
    return total if isinstance(total, int) and total > 0 else UNBOUNDED

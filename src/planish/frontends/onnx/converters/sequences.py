"""Sequences and optionals, which exist only while a model is converted (see `items`)."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped
from planish.frontends.onnx.items import Absent, Item, TensorSequence
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.ops import Concat, Gather, Reshape, Slice, expand_shape

MOST_PARTS = 1 << 14
"""Tensors of a sequence that is split from one; a few bytes of a damaged file can ask for more
than there is memory."""


def _sequence(c: Conversion, index: int = 0) -> tuple[Value, ...]:
    item = c.inputs[index] if index < len(c.inputs) else None
    if isinstance(item, TensorSequence):
        return item.values
    raise c.shape_error(f"{c.node.op_type} needs a sequence as its input {index}")


def _position(c: Conversion, index: int, length: int, most: int) -> int:
    """A known position, counted from the front; `most` is the last one allowed."""
    (place,) = c.integers(index, "the position")
    if not -length <= place <= most:
        raise c.shape_error(f"{c.node.op_type}: a sequence of {length} has no position {place}")
    return place + length if place < 0 else place


@converter("SequenceEmpty")
def _sequence_empty(c: Conversion) -> Item:
    return TensorSequence(())


@converter("SequenceConstruct")
def _sequence_construct(c: Conversion) -> Item:
    return TensorSequence(tuple(c.present()))


@converter("SequenceInsert")
def _sequence_insert(c: Conversion) -> Item:
    values = list(_sequence(c))
    place = len(values)
    if c.optional(2) is not None:
        place = _position(c, 2, len(values), len(values))
    values.insert(place, c.input(1))
    return TensorSequence(tuple(values))


@converter("SequenceErase")
def _sequence_erase(c: Conversion) -> Item:
    values = list(_sequence(c))
    place = len(values) - 1
    if c.optional(1) is not None:
        place = _position(c, 1, len(values), len(values) - 1)
    del values[place]
    return TensorSequence(tuple(values))


@converter("SequenceAt")
def _sequence_at(c: Conversion) -> Item:
    """A position that depends on the data picks from all tensors, if they are of one type."""
    values, place = _sequence(c), c.input(1)
    if c.known(place) is not None:
        return values[_position(c, 1, len(values), len(values) - 1)]
    if len({v.type for v in values}) != 1:
        raise c.unsupported("the position depends on the data, and the tensors differ in shape")
    return c.add(Gather(0), _joined(c, values, 0, new_axis=True), reshaped(c, place, ()))


@converter("SequenceLength")
def _sequence_length(c: Conversion) -> Item:
    return c.constant(len(_sequence(c)), DType.INT64)


@converter("ConcatFromSequence")
def _concat_from_sequence(c: Conversion) -> Item:
    values = _sequence(c)
    if not values:
        raise c.unsupported("the sequence is empty, so the shape of the result is not known")
    new_axis = bool(c.attr("new_axis", 0))
    rank = values[0].type.rank + new_axis
    return _joined(c, values, c.axis(rank), new_axis)


def _joined(c: Conversion, values: Sequence[Value], axis: int, new_axis: bool) -> Value:
    if new_axis:
        values = [reshaped(c, v, expand_shape(v.shape, (axis,))) for v in values]
    return values[0] if len(values) == 1 else c.aux(Concat(axis), *values)


@converter("SplitToSequence")
def _split_to_sequence(c: Conversion) -> Item:
    x, given = c.input(0), c.optional(1)
    axis = c.axis(x.type.rank, 0)
    dim = x.shape[axis]
    if given is not None and given.type.rank == 1:
        sizes = list(c.dims(1, "the sizes of the parts"))
    else:
        size = c.integers(1, "the size of the parts")[0] if given is not None else 1
        if not isinstance(dim, int):
            raise c.unsupported(f"the size {dim} is not fixed, so the number of parts is not known")
        if size < 1:
            raise c.shape_error(f"SplitToSequence into parts of {size}")
        if dim // size > MOST_PARTS:
            raise c.unsupported(f"it has {dim // size} parts, and at most {MOST_PARTS} are made")
        sizes = [min(size, dim - start) for start in range(0, dim, size)]
    squeeze = given is None and not c.attr("keepdims", 1)
    return TensorSequence(tuple(_parts(c, x, axis, sizes, squeeze)))


def _parts(
    c: Conversion, x: Value, axis: int, sizes: Sequence[DimLike], squeeze: bool
) -> list[Value]:
    parts, start, rank = [], 0, x.type.rank
    total: DimLike = start
    for size in sizes:
        begin = tuple(total if i == axis else 0 for i in range(rank))
        shape = tuple(size if i == axis else d for i, d in enumerate(x.shape))
        part = c.add(Slice(begin, shape, (1,) * rank), x)
        if squeeze:
            part = c.aux(Reshape(tuple(d for i, d in enumerate(shape) if i != axis)), part)
        parts.append(part)
        total = total + size
    if isinstance(rest := x.shape[axis] - total, int) and rest:
        raise c.shape_error(f"SplitToSequence of {x.shape[axis]} into parts of {total} in total")
    return parts


@converter("SequenceMap")
def _sequence_map(c: Conversion) -> Sequence[Item]:
    """The body once for each element; further inputs are sequences too, or the same every time."""
    length, body = len(_sequence(c)), c.subgraph("body")
    rounds = []
    for turn in range(length):
        given: list[Item] = []
        for item in c.inputs:
            if isinstance(item, TensorSequence):
                if len(item.values) != length:
                    raise c.shape_error(f"SequenceMap of {length} elements, and of {item}")
                given.append(item.values[turn])
            elif item is not None:
                given.append(item)
        rounds.append(c.inline(body, str(turn), given))
    results = []
    for column in range(len(body.output)):
        values = [row[column] for row in rounds]
        tensors = tuple(v for v in values if isinstance(v, Value))
        if len(tensors) != len(values):
            raise c.unsupported("its body gives sequences")
        results.append(TensorSequence(tensors))
    return results


@converter("Optional")
def _optional(c: Conversion) -> Item:
    return c.inputs[0] if c.inputs and c.inputs[0] is not None else Absent()


@converter("OptionalHasElement")
def _optional_has_element(c: Conversion) -> Item:
    present = bool(c.inputs) and not isinstance(c.inputs[0], Absent | None)
    return c.constant(present, DType.BOOL)


@converter("OptionalGetElement")
def _optional_get_element(c: Conversion) -> Item:
    item = c.inputs[0] if c.inputs else None
    if item is None or isinstance(item, Absent):
        raise c.unsupported("the optional has no element")
    return item

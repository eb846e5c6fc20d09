"""Control flow: If, Loop and Scan, by inlining their bodies.

An engine runs the same steps every time. So a loop whose number of rounds is known is unrolled, and
of a conditional whose condition is known one branch is left. Where the data decide, both branches
are computed and one is selected, with the size that it has, and a loop runs its greatest number of
rounds, those after its end without effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx

from planish.errors import ShapeError, UnsupportedOpError
from planish.frontends.onnx.context import Conversion, NoFallbackError
from planish.frontends.onnx.converters.layout import reshaped
from planish.frontends.onnx.converters.sizes import items, scalar, size
from planish.frontends.onnx.items import Item, TensorSequence
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, TensorType, Value
from planish.graph.dims import dim_max, substitute, symbols
from planish.ops import Concat, Pad, Reshape, Select, Slice, ew, expand_shape, normalize_axis
from planish.profile import UNBOUNDED

UNROLL_LIMIT = 256
"""Rounds of a loop; a longer one would make a graph too large to be of use."""

MASKED_LIMIT = 1024
"""Nodes of all rounds together of a loop that runs its greatest number of rounds every time."""

SELECTED_LIMIT = 256
"""Nodes of both branches of a conditional together, where both are computed every time."""


TRIED_ROUNDS = 3
"""Rounds by which a loop that ONNX's reference runs shows whether its states keep their shapes."""

TRIED_LIMIT = 10_000
"""Nodes of these rounds together; those of a loop in a loop are tried as often again."""


@converter("If")
def _if(c: Conversion) -> Sequence[Item]:
    condition = c.input(0)
    known = c.known(condition)
    if known is not None:
        branch = "then" if known.any() else "else"
        return c.inline(c.subgraph(f"{branch}_branch"), branch, ())
    branches = [c.subgraph("then_branch"), c.subgraph("else_branch")]
    if sum(map(_size, branches)) > SELECTED_LIMIT:
        raise c.unsupported("its condition depends on the data, and its branches are large")
    try:
        then, other = (c.inline(g, n, ()) for g, n in zip(branches, ("then", "else"), strict=True))
    except NoFallbackError:
        raise
    except UnsupportedOpError as error:
        raise c.unsupported(f"its condition depends on the data; {error.what}") from error
    flag = reshaped(c, condition, ())
    return [_either(c, flag, a, b) for a, b in zip(then, other, strict=True)]


def _either(c: Conversion, flag: Value, a: Item, b: Item) -> Item:
    """One of two results; tensors may differ in their sizes, and the one selected keeps its own."""
    if not isinstance(a, Value) or not isinstance(b, Value):
        return _selected(c, flag, a, b)
    if a.shape == b.shape or a.dtype is not b.dtype or a.type.rank != b.type.rank:
        return _selected_tensor(c, flag, a, b)
    sizes = list(zip(a.shape, b.shape, strict=True))
    if all(y in (x, 0) for x, y in sizes):
        chosen = a  # all or nothing of it
    elif all(x in (y, 0) for x, y in sizes):
        chosen = b
    else:
        most = [_greatest(c, x, y) for x, y in sizes]
        if UNBOUNDED in most:
            raise c.unsupported(f"the data decide between {a.type} and {b.type}")
        chosen = _selected_tensor(c, flag, _filled(c, a, most), _filled(c, b, most))
    shape = tuple(x if x == y else _either_size(c, flag, x, y) for x, y in sizes)
    return c.aux(Slice((0,) * len(shape), shape, (1,) * len(shape)), chosen)


def _either_size(c: Conversion, flag: Value, a: DimLike, b: DimLike) -> DimLike:
    """The dimension that is the one or the other, as the data say."""
    chosen = c.aux(Select(), flag, scalar(c, a), scalar(c, b))
    return size(c, chosen, _greatest(c, a, b))


def _greatest(c: Conversion, a: DimLike, b: DimLike) -> DimLike:
    """How large the larger of two dimensions can be."""
    counts = c.graph.counts
    while depends := counts.keys() & (symbols(a) | symbols(b)):
        limits = {name: counts[name].limit for name in depends}
        a, b = substitute(a, limits), substitute(b, limits)
    return dim_max(a, b)


def _filled(c: Conversion, x: Value, sizes: Sequence[DimLike]) -> Value:
    padding = tuple((0, most - d) for most, d in zip(sizes, x.shape, strict=True))
    return x if all(after == 0 for _, after in padding) else c.aux(Pad(padding), x)


def _selected(c: Conversion, flag: Value, a: Item, b: Item) -> Item:
    if isinstance(a, TensorSequence) and isinstance(b, TensorSequence):
        if len(a.values) == len(b.values):
            pairs = zip(a.values, b.values, strict=True)
            return TensorSequence(tuple(_selected_tensor(c, flag, x, y) for x, y in pairs))
    elif isinstance(a, Value) and isinstance(b, Value):
        return _selected_tensor(c, flag, a, b)
    raise c.unsupported("the data decide between results of different kinds")


def _selected_tensor(c: Conversion, flag: Value, a: Value, b: Value) -> Value:
    if a is b:
        return a
    if a.type != b.type:
        raise c.unsupported(f"the data decide between {a.type} and {b.type}")
    return c.aux(Select(), flag, a, b)


def _size(graph: onnx.GraphProto) -> int:
    """How many nodes a graph has, those of its subgraphs included."""
    inner = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return len(graph.node) + sum(map(_size, inner))


@converter("Loop")
def _loop(c: Conversion) -> Sequence[Item]:
    body = c.subgraph("body")
    states: list[Item] = [item for item in c.inputs[2:] if item is not None]
    going: bool | Value = True
    if (first := c.optional(1)) is not None:
        known = c.known(first)
        going = reshaped(c, first, ()) if known is None else bool(known.any())
    limit = c.optional(0)
    known_limit = None if limit is None else c.known(limit)
    if limit is not None and known_limit is None:
        _note_shapes(c, body, states, _rounds(c) if going is True else None)
        raise c.unsupported("its number of rounds depends on the data")
    most = None if known_limit is None else int(known_limit.reshape(()))
    collected: list[list[Value]] = [[] for _ in body.output[1 + len(states) :]]
    turn = 0
    while going is not False and (most is None or turn < most):
        if refusal := _too_many_rounds(body, turn, most, isinstance(going, Value)):
            all_rounds = most if going is True else None
            _note_shapes(c, body, [i for i in c.inputs[2:] if i is not None], all_rounds)
            raise c.unsupported(refusal)
        flag = going if isinstance(going, Value) else c.constant(True)
        number = c.constant(turn, DType.INT64)
        condition, *results = c.inline(body, str(turn), (number, flag, *states))
        after, scanned = results[: len(states)], results[len(states) :]
        if isinstance(going, Value):
            if collected:
                raise c.unsupported("the data decide how long its outputs are")
            after = [_selected(c, going, new, old) for new, old in zip(after, states, strict=True)]
        for values, value in zip(collected, scanned, strict=True):
            values.append(_row(c, value))
        states, turn = after, turn + 1
        going = _still_going(c, going, condition)
    if collected and not turn:
        raise c.unsupported("it never runs, so the shapes of its outputs are not known")
    return [*states, *(_stacked(c, values, 0) for values in collected)]


def _rounds(c: Conversion) -> DimLike:
    """The greatest number of rounds as a dimension."""
    (number,) = items(c, 0, "the number of rounds")
    if not isinstance(number, Value):
        return dim_max(number, 0)
    return size(c, c.aux(ew.Maximum(), number, c.constant(np.int64(0))))


def _note_shapes(
    c: Conversion, body: onnx.GraphProto, states: Sequence[Item], rounds: DimLike | None
) -> None:
    """Notes the shapes of the outputs, if what rounds do to those of the states tells them.

    Each round must leave a dimension as it is, or, where it is known how many `rounds` there are,
    make it longer by the same number. The first ones are tried, as what a round does may depend on
    its number; what this adds to the graph has no user, and is dropped.
    """
    if _tried_size(body) > TRIED_LIMIT:
        return
    before = [v.type for v in states if isinstance(v, Value)]
    tried: list[list[TensorType]] = []
    for turn in range(TRIED_ROUNDS):
        number = c.constant(turn, DType.INT64)
        try:
            condition, *after = c.inline(body, f"round{turn}", (number, c.constant(True), *states))
        except NoFallbackError:
            raise
        except (UnsupportedOpError, ShapeError):
            return  # as where sizes that the data give must be equal
        tried.append([v.type for v in after if isinstance(v, Value)])
        states = after[: len(states)]
        goes_on = c.known(condition) if isinstance(condition, Value) else None
        if goes_on is None or not goes_on.any():
            rounds = None
    kept = zip(before, *tried, strict=False)
    shapes = [s for types in kept if (s := _after(rounds, types)) is not None]
    rows = [types[len(states) :] for types in tried]
    if rounds is not None and all(row == rows[0] for row in rows):
        shapes += [(rounds, *row.shape) for row in rows[0]]
    if len(shapes) == len(body.output) - 1:
        c.result_shapes = shapes


def _tried_size(graph: onnx.GraphProto) -> int:
    """How many nodes the tried rounds of a body have, those of subgraphs included."""
    inner = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return TRIED_ROUNDS * (len(graph.node) + sum(map(_tried_size, inner)))


def _after(rounds: DimLike | None, types: Sequence[TensorType]) -> tuple[DimLike, ...] | None:
    """The shape of a state after all rounds, by its types before and after the first ones."""
    if len({(t.rank, t.dtype) for t in types}) != 1:
        return None
    shape = []
    for first, *rest in zip(*(t.shape for t in types), strict=True):
        steps = {after - before for before, after in pairwise((first, *rest))}
        step = steps.pop()
        if not steps and step == 0:
            shape.append(first)
        elif not steps and rounds is not None and isinstance(step, int) and step > 0:
            shape.append(first + rounds * step)
        else:
            return None
    return tuple(shape)


def _too_many_rounds(body: onnx.GraphProto, turn: int, most: int | None, masked: bool) -> str:
    """Why another round cannot be written out, or ""."""
    if turn == UNROLL_LIMIT:
        return f"it takes more than {UNROLL_LIMIT} rounds"
    if masked and most is None:
        return "the data decide how many rounds it takes, without a limit"
    if masked and most is not None and most * _size(body) > MASKED_LIMIT:
        return f"the data decide how many of its {most} rounds it takes"
    return ""


def _still_going(c: Conversion, going: bool | Value, condition: Item) -> bool | Value:
    """Whether a loop goes on: what its body says, and no round after one that was left out."""
    if not isinstance(condition, Value):
        raise c.shape_error("the condition of a loop must be a tensor")
    known = c.known(condition)
    if known is not None and not known.any():
        return False
    if known is not None:
        return going
    condition = reshaped(c, condition, ())
    if isinstance(going, Value) and going is not condition:
        return c.aux(ew.LogicalAnd(), going, condition)
    return condition


def _row(c: Conversion, item: Item, axis: int = 0) -> Value:
    """A tensor with a new dimension of 1, along which rounds are put together."""
    if not isinstance(item, Value):
        raise c.unsupported(f"its body gives {item} in every round")
    return c.aux(Reshape(expand_shape(item.shape, (axis,))), item)


def _stacked(c: Conversion, values: Sequence[Value], axis: int) -> Value:
    return values[0] if len(values) == 1 else c.aux(Concat(axis), *values)


def _scan_inputs(c: Conversion) -> int:
    """How many of its inputs a scan reads an element a round."""
    scans = int(c.attr("num_scan_inputs", 1))
    if scans > len(c.inputs):
        raise c.shape_error(f"it is said to read {scans} inputs and has {len(c.inputs)}")
    return scans


@converter("Scan")
def _scan_of_batches(c: Conversion) -> Sequence[Item]:
    """Opset 8: every tensor has a batch dimension first, and the body sees one element of it."""
    if c.optional(0) is not None:
        raise c.unsupported("its sequences have lengths of their own")
    body, scans = c.subgraph("body"), _scan_inputs(c)
    values = [c.input(i) for i in range(1, len(c.inputs))]
    backwards = c.attr("directions", (0,) * scans)
    batch = values[0].shape[0]
    if not isinstance(batch, int) or not 1 <= batch <= UNROLL_LIMIT:
        raise c.unsupported(f"its batch is {batch}")
    columns: list[list[Value]] = [[] for _ in body.output]
    for element in range(batch):
        own = [_slice_of(c, v, 0, element) for v in values]
        axes, kept = (0,) * scans, (0,) * (len(body.output) - len(own) + scans)
        results = _scanned(c, body, own, scans, (axes, backwards), (kept, kept), f"{element}/")
        for column, result in zip(columns, results, strict=True):
            column.append(_row(c, result))
    return [_stacked(c, column, 0) for column in columns]


@converter("Scan", since=9)
def _scan(c: Conversion) -> Sequence[Item]:
    body, scans = c.subgraph("body"), _scan_inputs(c)
    outputs = len(body.output) - (len(c.inputs) - scans)
    reading = (
        c.attr("scan_input_axes", (0,) * scans),
        c.attr("scan_input_directions", (0,) * scans),
    )
    writing = (
        c.attr("scan_output_axes", (0,) * outputs),
        c.attr("scan_output_directions", (0,) * outputs),
    )
    return _scanned(c, body, c.present(), scans, reading, writing, "")


def _scanned(
    c: Conversion,
    body: onnx.GraphProto,
    values: Sequence[Value],
    scans: int,
    reading: tuple[Sequence[int], Sequence[int]],
    writing: tuple[Sequence[int], Sequence[int]],
    label: str,
) -> list[Item]:
    """The rounds of a scan; `reading` and `writing` are axes and directions, 1 for backwards."""
    count = len(values) - scans
    states: list[Item] = list(values[:count])
    inputs = values[count:]
    axes = [normalize_axis(a, v.type.rank) for a, v in zip(reading[0], inputs, strict=True)]
    lengths = {v.shape[a] for v, a in zip(inputs, axes, strict=True)}
    length = next(iter(lengths), 0)
    if len(lengths) != 1 or not isinstance(length, int):
        raise c.unsupported(f"the lengths of its inputs are {', '.join(map(str, lengths))}")
    if not 1 <= length <= UNROLL_LIMIT:
        raise c.unsupported(f"it takes {length} rounds, and 1 to {UNROLL_LIMIT} are unrolled")
    collected: list[list[Item]] = [[] for _ in body.output[count:]]
    for turn in range(length):
        picked = [
            _slice_of(c, v, axis, length - 1 - turn if back else turn)
            for v, axis, back in zip(inputs, axes, reading[1], strict=True)
        ]
        results = c.inline(body, f"{label}{turn}", (*states, *picked))
        states = results[:count]
        for column, result in zip(collected, results[count:], strict=True):
            column.append(result)
    outputs: list[Item] = []
    for column, axis, back in zip(collected, *writing, strict=True):
        first = column[0]
        rank = first.type.rank + 1 if isinstance(first, Value) else 1
        place = normalize_axis(axis, rank)
        rows = [_row(c, item, place) for item in column]
        outputs.append(_stacked(c, rows[::-1] if back else rows, place))
    return [*states, *outputs]


def _slice_of(c: Conversion, x: Value, axis: int, index: int) -> Value:
    """The elements at one index of an axis, without that axis."""
    rank = x.type.rank
    begin = tuple(index if i == axis else 0 for i in range(rank))
    size = tuple(1 if i == axis else d for i, d in enumerate(x.shape))
    part = c.aux(Slice(begin, size, (1,) * rank), x)
    return reshaped(c, part, tuple(d for i, d in enumerate(x.shape) if i != axis))

"""Attention as products of levels: what q, k, v and the weights become.

    x ─▶ matmul, bias ─▶ q, k, v ─▶ attention       x ─▶ matmul, bias ─▶ Quantize ─▶ q, k, v
                                                          ─▶ Dequantize ─▶ quantized attention

q, k and v get levels of their own range, with 128 for 0; weights are quantized where softmax has
them relative to a row's greatest (`planish.ops.QuantizedSoftmax`). The nodes stay those of floats:
what reads levels is the task that they are fused to (`planish.fusion.attention`), for which a
target must have a kernel. Where q, k and v are parts of one product, this gives levels as a whole,
with factors by channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planish.fusion.attention import MIDDLE, Found, attention_around
from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops import (
    Dequantize,
    Identity,
    Quantize,
    QuantizedSoftmax,
    Reshape,
    Slice,
    Softmax,
    Transpose,
)
from planish.quantization.ranges import Ranges
from planish.quantization.scheme import Levels, Scheme

WEIGHTS = 255
"""Levels of a row's greatest weight."""

GROUP = 4
"""The depth of queries must be a multiple of it: kernels multiply so many bytes at a time."""

CENTRED = Scheme(DType.UINT8, symmetric=True)
"""The levels of q, k, v and the result."""


def attentions(graph: Graph) -> dict[Node, Found]:
    """The attentions of a graph that can multiply levels, by their softmax."""
    outputs = set(graph.outputs)
    found: dict[Node, Found] = {}
    for node in graph.nodes:
        if type(node.op) is Softmax:
            one = attention_around(node, (), outputs)
            if one is not None and not one.after and _fits(one):
                found[node] = one
    return found


def quantizable_attentions(graph: Graph, ranges: Ranges, scheme: Scheme) -> dict[Node, Found]:
    """Those of `attentions` whose ranges are known, where the target has kernels for them."""
    if not scheme.attention:
        return {}
    return {n: one for n, one in attentions(graph).items() if limits_of(one, ranges)}


def _fits(found: Found) -> bool:
    depth = found.operands[0].shape[found.axes[0][-1]]
    floats = {v.dtype for n in found.nodes for v in n.outputs if v.dtype.is_float}
    return (
        floats == {DType.FLOAT32}
        and len(set(found.operands)) == 3
        and not any(v.is_constant for v in found.operands)
        and isinstance(depth, int)
        and depth % GROUP == 0
    )


def limits_of(found: Found, ranges: Ranges) -> tuple[float, ...] | None:
    """How far q, k and v reach from 0; None where that is not known."""
    limits = [_limit(value, found, ranges) for value in found.operands]
    return None if None in limits else tuple(limits)  # type: ignore[arg-type]


def _limit(value: Value, found: Found, ranges: Ranges) -> float | None:
    """By a value's range, or that of what a product reads of it."""
    while value.name not in ranges.tensors:
        users = [n for n in value.users if n in found.nodes]
        if len(users) != 1 or not isinstance(users[0].op, Transpose):
            return None
        value = users[0].output
    low, high = ranges.tensors[value.name]
    return max(-low, high)


def quantize_attentions(graph: Graph, chosen: Iterable[Found], ranges: Ranges) -> dict[str, Levels]:
    """Makes attentions read levels, in place.

    Parameters
    ----------
    graph : Graph
    chosen : iterable of Found
        Of `attentions`, with known `limits_of`.
    ranges : Ranges

    Returns
    -------
    dict of str to Levels
        Of q, k and v, by the names of these.
    """
    made: dict[str, Levels] = {}
    for found in chosen:
        limits = limits_of(found, ranges)
        assert limits is not None
        levels = [CENTRED.levels(-limit, limit) for limit in limits]
        wanted = [_Wanted(v, own) for v, own in zip(found.operands, levels, strict=True)]
        for one, value in zip(wanted, _levels_of(graph, wanted), strict=True):
            made[one.value.name] = one.levels
            floats = graph.add(
                Dequantize(),
                value,
                graph.constant(np.float32(one.levels.scale), "scale"),
                graph.constant(np.float32(MIDDLE), "zero"),
                name=f"{one.value.name}/fp32",
                origin=found.softmax.origin or found.softmax.name,
            )
            for node in [n for n in one.value.users if n in found.nodes]:
                inputs = [floats if v is one.value else v for v in node.inputs]
                graph.set_inputs(node, inputs)
        softmax = found.softmax.op
        assert isinstance(softmax, Softmax)
        found.softmax.op = QuantizedSoftmax(softmax.axis, WEIGHTS)
    return made


def fold_steps(graph: Graph) -> None:
    """Where levels are made of an attention's result, takes their distance into that of v's levels,
    in place: so that all such attentions of a network are alike, and kernels serve them all.
    """
    for node in list(graph.nodes):
        found = None
        if isinstance(node.op, QuantizedSoftmax):
            found = attention_around(node, (), set(graph.outputs))
        if found is None or not found.after:
            continue
        last = found.after[-1]
        step, reads_v = last.inputs[1].data, found.steps[2].users
        assert step is not None and found.steps[2].data is not None
        ratio = np.float32(found.steps[2].data / step.reshape(()))
        for reader in [n for n in reads_v if n in found.nodes]:
            graph.set_inputs(
                reader, (reader.inputs[0], graph.constant(ratio, "scale"), reader.inputs[2])
            )
        graph.scales[last.output.name] = (float(step.reshape(())), float(MIDDLE))
        graph.set_inputs(
            last, (last.inputs[0], graph.constant(np.float32(1), "scale"), last.inputs[2])
        )


@dataclass(frozen=True)
class _Wanted:
    """A value that shall exist as levels, too."""

    value: Value
    levels: Levels


@dataclass(frozen=True)
class _Part:
    """Where a value comes from: some channels of another one, by moves, the first one first."""

    source: Value
    moves: tuple[Node, ...]
    first: int
    last: DimLike


def _levels_of(graph: Graph, wanted: list[_Wanted]) -> list[Value]:
    """The levels of some values, made as early as can be: by the products that they come from."""
    parts = [_part_of(one.value) for one in wanted]
    readers = {part.moves[0] for part in parts if part.moves}
    sources = {part.source for part in parts}
    source = parts[0].source
    if len(sources) == 1 and readers == set(source.users) and _apart(parts):
        scales = [one.levels.scale for one in wanted]
        steps = np.full(source.shape[-1], max(scales), np.float32)  # type: ignore[arg-type]
        for part, scale in zip(parts, scales, strict=True):
            steps[part.first : part.last] = scale
        whole = _quantized(graph, source, steps)
        return [_moved(graph, whole, part.moves) for part in parts]
    made = []
    for part, one in zip(parts, wanted, strict=True):
        is_cut = bool(part.moves) and isinstance(part.moves[0].op, Slice)
        start = part.moves[0].output if is_cut else part.source
        levels = _quantized(graph, start, np.float32(one.levels.scale))
        made.append(_moved(graph, levels, part.moves[is_cut:]))
    return made


def _part_of(value: Value) -> _Part:
    """Up through reshapes, and one slice of channels, of which nobody else reads the results."""
    moves: list[Node] = []

    def source(*ops: type) -> Value | None:
        node = value.producer
        is_shared = bool(moves) and len(value.users) > 1
        return None if node is None or is_shared or type(node.op) not in ops else node.inputs[0]

    while (above := source(Reshape, Identity)) is not None:
        moves.insert(0, value.producer)  # type: ignore[arg-type]
        value = above
    above = source(Slice)
    channels = _channels(value.producer) if above is not None and value.producer else None
    if above is None or channels is None:
        return _Part(value, tuple(moves), 0, value.shape[-1])
    moves.insert(0, value.producer)  # type: ignore[arg-type]
    return _Part(above, tuple(moves), *channels)


def _channels(node: Node) -> tuple[int, int] | None:
    """Which channels a slice takes, if it takes all of the other axes."""
    op, x = node.op, node.inputs[0]
    assert isinstance(op, Slice)
    begin, size = op.begin[-1], op.size[-1]
    if x.shape[:-1] != op.size[:-1] or any(s != 1 for s in op.strides):
        return None
    if any(b != 0 for b in op.begin[:-1]) or not isinstance(x.shape[-1], int):
        return None
    return (begin, begin + size) if isinstance(begin, int) and isinstance(size, int) else None


def _apart(parts: list[_Part]) -> bool:
    """Whether parts have channels of their own."""
    spans = sorted((part.first, part.last) for part in parts if isinstance(part.last, int))
    if len(spans) < len(parts):
        return False
    return all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def _quantized(graph: Graph, value: Value, steps: np.ndarray | np.generic) -> Value:
    origin = value.producer.origin or value.producer.name if value.producer else value.name
    return graph.add(
        Quantize(DType.UINT8, 0, 255),
        value,
        graph.constant(np.asarray(steps), "scale"),
        graph.constant(np.float32(MIDDLE), "zero"),
        name=f"{value.name}/int8",
        origin=origin,
    )


def _moved(graph: Graph, levels: Value, moves: tuple[Node, ...]) -> Value:
    for move in moves:
        name = f"{move.output.name}/int8"
        levels = graph.add(move.op, levels, *move.inputs[1:], name=name, origin=move.origin)
    return levels

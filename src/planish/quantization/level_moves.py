"""What only moves elements moves levels: conversions go past it, and meet.

    x8 ─▶ Dequantize ─▶ move ─▶ Quantize ─▶        x8 ─▶ move ─▶
    move(dequantize(x))          => dequantize(move(x))
    quantize(move(x))            => move(quantize(x))
    quantize(dequantize(x))      => x                         of the same levels

All of it is exact. Where a network quantizes itself, this leaves bytes between its layers, of which
each makes floats by itself where it needs any.
"""

from __future__ import annotations

from dataclasses import replace

from planish.graph.graph import Graph, Node
from planish.graph.verify import verify
from planish.ops import Dequantize, Op, Pad, Quantize
from planish.passes.rewrite import has_one_user, substitute
from planish.quantization.explicit import levels_of
from planish.quantization.products import SUFFIX
from planish.quantization.rewrite import moved, moves_levels
from planish.quantization.scheme import Levels


def move_levels(graph: Graph) -> None:
    """Lets what moves floats between levels move the levels, in place."""
    for node in list(graph.nodes):
        if moves_levels(node):
            _dequantize_later(graph, node)
    work = [node for node in graph.nodes if isinstance(node.op, Quantize)]
    while work:
        work += _quantize_earlier(graph, work.pop())
    for node in list(graph.nodes):
        if isinstance(node.op, Quantize):
            _cancel(graph, node)
    graph.tidy()
    for node in list(graph.nodes):
        if isinstance(node.op, Dequantize) and not node.inputs[0].is_constant:
            _dequantize_apart(graph, node)
    graph.tidy()
    verify(graph, after="move_levels")


def _dequantize_later(graph: Graph, node: Node) -> None:
    makers = [value.producer for value in moved(node)]
    first = makers[0]
    if first is None or not isinstance(first.op, Dequantize):
        return
    levels = levels_of(first)
    for maker in makers:
        if maker is None or not isinstance(maker.op, Dequantize) or maker.inputs[0].is_constant:
            return
        if levels is None or levels_of(maker) != levels:
            return
    given = [maker.inputs[0] for maker in makers if maker is not None]
    inputs = (*given, *node.inputs[len(given) :])
    name, origin = node.output.name, node.origin or node.name
    bytes_ = graph.add(
        _of_levels(node.op, levels), *inputs, name=f"{name}/{SUFFIX}", origin=node.origin
    )
    result = graph.add(Dequantize(), bytes_, *first.inputs[1:], name=f"{name}/fp32", origin=origin)
    substitute(graph, node.output, result)


def _quantize_earlier(graph: Graph, node: Node) -> list[Node]:
    """Returns the new conversions."""
    x = node.inputs[0]
    move, levels = x.producer, levels_of(node)
    if move is None or levels is None or not moves_levels(move) or not has_one_user(graph, x):
        return []
    sources = moved(move)
    if any(v.producer is None or not has_one_user(graph, v) for v in sources):
        return []  # what comes from outside is moved as it is read
    made = [
        graph.add_node(
            node.op,
            (value, *node.inputs[1:]),
            name=f"{value.name}/{SUFFIX}",
            origin=node.origin,
        )
        for value in sources
    ]
    inputs = (*(n.output for n in made), *move.inputs[len(made) :])
    result = graph.add(
        _of_levels(move.op, levels), *inputs, name=f"{x.name}/{SUFFIX}", origin=move.origin
    )
    substitute(graph, node.output, result)
    return made


def _cancel(graph: Graph, node: Node) -> None:
    before, op = node.inputs[0].producer, node.op
    if before is None or not isinstance(before.op, Dequantize) or not isinstance(op, Quantize):
        return
    levels = levels_of(node)
    if levels is not None and levels == levels_of(before) and _is_whole(op, levels):
        substitute(graph, node.output, before.inputs[0])


def _dequantize_apart(graph: Graph, node: Node) -> None:
    """Gives every reader a conversion of its own, right before it: there it becomes part of it."""
    for reader in list(node.output.users):
        own = graph.add(node.op, *node.inputs, name=node.name, origin=node.origin)
        graph.set_inputs(reader, [own if v is node.output else v for v in reader.inputs])


def _is_whole(op: Quantize, levels: Levels) -> bool:
    """Whether an op limits levels no more than their dtype does."""
    return (op.low, op.high) == (levels.low, levels.high)


def _of_levels(op: Op, levels: Levels | None) -> Op:
    """The op that moves levels as `op` moves floats."""
    if isinstance(op, Pad) and op.mode == "constant" and levels is not None:
        return replace(op, value=float(levels.zero))
    return op

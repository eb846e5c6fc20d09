"""Transposes move to where they cost least, and mostly disappear.

    x (NCHW)                           x (NCHW)
    |                                  |
    Transpose  Conv  Transpose         Transpose
    |                                  |
    Relu                       =>      Conv  Relu  Conv  Add
    |                                  |
    Transpose  Conv  Transpose         Transpose
    |          …                       |

Around the convolutions of a channels-first model stand transposes, and between them regions of ops
that do not care which layout they work on. For each such region every node gets the layout, its
own or the transposed one, for which the transposes at all borders together move the fewest bytes:
a minimum cut between what must stay as it is and what comes or goes transposed. A region changes
only if that is strictly cheaper, so that nothing ever moves back and forth.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from planish.graph.dims import evaluate, symbols
from planish.graph.graph import Graph, Node, Value
from planish.ops.elementwise import Elementwise
from planish.ops.indexing import Gather
from planish.ops.matmul import MatMul
from planish.ops.shape import Reshape, Transpose
from planish.passes.layouts import (
    Layout,
    compose,
    inverse,
    is_identity,
    keeps_order,
    spread,
    stored_op,
)
from planish.passes.matmul import absorbs
from planish.passes.min_cut import INFINITE, Network
from planish.passes.rewrite import Apply, Match, Rule, Var, release, rewrite, substitute, swap_names

USUAL_DIM = 4
"""What a symbolic dimension without an optimization profile counts for."""

TRANSPOSE_COST = 256
"""What a transpose costs besides its elements, in elements."""


def move_transposes(graph: Graph) -> bool:
    """Merges transposes, then gives each region between them its cheapest layout."""
    changed = _merged(graph)
    for _ in range(len(graph.nodes)):  # so that an error in the costs can never be a hang
        if not _improve(graph):
            break
        graph.tidy()
        _merged(graph)
        changed = True
    return changed


def _merged(graph: Graph) -> bool:
    """Applies the rules and shares equal transposes: a value's users share one, say the costs."""
    changed = rewrite(graph, RULES)
    first: dict[tuple[Value, Layout], Value] = {}
    for node in list(graph.nodes):
        if isinstance(node.op, Transpose):
            y = first.setdefault((node.inputs[0], node.op.perm), node.output)
            if y is not node.output:
                substitute(graph, node.output, y)
                changed = True
    graph.tidy()
    return changed


def transposed(graph: Graph, value: Value, layout: Layout) -> Value:
    """`value` transposed, by whatever is cheapest: nothing, a new constant, a reshape."""
    producer = value.producer
    if producer is not None and isinstance(producer.op, Transpose):
        layout = compose(producer.op.perm, layout)
        value = producer.inputs[0]
        producer = value.producer
    if is_identity(layout):
        return value
    if value.data is not None:
        data = np.ascontiguousarray(value.data.transpose(layout))
        return graph.constant(data, value.name)
    shape = tuple(value.shape[a] for a in layout)
    op = Reshape(shape) if keeps_order(layout, value.shape) else Transpose(layout)
    for user in value.users:
        if user.op == op and user.outputs[0].users:
            return user.outputs[0]
    origin = producer.origin if producer else ""
    return graph.add(op, value, name=f"{value.name}/transposed", origin=origin)


# ---- merging ---------------------------------------------------------------------------------


def _merge(m: Match) -> Value | None:
    first, second = m.ops["first"], m.ops["second"]
    assert isinstance(first, Transpose)
    assert isinstance(second, Transpose)
    both = compose(first.perm, second.perm)
    return m["x"] if is_identity(both) else m.add(Transpose(both), m["x"])


def _as_reshape(m: Match) -> Value | None:
    op, x = m.ops["op"], m["x"]
    assert isinstance(op, Transpose)
    return m.add(Reshape(m.output.shape), x) if keeps_order(op.perm, x.shape) else None


RULES = (
    Rule(
        "transpose(transpose(x)) => transpose(x)",
        Apply(Transpose, Apply(Transpose, Var("x"), called="first"), called="second"),
        _merge,
        shared=True,
    ),
    Rule(
        "transpose(x) => reshape(x) where only axes of size 1 move",
        Apply(Transpose, Var("x"), called="op"),
        _as_reshape,
    ),
)


# ---- regions ---------------------------------------------------------------------------------


AS_IS, OTHER = 0, 1
"""The two layouts of a region, as the source and the sink of its network."""


@dataclass
class Region:
    """Connected nodes that can work on another layout, and that layout of each of their values."""

    nodes: dict[Node, None] = field(default_factory=dict)
    layouts: dict[Value, Layout] = field(default_factory=dict)


def _improve(graph: Graph) -> bool:
    """Changes the first region that becomes cheaper."""
    seen: set[tuple[Value, Layout]] = set()
    for node in graph.nodes:
        if not isinstance(node.op, Transpose):
            continue
        (x,), y, perm = node.inputs, node.output, node.op.perm
        for value, layout in ((y, inverse(perm)), (x, perm)):
            if (value, layout) in seen:
                continue
            region = _grow(value, layout)
            seen.update(region.layouts.items())
            if region.nodes:
                chosen = _choose(graph, region)
                if chosen:
                    _apply(graph, region, chosen)
                    return True
    return False


def _grow(value: Value, layout: Layout) -> Region:
    region = Region(layouts={value: layout})
    blocked = set(_across_transposes(value))
    queue = deque([value])
    while queue:
        value = queue.popleft()
        around = [*value.users] if value.producer is None else [value.producer, *value.users]
        for node in around:
            if node in region.nodes:
                continue
            layouts = spread(node, value, region.layouts[value])
            if layouts is None or any(
                region.layouts.get(v, layout) != layout for v, layout in layouts.items()
            ):
                continue
            if not blocked.isdisjoint(layouts):
                continue
            region.nodes[node] = None
            for added in layouts:
                blocked.update(_across_transposes(added))
            queue.extend(v for v in layouts if v not in region.layouts)
            region.layouts.update(layouts)
    return region


def _across_transposes(value: Value) -> list[Value]:
    """What a value is transposed from and to: no part of its region, but of the next ones."""
    across = [n.output for n in value.users if isinstance(n.op, Transpose)]
    if value.producer is not None and isinstance(value.producer.op, Transpose):
        across += value.producer.inputs
    return across


def _choose(graph: Graph, region: Region) -> set[Node]:
    """The nodes to run on the other layout: none if leaving everything as it is costs no more."""
    network = Network()
    vertices = {node: network.vertex() for node in region.nodes}
    outputs = set(graph.outputs)
    unchanged_cost = 0
    for value, layout in region.layouts.items():
        weight = _weight(graph, value, layout)
        source = _source(value, layout, vertices)
        readers = _readers(graph, value, layout, vertices)
        if value in outputs:
            readers.add(AS_IS)
        if source is None:
            # transposed in any case: to either layout for the same price, but to both for twice it
            source = network.vertex()
            unchanged_cost += weight * (OTHER in readers and len(readers) > 1)
        else:
            differs = any((r == OTHER) != (source == OTHER) for r in readers)
            unchanged_cost += weight * differs
        _connect(network, source, readers, weight)
    for node, vertex in vertices.items():
        network.edge(AS_IS, vertex, _broadcast_weight(graph, node, region))
    cost, chosen = network.cut()
    if cost >= unchanged_cost:
        return set()
    return {node for node, vertex in vertices.items() if vertex in chosen}


def _readers(graph: Graph, value: Value, layout: Layout, vertices: dict[Node, int]) -> set[int]:
    """The vertices that decide in which layouts a value is read."""
    readers: set[int] = set()
    back = inverse(layout)
    for node in value.users:
        if isinstance(node.op, Reshape) and node not in vertices and absorbs(node, back):
            continue  # a product behind it takes in the transpose
        if not isinstance(node.op, Transpose):
            readers.add(vertices.get(node, AS_IS) if _takes_layout(node, value) else AS_IS)
        elif is_identity(compose(back, node.op.perm)) and not _is_absorbed(
            graph, node, node.op.perm
        ):
            readers.add(OTHER)
        # any other transpose costs the same whatever it starts from
    return readers


def _is_absorbed(graph: Graph, transpose: Node, perm: Layout) -> bool:
    """Whether products behind a transpose take it in, so that it costs nothing."""
    y = transpose.output
    return not any(y is o for o in graph.outputs) and all(
        isinstance(user.op, Reshape) and absorbs(user, perm) for user in y.users
    )


def _takes_layout(node: Node, value: Value) -> bool:
    """Whether a node reads a value in the value's layout, and not as an operand to broadcast."""
    if not isinstance(node.op, Elementwise):
        return True
    return value.type.rank == node.output.type.rank


def _source(value: Value, layout: Layout, vertices: dict[Node, int]) -> int | None:
    """The vertex that decides in which layout a value is written; None if that is free."""
    node = value.producer
    if node in vertices:
        return vertices[node]  # type: ignore[index]
    if node is not None and isinstance(node.op, Transpose):
        return OTHER if is_identity(compose(node.op.perm, layout)) else None
    return AS_IS


def _connect(network: Network, source: int, readers: set[int], weight: int) -> None:
    """One transpose, shared by its readers, is paid if any reader differs from the source."""
    readers = readers - {source}
    if not readers:
        return
    to_other, to_as_is = network.vertex(), network.vertex()
    network.edge(source, to_other, weight)
    network.edge(to_as_is, source, weight)
    for reader in readers:
        network.edge(to_other, reader, INFINITE)
        network.edge(reader, to_as_is, INFINITE)


def _weight(graph: Graph, value: Value, layout: Layout) -> int:
    """What it costs to transpose a value."""
    if keeps_order(layout, value.shape):
        return 0
    usual = {
        s: graph.ranges[s].opt if s in graph.ranges else USUAL_DIM
        for d in value.shape
        for s in symbols(d)
    }
    return TRANSPOSE_COST + max(evaluate(value.type.elements, usual), 0)


def _broadcast_weight(graph: Graph, node: Node, region: Region) -> int:
    """What it costs to transpose the operands of lower rank."""
    total = 0
    for value in node.inputs:
        if not value.is_constant and not _takes_layout(node, value):
            layout = region.layouts[node.output]
            missing = len(layout) - value.type.rank
            order = tuple(a - missing for a in layout if a >= missing)
            total += _weight(graph, value, order)
    return total


def _apply(graph: Graph, region: Region, chosen: set[Node]) -> None:
    stored: dict[Value, Value] = {}
    for node in [n for n in graph.nodes if n in chosen]:
        inputs = [_stored_input(graph, node, v, region, stored) for v in node.inputs]
        op = stored_op(node, region.layouts)
        new = graph.add_node(op, inputs, name=node.name, origin=node.origin)
        swap_names(node, new)
        stored.update(zip(node.outputs, new.outputs, strict=True))
    for node in chosen:
        for value in node.outputs:
            _hand_over(graph, value, stored[value], region.layouts[value], chosen)
    graph.tidy()


def _stored_input(
    graph: Graph, node: Node, value: Value, region: Region, stored: dict[Value, Value]
) -> Value:
    if not value.is_constant and _takes_layout(node, value):
        if value not in stored:
            stored[value] = transposed(graph, value, region.layouts[value])
        return stored[value]
    if value.data is not None and value.data.size == 1:
        return value
    if isinstance(node.op, Gather | MatMul):
        return value  # its indices; its weights
    return _broadcast(graph, value, region.layouts[node.outputs[0]])


def _broadcast(graph: Graph, value: Value, layout: Layout) -> Value:
    """An operand that broadcasts, with all its axes written out and stored in a layout."""
    shape = (1,) * (len(layout) - value.type.rank) + value.shape
    if value.data is not None:
        axes = tuple(range(len(layout) - value.type.rank))
        value = graph.constant(np.expand_dims(value.data, axes), value.name)
    elif value.shape != shape:
        value = graph.add(Reshape(shape), value, name=f"{value.name}/broadcast")
    return transposed(graph, value, layout)


def _hand_over(graph: Graph, old: Value, new: Value, layout: Layout, chosen: set[Node]) -> None:
    """Lets all users of a value that is now stored in a layout read it so."""
    back = inverse(layout)
    for user in list(old.users):
        if isinstance(user.op, Transpose):
            graph.replace(user.output, transposed(graph, new, compose(back, user.op.perm)))
            release(graph, user)
    if any(user not in chosen for user in old.users) or any(old is o for o in graph.outputs):
        graph.replace(old, transposed(graph, new, back))

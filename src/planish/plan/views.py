"""Where every value lives: its own storage, or a part of another value's.

    producer ──▶ Reshape ──▶ Concat ──▶ consumer        no copy anywhere: the producer writes
    producer ──────────────▶   ↑                        straight into its part of the concatenation

Reshape, Slice and Concat move no data where strides can say the same. `insert_copies` puts an
`Identity` (a copy) where they cannot; after it, `place` finds a placement for every value, and the
nodes it calls free need no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Node, Value
from planish.graph.stages import node_stages
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.elementwise import Elementwise
from planish.ops.matmul import MatMul
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.shape import Concat, Identity, Reshape, Slice, Transpose
from planish.ops.spatial import Resize

Strides = tuple[DimLike, ...]

_WRITES_STRIDED = (
    Concat,
    Conv,
    ConvTranspose,
    MatMul,
    MaxPool,
    AvgPool,
    Resize,
    Transpose,
    Identity,
    Elementwise,
)
"""Ops whose kernels write into a part of a larger tensor as well as into one of their own."""


@dataclass(frozen=True)
class Placement:
    """The elements of a value inside the storage of `root`, in elements from its start."""

    root: Value
    offset: DimLike
    strides: Strides


@dataclass(frozen=True)
class Placements:
    """The placement of every value of a graph, and the nodes that need no kernel."""

    of: dict[Value, Placement]
    free: frozenset[Node]


def insert_copies(graph: Graph) -> None:
    """Adds `Identity` nodes so that every concatenation and output can be written in place."""
    claimed: set[Value] = set()
    stages = node_stages(graph)
    inside: dict[Value, Strides] = {}  # concatenations that are part of a larger one
    for node in reversed(graph.nodes[:]):
        if not isinstance(node.op, Concat):
            continue
        strides = inside.get(node.output, dense(node.output.shape))
        inputs = list(node.inputs)
        for i, value in enumerate(inputs):
            if _claim(graph, value, strides, claimed, stages, stages.get(node, 0)):
                inside[value] = strides
                continue
            name = f"{node.name}.copy{i}"
            inputs[i] = graph.add(Identity(), value, name=name, origin=node.origin)
            claimed.add(inputs[i])
        graph.set_inputs(node, inputs)
    for i, value in enumerate(graph.outputs):
        taken = value in graph.outputs[:i] or value.producer is None or value.is_constant
        if taken or _aliases_storage(value, claimed):
            name = f"{graph.output_names[i]}.copy"
            graph.outputs[i] = graph.add(Identity(), value, name=name)
    graph.tidy()


def place(graph: Graph) -> Placements:
    """The placement of every value; `insert_copies` must have been called."""
    of: dict[Value, Placement] = {}
    free: set[Node] = set()
    outputs = set(graph.outputs)
    stages = node_stages(graph)
    for node in reversed(graph.nodes):  # from where values are needed to where they are written
        for value in node.outputs:
            if value in of:
                continue
            if value in outputs or not _derived(node):
                of[value] = _own(value)
        if isinstance(node.op, Concat):
            free.add(node)
            _place_parts(node, of)
        elif isinstance(node.op, Reshape) and node.output in of:
            source = node.inputs[0]
            if source not in of and _movable(graph, source, node, stages):
                there = of[node.output]
                strides = reshape_strides(node.output.shape, there.strides, source.shape)
                if strides is not None:
                    of[source] = Placement(there.root, there.offset, strides)
    for value in graph.values():
        if value.producer is None:
            of[value] = _own(value)
    for node in graph.nodes:  # from where values are written to where they are read
        for value in node.outputs:
            if value in of:
                continue
            seen = _see(node, of[node.inputs[0]]) if _derived(node) else None
            if seen is None:
                of[value] = _own(value)
            else:
                of[value] = seen
        if _derived(node) and of[node.output].root is of[node.inputs[0]].root:
            free.add(node)
    return Placements(of, frozenset(free))


def reshape_strides(
    shape: Sequence[DimLike], strides: Sequence[DimLike], new_shape: Sequence[DimLike]
) -> Strides | None:
    """Strides that show a strided tensor in another shape; None where that takes a copy.

    Axes of old and new shape are matched in groups of equal products; inside a group the old axes
    must lie dense in each other.
    """
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    new = [n for n in new_shape if n != 1]
    result: list[DimLike] = []
    i = j = 0
    while j < len(new) or i < len(old):
        if i >= len(old) or j >= len(new):
            return None
        old_end, new_end = i + 1, j + 1
        have, want = old[i][0], new[j]
        while have != want:
            grow_old = _smaller(have, want)
            if grow_old is None:
                return None
            if grow_old:
                if old_end >= len(old):
                    return None
                if old[old_end - 1][1] != old[old_end][0] * old[old_end][1]:
                    return None
                have = have * old[old_end][0]
                old_end += 1
            else:
                if new_end >= len(new):
                    return None
                want = want * new[new_end]
                new_end += 1
        stride = old[old_end - 1][1]
        group: list[DimLike] = []
        for n in reversed(new[j:new_end]):
            group.append(stride)
            stride = stride * n
        result += reversed(group)
        i, j = old_end, new_end
    full = iter(result)
    # axes of one element may have any stride; that of a dense tensor is the least surprising
    spread: list[DimLike] = [0 if n == 1 else next(full) for n in new_shape]
    for axis in range(len(spread) - 1, -1, -1):
        if new_shape[axis] == 1:
            last = axis + 1 == len(spread)
            spread[axis] = 1 if last else spread[axis + 1] * new_shape[axis + 1]
    return tuple(spread)


def dense(shape: Sequence[DimLike]) -> Strides:
    """Strides of a tensor that lies dense, for symbolic shapes."""
    strides: list[DimLike] = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


# --------------------------------------------------------------------------------------------


def _own(value: Value) -> Placement:
    return Placement(value, 0, dense(value.shape))


def _smaller(a: DimLike, b: DimLike) -> bool | None:
    """Whether a < b where that is known: for integers, and where one divides the other."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    if a == 0 or b == 0:  # and the other is symbolic, so it may be 0 too
        return None
    if b // a * a == b and not _opaque(b // a):
        return True
    if a // b * b == a and not _opaque(a // b):
        return False
    return None


def _opaque(dim: DimLike) -> bool:
    return "floordiv" in str(dim)


def _is_view(node: Node) -> bool:
    """Whether a slice is its input seen with other strides, its innermost elements adjacent."""
    op = node.op
    return (
        isinstance(op, Slice) and all(s > 0 for s in op.strides) and op.strides[-1:] in ((), (1,))
    )


def _derived(node: Node) -> bool:
    """Whether the node's output may be a part of its input's storage."""
    return isinstance(node.op, Reshape) or _is_view(node)


def _see(node: Node, source: Placement) -> Placement | None:
    """The input's placement seen through a Reshape or Slice."""
    if isinstance(node.op, Reshape):
        strides = reshape_strides(node.inputs[0].shape, source.strides, node.output.shape)
        return None if strides is None else Placement(source.root, source.offset, strides)
    assert isinstance(node.op, Slice)
    offset = source.offset
    for begin, stride in zip(node.op.begin, source.strides, strict=True):
        offset = offset + begin * stride
    steps = tuple(a * b for a, b in zip(source.strides, node.op.strides, strict=True))
    return Placement(source.root, offset, steps)


def _place_parts(node: Node, of: dict[Value, Placement]) -> None:
    """Places the inputs of a concatenation inside it."""
    whole = of.setdefault(node.output, _own(node.output))
    assert isinstance(node.op, Concat)
    axis = node.op.axis % node.output.type.rank
    offset = whole.offset
    for value in node.inputs:
        of[value] = Placement(whole.root, offset, whole.strides)
        offset = offset + value.shape[axis] * whole.strides[axis]


def _movable(graph: Graph, value: Value, reader: Node, stages: Mapping[Node, int]) -> bool:
    """Whether a value may live in the storage of what `reader` makes of it.

    That storage must be of a known size when the value is written: it belongs to one stage.
    """
    producer = value.producer
    if producer is None or list(value.users) != [reader] or value in graph.outputs:
        return False
    if stages.get(producer, 0) != stages.get(reader, 0):
        return False
    if isinstance(producer.op, Reshape | Concat):
        return True
    return len(producer.outputs) == 1 and not _derived(producer)


def _claim(
    graph: Graph,
    value: Value,
    strides: Strides,
    claimed: set[Value],
    stages: Mapping[Node, int],
    stage: int,
) -> bool:
    """Reserves a value for a place in a concatenation, if its producer can write there: a producer
    of the same stage, as before it the place may be unknown.
    """
    if value in claimed or value in graph.outputs or value.producer is None or value.is_constant:
        return False
    if stages.get(value.producer, 0) != stage:
        return False
    op = value.producer.op
    if isinstance(op, Reshape):
        source = value.producer.inputs[0]
        if list(source.users) != [value.producer]:
            return False
        there = reshape_strides(value.shape, strides, source.shape)
        if there is None or not _claim(graph, source, there, claimed, stages, stage):
            return False
    elif not isinstance(op, _WRITES_STRIDED):
        return False
    claimed.add(value)
    return True


def _aliases_storage(value: Value, claimed: set[Value]) -> bool:
    """Whether an output would be part of storage that is not its own."""
    node = value.producer
    while node is not None and _derived(node):
        source = node.inputs[0]
        if isinstance(node.op, Slice):
            return True
        if source.producer is None or source in claimed or len(source.users) > 1:
            return True
        node = source.producer
    return value in claimed

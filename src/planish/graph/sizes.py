"""Whether sizes of a graph's dimensions are sizes that its ops take.

What an op needs of its dimensions is checked when the graph is made, as far as it is known then: a
slice of three elements from place 2 on fits a dimension ``N``, until ``N`` is 4. Kernels check
nothing. So every new set of sizes is checked once, before anything runs with it, by the same rules
(`Op.infer`) on the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from planish.errors import PlanishError, ShapeError
from planish.graph.dims import symbols
from planish.graph.graph import Graph, Node, Value, mentions
from planish.graph.interpret import bind
from planish.graph.types import TensorType

CURE = "pass inputs of sizes that the model takes"


def check_sizes(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Checks every node whose shapes depend on the sizes.

    Parameters
    ----------
    graph : Graph
    sizes : mapping of str to int
        The symbols; where one is missing (it depends on the data) its nodes are not checked.

    Raises
    ------
    ShapeError
        An op does not take them; names the op.
    """
    if not sizes:
        return
    complete = graph.symbols() <= sizes.keys()
    known: dict[TensorType, tuple[int, ...]] = {}
    for node in graph.nodes:
        if all(v.type.is_static for v in (*node.inputs, *node.outputs)):
            continue
        if complete or _is_known(node, sizes):
            _check(node, sizes, known)


def _is_known(node: Node, sizes: Mapping[str, int]) -> bool:
    found = mentions(node) | {s for v in node.inputs for d in v.shape for s in symbols(d)}
    return found <= sizes.keys()


def _check(node: Node, sizes: Mapping[str, int], known: dict[TensorType, tuple[int, ...]]) -> None:
    shapes = {}
    for value in (*node.inputs, *node.outputs):
        shape = known.get(value.type)
        if shape is None:
            shape = known[value.type] = value.type.bind(sizes)
        shapes[value] = shape
    where = f"{node.origin or node.name}, with {_listed(sizes)}"
    for value, shape in shapes.items():
        if any(d < 0 for d in shape):
            raise ShapeError(
                f"{value.name!r} would have the shape {shape}",
                where=where,
                why="no dimension is negative",
                cure=CURE,
            )
    if not node.op.refuses_sizes or any(0 in shape for shape in shapes.values()):
        return  # nothing is read or written, or the reference runs, which checks
    inputs = [
        Value(v.name, TensorType(shapes[v], v.dtype), data=v.data, content=v.content)
        for v in node.inputs
    ]
    try:
        found = bind(node.op, sizes).infer(*inputs)
    except PlanishError as error:
        raise ShapeError(error.what, where=where, why=error.why, cure=CURE) from error
    for kind, value in zip(found, node.outputs, strict=True):
        if kind.bind({}) != shapes[value]:
            raise ShapeError(
                f"{value.name!r} would have the shape {kind.bind({})}, not {shapes[value]}",
                where=where,
                why="the model was read with sizes that fit",
                cure=CURE,
            )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sorted(sizes.items()))

"""Runs a graph with the NumPy references of its ops: slow, exact, and the oracle of the tests.

Symbolic dimensions are bound from the shapes of the given inputs; then every attribute that is a
`Dim`, however deep in tuples, becomes the integer it stands for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import InputError, ShapeError
from planish.graph.dims import Dim, evaluate
from planish.graph.graph import Graph, Node, Value

if TYPE_CHECKING:
    from planish.ops.base import Op


Observer = Callable[[Node, Sequence[np.ndarray], Sequence[np.ndarray]], None]
"""Called with a node, what it read, and what it gave."""


def interpret(
    graph: Graph, inputs: Mapping[str, np.ndarray], observe: Observer | None = None
) -> list[np.ndarray]:
    """The results of `graph`, in order, for inputs by name.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to numpy.ndarray
        An array for every graph input, of its dtype and of a shape that fits it.
    observe : callable, optional
        Called after every node.

    Raises
    ------
    InputError
        An input is missing or has another dtype.
    ShapeError
        A shape does not fit its input, or a node gave another type than it had inferred.
    """
    values: dict[Value, np.ndarray] = {}
    for value in graph.inputs:
        if value.name not in inputs:
            raise InputError(
                f"Input {value.name!r} is missing",
                why=f"given: {', '.join(inputs) or 'none'}",
                cure="pass an array for every input",
            )
        array = np.asarray(inputs[value.name])
        if array.dtype != value.dtype.numpy:
            raise InputError(
                f"Input {value.name!r} has dtype {array.dtype}, not {value.dtype.numpy}",
                cure=f"convert it with .astype({value.dtype.numpy.name!r})",
            )
        values[value] = array
    bindings = graph.bindings({v.name: a.shape for v, a in values.items()})
    counted: dict[Value, list[str]] = {}
    for name in graph.counts:
        counted.setdefault(graph.counted(name), []).append(name)

    def count(value: Value, array: np.ndarray) -> None:
        for name in counted.get(value, ()):
            bindings[name] = int(array.reshape(()))

    for value in counted:
        if value.producer is None:
            count(value, _array(values, value))
    for node in graph.nodes:
        given = [_array(values, v) for v in node.inputs]
        results = bind(node.op, bindings).reference(*given)
        for value, result in zip(node.outputs, results, strict=True):
            expected = value.type.bind(bindings)
            if result.shape != expected or result.dtype != value.dtype.numpy:
                raise ShapeError(
                    f"{node.op.name} gave {result.dtype}{result.shape}, not {value.type}",
                    where=node.origin or node.name,
                    why=f"its shape was inferred as {expected}",
                )
            values[value] = result
            count(value, result)
        if observe:
            observe(node, given, results)
    return [
        _trimmed(_array(values, value), [evaluate(d, bindings) for d in shape])
        for _, value, shape in graph.results()
    ]


def bind(op: Op, bindings: Mapping[str, int]) -> Op:
    """`op` with every symbolic dimension among its attributes replaced by its value."""
    changes = {}
    for name, attribute in op.attributes().items():
        bound = _bind(attribute, bindings)
        if bound is not attribute:
            changes[name] = bound
    return dataclasses.replace(op, **changes) if changes else op


def _bind(attribute: Any, bindings: Mapping[str, int]) -> Any:
    if isinstance(attribute, Dim):
        return evaluate(attribute, bindings)
    if isinstance(attribute, tuple):
        bound = tuple(_bind(item, bindings) for item in attribute)
        return attribute if all(a is b for a, b in zip(bound, attribute, strict=True)) else bound
    return attribute


def _trimmed(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return array if array.shape == tuple(shape) else array[tuple(map(slice, shape))]


def _array(values: Mapping[Value, np.ndarray], value: Value) -> np.ndarray:
    return value.data if value.data is not None else values[value]

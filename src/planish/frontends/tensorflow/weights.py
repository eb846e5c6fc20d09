"""Weights beside a GraphDef, because a GraphDef is the wrong place for them.

A protobuf message holds at most 2 GB, and everything that TensorFlow does with a graph copies it
several times. So an array stays an array, and its node in the graph is a *stand-in*: a Placeholder
of the array's type and shape. Nothing can take it for something else: whoever forgets to give it
its array is told so by TensorFlow, and no optimizer folds it.

Small constants stay in the graph, where TensorFlow's shape functions and optimizer read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from planish.frontends.tensorflow import graphdef

Weights: TypeAlias = "Mapping[str, np.ndarray]"
"""The array of each stand-in, by the name of its node."""

SMALL_BYTES = 1024
"""Arrays up to this size are constants of the graph."""


def place(node: Any, array: np.ndarray, code: int, weights: dict[str, np.ndarray]) -> None:
    """Makes a node a constant, or the stand-in of an array that is put into `weights`.

    Parameters
    ----------
    node : NodeDef
        Keeps its name and its control inputs.
    array : array
    code : int
        The number of TensorFlow's element type.
    weights : dict
    """
    if array.nbytes > SMALL_BYTES and graphdef.dtype_of(code) is not None:
        make_stand_in(node, array.shape, code)
        weights[node.name] = array
    else:
        make_constant(node, array, code)


def make_stand_in(node: Any, shape: Iterable[int], code: int) -> None:
    """Makes a node a Placeholder of a static shape; it keeps its name and control inputs."""
    _clear(node, "Placeholder")
    node.attr["dtype"].type = code
    node.attr["shape"].shape.SetInParent()
    for size in shape:
        node.attr["shape"].shape.dim.add(size=size)


def make_constant(node: Any, array: np.ndarray, code: int) -> None:
    """Makes a node a Const; it keeps its name and control inputs."""
    from tensorflow import make_tensor_proto

    _clear(node, "Const")
    node.attr["dtype"].type = code
    node.attr["value"].tensor.CopyFrom(make_tensor_proto(array, code, array.shape))


def _clear(node: Any, op: str) -> None:
    name, control = node.name, [text for text in node.input if graphdef.is_control(text)]
    node.Clear()
    node.name, node.op = name, op
    node.input.extend(control)


def take_out(graph_def: Any, weights: Weights | None = None) -> tuple[Any, dict[str, np.ndarray]]:
    """A copy of the graph with stand-ins for its larger constants, and all arrays.

    Parameters
    ----------
    graph_def : GraphDef
    weights : Weights, optional
        Those that are beside the graph already.
    """
    found = dict(weights or {})
    result = type(graph_def)()
    result.versions.CopyFrom(graph_def.versions)
    result.library.CopyFrom(graph_def.library)
    for node in graph_def.node:
        # one that waits for others belongs to a loop or branch of TensorFlow 1, and must stay there
        if node.op == "Const" and not node.input and _is_large(node.attr["value"].tensor):
            copy = result.node.add(name=node.name)
            proto = node.attr["value"].tensor
            array = graphdef.constant(proto, graphdef.origin_of(node))
            make_stand_in(copy, array.shape, proto.dtype)
            found[node.name] = array
        else:
            result.node.add().CopyFrom(node)
    return result, found


def _is_large(proto: Any) -> bool:
    return proto.ByteSize() > SMALL_BYTES and graphdef.dtype_of(proto.dtype) is not None


def put_back(graph_def: Any, weights: Weights) -> None:
    """Makes constants of all stand-ins, in place."""
    for node in graph_def.node:
        if node.name in weights:
            make_constant(node, weights[node.name], node.attr["dtype"].type)

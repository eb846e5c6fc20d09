"""Reading TensorFlow's GraphDef messages: tensor names, attributes, constants, order of nodes.

Nothing here needs TensorFlow itself: the messages are looked at, never built. The numbers of the
element types are those of TensorFlow's ``types.proto`` and are fixed for ever.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from planish.errors import ModelError, UnsupportedOpError
from planish.graph.types import DType

_DTYPES = {
    1: DType.FLOAT32,
    2: DType.FLOAT64,
    3: DType.INT32,
    4: DType.UINT8,
    5: DType.INT16,
    6: DType.INT8,
    9: DType.INT64,
    10: DType.BOOL,
    14: DType.BFLOAT16,
    17: DType.UINT16,
    19: DType.FLOAT16,
    22: DType.UINT32,
    23: DType.UINT64,
}
_OTHER_TYPES = {
    7: "string",
    8: "complex64",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    15: "qint16",
    16: "quint16",
    18: "complex128",
    20: "resource",
    21: "variant",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    29: "int4",
    30: "uint4",
}
_REFERENCE = 100
"""Added to the number of a type for references to variables of it."""

_FIELDS = {
    DType.FLOAT32: "float_val",
    DType.FLOAT64: "double_val",
    DType.INT32: "int_val",
    DType.UINT8: "int_val",
    DType.INT16: "int_val",
    DType.INT8: "int_val",
    DType.UINT16: "int_val",
    DType.INT64: "int64_val",
    DType.BOOL: "bool_val",
    DType.FLOAT16: "half_val",
    DType.BFLOAT16: "half_val",
    DType.UINT32: "uint32_val",
    DType.UINT64: "uint64_val",
}
"""The field of a TensorProto that lists elements of a type."""

SHAPES = "_planish_shapes"
"""An attribute for the shapes of a node's results, where no shape function can find them."""

MAX_ELEMENTS = 2**31 - 1
_MAX_COPIED = 2**20
"""A repeated element is written out up to this many times, and is a view of one above."""

MAX_BYTES_FROM_NOTHING = 1 << 30
"""Largest array of several listed elements, the last of which is repeated."""


def tensor_name(text: str) -> tuple[str, int]:
    """Node and output index of ``"node"`` or ``"node:1"``."""
    name, colon, index = text.rpartition(":")
    if colon and index.isdigit():
        return name, int(index)
    return text, 0


def is_control(text: str) -> bool:
    """Whether an input of a node is only a control dependency."""
    return text.startswith("^")


def data_inputs(node: Any) -> list[tuple[str, int]]:
    """The tensors that a NodeDef reads, as (node, output index)."""
    return [tensor_name(text) for text in node.input if not is_control(text)]


def origin_of(node: Any) -> str:
    """How messages call a NodeDef: ``"block1/conv (Conv2D)"``."""
    return f"{node.name} ({node.op})"


def dtype_of(number: int) -> DType | None:
    """Our element type for a number of TensorFlow's DataType; None if we have no such type."""
    return _DTYPES.get(number % _REFERENCE)


def dtype_text(number: int) -> str:
    """The name of one of TensorFlow's element types."""
    ours = dtype_of(number)
    if ours is not None:
        return ours.numpy.name
    return _OTHER_TYPES.get(number % _REFERENCE, f"type number {number}")


def shape_of(proto: Any) -> tuple[int | None, ...] | None:
    """Dimensions of a TensorShapeProto, None where unknown; None if even the rank is."""
    if proto.unknown_rank:
        return None
    return tuple(None if d.size < 0 else int(d.size) for d in proto.dim)


def nodes_by_name(graph_def: Any) -> dict[str, Any]:
    """The nodes of a GraphDef.

    Raises
    ------
    ModelError
        Two nodes have one name.
    """
    nodes: dict[str, Any] = {}
    for node in graph_def.node:
        if node.name in nodes:
            raise ModelError(
                f"Two nodes are called {node.name!r}",
                where=origin_of(node),
                why="names of nodes must be unique in a GraphDef",
                cure="export the model again",
            )
        nodes[node.name] = node
    return nodes


Tensor = tuple[str, int]
"""A tensor of a GraphDef: its node and output index."""


def ancestors(
    nodes: Mapping[str, Any],
    roots: Iterable[Tensor],
    given: Container[Tensor] = (),
    *,
    cut_loops: bool = False,
) -> list[Any]:
    """The nodes that `roots` need, producers before consumers.

    Parameters
    ----------
    nodes : mapping of str to NodeDef
    roots : iterable of Tensor
    given : container of Tensor
        Tensors whose producers are not followed, such as graph inputs.
    cut_loops : bool
        Whether the edge that closes a loop is left out instead of refused.

    Raises
    ------
    ModelError
        A node reads one that does not exist.
    UnsupportedOpError
        The nodes form a loop.
    """
    order: list[Any] = []
    done: set[str] = set()
    path: set[str] = set()
    stack: list[tuple[str, str]] = [(name, "") for name, _ in _not_in(given, roots)][::-1]
    while stack:
        name, reader = stack[-1]
        if name in done:
            stack.pop()
            continue
        node = nodes.get(name)
        if node is None:
            raise ModelError(
                f"There is no node {name!r}",
                where=reader,
                why="a node reads the output of a node that is not in the graph",
                cure="export or freeze the model again; the file seems to be cut",
            )
        if name in path:  # second visit: all its inputs are done
            path.remove(name)
            done.add(name)
            order.append(node)
            stack.pop()
            continue
        path.add(name)
        for source, _ in reversed(list(_not_in(given, data_inputs(node)))):
            if source not in path:
                stack.append((source, origin_of(node)))
            elif not cut_loops:
                raise UnsupportedOpError(
                    f"The nodes around {name!r} form a loop",
                    where=origin_of(node),
                    why="loops of TensorFlow 1 (Enter, NextIteration, Exit) cannot be converted",
                    cure="unroll the loop, or let TensorFlow run this part of the model",
                )
    return order


def _not_in(given: Container[Tensor], tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return (t for t in tensors if t not in given)


def attribute(value: Any) -> Any:
    """An AttrValue as a Python object.

    Element types become `DType` or, where there is none, the type's name; shapes tuples.
    """
    kind = value.WhichOneof("value")
    match kind:
        case "s":
            return value.s.decode("utf-8", "replace")
        case "i" | "f" | "b":
            return getattr(value, kind)
        case "type":
            return dtype_of(value.type) or dtype_text(value.type)
        case "shape":
            return shape_of(value.shape)
        case "tensor":
            return value.tensor
        case "list":
            return _list(value.list)
        case "func":
            return value.func.name
    return None


def _list(proto: Any) -> list[Any]:
    for field in ("i", "f", "b"):
        if len(getattr(proto, field)):
            return list(getattr(proto, field))
    if len(proto.s):
        return [s.decode("utf-8", "replace") for s in proto.s]
    if len(proto.type):
        return [dtype_of(t) or dtype_text(t) for t in proto.type]
    if len(proto.shape):
        return [shape_of(s) for s in proto.shape]
    return []


def constant(proto: Any, where: str) -> np.ndarray:
    """The elements of a TensorProto, checked before anything is allocated.

    Raises
    ------
    ModelError
        Its size is absurd, or its bytes do not fit its shape.
    UnsupportedOpError
        Its element type is none of ours (strings, complex numbers).
    """
    dtype = dtype_of(proto.dtype)
    if dtype is None:
        raise UnsupportedOpError(
            f"A constant has elements of type {dtype_text(proto.dtype)}",
            where=where,
            why="only real numbers and booleans can be converted",
            cure="let TensorFlow run the part of the model that uses it",
        )
    shape = shape_of(proto.tensor_shape)
    if shape is None or any(d is None for d in shape):
        raise ModelError("A constant has no definite shape", where=where, cure=_EXPORT_AGAIN)
    dims = tuple(int(d) for d in shape if d is not None)
    count = prod(dims)
    if count > MAX_ELEMENTS:
        raise ModelError(
            f"A constant of shape {dims} has {count} elements",
            where=where,
            why=f"a tensor may have at most {MAX_ELEMENTS} elements",
            cure=_EXPORT_AGAIN,
        )
    if proto.tensor_content:
        if len(proto.tensor_content) != count * dtype.size:
            raise ModelError(
                f"A constant of shape {dims} has {len(proto.tensor_content)} bytes, not "
                f"{count * dtype.size}",
                where=where,
                why="its bytes and its shape disagree",
                cure=_EXPORT_AGAIN,
            )
        return np.frombuffer(proto.tensor_content, dtype.numpy).reshape(dims)
    listed = getattr(proto, _FIELDS[dtype])
    if len(listed) > count:
        raise ModelError(
            f"A constant of shape {dims} lists {len(listed)} elements",
            where=where,
            why="its elements and its shape disagree",
            cure=_EXPORT_AGAIN,
        )
    if 1 < len(listed) < count and count * dtype.size > MAX_BYTES_FROM_NOTHING:
        raise ModelError(
            f"A constant of shape {dims} lists only {len(listed)} elements",
            where=where,
            why=f"to repeat the last of them would take {count * dtype.size:,} bytes",
            cure=_EXPORT_AGAIN,
        )
    return _repeat_last(_elements(listed, dtype), dims, count)


_EXPORT_AGAIN = "the file is damaged or not a model: export it again"


def _elements(listed: Any, dtype: DType) -> np.ndarray:
    if dtype in (DType.FLOAT16, DType.BFLOAT16):  # the field holds bit patterns
        return np.array(listed, np.uint16).view(dtype.numpy)
    if dtype.is_integer:
        return np.array(listed, np.int64 if dtype is not DType.UINT64 else np.uint64).astype(
            dtype.numpy
        )
    return np.array(listed, dtype.numpy)


def _repeat_last(elements: np.ndarray, shape: tuple[int, ...], count: int) -> np.ndarray:
    """TensorProto's rule: the last listed element stands for all that follow; none is zero."""
    if elements.size == count:
        return elements.reshape(shape)
    last = elements[-1] if elements.size else elements.dtype.type(0)
    if elements.size <= 1 and count > _MAX_COPIED:
        return np.broadcast_to(last, shape)
    full = np.full(count, last, elements.dtype)
    full[: elements.size] = elements
    return full.reshape(shape)

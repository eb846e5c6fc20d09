"""A graph as JSON values and back. Reading builds the graph anew and believes no type it is told.

    {"dtype": "f32"}   an element type      {"dim": "N*7"}    a symbolic dimension
    {"float": "inf"}   what JSON lacks      [1, 2]            a tuple
    {"bytes": "AQI="}  bytes, as base64

Everything else stands for itself. Attributes are checked against the annotations of the op's class,
types against what the op infers, and the whole graph by the verifier.
"""

from __future__ import annotations

import base64
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from planish.errors import PlanError, PlanishError
from planish.graph.dims import Dim, DimLike, parse, symbols
from planish.graph.graph import Count, DimRange, Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.graph.verify import verify
from planish.ops import OPS, Op

LONGEST_DIM = 2000
"""Characters of a dimension's text; longer ones are refused when reading."""

Json = Any


def encode_graph(graph: Graph, tensor_names: Mapping[Value, str]) -> dict[str, Json]:
    """A graph as JSON values; `tensor_names` says which stored tensor each constant is.

    Raises
    ------
    PlanError
        The graph holds something that cannot be written so that it reads back equal.
    """
    encoded: dict[str, Json] = {
        "name": graph.name,
        "ranges": {n: [r.min, r.opt, r.max] for n, r in sorted(graph.ranges.items())},
        "inputs": {v.name: _encode_type(v.type) for v in graph.inputs},
        "constants": {v.name: tensor_names[v] for v in graph.constants()},
        "nodes": [_encode_node(node) for node in graph.nodes],
        "outputs": [
            [name, value.name]
            for name, value in zip(graph.output_names, graph.outputs, strict=True)
        ],
    }
    if graph.counts:
        encoded["counts"] = {
            name: [count.output, _encode_dim(count.limit), count.padded]
            for name, count in graph.counts.items()
        }
    if graph.trims:
        encoded["trims"] = {n: [_encode_dim(d) for d in shape] for n, shape in graph.trims.items()}
    names = {v.name for v in graph.values()}
    scales = {n: list(s) for n, s in sorted(graph.scales.items()) if n in names}
    if scales:
        encoded["scales"] = scales
    return encoded


def decode_graph(data: Json, tensors: Mapping[str, np.ndarray]) -> Graph:
    """The graph that `encode_graph` wrote.

    Raises
    ------
    PlanError
        The data is not a graph, or states types that do not follow from it.
    """
    graph = Graph(expect(data, "name", str))
    for name, limits in expect(data, "ranges", dict).items():
        match limits:
            case [int(low), int(usual), int(high)] if 0 <= low <= usual <= high:
                graph.ranges[name] = DimRange(low, usual, high)
            case _:
                raise PlanError(f"The range of dimension {name!r} is invalid", why=str(limits)[:99])
    known: dict[str, Value] = {}

    def define(value: Value, name: str) -> None:
        if name in known:
            raise PlanError(f"Two values are called {name!r}")
        value.name = name
        known[name] = value

    for name, type in expect(data, "inputs", dict).items():
        define(graph.input(name, _decode_type(type)), name)
    for name, tensor in expect(data, "constants", dict).items():
        if not isinstance(tensor, str) or tensor not in tensors:
            raise PlanError("A constant has no data", where=f"constant {name!r}")
        define(graph.constant(tensors[tensor], name), name)
    for item in expect(data, "nodes", list):
        node, stated = _decode_node(graph, item, known)
        for value, (name, type) in zip(node.outputs, stated, strict=True):
            if value.type != type:
                raise PlanError(
                    f"{name!r} is {value.type} and is stored as {type}",
                    where=f"node {node.name!r} ({node.op.name})",
                )
            define(value, name)
    for pair in expect(data, "outputs", list):
        match pair:
            case [str(name), str(value_name)] if value_name in known:
                graph.mark_output(known[value_name], name)
            case _:
                raise PlanError("An output is stored wrongly", why=str(pair)[:99])
    _decode_counts(graph, data)
    for name, item in expect(data, "scales", dict).items() if "scales" in data else ():
        match item:
            case [float(scale), float(zero), *factors] if (
                name in known
                and 0 < scale < math.inf
                and (not factors or known[name].shape[-1:] == (len(factors),))
                and all(isinstance(f, float) and 0 < f <= 1 for f in factors)
            ):
                graph.scales[name] = scale, zero, *factors
            case _:
                raise PlanError(f"The scale of {name!r} is stored wrongly", why=str(item)[:99])
    try:
        verify(graph)
    except PlanishError as error:
        why = error.what.removeprefix("Internal error: ")
        raise PlanError("The stored graph is invalid", where=error.where, why=why) from error
    return graph


def _decode_counts(graph: Graph, data: Json) -> None:
    """Reads the dimensions that depend on the data; a graph without any has no entry for them."""
    for name, item in expect(data, "counts", dict).items() if "counts" in data else ():
        match item:
            case [str(output), limit, bool(padded)] if output in graph.output_names:
                graph.counts[name] = Count(output, _decode_dim(limit), padded)
            case _:
                raise PlanError(f"The dimension {name!r} is stored wrongly", why=str(item)[:99])
    for name, shape in expect(data, "trims", dict).items() if "trims" in data else ():
        if name not in graph.output_names or not isinstance(shape, list):
            raise PlanError("The shape of an output is stored wrongly", where=f"output {name!r}")
        graph.trims[name] = tuple(_decode_dim(d) for d in shape)


def expect(data: Json, key: str, kind: type[Any]) -> Any:
    """The entry of a JSON object, of the given type.

    Raises
    ------
    PlanError
        It is missing or of another type.
    """
    if not isinstance(data, dict) or type(data.get(key)) is not kind:
        raise PlanError(f"The entry {key!r} is missing or not a {kind.__name__}")
    return data[key]


# ---- nodes ---------------------------------------------------------------------------------


def _encode_node(node: Node) -> dict[str, Json]:
    item: dict[str, Json] = {"name": node.name, "op": node.op.name}
    attributes = {name: _encode(value) for name, value in node.op.attributes().items()}
    if attributes:
        item["attributes"] = attributes
    item["inputs"] = [v.name for v in node.inputs]
    item["outputs"] = {v.name: _encode_type(v.type) for v in node.outputs}
    if node.origin:
        item["origin"] = node.origin
    return item


def _decode_node(
    graph: Graph, item: Json, known: Mapping[str, Value]
) -> tuple[Node, list[tuple[str, TensorType]]]:
    """Adds a node; gives it with the names and types that are stored for its outputs."""
    name, kind = expect(item, "name", str), expect(item, "op", str)
    where = f"node {name!r} ({kind})"
    if kind not in OPS:
        raise PlanError(
            f"There is no op {kind!r}",
            where=where,
            why="the plan comes from another version",
            cure="build the plan again with this version, or load it with that one",
        )
    unknown = [n for n in expect(item, "inputs", list) if not isinstance(n, str) or n not in known]
    if unknown:
        raise PlanError(f"It reads {unknown[0]!r}, which nothing before it writes", where=where)
    try:
        op = _decode_op(OPS[kind], item.get("attributes", {}))
        origin = str(item.get("origin", ""))
        inputs = [known[n] for n in item["inputs"]]
        node = graph.add_node(op, inputs, name=name, origin=origin)
        node.name = name
        stated = [(n, _decode_type(t)) for n, t in expect(item, "outputs", dict).items()]
    except PlanishError as error:
        raise PlanError(error.what, where=where, why=error.why, cure=error.cure) from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # attributes no frontend would ever make can fail anywhere inside the op's own rules
        raise PlanError("The op does not accept its attributes", where=where, why=str(error)) from (
            error
        )
    if len(stated) != len(node.outputs):
        raise PlanError(f"It has {len(node.outputs)} outputs, not {len(stated)}", where=where)
    return node, stated


def _decode_op(kind: type[Op], data: Json) -> Op:
    if not isinstance(data, dict):
        raise PlanError("The attributes are not a table")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {}
    for name, stored in data.items():
        if name not in hints:
            raise PlanError(
                f"{kind.name} has no attribute {name!r}",
                why="the plan comes from another version",
                cure="build the plan again with this version, or load it with that one",
            )
        values[name] = _decode(stored)
        if not _fits(values[name], hints[name]):
            raise PlanError(f"The attribute {name!r} of {kind.name} is not a {hints[name]}")
    for field in fields(kind):
        if field.name not in values and field.default is MISSING:
            raise PlanError(f"The attribute {field.name!r} of {kind.name} is missing")
    return kind(**values)


@functools.cache
def _hints(kind: type[Op]) -> dict[str, Any]:
    """The annotated types of an op's attributes."""
    names = {"Dim": Dim, "DimLike": int | Dim}
    hints = typing.get_type_hints(kind, localns=names)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type. Integers pass for floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (...,):
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return type(value) in (float, int)
    return type(value) is hint


# ---- values --------------------------------------------------------------------------------


def _encode_type(type: TensorType) -> Json:
    return [type.dtype.value, *(_encode_dim(d) for d in type.shape)]


def _decode_type(data: Json) -> TensorType:
    match data:
        case [str(dtype), *dims] if dtype in DType._value2member_map_:
            return TensorType(tuple(_decode_dim(d) for d in dims), DType(dtype))
    raise PlanError("A tensor type is stored wrongly", why=str(data)[:99])


def _encode_dim(dim: DimLike) -> Json:
    if isinstance(dim, int):
        return int(dim)
    text = str(dim)
    try:
        faithful = parse(text) == dim
    except ValueError:
        faithful = False
    if not faithful:
        raise PlanError(
            f"The dimension {text} cannot be stored",
            where=", ".join(sorted(symbols(dim))),
            cure="give the dimensions of the inputs names of letters, digits and underscores",
        )
    return text


def _decode_dim(data: Json) -> DimLike:
    if type(data) is int and data >= 0:
        return data
    if isinstance(data, str) and len(data) <= LONGEST_DIM:
        try:
            return parse(data)
        except (ValueError, ArithmeticError) as error:
            raise PlanError("A dimension is stored wrongly", why=str(error)) from error
    raise PlanError("A dimension is stored wrongly", why=str(data)[:99])


def _encode(value: Any) -> Json:
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, DType):
        return {"dtype": value.value}
    if isinstance(value, Dim):
        return {"dim": _encode_dim(value)}
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    raise PlanError(f"An attribute of type {type(value).__name__} cannot be stored")


def _decode(data: Json) -> Any:
    match data:
        case list():
            return tuple(_decode(item) for item in data)
        case {"dtype": str(name)} if len(data) == 1 and name in DType._value2member_map_:
            return DType(name)
        case {"dim": text} if len(data) == 1:
            return _decode_dim(text)
        case {"float": "inf" | "-inf" | "nan" as text} if len(data) == 1:
            return float(text)
        case {"bytes": str(text)} if len(data) == 1:
            return base64.b64decode(text, validate=True)
        case dict():
            raise PlanError("An attribute is stored wrongly", why=str(data)[:99])
    return data

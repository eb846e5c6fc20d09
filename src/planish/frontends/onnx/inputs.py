"""The inputs of an ONNX model as typed graph inputs, with the caller's shapes put over the model's.

Unknown dimensions become symbols. A name that the model gives one is kept (as an identifier), so
that equal names stay equal sizes; an unnamed batch dimension is called ``N``.
"""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx

from planish.errors import InputError, ModelError, UnsupportedOpError
from planish.frontends.onnx.narrow import dtype_of
from planish.graph import DimLike, DimRange, DType, Graph, TensorType, Value, symbol

MAX_DIMENSION = 2**31 - 1
DEFAULT_RANGE = DimRange(1, 1, MAX_DIMENSION)

InputShape: TypeAlias = "Sequence[int | str | None] | Any"
"""A shape, or an object with shapes `min`, `opt` and `max` (an optimization profile)."""

_Declared: TypeAlias = "tuple[int | str | None, ...]"


class _Symbols:
    """Names of dimensions as identifiers: one name, one identifier, and the other way round."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def named(self, name: str) -> str:
        if name not in self._names:
            plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
            if plain[0].isdigit() or keyword.iskeyword(plain):
                plain = "_" + plain
            taken = set(self._names.values())
            unique, count = plain, 1
            while unique in taken:
                unique, count = f"{plain}_{count}", count + 1
            self._names[name] = unique
        return self._names[name]


def declare_inputs(
    graph: Graph,
    declared: Sequence[onnx.ValueInfoProto],
    overrides: Mapping[str, InputShape] | None,
) -> dict[str, Value]:
    """Adds the model's inputs to a graph, and the ranges of their dimensions.

    Parameters
    ----------
    graph : Graph
        Receives inputs and `Graph.ranges`.
    declared : sequence of ValueInfoProto
        The model's inputs that are not initializers.
    overrides : mapping of names to shapes or profiles, or None
        See `import_model`.

    Returns
    -------
    dict of str to Value
        The inputs by name.

    Raises
    ------
    InputError
        An override names no input, or does not fit it.
    UnsupportedOpError
        An input is not a tensor of numbers or booleans.
    ModelError
        An input has no shape, neither in the model nor in `overrides`.
    """
    overrides = dict(overrides or {})
    names = [info.name for info in declared]
    for name in overrides:
        if name not in names:
            raise unknown_name("input", name, names)
    shapes = {info.name: _declared_shape(info) for info in declared}
    symbols, ranges = _Symbols(), graph.ranges
    given: dict[str, list[DimLike]] = {}
    fixed: dict[str, int] = {}
    for name, override in overrides.items():
        given[name] = _overridden(name, shapes[name], override, symbols, ranges, shapes)
        for old, new in zip(shapes[name] or (), given[name], strict=False):
            if isinstance(old, str) and isinstance(new, int):
                fixed.setdefault(old, new)
    values = {}
    for info in declared:
        shape = given.get(info.name)
        if shape is None:
            shape = _from_model(info.name, shapes[info.name], symbols, fixed, shapes)
        values[info.name] = graph.input(info.name, TensorType(tuple(shape), _dtype(info)))
    for name in sorted(graph.symbols()):
        ranges.setdefault(name, DEFAULT_RANGE)
    return values


def unknown_name(kind: str, name: str, names: Iterable[str]) -> InputError:
    """The error for a name that the model does not have, with the likely one as the cure."""
    names = list(dict.fromkeys(names))
    close = difflib.get_close_matches(name, names, n=3)
    shown = close or names[:10]
    return InputError(
        f"The model has no {kind} {name!r}",
        where=f"argument {kind}s",
        cure=f"use one of: {', '.join(map(repr, shown))}" if shown else "",
    )


def _declared_shape(info: onnx.ValueInfoProto) -> _Declared | None:
    """Integers, names, or None where unknown; None if even the rank is unknown."""
    tensor = tensor_type(info)
    if not tensor.HasField("shape"):
        return None
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or None)
    return tuple(dims)


def tensor_type(info: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    """An input's type; an optional tensor is a tensor, as an engine is given all its inputs."""
    proto = info.type
    if proto.HasField("optional_type"):
        proto = proto.optional_type.elem_type
    if not proto.HasField("tensor_type"):
        kind = info.type.WhichOneof("value") or "value of no type"
        raise UnsupportedOpError(
            f"Input {info.name!r} is not a tensor",
            where=f"input {info.name!r}",
            why=f"it is {'an' if kind[0] in 'aeiou' else 'a'} {kind.removesuffix('_type')}",
            cure="export a model whose inputs are tensors",
        )
    return proto.tensor_type


def _dtype(info: onnx.ValueInfoProto) -> DType:
    try:
        return dtype_of(tensor_type(info).elem_type)
    except TypeError as error:
        raise UnsupportedOpError(
            f"Input {info.name!r} has an element type that is not supported",
            where=f"input {info.name!r}",
            why=str(error),
            cure="export the model with inputs of numbers or booleans",
        ) from error


def _anonymous(
    name: str, axis: int, symbols: _Symbols, shapes: Mapping[str, _Declared | None]
) -> DimLike:
    if axis:
        return symbol(symbols.named(f"{name}_{axis}"))
    elsewhere = any("N" in (shape or ())[1:] for shape in shapes.values())
    return symbol(symbols.named("batch" if elsewhere else "N"))


def _from_model(
    name: str,
    shape: _Declared | None,
    symbols: _Symbols,
    fixed: Mapping[str, int],
    shapes: Mapping[str, _Declared | None],
) -> list[DimLike]:
    if shape is None:
        raise ModelError(
            f"Input {name!r} has no shape",
            where=f"input {name!r}",
            why="the model does not even say how many dimensions it has",
            cure=f"pass inputs={{{name!r}: (None, …)}} with one entry per dimension",
        )
    result: list[DimLike] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            result.append(dim)
        elif dim is None:
            result.append(_anonymous(name, axis, symbols, shapes))
        else:
            result.append(fixed[dim] if dim in fixed else symbol(symbols.named(dim)))
    return result


def _overridden(
    name: str,
    declared: _Declared | None,
    override: InputShape,
    symbols: _Symbols,
    ranges: dict[str, DimRange],
    shapes: Mapping[str, _Declared | None],
) -> list[DimLike]:
    profile = all(hasattr(override, part) for part in ("min", "opt", "max"))
    if profile:
        limits = [tuple(getattr(override, part)) for part in ("min", "opt", "max")]
        if len({len(limit) for limit in limits}) != 1:
            raise _misfit(name, "its profile's min, opt and max differ in their dimensions")
        wanted: tuple[Any, ...] = tuple(
            low if low == high else None for low, _, high in zip(*limits, strict=True)
        )
    else:
        shape = getattr(override, "shape", override)
        if isinstance(shape, str | bytes) or not isinstance(shape, Iterable):
            raise _misfit(name, f"{override!r} is neither a shape nor a profile")
        wanted = tuple(None if d == -1 else d for d in shape)
    if declared is not None and len(declared) != len(wanted):
        raise _misfit(
            name, f"the model declares {len(declared)} dimensions, and {len(wanted)} are given"
        )
    result = [
        _wanted_dim(name, axis, dim, declared, symbols, shapes) for axis, dim in enumerate(wanted)
    ]
    if profile:
        for axis, (dim, low, usual, high) in enumerate(zip(result, *limits, strict=True)):
            if not isinstance(dim, int):
                _set_range(name, axis, str(dim), (low, usual, high), ranges)
            elif not low == usual == high:
                raise _misfit(name, f"dimension {axis} of its profile is {low}, {usual}, {high}")
    return result


def _wanted_dim(
    name: str,
    axis: int,
    dim: Any,
    declared: _Declared | None,
    symbols: _Symbols,
    shapes: Mapping[str, _Declared | None],
) -> DimLike:
    if dim is None:
        kept = declared[axis] if declared else None
        if isinstance(kept, str):
            return symbol(symbols.named(kept))
        return _anonymous(name, axis, symbols, shapes)
    if isinstance(dim, str):
        return symbol(symbols.named(dim))
    try:
        size = int(dim.__index__())
    except (AttributeError, TypeError):
        raise _misfit(name, f"dimension {axis} is {dim!r}, not an int, a name or None") from None
    if not 0 <= size <= MAX_DIMENSION:
        raise _misfit(name, f"dimension {axis} is {size}")
    return size


def _set_range(
    name: str, axis: int, dim: str, limits: tuple[int, int, int], ranges: dict[str, DimRange]
) -> None:
    low, usual, high = limits
    if not 0 <= low <= usual <= high <= MAX_DIMENSION:
        raise _misfit(name, f"min, opt, max of dimension {axis} are {low}, {usual}, {high}")
    wanted = DimRange(low, usual, high)
    if ranges.setdefault(dim, wanted) != wanted:
        raise _misfit(
            name,
            f"dimension {axis} is called {dim} and has the range {limits} here and "
            f"({ranges[dim].min}, {ranges[dim].opt}, {ranges[dim].max}) in another input",
        )


def _misfit(name: str, why: str) -> InputError:
    return InputError(
        f"The shape given for input {name!r} does not fit it",
        where=f"argument inputs[{name!r}]",
        why=why,
        cure="give one int, name or None for each dimension, or a Profile(min, opt, max)",
    )

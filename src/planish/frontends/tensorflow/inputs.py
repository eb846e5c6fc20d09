"""The types of a model's inputs: its own declaration, overridden by the user's.

Unknown dimensions become symbols. The first dimension is the batch, and all inputs share its
symbol `BATCH`; another dimension is called after its input and axis.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from planish.errors import InputError, ModelError
from planish.frontends.tensorflow import graphdef
from planish.graph.dims import DimLike, symbol
from planish.graph.graph import DimRange
from planish.graph.types import DType, TensorType

BATCH = "N"
"""The symbol of an unknown first dimension."""

ANY_SIZE = DimRange(1, 1, 2**31 - 1)
"""What is known of a dimension that no profile speaks of."""


class ModelInput(NamedTuple):
    """An input as the model declares it."""

    name: str
    """The user's name."""
    tensor: str
    """The tensor's name in the graph, ``"node:0"``."""
    shape: tuple[int | None, ...] | None
    """None for an unknown dimension; None for an unknown rank."""
    dtype: DType | None
    """None for a type that only TensorFlow has (string, resource)."""


def placeholder(node: Any, name: str) -> ModelInput:
    """What a Placeholder declares of itself; `name` is the user's name for it."""
    shape = graphdef.shape_of(node.attr["shape"].shape) if "shape" in node.attr else None
    dtype = graphdef.dtype_of(node.attr["dtype"].type)
    return ModelInput(name, f"{node.name}:0", shape, dtype)


def input_types(
    declared: Sequence[ModelInput], given: Mapping[str, Any] | None = None
) -> tuple[dict[str, TensorType], dict[str, DimRange]]:
    """The type of each input, and the ranges of their symbolic dimensions.

    Parameters
    ----------
    declared : sequence of ModelInput
    given : mapping, optional
        By input name: a shape (integers, None for unknown, names of symbols), something with a
        `shape`, or a profile (something with `min`, `opt` and `max`, each a shape). Inputs that are
        not named keep their declaration.

    Raises
    ------
    InputError
        A name is unknown or a shape is malformed.
    ModelError
        An input has an unknown rank or an element type that cannot be converted.
    """
    wanted = {name.removesuffix(":0"): shape for name, shape in (given or {}).items()}
    names = [i.name for i in declared]
    for name in wanted:
        if name not in names:
            raise InputError(
                f"The model has no input {name!r}",
                where="inputs",
                why=f"its inputs are {', '.join(map(repr, names)) or 'none'}",
                cure="use these names",
            )
    namer = _Namer()
    types: dict[str, TensorType] = {}
    for item in declared:
        if item.dtype is None:
            raise ModelError(
                f"Input {item.name!r} has an element type that cannot be converted",
                where=f"input {item.name!r}",
                why="inputs must be tensors of real numbers or booleans",
                cure="name outputs= that need no such input, or convert only a part of the model",
            )
        shape = namer.shape(item, wanted.get(item.name))
        types[item.name] = TensorType(shape, item.dtype)
    return types, namer.ranges


def equal_sizes(
    declared: Sequence[ModelInput], given: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Shapes in which unknown dimensions of the same axis have one name, whatever the input.

    Inputs that are given keep their shapes, and so do batches. None where nothing is shared.
    """
    named = {name.removesuffix(":0") for name in given or {}}
    free = {
        item.name: item.shape
        for item in declared
        if item.shape is not None and item.name.removesuffix(":0") not in named
    }
    counts = Counter(a for s in free.values() for a, d in enumerate(s) if a and d is None)
    shared = {axis for axis, count in counts.items() if count > 1}
    shapes = {
        name: tuple(f"length_{a}" if d is None and a in shared else d for a, d in enumerate(s))
        for name, s in free.items()
        if any(d is None and a in shared for a, d in enumerate(s))
    }
    return {**(given or {}), **shapes} if shapes else None


class _Namer:
    """Gives unknown dimensions their symbols and collects the ranges."""

    def __init__(self) -> None:
        self.ranges: dict[str, DimRange] = {}
        self._owners: dict[str, str] = {}

    def shape(self, item: ModelInput, given: Any) -> tuple[DimLike, ...]:
        if all(hasattr(given, part) for part in ("min", "opt", "max")):
            return self._profile(item, given)
        shape = item.shape if given is None else getattr(given, "shape", given)
        if shape is None:
            raise ModelError(
                f"Input {item.name!r} has an unknown number of dimensions",
                where=f"input {item.name!r}",
                why="the model declares no shape for it",
                cure=f"give it one: inputs={{{item.name!r}: (None, 224, 224, 3)}}",
            )
        if isinstance(shape, str | bytes) or not hasattr(shape, "__iter__"):
            raise self._malformed(item, shape)
        if item.shape is not None and len(tuple(shape)) != len(item.shape):
            raise InputError(
                f"Input {item.name!r} has {len(item.shape)} dimensions, not {len(tuple(shape))}",
                where="inputs",
                why=f"the model declares {item.shape}, and was given {tuple(shape)}",
                cure="give a shape of that rank",
            )
        return tuple(self._dimension(item, axis, d) for axis, d in enumerate(shape))

    def _dimension(self, item: ModelInput, axis: int, dim: Any) -> DimLike:
        if isinstance(dim, str):
            if not dim.isidentifier():
                raise self._malformed(item, dim)
            return self._symbol(dim, ANY_SIZE, item, keep=True)
        if dim is None or dim == -1:
            return self._symbol(self._name(item, axis), ANY_SIZE, item, keep=True)
        try:
            size = int(dim)
        except (TypeError, ValueError, OverflowError):
            raise self._malformed(item, dim) from None
        if not 0 <= size <= ANY_SIZE.max or size != dim:
            raise self._malformed(item, dim)
        return size

    def _profile(self, item: ModelInput, given: Any) -> tuple[DimLike, ...]:
        limits = [tuple(getattr(given, part)) for part in ("min", "opt", "max")]
        ranks = {len(shape) for shape in limits}
        expected = len(item.shape) if item.shape is not None else len(limits[0])
        if ranks != {expected}:
            raise InputError(
                f"The profile of input {item.name!r} does not have {expected} dimensions",
                where="inputs",
                why=f"min, opt and max are {', '.join(map(str, limits))}",
                cure="give three shapes of the input's rank",
            )
        dims: list[DimLike] = []
        for axis, (low, usual, high) in enumerate(zip(*limits, strict=True)):
            if not 0 <= low <= usual <= high:
                raise InputError(
                    f"The profile of input {item.name!r} is not in order in dimension {axis}",
                    where="inputs",
                    why=f"min {low}, opt {usual}, max {high}",
                    cure="let min <= opt <= max",
                )
            if low == high:
                dims.append(int(low))
            else:
                bounds = DimRange(int(low), int(usual), int(high))
                dims.append(self._symbol(self._name(item, axis), bounds, item))
        return tuple(dims)

    def _symbol(self, name: str, bounds: DimRange, item: ModelInput, keep: bool = False) -> DimLike:
        """The symbol; `keep` says that `bounds` are only a default."""
        known = self.ranges.get(name)
        if known is None or known == ANY_SIZE:
            self.ranges[name] = bounds
        elif not keep and known != bounds:
            raise InputError(
                f"The profiles disagree about the dimension {name}",
                where=f"input {item.name!r}",
                why=f"one says {known}, another {bounds}",
                cure="give the same range to all inputs that share the batch",
            )
        return symbol(name)

    def _name(self, item: ModelInput, axis: int) -> str:
        if axis == 0:
            return BATCH
        name = re.sub(r"\W", "_", f"{item.name}_{axis}", flags=re.ASCII)
        name = f"_{name}" if name[0].isdigit() else name
        while self._owners.setdefault(name, f"{item.name}:{axis}") != f"{item.name}:{axis}":
            name += "_"
        return name

    def _malformed(self, item: ModelInput, shape: Any) -> InputError:
        return InputError(
            f"The shape given for input {item.name!r} is malformed",
            where="inputs",
            why=f"{shape!r} is not a dimension or a shape",
            cure="give a tuple of sizes, None for unknown sizes, or names: (None, 224, 224, 3)",
        )

"""What an op is: attributes, a shape-and-type rule, and a NumPy reference, in one class.

An op is a frozen dataclass; its fields are its attributes. `infer` gives the types of its outputs
or raises `ShapeError`; `reference` computes them with NumPy and is the oracle of every test, folds
constants, and is the last fallback of the runtime. Defining the class registers it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from planish.errors import ShapeError
from planish.graph.dims import Dim, DimLike, dim_max
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType

OPS: dict[str, type[Op]] = {}
"""Every op by its name."""


@dataclass(frozen=True)
class Op:
    """Base class of all ops. Subclasses are frozen dataclasses; fields are the attributes."""

    name: ClassVar[str] = ""
    """Snake case of the class name, unless given."""
    refuses_sizes: ClassVar[bool] = True
    """Whether `infer` may refuse sizes of dimensions whose symbols it took."""

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if abstract:
            return
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if cls.name in OPS:
            raise TypeError(f"two ops are called {cls.name!r}")
        OPS[cls.name] = cls

    def infer(self, *inputs: Value) -> list[TensorType]:
        """Types of the outputs. Takes values, because some ops look at an input's content.

        Raises
        ------
        ShapeError
            The inputs do not fit this op.
        """
        raise NotImplementedError

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        """Contents (elements as dimensions) of the outputs where known; see `Value.content`."""
        return [None] * len(types)

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs, by NumPy. Shapes are concrete; the result has the inferred dtypes."""
        raise NotImplementedError

    def attributes(self) -> dict[str, Any]:
        """The attributes by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={_attribute_text(v)}" for k, v in self.attributes().items())
        return f"{self.name}({shown})" if shown else self.name


def _attribute_text(value: Any) -> str:
    if isinstance(value, DType):
        return value.value
    if isinstance(value, tuple):
        return f"({', '.join(map(_attribute_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def broadcast_shapes(*shapes: Sequence[DimLike]) -> tuple[DimLike, ...]:
    """The shape that NumPy's broadcasting gives.

    A symbolic dimension against 1 gives the symbol; two different symbolic dimensions cannot be
    shown to be equal and are refused.

    Raises
    ------
    ShapeError
        The shapes do not broadcast.
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[DimLike] = []
    for axis in range(-rank, 0):
        dim: DimLike = 1
        for shape in shapes:
            other = shape[axis] if -axis <= len(shape) else 1
            if other == 1 or other == dim:
                continue
            if dim != 1:
                raise ShapeError(
                    f"Shapes {', '.join(map(_shape_text, shapes))} do not broadcast",
                    why=f"dimension {axis} is {dim} in one and {other} in another",
                    cure="make the dimensions equal, or one of them 1; unknown dimensions are "
                    "equal where inputs= gives them the same name",
                )
            dim = other
        result.append(dim)
    return tuple(result)


def _shape_text(shape: Sequence[DimLike]) -> str:
    return f"({', '.join(map(str, shape))})"


def normalize_axis(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises
    ------
    ShapeError
        There is no such axis.
    """
    if not -rank <= axis < rank:
        raise ShapeError(f"Axis {axis} does not exist in a tensor of {rank} dimensions")
    return axis % rank


def require(condition: bool, what: str, *, why: str = "", cure: str = "") -> None:
    """Raises `ShapeError` unless the condition holds."""
    if not condition:
        raise ShapeError(what, why=why, cure=cure)


def window_output(
    size: DimLike, window: int, stride: int, dilation: int, before: DimLike, after: DimLike
) -> DimLike:
    """Output positions of a sliding window over a padded dimension (rounded down, at least 0).

    Raises
    ------
    ShapeError
        The window, its stride or its dilation is larger than any dimension can be.
    """
    require(
        max(window, stride, dilation) < 2**31,
        f"A window of {window}, with stride {stride} and dilation {dilation}, is too large",
    )
    span = (window - 1) * dilation + 1
    count = (size + (before + after - span)) // stride + 1
    return count if isinstance(count, Dim) else dim_max(count, 0)

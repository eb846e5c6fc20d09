"""Ops that move or make elements without computing on them: reshape, slice, pad, concatenate.

Target shapes are attributes, not tensors. `shape_rules.py`'s helpers, which frontends use to find
these attributes, are re-exported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.graph.dims import DimLike, product
from planish.graph.graph import CONTENT_LIMIT, Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, normalize_axis, require
from planish.ops.operands import (
    concrete,
    content_array,
    expect_count,
    expect_same_dtype,
    small_content,
)
from planish.ops.shape_rules import (
    expand_shape,
    index_begin,
    resolve_reshape,
    slice_bounds,
    squeeze_shape,
)

PAD_MODES = ("constant", "reflect", "symmetric", "edge")


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements, in row-major order, under another shape.

    Dimensions of `shape` are sizes: -1 and other placeholders are resolved by `resolve_reshape`.
    """

    shape: tuple[DimLike, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(
            all(not isinstance(d, int) or d >= 0 for d in self.shape),
            f"reshape to {self.shape} has a negative dimension",
        )
        difference = x.type.elements - product(self.shape)
        require(
            not isinstance(difference, int) or difference == 0,
            f"{x.type} does not reshape to ({', '.join(map(str, self.shape))})",
            why=f"it has {x.type.elements} elements, the shape {product(self.shape)}",
        )
        return [TensorType(self.shape, x.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        content = inputs[0].content
        known = content is not None and types[0].is_static
        return [content.reshape(types[0].shape) if known else None]  # type: ignore[union-attr]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [inputs[0].reshape(concrete(self, self.shape))]


@dataclass(frozen=True)
class Transpose(Op):
    """Dimension ``i`` of the result is dimension ``perm[i]`` of the input."""

    perm: tuple[int, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(
            sorted(self.perm) == list(range(x.type.rank)),
            f"transpose of {x.type} needs a permutation of its {x.type.rank} axes, not {self.perm}",
        )
        return [TensorType(tuple(x.shape[p] for p in self.perm), x.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        content = inputs[0].content
        return [None if content is None else content.transpose(self.perm)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [inputs[0].transpose(self.perm).copy()]


@dataclass(frozen=True)
class BroadcastTo(Op):
    """The input repeated along dimensions of size 1, and along new ones in front."""

    shape: tuple[DimLike, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        fits = x.type.rank <= len(self.shape) and all(
            d in (1, wanted)
            for d, wanted in zip(reversed(x.shape), reversed(self.shape), strict=False)
        )
        require(fits, f"{x.type} does not broadcast to ({', '.join(map(str, self.shape))})")
        return [TensorType(self.shape, x.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        content = inputs[0].content
        size = types[0].elements
        if content is None or not types[0].is_static or size > CONTENT_LIMIT:  # type: ignore[operator]
            return [None]
        return [np.broadcast_to(content, concrete(self, self.shape))]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [np.broadcast_to(inputs[0], concrete(self, self.shape)).copy()]


@dataclass(frozen=True)
class Slice(Op):
    """Every `strides`-th element from `begin` on, `size` of them; one of each per axis.

    A negative stride goes backwards. `slice_bounds` gives `begin` and `size` for NumPy's bounds.
    """

    begin: tuple[DimLike, ...]
    size: tuple[DimLike, ...]
    strides: tuple[int, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(
            len(self.begin) == len(self.size) == len(self.strides) == x.type.rank,
            f"slice of {x.type} needs a begin, size and stride for each of its axes",
        )
        for axis, (begin, size, stride) in enumerate(
            zip(self.begin, self.size, self.strides, strict=True)
        ):
            require(stride != 0, f"slice of {x.type} has stride 0 on axis {axis}")
            require(not isinstance(size, int) or size >= 0, f"slice has size {size} on axis {axis}")
            dim, last = x.shape[axis], begin + (size - 1) * stride
            if isinstance(dim, int) and isinstance(begin, int) and isinstance(last, int):
                require(
                    size == 0 or (0 <= begin < dim and 0 <= last < dim),
                    f"slice reads elements {begin} to {last} of dimension {axis} of {x.type}",
                    cure="keep begin and size inside the dimension",
                )
        return [TensorType(self.size, x.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        content = inputs[0].content
        if content is None or not all(isinstance(d, int) for d in (*self.begin, *self.size)):
            return [None]
        return [content[self._index()]]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [inputs[0][self._index()].copy()]

    def _index(self) -> tuple[slice, ...]:
        begins, sizes = concrete(self, self.begin), concrete(self, self.size)
        index = []
        for begin, size, stride in zip(begins, sizes, self.strides, strict=True):
            end = begin + size * stride
            index.append(slice(begin, None if end < 0 else end, stride) if size else slice(0, 0))
        return tuple(index)


@dataclass(frozen=True)
class Pad(Op):
    """The input with elements put before and after it along each axis.

    Modes: "constant" puts in `value`; "reflect" mirrors without the edge element, "symmetric"
    with it; "edge" repeats the edge element.
    """

    padding: tuple[tuple[DimLike, DimLike], ...]
    mode: str = "constant"
    value: float = 0.0

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(self.mode in PAD_MODES, f"pad knows the modes {PAD_MODES}, not {self.mode!r}")
        require(len(self.padding) == x.type.rank, f"pad of {x.type} needs a pair for each axis")
        for axis, pair in enumerate(self.padding):
            for amount in pair:
                self._expect_amount(x, axis, amount)
        shape = tuple(
            before + d + after for d, (before, after) in zip(x.shape, self.padding, strict=True)
        )
        return [TensorType(shape, x.dtype)]

    def _expect_amount(self, x: Value, axis: int, amount: DimLike) -> None:
        if not isinstance(amount, int):
            return
        require(
            amount >= 0,
            f"pad of {x.type} by {amount} on axis {axis}",
            cure="cut elements off with a slice",
        )
        dim = x.shape[axis]
        if self.mode == "constant" or amount == 0 or not isinstance(dim, int):
            return
        most = {"reflect": dim - 1, "symmetric": dim, "edge": amount if dim else 0}[self.mode]
        require(
            amount <= most,
            f"{self.mode} pad of axis {axis} of {x.type} by {amount}, more than it has",
        )

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        padding = [concrete(self, pair) for pair in self.padding]
        extra: dict[str, Any] = {}
        if self.mode == "constant":
            extra["constant_values"] = np.asarray(self.value).astype(x.dtype)
        # NumPy pads no array without axes
        return [np.pad(x, padding, mode=self.mode, **extra) if x.ndim else x.copy()]  # type: ignore[call-overload]


@dataclass(frozen=True)
class Concat(Op):
    """The inputs one after the other along an axis; all other dimensions are equal."""

    axis: int

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) > 0, "concat needs at least one input")
        expect_same_dtype(self, *inputs)
        first = inputs[0]
        axis = normalize_axis(self.axis, first.type.rank)
        for other in inputs[1:]:
            fits = other.type.rank == first.type.rank and all(
                a == b
                for i, (a, b) in enumerate(zip(first.shape, other.shape, strict=True))
                if i != axis
            )
            require(fits, f"concat on axis {axis} cannot join {first.type} and {other.type}")
        total: DimLike = 0
        for value in inputs:
            total = total + value.shape[axis]
        return [TensorType((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        parts = [v.content for v in inputs if v.content is not None]
        if len(parts) < len(inputs):
            return [None]
        return [small_content(np.concatenate(parts, axis=self.axis))]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate(inputs, axis=self.axis)]


@dataclass(frozen=True)
class Tile(Op):
    """The whole input repeated `repeats` times along each axis."""

    repeats: tuple[DimLike, ...]

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(len(self.repeats) == x.type.rank, f"tile of {x.type} needs a count for each axis")
        require(
            all(not isinstance(r, int) or r >= 0 for r in self.repeats),
            f"tile cannot repeat {self.repeats} times",
        )
        shape = tuple(d * r for d, r in zip(x.shape, self.repeats, strict=True))
        return [TensorType(shape, x.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        content = inputs[0].content
        size = types[0].elements
        if content is None or not isinstance(size, int) or size > CONTENT_LIMIT:
            return [None]
        if not all(isinstance(r, int) for r in self.repeats):
            return [None]
        return [np.tile(content, concrete(self, self.repeats))]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [np.tile(inputs[0], concrete(self, self.repeats))]


@dataclass(frozen=True)
class ShapeOf(Op):
    """The dimensions of the input as a vector."""

    dtype: DType = DType.INT64

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        require(self.dtype.is_integer, f"shape_of gives integers, not {self.dtype.value}")
        return [TensorType((inputs[0].type.rank,), self.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        return [content_array(inputs[0].shape)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [np.array(inputs[0].shape, self.dtype.numpy)]


@dataclass(frozen=True)
class Dims(Op):
    """Dimensions as a tensor, from no input: a vector, or a scalar for a single dimension."""

    values: tuple[DimLike, ...] | DimLike
    dtype: DType = DType.INT64

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 0)
        require(self.dtype.is_integer, f"dims gives integers, not {self.dtype.value}")
        shape = (len(self.values),) if isinstance(self.values, tuple) else ()
        return [TensorType(shape, self.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        if isinstance(self.values, tuple):
            return [content_array(self.values)]
        return [content_array([self.values]).reshape(())]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        if isinstance(self.values, tuple):
            return [np.array(concrete(self, self.values), self.dtype.numpy)]
        return [np.array(concrete(self, (self.values,))[0], self.dtype.numpy)]


@dataclass(frozen=True)
class Identity(Op):
    """The input itself."""

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        return [inputs[0].type]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        return [inputs[0].content]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [inputs[0]]


__all__ = [
    "PAD_MODES",
    "BroadcastTo",
    "Concat",
    "Dims",
    "Identity",
    "Pad",
    "Reshape",
    "ShapeOf",
    "Slice",
    "Tile",
    "Transpose",
    "expand_shape",
    "index_begin",
    "resolve_reshape",
    "slice_bounds",
    "squeeze_shape",
]

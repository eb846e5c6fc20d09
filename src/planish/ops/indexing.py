"""Ops whose inputs say which elements: gather, scatter, one-hot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.errors import InputError
from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.graph.types import TensorType
from planish.ops.base import Op, normalize_axis, require
from planish.ops.operands import (
    concrete,
    content_array,
    expect_count,
    expect_index,
    expect_same_dtype,
    small_content,
)

REDUCTIONS = ("none", "add", "mul", "max", "min")


@dataclass(frozen=True)
class Gather(Op):
    """Slices of data along an axis, picked by indices; negative indices count from the end.

    Inputs: data ``[*outer, n, *inner]`` and integer indices; output
    ``[*outer, *indices[batch_dims:], *inner]``. The first `batch_dims` dimensions of both inputs
    are equal and go together.
    """

    axis: int = 0
    batch_dims: int = 0

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        data, indices = inputs
        expect_index(self, indices)
        axis = normalize_axis(self.axis, data.type.rank)
        batch = self.batch_dims
        require(
            0 <= batch <= min(axis, indices.type.rank),
            f"gather on axis {axis} cannot have {batch} batch dimensions",
        )
        require(
            data.shape[:batch] == indices.shape[:batch],
            f"gather of {data.type} by {indices.type}: batch dimensions differ",
        )
        shape = (*data.shape[:axis], *indices.shape[batch:], *data.shape[axis + 1 :])
        return [TensorType(shape, data.dtype)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        data, indices = inputs
        if data.content is None or indices.content is None or self.batch_dims:
            return [None]
        if not all(isinstance(i, int) for i in indices.content.flat):
            return [None]
        axis = normalize_axis(self.axis, data.type.rank)
        places = indices.content.astype(np.int64)
        size = data.content.shape[axis]
        if places.size and not -size <= places.min() <= places.max() < size:
            return [None]
        picked = np.take(data.content, places, axis)
        if not isinstance(picked, np.ndarray):
            picked = content_array([picked]).reshape(())
        return [small_content(picked)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        data, indices = inputs
        axis, batch = normalize_axis(self.axis, data.ndim), self.batch_dims
        places = _wrapped(self, indices, data.shape[axis])
        if not batch:
            return [np.asarray(np.take(data, places, axis))]
        front = np.moveaxis(data, axis, batch)
        index = (*_batch_grid(indices.shape[:batch], indices.ndim), places)
        picked = front[index]
        # [*batch, *indices, *outer, *inner] -> [*batch, *outer, *indices, *inner]
        outer = axis - batch
        start = indices.ndim
        picked = np.moveaxis(picked, range(start, start + outer), range(batch, batch + outer))
        return [np.ascontiguousarray(picked)]


@dataclass(frozen=True)
class GatherNd(Op):
    """Slices of data, each picked by a vector of indices; negative ones count from the end.

    Inputs: data and indices ``[*places, depth]``; the vectors index the `depth` dimensions of
    data after the first `batch_dims`. Output ``[*places, *data[batch_dims + depth:]]``.
    """

    batch_dims: int = 0

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        data, indices = inputs
        expect_index(self, indices)
        depth = _depth(self, data, indices, self.batch_dims)
        require(
            data.shape[: self.batch_dims] == indices.shape[: self.batch_dims],
            f"gather_nd of {data.type} by {indices.type}: batch dimensions differ",
        )
        shape = (*indices.shape[:-1], *data.shape[self.batch_dims + depth :])
        return [TensorType(shape, data.dtype)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        data, indices = inputs
        batch, depth = self.batch_dims, indices.shape[-1]
        places = [_wrapped(self, indices[..., i], data.shape[batch + i]) for i in range(depth)]
        index = (*_batch_grid(indices.shape[:batch], indices.ndim - 1), *places)
        picked = data[index] if index else data
        # without places, the grid leaves dimensions of size 1
        return [np.broadcast_to(picked, (*indices.shape[:-1], *data.shape[batch + depth :])).copy()]


@dataclass(frozen=True)
class ScatterNd(Op):
    """A copy of data in which slices are replaced by, or combined with, updates.

    Inputs: data, indices ``[*places, depth]`` (negative ones count from the end), updates
    ``[*places, *data[depth:]]``. `reduction` is "none" (of equal indices the last wins), "add",
    "mul", "max" or "min".
    """

    reduction: str = "none"

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 3)
        data, indices, updates = inputs
        expect_index(self, indices)
        expect_same_dtype(self, data, updates)
        require(
            self.reduction in REDUCTIONS,
            f"scatter_nd knows the reductions {REDUCTIONS}, not {self.reduction!r}",
        )
        depth = _depth(self, data, indices, 0)
        wanted = (*indices.shape[:-1], *data.shape[depth:])
        require(
            updates.shape == wanted,
            f"scatter_nd into {data.type} at {indices.type} needs updates of shape "
            f"({', '.join(map(str, wanted))}), not {updates.type}",
        )
        return [data.type]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        data, indices, updates = inputs
        output = data.copy()
        places = tuple(
            _wrapped(self, indices[..., i], data.shape[i]) for i in range(indices.shape[-1])
        )
        if not updates.size:
            return [output]
        index = places or (np.zeros(indices.shape[:-1], np.int64),)
        target = output if places else output[None]
        if self.reduction == "none":
            target[index] = updates
        else:
            combine = {
                "add": np.add,
                "mul": np.multiply,
                "max": np.maximum,
                "min": np.minimum,
            }[self.reduction]
            combine.at(target, index, updates)
        return [output]


@dataclass(frozen=True)
class OneHot(Op):
    """A new dimension of size `depth` at `axis`, `on` at the index and `off` elsewhere.

    Inputs: integer indices, scalars on and off of the output's dtype. An index outside
    ``0 … depth - 1`` gives only `off`, as in TensorFlow; negative indices do not count from the
    end.
    """

    depth: DimLike
    axis: int = -1

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 3)
        indices, on, off = inputs
        expect_index(self, indices)
        expect_same_dtype(self, on, off)
        require(on.type.rank == 0 and off.type.rank == 0, "one_hot needs scalars for on and off")
        require(
            not isinstance(self.depth, int) or self.depth >= 0,
            f"one_hot cannot have depth {self.depth}",
        )
        axis = normalize_axis(self.axis, indices.type.rank + 1)
        return [TensorType((*indices.shape[:axis], self.depth, *indices.shape[axis:]), on.dtype)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        indices, on, off = inputs
        (depth,) = concrete(self, (self.depth,))
        axis = normalize_axis(self.axis, indices.ndim + 1)
        classes = np.arange(depth).reshape(-1, *(1,) * (indices.ndim - axis))
        hot = np.expand_dims(indices, axis) == classes
        return [np.where(hot, on, off).astype(on.dtype, copy=False)]


def _depth(op: Op, data: Value, indices: Value, batch: int) -> int:
    require(indices.type.rank >= 1, f"{op.name} needs vectors of indices, not {indices.type}")
    depth = indices.shape[-1]
    require(isinstance(depth, int), f"{op.name} needs to know the last dimension of its indices")
    require(
        0 <= batch < indices.type.rank and batch + int(depth) <= data.type.rank,  # type: ignore[arg-type]
        f"{op.name} of {data.type} cannot be indexed by {indices.type}, batch dimensions: {batch}",
    )
    return int(depth)  # type: ignore[arg-type]


def _wrapped(op: Op, indices: np.ndarray, size: int) -> np.ndarray:
    """Indices counted from the front.

    Raises
    ------
    InputError
        An index is outside the dimension.
    """
    places = indices.astype(np.int64)
    if places.size and not -size <= int(places.min()) <= int(places.max()) < size:
        wrong = places[(places < -size) | (places >= size)].flat[0]
        raise InputError(
            f"{op.name} was given the index {wrong} for a dimension of {size}",
            cure=f"keep indices between {-size} and {size - 1}",
        )
    return np.where(places < 0, places + size, places)


def _batch_grid(shape: Sequence[int], rank: int) -> tuple[np.ndarray, ...]:
    """For each batch dimension its index, shaped to broadcast against indices of `rank`."""
    return tuple(
        np.arange(n).reshape((1,) * i + (n,) + (1,) * (rank - i - 1)) for i, n in enumerate(shape)
    )

"""Ops that combine elements along axes: reductions, arg max, cumulative sums, top k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.graph.dims import DimLike, dim_max, dim_min
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, normalize_axis, require
from planish.ops.operands import concrete, expect_count, expect_number, normalize_axes, widen


@dataclass(frozen=True)
class Reduction(Op, abstract=True):
    """Base class: combines all elements along `axes`; no axes leave the input as it is."""

    axes: tuple[int, ...]
    keepdims: bool = False
    combine: ClassVar[Any] = None
    """A function that combines two dimensions, for contents; None: contents end here."""

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        self.expect_dtype(inputs[0])
        return [
            TensorType(
                reduced_shape(inputs[0].shape, self.axes, self.keepdims), self.dtype_of(inputs[0])
            )
        ]

    def expect_dtype(self, x: Value) -> None:
        """Raises `ShapeError` if the op does not take the input's dtype."""
        expect_number(self, x)

    def dtype_of(self, x: Value) -> DType:
        """The dtype of the result."""
        return x.dtype

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        content = inputs[0].content
        combine = type(self).combine
        if content is None or combine is None:
            return [None]
        ufunc = np.frompyfunc(combine, 2, 1)
        for axis in reversed(normalize_axes(self.axes, content.ndim)):
            if content.shape[axis] == 0:
                return [None]
            content = _as_object(ufunc.reduce(content, axis=axis, keepdims=self.keepdims))
        return [content]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        axes = normalize_axes(self.axes, x.ndim)
        result = np.asarray(self.compute(widen(x), axes))
        return [result.astype(x.dtype, copy=False)]

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """The reduction of an array whose dtype NumPy computes in, over normalized axes."""
        raise NotImplementedError


@dataclass(frozen=True)
class ReduceSum(Reduction):
    """Sum along axes. Integer sums wrap around."""

    combine = staticmethod(lambda a, b: a + b)

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.sum(x, axes, dtype=x.dtype, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceMean(Reduction):
    """Mean along axes. Means of integers are rounded towards zero."""

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
        if not np.issubdtype(x.dtype, np.integer):
            return np.sum(x, axes, keepdims=self.keepdims) / x.dtype.type(count)
        total = np.asarray(np.sum(x, axes, dtype=np.int64, keepdims=self.keepdims))
        return np.sign(total) * (np.abs(total) // max(count, 1))


@dataclass(frozen=True)
class ReduceMax(Reduction):
    """Largest element along axes; of nothing ``-inf`` or the lowest integer."""

    combine = staticmethod(dim_max)

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.max(x, axes, keepdims=self.keepdims, initial=_extreme(x.dtype, -1))


@dataclass(frozen=True)
class ReduceMin(Reduction):
    """Smallest element along axes; of nothing ``inf`` or the highest integer."""

    combine = staticmethod(dim_min)

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.min(x, axes, keepdims=self.keepdims, initial=_extreme(x.dtype, 1))


@dataclass(frozen=True)
class ReduceProd(Reduction):
    """Product along axes. Integer products wrap around."""

    combine = staticmethod(lambda a, b: a * b)

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.prod(x, axes, dtype=x.dtype, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceAny(Reduction):
    """Whether any element along axes is true; bool only."""

    def expect_dtype(self, x: Value) -> None:
        require(x.dtype is DType.BOOL, f"{self.name} needs bool, not {x.dtype.value}")

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.any(x, axes, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceAll(ReduceAny):
    """Whether all elements along axes are true; bool only."""

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.all(x, axes, keepdims=self.keepdims)


@dataclass(frozen=True)
class ArgMax(Op):
    """Index of the largest element along an axis: the first of equals, or the last."""

    axis: int
    keepdims: bool = False
    dtype: DType = DType.INT64
    select_last: bool = False
    search: ClassVar[Any] = staticmethod(np.argmax)

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(self.dtype.is_integer, f"{self.name} gives integers, not {self.dtype.value}")
        axis = normalize_axis(self.axis, x.type.rank)
        require(x.shape[axis] != 0, f"{self.name} over an empty dimension of {x.type}")
        return [TensorType(reduced_shape(x.shape, (axis,), self.keepdims), self.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x = widen(inputs[0])
        axis = normalize_axis(self.axis, x.ndim)
        search = type(self).search
        if self.select_last:
            index = x.shape[axis] - 1 - search(np.flip(x, axis), axis, keepdims=self.keepdims)
        else:
            index = search(x, axis, keepdims=self.keepdims)
        return [np.asarray(index).astype(self.dtype.numpy)]


@dataclass(frozen=True)
class ArgMin(ArgMax):
    """Index of the smallest element along an axis: the first of equals, or the last."""

    search: ClassVar[Any] = staticmethod(np.argmin)


@dataclass(frozen=True)
class CumSum(Op):
    """Running sum along an axis.

    `exclusive` leaves an element out of its own sum; `reverse` runs from the end.
    """

    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_number(self, *inputs)
        normalize_axis(self.axis, inputs[0].type.rank)
        return [inputs[0].type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        axis = normalize_axis(self.axis, x.ndim)
        ordered = np.moveaxis(widen(x), axis, 0)
        ordered = ordered[::-1] if self.reverse else ordered
        total = np.cumsum(ordered, 0, dtype=ordered.dtype)
        if self.exclusive:
            total = np.concatenate([np.zeros_like(total[:1]), total[:-1]])
        total = total[::-1] if self.reverse else total
        return [np.ascontiguousarray(np.moveaxis(total, 0, axis).astype(x.dtype, copy=False))]


@dataclass(frozen=True)
class TopK(Op):
    """The `k` largest (or smallest) elements along an axis, and their indices.

    Of equal elements the first comes first. The result is in order even if `sorted` does not ask
    for it. NaN counts as the largest number.
    """

    k: DimLike
    axis: int = -1
    largest: bool = True
    sorted: bool = True
    index_dtype: DType = DType.INT64

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_number(self, *inputs)
        (x,) = inputs
        require(self.index_dtype.is_integer, "top_k gives integer indices")
        axis = normalize_axis(self.axis, x.type.rank)
        size = x.shape[axis]
        if isinstance(spare := size - self.k, int):
            require(spare >= 0, f"top_k asks for {self.k} of {size} elements")
        require(not isinstance(self.k, int) or self.k >= 0, f"top_k asks for {self.k} elements")
        shape = (*x.shape[:axis], self.k, *x.shape[axis + 1 :])
        return [TensorType(shape, x.dtype), TensorType(shape, self.index_dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        (k,) = concrete(self, (self.k,))
        axis = normalize_axis(self.axis, x.ndim)
        wide = widen(x)
        if self.largest:
            # a stable ascending order of the flipped array, read backwards, keeps ties in order
            order = np.argsort(np.flip(wide, axis), axis, kind="stable")
            order = x.shape[axis] - 1 - np.flip(order, axis)
        else:
            order = np.argsort(wide, axis, kind="stable")
        order = np.take(order, np.arange(k), axis)
        return [np.take_along_axis(x, order, axis), order.astype(self.index_dtype.numpy)]


def reduced_shape(
    shape: Sequence[DimLike], axes: Sequence[int], keepdims: bool
) -> tuple[DimLike, ...]:
    """The shape that is left after a reduction over `axes`.

    Raises
    ------
    ShapeError
        An axis does not exist or is given twice.
    """
    gone = normalize_axes(axes, len(shape))
    if keepdims:
        return tuple(1 if i in gone else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in gone)


def _extreme(dtype: np.dtype, sign: int) -> float | int:
    if not np.issubdtype(dtype, np.integer):
        return sign * np.inf
    limits = np.iinfo(dtype)
    return int(limits.max if sign > 0 else limits.min)


def _as_object(value: object) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    array = np.empty((), object)
    array[()] = value
    return array

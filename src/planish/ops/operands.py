"""What the ops share: checks of operands, concrete attributes, and arithmetic wide enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planish.errors import ShapeError
from planish.graph.dims import DimLike
from planish.graph.graph import CONTENT_LIMIT, Value
from planish.graph.types import DType
from planish.ops.base import Op, normalize_axis, require

_HALVES = (DType.FLOAT16, DType.BFLOAT16)
_EXACT_IN_DOUBLE = 2**53


def expect_count(op: Op, inputs: Sequence[Value], count: int) -> None:
    """Raises `ShapeError` unless the op was given `count` inputs."""
    require(len(inputs) == count, f"{op.name} takes {count} input(s) and was given {len(inputs)}")


def expect_float(op: Op, *inputs: Value) -> None:
    """Raises `ShapeError` unless all inputs have one floating-point dtype."""
    expect_same_dtype(op, *inputs)
    require(
        inputs[0].dtype.is_float,
        f"{op.name} needs a floating-point input, not {inputs[0].dtype.value}",
        cure="cast the input to a floating-point dtype",
    )


def expect_number(op: Op, *inputs: Value) -> None:
    """Raises `ShapeError` unless all inputs have one dtype, which is not bool."""
    expect_same_dtype(op, *inputs)
    require(inputs[0].dtype is not DType.BOOL, f"{op.name} does not accept bool")


def expect_same_dtype(op: Op, *inputs: Value) -> None:
    """Raises `ShapeError` unless all inputs have one dtype."""
    require(
        all(v.dtype is inputs[0].dtype for v in inputs),
        f"{op.name} needs inputs of one dtype, not {', '.join(v.dtype.value for v in inputs)}",
        cure="cast the inputs to one dtype",
    )


def expect_index(op: Op, indices: Value) -> None:
    """Raises `ShapeError` unless the indices are integers."""
    require(indices.dtype.is_integer, f"{op.name} needs integer indices, not {indices.dtype.value}")


def normalize_axes(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, in ascending order.

    Raises
    ------
    ShapeError
        An axis does not exist or is given twice.
    """
    result = tuple(sorted(normalize_axis(a, rank) for a in axes))
    require(len(set(result)) == len(result), f"Axes {tuple(axes)} name one axis twice")
    return result


def concrete(op: Op, dims: Iterable[DimLike]) -> tuple[int, ...]:
    """An op's attribute as plain integers.

    Raises
    ------
    ShapeError
        A symbolic dimension is left in it.
    """
    result = []
    for dim in dims:
        if not isinstance(dim, int):
            raise ShapeError(
                f"{op.name} cannot be computed while its dimension {dim} is symbolic",
                why="only shapes of known size can be computed with",
                cure="bind the symbols of the op's attributes to integers first",
            )
        result.append(dim)
    return tuple(result)


def widen(x: np.ndarray) -> np.ndarray:
    """Halves as float32; everything else as it is."""
    return x.astype(np.float32) if DType.of(x.dtype) in _HALVES else x


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` of two arrays of one dtype: halves in float32, integers modulo their width.

    Integer products go through float64 (and so through BLAS) where no sum can leave its exact
    range, else through 64-bit integers.
    """
    dtype = a.dtype
    if not DType.of(dtype).is_integer:
        return np.matmul(widen(a), widen(b))
    bound = _magnitude(a) * _magnitude(b) * max(a.shape[-1], 1)
    wide = np.float64 if bound < _EXACT_IN_DOUBLE else np.int64
    exact = np.matmul(a.astype(wide), b.astype(wide))
    return exact.astype(np.int64).astype(dtype) if dtype != np.uint64 else exact.astype(dtype)


def _magnitude(x: np.ndarray) -> int:
    return max(abs(int(x.min())), abs(int(x.max()))) if x.size else 0


def content_array(values: Sequence[object]) -> np.ndarray:
    """A vector of dimensions as `Value.content` wants it."""
    result = np.empty(len(values), object)
    result[:] = values
    return result


def small_content(content: np.ndarray | None) -> np.ndarray | None:
    """The content, or None where it is too large to carry on."""
    return content if content is not None and content.size <= CONTENT_LIMIT else None

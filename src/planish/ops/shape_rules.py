"""Arithmetic on shapes that frontends need to lower reshapes and slices to `shape.py`'s ops.

Everything works on symbolic dimensions; a symbol stands for a size of at least 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planish.errors import ShapeError
from planish.graph.dims import (
    DimLike,
    bounds,
    ceildiv,
    dim_max,
    dim_min,
    floordiv,
    product,
    symbols,
)
from planish.ops.base import require
from planish.ops.operands import normalize_axes

END = 2**31 - 1
"""Exporters write this, or more, for a slice's bound that means "to the end"."""

_FAR = 2**62


def resolve_reshape(
    elements_shape: Sequence[DimLike], target: Sequence[DimLike], *, zero_copies: bool = True
) -> tuple[DimLike, ...]:
    """The shape that a framework's reshape asks for, without placeholders.

    Parameters
    ----------
    elements_shape : sequence of DimLike
        The shape of the tensor that is reshaped.
    target : sequence of DimLike
        The shape asked for. One dimension may be -1: whatever is left.
    zero_copies : bool
        Whether 0 stands for the input's dimension at the same place (ONNX, ``allowzero=0``) and
        not for an empty dimension.

    Raises
    ------
    ShapeError
        The elements do not fit, or -1 occurs twice or cannot be resolved.
    """
    shape = list(target)
    if zero_copies:
        for axis, dim in enumerate(shape):
            if dim == 0:
                require(
                    axis < len(elements_shape),
                    f"Reshape to {_text(target)} copies dimension {axis} of "
                    f"{_text(elements_shape)}, which does not exist",
                )
                shape[axis] = elements_shape[axis]
    unknown = [axis for axis, dim in enumerate(shape) if dim == -1]
    require(len(unknown) <= 1, f"Reshape to {_text(target)} leaves several dimensions open")
    if not unknown:
        return tuple(shape)
    shape[unknown[0]] = 1
    shape[unknown[0]] = _left_over(elements_shape, shape, target, zero_copies)
    return tuple(shape)


def squeeze_shape(
    shape: Sequence[DimLike], axes: Iterable[int] | None = None
) -> tuple[DimLike, ...]:
    """`shape` without dimensions of size 1: those at `axes`, or all if there are no axes.

    A symbolic dimension named by `axes` is taken to be 1; without `axes` it stays.

    Raises
    ------
    ShapeError
        A dimension named by `axes` is not 1 or does not exist.
    """
    if axes is None:
        return tuple(d for d in shape if d != 1)
    gone = normalize_axes(axes, len(shape))
    for axis in gone:
        dim = shape[axis]
        require(
            not isinstance(dim, int) or dim == 1,
            f"Dimension {axis} of {_text(shape)} is {dim} and cannot be squeezed",
        )
    return tuple(d for i, d in enumerate(shape) if i not in gone)


def expand_shape(shape: Sequence[DimLike], axes: Iterable[int]) -> tuple[DimLike, ...]:
    """`shape` with dimensions of size 1 put in, so that they stand at `axes` of the result.

    Raises
    ------
    ShapeError
        An axis does not exist in the result or is given twice.
    """
    wanted = list(axes)
    places = normalize_axes(wanted, len(shape) + len(wanted))
    rest = iter(shape)
    return tuple(1 if i in places else next(rest) for i in range(len(shape) + len(wanted)))


def index_begin(dim: DimLike, index: DimLike) -> DimLike:
    """Where element `index` of a dimension lies; negative indices count from the end.

    Raises
    ------
    ShapeError
        The dimension has no such element.
    """
    begin = index + dim if _is_negative(index) else index
    inside = _at_most(0, begin), _at_most(begin + 1, dim)
    if isinstance(begin, int) and isinstance(dim, int):
        require(all(inside), f"Index {index} is outside a dimension of {dim}")
    return begin


def slice_bounds(
    dim: DimLike,
    start: DimLike | None = None,
    stop: DimLike | None = None,
    stride: int = 1,
) -> tuple[DimLike, DimLike]:
    """``x[start:stop:stride]`` of a dimension as the first element and how many there are.

    NumPy's rules: None means from or to the end in the direction of the stride, negative bounds
    count from the end, and bounds outside are clamped. Integers beyond `END` mean the end. Where
    the clamping depends on a symbol, it is written with `min` and `max`. The first element of an
    empty slice of symbolic size may lie outside the dimension.

    Raises
    ------
    ShapeError
        The stride is 0, or a symbolic bound may be of either sign.
    """
    require(stride != 0, "A slice cannot have stride 0")
    if all(isinstance(d, int | None) for d in (dim, start, stop)):
        places = range(*slice(start, stop, stride).indices(dim))  # type: ignore[arg-type, misc]
        return (places[0], len(places)) if places else (0, 0)
    start, stop = _open_end(start, -stride), _open_end(stop, stride)
    if stride > 0:
        return _forward(dim, start, stop, stride)
    return _backward(dim, start, stop, stride)


def _forward(
    dim: DimLike, start: DimLike | None, stop: DimLike | None, stride: int
) -> tuple[DimLike, DimLike]:
    begin = 0 if start is None else _from_front(dim, start)
    end = dim if stop is None else _least(_from_front(dim, stop), dim)
    length = end - begin
    if not _at_most(0, begin):
        # end - max(begin, 0), in the form that shows that x[-1:] is at most 1 long
        begin, length = _greatest(begin, 0), _least(length, end)
    return begin, _greatest(ceildiv(length, stride), 0)


def _backward(
    dim: DimLike, start: DimLike | None, stop: DimLike | None, stride: int
) -> tuple[DimLike, DimLike]:
    begin = dim - 1 if start is None else _least(_from_front(dim, start), dim - 1)
    end = -1 if stop is None else _greatest(_from_front(dim, stop), -1)
    return begin, _greatest(ceildiv(begin - end, -stride), 0)


def _open_end(bound: DimLike | None, direction: int) -> DimLike | None:
    """None for the sentinels of "to the end" in a direction."""
    if isinstance(bound, int) and (bound >= END if direction > 0 else bound <= -END):
        return None
    return bound


def _from_front(dim: DimLike, bound: DimLike) -> DimLike:
    return bound + dim if _is_negative(bound) else bound


def _is_negative(bound: DimLike) -> bool:
    if isinstance(bound, int):
        return bound < 0
    # a bound like N - 1 is negative for N = 0 only; then the tensor it slices is empty as well
    low, high = bounds(bound, dict.fromkeys(symbols(bound), (1, _FAR)))
    if low >= 0 or high < 0:
        return high < 0
    raise ShapeError(
        f"A slice is bounded by {bound}, which may be negative or not",
        why="negative bounds count from the end, so the size of the slice cannot be told",
        cure="bound the slice by a size of one sign",
    )


def _at_most(a: DimLike, b: DimLike) -> bool:
    """Whether ``a <= b`` for all values of the symbols."""
    difference = b - a
    return bounds(difference, dict.fromkeys(symbols(difference), (0, _FAR)))[0] >= 0


def _least(a: DimLike, b: DimLike) -> DimLike:
    if _at_most(a, b):
        return a
    return b if _at_most(b, a) else dim_min(a, b)


def _greatest(a: DimLike, b: DimLike) -> DimLike:
    if _at_most(a, b):
        return b
    return a if _at_most(b, a) else dim_max(a, b)


def _left_over(
    source: Sequence[DimLike],
    known: Sequence[DimLike],
    target: Sequence[DimLike],
    zero_copies: bool,
) -> DimLike:
    """The elements of `source` divided by those of `known`; equal dimensions cancel."""
    remaining, divisors = list(source), []
    for dim in known:
        if dim in remaining and (dim != 0 or zero_copies):
            remaining.remove(dim)
        else:
            divisors.append(dim)
    total, divisor = product(remaining), product(divisors)
    if isinstance(divisor, int):
        require(
            divisor != 0, f"Reshape to {_text(target)} cannot tell the open dimension of nothing"
        )
        require(
            not isinstance(total, int) or total % divisor == 0,
            f"{_text(source)} does not reshape to {_text(target)}",
            why=f"{product(source)} elements are not a multiple of {product(known)}",
        )
    return floordiv(total, divisor)


def _text(shape: Sequence[DimLike]) -> str:
    return f"({', '.join(map(str, shape))})"


__all__ = [
    "END",
    "expand_shape",
    "index_begin",
    "resolve_reshape",
    "slice_bounds",
    "squeeze_shape",
]

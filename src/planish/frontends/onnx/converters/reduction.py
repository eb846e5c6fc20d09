"""Operators that combine elements along axes: reductions, arg max, cumulative sums, top k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped
from planish.frontends.onnx.converters.sizes import sizes
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.graph.dims import product
from planish.ops import (
    ArgMax,
    ArgMin,
    CumSum,
    OneHot,
    Op,
    Pad,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    Slice,
    TopK,
    ew,
    normalize_axis,
)

LONGEST_PRODUCT = 1 << 14
"""Elements along an axis for which CumProd is written out, in as many rounds as this has bits."""

_Lowering = Callable[[Conversion, Value, tuple[int, ...], bool], Value]


def _direct(kind: Callable[[tuple[int, ...], bool], Op]) -> _Lowering:
    return lambda c, x, axes, keep: c.add(kind(axes, keep), x)


def _largest(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return c.add((ReduceAny if x.dtype is DType.BOOL else ReduceMax)(axes, keep), x)


def _smallest(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return c.add((ReduceAll if x.dtype is DType.BOOL else ReduceMin)(axes, keep), x)


def _l1(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return c.add(ReduceSum(axes, keep), c.aux(ew.Abs(), x))


def _sum_square(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return c.add(ReduceSum(axes, keep), c.aux(ew.Square(), x))


def _l2(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    wide = x if x.dtype.is_float else c.cast(x, DType.FLOAT64)
    root = c.aux(ew.Sqrt(), _sum_square(c, wide, axes, keep))
    return c.cast(root, x.dtype)


def _log_sum(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    if x.dtype.is_integer:
        return c.cast(_log_sum(c, c.cast(x, DType.FLOAT64), axes, keep), x.dtype)
    return c.aux(ew.Log(), c.add(ReduceSum(axes, keep), x))


def _log_sum_exp(c: Conversion, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    """Shifted by the largest element, so that no exponential overflows; infinities stay put."""
    if x.dtype.is_integer:
        return c.cast(_log_sum_exp(c, c.cast(x, DType.FLOAT64), axes, keep), x.dtype)
    top = c.aux(ReduceMax(axes, True), x)
    finite = c.aux(ew.IsFinite(), top)
    shift = c.aux(ew.Mul(), c.cast(finite, x.dtype), c.aux(_finite(), top))
    total = c.aux(ReduceSum(axes, keep), c.aux(ew.Exp(), c.aux(ew.Sub(), x, shift)))
    if not keep:
        shift = c.aux(ReduceSum(axes, False), shift)
    return c.add(ew.Add(), c.aux(ew.Log(), total), shift)


def _finite() -> Op:
    from planish.ops import Clip

    return Clip(-3.0e38, 3.0e38)


_REDUCTIONS: dict[str, _Lowering] = {
    "ReduceSum": _direct(ReduceSum),
    "ReduceMean": _direct(ReduceMean),
    "ReduceProd": _direct(ReduceProd),
    "ReduceMax": _largest,
    "ReduceMin": _smallest,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


@converter(*_REDUCTIONS)
def _reduce_by_attribute(c: Conversion) -> Value:
    # ReduceSum takes its axes as an input since opset 13, the others since 18
    return _reduced(c, c.integers(1, "the list of axes") if c.optional(1) else c.attr("axes"))


def _reduced(c: Conversion, axes: Sequence[int] | None) -> Value:
    x = c.input(0)
    if not axes:
        if (c.attr("noop_with_empty_axes", 0) and axes is not None) or _is_noop(c):
            return _without_axes(c, x)
        axes = range(x.type.rank)
    places = tuple(sorted({normalize_axis(a, x.type.rank) for a in axes}))
    return _REDUCTIONS[c.node.op_type](c, x, places, bool(c.attr("keepdims", 1)))


def _is_noop(c: Conversion) -> bool:
    return bool(c.attr("noop_with_empty_axes", 0)) and c.optional(1) is None


def _without_axes(c: Conversion, x: Value) -> Value:
    """No axis is reduced; what the reduction does to a single element is still done."""
    return _REDUCTIONS[c.node.op_type](c, x, (), True)


@converter("ArgMax", "ArgMin")
def _arg_extreme(c: Conversion) -> Value:
    x = c.input(0)
    kind = ArgMax if c.node.op_type == "ArgMax" else ArgMin
    keep, last = bool(c.attr("keepdims", 1)), bool(c.attr("select_last_index", 0))
    return c.add(kind(c.axis(x.type.rank, 0), keep, DType.INT64, last), x)


@converter("Hardmax")
def _hardmax_of_rows(c: Conversion) -> Value:
    """Before opset 13 all axes from `axis` on are one."""
    x = c.input(0)
    rank = x.type.rank
    axis = c.axis(rank, 1) if rank > 1 else 0
    if all(d == 1 for d in x.shape[axis + 1 :]):
        return _hardmax_along(c, x, axis)
    rows = reshaped(c, x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return reshaped(c, _hardmax_along(c, rows, 1), x.shape)


@converter("Hardmax", since=13)
def _hardmax(c: Conversion) -> Value:
    return _hardmax_along(c, c.input(0), c.axis(c.input(0).type.rank, -1))


def _hardmax_along(c: Conversion, x: Value, axis: int) -> Value:
    best = c.aux(ArgMax(axis, False, DType.INT64, False), x)
    return c.add(OneHot(x.shape[axis], axis), best, c.scalar_like(1, x), c.scalar_like(0, x))


@converter("CumSum")
def _cumulative_sum(c: Conversion) -> Value:
    (axis,) = c.integers(1, "the axis")
    flags = bool(c.attr("exclusive", 0)), bool(c.attr("reverse", 0))
    return c.add(CumSum(axis, *flags), c.input(0))


@converter("CumProd")
def _cumulative_product(c: Conversion) -> Value:
    """Each round doubles the number of elements that every product covers."""
    x = c.input(0)
    axis = normalize_axis(c.integers(1, "the axis")[0], x.type.rank)
    count = x.shape[axis]
    if not isinstance(count, int) or count > LONGEST_PRODUCT:
        raise c.unsupported(f"it multiplies {count} elements, and {LONGEST_PRODUCT} are the limit")
    backwards = bool(c.attr("reverse", 0))
    if c.attr("exclusive", 0):
        x = _shifted(c, x, axis, min(1, count), backwards)
    distance = 1
    while distance < count:
        x = c.aux(ew.Mul(), x, _shifted(c, x, axis, distance, backwards))
        distance *= 2
    return x


def _shifted(c: Conversion, x: Value, axis: int, distance: int, backwards: bool) -> Value:
    """The elements `distance` places further along the axis, ones before them."""
    rank, kept = x.type.rank, x.shape[axis] - distance
    begin = tuple(distance if i == axis and backwards else 0 for i in range(rank))
    size = tuple(kept if i == axis else d for i, d in enumerate(x.shape))
    rest = c.aux(Slice(begin, size, (1,) * rank), x)
    pair = (0, distance) if backwards else (distance, 0)
    return c.aux(Pad(tuple(pair if i == axis else (0, 0) for i in range(rank)), value=1.0), rest)


@converter("TopK")
def _top_k_by_attribute(c: Conversion) -> Sequence[Value]:
    return c.add_node(TopK(c.attr("k"), c.attr("axis", -1)), c.input(0)).outputs


@converter("TopK", since=10)
def _top_k(c: Conversion) -> Sequence[Value]:
    x = c.input(0)
    (k,) = sizes(c, 1, "the number of elements", x.shape[c.axis(x.type.rank, -1)])
    largest, in_order = bool(c.attr("largest", 1)), bool(c.attr("sorted", 1))
    op = TopK(k, c.attr("axis", -1), largest, in_order, DType.INT64)
    return c.add_node(op, c.input(0)).outputs

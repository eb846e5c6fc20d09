"""Reductions, ArgMax, Cumsum, TopK."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.frontends.tensorflow.context import CONVERTERS, Context, Converter, converter
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.base import Op, normalize_axis
from planish.ops.elementwise import ew
from planish.ops.reduce import (
    ArgMax,
    ArgMin,
    CumSum,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    TopK,
)

_REDUCTIONS: dict[str, Callable[..., Op]] = {
    "Sum": ReduceSum,
    "Mean": ReduceMean,
    "Max": ReduceMax,
    "Min": ReduceMin,
    "Prod": ReduceProd,
    "Any": ReduceAny,
    "All": ReduceAll,
}


def _axes(ctx: Context, x: Value, axes: Value) -> tuple[int, ...]:
    found = {normalize_axis(a, x.type.rank) for a in ctx.ints(axes, "axes")}
    return tuple(sorted(found))


def _reduction(kind: Callable[..., Op]) -> Converter:
    def convert(ctx: Context, x: Value, axes: Value) -> Value:
        reduced = _axes(ctx, x, axes)
        if not reduced:
            return x
        return ctx.add(kind(reduced, ctx.attr("keep_dims")), x)

    return convert


for _name, _kind in _REDUCTIONS.items():
    CONVERTERS[_name] = _reduction(_kind)


@converter("EuclideanNorm")
def _euclidean_norm(ctx: Context, x: Value, axes: Value) -> Value:
    squares = ctx.add(ew.Square(), x, part="squares")
    total = ctx.add(ReduceSum(_axes(ctx, x, axes), ctx.attr("keep_dims")), squares, part="sum")
    if x.dtype.is_float:
        return ctx.add(ew.Sqrt(), total)
    wide = ctx.cast(total, DType.FLOAT64, part="widen")
    return ctx.cast(ctx.add(ew.Sqrt(), wide, part="root"), x.dtype, part="")


@converter("ArgMax", "ArgMin")
def _arg(ctx: Context, x: Value, axis: Value) -> Value:
    kind = ArgMax if ctx.node.op == "ArgMax" else ArgMin
    position = normalize_axis(ctx.integer(axis, "axis"), x.type.rank)
    return ctx.add(kind(position, False, ctx.dtype("output_type")), x)


@converter("Cumsum")
def _cumsum(ctx: Context, x: Value, axis: Value) -> Value:
    position = normalize_axis(ctx.integer(axis, "axis"), x.type.rank)
    return ctx.add(CumSum(position, ctx.attr("exclusive"), ctx.attr("reverse")), x)


@converter("TopKV2")
def _top_k_v2(ctx: Context, x: Value, k: Value) -> Sequence[Value]:
    dtype = ctx.dtype("index_type")
    return ctx.add_node(TopK(ctx.integer(k, "k"), index_dtype=dtype), x)

"""Batch normalization, Softmax, local response normalization."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.layout import (
    from_channels_last,
    is_channels_first,
    main_part,
    to_channels_last,
)
from planish.graph.dims import DimLike, dim_max, product
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.elementwise import ew
from planish.ops.normalization import BatchNorm, LogSoftmax, Lrn, Softmax
from planish.ops.reduce import ReduceMean
from planish.ops.shape import Dims


@converter("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _batch_norm(ctx: Context, x: Value, *parameters: Value) -> Sequence[Value | None]:
    if ctx.attr("is_training"):
        return [*_batch_statistics(ctx, x, *parameters), *[None] * 3]
    parameters = parameters[:4]
    x = to_channels_last(ctx, x)
    result = ctx.add(BatchNorm(ctx.attr("epsilon")), x, *parameters, part=main_part(ctx))
    return [from_channels_last(ctx, result), parameters[2], parameters[3], None, None, None]


def _batch_statistics(
    ctx: Context, x: Value, scale: Value, offset: Value, *given_statistics: Value
) -> tuple[Value, Value, Value]:
    """Normalization by mean and variance of the input itself, and these.

    Layer normalization is often written with it, on an input reshaped so that each row is a
    channel.
    """
    given = x.dtype
    x = ctx.cast(x, scale.dtype, part="widen")
    rank = x.type.rank
    channel = 1 if is_channels_first(ctx) else rank - 1
    axes = tuple(a for a in range(rank) if a != channel)
    per_channel = tuple(x.shape[a] if a == channel else 1 for a in range(rank))
    mean = ctx.add(ReduceMean(axes, True), x, part="mean")
    centred = ctx.add(ew.Sub(), x, mean, part="centre")
    squares = ctx.add(ew.Square(), centred, part="squares")
    variance = ctx.add(ReduceMean(axes, True), squares, part="variance")
    epsilon = ctx.constant(ctx.attr("epsilon"), x.dtype, part="epsilon")
    shifted = ctx.add(ew.Add(), variance, epsilon, part="shift")
    factor = ctx.add(ew.Rsqrt(), shifted, part="rsqrt")
    scaled = ctx.add(ew.Mul(), factor, ctx.reshape(scale, per_channel, part="scale"), part="factor")
    spread = ctx.add(ew.Mul(), centred, scaled, part="product")
    last = "" if given is x.dtype else "add"
    result = ctx.add(ew.Add(), spread, ctx.reshape(offset, per_channel, part="offset"), part=last)
    count = product([x.shape[a] for a in axes])
    unbiased = ctx.add(ew.Mul(), variance, _bessel(ctx, count, x.dtype), part="unbiased")
    found = [
        ctx.reshape(v, (x.shape[channel],), part=f"{name}/flat")
        for v, name in ((mean, "mean"), (unbiased, "unbiased"))
    ]
    old_op = ctx.node.op == "FusedBatchNorm"
    newness = 1.0 if old_op else ctx.attr("exponential_avg_factor")
    if newness != 1.0:  # a running average
        share = ctx.constant(newness, x.dtype, part="share")
        rest = ctx.constant(1.0 - newness, x.dtype, part="rest")
        found = [
            ctx.add(
                ew.Add(),
                ctx.add(ew.Mul(), new, share, part="new"),
                ctx.add(ew.Mul(), old, rest, part="old"),
                part="average",
            )
            for new, old in zip(found, given_statistics, strict=True)
        ]
    return ctx.cast(result, given, part=""), found[0], found[1]


def _bessel(ctx: Context, count: DimLike, dtype: DType) -> Value:
    """What makes the variance of `count` elements unbiased: ``count / (count - 1)``."""
    if isinstance(count, int):
        return ctx.constant(count / max(count - 1, 1), dtype, part="bessel")
    many, fewer = (
        ctx.cast(ctx.add(Dims(dim, DType.INT64), part=name), dtype, part=f"{name}/number")
        for dim, name in ((count, "count"), (dim_max(count - 1, 1), "fewer"))
    )
    return ctx.add(ew.Div(), many, fewer, part="bessel")


@converter("BatchNormWithGlobalNormalization")
def _batch_norm_old(
    ctx: Context, x: Value, mean: Value, variance: Value, offset: Value, scale: Value
) -> Value:
    if not ctx.attr("scale_after_normalization"):
        scale = ctx.constant([1.0] * int(scale.type.elements), scale.dtype)  # type: ignore[arg-type]
    return ctx.add(BatchNorm(ctx.attr("variance_epsilon")), x, scale, offset, mean, variance)


@converter("Softmax")
def _softmax(ctx: Context, x: Value) -> Value:
    return ctx.add(Softmax(x.type.rank - 1), x)


@converter("LogSoftmax")
def _log_softmax(ctx: Context, x: Value) -> Value:
    return ctx.add(LogSoftmax(x.type.rank - 1), x)


@converter("LRN")
def _lrn(ctx: Context, x: Value) -> Value:
    op = Lrn(ctx.attr("depth_radius"), ctx.attr("bias"), ctx.attr("alpha"), ctx.attr("beta"))
    return ctx.add(op, x)

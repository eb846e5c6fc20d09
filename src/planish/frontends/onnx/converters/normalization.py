"""Normalizations: batch, layer, instance, group, local response, softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import channels_first, channels_last, reshaped
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.graph.dims import product
from planish.ops import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    Lrn,
    Op,
    ReduceMax,
    ReduceMean,
    ReduceSum,
    Reshape,
    Select,
    Softmax,
    ew,
)


@converter("BatchNormalization", since=7)
def _batch_norm(c: Conversion) -> Value:
    return _batch_norm_of_channels(c)


def _batch_norm_of_channels(c: Conversion) -> Value:
    if not c.attr("spatial", 1):
        raise c.unsupported("it has its own statistics for each position (spatial=0)")
    return _batch_norm_inference(c)


@converter("BatchNormalization")
def _batch_norm_6(c: Conversion) -> Value:
    if not c.attr("is_test", 0):
        raise c.unsupported("it is in training mode", cure="export the model in evaluation mode")
    return _batch_norm_of_channels(c)


@converter("BatchNormalization", since=14)
def _batch_norm_14(c: Conversion) -> Sequence[Value]:
    if c.attr("training_mode", 0):
        return _batch_norm_training(c)
    return [_batch_norm_inference(c)]


def _batch_norm_training(c: Conversion) -> Sequence[Value]:
    """Normalizes by the statistics of its input, and updates the running ones by them."""
    x, momentum = c.input(0), c.attr("momentum", 0.9)
    last = channels_last(c, x)
    axes = tuple(range(last.type.rank - 1))
    mean = c.aux(ReduceMean(axes), last)
    spread = c.aux(ew.Square(), c.aux(ew.Sub(), last, mean))
    variance = c.aux(ReduceMean(axes), spread)
    scale, offset = (_parameter(c, x, c.input(i)) for i in (1, 2))
    y = c.add(BatchNorm(c.attr("epsilon", 1e-5)), last, scale, offset, mean, variance)
    running = []
    for index, current in ((3, mean), (4, variance)):
        old = c.input(index)
        kept = c.aux(ew.Mul(), old, c.scalar_like(momentum, old))
        added = c.cast(current, old.dtype)
        added = c.aux(ew.Mul(), added, c.scalar_like(1 - momentum, old))
        running.append(c.aux(ew.Add(), kept, added))
    return [channels_first(c, y), *running]


def _batch_norm_inference(c: Conversion) -> Value:
    x, *parameters = (c.input(i) for i in range(5))
    values = [_parameter(c, x, value) for value in parameters]
    y = c.add(BatchNorm(c.attr("epsilon", 1e-5)), channels_last(c, x), *values)
    return channels_first(c, y)


def _parameter(c: Conversion, x: Value, value: Value) -> Value:
    """Parameters may be of x's dtype or float32."""
    return value if value.dtype in (x.dtype, DType.FLOAT32) else c.cast(value, x.dtype)


@converter("InstanceNormalization")
def _instance_norm(c: Conversion) -> Value:
    x = c.input(0)
    scale, offset = (_parameter(c, x, c.input(i)) for i in (1, 2))
    y = c.add(InstanceNorm(c.attr("epsilon", 1e-5)), channels_last(c, x), scale, offset)
    return channels_first(c, y)


@converter("LayerNormalization")
def _layer_norm(c: Conversion) -> Sequence[Value]:
    x, scale = c.input(0), _parameter(c, c.input(0), c.input(1))
    offset = c.optional(2)
    offset = c.constant(0, x.dtype) if offset is None else _parameter(c, x, offset)
    axis, epsilon = c.axis(x.type.rank, -1), c.attr("epsilon", 1e-5)
    y = c.add(LayerNorm(axis, epsilon), x, scale, offset)
    if not c.wants(1) and not c.wants(2):
        return [y]
    return [y, *_statistics(c, x, tuple(range(axis, x.type.rank)), epsilon)]


def _statistics(
    c: Conversion, x: Value, axes: tuple[int, ...], epsilon: float
) -> tuple[Value, Value]:
    """Mean and inverse of the standard deviation over axes, which stay as 1."""
    wide = c.cast(x, DType.FLOAT32 if c.attr("stash_type", 1) == 1 else x.dtype)
    mean = c.aux(ReduceMean(axes, True), wide)
    spread = c.aux(ew.Square(), c.aux(ew.Sub(), wide, mean))
    variance = c.aux(ReduceMean(axes, True), spread)
    shifted = c.aux(ew.Add(), variance, c.scalar_like(epsilon, variance))
    return mean, c.aux(ew.Rsqrt(), shifted)


@converter("GroupNormalization")
def _group_norm(c: Conversion) -> Value:
    x, scale, offset = (c.input(i) for i in range(3))
    groups, channels = c.attr("num_groups", 1), x.shape[1]
    if not isinstance(channels, int) or channels % groups:
        raise c.shape_error(f"GroupNormalization of {channels} channels in {groups} groups")
    merged = reshaped(c, x, (x.shape[0], groups, product(x.shape[1:]) // groups))
    one, zero = c.constant(1, x.dtype), c.constant(0, x.dtype)
    y = reshaped(c, c.add(LayerNorm(2, c.attr("epsilon", 1e-5)), merged, one, zero), x.shape)
    per_channel = (channels, *(1,) * (x.type.rank - 2))
    scale, offset = (
        reshaped(c, _each_channel(c, c.cast(v, x.dtype), channels), per_channel)
        for v in (scale, offset)
    )
    return c.aux(ew.Add(), c.aux(ew.Mul(), y, scale), offset)


def _each_channel(c: Conversion, value: Value, channels: int) -> Value:
    """Opset 18 has a parameter for each group, opset 21 one for each channel."""
    if value.shape == (channels,):
        return value
    (groups,) = value.shape
    ones = c.constant(np.ones((1, channels // int(groups))), value.dtype)  # type: ignore[arg-type]
    wide = c.aux(ew.Mul(), reshaped(c, value, (groups, 1)), ones)
    return reshaped(c, wide, (channels,))


@converter("LRN")
def _lrn(c: Conversion) -> Value:
    size = c.attr("size", 1)
    if size % 2 == 0:
        raise c.unsupported(f"its window of {size} channels is even")
    # ONNX divides alpha by the window's size, our op does not
    op = Lrn(size // 2, c.attr("bias", 1.0), c.attr("alpha", 1e-4) / size, c.attr("beta", 0.75))
    return channels_first(c, c.add(op, channels_last(c, c.input(0))))


@converter("LpNormalization")
def _lp_normalization(c: Conversion) -> Value:
    x = c.input(0)
    axes = (c.axis(x.type.rank, -1),)
    if c.attr("p", 2) == 1:
        norm = c.aux(ReduceSum(axes, True), c.aux(ew.Abs(), x))
    else:
        norm = c.aux(ew.Sqrt(), c.aux(ReduceSum(axes, True), c.aux(ew.Square(), x)))
    # a vector of zeros stays one
    nothing = c.aux(ew.Equal(), norm, c.scalar_like(0, x))
    return c.add(ew.Div(), x, c.aux(Select(), nothing, c.scalar_like(1, x), norm))


@converter("GlobalLpPool")
def _global_lp_pool(c: Conversion) -> Value:
    x = c.input(0)
    axes, p = tuple(range(2, x.type.rank)), c.attr("p", 2)
    size = c.aux(ew.Abs(), x)
    if p == 2:
        return c.add(ew.Sqrt(), c.aux(ReduceSum(axes, True), c.aux(ew.Square(), size)))
    total = c.aux(ReduceSum(axes, True), c.aux(ew.Pow(), size, c.scalar_like(p, x)))
    return c.add(ew.Pow(), total, c.scalar_like(1 / p, x))


@converter("Softmax", "LogSoftmax")
def _softmax_of_rows(c: Conversion) -> Value:
    """Before opset 13 all axes from `axis` on are one."""
    x, kind = c.input(0), _softmax_kind(c)
    rank = x.type.rank
    axis = c.axis(rank, 1) if rank > 1 else 0
    if all(d == 1 for d in x.shape[axis + 1 :]):
        return c.add(kind(axis), x)
    rows = c.aux(Reshape((product(x.shape[:axis]), product(x.shape[axis:]))), x)
    return c.aux(Reshape(x.shape), c.add(kind(1), rows))


@converter("Softmax", "LogSoftmax", since=13)
def _softmax(c: Conversion) -> Value:
    return c.add(_softmax_kind(c)(c.axis(c.input(0).type.rank, -1)), c.input(0))


def _softmax_kind(c: Conversion) -> Callable[[int], Op]:
    return Softmax if c.node.op_type == "Softmax" else LogSoftmax


@converter("GlobalMaxPool")
def _global_max_pool(c: Conversion) -> Value:
    x = channels_last(c, c.input(0))
    return channels_first(c, c.add(ReduceMax(tuple(range(1, x.type.rank - 1)), True), x))

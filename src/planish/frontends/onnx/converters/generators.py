"""Operators that make tensors from shapes and numbers: fill, range, identity and triangle."""

from __future__ import annotations

import math

import numpy as np
import onnx

from planish.frontends.onnx.context import KNOWN_LIMIT, Conversion
from planish.frontends.onnx.converters.layout import iota, reshaped
from planish.frontends.onnx.converters.sizes import size, sizes
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.graph.dims import bounds, ceildiv, dim_max, symbols
from planish.ops import BroadcastTo, Cast, Reshape, Select, ew


@converter("ConstantOfShape")
def _constant_of_shape(c: Conversion) -> Value:
    value = np.asarray(c.attr("value", np.zeros(1, np.float32))).reshape(())
    shape = sizes(c, 0, "the shape")
    known = [d for d in shape if isinstance(d, int)]
    if len(known) == len(shape) and math.prod(known) <= KNOWN_LIMIT:
        return c.graph.constant(np.full(known, value), c.name)
    return c.add(BroadcastTo(shape), c.constant(value))


@converter("Range")
def _range(c: Conversion) -> Value:
    start, limit, delta = (c.input(i) for i in range(3))
    known = [c.known(v) for v in (start, limit, delta)]
    numbers = [k.reshape(-1)[0].item() for k in known if k is not None and k.size]
    if len(numbers) == len(known):
        return _known_range(c, *numbers)
    if any(
        k is None and v.content is None for k, v in zip(known, (start, limit, delta), strict=True)
    ):
        return _measured_range(c, start, limit, delta)
    first, end, step = (_scalar(c, i) for i in range(3))
    if not isinstance(step, int) or step == 0:
        raise c.unsupported("its step depends on the shapes of the inputs")
    span = ceildiv(end - first, step) if step > 0 else ceildiv(first - end, -step)
    # shapes make ranges like 0 … N, which are not negative; max() would hide that N is N
    size = span if _is_size(span) else dim_max(span, 0)
    places = iota(c, size, start.dtype)
    if step != 1:
        places = c.aux(ew.Mul(), places, c.scalar_like(step, places))
    return c.add(ew.Add(), places, reshaped(c, start, ()))


def _measured_range(c: Conversion, *bounds: Value) -> Value:
    """A range whose length depends on the data."""
    start, limit, delta = (reshaped(c, v, ()) for v in bounds)
    span = c.aux(ew.Sub(), limit, start)
    if start.dtype.is_float:
        count = c.cast(c.aux(ew.Ceil(), c.aux(ew.Div(), span, delta)), DType.INT64)
    else:
        # the ceiling of a / b is -floor(-a / b)
        count = c.aux(ew.Neg(), c.aux(ew.FloorDiv(), c.aux(ew.Neg(), span), delta))
        count = c.cast(count, DType.INT64)
    count = c.aux(ew.Maximum(), count, c.constant(0, DType.INT64))
    places = c.cast(iota(c, size(c, count)), start.dtype)
    return c.add(ew.Add(), c.aux(ew.Mul(), places, delta), start)


def _known_range(c: Conversion, start: float, limit: float, delta: float) -> Value:
    dtype = c.input(0).dtype
    if delta == 0:
        raise c.shape_error("Range has the step 0")
    count = max(math.ceil((limit - start) / delta), 0)
    if count <= KNOWN_LIMIT:
        return c.graph.constant((start + np.arange(count) * delta).astype(dtype.numpy), c.name)
    places = c.aux(ew.Mul(), c.cast(iota(c, count), dtype), c.scalar_like(delta, c.input(0)))
    return c.add(ew.Add(), places, c.scalar_like(start, c.input(0)))


def _is_size(span: DimLike) -> bool:
    return bounds(span, dict.fromkeys(symbols(span), (1, 2**62)))[0] >= 0


def _scalar(c: Conversion, index: int) -> DimLike:
    (dim,) = c.dims(index, "a bound of the range")
    return dim


@converter("EyeLike")
def _eye_like(c: Conversion) -> Value:
    x = c.input(0)
    rows, columns = _grid(c, x)
    dtype = x.dtype
    if c.has("dtype"):
        dtype = DType.of(onnx.helper.tensor_dtype_to_np_dtype(c.attr("dtype")))
    k = c.constant(c.attr("k", 0), DType.INT64)
    return c.add(Cast(dtype), c.aux(ew.Equal(), columns, c.aux(ew.Add(), rows, k)))


@converter("Trilu")
def _trilu(c: Conversion) -> Value:
    x = c.input(0)
    rows, columns = _grid(c, x)
    if (k := c.optional(1)) is not None:
        rows = c.aux(ew.Add(), rows, reshaped(c, c.cast(k, DType.INT64), ()))
    inside = ew.GreaterEqual() if c.attr("upper", 1) else ew.LessEqual()
    zero = c.constant(0, x.dtype)
    return c.add(Select(), c.aux(inside, columns, rows), x, zero)


def _grid(c: Conversion, x: Value) -> tuple[Value, Value]:
    """The row numbers ``[rows, 1]`` and column numbers ``[columns]`` of the last two axes."""
    if x.type.rank < 2:
        raise c.shape_error(f"{c.node.op_type} needs matrices, not {x.type}")
    rows, columns = x.shape[-2:]
    return c.aux(Reshape((rows, 1)), iota(c, rows)), iota(c, columns)

"""How to apply ops that compute: elementwise, products, windows, reductions."""

from __future__ import annotations

import numpy as np

import planish.ops as ops
from helpers.fuzz.draft import FLOATS, INTEGERS, NUMBERS, Draft, Skip, is_static
from helpers.fuzz.recipe import Domain, Ref
from helpers.fuzz.table import SPECS, Choice, Spec, axes_of, axis_of, image, spec, window_of
from planish.graph.types import DType
from planish.ops.base import OPS
from planish.ops.elementwise import Elementwise

F32, BF16 = DType.FLOAT32, DType.BFLOAT16
I64, I32, BOOL = DType.INT64, DType.INT32, DType.BOOL


# ---- elementwise ---------------------------------------------------------------------------

_ACCEPTED = {
    "any": tuple(DType),
    "number": NUMBERS,
    "float": FLOATS,
    "integer": INTEGERS,
    "bool": (BOOL,),
}

_DOMAINS = {
    **dict.fromkeys(("log", "sqrt", "rsqrt", "reciprocal"), Domain(0.2, 4.0)),
    **dict.fromkeys(("asin", "acos", "atanh"), Domain(-0.9, 0.9)),
    "log1p": Domain(-0.8, 4.0),
    "acosh": Domain(1.1, 5.0),
}
"""Numbers inside an op's domain, for inputs made for it."""


def elementwise(kind: type[Elementwise]) -> Spec:
    """The spec of an op without attributes."""

    def choose(d: Draft) -> Choice:
        domain = _DOMAINS.get(kind.name)
        if domain and d.chance(0.5):
            x = d.input(d.shape(d.integer(1, 4)), d.dtype(FLOATS), domain)
        else:
            x = d.pick(_ACCEPTED[kind.accepts])
        others = [d.beside(x) for _ in range(kind.arity - 1)]
        if len(others) == 1 and d.chance(0.3) and kind.name != "prelu":
            return kind(), (others[0], x)
        return kind(), (x, *others)

    return choose


@spec("cast")
def _cast(d: Draft) -> Choice:
    if d.chance(0.5):
        return ops.Cast(d.one_of(INTEGERS)), (d.pick(FLOATS),)  # fractions are cut off
    to = d.dtype(tuple(DType))
    return ops.Cast(to), (d.pick(where=lambda v: v.dtype is not to),)


@spec("select")
def _select(d: Draft) -> Choice:
    x = d.pick()
    shape = d.value(x).shape

    def fits(v) -> bool:
        pairs = zip(reversed(v.shape), reversed(shape), strict=False)
        return all(a == b or 1 in (a, b) for a, b in pairs)

    condition = d.pick((BOOL,), where=fits, shape=shape)
    return ops.Select(), (condition, x, d.beside(x))


@spec("clip")
def _clip(d: Draft) -> Choice:
    x = d.pick(NUMBERS)
    low = float(d.integer(-6, 2)) if d.value(x).dtype.value[0] != "u" else float(d.integer(0, 2))
    low, high = d.one_of([(low, low + d.integer(1, 6)), (0.0, 6.0), (low, float("inf"))])
    return ops.Clip(low, high), (x,)


@spec("leaky_relu", "elu")
def _with_alpha(d: Draft) -> Choice:
    alpha = d.one_of([0.1, 0.01, 0.5, 1.0])
    return d.one_of([ops.LeakyRelu, ops.Elu])(alpha), (d.pick(FLOATS),)


@spec("hard_sigmoid")
def _hard_sigmoid(d: Draft) -> Choice:
    return d.one_of([ops.HardSigmoid(), ops.HardSigmoid(1 / 6, 0.5)]), (d.pick(FLOATS),)


@spec("gelu")
def _gelu(d: Draft) -> Choice:
    return ops.Gelu(d.chance(0.5)), (d.pick(FLOATS),)


# ---- products and windows ------------------------------------------------------------------


@spec("conv")
def _conv(d: Draft) -> Choice:
    if not d.entries and d.chance(0.3):  # a graph around one op
        return _bottleneck(d) if d.chance(0.5) else _wide_conv(d, BF16)
    if d.chance(0.2):
        return _wide_conv(d)
    x = image(d, (F32,) if d.chance(0.8) else (BF16,) if d.chance(0.5) else NUMBERS)
    window, strides, padding, dilations = window_of(d, x)
    channels = int(d.value(x).shape[-1])  # type: ignore[arg-type]
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    groups = 1 if d.chance(0.5) else d.one_of([channels, d.one_of(divisors)])
    filters = groups * (d.integer(1, 2) if groups == channels else d.integer(1, 20))
    if filters > 70:
        raise Skip
    inner = channels // groups
    scale = 1 / np.sqrt(inner * np.prod(window))
    w = d.weight((*window, inner, filters), d.value(x).dtype, Domain(), scale)
    return ops.Conv(strides, padding, dilations, groups), (x, w)


def _wide_conv(d: Draft, dtype: DType = F32) -> Choice:
    """A convolution with enough channels and pixels for Winograd's transforms to pay."""
    size = [2, d.integer(12, 13), d.integer(12, 13), d.integer(32, 35)]
    x = d.input(size, dtype)
    window = d.one_of([(3, 3), (3, 3), (1, 3), (5, 5)])
    scale = 1 / np.sqrt(size[-1] * np.prod(window))
    w = d.weight((*window, size[-1], d.integer(32, 35)), dtype, Domain(), scale)
    padding = tuple((d.integer(0, n // 2), d.integer(0, n // 2)) for n in window)
    return ops.Conv((1, 1), padding, (1, 1), 1), (x, w)


def _bottleneck(d: Draft) -> Choice:
    """The last convolution of an inverted bottleneck, or of a depthwise and a 1x1 one."""
    size = d.integer(7, 14), d.integer(7, 14)
    wide = d.integer(4, 40)
    y = d.input([d.batch, *size, d.integer(3, 20)], F32)
    if d.chance(0.7):
        y = d.applied(ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), y, _pointwise(d, y, wide))
        y = d.applied(ops.ew.Add(), y, d.weight((wide,), F32))
        y = d.applied(ops.Clip(0.0, 6.0), y) if d.chance(0.5) else y
    channels = int(d.value(y).shape[-1])  # type: ignore[arg-type]
    window, stride = d.one_of([1, 3, 3, 5]), d.integer(1, 2)
    pads = ((d.integer(0, window // 2), d.integer(0, window // 2)),) * 2
    filters = d.weight((window, window, 1, channels), F32, Domain(), 1 / window)
    y = d.applied(ops.Conv((stride, stride), pads, (1, 1), channels), y, filters)
    y = d.applied(ops.ew.Relu(), y) if d.chance(0.5) else y
    op = ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
    return op, (y, _pointwise(d, y, d.integer(3, 20)))


def _pointwise(d: Draft, image: Ref, filters: int) -> Ref:
    channels = int(d.value(image).shape[-1])  # type: ignore[arg-type]
    return d.weight((1, 1, channels, filters), F32, Domain(), 1 / np.sqrt(channels))


@spec("conv_transpose")
def _conv_transpose(d: Draft) -> Choice:
    x = image(d, (F32,) if d.chance(0.8) else NUMBERS)
    spatial = [int(n) for n in d.value(x).shape[1:-1]]  # type: ignore[arg-type]
    channels = int(d.value(x).shape[-1])  # type: ignore[arg-type]
    groups = d.one_of([1, 1, d.one_of([g for g in (2, 3, 4, channels) if channels % g == 0])])
    filters = groups * d.integer(1, 6)
    window = [d.one_of([1, 2, 3, 4]) for _ in spatial]
    strides = tuple(d.one_of([1, 2, 2, 3]) for _ in spatial)
    dilations = tuple(d.one_of([1, 1, 2]) for _ in spatial)
    before = tuple(d.integer(0, w - 1) for w in window)
    whole = [
        (n - 1) * s + (w - 1) * k + 1
        for n, s, w, k in zip(spatial, strides, window, dilations, strict=True)
    ]
    size = tuple(max(n - b - d.integer(0, 1), 1) for n, b in zip(whole, before, strict=True))
    inner = channels // groups
    w = d.weight((*window, inner, filters), d.value(x).dtype, Domain(), 1 / np.sqrt(4 * inner))
    kind = OPS["conv_transpose"]
    return kind(size, strides, before, dilations, groups), (x, w)  # type: ignore[call-arg]


@spec("max_pool")
def _max_pool(d: Draft) -> Choice:
    x = image(d)
    window, strides, padding, dilations = window_of(d, x)
    inside = zip(padding, window, strict=True)
    padding = tuple((min(a, w - 1), min(b, w - 1)) for (a, b), w in inside)
    return ops.MaxPool(tuple(window), strides, padding, dilations), (x,)


@spec("avg_pool")
def _avg_pool(d: Draft) -> Choice:
    x = image(d, FLOATS)
    window, strides, padding, _ = window_of(d, x)
    return ops.AvgPool(tuple(window), strides, padding, d.chance(0.5)), (x,)


@spec("resize")
def _resize(d: Draft) -> Choice:
    mode = d.one_of(["nearest", "linear", "cubic"])
    x = image(d, NUMBERS if mode == "nearest" else FLOATS)
    spatial = [int(n) for n in d.value(x).shape[1:-1]]  # type: ignore[arg-type]
    size = tuple(d.one_of([n, 2 * n, d.integer(1, 12)]) for n in spatial)
    coordinates = d.one_of(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
    rounding = d.one_of(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
    outside = mode == "cubic" and d.chance(0.3)
    smooth = mode != "nearest" and d.chance(0.3)
    op = ops.Resize(size, mode, coordinates, rounding, exclude_outside=outside, antialias=smooth)
    return op, (x,)


@spec("mat_mul")
def _mat_mul(d: Draft) -> Choice:
    if d.chance(0.3):
        return _deep_product(d) if d.chance(0.4) else _attention(d)
    dtypes = (F32,) if d.chance(0.8) else NUMBERS
    a = d.pick(dtypes, (2, 4), lambda v: is_static(v.shape[-1]) and is_static(v.shape[-2]))
    if d.chance(0.3):
        a = d.pick(dtypes, (2, 4), lambda v: is_static(v.shape[-1]))
    shape, dtype = d.value(a).shape, d.value(a).dtype
    transpose_a = d.chance(0.2) and is_static(shape[-2])
    transpose_b = d.chance(0.4)
    inner = shape[-2] if transpose_a else shape[-1]
    columns = d.integer(1, 40)
    matrix = [columns, inner] if transpose_b else [inner, columns]
    batch = shape[:-2] if d.chance(0.3) else ()
    whole = [*batch, *matrix]
    if all(map(is_static, whole)) and d.chance(0.7):
        b = d.weight(whole, dtype, Domain(), 1 / np.sqrt(max(int(inner), 1)))  # type: ignore[arg-type]
    else:
        b = d.input(whole, dtype)
    return ops.MatMul(transpose_a, transpose_b), (a, b)


def _deep_product(d: Draft) -> Choice:
    """A product that is deep enough for Strassen's algorithm to pay, of whole register tiles."""
    depth, columns = d.one_of([512, 544, 576]), d.one_of([32, 64])
    a = d.input([d.batch, d.integer(20, 33), depth], F32)
    transpose_b = d.chance(0.4)
    shape = [columns, depth] if transpose_b else [depth, columns]
    return ops.MatMul(False, transpose_b), (a, d.weight(shape, F32, Domain(), depth**-0.5))


def _attention(d: Draft) -> Choice:
    """The second product of an attention, after the other ops of it: one task together."""
    heads, length, size = (d.batch, d.integer(1, 4)), d.integer(3, 20), d.integer(4, 40)
    q = d.input([*heads, d.integer(1, 20), size], F32)
    k, v = (d.input([*heads, length, size], F32) for _ in range(2))
    scores = d.applied(ops.MatMul(transpose_b=True), q, k)
    scaled = d.applied(ops.ew.Mul(), scores, d.constant(np.float32(size**-0.5)))
    return ops.MatMul(), (d.applied(ops.Softmax(-1), scaled), v)


# ---- normalizations ------------------------------------------------------------------------


def _vector(d: Draft, ref: Ref, domain: Domain | None = None) -> Ref:
    channels = d.value(ref).shape[-1]
    if not is_static(channels):
        raise Skip
    dtype = d.value(ref).dtype if d.chance(0.7) else F32
    return d.weight((int(channels),), dtype, domain)  # type: ignore[arg-type]


@spec("batch_norm")
def _batch_norm(d: Draft) -> Choice:
    x = d.pick(FLOATS, (1, 4))
    scale, offset, mean = (_vector(d, x) for _ in range(3))
    return ops.BatchNorm(1e-3), (x, scale, offset, mean, _vector(d, x, Domain(0.3, 2.0)))


@spec("layer_norm")
def _layer_norm(d: Draft) -> Choice:
    x = d.pick(FLOATS, (1, 4))
    shape = d.value(x).shape
    axis = axis_of(d, len(shape))
    inner = shape[axis:]
    if not all(map(is_static, inner)):
        raise Skip
    wanted = [int(n) for n in inner]  # type: ignore[arg-type]
    dtype = d.value(x).dtype if d.chance(0.7) else F32
    return ops.LayerNorm(axis, 1e-2), (x, d.weight(wanted, dtype), d.weight(wanted, dtype))


@spec("instance_norm")
def _instance_norm(d: Draft) -> Choice:
    x = d.pick(FLOATS, (3, 4))
    return ops.InstanceNorm(1e-2), (x, _vector(d, x), _vector(d, x))


@spec("softmax", "log_softmax", "quantized_softmax")
def _softmax(d: Draft) -> Choice:
    x = d.pick(FLOATS, (1, 5))
    axis = axis_of(d, d.value(x).type.rank)
    if d.chance(0.2):
        return ops.QuantizedSoftmax(axis, d.one_of([15, 255])), (x,)
    return d.one_of([ops.Softmax, ops.LogSoftmax])(axis), (x,)


@spec("lrn")
def _lrn(d: Draft) -> Choice:
    return ops.Lrn(d.integer(0, 3), 1.0, 0.1, d.one_of([0.5, 0.75])), (d.pick(FLOATS, (1, 4)),)


# ---- along axes ----------------------------------------------------------------------------


def _reduction(kind: type[ops.Reduction], dtypes: tuple[DType, ...]) -> None:
    def choose(d: Draft) -> Choice:
        x = d.pick(dtypes, (1, 5))
        return kind(axes_of(d, d.value(x).type.rank), d.chance(0.5)), (x,)

    SPECS[kind.name] = choose


for _kind in (ops.ReduceSum, ops.ReduceMean, ops.ReduceMax, ops.ReduceMin, ops.ReduceProd):
    _reduction(_kind, NUMBERS)
for _kind in (ops.ReduceAny, ops.ReduceAll):
    _reduction(_kind, (BOOL,))


@spec("arg_max", "arg_min")
def _arg(d: Draft) -> Choice:
    x = d.pick(NUMBERS, (1, 5))
    kind = d.one_of([ops.ArgMax, ops.ArgMin])
    axis, dtype = axis_of(d, d.value(x).type.rank), d.one_of([I64, I32])
    return kind(axis, d.chance(0.4), dtype, d.chance(0.3)), (x,)


@spec("cum_sum")
def _cum_sum(d: Draft) -> Choice:
    x = d.pick(NUMBERS, (1, 4))
    return ops.CumSum(axis_of(d, d.value(x).type.rank), d.chance(0.4), d.chance(0.4)), (x,)


@spec("top_k")
def _top_k(d: Draft) -> Choice:
    x = d.pick(NUMBERS, (1, 4))
    shape = d.value(x).shape
    axis = axis_of(d, len(shape))
    if not is_static(shape[axis]) or shape[axis] == 0:
        raise Skip
    k = d.integer(1, int(shape[axis]))  # type: ignore[arg-type]
    return ops.TopK(k, axis, d.chance(0.6), d.chance(0.7), d.one_of([I64, I32])), (x,)

"""How to apply the rest: boxes, samples, integers of 8 bits, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np

import planish.ops as ops
from helpers.fuzz.draft import FLOATS, INTEGERS, NUMBERS, Draft
from helpers.fuzz.recipe import Domain, Ref
from helpers.fuzz.table import Choice, image, spec, window_of
from planish.graph.types import DType
from planish.ops.base import OPS, window_output

F32, I64, I32, BOOL = DType.FLOAT32, DType.INT64, DType.INT32, DType.BOOL


# ---- detection -----------------------------------------------------------------------------


@spec("combined_non_max_suppression")
def _combined(d: Draft) -> Choice:
    count, classes = d.integer(1, 12), d.integer(1, 4)
    each = d.one_of([1, classes])
    boxes = d.input([d.batch, count, each, 4], F32, Domain(-0.1, 1.1))
    scores = d.input([d.batch, count, classes], F32, Domain(0.0, 1.0))
    keep = (d.integer(1, 5), d.integer(1, 9))
    op = ops.CombinedNonMaxSuppression(*keep, 0.4, 0.2, d.chance(0.5), d.chance(0.5))
    return op, (boxes, scores)


@spec("non_max_suppression")
def _single(d: Draft) -> Choice:
    count = d.integer(1, 15)
    boxes = d.input([count, 4], F32, Domain(0.0, 1.0))
    scores = d.input([count], F32, Domain(0.0, 1.0))
    sigma = d.one_of([0.0, 0.0, 0.5])
    return ops.NonMaxSuppression(d.integer(1, 8), 0.4, 0.2, sigma, True), (boxes, scores)


@spec("select_boxes")
def _select_boxes(d: Draft) -> Choice:
    count, classes = d.integer(1, 9), d.integer(1, 3)
    boxes = d.input([d.batch, count, 1, 4], F32, Domain(0.0, 1.0))
    scores = d.input([d.batch, count, classes], F32, Domain(0.0, 1.0))
    return OPS["select_boxes"](d.integer(1, 5), 0.4, 0.2), (boxes, scores)  # type: ignore[call-arg]


# ---- of a size that data decide --------------------------------------------------------------


@spec("non_zero")
def _non_zero(d: Draft) -> Choice:
    return OPS["non_zero"](), (d.pick(ranks=(1, 4)),)


@spec("unique")
def _unique(d: Draft) -> Choice:
    # not of numbers that rounding errors could make equal, or different
    x = d.pick((*INTEGERS, BOOL), (1, 1), shape=[d.integer(1, 40)])
    return OPS["unique"](d.chance(0.5)), (x,)  # type: ignore[call-arg]


# ---- integers of 8 bits ----------------------------------------------------------------------

BYTES = (DType.INT8, DType.UINT8)


def _byte(d: Draft, shape, dtype: DType) -> Ref:
    return d.weight(shape, dtype, Domain(-100, 100))


@spec("mat_mul_integer")
def _mat_mul_integer(d: Draft) -> Choice:
    inner, columns = d.integer(1, 40), d.integer(1, 40)
    rows = [d.batch, d.integer(1, 8)]
    a = d.input([*rows, inner], d.one_of(BYTES), Domain(-100, 100))
    turned, kind = d.chance(0.4), d.one_of(BYTES)
    b = _byte(d, [columns, inner] if turned else [inner, columns], kind)
    zeros = (_byte(d, [], d.value(a).dtype), _byte(d, d.one_of([[], [columns]]), kind))
    op = OPS["mat_mul_integer"](False, turned)  # type: ignore[call-arg]
    return op, (a, b, *zeros)


@spec("conv_integer")
def _conv_integer(d: Draft) -> Choice:
    if not d.entries and d.chance(0.3):  # a graph around one op
        return _wide_conv_integer(d)
    shape = [d.batch, d.integer(3, 8), d.integer(3, 8), d.one_of([1, 3, 4, 8, 17])]
    x = d.input(shape, d.one_of(BYTES), Domain(-100, 100))
    window, strides, padding, dilations = window_of(d, x)
    channels, filters, kind = int(shape[-1]), d.integer(1, 20), d.one_of(BYTES)  # type: ignore[arg-type]
    groups = channels if d.chance(0.3) else 1
    filters *= groups if filters * groups <= 40 else channels if groups > 1 else 1
    w = _byte(d, [*window, channels // groups, filters], kind)
    zeros = (_byte(d, [], d.value(x).dtype), _byte(d, d.one_of([[], [filters]]), kind))
    op = OPS["conv_integer"](strides, padding, dilations, groups)  # type: ignore[call-arg]
    return op, (x, w, *zeros)


def _wide_conv_integer(d: Draft) -> Choice:
    """A convolution with enough channels and pixels for Winograd's transforms to pay."""
    size = [2, d.integer(12, 13), d.integer(12, 13), d.integer(32, 35)]
    x, filters, kind = (
        d.input(size, d.one_of(BYTES), Domain(-100, 100)),
        d.integer(32, 35),
        DType.INT8,
    )
    w = _byte(d, [3, 3, size[-1], filters], kind)
    zeros = (_byte(d, [], d.value(x).dtype), _byte(d, d.one_of([[], [filters]]), kind))
    padding = tuple((d.integer(0, 1), d.integer(0, 1)) for _ in range(2))
    return OPS["conv_integer"]((1, 1), padding, (1, 1), 1), (x, w, *zeros)  # type: ignore[call-arg]


@spec("mat_mul_float8")
def _mat_mul_float8(d: Draft) -> Choice:
    inner, columns, finite = d.integer(1, 40), d.integer(1, 40), Domain(0, 63)
    a = d.focus  # what was encoded
    known = d.value(a) if a else None
    if a and known and known.dtype is DType.INT8 and known.type.rank > 1:
        inner = d.size(known.shape[-1])
    else:
        a = d.input([d.batch, d.integer(1, 8), inner], DType.INT8, finite)
    turned = d.chance(0.4)
    b = d.weight([columns, inner] if turned else [inner, columns], DType.INT8, finite)
    return OPS["mat_mul_float8"](False, turned), (a, b)  # type: ignore[call-arg]


def _number(d: Draft, value: float, dtype: DType = F32) -> Ref:
    return d.constant(np.asarray(value, dtype.numpy))


@spec("quantize")
def _quantize(d: Draft) -> Choice:
    x = d.pick((F32,))
    to = d.one_of([DType.INT8, DType.UINT8, DType.INT16])
    low = 0 if to is DType.UINT8 else -127
    op = OPS["quantize"](to, low, 127)  # type: ignore[call-arg]
    return op, (x, _number(d, d.one_of([0.1, 0.25, 0.031])), _number(d, d.one_of([0.0, 3.0])))


@spec("dequantize")
def _dequantize(d: Draft) -> Choice:
    x = d.pick(INTEGERS)
    return OPS["dequantize"](), (x, _number(d, 0.1), _number(d, d.one_of([0.0, 5.0])))


@spec("encode_float8")
def _encode_float8(d: Draft) -> Choice:
    return OPS["encode_float8"](), (d.pick((F32,)), _number(d, d.one_of([0.25, 1.0, 0.3])))


@spec("decode_float8")
def _decode_float8(d: Draft) -> Choice:
    return OPS["decode_float8"](), (d.pick((F32, DType.INT8)), _number(d, 0.25))


@spec("snap_to_levels")
def _snap_to_levels(d: Draft) -> Choice:
    x = d.pick(FLOATS)
    scale, dtype = d.one_of([4.0, 10.0, 0.5]), d.value(x).dtype
    op = OPS["snap_to_levels"](d.chance(0.5))  # type: ignore[call-arg]
    return op, (x, _number(d, scale, dtype), _number(d, 1 / scale, dtype))


@spec("fake_quant")
def _fake_quant(d: Draft) -> Choice:
    least, levels = d.one_of([-6.0, -1.0, 0.0]), d.one_of([15, 255])
    scale = np.float32(d.one_of([2.0, 6.0]) - least) / np.float32(levels)
    zero = np.rint(np.float32(-least) / scale)
    numbers = (-zero * scale, (levels - zero) * scale, scale, 1 / scale, zero)
    op = OPS["fake_quant"](d.chance(0.5))  # type: ignore[call-arg]
    return op, (d.pick((F32,)), *(_number(d, float(n)) for n in numbers))


# ---- samples ---------------------------------------------------------------------------------


@spec("max_pool_indices")
def _max_pool_indices(d: Draft) -> Choice:
    x = image(d, NUMBERS)
    window, strides, padding, dilations = window_of(d, x)
    inside = zip(padding, window, strict=True)
    padding = tuple((min(a, w - 1), min(b, w - 1)) for (a, b), w in inside)
    kind = OPS["max_pool_indices"]
    return kind(tuple(window), strides, padding, dilations), (x,)  # type: ignore[call-arg]


@spec("fold")
def _fold(d: Draft) -> Choice:
    window = tuple(d.integer(1, 3) for _ in range(2))
    strides, dilations = (tuple(d.one_of([1, 1, 2]) for _ in window) for _ in range(2))
    before = tuple(d.integer(0, w - 1) for w in window)
    positions = [d.integer(1, 5) for _ in window]
    size = tuple(
        max((n - 1) * s + (w - 1) * k + 1 - b - d.integer(0, 1), 1)
        for n, s, w, k, b in zip(positions, strides, window, dilations, before, strict=True)
    )
    taps = int(np.prod(window))
    x = d.input([d.batch, *positions, taps, d.one_of([1, 3, 8, 17])], d.dtype(NUMBERS))
    return OPS["fold"](size, window, strides, before, dilations), (x,)  # type: ignore[call-arg]


@spec("grid_sample")
def _grid_sample(d: Draft) -> Choice:
    x = image(d, (F32, DType.FLOAT16), (4, 4))
    mode = d.one_of(["nearest", "linear", "cubic"])
    border = d.one_of(["zeros", "border", "reflection"])
    size = [d.integer(1, 6), d.integer(1, 6)]
    grid = d.input([d.value(x).shape[0], *size, 2], F32, Domain(-1.3, 1.3))
    return OPS["grid_sample"](mode, border, d.chance(0.5)), (x, grid)  # type: ignore[call-arg]


def _regions(d: Draft, ref: Ref, scale: float) -> tuple[Ref, Ref]:
    """Boxes inside an image, and the image of each."""
    count, images = d.integer(1, 4), d.array(ref).shape[0]
    corners = d.rng.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([corners, corners + d.rng.uniform(0.1, 0.6, (count, 2))], 1) * scale
    numbers = d.rng.integers(0, 1 if d.symbols else images, count)
    return d.constant(boxes.astype(np.float32)), d.constant(numbers.astype(np.int32))


@spec("crop_and_resize")
def _crop_and_resize(d: Draft) -> Choice:
    x = image(d, (F32,), (4, 4))
    size = (d.integer(1, 6), d.integer(1, 6))
    op = OPS["crop_and_resize"](size, "linear", d.one_of([0.0, 1.0]))  # type: ignore[call-arg]
    return op, (x, *_regions(d, x, 1.0))


@spec("roi_align")
def _roi_align(d: Draft) -> Choice:
    x = image(d, (F32,), (4, 4))
    size = (d.integer(1, 4), d.integer(1, 4))
    mode, sampling = d.one_of(["avg", "max"]), d.integer(0, 2)
    op = OPS["roi_align"](size, 0.5, sampling, mode, d.chance(0.5))  # type: ignore[call-arg]
    return op, (x, *_regions(d, x, 12.0))


@spec("deform_sample")
def _deform_sample(d: Draft) -> Choice:
    x = image(d, (F32,), (4, 4))
    window, strides, padding, dilations = window_of(d, x)
    channels = int(d.value(x).shape[-1])  # type: ignore[arg-type]
    groups = d.one_of([g for g in (1, 2, 3, channels) if channels % g == 0])
    size = [
        window_output(n, w, s, k, *p)
        for n, w, s, k, p in zip(
            d.value(x).shape[1:-1], window, strides, dilations, padding, strict=True
        )
    ]
    taps = int(np.prod(window)) * groups
    lead = [d.value(x).shape[0], *size]
    more = [d.input([*lead, 2 * taps], F32)]
    if d.chance(0.5):
        more.append(d.input([*lead, taps], F32))
    kind = OPS["deform_sample"]
    return kind(tuple(window), strides, padding, dilations, groups), (x, *more)  # type: ignore[call-arg]


# ---- recurrent -------------------------------------------------------------------------------


@spec("rnn", "gru", "lstm")
def _recurrent(d: Draft) -> Choice:
    kind: Any = OPS[d.one_of(["rnn", "gru", "lstm"])]
    reverse = d.one_of([(False,), (True,), (False, True)])
    directions, hidden = len(reverse), d.one_of([1, 3, 8, 17])
    steps, dtype = d.integer(1, 5), d.one_of([F32, F32, DType.FLOAT64])
    functions = ("sigmoid", "tanh", "tanh") if kind.functions > 1 else ("tanh",)
    options: dict[str, Any] = {}
    if kind.name == "gru":
        options["reset_after"] = d.chance(0.5)
    if kind.name == "lstm":
        options |= {"input_forget": d.chance(0.2), "peepholes": d.chance(0.3)}
    activations = tuple((name, 0.0, 0.0) for name in functions[: kind.functions])
    lengths = d.chance(0.3)
    op = kind(reverse, activations, lengths=lengths, **options)
    x = d.input([steps, d.batch, directions, kind.gates, hidden], dtype)
    weights = d.weight([directions, hidden, kind.gates, hidden], dtype, Domain(-0.5, 0.5))
    inputs = [x, weights]
    inputs += [d.input([directions, d.batch, hidden], dtype) for _ in range(kind.states)]
    inputs += [d.weight(shape, dtype) for shape in op.extras(directions, hidden)]
    if lengths:
        inputs.append(d.input([d.batch], I32, Domain(0, steps)))
    return op, tuple(inputs)

"""Operators of the domain com.microsoft: what ONNX Runtime's optimizer and exporters write.

Their definitions are in ONNX Runtime's ContribOperators.md. Attention has a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import iota, reshaped
from planish.frontends.onnx.registry import converter, find_converter
from planish.graph import DType, Value
from planish.graph.dims import product
from planish.ops import (
    Clip,
    Elu,
    Gather,
    Gelu,
    HardSigmoid,
    LayerNorm,
    LeakyRelu,
    MatMul,
    ReduceMean,
    ReduceSum,
    Transpose,
    ew,
)

DOMAIN = "com.microsoft"


@converter("Gelu", domain=DOMAIN)
def _gelu(c: Conversion) -> Value:
    return c.add(Gelu(), c.input(0))


@converter("BiasGelu", domain=DOMAIN)
def _bias_gelu(c: Conversion) -> Value:
    return c.add(Gelu(), c.aux(ew.Add(), c.input(0), c.input(1)))


@converter("FastGelu", domain=DOMAIN)
def _fast_gelu(c: Conversion) -> Value:
    return c.add(Gelu(approximate=True), _plus(c, c.input(0), c.optional(1)))


@converter("QuickGelu", domain=DOMAIN)
def _quick_gelu(c: Conversion) -> Value:
    x, alpha = c.input(0), c.attr("alpha", 1.702)
    gate = c.aux(ew.Sigmoid(), c.aux(ew.Mul(), x, c.scalar_like(alpha, x)))
    return c.add(ew.Mul(), x, gate)


@converter("BiasAdd", domain=DOMAIN)
def _bias_add(c: Conversion) -> Value:
    return c.add(ew.Add(), c.aux(ew.Add(), c.input(0), c.input(1)), c.input(2))


def _plus(c: Conversion, x: Value, other: Value | None) -> Value:
    return x if other is None else c.aux(ew.Add(), x, other)


@converter("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def _fused_matmul(c: Conversion) -> Value:
    sides = []
    for index, letter in enumerate("AB"):
        x = c.input(index)
        if c.attr(f"transBatch{letter}", 0):  # the rows stand before the batch dimensions
            rank = x.type.rank
            x = c.aux(Transpose((*range(1, rank - 1), 0, rank - 1)), x)
        if x.type.rank < 2:
            raise c.unsupported(f"its input {index} is a vector")
        sides.append(x)
    y = c.add(MatMul(bool(c.attr("transA", 0)), bool(c.attr("transB", 0))), *sides)
    alpha = c.attr("alpha", 1.0)
    return y if alpha == 1.0 else c.aux(ew.Mul(), y, c.scalar_like(alpha, y))


@converter("FusedGemm", domain=DOMAIN)
def _fused_gemm(c: Conversion) -> Value:
    gemm = find_converter("Gemm", "", 13)
    assert gemm is not None
    y = gemm(c)
    assert isinstance(y, Value)
    given = tuple(c.attr(f"activation_{name}", 0.0) for name in ("alpha", "beta", "gamma"))
    return _activated(c, y, c.attr("activation", ""), given)


@converter("FusedConv", domain=DOMAIN)
def _fused_conv(c: Conversion) -> Value:
    conv = find_converter("Conv", "", 11)
    assert conv is not None
    y = conv(c)
    assert isinstance(y, Value)
    return _activated(
        c, _plus(c, y, c.optional(3)), c.attr("activation", ""), c.attr("activation_params", ())
    )


def _activated(c: Conversion, x: Value, name: str, given: Sequence[float]) -> Value:
    if name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish"):
        return c.aux(getattr(ew, name)(), x)
    kinds = {"LeakyRelu": (LeakyRelu, 1), "HardSigmoid": (HardSigmoid, 2), "Clip": (Clip, 2)}
    kinds["Elu"] = (Elu, 1)
    if not name:
        return x
    if name not in kinds or len(given) < kinds[name][1]:
        raise c.unsupported(f"its activation {name!r} with the parameters {tuple(given)}")
    kind, count = kinds[name]
    return c.aux(kind(*given[:count]), x)


# ---- normalizations ------------------------------------------------------------------------


@converter("SimplifiedLayerNormalization")
@converter("SimplifiedLayerNormalization", domain=DOMAIN)
def _simplified_layer_norm(c: Conversion) -> Sequence[Value]:
    x = c.input(0)
    axes = tuple(range(c.axis(x.type.rank, -1), x.type.rank))
    y, inverse = root_mean_square_norm(c, x, c.input(1), axes, c.attr("epsilon", 1e-5))
    return [y, inverse]


def root_mean_square_norm(
    c: Conversion, x: Value, scale: Value, axes: tuple[int, ...], epsilon: float
) -> tuple[Value, Value]:
    """``x / sqrt(mean(x²) + epsilon) * scale``, and the inverse of the root, in float32."""
    wide = c.cast(x, DType.FLOAT32) if x.dtype is not DType.FLOAT64 else x
    mean = c.aux(ReduceMean(axes, True), c.aux(ew.Square(), wide))
    inverse = c.aux(ew.Rsqrt(), c.aux(ew.Add(), mean, c.scalar_like(epsilon, mean)))
    normal = c.cast(c.aux(ew.Mul(), wide, inverse), scale.dtype)
    return c.add(ew.Mul(), normal, scale), inverse


@converter("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def _skip_simplified_layer_norm(c: Conversion) -> Sequence[Value]:
    total = _plus(c, c.aux(ew.Add(), c.input(0), c.input(1)), c.optional(3))
    axes = (total.type.rank - 1,)
    y, inverse = root_mean_square_norm(c, total, c.input(2), axes, c.attr("epsilon", 1e-5))
    return _normal_outputs(c, y, inverse, total)


@converter("SkipLayerNormalization", domain=DOMAIN)
def _skip_layer_norm(c: Conversion) -> Sequence[Value]:
    total = _plus(c, c.aux(ew.Add(), c.input(0), c.input(1)), c.optional(4))
    y = _normalized(c, total, c.input(2), c.optional(3), c.attr("epsilon", 1e-12))
    return _normal_outputs(c, y, None, total)


def _normal_outputs(
    c: Conversion, y: Value, inverse: Value | None, total: Value
) -> Sequence[Value]:
    """The output, statistics that only training reads, and the sum that was normalized."""
    if c.wants(1) or (c.wants(2) and inverse is None):
        raise c.unsupported("its statistics are used")
    return [y, y, y if inverse is None else inverse, total]


def _normalized(
    c: Conversion, x: Value, scale: Value, offset: Value | None, epsilon: float
) -> Value:
    offset = c.constant(0, x.dtype) if offset is None else offset
    return c.add(LayerNorm(x.type.rank - 1, epsilon), x, scale, offset)


@converter("EmbedLayerNormalization", domain=DOMAIN)
def _embed_layer_norm(c: Conversion) -> Sequence[Value]:
    """Word, position and segment embeddings, summed and normalized; the mask's row lengths."""
    words = c.input(0)
    total = c.aux(Gather(0), c.input(2), words)
    if (positions := c.optional(8)) is not None:
        places = c.aux(Gather(0), c.input(3), positions)
    else:
        places = c.aux(Gather(0), c.input(3), iota(c, words.shape[1]))
    total = c.aux(ew.Add(), total, places)
    if (segments := c.optional(1)) is not None:
        total = c.aux(ew.Add(), total, c.aux(Gather(0), c.input(4), segments))
    y = _normalized(c, total, c.input(5), c.optional(6), c.attr("epsilon", 1e-12))
    if (mask := c.optional(7)) is not None:
        lengths = c.aux(ReduceSum((1,), False), c.cast(mask, DType.INT32))
    else:
        lengths = c.constant(0, DType.INT32)
        if c.wants(1):
            raise c.unsupported("it gives the lengths of a mask, and has none")
    return [y, lengths, total]


@converter("GroupNorm", domain=DOMAIN)
def _group_norm(c: Conversion) -> Value:
    """Channels last, of one group after the other; then, if it says so, SiLU."""
    x, scale, offset = (c.input(i) for i in range(3))
    if not c.attr("channels_last", 1) or x.type.rank != 4:
        raise c.unsupported(f"it normalizes {x.type} with the channels first")
    n, height, width, channels = x.shape
    groups = c.attr("groups", 1)
    if not isinstance(channels, int) or channels % groups:
        raise c.shape_error(f"GroupNorm of {channels} channels in {groups} groups")
    own = channels // groups
    split = reshaped(c, x, (n, height * width, groups, own))
    grouped = c.aux(Transpose((0, 2, 1, 3)), split)
    flat = reshaped(c, grouped, (n, groups, product((height, width, own))))
    one, zero = c.constant(1, x.dtype), c.constant(0, x.dtype)
    y = c.add(LayerNorm(2, c.attr("epsilon", 1e-5)), flat, one, zero)
    y = c.aux(Transpose((0, 2, 1, 3)), reshaped(c, y, (n, groups, height * width, own)))
    y = reshaped(c, y, x.shape)
    y = c.aux(ew.Mul(), y, c.cast(scale, x.dtype))
    y = c.aux(ew.Add(), y, c.cast(offset, x.dtype))
    return c.aux(ew.Silu(), y) if c.attr("activation", 0) else y

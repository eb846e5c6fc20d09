"""What each op is to precision: may it be lowered, and what becomes of its input's range.

A test insists that every op has a kind. What has none, because it was added elsewhere, stays in
float32.
"""

from __future__ import annotations

from enum import Enum

from planish.graph.graph import Node
from planish.graph.types import DType
from planish.ops import (
    ArgMax,
    ArgMin,
    AvgPool,
    BatchNorm,
    BroadcastTo,
    Cast,
    Clip,
    CombinedNonMaxSuppression,
    Concat,
    Conv,
    ConvInteger,
    ConvTranspose,
    CropAndResize,
    CumSum,
    DecodeFloat8,
    DeformSample,
    Dequantize,
    Dims,
    Elementwise,
    EncodeFloat8,
    ExactDiv,
    FakeQuant,
    Fold,
    Gather,
    GatherNd,
    GridSample,
    Gru,
    HardSigmoid,
    Identity,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    Lrn,
    Lstm,
    MatMul,
    MatMulFloat8,
    MatMulInteger,
    MaxPool,
    MaxPoolIndices,
    NonMaxSuppression,
    NonZero,
    OneHot,
    OnnxFallback,
    Op,
    Pad,
    Quantize,
    QuantizedSoftmax,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    Reshape,
    Resize,
    Rnn,
    RoiAlign,
    ScatterNd,
    SelectBoxes,
    ShapeOf,
    Slice,
    SnapToLevels,
    Softmax,
    Tile,
    TopK,
    Transpose,
    Unique,
    ew,
)


class Kind(Enum):
    """What an op does with precision."""

    PRODUCT = "sums of products: what lowering is for"
    NORM = "results of a known scale, whatever the input's"
    WINDOW = "averages and choices of a few values: results in the input's range"
    POINT = "elementwise"
    MOVE = "moves elements: lowered where its neighbours are"
    READ = "has no float32 result: reads what it is given, lowered or not"
    KEEP = "stays in float32"


KINDS: dict[type[Op], Kind] = {
    **dict.fromkeys((Conv, ConvTranspose, MatMul), Kind.PRODUCT),
    **dict.fromkeys((BatchNorm, InstanceNorm, LayerNorm, LogSoftmax, Lrn, Softmax), Kind.NORM),
    **dict.fromkeys(
        (
            AvgPool,
            CropAndResize,
            Fold,
            GridSample,
            MaxPool,
            MaxPoolIndices,
            ReduceMax,
            ReduceMean,
            ReduceMin,
            Resize,
            RoiAlign,
        ),
        Kind.WINDOW,
    ),
    **dict.fromkeys(
        (
            BroadcastTo,
            Concat,
            Gather,
            GatherNd,
            Identity,
            OneHot,
            Pad,
            Reshape,
            ScatterNd,
            Slice,
            Tile,
            TopK,
            Transpose,
        ),
        Kind.MOVE,
    ),
    **dict.fromkeys((ArgMax, ArgMin, Dims, ReduceAll, ReduceAny, ShapeOf), Kind.READ),
    **dict.fromkeys(
        (
            CombinedNonMaxSuppression,
            ConvInteger,
            CumSum,
            DecodeFloat8,
            DeformSample,
            Dequantize,
            EncodeFloat8,
            ExactDiv,
            FakeQuant,
            Gru,
            Lstm,
            MatMulFloat8,
            MatMulInteger,
            NonMaxSuppression,
            NonZero,
            OnnxFallback,
            Quantize,
            QuantizedSoftmax,
            ReduceProd,
            ReduceSum,
            Rnn,
            SelectBoxes,
            SnapToLevels,
            Unique,
        ),
        Kind.KEEP,
    ),
}
"""Kinds of all ops but the elementwise ones that are not listed, which are `Kind.POINT`."""

WHY_KEPT: dict[type[Op], str] = {
    **dict.fromkeys(
        (CombinedNonMaxSuppression, NonMaxSuppression, SelectBoxes),
        "boxes and scores are compared exactly",
    ),
    **dict.fromkeys((NonZero, Unique), "which elements there are depends on exact values"),
    **dict.fromkeys((CumSum, ReduceSum, ReduceProd), "sums and products may leave the range"),
    **dict.fromkeys((Rnn, Gru, Lstm), "the state of a recurrence adds up its errors"),
    **dict.fromkeys(
        (Quantize, QuantizedSoftmax, Dequantize, SnapToLevels, FakeQuant, ExactDiv),
        "levels are exact in float32",
    ),
    **dict.fromkeys(
        (DecodeFloat8, EncodeFloat8, MatMulFloat8), "FP8 is made of float32, and becomes float32"
    ),
    DeformSample: "it takes sampling coordinates",
    OnnxFallback: "it is run as the model has it",
}
"""Why an op stays in float32; for the build report."""

OBEDIENT = (CumSum, ReduceSum, ReduceProd)
"""Ops kept for their range alone: they are lowered where a user insists."""

DETECTION = (CombinedNonMaxSuppression, NonMaxSuppression, SelectBoxes, NonZero, Unique)
"""Ops that compare exactly: what leads to them elementwise stays in float32."""

COORDINATES: dict[type[Op], tuple[int, ...]] = {
    GridSample: (1,),
    CropAndResize: (1,),
    RoiAlign: (1,),
    DeformSample: (1, 2),
}
"""Which inputs of sampling ops are places: what leads to them stays in float32."""

FLOAT32_INPUTS: dict[type[Op], tuple[int, ...]] = {
    GridSample: (1,),
    CropAndResize: (1,),
    RoiAlign: (1,),
    BatchNorm: (1, 2, 3, 4),
    LayerNorm: (1, 2),
    InstanceNorm: (1, 2),
}
"""Inputs that stay in float32 though the op is lowered: places, and parameters, which are small."""

BOUNDED = (
    ew.Sigmoid,
    ew.Tanh,
    ew.Erf,
    ew.Sign,
    ew.Sin,
    ew.Cos,
    ew.Atan,
    ew.Atan2,
    ew.Softsign,
    HardSigmoid,
)
"""Functions whose results are of the order of 1 whatever their input."""

POWERS = (ew.Exp, ew.Expm1, ew.Square, ew.SquaredDifference, ew.Pow, ew.Sinh, ew.Cosh)
"""Functions that leave the range of halves soon; where their results are summed, certainly."""

SUMS = (ReduceSum, ReduceMean, ReduceProd, CumSum, AvgPool)
"""Ops whose sums of powers are kept in float32, the powers too."""


def kind_of(node: Node) -> Kind:
    """The kind of a node's op."""
    op = node.op
    if isinstance(op, Cast) and op.to is not DType.FLOAT32:
        return Kind.READ
    known = KINDS.get(type(op))
    if known is not None:
        return known
    if not isinstance(op, Elementwise):
        return Kind.KEEP
    return Kind.POINT if node.output.dtype is DType.FLOAT32 else Kind.READ


def limits(node: Node) -> tuple[float, ...]:
    """Numbers among a node's attributes that act like constants."""
    op = node.op
    if isinstance(op, Pad) and op.mode == "constant":
        return (op.value,)
    # an upper limit that is too large limits nothing; a lower one is an epsilon
    return (op.low,) if isinstance(op, Clip) and abs(op.low) < 1 else ()


def float32_inputs(node: Node) -> list[int]:
    """The inputs of dtype float32 that follow the node's precision."""
    apart = FLOAT32_INPUTS.get(type(node.op), ())
    return [i for i, v in enumerate(node.inputs) if v.dtype is DType.FLOAT32 and i not in apart]


def has_float32_work(node: Node) -> bool:
    """Whether a node reads or writes float32 that could be lowered."""
    return bool(float32_inputs(node)) or any(v.dtype is DType.FLOAT32 for v in node.outputs)

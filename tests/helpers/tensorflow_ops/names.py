"""The TensorFlow ops that an engine must run: none of them may be missing from the tests."""

from __future__ import annotations

CORE = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 ArgMax ArgMin Asin Asinh Atan Atanh AvgPool AvgPool3D BatchMatMul
    BatchMatMulV2 BiasAdd Cast Ceil ClipByValue CombinedNonMaxSuppression ConcatV2 Const Conv2D
    Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cos Cosh DataFormatVecPermute DepthToSpace
    DepthwiseConv2dNative Div Einsum Elu Equal Erf Exp ExpandDims FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars Fill Floor FloorDiv FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
    FusedConv2DBiasActivation GatherV2 Greater GreaterEqual Identity IdentityN LeakyRelu Less
    LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool MaxPool3D Maximum
    Mean Min Minimum Mul Neg OnesLike Pack Pad Pow Prod QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 Range ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape
    ResizeBilinear ResizeNearestNeighbor Round Rsqrt Select SelectV2 Selu Shape Sigmoid Sign Sin
    Sinh Slice Snapshot Softmax Softplus Softsign SpaceToDepth Split Sqrt Square SquaredDifference
    Squeeze StopGradient StridedSlice Sub Sum Tan Tanh Tile TopKV2 Transpose Unpack VariableV2
    ZerosLike
    """.split()  # noqa: SIM905
)
"""What every converter of TensorFlow graphs is expected to take."""

FURTHER = frozenset(
    """
    PadV2 MirrorPad GatherNd ScatterNd Where NonMaxSuppressionV3 NonMaxSuppressionV4
    NonMaxSuppressionV5 CropAndResize SpaceToBatchND BatchToSpaceND Cumsum OneHot ResizeBicubic Any
    All QuantizeAndDequantizeV4 FakeQuantWithMinMaxVarsPerChannel Mod LRN SplitV Roll ReverseV2 Size
    Rank BroadcastTo
    """.split()  # noqa: SIM905
)
"""What else users' graphs are full of, and would break into pieces over."""

NEIGHBOURS = (
    frozenset(
        """
    Atan2 BatchMatMulV3 BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs ConjugateTranspose
    DataFormatDimMap DivNoNan EnsureShape Erfc EuclideanNorm Expm1 FloorMod GatherNd Inv Invert
    InvertPermutation IsFinite IsInf IsNan L2Loss LeftShift LinSpace Log1p MatrixBandPart MaxPoolV2
    MulNoNan
    NotEqual RightShift Rint ShapeN TensorScatterAdd TensorScatterMax TensorScatterMin
    TensorScatterSub TensorScatterUpdate TruncateDiv TruncateMod Xdivy Xlog1py Xlogy
    """.split()  # noqa: SIM905
    )
    - CORE
    - FURTHER
)
"""Ops beside them that the frontend converts too."""

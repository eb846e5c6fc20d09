"""Converters of convolution, pooling, products, reductions and normalizations, by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.onnx_graph import compare_op, model, node, runtime
from planish.errors import ShapeError

RNG = np.random.default_rng(2)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


IMAGE = floats(2, 6, 9, 8)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 1], "pads": [1, 0, 2, 1]},
        {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2], "kernel_shape": [3, 2]},
        {"auto_pad": "VALID", "strides": [3, 3]},
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv(attributes: dict, groups: int) -> None:
    weights, bias = floats(12, 6 // groups, 3, 2), floats(12)
    inputs = [IMAGE, weights, bias]
    compare_op("Conv", inputs, constant=[1, 2], opset=11, group=groups, **attributes)


def test_conv_of_computed_filters() -> None:
    compare_op("Conv", [IMAGE, floats(4, 6, 3, 3)], symbolic=False, pads=[1] * 4)


def test_conv_whose_bias_is_no_vector() -> None:
    """PyTorch's exporter gives 3-D convolutions without a bias zeros in two columns."""
    x, w, zeros = floats(1, 2, 4, 5, 4), floats(6, 2, 3, 3, 3), np.zeros((6, 2), np.float32)
    plain = model([node("Conv", "x w", "y")], {"x": (x.dtype, x.shape)}, ["y"], {"w": w})
    expected = runtime(plain, {"x": x})
    compare_op("Conv", [x, w, zeros], constant=[1, 2], expected=expected)
    with pytest.raises(ShapeError, match="has a bias"):
        compare_op("Conv", [x, w, zeros + 1], constant=[1, 2], expected=expected)


@pytest.mark.parametrize("spatial", [1, 3])
def test_conv_of_other_ranks(spatial: int) -> None:
    x, w = floats(2, 4, *(7,) * spatial), floats(6, 2, *(3,) * spatial)
    compare_op("Conv", [x, w], constant=[1], group=2, strides=[2] * spatial)


POOLS = [
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 0, 0], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attributes", POOLS)
def test_max_pool(attributes: dict) -> None:
    compare_op("MaxPool", [IMAGE], opset=12, **attributes)


def test_max_pool_with_dilations() -> None:
    compare_op("MaxPool", [IMAGE], opset=12, kernel_shape=[2, 3], dilations=[2, 3])


@pytest.mark.parametrize("attributes", POOLS)
def test_average_pool(attributes: dict) -> None:
    compare_op("AveragePool", [IMAGE], **attributes)
    if "auto_pad" not in attributes:  # ONNX Runtime does not count automatic padding
        compare_op("AveragePool", [IMAGE], count_include_pad=1, **attributes)


def test_lp_pool() -> None:
    compare_op("LpPool", [IMAGE], kernel_shape=[2, 3], strides=[2, 2], p=3)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_global_pool(op_type: str, shape: tuple[int, ...]) -> None:
    compare_op(op_type, [floats(*shape)])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    compare_op("MatMul", [floats(*a), floats(*b)], symbolic=False)


def test_matmul_integer() -> None:
    a, b = RNG.integers(0, 255, (3, 4)).astype(np.uint8), RNG.integers(-9, 9, (4, 5)).astype("i1")
    compare_op("MatMulInteger", [a, b, np.uint8(7), np.int8(2)])


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(opset: int, trans_a: int, trans_b: int) -> None:
    a, b = floats(*((4, 3) if trans_a else (3, 4))), floats(*((5, 4) if trans_b else (4, 5)))
    flags = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": 2.0}
    compare_op("Gemm", [a, b, floats(5)], constant=[1, 2], opset=opset, symbolic=False, **flags)


def test_gemm_without_offset() -> None:
    compare_op("Gemm", [floats(3, 4), floats(4, 5)], symbolic=False)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("ij,jk", [(3, 4), (4, 5)]),
        ("bij,bjk->bki", [(2, 3, 4), (2, 4, 5)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("ij->ji", [(3, 4)]),
        ("ijk->j", [(2, 3, 4)]),
        ("i,i->", [(3,), (3,)]),
        ("bi,ij,bj->b", [(2, 3), (3, 4), (2, 4)]),
        ("ijk,k->ij", [(2, 3, 4), (4,)]),
        ("bnd,ndh->bnh", [(2, 3, 4), (3, 4, 5)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    compare_op("Einsum", [floats(*s) for s in shapes], symbolic=False, equation=equation)


REDUCTIONS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"]
REDUCTIONS += ["ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"]


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("axes", [[1], [-1, 1], None])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduce(op_type: str, axes: list[int] | None, keepdims: int) -> None:
    x = np.abs(floats(2, 3, 4)) + 0.5
    attribute = {"keepdims": keepdims} | ({"axes": axes} if axes else {})
    compare_op(op_type, [x], opset=11, **attribute)
    inputs = [x, ints(*axes)] if axes else [x]
    compare_op(op_type, inputs, constant=[1], opset=18, keepdims=keepdims)


def test_reduce_over_no_axes_does_nothing_if_asked() -> None:
    for axes in ([ints()], []):
        compare_op("ReduceSum", [floats(2, 3), *axes], constant=[1], noop_with_empty_axes=1)


def test_log_sum_exp_does_not_overflow() -> None:
    x = np.array([[1000.0, 999.0], [-1000.0, -1001.0]], np.float32)
    expected = [np.logaddexp(x[:, :1], x[:, 1:])]
    compare_op("ReduceLogSumExp", [x, ints(1)], constant=[1], expected=expected)


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_arg_extremes(op_type: str, last: int) -> None:
    x = RNG.integers(0, 3, (2, 5, 4)).astype(np.float32)
    compare_op(op_type, [x], axis=1, keepdims=0, select_last_index=last)
    compare_op(op_type, [x], axis=-1, select_last_index=last)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sum(exclusive: int, reverse: int) -> None:
    flags = {"exclusive": exclusive, "reverse": reverse}
    compare_op("CumSum", [floats(3, 4), np.int64(1)], constant=[1], **flags)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(largest: int) -> None:
    x = floats(3, 7)
    compare_op("TopK", [x, ints(3)], constant=[1], outputs=2, opset=11, largest=largest)
    if largest:
        compare_op("TopK", [x], outputs=2, opset=9, k=3, axis=1)


def test_hardmax() -> None:
    compare_op("Hardmax", [floats(2, 3, 4)], axis=1, opset=13)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_batch_norm(opset: int, shape: tuple[int, ...]) -> None:
    inputs = [floats(*shape), floats(3), floats(3), floats(3), np.abs(floats(3)) + 0.1]
    compare_op("BatchNormalization", inputs, constant=[1, 2, 3, 4], opset=opset, epsilon=1e-3)


def test_instance_norm() -> None:
    compare_op("InstanceNormalization", [IMAGE, floats(6), floats(6)], constant=[1, 2])


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm(axis: int) -> None:
    shape = (2, 3, 4)[axis:]
    inputs = [floats(2, 3, 4), floats(*shape), floats(*shape)]
    compare_op("LayerNormalization", inputs, constant=[1, 2], opset=17, axis=axis)
    compare_op("LayerNormalization", inputs[:2], constant=[1], opset=17, axis=axis)


def test_group_norm() -> None:
    inputs = [floats(2, 6, 4, 5), floats(6), floats(6)]
    compare_op("GroupNormalization", inputs, constant=[1, 2], opset=21, num_groups=3)


def test_lrn() -> None:
    compare_op("LRN", [np.abs(IMAGE) * 10], size=3, alpha=0.2, beta=0.6, bias=1.5)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int) -> None:
    compare_op("LpNormalization", [floats(3, 4)], axis=1, p=p)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("opset", "axis"), [*((o, a) for o in (7, 11, 13) for a in (0, 1, 2)), (11, -1), (13, -1)]
)
def test_softmax(op_type: str, axis: int, opset: int) -> None:
    compare_op(op_type, [floats(2, 3, 4)], axis=axis, opset=opset)


def test_softmax_without_axis() -> None:
    compare_op("Softmax", [floats(2, 3, 4)], opset=11)
    compare_op("Softmax", [floats(2, 3, 4)], opset=13)


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [(12, 16), (5, 3), (9, 20)])
def test_resize_to_size(mode: str, coordinates: str, size: tuple[int, int]) -> None:
    inputs = [IMAGE, None, None, ints(2, 6, *size)]
    flags = {"mode": mode, "coordinate_transformation_mode": coordinates}
    compare_op("Resize", inputs, constant=[3], symbolic=False, opset=13, **flags)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("scale", [2.0, 3.0, 0.5, 0.6, 1.7])
def test_resize_by_scale(rounding: str, scale: float) -> None:
    scales = np.array([1, 1, scale, 2], np.float32)
    flags = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
    compare_op("Resize", [IMAGE, None, scales], constant=[2], opset=13, **flags)


def test_resize_of_channels_last_and_of_all_axes() -> None:
    x, flags = floats(1, 4, 5, 3), {"mode": "linear"}
    scales = np.array([1, 2, 2, 1], np.float32)
    compare_op("Resize", [x, None, scales], constant=[2], opset=13, symbolic=False, **flags)
    x = floats(3, 4)
    scales = np.array([2, 2], np.float32)
    compare_op("Resize", [x, None, scales], constant=[2], opset=13, symbolic=False, **flags)


def test_resize_of_an_unknown_size() -> None:
    from helpers.onnx_graph import compare, model, node

    nodes = [node("Resize", "x _ scales", "y", mode="linear")]
    shape = ["N", 3, "H", "W"]
    scales = {"scales": np.array([1, 1, 2, 0.5], np.float32)}
    proto = model(nodes, {"x": (np.float32, shape)}, ["y"], scales, 13)
    compare(proto, {"x": floats(2, 3, 5, 8)})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    scales = [1.0, 1.0, 2.0, 3.0]
    compare_op("Upsample", [IMAGE], opset=7, mode=mode, scales=scales)
    array = np.array(scales, np.float32)
    compare_op("Upsample", [IMAGE, array], constant=[1], opset=9, mode=mode)
    compare_op("Resize", [IMAGE, array], constant=[1], opset=10, mode=mode)


def test_resize_10_that_shrinks() -> None:
    scales = np.array([1, 1, 0.5, 0.6], np.float32)
    compare_op("Resize", [IMAGE, scales], constant=[1], opset=10)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_and_dequantize(dtype: type) -> None:
    x, zero = floats(2, 3, 4) * 50, np.array([3, 0, 7], dtype)
    scale = np.array([0.5, 0.25, 0.1], np.float32)
    compare_op("QuantizeLinear", [x, np.float32(0.3), dtype(5)], constant=[1, 2])
    compare_op("QuantizeLinear", [x, scale, zero], constant=[1, 2], opset=13, axis=1)
    numbers = RNG.integers(0, 100, (2, 3, 4)).astype(dtype)
    compare_op("DequantizeLinear", [numbers, scale, zero], constant=[1, 2], opset=13, axis=1)
    compare_op("DequantizeLinear", [numbers, np.float32(0.3)], constant=[1])


def test_dropout_does_nothing() -> None:
    compare_op("Dropout", [floats(3, 4)], opset=10)
    compare_op("Dropout", [floats(3, 4)], opset=13, outputs=2)

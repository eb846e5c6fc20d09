"""Convolutions, pooling, resizing and sampling compared with ONNX Runtime on random attributes."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.engines import quick_engine
from helpers.onnx_graph import assert_close, compare, compare_op, model, node, runtime
from planish.frontends.onnx import import_model
from planish.graph.interpret import interpret


def data(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def some(rng: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    return [int(n) for n in rng.integers(low, high, count)]


# ---- transposed convolutions -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_conv_transpose(seed):
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    groups = int(rng.choice([1, 1, 2, 3]))
    window, strides = some(rng, 1, 4, rank), some(rng, 1, 4, rank)
    dilations = some(rng, 1, 3, rank)
    x = data(rng, 2, 2 * groups, *some(rng, 2, 6, rank))
    w = data(rng, 2 * groups, 3, *window)
    span = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    more = [int(rng.integers(0, s)) for s in strides]
    attributes = {"strides": strides, "dilations": dilations, "group": groups}
    match seed % 4:
        case 0:
            pads = [int(rng.integers(0, s)) for s in (*span, *span)]
            room = zip(x.shape[2:], strides, span, pads[:rank], pads[rank:], more, strict=True)
            if any((n - 1) * s + k - a - b + m < 1 for n, s, k, a, b, m in room):
                pads = [0] * (2 * rank)
            attributes |= {"pads": pads, "output_padding": more}
        case 1:  # as wide as the stride at least: ONNX Runtime does not pad the result with zeros
            attributes["auto_pad"] = "SAME_UPPER"
            attributes["strides"] = [min(s, k) for s, k in zip(strides, span, strict=True)]
        case 2:
            attributes["auto_pad"] = "VALID"
        case 3:
            full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, span, strict=True)]
            attributes["output_shape"] = [max(n - int(rng.integers(0, 3)), 1) for n in full]
    bias = data(rng, 3 * groups)
    compare_op("ConvTranspose", [x, w, bias], constant=[1, 2], **attributes)


def test_conv_transpose_of_unknown_size():
    rng = np.random.default_rng(0)
    x, w = data(rng, 2, 3, 4, 5), data(rng, 3, 2, 3, 3)
    one = node("ConvTranspose", "x w", "y", strides=[2, 3], pads=[1, 0, 0, 1])
    proto = model([one], {"x": (np.float32, ["N", 3, "H", "W"])}, ["y"], {"w": w})
    graph = compare(proto, {"x": x})
    assert [str(d) for d in graph.outputs[0].shape] == ["N", "2", "2*H", "3*W - 1"]


def test_conv_transpose_with_computed_filters():
    rng = np.random.default_rng(0)
    compare_op("ConvTranspose", [data(rng, 1, 4, 5), data(rng, 4, 2, 3)], group=2, strides=[2])


# ---- SAME padding and rounding up, of unknown sizes ---------------------------------------------


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (1, 2), (2, 3), (5, 3)])
@pytest.mark.parametrize("size", [7, 8, 9])
def test_same_padding_of_unknown_size(mode, window, stride, size):
    rng = np.random.default_rng(0)
    x, w = data(rng, 1, 2, size, size + 1), data(rng, 3, 2, window, window)
    options = {"auto_pad": mode, "strides": [stride] * 2}
    pool = options | {"kernel_shape": [window] * 2}
    nodes = [node("Conv", "x w", "conv", **options)]
    if window >= stride:  # ONNX Runtime pools only then
        nodes += [
            node("MaxPool", "x", "largest", **pool),
            node("AveragePool", "x", "mean", **pool),
            node("Add", "largest mean", "sum"),
        ]
    declared = {"x": (np.float32, ["N", 2, "H", "W"])}
    outputs = ["conv"] if window < stride else ["conv", "largest", "mean", "sum"]
    proto = model(nodes, declared, outputs, {"w": w})
    graph = compare(proto, {"x": x})
    assert str(graph.outputs[0].shape[2]) == f"floordiv(H + {stride - 1}, {stride})"


@pytest.mark.parametrize("size", [6, 7, 8, 9, 11])
@pytest.mark.parametrize(
    ("window", "stride", "pads"), [(3, 2, 0), (3, 2, 1), (2, 3, 0), (2, 3, 1), (4, 3, 2)]
)
def test_rounding_up_of_unknown_size(size, window, stride, pads):
    rng = np.random.default_rng(0)
    x = data(rng, 1, 2, size, size)
    options = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": [pads] * 4}
    nodes = [
        node("MaxPool", "x", "largest", ceil_mode=1, **options),
        node("AveragePool", "x", "mean", ceil_mode=1, **options),
    ]
    proto = model(nodes, {"x": (np.float32, ["N", 2, "H", "H"])}, ["largest", "mean"])
    compare(proto, {"x": x})


# ---- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(9))
def test_pools(seed):
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    window = some(rng, 1, 4, rank)
    attributes = {
        "kernel_shape": window,
        "strides": some(rng, 1, 4, rank),
        "pads": [int(rng.integers(0, k)) for k in window] * 2,
        "ceil_mode": int(rng.integers(2)),
    }
    x = data(rng, 2, 3, *some(rng, 7, 10, rank))
    dilations = some(rng, 1, 3, rank)
    compare_op("MaxPool", [x], dilations=dilations, **attributes)
    count = int(rng.integers(2))
    compare_op("AveragePool", [x], opset=19, count_include_pad=count, **attributes)
    if not attributes["ceil_mode"]:
        compare_op(
            "AveragePool",
            [x],
            opset=19,
            dilations=dilations,
            count_include_pad=count,
            **attributes,
        )
        compare_op("LpPool", [x], p=int(rng.integers(1, 4)), **attributes)


@pytest.mark.parametrize("storage_order", [0, 1])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_pool_with_indices(rank, storage_order):
    rng = np.random.default_rng(rank)
    x = data(rng, 2, 3, *some(rng, 5, 8, rank))
    if rank == 3 and storage_order:  # ONNX Runtime swaps the inner two of three dimensions
        pytest.skip("no runtime to compare with")
    compare_op(
        "MaxPool",
        [x],
        outputs=2,
        kernel_shape=[3] * rank,
        strides=[2] * rank,
        pads=[1] * (2 * rank),
        storage_order=storage_order,
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_unpool(rank):
    rng = np.random.default_rng(rank)
    x = data(rng, 2, 3, *[6] * rank)
    window = {"kernel_shape": [2] * rank, "strides": [2] * rank}
    nodes = [
        node("MaxPool", "x", "largest places", **window),
        node("MaxUnpool", "largest places", "y", **window),
    ]
    proto = model(nodes, {"x": (np.float32, ["N", *x.shape[1:]])}, ["y"])
    compare(proto, {"x": x})


def test_global_lp_pool():
    rng = np.random.default_rng(0)
    for p in (1, 2, 3):
        compare_op("GlobalLpPool", [data(rng, 2, 3, 4, 5)], p=p)


# ---- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [0, 1])
def test_grid_sample(mode, border, align_corners):
    rng = np.random.default_rng(0)
    grid = rng.uniform(-1.6, 1.6, (2, 4, 3, 2)).astype(np.float32)
    options = {"mode": mode, "padding_mode": border, "align_corners": align_corners}
    compare_op("GridSample", [data(rng, 2, 3, 5, 6), grid], opset=20, **options)
    if mode != "cubic":
        grid = rng.uniform(-1.6, 1.6, (2, 4, 3, 2, 3)).astype(np.float32)
        compare_op("GridSample", [data(rng, 2, 3, 5, 6, 4), grid], opset=20, **options)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel", None])
def test_roi_align(mode, sampling, coordinates):
    rng = np.random.default_rng(0)
    corners = rng.uniform(-2, 14, (6, 4))
    regions = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    ).astype(np.float32)
    images = rng.integers(0, 2, 6)
    options = {
        "mode": mode,
        "sampling_ratio": sampling,
        "spatial_scale": 0.6,
        "output_height": 3,
        "output_width": 2,
    }
    if coordinates:
        options["coordinate_transformation_mode"] = coordinates
    one = node("RoiAlign", "x regions images", "y", **options)
    declared = {
        "x": (np.float32, ["N", 3, "H", "W"]),
        "regions": (np.float32, ["R", 4]),
        "images": (np.int64, ["R"]),
    }
    proto = model([one], declared, ["y"], opset=16 if coordinates else 10)
    compare(proto, {"x": data(rng, 2, 3, 7, 8), "regions": regions, "images": images})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_deform_conv(masked, group):
    rng = np.random.default_rng(0)
    x, w = data(rng, 2, 4, 6, 7), data(rng, 6, 4 // group, 3, 2)
    offsets, factors = 2 * data(rng, 2, 2 * 2 * 6, 3, 7), data(rng, 2, 2 * 6, 3, 7)
    # opset 19 without an implementation in older runtimes: the definition, written out
    attributes = {"group": group, "offset_group": 2, "strides": [2, 1], "pads": [1, 0, 1, 1]}
    inputs = [x, w, offsets, data(rng, 6)] + ([factors] if masked else [])
    expected = deform_conv(*inputs, **attributes)
    compare_op(
        "DeformConv",
        inputs,
        constant=[1, 3],
        opset=19,
        symbolic=False,
        expected=[expected],
        **attributes,
    )


def deform_conv(x, w, offsets, bias, factors=None, *, group, offset_group, strides, pads):
    """The convolution position by position."""
    filters, _, rows, columns = w.shape
    batch, channels, height, width = x.shape
    size = offsets.shape[2:]
    padded = np.zeros((batch, channels, height + 2, width + 2))
    padded[:, :, 1:-1, 1:-1] = x
    y = np.zeros((batch, filters, *size)) + bias[None, :, None, None]
    for n, i, j, r, s in np.ndindex(batch, *size, rows, columns):
        for c in range(channels):
            number = c // (channels // offset_group) * rows * columns + r * columns + s
            down, along = offsets[n, 2 * number : 2 * number + 2, i, j]
            py = np.clip(i * strides[0] - pads[0] + r + down, -1, height) + 1
            px = np.clip(j * strides[1] - pads[1] + s + along, -1, width) + 1
            y0, x0 = min(int(py), height), min(int(px), width)
            dy, dx = py - y0, px - x0
            patch = padded[n, c, y0 : y0 + 2, x0 : x0 + 2]
            value = np.array([1 - dy, dy]) @ patch @ np.array([1 - dx, dx])
            value *= 1 if factors is None else factors[n, number, i, j]
            first = c // (channels // group) * (filters // group)
            chosen = slice(first, first + filters // group)
            y[n, chosen, i, j] += value * w[chosen, c % (channels // group), r, s]
    return y.astype(np.float32)


def test_affine_grid_of_unknown_size():
    rng = np.random.default_rng(0)
    theta = data(rng, 2, 2, 3)
    nodes = [node("Shape", "x", "size"), node("AffineGrid", "theta size", "grid")]
    declared = {"x": (np.float32, ["N", 3, "H", "W"]), "theta": (np.float32, ["N", 2, 3])}
    proto = model(nodes, declared, ["grid"], opset=20)
    compare(proto, {"x": data(rng, 2, 3, 4, 5), "theta": theta})


# ---- resizing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_resize(seed):
    rng = np.random.default_rng(seed)
    mode = ["nearest", "linear", "cubic"][seed % 3]
    x = data(rng, 1, 2, *some(rng, 4, 9, 2))
    coordinates = str(
        rng.choice(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
    )
    options = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        options["nearest_mode"] = str(rng.choice(["floor", "ceil", "round_prefer_ceil"]))
    if mode == "cubic":
        options["exclude_outside"] = int(rng.integers(2))
        options["cubic_coeff_a"] = float(rng.choice([-0.5, -0.75]))
    sizes = np.array(some(rng, 2, 14, 2))
    if mode == "nearest":  # by factors whose positions are exact: runtimes round others unlike
        sizes = np.array([2 * x.shape[2], 4 * x.shape[3]])
    compare_op("Resize", [x, None, None, sizes], constant=[3], axes=[2, 3], **options)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude_outside", [0, 1])
def test_resize_antialias(mode, exclude_outside):
    rng = np.random.default_rng(0)
    x = data(rng, 1, 2, 13, 9)
    options = {"mode": mode, "antialias": 1, "exclude_outside": exclude_outside}
    for sizes in ([4, 9], [5, 17], [6, 3]):
        compare_op(
            "Resize",
            [x, None, None, np.array([1, 2, *sizes])],
            constant=[3],
            tolerance=1e-4,
            **options,
        )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_of_a_region(mode):
    rng = np.random.default_rng(0)
    x, roi = data(rng, 1, 2, 6, 7), np.float32([0, 0, -0.2, 0.3, 1, 1, 0.9, 1.2])
    options = {
        "mode": mode,
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 5.0,
    }
    sizes = np.array([1, 2, 4, 9])
    compare_op("Resize", [x, roi, None, sizes], constant=[1, 3], tolerance=1e-4, **options)


def test_resize_half_pixel_symmetric():
    rng = np.random.default_rng(0)
    x, scales = data(rng, 1, 2, 7, 9), np.float32([1, 1, 0.6, 1.7])
    options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}
    compare_op("Resize", [x, None, scales], constant=[2], opset=19, **options)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_aligned_corners_stay_aligned_where_the_size_was_rounded(mode):
    """As ONNX Runtime and PyTorch have it; ONNX's node tests divide by the unrounded length."""
    x, scales = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4), np.float32([1, 1, 1, 0.6])
    options = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
    one = node("Resize", "x _ scales", "y", **options)
    proto = model([one], {"x": (np.float32, x.shape)}, ["y"], {"scales": scales})
    compare(proto, {"x": x})
    (y,) = interpret(import_model(proto), {"x": x})
    np.testing.assert_array_equal(y[0, 0], x[0, 0][:, [0, 3]])


def test_windows_put_back():
    rng = np.random.default_rng(0)
    x = data(rng, 2, 3 * 6, 4 * 2)
    compare_op(
        "Col2Im",
        [x, np.array([7, 5]), np.array([2, 3])],
        constant=[1, 2],
        strides=[2, 1],
        dilations=[1, 2],
        pads=[1, 0, 0, 1],
    )


# ---- all of it, compiled -----------------------------------------------------------------------


def test_engine_of_unknown_sizes():
    """Symbolic padding, rounding up and transposed convolutions run in generated kernels."""
    rng = np.random.default_rng(0)
    up = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    nodes = [
        node("Conv", "x w1", "half", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Relu", "half", "relu"),
        node("MaxPool", "relu", "quarter places", **pool),
        node("AveragePool", "relu", "mean", pads=[1] * 4, count_include_pad=1, **pool),
        node("ConvTranspose", "quarter w2 b2", "up", **up),
        node("ConvTranspose", "mean w2 b2", "up_mean", **up),
        node("Concat", "up up", "both", axis=1),
        node("Conv", "both w3", "y", pads=[1] * 4),
    ]
    weights = {
        "w1": data(rng, 8, 3, 3, 3),
        "w2": data(rng, 8, 6, 3, 3),
        "b2": data(rng, 6),
        "w3": data(rng, 2, 12, 3, 3),
    }
    outputs = ["y", "up_mean", "places"]
    proto = model(nodes, {"x": (np.float32, ["N", 3, "H", "W"])}, outputs, weights)
    engine = quick_engine(proto)
    assert engine.host_steps() == []
    for shape in ((1, 3, 16, 16), (2, 3, 17, 19), (1, 3, 31, 22)):
        x = data(rng, *shape)
        results = engine({"x": x})
        for name, expected in zip(outputs, runtime(proto, {"x": x}), strict=True):
            assert_close(results[name], expected, 1e-5, name)

"""Cases of normalization, images, detection and simulated quantization."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.tensorflow_ops.convolution import image_case
from helpers.tensorflow_ops.draw import EXACT, FUNCTION, SUM, Case, Draw, Tolerance
from helpers.tensorflow_ops.elementwise import Generator, raw
from planish.graph.types import DType

# ---- normalization -----------------------------------------------------------------------------


def softmax(op: str) -> Generator:
    tolerance = FUNCTION if op == "Softmax" else SUM

    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        shape = tuple(max(d, 1) for d in draw.shape(1, 4, 20))
        x = draw.numbers(shape, dtype, -20, 20)
        return draw.case(lambda x: raw(op, x), draw.feed(x), tolerance=tolerance)

    return generate


def batch_norm(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        dtype = types["T"]
        statistics = types.get("U", dtype)
        volume = op == "FusedBatchNormV3" and draw.flip(0.2)
        c = draw.integer(1, 9)
        shape = (draw.integer(1, 3), *(draw.integer(1, 5) for _ in range(2 + volume)), c)
        attributes: dict[str, Any] = {
            "epsilon": draw.choose([1e-3, 1e-5, 0.1]),
            "is_training": draw.flip(0.3),
        }
        if volume:
            attributes["data_format"] = "NDHWC"
        scale, offset, mean = (draw.numbers((c,), statistics) for _ in range(3))
        variance = draw.numbers((c,), statistics, 0.1, 3)
        kept = 1
        if attributes["is_training"]:
            kept = 3 if "data_format" not in attributes else 1
            if op != "FusedBatchNorm" and draw.flip(0.4):
                attributes["exponential_avg_factor"] = 0.25
            else:
                mean, variance = mean[:0], variance[:0]
        parameters = [draw.either(a, known=[0]) for a in (scale, offset, mean, variance)]
        return image_case(
            draw,
            lambda attributes, *x: raw(op, *x, **attributes)[:kept],
            draw.numbers(shape, dtype),
            [len(shape) - 1],
            parameters,
            attributes,
            SUM,
        )

    return generate


def lrn(draw: Draw) -> Case:
    dtype = draw.dtype()
    attributes = draw.note(
        depth_radius=draw.integer(0, 5),
        bias=draw.choose([1.0, 2.0]),
        alpha=draw.choose([1.0, 1e-4, 0.5]),
        beta=draw.choose([0.5, 0.75, 1.0]),
    )
    shape = (*(draw.integer(1, 5) for _ in range(3)), draw.integer(1, 12))
    return draw.case(
        lambda x: raw("LRN", x, **attributes),
        draw.feed(draw.numbers(shape, dtype), known=[3]),
        tolerance=SUM,
    )


# ---- images ------------------------------------------------------------------------------------


_RESIZE = {
    "ResizeNearestNeighbor": EXACT,
    "ResizeBilinear": SUM,
    # TensorFlow rounds places to 1/1024 of a pixel, to look weights up in a table
    "ResizeBicubic": Tolerance(2.0**13, of_largest=True),
}


def resize(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        shape = (*(draw.integer(1, 7) for _ in range(3)), draw.integer(1, 4))
        size = np.int32([draw.integer(1, 12), draw.integer(1, 12)])
        kind = draw.choose(["plain", "align_corners", "half_pixel_centers"])
        attributes = draw.note(**{kind: True}) if kind != "plain" else {}
        draw.note(size=size.tolist())
        x = draw.numbers(shape, dtype, 0 if dtype.is_integer else -4, 100)
        return draw.case(
            lambda x: raw(op, x, size, **attributes),
            draw.feed(x, known=[1, 2] if draw.flip() else []),
            tolerance=_RESIZE[op],
        )

    return generate


def crop_and_resize(draw: Draw) -> Case:
    dtype = draw.dtype()
    n, h, w, c = (draw.integer(1, 7) for _ in range(4))
    count = draw.integer(1, 5)
    boxes = draw.rng.uniform(-0.2, 1.2, (count, 4)).astype(np.float32)
    places = draw.rng.integers(0, n, count).astype(np.int32)
    size = np.int32([draw.integer(1, 6), draw.integer(1, 6)])
    attributes = draw.note(
        method=draw.choose(["bilinear", "nearest"]),
        extrapolation_value=draw.choose([0.0, -1.5, 7.0]),
    )
    draw.note(size=size.tolist())
    return draw.case(
        lambda x, b, i: raw("CropAndResize", x, b, i, size, **attributes),
        draw.feed(draw.numbers((n, h, w, c), dtype, 0 if dtype.is_integer else -4, 100), [1, 2, 3]),
        draw.either(boxes, known=[0, 1]),
        draw.either(places, known=[0]),
        tolerance=Tolerance(16, of_largest=True),
    )


# ---- detection ---------------------------------------------------------------------------------


def _boxes(draw: Draw, *shape: int) -> np.ndarray:
    corner = draw.rng.uniform(-0.1, 0.9, (*shape, 2))
    size = draw.rng.uniform(0.05, 0.5, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def _scores(draw: Draw, *shape: int) -> np.ndarray:
    """Distinct ones: in which order equal ones come is TensorFlow's own business."""
    count = int(np.prod(shape))
    order = draw.rng.permutation(count).reshape(shape)
    return ((order + draw.rng.uniform(0.1, 0.9)) / (count + 1)).astype(np.float32)


def combined_suppression(draw: Draw) -> Case:
    n, boxes, classes = draw.integer(1, 3), draw.integer(1, 30), draw.integer(1, 4)
    shared = 1 if draw.flip() else classes
    each, total = np.int32(draw.integer(1, 10)), np.int32(draw.integer(1, 20))
    iou, least = (np.float32(draw.choose(v)) for v in ([0.3, 0.5, 1.0], [0.0, 0.3, -1.0]))
    attributes = draw.note(pad_per_class=draw.flip(), clip_boxes=draw.flip())
    draw.note(each=each, total=total, iou=iou, least=least)
    return draw.case(
        lambda b, s: raw("CombinedNonMaxSuppression", b, s, each, total, iou, least, **attributes),
        draw.feed(_boxes(draw, n, boxes, shared), known=[1, 2, 3]),
        draw.feed(_scores(draw, n, boxes, classes), known=[1, 2]),
        tolerance=Tolerance(1),
    )


def suppression(op: str, padded: bool) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        count = draw.integer(1, 30)
        kind = dtype.numpy.type
        most = np.int32(draw.integer(1, 12))
        iou, least = (kind(draw.choose(v)) for v in ([0.25, 0.5, 1.0], [0.0, 0.25]))
        more = [kind(draw.choose([0.0, 0.5]))] if op == "NonMaxSuppressionV5" else []
        attributes = draw.note(pad_to_max_output_size=True) if padded else {}
        draw.note(most=most, iou=iou, least=least, sigma=more)
        return draw.case(
            lambda b, s: raw(op, b, s, most, iou, least, *more, **attributes),
            draw.feed(_boxes(draw, count).astype(dtype.numpy), known=[0, 1]),
            draw.feed(_scores(draw, count).astype(dtype.numpy), known=[0]),
            tolerance=Tolerance(8),
        )

    return generate


# ---- simulated quantization --------------------------------------------------------------------


def fake_quant(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        channels = draw.integer(1, 6)
        shape = (*draw.shape(0, 3), channels)
        x = draw.numbers(shape, DType.FLOAT32, -8, 8)
        attributes = draw.note(num_bits=draw.integer(2, 16), narrow_range=draw.flip())
        count = (channels,) if op.endswith("PerChannel") else ()
        low = draw.numbers(count, DType.FLOAT32, -6, 0)
        high = draw.numbers(count, DType.FLOAT32, 1, 6)
        if draw.flip(0.2):  # a range without 0
            low = low + np.float32(7)
            high = high + np.float32(7)
        operand = draw.feed(x, known=[-1])
        if op == "FakeQuantWithMinMaxArgs":
            low, high = float(low), float(high)
            return draw.case(
                lambda x: raw(op, x, min=low, max=high, **attributes), operand, tolerance=SUM
            )
        return draw.case(
            lambda x, a, b: raw(op, x, a, b, **attributes),
            operand,
            draw.constant(low),
            draw.constant(high),
            tolerance=SUM,
        )

    return generate


def quantize_dequantize(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        shape = tuple(max(d, 1) for d in draw.shape(1, 4))
        axis = draw.choose([-1, draw.integer(0, len(shape) - 1)])
        axis = axis if shape[axis] > 1 else -1  # of one channel TensorFlow takes no range
        count = (shape[axis],) if axis >= 0 else ()
        low, high = draw.numbers(count, dtype, -6, 0), draw.numbers(count, dtype, 1, 6)
        signed = draw.flip(0.7)
        if not signed:
            low = low * dtype.numpy.type(0)
        bits = draw.integer(3, 10)
        attributes = draw.note(
            signed_input=signed, range_given=draw.flip(0.7), narrow_range=draw.flip(), axis=axis
        )
        if op != "QuantizeAndDequantizeV3":
            attributes |= draw.note(
                num_bits=bits, round_mode=draw.choose(["HALF_TO_EVEN", "HALF_UP"])
            )
        more = [np.int32(bits)] if op == "QuantizeAndDequantizeV3" else []
        return draw.case(
            lambda x, a, b: raw(op, x, a, b, *more, **attributes),
            draw.feed(draw.numbers(shape, dtype, -8, 8), known=[axis] if axis >= 0 else []),
            draw.constant(low),
            draw.constant(high),
            tolerance=SUM,
        )

    return generate


CASES: dict[str, Generator] = {
    "Softmax": softmax("Softmax"),
    "LogSoftmax": softmax("LogSoftmax"),
    "FusedBatchNorm": batch_norm("FusedBatchNorm"),
    "FusedBatchNormV2": batch_norm("FusedBatchNormV2"),
    "FusedBatchNormV3": batch_norm("FusedBatchNormV3"),
    "LRN": lrn,
    "ResizeBilinear": resize("ResizeBilinear"),
    "ResizeBicubic": resize("ResizeBicubic"),
    "ResizeNearestNeighbor": resize("ResizeNearestNeighbor"),
    "CropAndResize": crop_and_resize,
    "CombinedNonMaxSuppression": combined_suppression,
    "NonMaxSuppressionV3": suppression("NonMaxSuppressionV3", False),
    "NonMaxSuppressionV4": suppression("NonMaxSuppressionV4", True),
    "NonMaxSuppressionV5": suppression("NonMaxSuppressionV5", True),
    "FakeQuantWithMinMaxArgs": fake_quant("FakeQuantWithMinMaxArgs"),
    "FakeQuantWithMinMaxVars": fake_quant("FakeQuantWithMinMaxVars"),
    "FakeQuantWithMinMaxVarsPerChannel": fake_quant("FakeQuantWithMinMaxVarsPerChannel"),
    "QuantizeAndDequantizeV2": quantize_dequantize("QuantizeAndDequantizeV2"),
    "QuantizeAndDequantizeV3": quantize_dequantize("QuantizeAndDequantizeV3"),
    "QuantizeAndDequantizeV4": quantize_dequantize("QuantizeAndDequantizeV4"),
}

"""Cases of convolutions and pooling, with channels last and channels first.

TensorFlow's CPU kernels take channels last only. A case with channels first is compared with the
same op between two transpositions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from helpers.tensorflow_ops.draw import EXACT, SUM, Case, Draw, Operand, Tolerance
from helpers.tensorflow_ops.elementwise import Generator, raw
from planish.graph.types import DType

Attributes = dict[str, Any]


def image_case(
    draw: Draw,
    call: Callable[..., Any],
    x: np.ndarray,
    known: Sequence[int],
    others: Sequence[Operand],
    attributes: Attributes,
    tolerance: Tolerance,
    reference: Callable[..., Any] | None = None,
) -> Case:
    """A case of an op of channels-last images, at times turned into one of channels first.

    ``call(attributes, x, *others)`` makes the op; `reference` likewise what TensorFlow is to run
    instead. `known` are the dimensions of `x` that are never unknown.
    """
    meaning = reference or call
    if not draw.flip(0.3):
        draw.note(**attributes)
        return draw.case(
            lambda x, *o: call(attributes, x, *o),
            draw.feed(x, known),
            *others,
            tolerance=tolerance,
            reference=(lambda x, *o: meaning(attributes, x, *o)) if reference else None,
        )
    rank = x.ndim
    to_first = (0, rank - 1, *range(1, rank - 1))
    to_last = (0, *range(2, rank), 1)
    turned = {k: _turned(v, rank) if isinstance(v, list) else v for k, v in attributes.items()}
    turned["data_format"] = "NCHW" if rank == 4 else "NCDHW"
    draw.note(**turned)

    def transposed(x: Any, *others: Any) -> Any:
        import tensorflow as tf

        first, *more = tf.nest.flatten(meaning(attributes, tf.transpose(x, to_last), *others))
        return [tf.transpose(first, to_first), *more]

    return draw.case(
        lambda x, *o: call(turned, x, *o),
        draw.feed(x.transpose(to_first), [to_first.index(k) for k in known]),
        *others,
        tolerance=tolerance,
        reference=transposed,
    )


def _turned(values: list[int], rank: int) -> list[int]:
    """A list with an item, or a pair, for each dimension: channels second."""
    step = len(values) // rank
    items = [values[i : i + step] for i in range(0, len(values), step)]
    return [v for item in (items[0], items[-1], *items[1:-1]) for v in item]


def _around(values: Sequence[int], end: int = 1) -> list[int]:
    """Values of the spatial dimensions, with those of batch and channels around them."""
    return [end, *values, end]


def window_of(draw: Draw, rank: int, dilated: bool, equal: bool = False) -> dict[str, Any]:
    """Sizes, window, strides, dilations and padding of a convolution that has a result."""
    window = [draw.integer(1, 4) for _ in range(rank)]
    strides = [draw.integer(1, 3) for _ in range(rank)]
    if equal:
        strides = [strides[0]] * rank
    dilations = [1] * rank
    if dilated and draw.flip(0.4):
        strides, dilations = [1] * rank, [draw.integer(1, 3) for _ in range(rank)]
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    return {
        "window": window,
        "strides": strides,
        "dilations": dilations,
        "sizes": [span + draw.integer(0, 6) for span in spans],
        "padding": draw.choose(["SAME", "VALID"]),
    }


def _attributes(use: dict[str, Any]) -> Attributes:
    return {
        "strides": _around(use["strides"]),
        "dilations": _around(use["dilations"]),
        "padding": use["padding"],
    }


def _explicit(draw: Draw, most: Sequence[int]) -> Attributes:
    pairs = [draw.integer(0, m) for m in most for _ in range(2)]
    return {"padding": "EXPLICIT", "explicit_paddings": [0, 0, *pairs, 0, 0]}


def _weights(draw: Draw, array: np.ndarray) -> Operand:
    return draw.constant(array) if draw.flip(0.8) else draw.feed(array, range(array.ndim))


def convolution(op: str, rank: int) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        use = window_of(draw, rank, dilated=True)
        groups = draw.choose([1, 1, 2]) if op == "Conv2D" and dtype is DType.FLOAT32 else 1
        c, k = draw.integer(1, 5) * groups, draw.integer(1, 6) * groups
        attributes = _attributes(use)
        if op == "Conv2D" and draw.flip(0.3):
            attributes |= _explicit(draw, [2] * rank)
        shape = (draw.integer(1, 3), *use["sizes"], c)
        filters = draw.numbers((*use["window"], c // groups, k), dtype, -1, 1)
        known = range(1, rank + 2) if attributes["padding"] == "SAME" else [rank + 1]
        return image_case(
            draw,
            lambda attributes, x, w: raw(op, x, w, **attributes),
            draw.numbers(shape, dtype),
            known,
            [_weights(draw, filters)],
            attributes,
            SUM,
        )

    return generate


def depthwise(draw: Draw) -> Case:
    dtype = draw.dtype()
    use = window_of(draw, 2, dilated=False, equal=True)
    c, multiplier = draw.integer(1, 9), draw.integer(1, 3)
    attributes = _attributes(use)
    if draw.flip(0.3):
        attributes |= _explicit(draw, [2, 2])
    filters = draw.numbers((*use["window"], c, multiplier), dtype, -1, 1)
    return image_case(
        draw,
        lambda attributes, x, w: raw("DepthwiseConv2dNative", x, w, **attributes),
        draw.numbers((draw.integer(1, 3), *use["sizes"], c), dtype),
        [1, 2, 3] if attributes["padding"] == "SAME" else [3],
        [_weights(draw, filters)],
        attributes,
        SUM,
    )


def transposed(op: str, rank: int) -> Generator:
    """The gradient of a convolution by its input: sizes of the output are given."""

    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        use = window_of(draw, rank, dilated=op == "Conv2DBackpropInput")
        c, k, batch = draw.integer(1, 5), draw.integer(1, 5), draw.integer(1, 3)
        attributes = _attributes(use)
        around = [0] * 2 * rank
        if op == "Conv2DBackpropInput" and draw.flip(0.3):
            attributes |= _explicit(draw, [w - 1 for w in use["window"]])
            around = attributes["explicit_paddings"][2:-2]
        same = attributes["padding"] == "SAME"
        small = []
        for i, (size, stride) in enumerate(zip(use["sizes"], use["strides"], strict=True)):
            span = (use["window"][i] - 1) * use["dilations"][i] + 1
            padded = size + around[2 * i] + around[2 * i + 1]
            small.append(-(-size // stride) if same else (padded - span) // stride + 1)
        filters = draw.numbers((*use["window"], c, k), dtype, -1, 1)
        computed = draw.flip()
        draw.note(sizes=use["sizes"], computed=computed)

        def call(attributes: Attributes, x: Any, w: Any) -> Any:
            import tensorflow as tf

            first = tf.shape(x)[0] if computed or x.shape[0] is None else batch
            sizes = [first, *use["sizes"], c]
            if attributes.get("data_format", "").startswith("NC"):
                sizes = [first, c, *use["sizes"]]
            return raw(op, tf.stack(sizes), w, x, **attributes)

        return image_case(
            draw,
            call,
            draw.numbers((batch, *small, k), dtype),
            range(1, rank + 2),
            [_weights(draw, filters)],
            attributes,
            SUM,
        )

    return generate


def pooling(op: str, rank: int) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        use = window_of(draw, rank, dilated=False)
        attributes = {
            "ksize": _around(use["window"]),
            "strides": _around(use["strides"]),
            "padding": use["padding"],
        }
        if op == "MaxPool" and draw.flip(0.3):
            attributes |= _explicit(draw, [w - 1 for w in use["window"]])
        shape = (draw.integer(1, 3), *use["sizes"], draw.integer(1, 9))
        return image_case(
            draw,
            lambda attributes, x: raw(op, x, **attributes),
            draw.numbers(shape, dtype),
            range(1, rank + 2) if attributes["padding"] == "SAME" else [rank + 1],
            [],
            attributes,
            EXACT if op.startswith("Max") else SUM,
        )

    return generate


def max_pool_v2(draw: Draw) -> Case:
    """Window and strides as constants."""
    dtype, use = draw.dtype(), window_of(draw, 2, dilated=False)
    ksize, strides = (np.int32(_around(use[k])) for k in ("window", "strides"))
    x = draw.numbers((draw.integer(1, 3), *use["sizes"], draw.integer(1, 9)), dtype)
    return draw.case(
        lambda x: raw("MaxPoolV2", x, ksize, strides, padding=use["padding"]),
        draw.feed(x, [1, 2, 3]),
    )


def fused(draw: Draw) -> Case:
    """A convolution with bias, activation and another tensor added.

    TensorFlow knows the op only where it has a GPU: the case runs what the op means, and the node
    of its convolution becomes the op.
    """
    use = window_of(draw, 2, dilated=True)
    c, k, batch = draw.integer(1, 5), draw.integer(1, 6), draw.integer(1, 3)
    first = draw.flip(0.4)
    filter_format = draw.choose(["HWIO", "OIHW"])
    scale, side_scale = (float(draw.choose(v)) for v in ([1.0, 2.0], [0.0, 1.0, 0.5]))
    activation = draw.choose(["Relu", "None"])
    attributes = _attributes(use)
    draw.note(activation=activation, scale=scale, side_scale=side_scale, channels_first=first)
    draw.note(filter_format=filter_format, **attributes)
    out = [
        -(-size // s) if use["padding"] == "SAME" else (size - (w - 1) * d - 1) // s + 1
        for size, w, s, d in zip(
            *(use[name] for name in ("sizes", "window", "strides", "dilations")), strict=True
        )
    ]
    images = [
        draw.numbers((batch, *use["sizes"], c), DType.FLOAT32),
        draw.numbers((batch, *out, k), DType.FLOAT32),
    ]
    filters = draw.numbers((*use["window"], c, k), DType.FLOAT32, -1, 1)
    bias = draw.numbers((k,), DType.FLOAT32)
    given = [a.transpose(0, 3, 1, 2) for a in images] if first else images
    weights = filters.transpose(3, 2, 0, 1) if filter_format == "OIHW" else filters

    def build(x: Any, side: Any, w: Any, b: Any) -> Any:
        """What the op means; the node "fused" becomes the op."""
        import tensorflow as tf

        if first:
            x, side = (tf.transpose(a, (0, 2, 3, 1)) for a in (x, side))
        if filter_format == "OIHW":
            w = tf.transpose(w, (2, 3, 1, 0))
        result = raw("Conv2D", x, w, **attributes) * np.float32(scale) + b
        result = result + side * np.float32(side_scale)
        result = raw("Relu", result) if activation == "Relu" else result
        result = tf.transpose(result, (0, 3, 1, 2)) if first else result
        tf.constant(np.float32(scale), name="conv_scale")
        tf.constant(np.float32(side_scale), name="side_scale")
        return tf.identity(result, name="fused")

    def edit(graph_def: Any) -> None:
        (node,) = (n for n in graph_def.node if n.name == "fused")
        constants = [n.name for n in graph_def.node if n.op == "Const" and n.name[:5] == "Const"]
        node.op = "FusedConv2DBiasActivation"
        del node.input[:]
        node.input.extend(["x0", *constants[:2], "x1", "conv_scale", "side_scale"])
        node.attr["Tbias"].type = node.attr["T"].type
        for name in ("strides", "dilations"):
            values = _turned(attributes[name], 4) if first else attributes[name]
            node.attr[name].list.i.extend(values)
        node.attr["padding"].s = attributes["padding"].encode()
        node.attr["data_format"].s = b"NCHW" if first else b"NHWC"
        node.attr["filter_format"].s = filter_format.encode()
        node.attr["activation_mode"].s = activation.encode()

    operands = [draw.feed(given[0], range(4)), draw.feed(given[1], range(4))]
    return draw.case(
        build, *operands, draw.constant(weights), draw.constant(bias), tolerance=SUM, edit=edit
    )


def depth_and_space(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        block = draw.integer(2, 3)
        n, h, w, c = (draw.integer(1, 4) for _ in range(4))
        if op == "SpaceToDepth":
            h, w = h * block, w * block
        else:
            c = c * block * block
        return image_case(
            draw,
            lambda attributes, x: raw(op, x, **attributes),
            draw.numbers((n, h, w, c), dtype),
            [1, 2, 3] if op == "SpaceToDepth" else [3],  # what is divided must be known
            [],
            {"block_size": block},
            EXACT,
        )

    return generate


CASES: dict[str, Generator] = {
    "Conv2D": convolution("Conv2D", 2),
    "Conv3D": convolution("Conv3D", 3),
    "DepthwiseConv2dNative": depthwise,
    "Conv2DBackpropInput": transposed("Conv2DBackpropInput", 2),
    "Conv3DBackpropInputV2": transposed("Conv3DBackpropInputV2", 3),
    "AvgPool": pooling("AvgPool", 2),
    "MaxPool": pooling("MaxPool", 2),
    "MaxPoolV2": max_pool_v2,
    "AvgPool3D": pooling("AvgPool3D", 3),
    "MaxPool3D": pooling("MaxPool3D", 3),
    "FusedConv2DBiasActivation": fused,
    "SpaceToDepth": depth_and_space("SpaceToDepth"),
    "DepthToSpace": depth_and_space("DepthToSpace"),
}

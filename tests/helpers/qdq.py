"""ONNX models that bring their own scales: layers between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from helpers.onnx_graph import model, node

OPSET = 21


class Qdq:
    """A model under construction, from a float32 input; tensors go by their names.

    Weights have seven bits, so that ONNX Runtime's sums do not saturate on CPUs without 8-bit dot
    products.
    """

    def __init__(self, *shape: int | str, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self._inputs = {"x": (np.float32, list(shape))}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._scales: dict[str, np.ndarray] = {}

    def op(self, op_type: str, inputs: str, name: str, **attributes: Any) -> str:
        self._nodes.append(node(op_type, inputs, name, name, **attributes))
        return name

    def constant(self, name: str, data: Any) -> str:
        self._constants[name] = np.asarray(data)
        return name

    def levels(self, x: str, scale: float, zero: Any) -> str:
        """The tensor rounded to levels, as floats."""
        scale_name = self.constant(f"{x}_scale", np.float32(scale))
        zero_name = self.constant(f"{x}_zero", zero)
        self.op("QuantizeLinear", f"{x} {scale_name} {zero_name}", f"{x}_q")
        self._scales[f"{x}_dq"] = np.float32(scale)
        return self.op("DequantizeLinear", f"{x}_q {scale_name} {zero_name}", f"{x}_dq")

    def weights(
        self, name: str, shape: tuple[int, ...], scale: Any, zero: Any, axis: int = 0
    ) -> str:
        """Constant levels as floats; with vectors, one scale for each index of the axis."""
        info = np.iinfo(np.asarray(zero).dtype)
        data = self.random.integers(info.min // 2, info.max // 2 + 1, shape).astype(info.dtype)
        self._scales[f"{name}_dq"] = np.asarray(scale, np.float32)
        inputs = (
            self.constant(name, data),
            self.constant(f"{name}_scale", np.asarray(scale, np.float32)),
            self.constant(f"{name}_zero", zero),
        )
        return self.op("DequantizeLinear", " ".join(inputs), f"{name}_dq", axis=axis)

    def bias(self, name: str, x: str, w: str, size: int) -> str:
        """int32 in steps of the sums of x by w, as floats."""
        scale = np.broadcast_to(self._scales[x] * self._scales[w], size)
        data = self.random.integers(-4000, 4000, size).astype(np.int32)
        inputs = self.constant(name, data), self.constant(f"{name}_scale", scale)
        return self.op("DequantizeLinear", " ".join(inputs), f"{name}_dq", axis=0)

    def proto(self, *outputs: str) -> onnx.ModelProto:
        return model(self._nodes, self._inputs, outputs, self._constants, OPSET)


def scales(count: int, seed: int = 1) -> np.ndarray:
    """Of so many channels, between 0.002 and 0.02."""
    return np.random.default_rng(seed).uniform(0.002, 0.02, count).astype(np.float32)


def residual_model() -> onnx.ModelProto:
    """A convolution, a depthwise one and one by 1x1 around which its input is added, a maximum over
    windows, a concatenation of different scales, an average, a classifier: every tensor has its
    own levels, as ONNX Runtime's quantizer writes it.
    """
    q = Qdq("N", 3, 12, 12)
    x = q.levels("x", 0.0313, np.uint8(120))
    w = q.weights("w1", (16, 3, 3, 3), scales(16), np.zeros(16, np.int8))
    q.op("Conv", f"{x} {w} {q.bias('b1', x, w, 16)}", "conv1", pads=[1, 1, 1, 1])
    a = q.levels(q.op("Relu", "conv1", "relu1"), 0.0207, np.uint8(0))
    w = q.weights("w2", (16, 1, 3, 3), scales(16, 2), np.zeros(16, np.int8))
    q.op("Conv", f"{a} {w} {q.bias('b2', a, w, 16)}", "depthwise", pads=[1, 1, 1, 1], group=16)
    b = q.levels("depthwise", 0.0331, np.uint8(117))
    w = q.weights("w3", (16, 16, 1, 1), np.float32(0.01), np.int8(0))
    q.op("Conv", f"{b} {w} {q.bias('b3', b, w, 16)}", "pointwise")
    c = q.levels("pointwise", 0.0529, np.uint8(140))
    d = q.levels(q.op("Relu", q.op("Add", f"{c} {a}", "sum"), "relu3"), 0.0411, np.uint8(0))
    p = q.op("MaxPool", d, "pool", kernel_shape=[2, 2], strides=[2, 2])
    p = q.levels(p, 0.0411, np.uint8(0))
    w = q.weights("w4", (8, 16, 1, 1), scales(8), np.zeros(8, np.int8))
    left = q.levels(q.op("Conv", f"{p} {w}", "left"), 0.1013, np.uint8(130))
    w = q.weights("w5", (24, 16, 3, 3), scales(24), np.zeros(24, np.int8))
    right = q.levels(q.op("Conv", f"{p} {w}", "right", pads=[1, 1, 1, 1]), 0.3037, np.uint8(120))
    joined = q.levels(q.op("Concat", f"{left} {right}", "both", axis=1), 0.3171, np.uint8(125))
    m = q.levels(q.op("GlobalAveragePool", joined, "mean"), 0.1061, np.uint8(128))
    flat = q.levels(q.op("Flatten", m, "flat"), 0.1061, np.uint8(128))
    w = q.weights("w6", (10, 32), scales(10), np.zeros(10, np.int8))
    q.op("Gemm", f"{flat} {w} {q.bias('b6', flat, w, 10)}", "classes", transB=1)
    return q.proto(q.levels("classes", 0.2, np.uint8(100)))

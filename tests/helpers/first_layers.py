"""A network's first convolution with the pooling behind it, and what varies of it."""

from __future__ import annotations

import numpy as np

from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Value
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.pool import MaxPool
from planish.ops.quantization import ConvInteger, Quantize
from planish.ops.shape import Transpose

AROUND = ((1, 1), (1, 1))


class FirstNet:
    """An image, a convolution by steps of two with a bias, an activation, a pooling.

    Parameters
    ----------
    images, rows, columns, channels : int
        Of the image.
    filters, window, strides, pad : int
        Of the convolution.
    dtype : DType
        Of its factors: halves, or INT8 with levels behind it.
    transposed : bool
        Whether the image is channels first.
    converted : bool
        Whether it is float32; else, or with levels, of the factors' type.
    activation : str
        "relu", "clip" or "none"; of halves.
    pool : int
        The pooling's window; 0: none.
    edges : tuple
        Its padding.
    scale : float
        Of levels: by which sums are multiplied.
    """

    def __init__(
        self,
        images: int = 2,
        rows: int = 12,
        columns: int = 16,
        channels: int = 3,
        *,
        filters: int = 64,
        window: int = 7,
        strides: int = 2,
        pad: int = 3,
        dtype: DType = DType.FLOAT16,
        transposed: bool = True,
        converted: bool = True,
        activation: str = "relu",
        pool: int = 3,
        edges: tuple[tuple[int, int], tuple[int, int]] = AROUND,
        scale: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self.rng, self.graph = np.random.default_rng(seed), Graph("first")
        self.dtype, self.window, self.scale = dtype, window, scale
        around = ((pad, pad), (pad, pad))
        x = self._image((images, rows, columns, channels), transposed, converted)
        if dtype is DType.INT8:
            y = self._levels(x, Conv((strides,) * 2, around, (1, 1)), filters)
        else:
            w = self._constant(window, window, channels, filters)
            y = self.graph.add(Conv((strides,) * 2, around, (1, 1)), x, w)
            y = self.graph.add(ew.Add(), y, self._constant(filters))
            if activation != "none":
                ops = {"relu": ew.Relu(), "clip": Clip(-0.5, 0.5)}
                y = self.graph.add(ops[activation], y)
        if pool:
            y = self.graph.add(MaxPool((pool,) * 2, (2, 2), edges, (1, 1)), y)
        self.result = y
        self.graph.mark_output(y, "y")

    def _image(self, shape: tuple[int, int, int, int], transposed: bool, converted: bool) -> Value:
        graph, levels = self.graph, self.dtype is DType.INT8
        images, rows, columns, channels = shape
        kind = DType.FLOAT32 if converted or levels else self.dtype
        given = (images, channels, rows, columns) if transposed else shape
        x = graph.input("x", TensorType(given, kind))
        if levels:
            x = self._quantized(x, 0.02)
        elif kind is not self.dtype:
            x = graph.add(Cast(self.dtype), x)
        return graph.add(Transpose((0, 2, 3, 1)), x) if transposed else x

    def _quantized(self, x: Value, scale: float) -> Value:
        numbers = (np.float32(scale), np.float32(0))
        return self.graph.add(
            Quantize(DType.INT8, -128, 127), x, *map(self.graph.constant, numbers)
        )

    def _levels(self, x: Value, conv: Conv, filters: int) -> Value:
        graph, channels = self.graph, x.shape[-1]
        shape = (self.window, self.window, channels, filters)
        w = graph.constant(self.rng.integers(-128, 127, shape, np.int8, endpoint=True))
        op = ConvInteger(conv.strides, conv.padding, conv.dilations, 1)
        none = [graph.constant(np.int8(0)) for _ in range(2)]
        y = graph.add(Cast(DType.FLOAT32), graph.add(op, x, w, *none))
        depth = self.window**2 * int(channels)
        scales = self.scale * self.rng.uniform(0.5, 1.5, filters) / (60 * depth**0.5)
        y = graph.add(ew.Mul(), y, graph.constant(scales.astype(np.float32)))
        offsets = self.rng.standard_normal(filters) * 20
        y = graph.add(ew.Add(), y, graph.constant(offsets.astype(np.float32)))
        return self._quantized(y, 1.0)

    def _constant(self, *shape: int) -> Value:
        drawn = self.rng.standard_normal(shape) / max(int(np.prod(shape[:-1])), 1) ** 0.5
        return self.graph.constant(drawn.astype(self.dtype.numpy))


def first_tasks(graph: Graph) -> list[Task]:
    """Convolutions with a pooling that are proposed, the one with all nodes last."""
    found = [task for task in propose(graph) if task.pooled]
    return sorted(found, key=lambda task: len(task.nodes))

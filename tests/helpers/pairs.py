"""Two convolutions, the second one 1x1, with what stands around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Value
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Clip, ew


class PairNet:
    """x ─▶ depthwise, bias, clip ─▶ 1x1 convolution, and perhaps a bias and a residual.

    Biases have `lead` axes of extent 1 before their channels.
    """

    def __init__(
        self,
        shape: Sequence[int | object],
        columns: int,
        *,
        window: int = 3,
        stride: int = 1,
        dilation: int = 1,
        padding: tuple[int, int] = (1, 1),
        dtype: DType = DType.FLOAT16,
        bias: bool = True,
        lead: int = 0,
        residual: bool = False,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = graph = Graph("pair")
        self.x = graph.input("x", TensorType(tuple(shape), dtype))
        channels = self.x.shape[-1]
        assert isinstance(channels, int)
        ones = (1,) * lead
        depthwise = Conv((stride,) * 2, (padding,) * 2, (dilation,) * 2, channels)
        y = graph.add(depthwise, self.x, self.constant(window, window, 1, channels))
        self.first = y
        if bias:
            y = graph.add(ew.Add(), y, self.constant(*ones, channels))
            y = graph.add(Clip(0.0, 6.0), y)
        self.inner = y
        y = graph.add(
            Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), y, self.constant(1, 1, channels, columns)
        )
        self.second = y
        if bias:
            y = graph.add(ew.Add(), y, self.constant(*ones, columns))
        if residual:
            y = graph.add(ew.Add(), y, graph.input("r", y.type))
        self.result = y

    def constant(self, *shape: int) -> Value:
        """Random numbers of about 1, or smaller where many are summed."""
        drawn = self.rng.standard_normal(shape) / max(shape[-2:-1] or (1,)) ** 0.5
        return self.graph.constant(drawn.astype(self.x.dtype.numpy))

    def done(self) -> Graph:
        """The graph, its result marked."""
        self.graph.mark_output(self.result, "y")
        return self.graph


class PointwiseNet(PairNet):
    """x ─▶ 1x1 convolution, bias, residual, relu ─┬─▶ 1x1 convolution, bias
    └─▶ another reader, if it is `kept`
    """

    def __init__(
        self,
        shape: Sequence[int | object],
        middle: int,
        columns: int,
        *,
        dtype: DType = DType.FLOAT16,
        residual: bool = True,
        kept: bool = True,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = graph = Graph("pair")
        self.x = graph.input("x", TensorType(tuple(shape), dtype))
        channels = self.x.shape[-1]
        assert isinstance(channels, int)
        self.first = y = self.pointwise(self.x, channels, middle)
        y = graph.add(ew.Add(), y, self.constant(middle))
        if residual:
            y = graph.add(ew.Add(), y, graph.input("r", y.type))
        self.inner = y = graph.add(ew.Relu(), y)
        self.second = y = self.pointwise(y, middle, columns)
        self.result = graph.add(ew.Add(), y, self.constant(columns))
        if kept:
            graph.mark_output(graph.add(ew.Neg(), self.inner), "other")

    def pointwise(self, x: Value, channels: int, columns: int) -> Value:
        """A convolution of single pixels."""
        op = Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
        return self.graph.add(op, x, self.constant(1, 1, channels, columns))


class SummedNet(PointwiseNet):
    """x ─▶ 1x1 convolution, bias ─┐
    z ─▶ 1x1 convolution, bias ─┴▶ sum, relu ─┬─▶ 1x1 convolution, bias
                                              └─▶ another reader, if it is `kept`
    """

    def __init__(
        self,
        shape: Sequence[int | object],
        other: int,
        middle: int,
        columns: int,
        *,
        dtype: DType = DType.FLOAT16,
        kept: bool = True,
        swapped: bool = False,
        stride: int = 1,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = graph = Graph("summed")
        *image, channels = shape
        self.x = graph.input("x", TensorType((*image, channels), dtype))
        lengths = (n * stride for n in image[1:])  # type: ignore[operator]
        self.z = graph.input("z", TensorType((image[0], *lengths, other), dtype))
        ends = [self._end(self.x, 1, middle), self._end(self.z, stride, middle)]
        y = graph.add(ew.Add(), *(reversed(ends) if swapped else ends))
        self.inner = y = graph.add(ew.Relu(), y)
        self.second = y = self.pointwise(y, middle, columns)
        self.result = graph.add(ew.Add(), y, self.constant(columns))
        if kept:
            graph.mark_output(graph.add(ew.Neg(), self.inner), "other")

    def _end(self, image: Value, stride: int, columns: int) -> Value:
        op = Conv((stride, stride), ((0, 0), (0, 0)), (1, 1))
        channels = image.shape[-1]
        assert isinstance(channels, int)
        y = self.graph.add(op, image, self.constant(1, 1, channels, columns))
        return self.graph.add(ew.Add(), y, self.constant(columns))


def pair_task(net: PairNet) -> Task:
    """The largest task of the net, which is a pair with all that follows."""
    task = max(propose(net.done()), key=lambda t: len(t.nodes))
    assert task.pattern in ("pair", "summed")
    return task

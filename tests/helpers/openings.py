"""The first two convolutions of a network with the pooling behind them, and what varies of it."""

from __future__ import annotations

import numpy as np

from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.pool import MaxPool
from planish.ops.shape import Transpose

AROUND, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))


class OpeningNet:
    """An image, transposed or not; two 3x3 convolutions, each with a bias and a relu; a pooling.

    Parameters
    ----------
    images, rows, columns, channels : int
        Of the image.
    middle, filters : int
        What the convolutions give.
    transposed : bool
        Whether the image is float32, channels first.
    activation : str
        Behind the second convolution: "relu", "clip", "neg" or "none".
    strides : int
        Of the second convolution.
    window : int
        Of the pooling.
    shared : bool
        Whether somebody else reads what the first convolution gives.
    """

    def __init__(
        self,
        images: int = 2,
        rows: int = 6,
        columns: int = 8,
        channels: int = 3,
        middle: int = 16,
        filters: int = 16,
        *,
        dtype: DType = DType.FLOAT16,
        transposed: bool = True,
        activation: str = "relu",
        strides: int = 1,
        window: int = 2,
        shared: bool = False,
        seed: int = 0,
    ) -> None:
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        self.graph = graph = Graph("opening")
        if transposed:
            x = graph.input("x", TensorType((images, channels, rows, columns), DType.FLOAT32))
            x = graph.add(Transpose((0, 2, 3, 1)), graph.add(Cast(dtype), x))
        else:
            x = graph.input("x", TensorType((images, rows, columns, channels), dtype))
        y = self._convolution(x, middle, 1)
        y = graph.add(ew.Relu(), y)
        if shared:
            graph.mark_output(graph.add(ew.Neg(), y), "others")
        y = self._convolution(y, filters, strides)
        if activation != "none":
            ops = {"relu": ew.Relu(), "clip": Clip(-0.5, 0.5), "neg": ew.Neg()}
            y = graph.add(ops[activation], y)
        pool = MaxPool((window,) * 2, (2, 2), NONE, (1, 1))
        self.result = graph.add(pool, y)
        graph.mark_output(self.result, "y")

    @property
    def convolutions(self) -> list[Node]:
        """Both of them."""
        return [n for n in self.graph.nodes if isinstance(n.op, Conv)]

    def _convolution(self, x: Value, filters: int, strides: int) -> Value:
        channels = x.shape[-1]
        assert isinstance(channels, int)
        y = self.graph.add(
            Conv((strides,) * 2, AROUND, (1, 1)), x, self._constant(3, 3, channels, filters)
        )
        return self.graph.add(ew.Add(), y, self._constant(filters))

    def _constant(self, *shape: int) -> Value:
        drawn = self.rng.standard_normal(shape) / max(int(np.prod(shape[:-1])), 1) ** 0.5
        return self.graph.constant(drawn.astype(self.dtype.numpy))


def opening_tasks(graph: Graph) -> list[Task]:
    """Openings that are proposed."""
    return [task for task in propose(graph) if task.opening]

"""Two convolutions whose results are added, with what stands around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helpers.levels import Levels
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Value
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, ew
from planish.ops.quantization import ConvInteger


class SumNet:
    """A convolution of an image beside a 1x1 convolution, by a stride perhaps, of another; biases,
    their sum, a relu.

    Parameters
    ----------
    shape, other : sequence of int
        Of both images.
    window : int
        Of the first convolution, which keeps the size of its image.
    stride : int
        Of the other one.
    shared : bool
        Whether somebody else reads what the other one gives.
    scaled : bool
        Whether it is multiplied by something before it is added.
    """

    def __init__(
        self,
        shape: Sequence[int],
        other: Sequence[int],
        columns: int,
        *,
        window: int = 1,
        stride: int = 1,
        dtype: DType = DType.FLOAT16,
        bias: bool = True,
        relu: bool = True,
        shared: bool = False,
        scaled: bool = False,
        swapped: bool = False,
        seed: int = 0,
    ) -> None:
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        self.graph = graph = Graph("sum")
        x = graph.input("x", TensorType(tuple(shape), dtype))
        z = graph.input("z", TensorType(tuple(other), dtype))
        self.convolutions: list[Value] = []
        sides = [(x, window, 1), (z, 1, stride)]
        ends = []
        for image, taps, step in reversed(sides) if swapped else sides:
            y = self._convolution(image, taps, step, columns)
            if bias:
                y = graph.add(ew.Add(), y, self._constant(columns))
            if scaled and image is z:
                y = graph.add(ew.Mul(), y, self._constant(columns))
            ends.append(y)
        self.result = graph.add(ew.Add(), *ends)
        if shared:
            graph.mark_output(graph.add(ew.Neg(), ends[1]), "others")
        if relu:
            self.result = graph.add(ew.Relu(), self.result)
        graph.mark_output(self.result, "y")

    def _convolution(self, image: Value, taps: int, step: int, columns: int) -> Value:
        channels = image.shape[-1]
        assert isinstance(channels, int)
        around = ((taps // 2, taps // 2),) * 2
        filters = self._constant(taps, taps, channels, columns)
        self.convolutions.append(self.graph.add(Conv((step,) * 2, around, (1, 1)), image, filters))
        return self.convolutions[-1]

    def _constant(self, *shape: int) -> Value:
        drawn = self.rng.standard_normal(shape) / max(int(np.prod(shape[:-1])), 1) ** 0.5
        return self.graph.constant(drawn.astype(self.dtype.numpy))


def sum_tasks(graph: Graph) -> list[Task]:
    """Tasks of two added convolutions that are proposed, the largest first."""
    return sorted((t for t in propose(graph) if t.sum), key=lambda t: -len(t.nodes))


def sum_of_levels(
    rng: np.random.Generator,
    shape: Sequence[int],
    other: Sequence[int],
    columns: int,
    *,
    window: int = 1,
    stride: int = 1,
    to: DType | None = DType.INT8,
    swapped: bool = False,
) -> Graph:
    """As a quantized network has it: what the 1x1 convolution gives becomes levels, which are added
    to the other one's.
    """
    b = Levels(rng)

    def sums(image: Value, taps: int, step: int) -> Value:
        around = ((taps // 2, taps // 2),) * 2
        filters = b.levels((taps, taps, image.shape[-1], columns))
        return b.add(ConvInteger((step,) * 2, around, (1, 1), 1), image, filters, *b.zeros())

    x, z = b.input(shape), b.input(other)
    own = sums(x, window, 1) if swapped else None
    levels = b.requantized(sums(z, 1, stride), other[-1], False, DType.INT8)
    own = own or sums(x, window, 1)
    y = b.requantized(own, window**2 * shape[-1], False, None)
    wide = b.add(Cast(DType.FLOAT32), levels)
    y = b.add(ew.Add(), y, b.add(ew.Mul(), wide, b.floats((columns,))))
    y = b.quantized(y, to, 1.0) if to else b.add(Cast(DType.FLOAT16), y)
    b.graph.mark_output(y, "y")
    return b.graph

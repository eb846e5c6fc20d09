"""A convolution with a pooling behind it, and what varies of it."""

from __future__ import annotations

import numpy as np

from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Node
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Clip, ew
from planish.ops.pool import MaxPool

SAME, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))


class PooledNet:
    """An image, a convolution with a bias, an activation, a pooling.

    Parameters
    ----------
    shape : tuple of int
        The image's.
    filters : int
    window : int
        Of the convolution, whose result is as large as the image if its `strides` are one.
    activation : str
        "relu", "clip", "neg" or "none".
    pool, steps : int
        Window and strides of the pooling.
    shared : bool
        Whether somebody else reads what the convolution gives.
    residual : bool
        Whether an input is added.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int] = (2, 6, 8, 16),
        filters: int = 24,
        *,
        window: int = 3,
        strides: int = 1,
        dtype: DType = DType.FLOAT16,
        activation: str = "relu",
        pool: int = 2,
        steps: int = 2,
        groups: int = 1,
        shared: bool = False,
        residual: bool = False,
        seed: int = 0,
    ) -> None:
        rng, self.graph = np.random.default_rng(seed), Graph("pooled")

        def constant(*sizes: int):
            drawn = rng.standard_normal(sizes) / max(int(np.prod(sizes[:-1])), 1) ** 0.5
            return self.graph.constant(drawn.astype(dtype.numpy))

        x = self.graph.input("x", TensorType(shape, dtype))
        w = constant(window, window, shape[-1] // groups, filters)
        around = ((window // 2,) * 2,) * 2
        y = self.graph.add(Conv((strides,) * 2, around, (1, 1), groups), x, w)
        y = self.graph.add(ew.Add(), y, constant(filters))
        if residual:
            y = self.graph.add(ew.Add(), y, self.graph.input("r", y.type))
        if shared:
            self.graph.mark_output(self.graph.add(ew.Neg(), y), "others")
        if activation != "none":
            ops = {"relu": ew.Relu(), "clip": Clip(-0.5, 0.5), "neg": ew.Neg()}
            y = self.graph.add(ops[activation], y)
        self.result = self.graph.add(MaxPool((pool,) * 2, (steps,) * 2, NONE, (1, 1)), y)
        self.graph.mark_output(self.result, "y")

    @property
    def convolution(self) -> Node:
        """The convolution's node."""
        return next(n for n in self.graph.nodes if isinstance(n.op, Conv))


def pooled_tasks(graph: Graph) -> list[Task]:
    """Convolutions with a pooling that are proposed."""
    return [task for task in propose(graph) if task.pooled]

"""Convolutions: channels-last activations, filters ``[*window, channels / groups, filters]``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import TensorType
from planish.ops.base import Op, require, window_output
from planish.ops.operands import matmul, widen

Padding = tuple[tuple[int, int], ...]
"""Zeros before and after each spatial dimension."""


@dataclass(frozen=True)
class Conv(Op):
    """Convolution (correlation) over any number of spatial dimensions.

    Inputs: activations ``[N, *spatial, C]``, filters ``[*window, C / groups, K]``; output
    ``[N, *spatial', K]``. A depthwise convolution has ``groups == C``. There is no bias here: an
    `Add` after it is one, and is fused.
    """

    strides: tuple[int, ...]
    padding: Padding
    dilations: tuple[int, ...]
    groups: int = 1

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) == 2, "conv takes activations and filters")
        x, w = inputs
        spatial = len(self.strides)
        require(x.type.rank == spatial + 2, f"conv over {spatial} dimensions was given {x.type}")
        require(w.type.rank == spatial + 2, f"conv over {spatial} dimensions has filters {w.type}")
        require(x.dtype is w.dtype, f"conv of {x.dtype.value} has filters of {w.dtype.value}")
        require(
            x.shape[-1] == w.shape[-2] * self.groups,
            f"conv of {x.shape[-1]} channels in {self.groups} group(s) has filters for "
            f"{w.shape[-2]} channels",
        )
        require(
            isinstance(w.shape[-1], int) and w.shape[-1] % self.groups == 0,
            f"conv of {self.groups} groups has {w.shape[-1]} filters",
        )
        require(
            all(isinstance(d, int) and d > 0 for d in w.shape[:-2]),
            f"conv needs a filter window of known, positive size, not {w.shape[:-2]}",
        )
        require(
            min((*self.strides, *self.dilations)) > 0, "conv needs positive strides and dilations"
        )
        outer = [
            window_output(x.shape[1 + i], int(w.shape[i]), s, d, *p)  # type: ignore[arg-type]
            for i, (s, d, p) in enumerate(
                zip(self.strides, self.dilations, self.padding, strict=True)
            )
        ]
        return [TensorType((x.shape[0], *outer, w.shape[-1]), x.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Halves are summed in float32; sums of integers wrap around."""
        x, w = widen(inputs[0]), widen(inputs[1])
        padded = np.pad(x, ((0, 0), *self.padding, (0, 0)))
        window, filters = w.shape[:-2], w.shape[-1]
        size = [
            int(window_output(x.shape[1 + i], window[i], s, d, *p))  # type: ignore[arg-type]
            for i, (s, d, p) in enumerate(
                zip(self.strides, self.dilations, self.padding, strict=True)
            )
        ]
        output = np.zeros((x.shape[0], *size, filters), x.dtype)
        for tap in itertools.product(*(range(n) for n in window)) if output.size else ():
            rows = [
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilations, size, self.strides, strict=True)
            ]
            index = (slice(None), *rows)
            output += self._product(padded[index], w[tap])
        return [output.astype(inputs[0].dtype, copy=False)]

    def _product(self, patch: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """``[..., C]`` times the ``[C / groups, K]`` of one place in the window: ``[..., K]``."""
        channels, filters = kernel.shape
        if self.groups == 1:
            return matmul(patch, kernel)
        if channels == 1 and filters == self.groups:
            return patch * kernel[0]
        *outer, _ = patch.shape
        grouped = patch.reshape(*outer, self.groups, 1, channels)
        per_group = kernel.reshape(channels, self.groups, -1).swapaxes(0, 1)
        if channels == 1:
            return (grouped * per_group).reshape(*outer, filters)
        by_group = np.moveaxis(grouped.reshape(-1, self.groups, channels), 1, 0)
        product = matmul(np.ascontiguousarray(by_group), np.ascontiguousarray(per_group))
        return np.moveaxis(product, 0, 1).reshape(*outer, filters)

"""Examples of a module's inputs for tracing, and which of their dimensions may change."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.errors import InputError
from planish.profile import TensorSpec

SIZES = (2, 3, 5, 7, 11, 13, 17, 19)
"""Sizes of dimensions while tracing: distinct, so that equal ones are equal for a reason, and never
1, which the tracer would take for a constant.
"""


@dataclass(frozen=True)
class Changing:
    """A dimension that may change, and its bounds where there are some."""

    label: str
    least: int | None = None
    most: int | None = None


class Examples:
    """Tensors of zeros for a module's inputs, and the tracer's ranges of their dimensions.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
    dims : dict of str to dict of int to torch.export.Dim.DYNAMIC
        For each input its dimensions that may change.
    """

    def __init__(self, torch: Any, inputs: Mapping[str, TensorSpec]) -> None:
        self._torch = torch
        self._sizes: dict[str, int] = {}
        self.tensors: dict[str, Any] = {}
        self.dims: dict[str, dict[int, Any]] = {}
        for name, spec in inputs.items():
            self._add(name, spec)

    def in_structure_of(self, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """`dims` as ``torch.export`` wants them: what ``**kwargs`` takes stands inside it."""
        plain: dict[str, Any] = {n: d for n, d in self.dims.items() if n in parameters}
        rest = {n: d for n, d in self.dims.items() if n not in parameters}
        for parameter in parameters.values():
            if rest and parameter.kind is parameter.VAR_KEYWORD:
                plain[parameter.name] = rest
        return plain

    def _add(self, name: str, spec: TensorSpec) -> None:
        sizes, dims = [], {}
        for axis, dimension in enumerate(_dimensions(name, spec)):
            if isinstance(dimension, int):
                sizes.append(dimension)
                continue
            if dimension.label not in self._sizes:
                self._sizes[dimension.label] = self._size(dimension)
            # the tracer finds narrower bounds itself, and refuses only a size the module fixes
            changing = self._torch.export.Dim.DYNAMIC
            dims[axis] = (
                changing
                if dimension.most is None
                else changing(min=dimension.least, max=dimension.most)
            )
            sizes.append(self._sizes[dimension.label])
        self.tensors[name] = self._torch.zeros(sizes, dtype=self._dtype(name, spec))
        self.dims[name] = dims

    def _size(self, dimension: Changing) -> int:
        least, most = max(dimension.least or 0, 2), dimension.most or SIZES[-1]
        free = [s for s in SIZES if s not in self._sizes.values() and least <= s <= most]
        return free[0] if free else most

    def _dtype(self, name: str, spec: TensorSpec) -> Any:
        dtype = "float32" if spec.dtype is None else np.dtype(spec.dtype).name
        known = getattr(self._torch, dtype, None)
        if not isinstance(known, self._torch.dtype):
            raise InputError(
                f"PyTorch has no dtype {dtype}",
                where=f"inputs=, {name!r}",
                cure="use float32, int64, bool or another of PyTorch's",
            )
        return known


def _dimensions(name: str, spec: TensorSpec) -> list[int | Changing]:
    """The dimensions of an input: sizes, and what may change."""
    shape = spec.shape
    if hasattr(shape, "opt"):
        return [
            least if least == most else Changing(f"{name}_{axis}", least, most)
            for axis, (least, most) in enumerate(zip(shape.min, shape.max, strict=True))
        ]
    return [
        Changing(size or ("N" if axis == 0 else f"{name}_{axis}"))
        if isinstance(size, str) or size is None
        else int(size)
        for axis, size in enumerate(shape)
    ]

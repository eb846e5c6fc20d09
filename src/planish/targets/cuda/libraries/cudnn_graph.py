"""What cuDNN plans as graphs of data only: a convolution with the elementwise work after it, and
attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType


@dataclass(frozen=True)
class Tensor:
    """A tensor as cuDNN is told of it: images and filters along the first axis, channels along the
    second, in any order in memory; of attention batches, heads, rows and columns.
    """

    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    dtype: DType


@dataclass(frozen=True)
class Step:
    """An elementwise operation; `args` are slots: the convolution's result is slot 0, then come the
    operands, then the steps.
    """

    operation: str
    args: tuple[int, ...]
    slope: float | None = None


@dataclass(frozen=True)
class ConvGraph:
    """A convolution and the steps after it.

    Attributes
    ----------
    image, filters : Tensor
    strides, dilations, before, after : tuple of int
        Of rows and columns.
    operands : tuple of Tensor
        What the steps read, single numbers last.
    steps : tuple of Step
    results : tuple
        Slots that are written, with the tensors they are written to.
    tf32 : bool
        Whether factors in float32 may be rounded to TF32.
    """

    image: Tensor
    filters: Tensor
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    operands: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    results: tuple[tuple[int, Tensor], ...]
    tf32: bool = False

    @property
    def pointers(self) -> int:
        """Tensors in memory."""
        return 2 + len(self.operands) + len(self.results)


@dataclass(frozen=True)
class AttentionGraph:
    """Attention, softmax(scale q kᵀ) v, of halves."""

    q: Tensor
    k: Tensor
    v: Tensor
    result: Tensor
    scale: float

    @property
    def pointers(self) -> int:
        """Tensors in memory."""
        return 4

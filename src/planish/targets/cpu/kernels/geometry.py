"""How a convolution or matrix product looks to the matrix kernel: pixels, depth, channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.targets.base import Binding
from planish.targets.cpu.kernels.gemm import Operand


@dataclass(frozen=True)
class Place:
    """Strides of batch, rows and columns of something the kernel reads or writes."""

    batch: int
    row: int
    column: int


@dataclass(frozen=True)
class Geometry:
    """The problem in the matrix kernel's terms. Strides are in elements.

    `weight_batch` is the stride between the weight matrices of batches, 0 where all share one.
    """

    batch: int
    rows: int
    columns: int
    groups: int
    depth: int
    channels: int
    height: int
    width: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    padded: bool
    source: Place
    outputs: tuple[Place, ...]
    operands: tuple[Place | None, ...]
    shared_weights: bool = True

    @property
    def is_matrix(self) -> bool:
        """Whether every output pixel reads one input pixel, and no border is crossed."""
        return self.window == (1, 1) and not self.padded

    @property
    def pixels(self) -> int:
        """All output pixels."""
        return self.batch * self.rows * self.columns

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        taps = self.window[0] * self.window[1]
        return 2 * self.pixels * self.groups * self.channels * self.depth * taps

    def flattened(self) -> Geometry:
        """The same problem with as few batches and rows as the strides allow (matrices only)."""
        if not self.is_matrix or self.strides != (1, 1):
            return self
        g = self
        if g.rows == 1 or all(p.row == g.columns * p.column for p in g._places()):
            n = g.rows * g.columns
            g = replace(g, rows=1, height=1, columns=n, width=n)
        if not g.shared_weights:
            return g
        if g.rows > 1:
            if all(p.batch == g.rows * p.row for p in g._places()):
                g = replace(g, batch=1, rows=g.batch * g.rows, height=g.batch * g.rows)
        elif all(p.batch == g.columns * p.column for p in g._places()):
            n = g.batch * g.columns
            g = replace(g, batch=1, columns=n, width=n)
        else:
            g = g._batches_as_rows()
        return g

    def _places(self) -> list[Place]:
        return [p for p in (self.source, *self.outputs, *self.operands) if p]

    def _batches_as_rows(self) -> Geometry:
        def turned(place: Place) -> Place:
            return Place(0, place.batch, place.column)

        return replace(
            self,
            batch=1,
            rows=self.batch,
            height=self.batch,
            source=turned(self.source),
            outputs=tuple(map(turned, self.outputs)),
            operands=tuple(p and turned(p) for p in self.operands),
        )


def conv_geometry(task: Task, binding: Binding) -> Geometry | None:
    """The geometry of a 1-D or 2-D convolution with constant filters; None if it is none."""
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, Conv) or len(anchor.op.strides) not in (1, 2):
        return None
    op, (x, w) = anchor.op, anchor.inputs
    if x.dtype is not DType.FLOAT32 or w.data is None:
        return None
    source_value = task.inputs[0]
    source = _axes4(binding.shape(source_value), binding.strides(source_value))
    shape, strides = source
    if strides[-1] != 1 and shape[-1] != 1:
        return None
    out_shape, _ = _axes4(anchor.output.type.bind(binding.symbols), None)
    extra = (2 - len(op.strides)) * (1,)
    padding = (*(((0, 0),) * len(extra)), *op.padding)
    outputs = _output_places(task, binding, _axes4_strides)
    operands = _operand_places(task.epilogue, task, out_shape, binding, _axes4)
    if outputs is None or operands is None:
        return None
    channels = out_shape[-1] // op.groups
    window = (*extra, *w.data.shape[:-2])
    steps, spread = (*extra, *op.strides), (*extra, *op.dilations)
    # Padding counts only where it is read; a VALID convolution may carry none at all.
    last = [
        (n - 1) * s + (t - 1) * d - p[0]
        for n, s, t, d, p in zip(out_shape[1:3], steps, window, spread, padding, strict=True)
    ]
    padded = any(p[0] > 0 for p in padding) or any(
        end >= size for end, size in zip(last, shape[1:3], strict=True)
    )
    geometry = Geometry(
        batch=out_shape[0],
        rows=out_shape[1],
        columns=out_shape[2],
        groups=op.groups,
        depth=shape[3] // op.groups,
        channels=channels,
        height=shape[1],
        width=shape[2],
        window=window,
        strides=steps,
        dilations=spread,
        pads=(padding[0][0], padding[1][0]),
        padded=padded,
        source=Place(*strides[:3]),
        outputs=outputs,
        operands=operands,
    )
    return geometry.flattened() if op.groups == 1 and task.prologue is None else geometry


def matmul_geometry(task: Task, binding: Binding) -> Geometry | None:
    """The geometry of a matrix product of float32; None if it is none, or A is transposed.

    The batch dimensions of A must be the output's, those of B the output's or absent.
    """
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, MatMul) or task.prologue is not None:
        return None
    op, (a, b) = anchor.op, anchor.inputs
    if a.dtype is not DType.FLOAT32 or op.transpose_a or a.type.rank < 2 or b.type.rank < 2:
        return None
    a_shape, b_shape = binding.shape(a), binding.shape(b)
    out_shape = anchor.output.type.bind(binding.symbols)
    shared = math.prod(b_shape[:-2]) == 1
    if a_shape[:-2] != out_shape[:-2] or not (shared or b_shape[:-2] == out_shape[:-2]):
        return None
    folded = _fold_batches(a_shape, binding.strides(a))
    if folded is None or (folded[-1] != 1 and a_shape[-1] != 1):
        return None
    outputs: list[Place] = []
    operands: list[Place | None] = []
    for value in task.outputs:
        strides = _fold_batches(binding.shape(value), binding.strides(value))
        if strides is None or (strides[-1] != 1 and out_shape[-1] != 1):
            return None
        outputs.append(Place(strides[0], 0, strides[1]))
    for source in task.epilogue.sources:
        if source is None or source == ACCUMULATOR:
            operands.append(None)
            continue
        value = task.inputs[source]
        spread = broadcast_strides(value, out_shape, binding)
        strides = _fold_batches(out_shape, spread) if spread else None
        if strides is None or strides[-1] not in (0, 1):
            return None
        operands.append(Place(strides[0], 0, strides[1]))
    rows = a_shape[-2]
    geometry = Geometry(
        batch=math.prod(out_shape[:-2]),
        rows=1,
        columns=rows,
        groups=1,
        depth=a_shape[-1],
        channels=out_shape[-1],
        height=1,
        width=rows,
        window=(1, 1),
        strides=(1, 1),
        dilations=(1, 1),
        pads=(0, 0),
        padded=False,
        source=Place(folded[0], 0, folded[1]),
        outputs=tuple(outputs),
        operands=tuple(operands),
        shared_weights=shared,
    )
    return geometry.flattened() if shared else geometry


def operand_kinds(fused: Fused, task: Task, last_axis: int, binding: Binding) -> tuple:
    """For each leaf an `Operand`, or None for the accumulator and constants."""
    kinds: list[Operand | None] = []
    for source in fused.sources:
        if source is None or source == ACCUMULATOR:
            kinds.append(None)
            continue
        value = task.inputs[source]
        shape = binding.shape(value)
        varies = bool(shape) and shape[-1] != 1 and last_axis != 1
        kinds.append(Operand(value.dtype, 1 if varies else 0))
    return tuple(kinds)


def broadcast_strides(
    value: Value, shape: Sequence[int], binding: Binding
) -> tuple[int, ...] | None:
    """Strides of a value as seen from a shape it broadcasts to; None if it does not."""
    own, strides = binding.shape(value), binding.strides(value)
    lead = len(shape) - len(own)
    if lead < 0:
        return None
    result = [0] * lead
    for n, s, full in zip(own, strides, shape[lead:], strict=True):
        if n != full and n != 1:
            return None
        result.append(0 if n == 1 else s)
    return tuple(result)


def pack_weights(
    weights: np.ndarray, groups: int, vectors: int, lanes: int, transposed: bool = False
) -> np.ndarray:
    """Filters ``[*window, C / groups, K]`` (or a matrix) as the matrix kernel reads them.

    Returns
    -------
    array of float32, ``[groups, blocks, window x C / groups, vectors * lanes]``, zero padded.
    """
    if transposed:
        weights = np.swapaxes(weights, -1, -2)
    channels = weights.shape[-1] // groups
    depth = weights.size // weights.shape[-1]
    width = vectors * lanes
    blocks = -(-channels // width)
    packed = np.zeros((groups, depth, blocks * width), np.float32)
    packed[:, :, :channels] = weights.reshape(depth, groups, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(packed.reshape(groups, depth, blocks, width).transpose(0, 2, 1, 3))


# --------------------------------------------------------------------------------------------


def _axes4(
    shape: Sequence[int], strides: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides as batch, row, column, channel."""
    strides = strides or (0,) * len(shape)
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:]), (strides[0], 0, *strides[1:])
    return tuple(shape), tuple(strides)


def _axes4_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    return _axes4(shape, strides)[1]


def _output_places(task: Task, binding: Binding, axes) -> tuple[Place, ...] | None:
    places = []
    for value in task.outputs:
        strides = axes(binding.shape(value), binding.strides(value))
        if strides[-1] != 1 and binding.shape(value)[-1] != 1:
            return None
        places.append(Place(*strides[:3]))
    return tuple(places)


def _operand_places(
    fused: Fused, task: Task, out_shape: tuple[int, ...], binding: Binding, axes
) -> tuple[Place | None, ...] | None:
    places: list[Place | None] = []
    for source in fused.sources:
        if source is None or source == ACCUMULATOR:
            places.append(None)
            continue
        value = task.inputs[source]
        rank = task.outputs[0].type.rank
        shape = out_shape if rank == 4 else (out_shape[0], *out_shape[2:])
        spread = broadcast_strides(value, shape, binding)
        if spread is None:
            return None
        strides = axes(shape, spread)[1]
        if strides[-1] not in (0, 1):
            return None
        places.append(Place(*strides[:3]))
    return tuple(places)


def _fold_batches(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of (all batches as one, row, column); None if the batches do not fold."""
    lead = [(n, s) for n, s in zip(shape[:-2], strides[:-2], strict=True) if n != 1]
    for (_, outer), (n, inner) in itertools.pairwise(lead):
        if outer != n * inner:
            return None
    return (lead[-1][1] if lead else 0, *strides[-2:])

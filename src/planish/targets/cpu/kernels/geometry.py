"""How a convolution or matrix product looks to the matrix kernel: pixels, depth, channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding
from planish.targets.batches import two_levels
from planish.targets.cpu.kernels.epilogue import Operand


@dataclass(frozen=True)
class Place:
    """Strides of batch, group, rows and columns of something the kernel reads or writes."""

    batch: int
    group: int
    row: int
    column: int

    @property
    def params(self) -> tuple[int, int, int, int]:
        """As `epilogue.Arguments.lie` takes them."""
        return self.batch, self.group, self.row, self.column


@dataclass(frozen=True)
class Geometry:
    """The problem in the matrix kernel's terms. Strides are in elements.

    A stack of matrix products has two levels of batch dimensions, `batch` and `groups`; the groups
    of a convolution are the second one.

    Attributes
    ----------
    weights : tuple of int
        From the weight matrix of a batch, and of a group, to the next one: 0 where they share it.
    matrices : int
        How many weight matrices there are.
    second : Place or None
        Of matrix products, where B's matrices lie.
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
    weights: tuple[int, int] = (0, 0)
    matrices: int = 1
    second: Place | None = None

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

    def epilogue_arguments(self, task: Task) -> tuple[tuple[Value, ...], tuple[int, ...]]:
        """Pointers and parameters of the outputs and of the operands in memory, as
        `epilogue.Epilogue` takes them.
        """
        values, places = list(task.outputs), list(self.outputs)
        for source, place in zip(task.epilogue.sources, self.operands, strict=True):
            if place:
                assert source is not None
                values.append(task.inputs[source])
                places.append(place)
        return tuple(values), tuple(n for place in places for n in place.params)

    @property
    def columns_apart(self) -> tuple[int, ...]:
        """From a pixel to the next, in each output and in each operand in memory."""
        return tuple(p.column for p in (*self.outputs, *self.operands) if p)

    def flattened(self) -> Geometry:
        """The same problem with as few batches and rows as the strides allow (matrices only)."""
        if not self.is_matrix or self.strides != (1, 1):
            return self
        g = self
        if g.rows == 1 or all(p.row == g.columns * p.column for p in g._places()):
            n = g.rows * g.columns
            g = replace(g, rows=1, height=1, columns=n, width=n)
        if g.weights[0]:
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
            return Place(0, place.group, place.batch, place.column)

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
    return binding.derived(_conv_geometry, task)


def _conv_geometry(task: Task, binding: Binding) -> Geometry | None:
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, Conv | ConvInteger):
        return None
    op, (x, w) = anchor.op, anchor.inputs[:2]
    if len(op.strides) not in (1, 2) or w.data is None or not _is_multiplied(x):
        return None
    before = [evaluate(pair[0], binding.symbols) for pair in op.padding]
    source_value = task.inputs[0]
    source = _axes4(binding.shape(source_value), binding.strides(source_value))
    shape, strides = source
    if strides[-1] != 1 and shape[-1] != 1:
        return None
    out_shape = anchor.output.type.bind(binding.symbols)
    batch, rows, columns, _ = _axes4(out_shape, None)[0]
    extra = (2 - len(op.strides)) * (1,)
    pads = (*((0,) * len(extra)), *before)
    channels = out_shape[-1] // op.groups
    outputs = _output_places(task, channels, binding)
    operands = _operand_places(task.epilogue, task, out_shape, channels, binding)
    if outputs is None or operands is None:
        return None
    window = (*extra, *w.data.shape[:-2])
    steps, spread = (*extra, *op.strides), (*extra, *op.dilations)
    # Padding counts only where it is read; a VALID convolution may carry none at all.
    last = [
        (n - 1) * s + (t - 1) * d - p
        for n, s, t, d, p in zip((rows, columns), steps, window, spread, pads, strict=True)
    ]
    padded = any(p > 0 for p in pads) or any(
        end >= size for end, size in zip(last, shape[1:3], strict=True)
    )
    geometry = Geometry(
        batch=batch,
        rows=rows,
        columns=columns,
        groups=op.groups,
        depth=shape[3] // op.groups,
        channels=channels,
        height=shape[1],
        width=shape[2],
        window=window,
        strides=steps,
        dilations=spread,
        pads=(pads[0], pads[1]),
        padded=padded,
        source=_place(strides, shape[3] // op.groups),
        outputs=outputs,
        operands=operands,
        weights=(0, 1 if op.groups > 1 else 0),
        matrices=op.groups,
    )
    return geometry.flattened() if op.groups == 1 and task.prologue is None else geometry


def matmul_geometry(task: Task, binding: Binding) -> Geometry | None:
    """The geometry of a matrix product; None if it is none of ours, or A is transposed.

    The batch dimensions must reduce to two, along which every tensor has one stride: 0 where it is
    broadcast.
    """
    return binding.derived(_matmul_geometry, task)


def _matmul_geometry(task: Task, binding: Binding) -> Geometry | None:
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, MatMul | MatMulInteger) or task.prologue:
        return None
    op, (a, b) = anchor.op, anchor.inputs[:2]
    if not _is_multiplied(a) or op.transpose_a or a.type.rank < 2 or b.type.rank < 2:
        return None
    rows, depth = binding.shape(a)[-2:]
    out_shape = anchor.output.type.bind(binding.symbols)
    channels, lead = out_shape[-1], out_shape[:-2]
    sources = [s for s in task.epilogue.sources if s is not None and s != ACCUMULATOR]
    tensors = [a, b, *task.outputs, *(task.inputs[s] for s in sources)]
    shapes = [(*lead, *binding.shape(v)[-2:]) for v in (a, b)]
    shapes += [out_shape] * (len(tensors) - 2)
    strides = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        spread = broadcast_strides(tensor, shape, binding)
        if spread is None:
            return None
        strides.append(spread)
    levels = two_levels(lead, [s[:-2] for s in strides])
    if levels is None:
        return None
    (batch, groups), steps = levels
    places = [Place(*step, 0, s[-2]) for step, s in zip(steps, strides, strict=True)]
    first_operand = 2 + len(task.outputs)
    dense = [strides[0][-1] == 1 or depth == 1]
    dense += [s[-1] == 1 or channels == 1 for s in strides[2:first_operand]]
    dense += [s[-1] in (0, 1) for s in strides[first_operand:]]
    if not all(dense):
        return None
    operands = iter(places[first_operand:])
    own = batch if places[1].batch else 1, groups if places[1].group else 1
    geometry = Geometry(
        batch=batch,
        rows=1,
        columns=rows,
        groups=groups,
        depth=depth,
        channels=channels,
        height=1,
        width=rows,
        window=(1, 1),
        strides=(1, 1),
        dilations=(1, 1),
        pads=(0, 0),
        padded=False,
        source=places[0],
        outputs=tuple(places[2:first_operand]),
        operands=tuple(
            None if s is None or s == ACCUMULATOR else next(operands) for s in task.epilogue.sources
        ),
        weights=(own[1] if own[0] > 1 else 0, 1 if own[1] > 1 else 0),
        matrices=own[0] * own[1],
        second=places[1],
    )
    return geometry.flattened()


def operand_kinds(fused: Fused, task: Task, last_axis: int, binding: Binding) -> tuple:
    """For each leaf an `Operand`, or None for the accumulator and constants.

    `last_axis` is the extent of the last axis that they broadcast to.
    """
    kinds: list[Operand | None] = []
    for source in fused.sources:
        if source is None or source == ACCUMULATOR:
            kinds.append(None)
            continue
        value = task.inputs[source]
        shape = binding.shape(value)
        varies = bool(shape) and shape[-1] != 1 and last_axis != 1
        by_pixel = any(n != 1 for n in shape[:-1])
        kinds.append(Operand(value.dtype, 1 if varies else 0, by_pixel))
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


def operand_place(
    value: Value, shape: Sequence[int], channels: int, binding: Binding
) -> Place | None:
    """Where a value lies that is broadcast to an image ``[N, (rows,) columns, C]``.

    None if it does not broadcast, or its channels do not lie side by side. A group has `channels`
    of them.
    """
    spread = broadcast_strides(value, shape, binding)
    if spread is None or spread[-1] not in (0, 1):
        return None
    return _place(_axes4(shape, spread)[1], channels)


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


def _is_multiplied(value: Value) -> bool:
    """Whether there is a matrix kernel for the dtype: float32, bfloat16, bytes."""
    return value.dtype in (DType.FLOAT32, DType.BFLOAT16, DType.INT8, DType.UINT8)


def _axes4(
    shape: Sequence[int], strides: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides as batch, row, column, channel."""
    strides = strides or (0,) * len(shape)
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:]), (strides[0], 0, *strides[1:])
    return tuple(shape), tuple(strides)


def _place(strides: Sequence[int], channels: int) -> Place:
    """From strides of batch, row, column and channel, and how many channels a group has."""
    batch, row, column, channel = strides
    return Place(batch, channels * channel, row, column)


def _output_places(task: Task, channels: int, binding: Binding) -> tuple[Place, ...] | None:
    places = []
    for value in task.outputs:
        shape, strides = _axes4(binding.shape(value), binding.strides(value))
        if strides[-1] != 1 and shape[-1] != 1:
            return None
        places.append(_place(strides, channels))
    return tuple(places)


def _operand_places(
    fused: Fused, task: Task, out_shape: Sequence[int], channels: int, binding: Binding
) -> tuple[Place | None, ...] | None:
    places: list[Place | None] = []
    for source in fused.sources:
        if source is None or source == ACCUMULATOR:
            places.append(None)
            continue
        place = operand_place(task.inputs[source], out_shape, channels, binding)
        if place is None:
            return None
        places.append(place)
    return tuple(places)

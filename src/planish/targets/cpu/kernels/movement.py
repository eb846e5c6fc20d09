"""Ops that move elements: transpose, slice, pad, concatenate, gather, scatter, reshape and kin.

Each becomes loop nests (`loopnest.py`) whose operands are views: the anchor's work is done by
strides, offsets and indices, so a prologue and an epilogue come along at no cost. One function per
op plans the launches; `PLANS` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops import indexing, shape
from planish.ops.base import Op, normalize_axis
from planish.ops.elementwise import Cast, Elementwise, Select, ew
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace, dense_strides
from planish.targets.cpu.kernels.compose import Composer
from planish.targets.cpu.kernels.elementwise import UNROLLS
from planish.targets.cpu.kernels.loopnest import launch
from planish.targets.cpu.kernels.nest import Operand, Term
from planish.targets.cpu.kernels.padding import Piece, pad_pieces
from planish.targets.cpu.kernels.parameters import ParametersKernel
from planish.targets.cpu.kernels.space import is_heavy
from planish.targets.cpu.kernels.views import View
from planish.targets.movement import MovementJob
from planish.targets.restoring import Allowed

Move = Callable[[View], View]


@dataclass(frozen=True)
class Plan:
    """What a tactic launches, and the workspace between the launches."""

    launches: list[Launch]
    workspace: int = 0


@dataclass(frozen=True)
class Job(MovementJob):
    """A task to be planned, as views and loop nests."""

    unroll: int

    def view(self, value: Value) -> View:
        """A value as it lies in memory."""
        return View.of(value, self.binding)

    def read_source(self, composer: Composer, move: Move) -> int:
        """The anchor's first input, the prologue applied, every operand of it moved."""
        if self.task.prologue is None:
            return composer.read(move(self.view(self.source)).operand())
        (result,) = composer.fused(
            self.task,
            self.task.prologue,
            lambda v: move(self.view(v).broadcast(self.source_shape)).operand(),
        )
        return result

    def finish(
        self,
        composer: Composer,
        result: int,
        shape: Sequence[int],
        place: Move = lambda view: view,
    ) -> Launch:
        """The launch that applies the epilogue to a result and stores it.

        `place` turns a view of the output's shape into one of the iteration space's.
        """
        results = composer.fused(
            self.task,
            self.task.epilogue,
            lambda v: place(self.view(v).broadcast(self.shape)).operand(),
            result,
        )
        outputs = [place(self.view(v)).operand() for v in self.task.outputs]
        expression = composer.expression(results)
        return launch(expression, composer.operands, outputs, shape, unroll=self.unroll)

    def moved(
        self, move: Move, shape: Sequence[int] | None = None, place: Move = lambda view: view
    ) -> Plan:
        """One launch that reads the source through a view."""
        composer = Composer()
        result = self.read_source(composer, move)
        return Plan([self.finish(composer, result, self.shape if shape is None else shape, place)])


# ---- views ---------------------------------------------------------------------------------


def _transpose(job: Job) -> Plan:
    return job.moved(lambda view: view.transpose(job.op.perm))


def _slice(job: Job) -> Plan:
    begin, size = job.dims(job.op.begin), job.dims(job.op.size)
    return job.moved(lambda view: view.slice(begin, size, job.op.strides))


def _broadcast(job: Job) -> Plan:
    return job.moved(lambda view: view.broadcast(job.shape))


def _tile(job: Job) -> Plan:
    repeats = job.dims(job.op.repeats)
    sizes = [(r, n) for r, n in zip(repeats, job.source_shape, strict=True)]
    space = [n for pair in sizes for n in pair]

    def move(view: View) -> View:
        parts = view.split([(1, n) for n in view.shape])
        return parts.slice([0] * len(space), space, [i % 2 for i in range(len(space))])

    return job.moved(move, space, lambda view: view.split(sizes))


def _reshape(job: Job) -> Plan:
    """One launch over the new shape or the old one, whichever all operands can be seen in; else a
    dense copy in between.
    """
    before, after = job.source_shape, job.shape
    if all(job.view(v).broadcast(before).reshape(after) for v in _before(job)):
        return job.moved(lambda view: _seen(view, after))
    if all(job.view(v).broadcast(after).reshape(before) for v in _after(job)):
        return job.moved(lambda view: view, before, lambda view: _seen(view, before))
    dtype = job.source.dtype
    composer = Composer()
    result = job.read_source(composer, lambda view: view)
    dense = Operand(Workspace(), dtype, dense_strides(before))
    first = launch(
        composer.expression([result]), composer.operands, [dense], before, unroll=job.unroll
    )
    composer = Composer()
    result = composer.read(Operand(Workspace(), dtype, dense_strides(after)))
    second = job.finish(composer, result, after)
    return Plan([first, second], math.prod(before) * dtype.size)


def _seen(view: View, shape: Sequence[int]) -> View:
    seen = view.reshape(shape)
    assert seen is not None
    return seen


def _before(job: Job) -> list[Value]:
    """What is read in the shape of the anchor's input."""
    if job.task.prologue is None:
        return [job.source]
    sources = job.task.prologue.sources
    return [job.task.inputs[s] for s in sources if s is not None]


def _after(job: Job) -> list[Value]:
    """What is read or written in the shape of the anchor's output."""
    sources = job.task.epilogue.sources
    read = [job.task.inputs[s] for s in sources if s is not None and s >= 0]
    return [*job.task.outputs, *read]


# ---- pieces --------------------------------------------------------------------------------


def _pad(job: Job) -> Plan:
    padding = [job.dims(pair) for pair in job.op.padding]
    launches = []
    for piece in pad_pieces(job.source_shape, padding, job.op.mode):
        composer = Composer()
        if piece.source is None:
            dtype = job.source.dtype
            value = dtype.numpy.type(job.op.value).item()
            result = composer.constant(value, dtype)
        else:
            result = job.read_source(composer, _piece_source(piece))
        launches.append(
            job.finish(
                composer,
                result,
                piece.size,
                _box(piece.begin, piece.size),
            )
        )
    return Plan(launches)


def _box(begin: Sequence[int], size: Sequence[int]) -> Move:
    return lambda view: view.slice(begin, size)


def _piece_source(piece: Piece) -> Move:
    assert piece.source is not None
    begin, steps = piece.source
    return lambda view: view.slice(begin, piece.size, steps)


def _concat(job: Job) -> Plan:
    assert job.task.anchor is not None
    axis = normalize_axis(job.op.axis, len(job.shape))
    launches, start = [], 0
    for number, value in enumerate(job.task.anchor.inputs):
        size = value.type.bind(job.binding.symbols)
        begin = [start if a == axis else 0 for a in range(len(size))]
        start += size[axis]
        composer = Composer()
        if number == 0:
            result = job.read_source(composer, lambda view: view)
        else:
            result = composer.read(job.view(value).operand())
        launches.append(
            job.finish(
                composer,
                result,
                size,
                _box(begin, size),
            )
        )
    return Plan(launches)


# ---- indices -------------------------------------------------------------------------------


def _gather(job: Job) -> Plan:
    """Output ``[*outer, *indices, *inner]``: the axis becomes an index, of stride 0 elsewhere."""
    indices = job.view(job.operand(1))
    axis, batch = normalize_axis(job.op.axis, len(job.source_shape)), job.op.batch_dims
    places = indices.shape[batch:]

    def move(view: View) -> View:
        outer, inner = view.strides[:axis], view.strides[axis + 1 :]
        none = (0,) * (axis - batch)
        index = Operand(
            indices.pointer,
            indices.dtype,
            (*indices.strides[:batch], *none, *indices.strides[batch:], *(0,) * len(inner)),
        )
        term = Term(index, view.shape[axis], view.strides[axis])
        strides = (*outer, *(0,) * len(places), *inner)
        return View(view.pointer, view.dtype, job.shape, strides, view.offset, (term,))

    return job.moved(move)


def _gather_nd(job: Job) -> Plan:
    indices, batch = job.view(job.operand(1)), job.op.batch_dims
    places = len(indices.shape) - 1 - batch

    def move(view: View) -> View:
        terms = _vector_terms(indices, view, batch)
        rest = view.strides[batch + len(terms) :]
        strides = (*view.strides[:batch], *(0,) * places, *rest)
        return View(view.pointer, view.dtype, job.shape, strides, view.offset, terms)

    return job.moved(move)


def _vector_terms(indices: View, data: View, batch: int) -> tuple[Term, ...]:
    """The terms of vectors of indices into the axes of data from `batch` on."""
    depth = indices.shape[-1]
    rest = (0,) * (len(data.shape) - batch - depth)
    strides = (*indices.strides[:-1], *rest)
    return tuple(
        Term(
            Operand(indices.pointer, indices.dtype, strides, i * indices.strides[-1]),
            data.shape[batch + i],
            data.strides[batch + i],
        )
        for i in range(depth)
    )


_COMBINE: dict[str, Elementwise] = {
    "add": ew.Add(),
    "mul": ew.Mul(),
    "max": ew.Maximum(),
    "min": ew.Minimum(),
}


def _scatter_nd(job: Job) -> Plan:
    """A copy, then the updates one after the other."""
    copy = job.moved(lambda view: view).launches
    output, indices = job.view(job.task.output), job.view(job.operand(1))
    updates = job.view(job.operand(2))
    terms = _vector_terms(indices, output, 0)
    places = len(indices.shape) - 1
    strides = ((0,) * places + output.strides[len(terms) :])[: len(updates.shape)]
    target = Operand(output.pointer, output.dtype, strides, output.offset, terms)
    composer = Composer()
    result = composer.read(updates.operand())
    if job.op.reduction != "none":
        old = composer.read(target)
        result = composer.apply(_COMBINE[job.op.reduction], output.dtype, old, result)
    scatter = launch(
        composer.expression([result]),
        composer.operands,
        [target],
        updates.shape,
        unroll=job.unroll,
        serial=True,
    )
    return Plan([*copy, scatter])


def _one_hot(job: Job) -> Plan:
    """``index == position ? on : off``; the position along the axis is an operand of no memory."""
    axis = normalize_axis(job.op.axis, len(job.shape))

    def move(view: View) -> View:
        strides = (*view.strides[:axis], 0, *view.strides[axis:])
        return View(view.pointer, view.dtype, job.shape, strides, view.offset)

    composer = Composer()
    index = composer.apply(Cast(DType.INT64), DType.INT64, job.read_source(composer, move))
    along = tuple(int(a == axis) for a in range(len(job.shape)))
    position = composer.read(Operand(None, DType.INT64, along))
    hot = composer.apply(ew.Equal(), DType.BOOL, index, position)
    on, off = (
        composer.read(job.view(job.operand(i)).broadcast(job.shape).operand()) for i in (1, 2)
    )
    result = composer.apply(Select(), job.operand(1).dtype, hot, on, off)
    return Plan([job.finish(composer, result, job.shape)])


# ---- shapes as data ------------------------------------------------------------------------


def _parameters(job: Job, values: Sequence[int]) -> Plan:
    value = job.task.output
    strides = job.binding.strides(value)
    stride = strides[0] if strides else 1
    kernel = ParametersKernel(value.dtype)
    params = (len(values), stride, *values)
    return Plan([Launch(kernel, (value,), params, tasks=min(len(values), 1))])


def _dims(job: Job) -> Plan:
    values = job.op.values
    return _parameters(job, job.dims(values if isinstance(values, tuple) else (values,)))


def _shape_of(job: Job) -> Plan:
    return _parameters(job, job.source_shape)


PLANS: dict[type[Op], Callable[[Job], Plan]] = {
    shape.Transpose: _transpose,
    shape.Slice: _slice,
    shape.BroadcastTo: _broadcast,
    shape.Tile: _tile,
    shape.Reshape: _reshape,
    shape.Identity: _reshape,
    shape.Pad: _pad,
    shape.Concat: _concat,
    shape.Dims: _dims,
    shape.ShapeOf: _shape_of,
    indexing.Gather: _gather,
    indexing.GatherNd: _gather_nd,
    indexing.ScatterNd: _scatter_nd,
    indexing.OneHot: _one_hot,
}

_BARE = (shape.Dims, shape.ShapeOf)
_NO_EPILOGUE = (*_BARE, indexing.ScatterNd)


@dataclass(frozen=True)
class MovementTactic(Tactic):
    """The launches that `PLANS` has for the anchor."""

    family = "movement"
    unroll: int = 4

    def accepts(self, binding: Binding) -> bool:
        anchor = self.task.anchor
        assert anchor is not None
        if any(binding.shape(v) != _bound(anchor.output, binding) for v in self.task.outputs):
            return False
        if isinstance(anchor.op, indexing.Gather | indexing.GatherNd):
            # no index is valid then, and there is no element to clamp it to
            return 0 not in _bound(anchor.inputs[0], binding) or 0 in binding.shape(
                self.task.output
            )
        return True

    def launches(self, binding: Binding) -> list[Launch]:
        return self._plan(binding).launches

    def workspace(self, binding: Binding) -> int:
        return self._plan(binding).workspace

    def _plan(self, binding: Binding) -> Plan:
        assert self.task.anchor is not None
        return PLANS[type(self.task.anchor.op)](Job(self.task, binding, self.unroll))


def _bound(value: Value, binding: Binding) -> tuple[int, ...]:
    return value.type.bind(binding.symbols)


class MovementFamily(Family):
    """Offers loop nests for tasks whose anchor moves elements."""

    name: ClassVar[str] = "movement"
    tactic: ClassVar[type[Tactic]] = MovementTactic
    allowed: ClassVar[Allowed] = {"unroll": UNROLLS}

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and type(task.anchor.op) in PLANS

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        assert task.anchor is not None
        op, epilogue = task.anchor.op, task.epilogue.expression
        if isinstance(op, _NO_EPILOGUE) and not epilogue.is_copy:
            return
        if isinstance(op, _BARE) and task.prologue is not None:
            return
        around = [epilogue, *([task.prologue.expression] if task.prologue else [])]
        yield MovementTactic(task, 2 if any(map(is_heavy, around)) else 4)


FAMILIES = (MovementFamily(),)

"""Tactics of the matrix kernel: convolutions and matrix products on GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Workspace, Zeroed
from planish.targets.cuda.kernels import matrix_cost as cost
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import Access
from planish.targets.cuda.kernels.matrix_image import (
    CHANNELS,
    PIXELS,
    ImageCopy,
    by_pixels,
    filters_by_pixels,
    filters_on_copy,
)
from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel
from planish.targets.cuda.kernels.matrix_problem import (
    BYTES,
    Convolution,
    Problem,
    corrections,
    filters,
    is_packed,
    neighbours,
    pack,
    problem_of,
    understood,
    zero_of,
)
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT, Tile, Walk, ceil
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.execution import ZEROED_BYTES
from planish.targets.restoring import FLAG, Allowed

_LIMITS = {0: 5, 1: 14, 3: 7}
"""Tactics offered, by `Tile.passes`."""
FEW_COLUMNS = 32
"""Of so few a row may compute several pixels."""
FEW_CHANNELS, WHOLE_COLUMNS = 32, 64
"""Pixels of so few bytes are multiplied several at a time if their filters are then whole tiles."""


@dataclass(frozen=True)
class MatrixTactic(AnchoredTactic):
    """The matrix kernel with a tile.

    The fields are those of `Tile`, warps and stages; `channels`, how many a copy of the images has
    that is made first (see `matrix_image`), 0 for none; and `pixels`, how many of the result a row
    computes where that copy is folded, or several rows of a product are one, else 0.
    """

    family: ClassVar[str] = "matrix"

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    split: int = 1
    walk: int = 0
    vector: bool = False
    passes: int = 1
    channels: int = 0
    transposed: bool = False
    pixels: int = 0
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def precision(self) -> str:
        single = self.anchor.inputs[0].dtype is DType.FLOAT32
        return "tf32" if single and self.passes == 1 else super().precision

    @property
    def tile(self) -> Tile:
        """What a program computes."""
        return Tile(
            self.rows,
            self.columns,
            self.depth,
            self.split,
            Walk(self.walk),
            self.vector,
            self.passes,
            self.transposed,
        )

    def accepts(self, binding: Binding) -> bool:
        if not super().accepts(binding):
            return False
        source = problem_of(self.task, binding)
        problem = self._changed(source)[0] if source else None
        if problem is None:
            return False
        if self._sums(problem) > cost.MOST_WORKSPACE or self.zeroed(binding) > ZEROED_BYTES:
            return False
        window = problem.window
        if self.walk == Walk.ROW and window is not None and window.dilations[1] != 1:
            return False
        if self.tile.is_persistent and not cost.may_persist(shape_of(problem), self.tile):
            return False
        return self._tiles(problem) * self.tile.shares < 1 << 31

    def constants(self) -> list[np.ndarray]:
        if not is_packed(self.task):
            return []
        weights, op = filters(self.task), self.anchor.op
        strides = (1, *op.strides)[-2:] if isinstance(op, Convolution) else (1, 1)
        if self.channels:
            weights = filters_on_copy(weights, self.channels, strides, self.pixels)
        elif self.pixels:
            weights = filters_by_pixels(weights, strides[-1], self.pixels)
        packed = [pack(weights, self.tile, self._neighbours)]
        zero = zero_of(self.task) - 128 * (self.anchor.inputs[0].dtype is DType.UINT8)
        return [*packed, corrections(weights, zero, self.tile)] if zero else packed

    def launches(self, binding: Binding) -> list[Launch]:
        problem, copy = self._problem(binding)
        launches: list[Launch] = []
        pointers: list[Pointer] = [*problem.left_values]
        sums = Workspace()
        if copy:
            where: tuple[Pointer, ...] = (*copy.source.left_values, Workspace())
            tasks = ceil(copy.places, copy.kernel.pixels)
            launches.append(Launch(copy.kernel, where, (copy.places,), tasks))
            sums, pointers = Workspace(copy.bytes), [Workspace()]
        kernel = MatrixKernel(
            warps=self.warps,
            stages=self.stages,
            tile=self.tile,
            dtype=problem.dtype,
            left=problem.left,
            axes=problem.axes,
            batched=problem.batched,
            window=problem.window,
            right=problem.right,
            right_axes=problem.right_axes,
            channels=problem.channels,
            columns=problem.columns,
            result=problem.result,
            whole_rows=problem.whole_rows,
            zero=problem.zero,
            pixels=problem.pixels,
            neighbours=self._neighbours,
            codes=problem.codes,
        )
        pointers.append(problem.right_value or Constant(0))
        if kernel.is_corrected:
            pointers.append(Constant(1))
        pointers += problem.result_values
        if self.split > 1:
            pointers += [sums, Zeroed()]
        tasks = self._tiles(problem) * self.tile.shares
        if self.tile.is_persistent:
            choice = cost.Choice(self.tile, self.warps, self.stages)
            lanes = cost.lanes(choice, shape_of(problem), self.machine)
            tasks = lanes * ceil(problem.columns, self.columns)
        return [*launches, Launch(kernel, tuple(pointers), (problem.rows,), tasks)]

    def workspace(self, binding: Binding) -> int:
        problem, copy = self._problem(binding)
        return (copy.bytes if copy else 0) + self._sums(problem)

    def _sums(self, problem: Problem) -> int:
        """Bytes of what programs that share tiles hand to one another."""
        if self.split <= 1:
            return 0
        return 4 * self._tiles(problem) * self.split * self.rows * self.columns

    def zeroed(self, binding: Binding) -> int:
        return 4 * self._tiles(self._problem(binding)[0]) if self.split > 1 else 0

    @property
    def _neighbours(self) -> int:
        return neighbours(self.task, self.tile, self.warps)

    def _problem(self, binding: Binding) -> tuple[Problem, ImageCopy | None]:
        """The problem, on copied images if they are copied."""
        source = problem_of(self.task, binding)
        assert source is not None, "the tactic accepts the binding"
        problem, copy = self._changed(source)
        assert problem is not None, "the tactic accepts the binding"
        return problem, copy

    def _changed(self, problem: Problem) -> tuple[Problem | None, ImageCopy | None]:
        """The problem on copied images, or with several pixels a row; None if it cannot be."""
        if self.channels:
            copy = ImageCopy(problem, self.channels, self.pixels)
            return (copy.problem, copy) if copy.makes_sense else (None, None)
        return (by_pixels(problem, self.pixels) if self.pixels else problem), None

    def _tiles(self, problem: Problem) -> int:
        down, across = ceil(problem.rows, self.rows), ceil(problem.columns, self.columns)
        return problem.batch * down * across


@dataclass(frozen=True)
class MatrixFamily(MachineFamily):
    """Convolutions without groups and matrix products, for this or another machine."""

    name: ClassVar[str] = "matrix"
    tactic: ClassVar[type[Tactic]] = MatrixTactic
    allowed: ClassVar[Allowed] = {
        "rows": (*cost.VECTOR_ROWS, *cost.ROWS),
        "columns": (*cost.VECTOR_COLUMNS, *cost.COLUMNS),
        "depth": (*cost.DEPTHS, cost.DEEPEST, *cost.VECTOR_DEPTHS),
        "warps": (2, 4, 8),
        "stages": (1, *cost.STAGES),
        "split": (PERSISTENT, *cost.SPLITS),
        "walk": tuple(map(int, Walk)),
        "vector": FLAG,
        "passes": (0, 1, 3),
        "channels": range(CHANNELS[-1] + 1),
        "transposed": FLAG,
        "pixels": (0, *PIXELS),
    }

    def understands(self, task: Task) -> bool:
        return understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        problem = problem_of(task, binding)
        if problem is None:
            return
        single = problem.dtype is DType.FLOAT32
        for passes in (1, 3, 0) if single else (1,):
            for choice, form in self._choices(problem, passes):
                tile = choice.tile
                if tile.vector and passes == 1 and single:
                    continue  # it is offered as what it is: without tensor cores
                tactic = MatrixTactic(
                    task,
                    tile.rows,
                    tile.columns,
                    tile.depth,
                    choice.warps,
                    choice.stages,
                    tile.split,
                    int(tile.walk),
                    tile.vector,
                    tile.passes,
                    form.channels,
                    tile.transposed,
                    form.pixels,
                    self.machine,
                )
                if tactic.accepts(binding):
                    yield tactic

    def _choices(self, problem: Problem, passes: int) -> list[tuple[cost.Choice, _Form]]:
        """Tiles, with the form of the problem that they are for, the likely best first; where there
        are several, the best of each way first: the model knows little of caches.
        """
        limit, machine = _LIMITS[passes], self.machine
        forms = _forms(problem)
        if len(forms) == 1:
            return [(c, forms[0]) for c in cost.choices(shape_of(problem), machine, passes, limit)]
        found: list[tuple[float, cost.Choice, _Form]] = []
        for form in forms:
            shape = shape_of(form.problem)
            share = limit // 3 if form.pixels or len(forms) > 2 else limit
            for choice in cost.choices(shape, machine, passes, share):
                time = cost.estimate(shape, choice, machine)
                time += cost.copying(2 * form.copied, machine) if form.copied else 0
                found.append((time, choice, form))

        def way(item: tuple[cost.Choice, _Form]) -> tuple[bool, tuple[object, int, int]]:
            persistent, kind = cost.way(item[0].tile)
            return persistent, (kind, item[1].channels, item[1].pixels)

        found.sort(key=lambda item: item[0])
        return cost.varied([item[1:] for item in found], way)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        assert task.anchor is not None
        if values["vector"]:
            wrong = (
                values["split"] == PERSISTENT
                or values["rows"] not in cost.VECTOR_ROWS
                or values["passes"] != 0
                or (values["rows"] > 1 and task.anchor.inputs[0].dtype in BYTES)
            )
        else:
            deepest = cost.DEEPEST if values["split"] == PERSISTENT else cost.DEPTHS[-1]
            wrong = values["rows"] < 16 or values["columns"] < 16 or values["depth"] > deepest
            single = task.anchor.inputs[0].dtype is DType.FLOAT32
            wrong = wrong or (values["passes"] != 1 and not single)
            wrong = wrong or (values["depth"] < 32 and task.anchor.inputs[0].dtype in BYTES)
        if values["transposed"] and (values["vector"] or values["columns"] < 64):
            wrong = True
        if values["channels"] and (
            not isinstance(task.anchor.op, Convolution)
            or values["channels"] < filters(task).shape[2]
        ):
            wrong = True
        if wrong or values["rows"] * values["columns"] * values["depth"] > 1 << 22:
            return f"no tile is {dict(values)}"
        return ""


class _Form(NamedTuple):
    """A problem as a tactic computes it, with the parameters that make it so."""

    problem: Problem
    channels: int = 0
    pixels: int = 0
    copied: int = 0
    """Bytes of a copy of the images."""


def _forms(problem: Problem) -> list[_Form]:
    """A problem as it is and in other forms worth trying.

    Images of few channels are copied, with their windows, and folded for one pixel and several; of
    each copy the one with the fewest channels. Where filters are few, a row has several pixels; so
    it has where channels of bytes are few and the filters of one pixel no whole tiles.
    """
    shape = shape_of(problem)
    found = [_Form(problem)]
    if problem.window is None and problem.dtype in BYTES and problem.channels <= FEW_CHANNELS:
        even = (n for n in PIXELS if n * problem.columns % WHOLE_COLUMNS == 0)
        pixels = next(even, 1)
        merged = by_pixels(problem, pixels) if pixels > 1 else None
        found += [_Form(merged, pixels=pixels)] if merged else []
    elif shape.vector * shape.size < 16:
        for pixels in (0, *PIXELS):
            fold = problem.window.strides if problem.window and pixels else (1, 1)
            whole = problem.dtype in BYTES  # of which a load takes 16: four channels, folded
            own = (problem.channels,) if fold != (1, 1) and not whole else ()
            counts = [count for count in (*own, *CHANNELS) if count <= CHANNELS[-1]]
            every = (ImageCopy(problem, count, pixels) for count in counts)
            useful = [copy for copy in every if copy.makes_sense][:1]
            found += [_Form(c.problem, c.channels, pixels, c.bytes) for c in useful]
    elif problem.columns <= FEW_COLUMNS and shape.size <= 2:
        pixels = 2 if 2 * problem.columns > FEW_COLUMNS else 4
        merged = by_pixels(problem, pixels)
        found += [_Form(merged, pixels=pixels)] if merged else []
    return found


def shape_of(problem: Problem) -> cost.Shape:
    """What the cost model looks at."""
    sources = [item for item in problem.left.leaves if item is not None]
    whole = [item for item in sources if item.strides[-1] and any(item.strides[:-1])] or sources
    read = sum(item.pointer.dtype.size for item in whole)
    widths = [_width(item, problem.window is None) for item in whole]
    moved = sum(a.pointer.dtype.size for a in problem.result.outputs)
    for leaf in problem.result.leaves:
        if leaf is not None and leaf.strides[-1] and leaf.strides[-2]:
            moved += leaf.pointer.dtype.size
    return cost.Shape(
        rows=problem.rows,
        columns=problem.columns,
        batch=problem.batch,
        taps=problem.taps,
        channels=problem.channels,
        size=problem.dtype.size,
        read=max(read, 1),
        worked=not problem.left.expression.is_copy,
        moved=moved,
        vector=min(widths, default=1),
        dilated=problem.window is not None and problem.window.dilations[1] != 1,
        packed=problem.right is None,
        written=problem.result.outputs[0].pointer.dtype.size,
    )


def _width(item: Access, plain: bool) -> int:
    """Neighbouring elements of a tensor that one load of a thread takes: along the depth, of a
    plain matrix also along its rows.
    """
    if not item.pointer.aligned or 1 not in item.strides[-2 if plain else -1 :]:
        return 1
    width = 16 // item.pointer.dtype.size
    while any(s not in (0, 1) and s % width for s in item.strides):
        width //= 2
    return width


@dataclass(frozen=True)
class ImageFamily(MatrixFamily):
    """Convolutions of images whose axes lie in another order, which are copied first: gathered from
    where they lie, channel by channel, they took an H200 five times as long.
    """

    pattern: ClassVar[str] = "image"

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for tactic in super().offered(task, binding):
            if isinstance(tactic, MatrixTactic) and tactic.channels:
                yield tactic


FAMILIES = (MatrixFamily(),)
IMAGE_FAMILIES = (ImageFamily(),)

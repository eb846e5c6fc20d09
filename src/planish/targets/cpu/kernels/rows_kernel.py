"""The kernel for ops that go over a row several times: softmax, layer norm and their kin.

Each row (or vector of rows, if vectors run along a kept axis) is finished before the next begins,
so that a row that fits the cache comes from memory once. What is expensive to compute again (a
prologue, an exponential) is kept in scratch memory, unless rows are too long for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.ops.base import Op
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import unravel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, apply, for_spans
from planish.targets.cpu.kernels.reducers import make_reducer
from planish.targets.cpu.kernels.rows_programs import Phase, program_of
from planish.targets.cpu.kernels.sweep import Movable, Scratch, State, Sweep


@dataclass(frozen=True)
class RowsKernel(CpuKernel):
    """One specialisation; extents and strides are parameters.

    Attributes
    ----------
    op : Op
        One that `program_of` knows.
    dtype : DType
        Of its input and output.
    kept, reduced : int
        Loop axes across rows and along a row, besides the vector axis.
    vector_reduced : bool
        Whether vectors run along the row.
    vectors : int
        Vectors at a time.
    keep : bool
        Whether a row has room in scratch memory.
    parameters : Accesses
        Of the op's inputs after the first, which broadcast to it.
    moving : tuple of bool
        Which of these change along a row.

    Parameters of the launch: the extents of all axes; how many elements a row has; how many
    elements of a kept vector axis a task takes; the strides of leaves, parameters, operands and
    outputs. A task is one position of the kept axes, and those elements.
    """

    family: ClassVar[str] = "rows"
    op: Op
    dtype: DType
    kept: int
    reduced: int
    vector_reduced: bool
    vectors: int
    keep: bool
    prologue: Expression
    leaves: Accesses
    parameters: Accesses
    moving: tuple[bool, ...]
    epilogue: Expression
    operands: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Writer(self, k).write()


class _Writer:
    """Writes a `RowsKernel`."""

    def __init__(self, kernel: RowsKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        self.wide = DType.FLOAT64 if kernel.dtype is DType.FLOAT64 else DType.FLOAT32
        program = program_of(kernel.op)
        assert program is not None
        self.program = program
        axes = kernel.kept + kernel.reduced + 1
        self.extents: list[ir.Value] = [k.param(i) for i in range(axes)]
        self.count = k.b.sitofp(k.param(axes), register_type(self.wide))
        self.columns = k.param(axes + 1)
        self.source = Operands(k, kernel.leaves, 0, axes + 2, axes)
        self.parameters = _after(k, kernel.parameters, self.source, axes)
        self.reads = _after(k, kernel.operands, self.parameters, axes)
        self.writes = _after(k, kernel.outputs, self.reads, axes)
        self.stored = 0
        """How many transforms the elements in scratch have gone through; 0: there are none."""

    def write(self) -> None:
        k, kernel = self.k, self.kernel
        with k.loop(k.begin, k.end) as tasks:
            outer: ir.Value = tasks.index
            first: Any = 0
            if not kernel.vector_reduced:
                blocks = k.b.sdiv(k.add(self.extents[-1], k.sub(self.columns, 1)), self.columns)
                outer, block = k.divmod(outer, blocks)
                first = k.mul(block, self.columns)
            place = unravel(k, outer, self.extents[: kernel.kept])
            self.sweep = Sweep(
                k,
                kernel.kept,
                self.extents[kernel.kept : -1],
                self.extents[-1] if kernel.vector_reduced else None,
                k.lanes,
                kernel.vectors,
            )
            if kernel.vector_reduced:
                self._rows(place, None)
            else:
                last = k.min(k.add(first, self.columns), self.extents[-1])
                for_spans(
                    k,
                    first,
                    last,
                    k.lanes,
                    lambda spans, _: self._rows(place, spans),
                    vectors=kernel.vectors,
                )

    def _rows(self, place: Any, spans: list[Span] | None) -> None:
        """One row along the vectors, or a row per lane of some spans."""
        k, kernel = self.k, self.kernel
        self.spans = spans
        self.scratch = self._scratch(spans)
        self.f = Floats(k, self.wide, k.lanes if spans else 1)
        source = self.source.at(place)
        parameters = self.parameters.at(place)
        still = [
            self._parameters(parameters, span, moving=False) for span in (spans or [Span(0, 1)])
        ]
        known: list[State] = [[] for _ in still]
        if self.program.prepare is not None:
            known = [self.program.prepare(self.f, values) for values in still]  # type: ignore[arg-type]
        self.stored = 0
        movables: list[Movable] = [self.source, self.scratch]
        for number, phase in enumerate(self.program.phases):
            keep = kernel.keep and (
                phase.costly or (number == 0 and bool(kernel.prologue.instructions))
            )
            known = self._phase(
                number, phase, keep, movables, [source, self.scratch.start()], known
            )
        self._map(place, source, parameters, still, known)

    def _scratch(self, spans: list[Span] | None) -> Scratch:
        """Scratch memory as dense along the row axes."""
        kernel, k = self.kernel, self.k
        strides: dict[int, Any] = {}
        step: Any = len(spans) * k.lanes if spans else self.extents[-1]
        for axis in reversed(range(kernel.kept, kernel.kept + kernel.reduced)):
            strides[axis] = step
            step = k.mul(step, self.extents[axis])
        return Scratch(k, self.wide, strides)

    def _phase(
        self,
        number: int,
        phase: Phase,
        keep: bool,
        movables: list[Movable],
        places: list[Any],
        known: list[State],
    ) -> list[State]:
        """The statistics after a pass, per span; scalars if vectors run along the row."""
        k = self.k
        reducer = make_reducer(k, phase.reduction, self.wide, k.lanes)
        vector = Floats(k, self.wide, k.lanes)

        def step(
            here: Sequence[Any], spans: list[Span], states: list[State], row: Any
        ) -> list[State]:
            new = []
            for i, (span, state) in enumerate(zip(spans, states, strict=True)):
                facts = self._facts(known, i)
                x = self._element(here, i, span, facts, number + 1)
                if keep:
                    self._store(here[1], i, span, x)
                term = phase.term(vector, x, facts)
                mask = span.mask if self.kernel.vector_reduced else None
                new.append(reducer.step(state, term, mask=mask))
            return new

        states = self.sweep.reduce(reducer, movables, places, self.spans, step)
        if keep:
            self.stored = number + 1
        count = k.splat(self.count, self.f.lanes)
        return [
            [*facts, phase.conclude(self.f, state[0], count)]
            for facts, state in zip(known, states, strict=True)
        ]

    def _facts(self, known: list[State], i: int) -> State:
        """The statistics of a span as vectors."""
        if self.spans is not None:
            return known[i]
        return [self.k.splat(value, self.k.lanes) for value in known[0]]

    def _element(
        self, here: Sequence[Any], i: int, span: Span, facts: State, transforms: int
    ) -> ir.Value:
        """An element after so many transforms, from scratch or from its source."""
        k, kernel = self.k, self.kernel
        if self.stored:
            place = self._in_scratch(here[1], i, span)
            x = k.load(place, self.wide, k.lanes, mask=self._scratch_mask(span))
        else:
            leaves = self.source.load(here[0], span)
            (x,) = emit(k, kernel.prologue, leaves, k.lanes)
        vector = Floats(k, self.wide, k.lanes)
        for phase in self.program.phases[self.stored : transforms]:
            x = phase.transform(vector, x, facts)
        return x

    def _store(self, place: Any, i: int, span: Span, x: ir.Value) -> None:
        where = self._in_scratch(place, i, span)
        self.k.store(x, where, self.wide, self.k.lanes, mask=self._scratch_mask(span))

    def _in_scratch(self, place: Any, i: int, span: Span) -> ir.Value:
        at = span.start if self.spans is None else i * self.k.lanes
        return self.k.offset(place[0], at, self.wide)

    def _scratch_mask(self, span: Span) -> ir.Value | None:
        # rows side by side take whole vectors of scratch, a row along the vectors does not
        return span.mask if self.spans is None else None

    def _parameters(self, places: Any, span: Span, moving: bool) -> list[ir.Value | None]:
        """The op's parameters that change along a row, or those that do not; None for others."""
        wanted = [
            place if moves is moving else None
            for place, moves in zip(places, self.kernel.moving, strict=True)
        ]
        values = self.parameters.load(wanted, span)
        target = register_type(self.wide, span.lanes)
        return [
            self.k.b.fpext(v, target) if v is not None and v.type != target else v for v in values
        ]

    def _map(
        self, place: Any, source: Any, parameters: Any, still: list[Any], known: list[State]
    ) -> None:
        """The last pass: the op's output, through the epilogue, to memory."""
        k, kernel = self.k, self.kernel
        vector = Floats(k, self.wide, k.lanes)

        def body(here: Sequence[Any], spans: list[Span]) -> None:
            for i, span in enumerate(spans):
                facts = self._facts(known, i)
                x = self._element(here, i, span, facts, len(self.program.phases))
                values = self._parameters(here[2], span, moving=True)
                for number, value in enumerate(still[i if self.spans else 0]):
                    if value is not None:
                        values[number] = value if self.spans else k.splat(value, k.lanes)
                y = self.program.map(vector, x, facts, values)  # type: ignore[arg-type]
                loaded = self.reads.load(here[3], span)
                results = apply(k, kernel.epilogue, loaded, [y], kernel.operands, k.lanes)
                self.writes.store(here[4], span, results)

        self.sweep.visit(
            [self.source, self.scratch, self.parameters, self.reads, self.writes],
            [
                source,
                self.scratch.start(),
                parameters,
                self.reads.at(place),
                self.writes.at(place),
            ],
            self.spans,
            body,
        )


def _after(k: KernelBuilder, accesses: Accesses, before: Operands, axes: int) -> Operands:
    return Operands(k, accesses, before.next_pointer, before.next_param, axes)

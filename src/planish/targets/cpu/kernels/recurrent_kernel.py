"""The recurrence of LSTM, GRU and RNN layers: a loop over time inside one kernel.

A task is a few sequences of one direction, from first step to last; it shares nothing with other
tasks, so nothing waits inside the loop. Its states lie in scratch memory. At each step blocks of
hidden units are accumulated in registers, all gates of a block together: broadcast elements of the
state before against vectors of weights packed ``[direction][block][unit][gate][lanes]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.types import DType
from planish.ops.elementwise import Elementwise
from planish.ops.recurrent import Gru, Lstm, Recurrent, activate
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span

VECTOR_BYTES = 64
"""Bytes of a vector of hidden units; LLVM splits it where registers are smaller."""
_UNROLL = 4


def lanes_of(dtype: DType) -> int:
    """Hidden units in a vector."""
    return VECTOR_BYTES // dtype.size


def slots(op: Recurrent) -> int:
    """Vectors of scratch memory per sequence and block of units: two states, cell, gates."""
    return 3 + 2 * isinstance(op, Gru)


@dataclass(frozen=True)
class RecurrentKernel(CpuKernel):
    """One specialisation.

    Pointers: packed weights, inputs, first states, extras, lengths, then the outputs. Parameters:
    T, N, H, blocks of sequences, blocks of units, then the strides of all tensors but the weights.

    Attributes
    ----------
    op : Recurrent
    dtype : DType
    rows : int
        Sequences of a task.
    inputs, states, extras, lengths, outputs, last : Accesses
        How tensors are read and written: the inputs have five axes ``[T, N, D, G, H]``, states
        ``[D, N, H]``, extras ``[D, ..., H]`` as three axes, lengths one, the steps' outputs four.
    """

    family: ClassVar[str] = "recurrent"
    op: Recurrent
    dtype: DType
    rows: int
    inputs: Accesses
    states: Accesses
    extras: Accesses
    lengths: Accesses
    outputs: Accesses
    last: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Writer(k, self).write()


class _Writer:
    """Writes one kernel; holds what its parts share."""

    def __init__(self, k: KernelBuilder, kernel: RecurrentKernel) -> None:
        self.k, self.kernel, self.op = k, kernel, kernel.op
        self.dtype, self.lanes = kernel.dtype, lanes_of(kernel.dtype)
        self.f = Floats(k, self.dtype, self.lanes)
        self.steps, self.batch, self.hidden, self.row_blocks, self.blocks = (
            k.param(i) for i in range(5)
        )
        at = (1, 5)
        groups = []
        for accesses, axes in (
            (kernel.inputs, 5),
            (kernel.states, 3),
            (kernel.extras, 3),
            (kernel.lengths, 1),
            (kernel.outputs, 4),
            (kernel.last, 3),
        ):
            group = Operands(k, accesses, *at, axes)
            at = (group.next_pointer, group.next_param)
            groups.append(group)
        self.inputs, self.states, self.extras, self.lengths, self.outputs, self.last = groups
        self.width = k.mul(self.blocks, self.lanes)  # hidden units, rounded up to vectors
        self.size = k.mul(self.width, kernel.rows)

    # ---- the whole ------------------------------------------------------------------------

    def write(self) -> None:
        k = self.k
        with k.loop(k.begin, k.end) as tasks:
            direction, block = k.divmod(tasks.index, self.row_blocks)
            first = k.mul(block, self.kernel.rows)
            # the last task's surplus sequences do its last one again
            rows = [k.min(k.add(first, r), k.sub(self.batch, 1)) for r in range(self.kernel.rows)]
            counts = [self._count(row) for row in rows]
            self._load_states(direction, rows)
            with k.loop(0, self.steps) as time:
                self._step(time.index, direction, rows, counts)
            self._store_states(direction, rows)

    def _count(self, row: ir.Value) -> ir.Value:
        """How many steps a sequence has."""
        if not self.kernel.lengths:
            return self.steps
        (access,) = self.kernel.lengths
        assert access is not None
        (place,) = self.lengths.start()
        step = self.k.param(self.lengths.next_param - 1)
        assert place is not None
        at = self.k.offset(place, self.k.mul(row, step), access.dtype)
        length = cast(self.k, self.k.load(at, access.dtype), access.dtype, DType.INT64, 1)
        return self.k.max(self.k.min(length, self.steps), 0)

    def _load_states(self, direction: ir.Value, rows: Sequence[ir.Value]) -> None:
        def load(span: Span) -> None:
            for r, row in enumerate(rows):
                values = self.states.load(self.states.at([direction, row]), span)
                for slot, value in zip((0, 2), values, strict=False):
                    assert value is not None
                    self._keep(self.k.i64(slot), r, span, value)

        self._for_blocks(load)

    def _store_states(self, direction: ir.Value, rows: Sequence[ir.Value]) -> None:
        slot = self.k.b.and_(self.steps, self.k.i64(1))

        def store(span: Span) -> None:
            for r, row in enumerate(rows):
                values = [self._kept(slot, r, span)]
                if isinstance(self.op, Lstm):
                    values.append(self._kept(self.k.i64(2), r, span))
                self.last.store(self.last.at([direction, row]), span, values)

        self._for_blocks(store)

    # ---- a step ---------------------------------------------------------------------------

    def _step(
        self,
        time: ir.Value,
        direction: ir.Value,
        rows: Sequence[ir.Value],
        counts: Sequence[ir.Value],
    ) -> None:
        k = self.k
        old = k.b.and_(time, k.i64(1))
        new = k.b.xor(old, k.i64(1))
        active = [k.b.icmp_signed("<", time, count) for count in counts]
        moments = [
            self._moment(time, direction, count, a) for count, a in zip(counts, active, strict=True)
        ]
        sources = [
            self.inputs.at([moment, row, direction])
            for moment, row in zip(moments, rows, strict=True)
        ]
        targets = [
            self.outputs.at([moment, row, direction])
            for moment, row in zip(moments, rows, strict=True)
        ]
        extras = self.extras.at([direction])

        def finish(span: Span, values: Sequence[ir.Value]) -> None:
            """Keeps and stores the new states of a block."""
            for r, value in enumerate(values):
                state = k.b.select(active[r], value, self._kept(old, r, span))
                self._keep(new, r, span, state)
                shown = k.b.select(active[r], value, k.zero(self.dtype, self.lanes))
                self.outputs.store(targets[r], span, [shown])

        arguments = (direction, old, sources, extras, active, finish)
        if isinstance(self.op, Lstm):
            self._lstm(*arguments)
        elif isinstance(self.op, Gru):
            self._gru(*arguments)
        else:
            self._rnn(*arguments)

    def _moment(
        self, time: ir.Value, direction: ir.Value, count: ir.Value, active: ir.Value
    ) -> ir.Value:
        """The step of a sequence that is done at a time; behind its end, that time itself."""
        k, reverse = self.k, self.op.reverse
        if not any(reverse):
            return time
        backward = k.b.select(active, k.sub(k.sub(count, 1), time), time)
        if all(reverse):
            return backward
        second = k.b.icmp_signed("!=", direction, k.i64(0))
        pair = (backward, time) if reverse[1] else (time, backward)
        return k.b.select(second, *pair)

    def _rnn(self, direction, old, sources, extras, active, finish) -> None:
        def block(span: Span, index: ir.Value) -> None:
            sums = self._sums(direction, index, old, (0,), self._inputs(sources, span, (0,)))
            finish(span, [self._gate(0, s) for (s,) in sums])

        self._for_blocks_numbered(block)

    def _lstm(self, direction, old, sources, extras, active, finish) -> None:
        k, f, op = self.k, self.f, self.op
        assert isinstance(op, Lstm)
        cell_slot = k.i64(2)

        def block(span: Span, index: ir.Value) -> None:
            given = self._inputs(sources, span, range(4))
            sums = self._sums(direction, index, old, range(4), given)
            holes: list[ir.Value] = []
            if op.peepholes:
                for gate in range(3):
                    (hole,) = self.extras.load(self.extras.move(extras, 1, gate), span)
                    assert hole is not None
                    holes.append(hole)
            states = []
            for r, (enter, leave, keep, fresh) in enumerate(sums):
                cell = self._kept(cell_slot, r, span)
                if holes:
                    enter = f.fma(holes[0], cell, enter)
                    keep = f.fma(holes[2], cell, keep)
                enter = self._gate(0, enter)
                keep = f.sub(f.c(1.0), enter) if op.input_forget else self._gate(0, keep)
                new = f.fma(keep, cell, f.mul(enter, self._gate(1, fresh)))
                if holes:
                    leave = f.fma(holes[1], new, leave)
                states.append(f.mul(self._gate(0, leave), self._activation(2, new)))
                self._keep(cell_slot, r, span, k.b.select(active[r], new, cell))
            finish(span, states)

        self._for_blocks_numbered(block)

    def _gru(self, direction, old, sources, extras, active, finish) -> None:
        k, f, op = self.k, self.f, self.op
        assert isinstance(op, Gru)
        update_slot, reset_slot = k.i64(3), k.i64(4)

        def blend(span: Span, r: int, update: ir.Value, hidden: ir.Value) -> ir.Value:
            state = self._kept(old, r, span)
            return f.fma(update, f.sub(state, hidden), hidden)

        def whole(span: Span, index: ir.Value) -> None:
            given = self._inputs(sources, span, range(3))
            (bias,) = self.extras.load(extras, span)
            starts = [(update, reset, bias) for update, reset, _ in given]
            sums = self._sums(direction, index, old, range(3), starts)
            states = []
            for r, (update, reset, inner) in enumerate(sums):
                gate = self._gate(0, reset)
                hidden = self._gate(1, f.fma(gate, inner, given[r][2]))
                states.append(blend(span, r, self._gate(0, update), hidden))
            finish(span, states)

        def gates(span: Span, index: ir.Value) -> None:
            given = self._inputs(sources, span, (0, 1))
            sums = self._sums(direction, index, old, (0, 1), given)
            for r, (update, reset) in enumerate(sums):
                self._keep(update_slot, r, span, self._gate(0, update))
                gated = f.mul(self._gate(0, reset), self._kept(old, r, span))
                self._keep(reset_slot, r, span, gated)

        def candidates(span: Span, index: ir.Value) -> None:
            given = self._inputs(sources, span, (2,))
            sums = self._sums(direction, index, reset_slot, (2,), given)
            finish(
                span,
                [
                    blend(span, r, self._kept(update_slot, r, span), self._gate(1, s))
                    for r, (s,) in enumerate(sums)
                ],
            )

        if op.reset_after:
            self._for_blocks_numbered(whole)
        else:  # every unit's candidate needs the reset states of all units
            self._for_blocks_numbered(gates)
            self._for_blocks_numbered(candidates)

    # ---- sums -----------------------------------------------------------------------------

    def _inputs(
        self, sources: Sequence[Sequence[ir.Value | None]], span: Span, gates: Sequence[int]
    ) -> list[tuple[Any, ...]]:
        """The projected inputs of a block, by sequence and gate."""
        return [
            tuple(self.inputs.load(self.inputs.move(source, 3, g), span)[0] for g in gates)
            for source in sources
        ]

    def _sums(
        self,
        direction: ir.Value,
        block: ir.Value,
        slot: ir.Value,
        gates: Sequence[int],
        starts: Sequence[Sequence[ir.Value]],
    ) -> list[list[ir.Value]]:
        """What is given plus the products of a slot's elements and the weights of a block.

        One sequence alone is summed in two parts, because additions would wait for each other.
        """
        k, f, rows, total = self.k, self.f, self.kernel.rows, self.op.gates
        vector = self.lanes
        chosen = k.add(k.mul(direction, self.blocks), block)
        weights = k.offset(
            k.pointer(0), k.mul(k.mul(chosen, self.hidden), total * vector), self.dtype
        )
        states = [self._place(slot, r, 0) for r in range(rows)]
        parts = 2 if rows == 1 else 1
        count = len(gates) * rows
        sums: list[ir.Value] = [value for start in starts for value in start]
        sums += [k.zero(self.dtype, vector)] * (count * (parts - 1))

        def add(unit: ir.Value, part: int, sums: list[ir.Value]) -> list[ir.Value]:
            sums = list(sums)
            place = k.offset(weights, k.mul(unit, total * vector), self.dtype)
            loaded = [
                k.load(k.offset(place, g * vector, self.dtype), self.dtype, vector, aligned=True)
                for g in gates
            ]
            for r, state in enumerate(states):
                element = k.load(k.offset(state, unit, self.dtype), self.dtype)
                spread = k.splat(element, vector)
                for i, weight in enumerate(loaded):
                    number = part * count + r * len(gates) + i
                    sums[number] = f.fma(spread, weight, sums[number])
            return sums

        full = k.b.and_(self.hidden, k.i64(-_UNROLL))
        with k.loop(0, full, _UNROLL, sums) as loop:
            following = list(loop.carried)
            for u in range(_UNROLL):
                following = add(k.add(loop.index, u), u % parts, following)
            loop.next = following
        with k.loop(full, self.hidden, 1, loop.carried) as rest:
            rest.next = add(rest.index, 0, rest.carried)
        done = rest.carried
        if parts == 2:
            done = [f.add(a, b) for a, b in zip(done[:count], done[count:], strict=True)]
        return [done[r * len(gates) : (r + 1) * len(gates)] for r in range(rows)]

    # ---- blocks of units, and scratch memory ----------------------------------------------

    def _for_blocks(self, body: Callable[[Span], None]) -> None:
        self._for_blocks_numbered(lambda span, _: body(span))

    def _for_blocks_numbered(self, body: Callable[[Span, ir.Value], None]) -> None:
        """Runs the body for each block of units; lanes beyond the last unit are masked."""
        k = self.k
        with k.loop(0, self.blocks) as loop:
            start = k.mul(loop.index, self.lanes)
            count = k.i64(k.sub(self.hidden, start))
            body(Span(start, self.lanes, count, k.tail_mask(count, self.lanes)), loop.index)

    def _place(self, slot: ir.Value, row: int, unit: int | ir.Value) -> ir.Value:
        k = self.k
        offset = k.add(k.mul(slot, self.size), k.mul(self.width, row))
        return k.offset(k.scratch, k.add(offset, unit), self.dtype)

    def _keep(self, slot: ir.Value, row: int, span: Span, value: ir.Value) -> None:
        self.k.store(value, self._place(slot, row, span.start), self.dtype, self.lanes)

    def _kept(self, slot: ir.Value, row: int, span: Span) -> ir.Value:
        return self.k.load(self._place(slot, row, span.start), self.dtype, self.lanes)

    # ---- activations ----------------------------------------------------------------------

    def _gate(self, index: int, x: ir.Value) -> ir.Value:
        """An activation of a sum, which is clipped before; NaN stays."""
        clip = self.op.clip
        if clip < float("inf"):
            x = self.f.min(self.f.c(clip), self.f.max(self.f.c(-clip), x))
        return self._activation(index, x)

    def _activation(self, index: int, x: ir.Value) -> ir.Value:
        return activate(self.op.activations[index], x, self._apply, self.f.c)

    def _apply(self, op: Elementwise, *arguments: ir.Value) -> ir.Value:
        comparison = op.result is DType.BOOL
        dtypes = [self.dtype] * len(arguments)
        if op.name == "select":
            dtypes[0] = DType.BOOL
        leaves = tuple(Leaf(d) for d in dtypes)
        step = Instruction(op, tuple(range(len(leaves))), DType.BOOL if comparison else self.dtype)
        return emit(self.k, Expression(leaves, (step,), (len(leaves),)), arguments, self.lanes)[0]

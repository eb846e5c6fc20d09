"""The kernels of recurrent layers: all steps in one launch, or a launch for every step.

In one launch a program loops over time for some sequences of a direction: at each step, for a block
of hidden units after the other, all gates are accumulated over the state at once; weights are read
from the second-level cache. With a launch for every step the blocks of units are programs, too, so
that few sequences use the whole GPU. The state lies in the workspace twice: one is read while the
other is written. Equations are those of `planish.ops.recurrent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.types import DType
from planish.ops.elementwise import Clip, Elementwise
from planish.ops.recurrent import Gru, Lstm, Recurrent, activate
from planish.targets.cuda.codegen.elementwise import compute_type, constant, emit
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, load, store
from planish.targets.cuda.kernels.nest import reduced

DOTTED = 16
"""With so many sequences a program multiplies matrices."""
STAGES = ("whole", "begin", "reset", "step", "end")
"""What a launch does: everything; or the first states, the gates of a `Gru` that come before the
others of a step, a step, the last states.
"""


@dataclass(frozen=True)
class RecurrentKernel(TritonKernel):
    """See the module.

    Attributes
    ----------
    op : Recurrent
    dtype : DType
    hidden : int
        Units.
    inputs, outputs : tuple of Access
        As those of the op, over their own axes.
    rows, depth, units : int
        Sequences of a program; units that are summed over, and that are computed, at a time.
    stage : str
        One of `STAGES`. But for "whole" a program does one block of units.

    Pointers: inputs, outputs, then memory ``[directions, sequences, hidden]``: the state twice; the
    cell of an `Lstm`; update gates and what the reset leaves of the state of a `Gru` that resets
    before. Parameters: sequences, steps, and the number of the step.
    """

    family = "recurrent"

    op: Recurrent
    dtype: DType
    hidden: int
    inputs: tuple[Access, ...]
    outputs: tuple[Access, ...]
    rows: int
    depth: int
    units: int
    stage: str = "whole"

    @property
    def memories(self) -> int:
        """How many vectors per sequence and direction lie in the workspace."""
        return 2 + own_memories(self.op)

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        given = (a.pointer for a in (*self.inputs, *self.outputs))
        return (*given, *(Pointer(self.dtype),) * self.memories)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False, False)

    def write(self, k: Source) -> None:
        _Writer(k, self).write()


def own_memories(op: Recurrent) -> int:
    """Vectors of memory besides the two of the state."""
    return 1 if isinstance(op, Lstm) else 2 * resets_before(op)


def resets_before(op: Recurrent) -> bool:
    """Whether the state is reset before it is multiplied, so that all units wait for that."""
    return isinstance(op, Gru) and not op.reset_after


class _Writer:
    """Writes the kernel: names that all its parts use are attributes."""

    def __init__(self, k: Source, kernel: RecurrentKernel) -> None:
        self.k, self.kernel, self.op = k, kernel, kernel.op
        self.dtype, self.hidden = kernel.dtype, kernel.hidden
        outputs = len(kernel.inputs)
        self.outputs = outputs
        self.memory = outputs + len(kernel.outputs)
        blocks = f"(n0 + {kernel.rows - 1}) // {kernel.rows}"
        program = k.let("program", "tl.program_id(0)")
        self.first: str | None = None
        if kernel.stage != "whole":
            parts = -(-self.hidden // kernel.units)
            self.first = k.let("first", f"{program} % {parts} * {kernel.units}")
            program = k.let("program", f"{program} // {parts}")
        self.direction = k.let("direction", f"{program} // ({blocks})")
        number = f"{program} % ({blocks}) * {kernel.rows} + tl.arange(0, {kernel.rows})"
        number = k.let("number", f"({number})[:, None]")
        self.exists = k.let("exists", f"{number} < n0")
        self.sequence = k.let("sequence", f"tl.minimum({number}, n0 - 1)")
        self.row = k.let("row", f"({self.direction} * n0 + {self.sequence}).to(tl.int64)")

    # ---- the whole ------------------------------------------------------------------------

    def write(self) -> None:
        k, op = self.k, self.op
        count = "n1 + 0"
        if op.lengths:
            number = len(self.kernel.inputs) - 1
            given = load(k, number, self.kernel.inputs[number], (self.sequence,), None)
            count = f"tl.minimum(tl.maximum({given}.to(tl.int64), 0), n1).to(tl.int32)"
        count = k.let("count", f"{self.sequence} * 0 + ({count})")
        stage = self.kernel.stage
        if stage in ("whole", "begin"):
            self._begin()
        if stage == "whole":
            k.line("tl.debug_barrier()")
            with k.block("for step in range(0, n1):"):
                if resets_before(op):
                    self._reset(count, "step")
                    k.line("tl.debug_barrier()")
                self._all_units(count, "step")
                k.line("tl.debug_barrier()")
        if stage == "reset":
            self._reset(count, "n2")
        if stage == "step":
            self._all_units(count, "n2")
        if stage in ("whole", "end"):
            self._end()

    def _begin(self) -> None:
        """Puts the first states into the workspace."""
        with self._units() as unit:
            self._keep(0, unit, self._state_given(2, unit))
            if self.op.states == 2:
                self._keep(2, unit, self._state_given(3, unit))

    def _end(self) -> None:
        """Writes the last states."""
        last = self.k.let("now", "n1 % 2")
        with self._units() as unit:
            self._store(self.outputs + 1, unit, self._state(last, unit))
            if self.op.states == 2:
                self._store(self.outputs + 2, unit, self._kept(2, unit))

    def _all_units(self, count: str, step: str) -> None:
        """A step of all the units that are the program's."""
        active, place, now = self._time(count, step)
        with self._units() as unit:
            self._step(unit, place, active, now)

    def _time(self, count: str, step: str) -> tuple[str, str, str]:
        """Which sequences a step has, where it stands, and which of both states is read."""
        active = self.k.let("active", f"{step} < {count}")
        return active, self._place(count, active, step), self.k.let("now", f"{step} % 2")

    def _step(self, unit: Unit, place: str, active: str, now: str) -> None:
        """A step of a block of units."""
        k, op = self.k, self.op
        old = self._state(now, unit)
        write = {"lstm": self._lstm, "gru": self._gru}.get(op.name, self._rnn)
        new = write(unit, place, active, now, old)
        self._swap(now, unit, k.let("state", f"tl.where({active}, {new}, {old})"))
        index = (place, self.sequence, self.direction, unit.index)
        value = k.let("y", f"tl.where({active}, {new}, {new} * 0)")
        # where nothing is computed the sum may be no number
        value = k.let("y", f"tl.where({active}, {value}, {constant(0, self.dtype)})")
        masks = (self.exists, None, None, unit.inside)
        store(k, self.outputs, self.kernel.outputs[0], index, masks, value)

    # ---- the layers -----------------------------------------------------------------------

    def _rnn(self, unit: Unit, place: str, active: str, now: str, old: str) -> str:
        (total,) = self._sums(unit, place, now, [0])
        return self._gate(0, total)

    def _gru(self, unit: Unit, place: str, active: str, now: str, old: str) -> str:
        k, op = self.k, self.op
        assert isinstance(op, Gru)
        if op.reset_after:
            update, reset = (self._gate(0, t) for t in self._sums(unit, place, now, [0, 1]))
            (product,) = self._products(unit, self._state_pointer(now), [2])
            bias = load(
                k,
                2 + op.states,
                self.kernel.inputs[2 + op.states],
                (self.direction, unit.index),
                (None, unit.inside),
            )
            inner = k.let("inner", f"{reset} * ({product} + {bias})")
        else:
            update = self._kept(2, unit)
            (inner,) = self._products(unit, f"p{self.memory + 3}", [2])
        hidden = self._gate(1, k.let("sum", f"{self._input(unit, place, 2)} + {inner}"))
        one = constant(1, self.dtype)
        return k.let("new", f"({one} - {update}) * {hidden} + {update} * {old}")

    def _reset(self, count: str, step: str) -> None:
        """Update gates, and what reset gates leave of the state, of the program's units."""
        _, place, now = self._time(count, step)
        with self._units() as unit:
            update, reset = (self._gate(0, t) for t in self._sums(unit, place, now, [0, 1]))
            self._keep(2, unit, update)
            self._keep(3, unit, f"{reset} * {self._state(now, unit)}")

    def _lstm(self, unit: Unit, place: str, active: str, now: str, old: str) -> str:
        k, op = self.k, self.op
        assert isinstance(op, Lstm)
        sums = self._sums(unit, place, now, [0, 1, 2, 3])
        cell = self._kept(2, unit)

        def hole(number: int, total: str, cell: str) -> str:
            if not op.peepholes:
                return total
            access = self.kernel.inputs[4]
            index = (self.direction, str(number), unit.index)
            weight = load(k, 4, access, index, (None, None, unit.inside))
            return k.let("sum", f"{total} + {weight} * {cell}")

        entering = self._gate(0, hole(0, sums[0], cell))
        if op.input_forget:
            kept = k.let("kept", f"{constant(1, self.dtype)} - {entering}")
        else:
            kept = self._gate(0, hole(2, sums[2], cell))
        content = self._gate(1, sums[3])
        new = k.let("cell", f"{kept} * {cell} + {entering} * {content}")
        self._keep(2, unit, k.let("cell", f"tl.where({active}, {new}, {cell})"))
        leaving = self._gate(0, hole(1, sums[1], new))
        return k.let("new", f"{leaving} * {self._activation(2, new)}")

    # ---- sums -----------------------------------------------------------------------------

    def _sums(self, unit: Unit, place: str, now: str, gates: Sequence[int]) -> list[str]:
        """The sums of gates: what is given plus the product of the state."""
        products = self._products(unit, self._state_pointer(now), gates)
        return [
            self.k.let("sum", f"{self._input(unit, place, g)} + {p}")
            for g, p in zip(gates, products, strict=True)
        ]

    def _products(self, unit: Unit, pointer: str, gates: Sequence[int]) -> list[str]:
        """The products of a vector in memory with the weights of gates."""
        k, kernel = self.k, self.kernel
        rows, depth, units = kernel.rows, kernel.depth, kernel.units
        dotted = rows >= DOTTED
        shape = f"({rows}, {units})" if dotted else f"({rows}, {depth}, {units})"
        kind = compute_type(self.dtype)
        totals = [k.let("total", f"tl.full({shape}, 0, {kind})") for _ in gates]
        with k.block(f"for start in range(0, {self.hidden}, {depth}):"):
            source = k.let("source", f"start + tl.arange(0, {depth})")
            even = self.hidden % depth == 0
            known = None if even else k.let("known", f"{source} < {self.hidden}")
            masked = "" if even else f", mask={known}[None, :], other=0"
            at = f"{pointer} + {self.row} * {self.hidden} + {source}[None, :]"
            state = k.let("state", f"tl.load({at}{masked})")
            column = k.let("column", f"{source}[:, None]")
            mask = None if even else k.let("known", f"{known}[:, None]")
            for gate, total in zip(gates, totals, strict=True):
                index = (self.direction, column, str(gate), unit.index)
                weight = load(k, 1, kernel.inputs[1], index, (None, mask, None, unit.inside))
                if dotted:
                    exact = 'input_precision="ieee"'
                    k.line(f"{total} = tl.dot({state}, {weight}, {total}, {exact})")
                else:
                    k.line(f"{total} += {state}[:, :, None] * {weight}[None, :, :]")
        if dotted:
            return totals
        return [k.let("product", reduced(total, "sum", 1)) for total in totals]

    def _input(self, unit: Unit, place: str, gate: int) -> str:
        index = (place, self.sequence, self.direction, str(gate), unit.index)
        masks = (None, None, None, None, unit.inside)
        return load(self.k, 0, self.kernel.inputs[0], index, masks)

    def _gate(self, number: int, total: str) -> str:
        """One of the activations of a sum, which is clipped before."""
        if self.op.clip < float("inf"):
            total = self._apply(Clip(-self.op.clip, self.op.clip), total)
        return self._activation(number, total)

    def _activation(self, number: int, x: str) -> str:
        def number_of(value: float) -> str:
            return self.k.let("c", constant(value, self.dtype))

        return activate(self.op.activations[number], x, self._apply, number_of)

    def _apply(self, op: Elementwise, *operands: str) -> str:
        leaves = (Leaf(self.dtype),) * len(operands)
        dtype = DType.BOOL if op.name.startswith("greater") else self.dtype
        if op.name == "select":
            leaves = (Leaf(DType.BOOL), *leaves[1:])
        step = Instruction(op, tuple(range(len(operands))), dtype)
        (result,) = emit(self.k, Expression(leaves, (step,), (len(operands),)), operands)
        return result

    # ---- memory ---------------------------------------------------------------------------

    def _units(self) -> _Units:
        return _Units(self)

    def _place(self, count: str, active: str, step: str) -> str:
        """Where the step of every sequence stands; behind a sequence, the step itself."""
        turned = [i for i, reverse in enumerate(self.op.reverse) if reverse]
        if not turned:
            return self.k.let("place", f"{self.sequence} * 0 + {step}")
        back = (
            "" if len(turned) == len(self.op.reverse) else f" & ({self.direction} == {turned[0]})"
        )
        return self.k.let("place", f"tl.where({active}{back}, {count} - 1 - {step}, {step})")

    def _state_given(self, number: int, unit: Unit) -> str:
        index = (self.direction, self.sequence, unit.index)
        masks = (None, None, unit.inside)
        return load(self.k, number, self.kernel.inputs[number], index, masks)

    def _store(self, pointer: int, unit: Unit, value: str) -> None:
        """Stores an output that has no steps."""
        index = (self.direction, self.sequence, unit.index)
        access = self.kernel.outputs[pointer - self.outputs]
        masks = (None, self.exists, unit.inside)
        store(self.k, pointer, access, index, masks, value)

    def _state_pointer(self, now: str) -> str:
        """Where the state is read, which is written elsewhere."""
        return f"tl.where({now} == 0, p{self.memory}, p{self.memory + 1})"

    def _state(self, now: str, unit: Unit) -> str:
        return self._load(self._state_pointer(now), unit)

    def _swap(self, now: str, unit: Unit, value: str) -> None:
        other = f"tl.where({now} == 0, p{self.memory + 1}, p{self.memory})"
        self._put(other, unit, value)

    def _kept(self, number: int, unit: Unit) -> str:
        return self._load(f"p{self.memory + number}", unit)

    def _keep(self, number: int, unit: Unit, value: str) -> None:
        self._put(f"p{self.memory + number}", unit, value)

    def _load(self, pointer: str, unit: Unit) -> str:
        masked = f", mask={unit.inside}, other=0" if unit.inside else ""
        at = f"{pointer} + {self.row} * {self.hidden} + {unit.index}"
        return self.k.let("old", f"tl.load({at}{masked})")

    def _put(self, pointer: str, unit: Unit, value: str) -> None:
        mask = self.exists + (f" & {unit.inside}" if unit.inside else "")
        at = f"{pointer} + {self.row} * {self.hidden} + {unit.index}"
        self.k.line(f"tl.store({at}, {value}, mask={mask})")


@dataclass(frozen=True)
class Unit:
    """Names of the units of a block ``[1, units]``, and which of them exist (None: all)."""

    index: str
    inside: str | None


class _Units:
    """The loop over blocks of units, or the program's only block."""

    def __init__(self, writer: _Writer) -> None:
        k, kernel = writer.k, writer.kernel
        self._writer = writer
        self._loop: Any = nullcontext()
        if writer.first is None:
            self._loop = k.block(f"for first in range(0, {kernel.hidden}, {kernel.units}):")

    def __enter__(self) -> Unit:
        self._loop.__enter__()
        k, kernel = self._writer.k, self._writer.kernel
        index = k.let(
            "unit", f"{self._writer.first or 'first'} + tl.arange(0, {kernel.units})[None, :]"
        )
        even = kernel.hidden % kernel.units == 0
        return Unit(index, None if even else k.let("inside", f"{index} < {kernel.hidden}"))

    def __exit__(self, *error: object) -> None:
        self._loop.__exit__(*error)

"""How kernels read and write operands along one vector axis, and apply fused expressions there.

A kernel of these families walks outer axes (batch, rows, columns, …) and takes vectors along one
inner axis. Each tensor it touches is an `Access`: dtype, stride along the inner axis, and whether
it moves with the outer axes at all (a bias does not). The strides along the outer axes are run-time
parameters, so that one kernel serves every extent; broadcasting is a stride of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.base import Binding, Layout, Pointer
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit

RUN_TIME = -1
"""A stride along the vector axis that is neither 0 nor 1, and known only when running."""


@dataclass(frozen=True)
class Access:
    """How a tensor is read or written.

    Attributes
    ----------
    dtype : DType
        Its elements.
    step : int
        Its stride along the vector axis: 1, 0 (broadcast) or `RUN_TIME`.
    fixed : bool
        Whether its elements do not depend on the outer axes.
    """

    dtype: DType
    step: int
    fixed: bool


Accesses = tuple["Access | None", ...]
"""One per leaf of an expression; None for constants and for what the kernel itself computed."""


@dataclass(frozen=True)
class Span:
    """A vector's place on the inner axis: `lanes` positions from `start`.

    `count` and `mask` say how many and which of them exist; None: all.
    """

    start: int | ir.Value
    lanes: int
    count: ir.Value | None = None
    mask: ir.Value | None = None


# ---- when binding ------------------------------------------------------------------------------


def broadcast_strides(layout: Layout, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides with which a tensor is read as if it had the given shape."""
    missing = len(shape) - len(layout.shape)
    strides = [0] * missing
    strides += [0 if n == 1 else s for n, s in zip(layout.shape, layout.strides, strict=True)]
    return tuple(strides)


def access(value: Value, strides: Sequence[int]) -> Access:
    """The access to a value that has these strides along the outer axes and the vector axis."""
    step = strides[-1] if strides[-1] in (0, 1) else RUN_TIME
    return Access(value.dtype, step, not any(strides[:-1]))


@dataclass(frozen=True)
class Bound:
    """Accesses with the pointers and parameters a launch passes for them."""

    accesses: Accesses
    pointers: tuple[Pointer, ...]
    params: tuple[int, ...]

    def __add__(self, other: Bound) -> Bound:
        """Both, one after the other, as a launch passes them."""
        return Bound(
            self.accesses + other.accesses,
            self.pointers + other.pointers,
            self.params + other.params,
        )


def bind_leaves(task: Task, fused: Fused, strides_of: Callable[[Value], Sequence[int]]) -> Bound:
    """Binds what an expression reads; `strides_of` gives a value's strides in the kernel's axes."""
    accesses: list[Access | None] = []
    pointers: list[Pointer] = []
    params: list[int] = []
    for source in fused.sources:
        if source is None or source == ACCUMULATOR:
            accesses.append(None)
            continue
        value = task.inputs[source]
        strides = strides_of(value)
        accesses.append(access(value, strides))
        pointers.append(value)
        params += strides
    return Bound(tuple(accesses), tuple(pointers), tuple(params))


def bind_values(values: Iterable[Value], strides_of: Callable[[Value], Sequence[int]]) -> Bound:
    """Binds values that are read or written as they are."""
    values = tuple(values)
    strides = [strides_of(v) for v in values]
    accesses = tuple(access(v, s) for v, s in zip(values, strides, strict=True))
    return Bound(accesses, values, tuple(n for s in strides for n in s))


def bind_window(task: Task, binding: Binding, shape: Sequence[int]) -> tuple[Bound, Bound, Bound]:
    """Binds a task whose kernel reads input 0 at places of its own, all else at each result's.

    Parameters
    ----------
    task : Task
    binding : Binding
    shape : sequence of int
        The anchor's result, to which the epilogue's operands broadcast.

    Returns
    -------
    source, operands, outputs : Bound
        Input 0, what the epilogue reads, what is written.
    """

    def strides_of(value: Value) -> tuple[int, ...]:
        return broadcast_strides(binding.layout(value), shape)

    # the source is not broadcast: a dimension of one element may have several output positions
    source = bind_values(task.inputs[:1], binding.strides)
    operands = bind_leaves(task, task.epilogue, strides_of)
    return source, operands, bind_values(task.outputs, strides_of)


# ---- when writing ------------------------------------------------------------------------------


class Operands:
    """The tensors of some accesses inside a kernel.

    Parameters
    ----------
    k : KernelBuilder
    accesses : Accesses
        As bound; those that are None take neither pointer nor parameters.
    pointer, param : int
        The numbers of the first pointer and parameter that were bound for them.
    axes : int
        How many axes the kernel has, the vector axis included.
    """

    def __init__(
        self, k: KernelBuilder, accesses: Accesses, pointer: int, param: int, axes: int
    ) -> None:
        self.k = k
        self.accesses = accesses
        self._bases: list[ir.Value | None] = []
        self._strides: list[list[ir.Value]] = []
        for item in accesses:
            if item is None:
                self._bases.append(None)
                self._strides.append([])
                continue
            self._bases.append(k.pointer(pointer))
            self._strides.append([k.param(param + axis) for axis in range(axes)])
            pointer += 1
            param += axes
        self.next_pointer, self.next_param = pointer, param

    def start(self) -> list[ir.Value | None]:
        """The pointers to the tensors' first elements."""
        return list(self._bases)

    def move(
        self, places: Sequence[ir.Value | None], axis: int, by: int | ir.Value
    ) -> list[ir.Value | None]:
        """Pointers moved along one outer axis."""
        moved: list[ir.Value | None] = []
        for item, place, strides in zip(self.accesses, places, self._strides, strict=True):
            if item is None or place is None or item.fixed:
                moved.append(place)
            else:
                moved.append(self.k.offset(place, self.k.mul(strides[axis], by), item.dtype))
        return moved

    def at(self, indices: Sequence[int | ir.Value]) -> list[ir.Value | None]:
        """Pointers at the given indices of the outer axes."""
        places = self.start()
        for axis, index in enumerate(indices):
            places = self.move(places, axis, index)
        return places

    def load(
        self,
        places: Sequence[ir.Value | None],
        span: Span,
        known: Sequence[ir.Value | None] | None = None,
    ) -> list[ir.Value | None]:
        """The vectors at a span; those in `known` are not loaded again."""
        values: list[ir.Value | None] = []
        for number, (item, place) in enumerate(zip(self.accesses, places, strict=True)):
            if known is not None and known[number] is not None:
                values.append(known[number])
            elif item is None or place is None:
                values.append(None)
            else:
                step = self._strides[number][-1]
                values.append(load_span(self.k, place, item, step, span))
        return values

    def load_fixed(self, span: Span) -> list[ir.Value | None]:
        """The vectors at a span of what does not move: to be kept in registers."""
        places = [
            base if item is not None and item.fixed else None
            for item, base in zip(self.accesses, self._bases, strict=True)
        ]
        return self.load(places, span)

    def store(
        self, places: Sequence[ir.Value | None], span: Span, values: Sequence[ir.Value]
    ) -> None:
        """Stores one vector per access at a span."""
        for number, (item, place) in enumerate(zip(self.accesses, places, strict=True)):
            assert item is not None
            step = self._strides[number][-1]
            store_span(self.k, values[number], place, item, step, span)


def load_span(
    k: KernelBuilder, place: ir.Value, item: Access, step: ir.Value, span: Span
) -> ir.Value:
    """A vector of a tensor at a span; lanes that do not exist hold anything."""
    if item.step == 0:
        return k.splat(k.load(place, item.dtype), span.lanes)
    if item.step == 1:
        return k.load(
            k.offset(place, span.start, item.dtype), item.dtype, span.lanes, mask=span.mask
        )
    start = k.offset(place, k.mul(span.start, step), item.dtype)
    if span.lanes == 1:
        return k.load(start, item.dtype)
    return k.gather(start, step, item.dtype, span.lanes, span.count)


def store_span(
    k: KernelBuilder, value: ir.Value, place: ir.Value, item: Access, step: ir.Value, span: Span
) -> None:
    """Stores the lanes of a vector that exist."""
    if item.step == 1:
        place = k.offset(place, span.start, item.dtype)
        k.store(value, place, item.dtype, span.lanes, mask=span.mask)
        return
    # an output never broadcasts: a step of 0 means that there is one element
    start = k.offset(place, k.mul(span.start, step), item.dtype)
    k.scatter(value, start, step, item.dtype, span.lanes, span.count)


def apply(
    k: KernelBuilder,
    expression: Expression,
    loaded: Sequence[ir.Value | None],
    accumulators: Sequence[ir.Value],
    accesses: Accesses,
    lanes: int,
) -> list[ir.Value]:
    """The results of an expression whose computed leaves are the accumulators, in order."""
    leaves = list(loaded)
    given = zip(expression.leaves, accesses, strict=True)
    computed = [i for i, (leaf, item) in enumerate(given) if item is None and leaf.constant is None]
    for i, result in zip(computed, accumulators, strict=False):
        leaves[i] = result
    return emit(k, expression, leaves, lanes, computed)


def for_spans(
    k: KernelBuilder,
    begin: int | ir.Value,
    end: int | ir.Value,
    lanes: int,
    body: Callable[[list[Span], list[ir.Value]], Sequence[ir.Value] | None],
    *,
    vectors: int = 1,
    whole: bool = False,
    carried: Sequence[ir.Value] = (),
) -> list[ir.Value]:
    """Runs the body over ``[begin, end)`` in steps of some vectors, the last step masked.

    `whole` promises that the extent is a multiple of the step, so that nothing is masked. The body
    takes and gives the carried values.
    """
    step = lanes * vectors

    def spans(start: ir.Value) -> list[Span]:
        return [Span(k.add(start, lanes * v), lanes) for v in range(vectors)]

    extent = k.sub(end, begin)
    if whole:
        full = end
    elif isinstance(extent, int):
        full = k.add(begin, extent // step * step)
    else:
        full = k.add(begin, k.mul(k.b.sdiv(extent, k.i64(step)), step))
    with k.loop(begin, full, step, carried) as loop:
        loop.next = list(body(spans(loop.index), loop.carried) or ())
    if whole:
        return loop.carried

    def tail() -> list[ir.Value]:
        masked = []
        for span in spans(k.i64(full)):
            count = k.i64(k.sub(end, span.start))
            masked.append(Span(span.start, lanes, count, k.tail_mask(count, lanes)))
        return list(body(masked, loop.carried) or ())

    rest = k.b.icmp_signed("<", k.i64(full), k.i64(end))
    return k.choose(rest, tail, lambda: loop.carried)

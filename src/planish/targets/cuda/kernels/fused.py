"""How kernels read operands, apply the fused expression and write results.

A kernel computes a result of some axes; each tensor it touches beside its own is an `Access`: a
stride per axis of the result, 0 where it is broadcast. All of it is `Work`, a part of the kernel's
key. Axes that every tensor steps through evenly are merged first, so that most kernels see rows and
columns only, and the first axis' extent is never part of the text: batches share kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.fusion.expression import Expression
from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.graph import Node, Value
from planish.graph.types import DType
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding, Layout
from planish.targets.cuda.codegen.elementwise import (
    INEXACT,
    UNKNOWN,
    Facts,
    compute_type,
    emit,
    storage_type,
)
from planish.targets.cuda.codegen.quantization import has_inverse
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer

_FINITE = {
    *("add", "mul", "cast", "relu", "maximum", "minimum", "clip", "dequantize", "quantize"),
    *("sub", "gelu", "silu", "sigmoid", "tanh", "hard_sigmoid", "hard_swish"),
}
"""Ops that give finite floats of finite ones, but for those that no sum of levels comes near."""

_INEXACT = {"gelu", "silu", "sigmoid", "tanh"}
"""Of these what is not rounded as the references are."""

_SMALL = float((1 << 15) - 256)
"""What is below it still is when sums before it were rounded."""

WIDE = 1 << 31
"""From so many elements on offsets need 64 bits."""


@dataclass(frozen=True)
class Access:
    """How a tensor is read or written.

    Attributes
    ----------
    pointer : Pointer
    strides : tuple of int
        In elements, per axis of the kernel's result; 0 where the tensor is broadcast.
    wide : bool
        Whether offsets need 64 bits.
    offset : int
        Where the element at index 0 lies, in elements from the pointer.
    """

    pointer: Pointer
    strides: tuple[int, ...]
    wide: bool = False
    offset: int = 0


@dataclass(frozen=True)
class Work:
    """What happens to each element of a kernel's result, and what it touches.

    Attributes
    ----------
    shape : tuple of int
        The axes of the result after merging; the first is -1, as kernels do not depend on it.
    expression : Expression
    leaves : tuple of Access or None
        One per leaf; None for constants and for what the kernel computed itself.
    outputs : tuple of Access
    facts : Facts
    """

    shape: tuple[int, ...]
    expression: Expression
    leaves: tuple[Access | None, ...]
    outputs: tuple[Access, ...]
    facts: Facts = UNKNOWN

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        """Of the leaves that are read, then of the outputs."""
        return tuple(a.pointer for a in (*self.leaves, *self.outputs) if a is not None)


# ---- when binding ------------------------------------------------------------------------------


def broadcast_strides(layout: Layout, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides with which a tensor is read as if it had the given shape."""
    missing = len(shape) - len(layout.shape)
    strides = [0 if n == 1 else s for n, s in zip(layout.shape, layout.strides, strict=True)]
    return (*([0] * missing), *strides)


def pointer_of(value: Value, binding: Binding) -> Pointer:
    """The argument that points to a value."""
    return Pointer(value.dtype, binding.layout(value).alignment >= 16)


def is_wide(layout: Layout) -> bool:
    """Whether offsets inside a tensor need 64 bits."""
    reach = sum(abs(s) * (n - 1) for n, s in zip(layout.shape, layout.strides, strict=True))
    return reach >= WIDE


def access(value: Value, binding: Binding, shape: Sequence[int]) -> Access:
    """The access to a value that broadcasts to a shape."""
    layout = binding.layout(value)
    strides = broadcast_strides(layout, shape)
    return Access(pointer_of(value, binding), strides, is_wide(layout))


def merge(
    shape: Sequence[int], strides: Sequence[Sequence[int]], groups: Sequence[int] = ()
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merges neighbouring axes through which every tensor steps evenly; drops those of extent 1.

    Parameters
    ----------
    shape : sequence of int
    strides : sequence
        Of each tensor, per axis.
    groups : sequence of int
        Axes that begin a group, as axis 0 always does: what lies in different groups stays apart,
        and a group keeps at least one axis.

    Returns
    -------
    shape : tuple of int
    strides : list of tuple
    """
    starts = sorted({0, *groups})
    kept: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for begin, end in zip(starts, (*starts[1:], len(shape)), strict=True):
        axes = [axis for axis in range(begin, end) if shape[axis] != 1]
        if not axes:
            kept.append(1)
            for own in steps:
                own.append(0)
        for axis in axes:
            extent = shape[axis]
            if axis != axes[0] and all(
                own[-1] == s[axis] * extent for own, s in zip(steps, strides, strict=True)
            ):
                kept[-1] *= extent
                for own, s in zip(steps, strides, strict=True):
                    own[-1] = s[axis]
            else:
                kept.append(extent)
                for own, s in zip(steps, strides, strict=True):
                    own.append(s[axis])
    return tuple(kept), [tuple(own) for own in steps]


def bind_work(
    task: Task,
    fused: Fused,
    outputs: Sequence[Value],
    binding: Binding,
    shape: Sequence[int],
    groups: Sequence[int] = (),
) -> tuple[Work, tuple[int, ...], tuple[Value, ...]]:
    """The work of an expression on a result of the given shape.

    Parameters
    ----------
    task : Task
    fused : Fused
        Usually the task's epilogue.
    outputs : sequence of Value
        What the results are written to.
    binding : Binding
    shape : sequence of int
        The result's.
    groups : sequence of int
        See `merge`; a kernel of rows and columns passes the first axis of the columns.

    Returns
    -------
    work : Work
    shape : tuple of int
        The merged extents, the first included.
    values : tuple of Value
        What `Work.pointers` point to.
    """
    sources = [None if s is None or s == ACCUMULATOR else task.inputs[s] for s in fused.sources]
    values = (*(v for v in sources if v is not None), *outputs)
    accesses = [access(v, binding, shape) for v in values]
    extents, strides = merge(shape, [a.strides for a in accesses], groups)
    merged = iter(Access(a.pointer, s, a.wide) for a, s in zip(accesses, strides, strict=True))
    leaves = tuple(None if v is None else next(merged) for v in sources)
    facts = facts_of(fused, sources, task)
    work = Work((-1, *extents[1:]), fused.expression, leaves, tuple(merged), facts)
    return work, extents, values


def facts_of(fused: Fused, sources: Sequence[Value | None], task: Task) -> Facts:
    """What constants tell of an expression that makes levels."""
    expression = fused.expression
    names = {step.op.name for step in expression.instructions}
    if "encode_float8" in names:
        return INEXACT
    if "quantize" not in names:
        return UNKNOWN
    finite = _is_finite(expression, sources)
    return Facts(
        finite=finite,
        small=finite and _most(expression, fused.sources, task) < _SMALL,
        invertible=_is_invertible(expression, sources),
        inexact=any(step.op.name in _INEXACT for step in expression.instructions),
    )


def _is_invertible(expression: Expression, sources: Sequence[Value | None]) -> bool:
    """Whether scales that are read are constants by whose inverses one may multiply."""
    for step in expression.instructions:
        place = step.args[1] if step.op.name == "quantize" else len(sources)
        if place >= len(sources) or expression.leaves[place].constant is not None:
            continue
        value = sources[place]
        if value is None or value.data is None or not has_inverse(value.data):
            return False
    return True


def _is_finite(expression: Expression, sources: Sequence[Value | None]) -> bool:
    """Whether levels are made, of integers and finite constants, by sums and products alone."""
    names = {step.op.name for step in expression.instructions}
    if "quantize" not in names or not names <= _FINITE:
        return False
    for leaf, value in zip(expression.leaves, sources, strict=True):
        known = leaf.constant if value is None else value.data
        if leaf.dtype.is_float and (known is None or not np.all(np.isfinite(known))):
            return False
    return True


def _most(expression: Expression, places: Sequence[int | None], task: Task) -> float:
    """What nothing that becomes levels is beyond, either way; infinite where it is not known."""
    most: list[float] = []
    least: list[float] = []
    for leaf, place in zip(expression.leaves, places, strict=True):
        value = None if place is None or place == ACCUMULATOR else task.inputs[place]
        known = leaf.constant if value is None else value.data
        size = np.abs(np.asarray(0 if known is None else known, np.float64))
        least.append(float(np.min(size, initial=math.inf)))
        if known is not None:
            most.append(float(np.max(size, initial=0)))
        elif place == ACCUMULATOR:
            most.append(_most_sum(task))
        else:
            most.append(256.0 if leaf.dtype.size == 1 else math.inf)
    levels = 0.0
    for step in expression.instructions:
        arguments = [most[i] for i in step.args]
        if step.op.name == "mul":
            most.append(math.prod(arguments))
        elif step.op.name == "add":
            most.append(sum(arguments))
        elif step.op.name == "dequantize":
            most.append((arguments[0] + arguments[2]) * arguments[1])
        elif step.op.name in ("cast", "relu", "gelu", "silu"):
            most.append(arguments[0])
        elif step.op.name == "quantize" and step.args[1] < len(least) and least[step.args[1]]:
            levels = max(levels, arguments[0] / least[step.args[1]])
            most.append(256.0)
        else:
            return math.inf
    return levels


def _most_sum(task: Task) -> float:
    """The same of a sum of products of bytes: the largest, if there are two."""
    anchors = [n for n in task.nodes if isinstance(n.op, ConvInteger | MatMulInteger)]
    return max(map(_most_of, anchors), default=math.inf)


def _most_of(anchor: Node) -> float:
    _, weights, *zeros = anchor.inputs
    depth = weights.type.elements
    columns = anchor.output.shape[-1]
    if not isinstance(depth, int) or not isinstance(columns, int) or not weights.is_constant:
        return math.inf
    shifted = any(z.data is None or z.data.any() for z in zeros)
    signed = all(v.dtype is DType.INT8 for v in anchor.inputs[:2])
    return depth / columns * (2.0**14 if signed and not shifted else 2.0**16)


# ---- when writing ------------------------------------------------------------------------------


def offset(item: Access, index: Sequence[str]) -> str:
    """The offset of the elements at an index: one name (or number) per axis."""
    terms = [str(item.offset)] if item.offset else []
    for stride, place in zip(item.strides, index, strict=True):
        if stride == 0 or place == "0":
            continue
        wide = f"({place}).to(tl.int64)" if item.wide else place
        terms.append(wide if stride == 1 else f"{wide} * {stride}")
    return " + ".join(terms) or "0"


Mask = str | Sequence[str | None] | None
"""Which elements exist: one name for all axes, or per axis one or None; None: all of them.

Where an index is one number for the whole program, give a mask per axis, and None for that axis: a
tensor that has no other axes is then loaded as one number, which Triton refuses to mask by a tile.
"""


def whole_mask(mask: Mask) -> str | None:
    """A mask as one expression."""
    if mask is None or isinstance(mask, str):
        return mask
    return " & ".join(dict.fromkeys(m for m in mask if m is not None)) or None


def load(
    k: Source, pointer: int, item: Access, index: Sequence[str], mask: Mask, hint: str = "x"
) -> str:
    """Loads the elements of a tensor at an index, in the type they are computed in.

    With a mask per axis, a tensor that is broadcast along some axes is loaded once for all of them.
    """
    place = f"p{pointer} + {offset(item, index)}"
    varies = [bool(s) and i != "0" for s, i in zip(item.strides, index, strict=True)]
    if mask is not None and not isinstance(mask, str):
        mask = [m if v else None for m, v in zip(mask, varies, strict=True)]
    masks = whole_mask(mask) if any(varies) else None
    masked = f", mask={masks}, other=0" if masks is not None else ""
    return k.let(hint, f"tl.load({place}{masked}).to({compute_type(item.pointer.dtype)})")


def apply(
    k: Source,
    work: Work,
    first: int,
    index: Sequence[str],
    mask: Mask,
    accumulators: Sequence[str] = (),
    loaded: Sequence[str | None] = (),
) -> list[str]:
    """The expression's results at an index, in the types they are computed in.

    Parameters
    ----------
    k : Source
    work : Work
    first : int
        The number of the pointer of the work's first leaf.
    index : sequence of str
        Per axis of `work.shape` a name of an integer tensor; they broadcast with one another.
    mask : str, sequence or None
        Which elements exist; see `Mask`.
    accumulators : sequence of str
        Names of what the kernel computed, in the order of the leaves that stand for it.
    loaded : sequence of str or None
        Per leaf the name of what was loaded already; None, or nothing at all: not yet.
    """
    computed = iter(accumulators)
    known = iter(loaded or [None] * len(work.leaves))
    leaves: list[str | None] = []
    for leaf, item in zip(work.expression.leaves, work.leaves, strict=True):
        early = next(known)
        if item is not None:
            leaves.append(early or load(k, first, item, index, mask))
            first += 1
        elif leaf.constant is not None:
            leaves.append(None)
        else:
            leaves.append(next(computed))
    return emit(k, work.expression, leaves, work.facts)


def finish(
    k: Source,
    work: Work,
    first: int,
    index: Sequence[str],
    mask: Mask,
    accumulators: Sequence[str] = (),
    loaded: Sequence[str | None] = (),
) -> None:
    """Applies the expression at an index and stores its results; see `apply`."""
    results = apply(k, work, first, index, mask, accumulators, loaded)
    place = first + sum(item is not None for item in work.leaves)
    for number, (result, item) in enumerate(zip(results, work.outputs, strict=True)):
        store(k, place + number, item, index, mask, result)


def store(
    k: Source, pointer: int, item: Access, index: Sequence[str], mask: Mask, value: str
) -> None:
    """Stores elements, given in the type they are computed in, to a tensor at an index."""
    where = f"p{pointer} + ({offset(item, index)})"
    lacking = [i for i, s in zip(index, item.strides, strict=True) if s == 0 and i != "0"]
    if lacking:  # axes of extent 1: the offset alone lacks their shape
        where += f" + ({' + '.join(f'({i}) * 0' for i in lacking)})"
    masks = whole_mask(mask)
    masked = f", mask={masks}" if masks is not None else ""
    k.line(f"tl.store({where}, ({value}).to({storage_type(item.pointer.dtype)}){masked})")


def decompose(k: Source, flat: str, extents: Sequence[int], hint: str = "i") -> list[str]:
    """Splits a flat index into one per axis; the first axis' extent is not used."""
    index: list[str] = []
    rest = flat
    for extent in reversed(extents[1:]):
        index.append(k.let(hint, f"{rest} % {extent}"))
        rest = k.let(hint, f"{rest} // {extent}")
    return [rest, *reversed(index)]

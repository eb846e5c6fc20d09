"""How a convolution, or a product by a constant matrix, looks to cuDNN with the elementwise work
after it. A product is a convolution of single pixels: its rows are the pixels.

cuDNN fuses a chain of elementwise operations into a convolution. It says itself which chains it
takes; what is left out here has no operation of the same meaning, or may not be tried: plans for
operands that are broadcast in unusual ways read outside of them, which ends the process's use of
the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planish.fusion.expression import Expression, Instruction
from planish.fusion.task import ACCUMULATOR, Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, Elu, Gelu, HardSigmoid, LeakyRelu
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, Dequantize, MatMulInteger, Quantize
from planish.targets.base import Binding, Layout
from planish.targets.cuda.libraries.cudnn_graph import ConvGraph, Step, Tensor

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
"""What cuDNN's kernels compute with here; they accumulate in float32, of bytes in int32."""

STORED = (*DTYPES, DType.INT8)
"""What they read and write."""

WHOLE = 16
"""Channels of bytes go by so many: for other numbers of them cuDNN has no fast kernels."""

VECTOR = 16
"""Bytes of the widest accesses, which kernels take for granted."""

_SAME = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "maximum": "max",
    "minimum": "min",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "swish",
    "tanh": "tanh",
    "softplus": "softplus",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "reciprocal": "reciprocal",
    "neg": "neg",
    "abs": "abs",
    "erf": "erf",
}
"""Ops without attributes that cuDNN has too, and what it calls them."""


LEAST_PRODUCT = 1e9
"""Operations of a matrix product, at least: cuBLASLt and generated kernels serve smaller ones, and
asking cuDNN takes up to a tenth of a second.
"""


Product = MatMul | MatMulInteger

UNIT = 1 << 30
"""The slot of what is no operand: a scale of 1, a zero point of 0."""

PIXELS = Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
"""The convolution that a matrix product is."""


@dataclass(frozen=True)
class Problem:
    """A task as a graph, and what its operands are.

    Attributes
    ----------
    graph : ConvGraph
    operands : tuple of Value
        Behind the first of the graph's operands.
    scalars : tuple of float
        The others.
    """

    graph: ConvGraph
    operands: tuple[Value, ...]
    scalars: tuple[float, ...]


def understood(task: Task) -> bool:
    """Whether a task is one that cuDNN may know; shapes and layouts decide the rest."""
    anchor = task.anchor
    if anchor is None or task.prologue is not None:
        return False
    if not isinstance(anchor.op, Conv | ConvInteger | Product):
        return False
    op, (x, w, *zeros) = anchor.op, anchor.inputs
    if not w.is_constant or w.dtype is not x.dtype:
        return False
    whole = isinstance(op, ConvInteger | MatMulInteger) and _are_whole(w, zeros)
    if x.dtype not in DTYPES and not whole:
        return False
    if isinstance(op, Product):
        fits = w.type.rank == 2 and x.type.rank in (2, 3, 4) and not op.transpose_a
    elif isinstance(op, ConvInteger):
        fits = len(op.strides) in (1, 2) and op.groups == 1
    else:
        fits = len(op.strides) in (1, 2)
    return fits and steps_of(task) is not None


def _are_whole(filters: Value, zeros: Sequence[Value]) -> bool:
    """Whether bytes have a sign, no zero points, and as many channels as cuDNN has kernels for."""
    if filters.dtype is not DType.INT8 or any(z.data is None or z.data.any() for z in zeros):
        return False
    return not any(n % WHOLE for n in filters.type.bind({})[-2:])


def filters(task: Task) -> np.ndarray:
    """The constant factor as ``[rows, columns, C, K]``, or without rows."""
    assert task.anchor is not None
    op, data = task.anchor.op, task.anchor.inputs[1].data
    assert data is not None
    if isinstance(op, Product):
        return (data.T if op.transpose_b else data)[None, None]
    return data


def problem_of(
    task: Task, binding: Binding, tf32: bool, residual_first: bool = False
) -> Problem | None:
    """The graph of a task; None where there is none.

    Parameters
    ----------
    task : Task
    binding : Binding
    tf32 : bool
        See `ConvGraph`.
    residual_first : bool
        Adds a tensor like the result before a number per channel, not after it as the task does:
        for that order cuDNN has other kernels. There is a graph only where this changes something.
    """
    if not understood(task):
        return None
    anchor = task.anchor
    assert anchor is not None and isinstance(anchor.op, Conv | ConvInteger | Product)
    op, (x, w) = anchor.op, anchor.inputs[:2]
    if tf32 and x.dtype is not DType.FLOAT32:
        return None
    shape = anchor.output.type.bind(binding.symbols)
    if isinstance(op, Product):
        if 2 * math.prod(shape) * filters(task).shape[2] < LEAST_PRODUCT:
            return None
        op = PIXELS
    image = _tensor(x, binding)
    pairs = [[evaluate(p, binding.symbols) for p in pair] for pair in op.padding]
    strides, dilations = op.strides, op.dilations
    if len(strides) == 1:
        pairs, strides, dilations = [[0, 0], *pairs], (1, *strides), (1, *dilations)
    if image is None or any(first < 0 for first, _ in pairs):
        return None
    chain = steps_of(task)
    assert chain is not None
    steps, scalars, results = chain
    operands = _operands(task)
    tensors = [_operand(v, binding, shape) for v in operands]
    tensors += [Tensor((1,) * 4, (1,) * 4, DType.FLOAT32)] * len(scalars)
    outputs = [_tensor(v, binding) if binding.shape(v) == shape else None for v in task.outputs]
    if None in tensors or None in outputs:
        return None
    if residual_first:
        reordered = _residual_first(steps, [t for t in tensors if t is not None], results)
        if reordered is None:
            return None
        steps = reordered
    rows, columns = (n + min(end, 0) for n, (_, end) in zip(image.shape[2:], pairs, strict=True))
    *window, depth, count = filters(task).shape
    window = [1, *window][-2:]
    graph = ConvGraph(
        image=Tensor((*image.shape[:2], rows, columns), image.strides, image.dtype),
        filters=Tensor(
            (count, depth, window[0], window[1]),
            (depth * math.prod(window), 1, depth * window[1], depth),
            w.dtype,
        ),
        strides=(strides[0], strides[1]),
        dilations=(dilations[0], dilations[1]),
        before=(pairs[0][0], pairs[1][0]),
        after=(max(pairs[0][1], 0), max(pairs[1][1], 0)),
        operands=tuple(t for t in tensors if t is not None),
        steps=steps,
        results=tuple((slot, t) for slot, t in zip(results, outputs, strict=True) if t is not None),
        tf32=tf32,
    )
    return Problem(graph, operands, scalars)


# ---- tensors -------------------------------------------------------------------------------------


def _tensor(value: Value, binding: Binding) -> Tensor | None:
    """A tensor ``[N, *spatial, C]`` as cuDNN is told of it; None if it may not be. Axes that lack
    are of extent 1.
    """
    layout = binding.layout(value)
    shape, strides = layout.shape, layout.strides
    if len(shape) == 2:
        shape, strides = (1, *shape), (shape[0] * strides[0], *strides)
    if len(shape) == 3:
        shape, strides = (shape[0], 1, *shape[1:]), (strides[0], strides[0], *strides[1:])
    if len(shape) != 4:
        return None
    if value.dtype not in STORED or not _is_regular(layout, value.dtype):
        return None
    n, y, x, c = shape
    by_image, by_row, by_column, by_channel = strides
    return Tensor((n, c, y, x), (by_image, by_channel, by_row, by_column), value.dtype)


def _is_regular(layout: Layout, dtype: DType) -> bool:
    """Whether wide accesses along the channels fall on multiples of their width, and no two
    elements on each other.
    """
    if layout.alignment < VECTOR:
        return False
    if layout.is_dense:
        return True
    steps = [(s, n) for n, s in zip(layout.shape, layout.strides, strict=True) if n > 1]
    if layout.shape[-1] == 1 or layout.strides[-1] != 1:
        return False
    inside = 1
    for stride, extent in reversed(steps):
        if stride < inside or (stride > 1 and stride * dtype.size % VECTOR):
            return False
        inside = stride * extent
    return True


def _operands(task: Task) -> tuple[Value, ...]:
    """What the epilogue reads beside single numbers known when compiling, in order."""
    return tuple(
        task.inputs[s] for s in task.epilogue.sources if s is not None and s != ACCUMULATOR
    )


def _operand(value: Value, binding: Binding, result: Sequence[int]) -> Tensor | None:
    """An operand of the shape of the result, with a number per channel, or a single one."""
    shape = binding.shape(value)
    if tuple(shape) == tuple(result):
        return _tensor(value, binding)
    layout = binding.layout(value)
    if value.dtype not in DTYPES or layout.alignment < VECTOR or not layout.is_dense:
        return None
    count = math.prod(shape)
    if count == 1:
        return Tensor((1,) * 4, (1,) * 4, value.dtype)
    if shape[-1] == count == result[-1]:
        return Tensor((1, count, 1, 1), (count, 1, count, count), value.dtype)
    return None


# ---- elementwise work ----------------------------------------------------------------------------


class _Untranslatable(Exception):
    """cuDNN has no operation of the same meaning."""


class _Chain:
    """Translates instructions; slots are those of `Step`, but scalars are numbered from -1 down
    until their count is known.
    """

    def __init__(self, first: int) -> None:
        self.steps: list[Step] = []
        self.scalars: list[float] = []
        self._first = first

    def scalar(self, number: float) -> int:
        """The slot of a number."""
        if number not in self.scalars:
            self.scalars.append(number)
        return -1 - self.scalars.index(number)

    def add(self, operation: str, *args: int, slope: float | None = None) -> int:
        """A step; the slot of its result, scalars not counted. Operands come last where they may:
        so cuDNN knows the chain.
        """
        if operation in ("add", "mul") and self._is_operand(args[0]):
            args = args[::-1]
        self.steps.append(Step(operation, args, slope))
        return self._first + len(self.steps) - 1

    def _is_operand(self, slot: int) -> bool:
        return slot < 0 or 0 < slot < self._first

    def clip(self, x: int, low: float, high: float) -> int:
        if low > -math.inf:
            x = self.add("max", x, self.scalar(low))
        return self.add("min", x, self.scalar(high)) if high < math.inf else x

    def translate(self, instruction: Instruction, args: Sequence[int]) -> int:
        """The slot of an instruction's result.

        Raises
        ------
        _Untranslatable
        """
        op, x = instruction.op, args[0]
        match op:
            case Cast():
                return x  # everything inside is in float32
            case Dequantize():  # of what stands for 0 by 0
                return self.add("mul", x, args[1])
            case Quantize():  # the result is rounded and saturates where it is stored
                if args[1] != UNIT:
                    x = self.add("div", x, args[1])
                if op.low == 0:
                    x = self.add("relu", x)
                elif op.low > -128:
                    x = self.add("max", x, self.scalar(float(op.low)))
                return self.add("min", x, self.scalar(float(op.high))) if op.high < 127 else x
            case Clip():
                return self.clip(x, op.low, op.high)
            case LeakyRelu():
                return self.add("relu", x, slope=op.alpha)
            case Elu() if op.alpha == 1:
                return self.add("elu", x)
            case Gelu():
                return self.add("gelu_approx_tanh" if op.approximate else "gelu", x)
            case HardSigmoid():
                line = self.add("mul", x, self.scalar(op.alpha))
                return self.clip(self.add("add", line, self.scalar(op.beta)), 0.0, 1.0)
        if op.attributes():
            raise _Untranslatable
        match op.name:
            case "square":
                return self.add("mul", x, x)
            case "hard_swish":
                gate = self.clip(self.add("add", x, self.scalar(3.0)), 0.0, 6.0)
                return self.add("mul", self.add("mul", x, gate), self.scalar(1 / 6))
            case "mish":
                return self.add("mul", x, self.add("tanh", self.add("softplus", x)))
            case "prelu":
                below = self.add("mul", self.add("min", x, self.scalar(0.0)), args[1])
                return self.add("add", self.add("max", x, self.scalar(0.0)), below)
            case name if name in _SAME:
                return self.add(_SAME[name], *args)
        raise _Untranslatable


def steps_of(task: Task) -> tuple[tuple[Step, ...], tuple[float, ...], tuple[int, ...]] | None:
    """The epilogue as steps, the numbers they use, and the slots that are results; None where cuDNN
    has no operations for it.
    """
    expression, sources = task.epilogue.expression, task.epilogue.sources
    operands = sum(s is not None and s != ACCUMULATOR for s in sources)
    chain = _Chain(1 + operands)
    slots: list[int] = []
    read = 0
    units = _units(expression)
    if units is None:
        return None
    for place, (leaf, source) in enumerate(zip(expression.leaves, sources, strict=True)):
        if leaf.dtype not in (*STORED, DType.INT32):
            return None
        if place in units:
            slots.append(UNIT)
        elif source is None:
            assert leaf.constant is not None
            slots.append(chain.scalar(float(leaf.constant)))
        elif source == ACCUMULATOR:
            slots.append(0)
        else:
            read += 1
            slots.append(read)
    try:
        for step in expression.instructions:
            if step.dtype not in (STORED if isinstance(step.op, Quantize) else DTYPES):
                return None
            slots.append(chain.translate(step, [slots[i] for i in step.args]))
    except _Untranslatable:
        return None
    if not all(math.isfinite(number) for number in chain.scalars):
        return None

    def final(slot: int) -> int:
        """A slot, now that the scalars are counted."""
        if slot < 0:
            return operands - slot
        return slot if slot <= operands else slot + len(chain.scalars)

    results = tuple(final(slots[i]) for i in expression.results)
    made = {0, *range(final(1 + operands), final(1 + operands + len(chain.steps)))}
    if len(set(results)) != len(results) or not made.issuperset(results):
        return None
    steps = tuple(Step(s.operation, tuple(map(final, s.args)), s.slope) for s in chain.steps)
    return steps, tuple(chain.scalars), results


def _units(expression: Expression) -> set[int] | None:
    """The leaves that are scales of 1 and zero points of 0. None where there are other zero points,
    where levels are computed with, and where what is no float is not made one at once.
    """
    found: set[int] = set()
    used: set[int] = set()
    first = len(expression.leaves)
    for number, step in enumerate(expression.instructions):
        numbers = [expression.leaves[i].constant if i < first else None for i in step.args]
        if isinstance(step.op, Quantize | Dequantize):
            if numbers[2] != 0 or expression.leaves[step.args[2]].dtype not in DTYPES:
                return None
            if isinstance(step.op, Quantize) and first + number not in expression.results:
                return None
            unit = isinstance(step.op, Quantize) and numbers[1] == 1
            found.update(step.args[1 if unit else 2 :])
            used.update(step.args[: 1 if unit else 2])
        else:
            if not isinstance(step.op, Cast) and not all(
                expression.dtype(i).is_float for i in step.args
            ):
                return None
            used.update(step.args)
    return None if found & used else found


def _residual_first(
    steps: Sequence[Step], operands: Sequence[Tensor], results: Sequence[int]
) -> tuple[Step, ...] | None:
    """The steps with the operands of two additions exchanged; None where there are no such two."""
    first = 1 + len(operands)

    def per_channel(slot: int) -> bool | None:
        """Whether an operand has a number per channel; None for what is no operand."""
        if not 0 < slot < first:
            return None
        images, _, *size = operands[slot - 1].shape
        return images * math.prod(size) == 1

    for number, (one, two) in enumerate(pairwise(steps)):
        between = first + number
        if (
            (one.operation, two.operation) == ("add", "add")
            and two.args[0] == between
            and between not in results
            and not any(between in step.args for step in steps[number + 2 :])
            and (per_channel(one.args[1]), per_channel(two.args[1])) == (True, False)
        ):
            pair = (
                Step("add", (one.args[0], two.args[1])),
                Step("add", (between, one.args[1])),
            )
            return (*steps[:number], *pair, *steps[number + 2 :])
    return None

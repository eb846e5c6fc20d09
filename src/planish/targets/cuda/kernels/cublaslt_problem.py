"""How a convolution or matrix product looks to cuBLASLt.

Its matrices lie column by column, and its bias is a number per row. So it is asked for the
transposed result, ``y^T = W^T x^T``: the columns of that are the rows of ``y``, and a bias per row
of it is one per channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planish.fusion.task import ACCUMULATOR, Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Gelu
from planish.ops.matmul import MatMul
from planish.targets.base import Binding
from planish.targets.cuda.kernels.fused import broadcast_strides, merge
from planish.targets.cuda.kernels.matrix_problem import is_packed
from planish.targets.cuda.libraries.product import Matrix, Product

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
"""What cuBLASLt multiplies here, accumulating in float32."""

LIMIT = 1 << 31
"""Extents are less than this."""


@dataclass(frozen=True)
class Problem:
    """A task as a product, and what its pointers point to.

    Attributes
    ----------
    product : Product
    left : Value or None
        None: the packed constant.
    right : Value
    more : tuple of Value
        The residual and the bias, as far as there are any.
    """

    product: Product
    left: Value | None
    right: Value
    more: tuple[Value, ...]


@dataclass(frozen=True)
class Chain:
    """An epilogue that cuBLASLt may have: `scale`, then the inputs of these numbers are added, then
    `activation`.
    """

    scale: float
    added: tuple[int, ...]
    activation: str


def understood(task: Task) -> bool:
    """Whether a task is a product that cuBLASLt may know; shapes and layouts decide the rest."""
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, Conv | MatMul) or task.prologue is not None:
        return False
    x, w = anchor.inputs
    if x.dtype not in DTYPES or w.dtype is not x.dtype or len(task.outputs) != 1:
        return False
    if isinstance(anchor.op, Conv):
        op = anchor.op
        plain = op.groups == 1 and set(op.strides) == {1} and all(n == 1 for n in w.shape[:-2])
        if not plain or not w.is_constant or any(p != 0 for pair in op.padding for p in pair):
            return False
    return task.output.dtype in (x.dtype, DType.FLOAT32) and chain_of(task) is not None


def chain_of(task: Task) -> Chain | None:
    """The epilogue, if cuBLASLt may have it."""
    expression, sources = task.epilogue.expression, task.epilogue.sources
    if ACCUMULATOR not in sources:
        return None
    current = sources.index(ACCUMULATOR)
    scale, activation = 1.0, ""
    added: list[int] = []
    for number, step in enumerate(expression.instructions, len(expression.leaves)):
        others = [slot for slot in step.args if slot != current]
        if len(others) != len(step.args) - 1 or not step.dtype.is_float:
            return None
        leaf = others[0] if others else None
        if leaf is not None and leaf >= len(expression.leaves):
            return None
        constant = None if leaf is None else expression.leaves[leaf].constant
        source = None if leaf is None else sources[leaf]
        name = step.op.name
        if isinstance(step.op, Cast):
            pass
        elif activation:
            return None
        elif name == "add" and source is not None and source != ACCUMULATOR and len(added) < 2:
            added.append(source)
        elif name == "mul" and constant and not added:
            scale *= float(constant)
        elif name == "div" and constant and not added and step.args[0] == current:
            scale /= float(constant)
        elif name == "relu":
            activation = "relu"
        elif isinstance(step.op, Gelu) and step.op.approximate:
            activation = "gelu"
        else:
            return None
        current = number
    if expression.results != (current,) or not math.isfinite(scale):
        return None
    return Chain(scale, tuple(added), activation)


def problem_of(task: Task, binding: Binding, tf32: bool) -> Problem | None:
    """The product of a task; None if there is none."""
    if not understood(task):
        return None
    anchor, chain = task.anchor, chain_of(task)
    assert anchor is not None and chain is not None
    x, w = anchor.inputs
    if tf32 and x.dtype is not DType.FLOAT32:
        return None
    shape = anchor.output.type.bind(binding.symbols)
    if binding.shape(task.output) != shape:
        return None
    *lead, rows, columns = shape
    op = anchor.op
    across = isinstance(op, MatMul) and op.transpose_a
    x_shape = x.type.bind(binding.symbols)
    depth = x_shape[-2] if across else x_shape[-1]
    found = _added(task, binding, chain, shape)
    if found is None or max(*shape, depth) >= LIMIT:
        return None
    residual, bias = found
    right = _strides(x, binding, len(shape), across)
    tensors = [right, broadcast_strides(binding.layout(task.output), shape)]
    if residual is not None:
        tensors.append(broadcast_strides(binding.layout(residual), shape))
    packed = is_packed(task)
    if packed:
        line = line_of(depth, x.dtype)
        left = (*([0] * len(lead)), 1, line)
    else:
        assert isinstance(op, MatMul)
        left = _strides(w, binding, len(shape), op.transpose_b)
    if any(left[:-2]):
        extents, merged = merge(lead, [s[:-2] for s in (*tensors, left)])
        if len(extents) != 1:
            return None
        batch = extents[0]
        steps = [(own[0], s[-2]) for own, s in zip(merged, (*tensors, left), strict=True)]
        apart = steps.pop()[0]
    else:
        extents, merged = merge((*lead, rows), [s[:-1] for s in tensors])
        if len(extents) > 2:
            return None
        batch, rows, apart = (extents[0] if len(extents) == 2 else 1), extents[-1], 0
        steps = [(own[0] if len(own) == 2 else 0, own[-1]) for own in merged]
    values = [x, task.output, *([residual] if residual is not None else [])]
    sizes = [(depth, rows), (columns, rows), (columns, rows)]
    matrices = [
        _matrix(v, binding, size, (s[-1], step), far)
        for v, size, s, (far, step) in zip(values, sizes, tensors, steps, strict=False)
    ]
    if packed:
        matrices.append(Matrix(x.dtype, depth, columns, line, True, 0, 256))
    else:
        matrices.append(_matrix(w, binding, (columns, depth), (left[-1], left[-2]), apart))
    if any(m is None for m in matrices) or any(m and m.transposed for m in matrices[1:-1]):
        return None
    product = Product(
        left=matrices[-1],  # type: ignore[arg-type]
        right=matrices[0],  # type: ignore[arg-type]
        result=matrices[1],  # type: ignore[arg-type]
        residual=matrices[2] if residual is not None else None,
        bias=bias is not None,
        activation=chain.activation,
        scale=chain.scale,
        batch=batch,
        tf32=tf32,
    )
    more = tuple(v for v in (residual, bias) if v is not None)
    return Problem(product, None if packed else w, x, more)


def line_of(depth: int, dtype: DType) -> int:
    """Elements from a row to the next of a packed constant of that depth."""
    return depth + -depth % (16 // dtype.size)


def _added(
    task: Task, binding: Binding, chain: Chain, shape: Sequence[int]
) -> tuple[Value | None, Value | None] | None:
    """The residual and the bias; None if what is added is neither, or two of a kind."""
    residual = bias = None
    for number in chain.added:
        value = task.inputs[number]
        layout = binding.layout(value)
        if value.dtype is not task.output.dtype:
            return None
        count = math.prod(layout.shape)
        per_channel = count == shape[-1] and bool(layout.shape) and layout.shape[-1] == count
        regular = layout.is_dense and layout.alignment >= 16
        if per_channel and regular and bias is None:
            bias = value
        elif tuple(layout.shape) == tuple(shape) and residual is None:
            residual = value
        else:
            return None
    return residual, bias


def _strides(value: Value, binding: Binding, rank: int, across: bool) -> tuple[int, ...]:
    """The strides of a factor as matrices of that rank, transposed if they lie `across`."""
    layout = binding.layout(value)
    own = [0 if n == 1 else s for n, s in zip(layout.shape, layout.strides, strict=True)]
    if across:
        own[-2:] = reversed(own[-2:])
    return (*([0] * (rank - len(own))), *own)


def _matrix(
    value: Value,
    binding: Binding,
    size: tuple[int, int],
    strides: tuple[int, int],
    apart: int,
) -> Matrix | None:
    """Matrices of that size, `strides` apart along rows and columns; None if neither is 1."""
    (rows, columns), (down, along) = size, strides
    transposed = not (down == 1 or rows == 1)
    if transposed:
        rows, columns, down, along = columns, rows, along, down
    if down != 1 and rows != 1:
        return None
    step = along if columns > 1 else rows
    if step < rows or apart < 0:
        return None
    alignment = math.gcd(binding.layout(value).alignment, apart * value.dtype.size)
    return Matrix(value.dtype, rows, columns, step, transposed, apart, alignment)

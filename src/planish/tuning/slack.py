"""How far off a tactic's results may be that computes as it should.

Kernels sum in another order than the references, and keep in float32 what these round to halves. A
result is then off by the rounding of its dtype; but where such a float lies half-way between two
levels it may become either, and what is computed of it is off by much more. So a task is followed
node by node: which values may be rounded otherwise, and how far off they may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.fusion.task import PRECISIONS, Task
from planish.graph.graph import Node, Value
from planish.ops import Conv, Dequantize, MatMul, Quantize, ew
from planish.ops.elementwise import Elementwise
from planish.ops.quantization import (
    ConvInteger,
    ExactDiv,
    FakeQuant,
    MatMulInteger,
    SnapToLevels,
)
from planish.precision.kinds import Kind, kind_of
from planish.targets.base import Tactic

TOLERANCES = {"fp8": 1e-2, "fp16": 1e-2, "bf16": 2e-2, "tf32": 4e-3}
"""Largest error of a result, as a share of its largest magnitude, by what it is rounded to."""
TOLERANCE = 1e-4
"""That of float32 and wider."""

HALF_WAY = 0.3
"""Share of levels that may be the next ones where sums of floats are rounded to levels: an average
of four levels lies half-way between two every fourth time, and the order of the sum decides.
"""

RARE = 1e-3
"""The same where sums are integers, and only a float32 before the rounding may be the next one: of
a function such as erf, or of a library's own order.
"""

_CHOICES = {"neg", "abs", "relu", "maximum", "minimum", "clip", "select"}
"""Elementwise ops that round nothing."""

_EXACT = {
    *_CHOICES,
    *("add", "sub", "mul"),
    *("cast", "quantize", "dequantize", "exact_div", "snap_to_levels", "fake_quant"),
}
"""Elementwise ops that are rounded as the references are, in float32."""

AT_ONCE = 3
"""So many levels of one sum are taken to be the next ones, by the largest weight each: where they
are more, the sum is long, and weights of both signs make up for one another.
"""

LARGEST_LEVEL, LARGEST_FLOAT = 255.0, 6.0
"""Of what tuning draws: from the zero point on, and of a normal distribution."""


@dataclass(frozen=True)
class Doubt:
    """What a value may differ in: a share of it in the last bits, or else `off` by so much."""

    share: float = 0.0
    off: float = 0.0


def slack(task: Task, tactic: Tactic) -> tuple[float, float]:
    """How far off results may be where some level may be the next one, and what share of them.

    What is off by the rounding of its own dtype alone, or not at all, is off by 0.
    """
    if task.attention is not None and task.attention.levels:
        return _step_of_weights(task), HALF_WAY
    known: dict[Value, Doubt] = {}
    for node in task.nodes:
        doubt = _doubt(node, [known.get(v, Doubt()) for v in node.inputs], task, tactic)
        known.update(dict.fromkeys(node.outputs, doubt))
    worst = max((known[v] for v in task.outputs), key=lambda doubt: doubt.off)
    return (worst.off, worst.share) if worst.off else (0.0, 0.0)


def coarsest(task: Task, tactic: Tactic) -> str:
    """The least exact precision in which a tactic computes something: what lies between two nodes
    may be halves that a kernel keeps in float32.
    """
    between = {PRECISIONS.get(v.dtype, "fp32") for n in task.nodes for v in n.outputs}
    return max({tactic.precision, *between}, key=tolerance)


def tolerance(precision: str) -> float:
    """The largest error of results of a precision, as a share of their largest magnitude."""
    return TOLERANCES.get(precision, TOLERANCE)


def _doubt(node: Node, inputs: Sequence[Doubt], task: Task, tactic: Tactic) -> Doubt:
    """What a node's results may differ in, given what its inputs may."""
    share = max([_own_share(node, task, tactic), *(doubt.share for doubt in inputs)])
    off = max((_grown(node, i, doubt.off) for i, doubt in enumerate(inputs)), default=0.0)
    if share and isinstance(node.op, Quantize | SnapToLevels | FakeQuant):
        off += _distance(node)
    if off and isinstance(node.op, Conv | MatMul | ConvInteger | MatMulInteger):
        share = HALF_WAY  # of many levels some are the next ones
    return Doubt(share, off)


def _own_share(node: Node, task: Task, tactic: Tactic) -> float:
    """The share of a node's results that may be rounded otherwise than the references', if its
    inputs are equal.
    """
    op, result = node.op, node.outputs[0].dtype
    if not isinstance(op, Elementwise):
        sums = result.is_float and kind_of(node) is not Kind.MOVE
        return HALF_WAY if sums else 0.0
    if PRECISIONS.get(result) in ("fp16", "bf16"):
        return 0.0 if op.name in _CHOICES else HALF_WAY
    if tactic.precision in ("fp16", "bf16"):
        return HALF_WAY
    return 0.0 if tactic.is_exact_to_the_level and op.name in _EXACT else RARE


def _grown(node: Node, number: int, off: float) -> float:
    """By how much a node's results are off where that input is."""
    if not off:
        return 0.0
    op, others = node.op, [v for i, v in enumerate(node.inputs[:2]) if i != number]
    if isinstance(op, ConvInteger | MatMulInteger):
        return AT_ONCE * off * _largest(others[0], node.inputs[3 - number])
    if isinstance(op, Conv | MatMul):
        return AT_ONCE * off * _largest(others[0])
    if isinstance(op, ew.Mul):
        return off * _largest(others[0])
    if isinstance(op, Dequantize):
        return off * _largest(others[0], default=1.0)
    if isinstance(op, Quantize | ew.Div | ExactDiv):
        return off / _least(others[0])
    return off


def _distance(node: Node) -> float:
    """How far apart the levels are that a node rounds to, in its result's unit."""
    if isinstance(node.op, Quantize):
        return 1.0
    return _largest(node.inputs[3 if isinstance(node.op, FakeQuant) else 2], default=1.0)


def _largest(value: Value, zero: Value | None = None, default: float | None = None) -> float:
    """The largest magnitude of an operand's elements, less a zero point."""
    if value.data is None or (zero is not None and zero.data is None):
        usual = LARGEST_LEVEL if value.dtype.size == 1 else LARGEST_FLOAT
        return usual if default is None else default
    if not value.data.size:
        return 0.0
    low, high = float(value.data.min()), float(value.data.max())
    if zero is not None and zero.data is not None:
        low, high = low - float(zero.data.max()), high - float(zero.data.min())
    return max(-low, high)


def _least(value: Value) -> float:
    """The least magnitude of a divisor's elements that is not 0; 1 where it is computed."""
    if value.data is None:
        return 1.0
    elements = np.abs(value.data.astype(np.float32))
    return float(np.min(elements, initial=np.inf, where=elements > 0))


def _step_of_weights(task: Task) -> float:
    """How far off results of quantized attention may be, where two weights are the next levels:
    each is one part of 255 at least, by which values differ by 254 of their steps at most.
    """
    assert task.attention is not None
    data = task.inputs[task.attention.steps[2]].data
    step = 2 * (1.0 if data is None else float(data))
    return step if task.output.dtype.is_float else 1.0 + step

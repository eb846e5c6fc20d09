"""Networks that say themselves how they are quantized: trained so, or quantized by another tool.

    x ─▶ FakeQuant ─▶                         x ─▶ Quantize ─▶ Dequantize ─▶
    x ─▶ clip ─▶ SnapToLevels ─▶      =>      x ─▶ Quantize ─▶ Dequantize ─▶
    w ─▶ FakeQuant ─▶                         levels of w ───▶ Dequantize ─▶

Simulated quantization becomes the pair of conversions that it simulates, before any pass runs, so
that the rest of INT8 knows one form. The scales are the network's and are obeyed. Constants get the
very levels that the simulation gives them; what is computed while the network runs is rounded as
ONNX says (halves to even), which differs from TensorFlow's rounding for numbers half-way between
two levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops import (
    Conv,
    ConvInteger,
    Dequantize,
    FakeQuant,
    Identity,
    MatMul,
    MatMulInteger,
    Quantize,
    Reshape,
    SnapToLevels,
    Transpose,
    ew,
)
from planish.passes.constant_folding import fold_constants
from planish.quantization.scheme import Levels

BYTES = (DType.INT8, DType.UINT8)


def settle_scales(graph: Graph) -> bool:
    """Brings what says how an imported network is quantized into one form, in place.

    Returns
    -------
    bool
        Whether there is any: sums of products of bytes, or activations and weights of products
        that are rounded to at most 256 levels, which are known beforehand.
    """
    fold_constants(graph, keep=_is_level)
    simulated = {node: known for node in graph.nodes if (known := _simulates(node)) is not None}
    weights = any(
        holds_weights(n) or (n in simulated and simulated[n].x.is_constant) for n in graph.nodes
    )
    activations = any(
        (n in simulated and not simulated[n].x.is_constant)
        or (isinstance(n.op, Quantize) and levels_of(n) is not None)
        for n in graph.nodes
    )
    sums = any(isinstance(n.op, ConvInteger | MatMulInteger) for n in graph.nodes)
    if not sums and not (weights and activations):
        return False
    for node, known in simulated.items():
        _write_out(graph, node, known)
    graph.tidy()
    return True


def holds_weights(node: Node) -> bool:
    """Whether a node makes floats of constant levels by which products multiply, and of no other
    use: passes keep such nodes, since levels and scales cannot be told from the floats.
    """
    levels = node.inputs[0] if isinstance(node.op, Dequantize) else None
    return (
        levels is not None
        and levels.is_constant
        and levels.dtype in BYTES
        and _only_weights(node.output)
    )


def _is_level(node: Node) -> bool:
    return isinstance(node.op, FakeQuant | SnapToLevels) or holds_weights(node)


def _only_weights(value: Value) -> bool:
    return bool(value.users) and all(
        _only_weights(user.output)
        if isinstance(user.op, Reshape | Transpose | Identity)
        else isinstance(user.op, Conv | MatMul) and user.inputs[0] is not value
        for user in value.users
    )


def constant_number(value: Value) -> float | None:
    """The only element of a constant; None for anything else."""
    if value.data is None or value.data.size != 1:
        return None
    return float(value.data.reshape(()))


def levels_of(node: Node) -> Levels | None:
    """The levels of a tensor that a Quantize writes or a Dequantize reads, where they are bytes,
    and the same for the whole tensor.
    """
    op = node.op
    if not isinstance(op, Quantize | Dequantize):
        return None
    dtype = op.to if isinstance(op, Quantize) else node.inputs[0].dtype
    scale, zero = (constant_number(v) for v in node.inputs[1:])
    if dtype not in BYTES or scale is None or zero is None:
        return None
    info = np.iinfo(dtype.numpy)
    usual = float(np.finfo(np.float32).tiny) <= scale < math.inf
    if not usual or zero != round(zero) or not info.min <= zero <= info.max:
        return None
    return Levels(dtype, scale, int(zero))


# ---- simulated quantization --------------------------------------------------------------------


@dataclass(frozen=True)
class _Simulated:
    """What a node simulates: a Quantize, and a Dequantize of what that gives.

    Attributes
    ----------
    x : Value
        What is quantized, before it is clipped: levels are limited anyway.
    op : Quantize
    scale, zero : array of float32
        Of one element, or one for each channel.
    """

    x: Value
    op: Quantize
    scale: np.ndarray
    zero: np.ndarray


def _simulates(node: Node) -> _Simulated | None:
    """What a node simulates, where that is known beforehand, and bytes can do it."""
    if not isinstance(node.op, FakeQuant | SnapToLevels) or node.output.dtype is not DType.FLOAT32:
        return None
    x, *parameters = (v.data for v in node.inputs)
    if any(p is None or not p.size for p in parameters):
        return None
    if x is not None and (not x.size or np.isnan(x).any()):
        return None
    found = (
        _of_fake_quant(node, *parameters)  # type: ignore[arg-type]
        if isinstance(node.op, FakeQuant)
        else _of_snapping(node, *parameters)  # type: ignore[arg-type]
    )
    if found is None or not np.all(np.isfinite(found.scale) & (found.scale > 0)):
        return None
    return found if found.scale.size == 1 or found.x.is_constant else None


def _of_fake_quant(
    node: Node,
    least: np.ndarray,
    greatest: np.ndarray,
    scale: np.ndarray,
    inverse: np.ndarray,
    zero: np.ndarray,
) -> _Simulated | None:
    with np.errstate(all="ignore"):
        steps = np.rint((greatest.astype(np.float64) - least) / scale)
    last = _same(steps)
    if last is None or not 0 < last <= 255:
        return None
    return _Simulated(node.inputs[0], Quantize(DType.UINT8, 0, int(last)), scale, zero)


def _of_snapping(node: Node, scale: np.ndarray, step: np.ndarray) -> _Simulated | None:
    """Of ``max(min(x, greatest), least)``, whose ends are levels; constants may be anything."""
    x = node.inputs[0]
    if x.data is not None:
        ends: tuple[float | None, ...] = (_exact(node, step).min(), _exact(node, step).max())
    else:
        above = x.producer
        below = above.inputs[0].producer if above and isinstance(above.op, ew.Maximum) else None
        if above is None or below is None or not isinstance(below.op, ew.Minimum):
            return None
        x = below.inputs[0]
        limits = (above.inputs[1].data, below.inputs[1].data)
        ends = tuple(None if end is None else _same(np.rint(scale * end)) for end in limits)
    first, last = ends
    if first is None or last is None:
        return None
    for dtype in BYTES:
        info = np.iinfo(dtype.numpy)
        if info.min <= first <= last <= info.max:
            return _Simulated(x, Quantize(dtype, int(first), int(last)), step, np.float32(0))
    return None


def _same(numbers: np.ndarray) -> float | None:
    """The number that all elements are."""
    first = float(numbers.reshape(-1)[0])
    return first if np.all(numbers == first) else None


def _exact(node: Node, step: np.ndarray) -> np.ndarray:
    """How many steps from 0 the constants lie that a node gives, as float64."""
    (given,) = node.op.reference(*(v.data for v in node.inputs))  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        return np.rint(given.astype(np.float64) / step)


def _write_out(graph: Graph, node: Node, known: _Simulated) -> None:
    """Puts the conversions in the place of the simulation, under its name."""
    scale = graph.constant(np.asarray(known.scale, np.float32), f"{node.name}/scale")
    zero = graph.constant(np.asarray(known.zero, np.float32), f"{node.name}/zero")
    name, op = f"{node.name}/levels", known.op
    if known.x.is_constant:
        exact = np.clip(_exact(node, known.scale) + known.zero, op.low, op.high)
        levels = graph.constant(exact.astype(op.to.numpy), name)
    else:
        levels = graph.add(op, known.x, scale, zero, name=name, origin=node.origin)
    node.op = Dequantize()
    graph.set_inputs(node, (levels, scale, zero))

"""Scales, biases and activations between integer sums and levels become one product and one sum.

    sums ─▶ Dequantize ─▶ add bias ─▶ add Dequantize(r) ─▶ relu ─▶ Quantize
         =  Quantize(sums * a + b + r * c)       with a, b, c per channel, by a scale of 1

What limits values (relu, relu6) limits levels instead, mostly those that there are anyway. Factors
are vectors of channels even where they are one number: numbers are compiled into kernels, vectors
are read by them, so that layers share kernels.

Where scales are given, and others compute with them too, roundings are those of ONNX's QLinearConv:

    Quantize((sums + bias) * a) + zero point      bias in steps of the sums, where it is that
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops import Cast, Clip, ConvInteger, Dequantize, MatMulInteger, Quantize, ew

_PRODUCTS = (ConvInteger, MatMulInteger)


def fold_scales(graph: Graph, *, exact: bool = False) -> bool:
    """Folds every chain from integer sums to levels that is linear up to limits, in place.

    With `exact` numbers half-way between two levels go where ONNX sends them: the zero point is
    added after rounding, a bias that is a multiple of the sums' scale before scaling.
    """
    outputs = set(graph.outputs)
    changed = False
    for node in list(graph.nodes):
        if isinstance(node.op, _PRODUCTS):
            chain = _follow(node, outputs)
            if chain is not None:
                chain.rewrite(graph, exact)
                changed = True
    return changed


@dataclass
class _Chain:
    """``levels = round(clip(factor * sums + shift + residuals) / scale) + zero``."""

    sums: Value
    depth: int
    """Products in a sum."""
    factor: np.ndarray
    shift: np.ndarray
    scaled: bool = False
    """Whether `factor` is not that of the sums any more."""
    residuals: list[tuple[Node, np.ndarray]] = field(default_factory=list)
    low: float = -math.inf
    high: float = math.inf
    last: Node | None = None

    @property
    def limited(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    def rewrite(self, graph: Graph, exact: bool) -> None:
        """Puts the folded form in the place of the chain."""
        assert self.last is not None
        op, (_, scale, zero) = self.last.op, self.last.inputs
        assert isinstance(op, Quantize)
        channels = self.sums.shape[-1]
        assert isinstance(channels, int)
        step, level = _numbers(scale), _number(zero)

        def vector(values: np.ndarray, name: str, dtype: type = np.float32) -> Value:
            wide = np.broadcast_to(values.reshape(-1), (channels,))
            return graph.constant(np.ascontiguousarray(wide, dtype), name)

        def apply(op: object, *inputs: Value) -> Value:
            return graph.add(op, *inputs, name=f"{name}/scaled", origin=origin)  # type: ignore[arg-type]

        name, origin = self.last.name, self.last.origin
        sums, shift = self.sums, self.shift / step
        if exact and (bias := self._bias()) is not None:
            sums, shift = apply(ew.Add(), sums, vector(bias, "b", np.int32)), np.zeros(1)
        if not exact:
            shift = shift + level
        terms = []
        for dequantize, scales in self.residuals:
            levels, own_scale, own_zero = dequantize.inputs
            ratio = _numbers(own_scale) * scales / step
            shift = shift - _number(own_zero) * ratio
            terms.append((levels, ratio))
        y = apply(ew.Mul(), apply(Cast(DType.FLOAT32), sums), vector(self.factor / step, "a"))
        if not exact or shift.any():
            y = apply(ew.Add(), y, vector(shift, "b"))
        for levels, ratio in terms:
            wide = apply(Cast(DType.FLOAT32), levels)
            y = apply(ew.Add(), y, apply(ew.Mul(), wide, vector(ratio, "c")))
        low, high = self.ends(op, step, level, exact)
        none = np.zeros((), np.float32)
        last = (
            vector(np.asarray(level), "zero") if exact and level else graph.constant(none, "zero")
        )
        graph.scales[self.last.output.name] = (float(step.max()), level, *_factors(step))
        self.last.op = Quantize(op.to, low, high)
        graph.set_inputs(self.last, (y, graph.constant(np.float32(1), "scale"), last))

    def ends(self, op: Quantize, step: np.ndarray, zero: float, exact: bool) -> tuple[int, int]:
        """The least and the greatest level that the limits leave."""
        low, high = op.low, op.high
        if self.low > -math.inf:
            low = min(max(low, _level(self.low, step, zero, exact)), high)
        if self.high < math.inf:
            high = max(min(high, _level(self.high, step, zero, exact)), low)
        return low, high

    def _bias(self) -> np.ndarray | None:
        """What is added, in steps of the sums; None where it is no multiple of these."""
        with np.errstate(all="ignore"):
            steps = np.rint(self.shift / self.factor)
        most = 2.0**31 - 1 - 255 * 255 * self.depth
        same = np.float32(steps) * np.float32(self.factor) == np.float32(self.shift)
        usual = not self.residuals and not self.scaled and steps.any()
        return steps if usual and np.all(same) and np.all(np.abs(steps) <= most) else None


def _follow(product: Node, outputs: set[Value]) -> _Chain | None:
    """The chain from a product to levels; None if it is none of the kind."""
    start = _only_user(product.output, outputs)
    if start is None or not isinstance(start.op, Dequantize):
        return None
    factor, zero = start.inputs[1].data, start.inputs[2].data
    if factor is None or zero is None or zero.any() or not _is_per_channel(factor):
        return None
    channels = product.output.shape[-1]
    if not isinstance(channels, int):
        return None
    wide = np.asarray(factor, np.float64).reshape(-1)
    elements = product.inputs[1].type.elements
    depth = elements // channels if isinstance(elements, int) else 0
    chain = _Chain(product.output, depth, wide, np.zeros(1))
    node = start
    while True:
        value = node.output
        user = _only_user(value, outputs)
        if user is None or user.output.shape != product.output.shape:
            return None
        if isinstance(user.op, Quantize):
            scale, zero_point = user.inputs[1:]
            if user.inputs[0] is not value or _is_unknown(scale, channels):
                return None
            if _is_unknown(zero_point):
                return None
            steps, zero_level = _numbers(scale), _number(zero_point)
            ends = {chain.ends(user.op, np.array([s]), zero_level, False) for s in steps}
            if len(ends) > 1:  # limits that differ by channel are no levels of an op
                return None
            chain.last = user
            return chain
        if not _extend(chain, user, value):
            return None
        node = user


def _extend(chain: _Chain, user: Node, value: Value) -> bool:
    """Takes one more node into a chain; False if it does not belong there."""
    op = user.op
    if isinstance(op, ew.Relu):
        chain.low, chain.high = max(chain.low, 0.0), max(chain.high, 0.0)
        return True
    if isinstance(op, Clip):
        chain.low = min(max(chain.low, op.low), op.high)
        chain.high = max(min(chain.high, op.high), op.low)
        return True
    if not isinstance(op, ew.Add | ew.Mul) or chain.limited or user.inputs.count(value) != 1:
        return False
    other = next(v for v in user.inputs if v is not value)
    if other.data is not None and _is_per_channel(other.data):
        number = np.asarray(other.data, np.float64).reshape(-1)
        if isinstance(op, ew.Add):
            chain.shift = chain.shift + number
        else:
            chain.factor, chain.shift = chain.factor * number, chain.shift * number
            chain.scaled = True
            chain.residuals = [(node, scales * number) for node, scales in chain.residuals]
        return True
    residual = other.producer
    if (
        isinstance(op, ew.Add)
        and residual is not None
        and isinstance(residual.op, Dequantize)
        and residual.inputs[0].dtype in (DType.INT8, DType.UINT8)
        and other.shape == value.shape
        and len(other.users) == 1
        and not _is_unknown(residual.inputs[1], other.shape[-1])
        and not _is_unknown(residual.inputs[2])
    ):
        chain.residuals.append((residual, np.ones(1)))
        return True
    return False


def _only_user(value: Value, outputs: set[Value]) -> Node | None:
    if value in outputs or len(value.users) != 1:
        return None
    return next(iter(value.users))


def _is_per_channel(data: np.ndarray) -> bool:
    """Whether numbers differ along the last axis at most."""
    return data.ndim == 0 or data.size == data.shape[-1]


def _level(number: float, step: np.ndarray, zero: float, exact: bool) -> int:
    """The level of a number, which is that of all channels."""
    if exact:
        return int(np.rint(np.float32(number) / np.float32(step[0]))) + int(zero)
    return round(number / float(step[0]) + zero)


def _is_unknown(value: Value, channels: object = 1) -> bool:
    """Whether it is no constant of one number, or of one for each channel."""
    data = value.data
    return data is None or (data.size != 1 and data.shape != (channels,))


def _number(value: Value) -> float:
    assert value.data is not None
    return float(value.data.reshape(()))


def _numbers(value: Value) -> np.ndarray:
    assert value.data is not None
    return np.asarray(value.data, np.float64).reshape(-1)


def _factors(steps: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, steps / steps.max())) if steps.size > 1 else ()

"""Products of networks that bring their own scales: which can be products of integers, the rewrite.

    x8 ─▶ Dequantize ─▶ conv ─▶ …              x8 ─▶ conv_integer ─▶ Dequantize ─▶ …
                         ▲             =>                ▲
    w8 ─▶ Dequantize ────┘                     w8 ───────┘

Levels, scales and zero points are those of the network, as they stand. A sum of integers is exact;
it is scaled, and its bias added, as ONNX's QLinearConv does it (`requantize`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.graph.verify import verify
from planish.ops import Conv, Dequantize, Identity, MatMul, Reshape, Transpose
from planish.passes.constant_folding import fold_constants
from planish.quantization.explicit import BYTES, levels_of
from planish.quantization.products import multiply_levels
from planish.quantization.requantize import fold_scales
from planish.quantization.scheme import Levels
from planish.quantization.settle import Candidates, candidates


@dataclass(frozen=True)
class _Constants:
    """Levels of weights, with what they stand for: arrays that broadcast to them."""

    levels: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    def moved(self, op: Transpose | Reshape | Identity) -> _Constants:
        """What becomes of all three where the levels are moved."""

        def move(part: np.ndarray) -> np.ndarray:
            wide = np.broadcast_to(part, self.levels.shape)
            return part if part.size == 1 else op.reference(wide)[0]

        return _Constants(op.reference(self.levels)[0], move(self.scale), move(self.zero))


@dataclass(frozen=True)
class _Product:
    """A product whose factors are levels.

    Attributes
    ----------
    x : Value
        The levels it reads.
    own : Levels
        What they stand for.
    weights, zero : array of int8 or uint8
        As `multiply_levels` wants them.
    scale : array of float32
        Of the weights: one number, or one for each output channel.
    """

    x: Value
    own: Levels
    weights: np.ndarray
    zero: np.ndarray
    scale: np.ndarray


def explicit_candidates(
    graph: Graph, asked: Mapping[Node, str], *, strict: bool = False
) -> Candidates:
    """What may become of the layers of an optimised graph that brings its own scales.

    Products of floats for which there are no scales stay what they are; see
    `planish.quantization.settle.candidates` for the rest.
    """
    products = {node: _product(node) for node in graph.nodes if _is_float_product(node)}
    found = candidates(
        graph,
        asked,
        strict=strict,
        possible=lambda node: isinstance(products.get(node), _Product),
    )
    without = {node.name: why for node, why in products.items() if isinstance(why, str)}
    return replace(found, kept={**without, **found.kept})


def use_scales(graph: Graph, layers: Collection[str]) -> None:
    """Makes products integer ones by their names, in place; the weights of others become floats."""
    for node in list(graph.nodes):
        if node.name not in layers or not _is_float_product(node):
            continue
        found = _product(node)
        if not isinstance(found, _Product):
            continue
        multiply_levels(
            graph,
            node,
            found.x,
            found.own.zero,
            (found.weights, found.zero),
            np.float32(found.own.scale) * found.scale,
        )
    graph.tidy()
    fold_scales(graph, exact=True)
    fold_constants(graph)
    graph.tidy()
    verify(graph, after="use_scales")


def _is_float_product(node: Node) -> bool:
    return isinstance(node.op, Conv | MatMul) and node.output.dtype is DType.FLOAT32


def _product(node: Node) -> _Product | str:
    """A product as one of levels, or why it is none."""
    x, w = node.inputs
    op = node.op
    made = x.producer
    own = levels_of(made) if made is not None and isinstance(made.op, Dequantize) else None
    if made is None or own is None or made.inputs[0].is_constant:
        return "the model gives no scale for its input"
    weights = _constants(w)
    if weights is None:
        return "the model gives no scales for its weights"
    if not weights.levels.size or (isinstance(op, Conv) and not op.strides):
        return "it has nothing to multiply"
    if isinstance(op, MatMul):
        if op.transpose_a or w.type.rank != 2 or x.type.rank < 2:
            return "its weights are no matrix"
        if op.transpose_b:
            weights = weights.moved(Transpose((1, 0)))
    scale, zero = (_by_channel(p, weights.levels.shape) for p in (weights.scale, weights.zero))
    if scale is None or zero is None:
        return "the scales of its weights differ within an output channel"
    if not np.all(zero == np.rint(zero)):
        return "the zero points of its weights are no levels"
    if zero.size and np.all(zero == zero.reshape(-1)[0]):
        zero = zero.reshape(-1)[0]
    data = np.ascontiguousarray(weights.levels)
    return _Product(made.inputs[0], own, data, zero.astype(data.dtype), scale.astype(np.float32))


def _constants(value: Value) -> _Constants | None:
    """The constant levels that a value is made of, moved as they are on the way."""
    node = value.producer
    if node is None:
        return None
    if isinstance(node.op, Transpose | Reshape | Identity):
        before = _constants(node.inputs[0])
        return before and before.moved(node.op)
    if not isinstance(node.op, Dequantize):
        return None
    levels, scale, zero = (v.data for v in node.inputs)
    if levels is None or scale is None or zero is None or node.inputs[0].dtype not in BYTES:
        return None
    return _Constants(levels, scale, zero)


def _by_channel(parameter: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A parameter that broadcasts to weights, as one number or one for each output channel (the
    last axis); None where it differs along another axis.
    """
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.size == parameter.shape[-1]:
        return parameter.reshape(-1)
    rows = np.broadcast_to(parameter, shape).reshape(-1, shape[-1])
    return rows[0] if np.all(rows == rows[0]) else None

"""From ranges to a graph of integers or FP8: what is asked for, what is possible, the rewrite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from planish.errors import PrecisionError
from planish.graph.graph import Graph, Node
from planish.ops import MatMul
from planish.precision.kinds import has_float32_work
from planish.precision.permissions import FP8, INT8, QUANTIZED
from planish.quantization.attention import quantizable_attentions
from planish.quantization.given import check_complete
from planish.quantization.ranges import Ranges
from planish.quantization.rewrite import Quantized, is_product, missing_ranges, quantize
from planish.quantization.scheme import FLOAT8, Scheme

log = logging.getLogger("planish")


_ABLE = {
    INT8: "convolutions and matrix products by constant weights can, attention on some devices; "
    "others follow them",
    FP8: "matrix products by constant weights can; others follow them",
}
"""By precision what computes in it."""


@dataclass(frozen=True)
class Candidates:
    """The layers that can be quantized, by name.

    Attributes
    ----------
    free : tuple of str
        Those that are quantized where it pays.
    forced : tuple of str
        Those that `layer_precision` wants quantized.
    kept : mapping of str to str
        Those that stay in float32, with the reason.
    """

    free: tuple[str, ...]
    forced: tuple[str, ...]
    kept: Mapping[str, str]


def ways(
    graph: Graph, permitted: Collection[str], asked: Mapping[Node, str] | None = None
) -> dict[Node, str]:
    """What each product would be quantized to: "int8", or "fp8" for products of matrices where that
    is permitted, or asked for (see `candidates`).
    """
    found = {}
    for node in graph.nodes:
        wanted = (asked or {}).get(node)
        able = QUANTIZED if isinstance(node.op, MatMul) else (INT8,)
        way = next((w for w in able if w in permitted and wanted not in {*QUANTIZED} - {w}), None)
        if way is not None and is_product(node):
            found[node] = way
    return found


def candidates(
    graph: Graph,
    asked: Mapping[Node, str],
    *,
    strict: bool = False,
    possible: Callable[[Node], bool] = is_product,
) -> Candidates:
    """What may become of the layers of an optimised float32 graph.

    Parameters
    ----------
    graph : Graph
    asked : mapping of Node to str
        From `planish.precision.layers.match_layers`.
    strict : bool
        Whether a layer that cannot be quantized though it was asked for is an error.
    possible : callable
        Whether a node can be quantized.

    Raises
    ------
    PrecisionError
        `strict`, and such a layer.
    """
    free, forced, kept = [], [], {}
    for node in graph.nodes:
        wanted = asked.get(node)
        if possible(node):
            if wanted in QUANTIZED:
                forced.append(node.name)
            elif wanted is None:
                free.append(node.name)
            else:
                kept[node.name] = "layer_precision says so"
        elif wanted in QUANTIZED and strict and has_float32_work(node):
            raise PrecisionError(
                f"Layer {node.name!r} cannot compute in {wanted}",
                where=node.origin or node.name,
                why=_ABLE[wanted],
                cure="leave it out of layer_precision=, or leave out strict_types=",
            )
    return Candidates(tuple(free), tuple(forced), kept)


def quantize_layers(
    graph: Graph,
    layers: Collection[str],
    ranges: Ranges,
    scheme: Scheme,
    float8: Collection[str] = (),
) -> Quantized:
    """Quantizes products by their names, in place, as `scheme_of` the target says, or to `float8`.

    Raises
    ------
    CalibrationError
        Tensors have no range; names them.
    """
    wanted = [node for node in graph.nodes if node.name in layers and is_product(node)]
    in_float8 = [node for node in wanted if node.name in float8]
    others = [node for node in wanted if node.name not in float8]
    check_complete(
        ranges,
        [
            *missing_ranges(graph, in_float8, ranges, FLOAT8.is_ordered),
            *missing_ranges(graph, others, ranges),
        ],
    )
    possible = quantizable_attentions(graph, ranges, scheme)
    chosen = [found for softmax, found in possible.items() if softmax.name in layers]
    codes = quantize(graph, in_float8, ranges, FLOAT8)
    levels = quantize(graph, others, ranges, scheme, chosen)
    return Quantized((*codes.layers, *levels.layers), {**codes.levels, **levels.levels})

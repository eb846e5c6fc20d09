"""From ranges to a graph of integers: what is asked for, what is possible, the rewrite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from planish.errors import PrecisionError
from planish.graph.graph import Graph, Node
from planish.precision.kinds import has_float32_work
from planish.precision.permissions import INT8
from planish.quantization.attention import quantizable_attentions
from planish.quantization.given import check_complete
from planish.quantization.ranges import Ranges
from planish.quantization.rewrite import Quantized, is_product, missing_ranges, quantize
from planish.quantization.scheme import Scheme

log = logging.getLogger("planish")


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


def candidates(
    graph: Graph,
    asked: Mapping[Node, str],
    *,
    strict: bool = False,
    possible: Callable[[Node], bool] = is_product,
    attentions: Collection[Node] = (),
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
    attentions : collection of Node
        What can be quantized, too.

    Raises
    ------
    PrecisionError
        `strict`, and such a layer.
    """
    free, forced, kept = [], [], {}
    for node in graph.nodes:
        wanted = asked.get(node)
        if node in attentions or possible(node):
            if wanted == INT8:
                forced.append(node.name)
            elif wanted is None:
                free.append(node.name)
            else:
                kept[node.name] = "layer_precision says so"
        elif wanted == INT8 and strict and has_float32_work(node):
            raise PrecisionError(
                f"Layer {node.name!r} cannot compute in int8",
                where=node.origin or node.name,
                why="convolutions and matrix products by constant weights can, attention on some "
                "devices; others follow them",
                cure="leave it out of layer_precision=, or leave out strict_types=",
            )
    return Candidates(tuple(free), tuple(forced), kept)


def quantize_layers(
    graph: Graph, layers: Collection[str], ranges: Ranges, scheme: Scheme
) -> Quantized:
    """Quantizes products by their names, in place, as `scheme_of` the target says.

    Raises
    ------
    CalibrationError
        Tensors have no range; names them.
    """
    wanted = set(layers)
    products = [node for node in graph.nodes if node.name in wanted and is_product(node)]
    check_complete(ranges, missing_ranges(graph, products, ranges))
    possible = quantizable_attentions(graph, ranges, scheme)
    chosen = [found for softmax, found in possible.items() if softmax.name in wanted]
    return quantize(graph, products, ranges, scheme, chosen)

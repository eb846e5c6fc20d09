"""`layer_precision`: the layers that a user's names and patterns mean, and the precision of each.

A layer is a node of the optimised graph. It answers to its own name and to those of the user's ops
that were merged into it; patterns are those of `fnmatch`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from planish.errors import InputError, PrecisionError
from planish.graph.graph import Graph, Node
from planish.precision.permissions import FP32, PRECISIONS

log = logging.getLogger("planish")

NAMES_SHOWN = 5


def check_layer_precision(
    layer_precision: Any, strict_types: Any, asked: frozenset[str]
) -> dict[str, str]:
    """The argument `layer_precision=` with precisions in lower case.

    Raises
    ------
    InputError
        It is no mapping from names to names.
    PrecisionError
        A precision is unknown or not permitted, or the arguments have no effect.
    """
    wanted = {} if layer_precision is None else layer_precision
    named = isinstance(wanted, Mapping) and all(
        isinstance(text, str) for item in wanted.items() for text in item
    )
    if not named:
        raise InputError(
            "layer_precision= must be a mapping from names of layers to precisions",
            where="layer_precision=",
            why=f"it is {wanted!r}"[:200],
            cure='pass {"head/*": "fp32"}',
        )
    for name, present in (
        ("layer_precision", layer_precision is not None),
        ("strict_types", bool(strict_types)),
    ):
        if present and asked == {"fp32"}:
            raise PrecisionError(
                f"{name}= has no effect with precision 'fp32'",
                where=f"{name}=",
                why="it steers lower precisions, and none is permitted",
                cure='leave it out, or permit one: precision="fp16"',
            )
    if strict_types and not wanted:
        raise PrecisionError(
            "strict_types= has no effect without layer_precision=",
            where="strict_types=",
            why="it says that layer_precision must be obeyed",
            cure="leave it out, or say which layers have which precision",
        )
    result = {pattern: precision.strip().lower() for pattern, precision in wanted.items()}
    for pattern, precision in result.items():
        if precision not in asked:
            known = precision in PRECISIONS
            raise PrecisionError(
                f"Precision {precision!r} is not permitted"
                if known
                else f"There is no precision {precision!r}",
                where=f"layer_precision[{pattern!r}]",
                why=f"precision= permits {', '.join(p for p in PRECISIONS if p in asked)}",
                cure=f"add it: precision={{{_quoted(asked | {precision})}}}"
                if known
                else "use one of these",
            )
    return result


def _quoted(precisions: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(precisions) if name != FP32)


def names_of(node: Node) -> list[str]:
    """What a layer is called: its own name, and those of the user's ops in it."""
    parts = [part for part in node.origin.split(" + ") if part]
    return list(dict.fromkeys([node.name, *(part.rpartition(" (")[0] or part for part in parts)]))


def all_names(graph: Graph) -> set[str]:
    """What the layers of a graph are called."""
    return {name for node in graph.nodes for name in names_of(node)}


def match_layers(
    graph: Graph,
    wanted: Mapping[str, str],
    *,
    strict: bool = False,
    before: Iterable[str] = (),
) -> dict[Node, str]:
    """The precision asked for of each node that a name or pattern means.

    A name counts more than a pattern; of several patterns the last one counts.

    Parameters
    ----------
    graph : Graph
        The optimised graph.
    wanted : mapping of str to str
        Precisions by name or pattern.
    strict : bool
        Whether layers that optimisation removed are an error.
    before : iterable of str
        What the layers were called before optimisation.

    Raises
    ------
    PrecisionError
        A name or pattern means nothing; lists near names.
    """
    earlier = set(before)
    found: dict[Node, str] = {}
    names = {node: names_of(node) for node in graph.nodes}
    # names come after patterns, so that they count
    exact = {pattern for pattern in wanted if any(pattern in own for own in names.values())}
    for pattern in sorted(wanted, key=lambda p: p in exact):
        nodes = [n for n in graph.nodes if _means(pattern, names[n], pattern in exact)]
        found.update(dict.fromkeys(nodes, wanted[pattern]))
        if nodes:
            continue
        if not strict and _means(pattern, earlier, pattern in earlier):
            log.warning(
                "layer_precision: %r was removed or merged by optimisation; it has no effect",
                pattern,
            )
            continue
        near = _near(pattern, {name for own in names.values() for name in own} | earlier)
        raise PrecisionError(
            f"layer_precision= names no layer: {pattern!r}",
            where=f"layer_precision[{pattern!r}]",
            why="optimisation removed or merged the layer"
            if _means(pattern, earlier, pattern in earlier)
            else "no layer has that name, and none matches it as a pattern",
            cure=f"near names are {', '.join(map(repr, near))}" if near else "check the name",
        )
    return found


def _means(pattern: str, names: Iterable[str], exact: bool) -> bool:
    if exact:
        return pattern in names
    return any(fnmatchcase(name, pattern) for name in names)


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    plain = pattern.strip("*?")
    everything = sorted(names)
    close = difflib.get_close_matches(plain, everything, NAMES_SHOWN, 0.5)
    holding = [n for n in everything if plain and plain.lower() in n.lower()]
    return list(dict.fromkeys([*close, *holding, *everything]))[:NAMES_SHOWN]

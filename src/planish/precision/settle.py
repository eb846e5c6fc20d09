"""From what a user permits to a graph that computes in it: permissions, policy, rewrite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from planish.errors import PrecisionError
from planish.graph.graph import Graph, Node
from planish.graph.types import DType
from planish.precision.kinds import has_float32_work
from planish.precision.layers import match_layers
from planish.precision.lower import lower
from planish.precision.permissions import FLOATS, Permissions, permit
from planish.precision.policy import Decision, decide, obstacle

log = logging.getLogger("planish")


def settle_precision(
    graph: Graph,
    asked: frozenset[str],
    *,
    device: str,
    available: Iterable[str],
    layers: Mapping[str, str] | None = None,
    strict: bool = False,
    before: Iterable[str] = (),
) -> tuple[Permissions, Decision]:
    """Lowers an optimised graph, in place, as far as is permitted, possible, and wise.

    Parameters
    ----------
    graph : Graph
    asked : frozenset of str
        From `parse_precision`.
    device : str
    available : iterable of str
        The precisions that the target has kernels for.
    layers : mapping of str to str, optional
        From `check_layer_precision`.
    strict : bool
        Whether `layers` must be obeyed.
    before : iterable of str
        What layers were called before optimisation (`planish.precision.layers.all_names`).

    Raises
    ------
    PrecisionError
        `layers` names no layer; or, if `strict`, cannot be obeyed.
    """
    allowed = permit(asked, device, available)
    matched = match_layers(graph, layers or {}, strict=strict, before=before)
    types: dict[Node, DType] = {}
    ignored: list[str] = []
    for node, precision in matched.items():
        if not has_float32_work(node):
            continue
        dtype = FLOATS.get(precision, DType.FLOAT32)
        why = "" if precision in allowed else f"{device} has no kernels for {precision}"
        if not why and dtype is not DType.FLOAT32:
            why = obstacle(node)
        if why and strict:
            raise PrecisionError(
                f"Layer {node.name!r} cannot compute in {precision}",
                where=node.origin or node.name,
                why=why,
                cure="leave it out of layer_precision=, or leave out strict_types=",
            )
        if why:
            ignored.append(f"{node.name} ({why})")
        types[node] = DType.FLOAT32 if why else dtype
    if ignored:
        log.warning(
            "layer_precision: %d layer(s) stay in fp32: %s%s",
            len(ignored),
            ", ".join(ignored[:3]),
            ", …" if len(ignored) > 3 else "",
        )
    permissions = Permissions(allowed, {node.name: p for node, p in matched.items()})
    decision = Decision()
    if permissions.lower is not None:
        decision = decide(graph, permissions.lower, types)
        lower(graph, decision.lowered)
    return permissions, decision

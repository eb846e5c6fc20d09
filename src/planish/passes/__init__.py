"""The passes, in order: `optimize` makes a graph as small and regular as fusion wants it.

A pass is a function from a graph to whether it changed anything; it changes the graph in place. One
rewrite, or one family of them, is one file. Between any two passes the graph is tidied and
verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

from planish.graph.graph import Graph, Node
from planish.graph.verify import verify
from planish.passes.activations import recognize_activations
from planish.passes.batch_norm import lower_batch_norm
from planish.passes.broadcasts import move_broadcasts
from planish.passes.canonical import canonicalize, finish
from planish.passes.common_subexpressions import share_common_subexpressions
from planish.passes.concatenations import share_beginnings
from planish.passes.constant_folding import fold_constants
from planish.passes.identities import remove_identities
from planish.passes.matmul import simplify_matmuls
from planish.passes.normalizations import recognize_normalizations
from planish.passes.padding import fold_padding
from planish.passes.pooling import narrow_averages
from planish.passes.reshapes import simplify_reshapes
from planish.passes.scales import fold_scales
from planish.passes.shape_arithmetic import resolve_shape_arithmetic
from planish.passes.siblings import merge_siblings
from planish.passes.slices import simplify_slices
from planish.passes.transposes import move_transposes
from planish.passes.upsampling import recognize_upsampling
from planish.passes.zero_points import move_zero_points

Pass = Callable[[Graph], "bool | None"]
"""Changes a graph in place; tells whether it did."""

ROUNDS = 12
"""A group of passes is repeated until it changes nothing, but not more often than this."""


@dataclass(frozen=True)
class Group:
    """Passes that run in order, and again until none of them changes anything."""

    name: str
    passes: tuple[Pass, ...]


SIMPLIFY: tuple[Pass, ...] = (
    resolve_shape_arithmetic,
    fold_constants,
    remove_identities,
    move_broadcasts,
    canonicalize,
    recognize_upsampling,
    simplify_reshapes,
    simplify_slices,
    share_common_subexpressions,
)
"""Cheap passes that clean up after all others."""

PASSES: tuple[Group, ...] = (
    Group("simplify", SIMPLIFY),
    Group("recognize", (recognize_activations, recognize_normalizations, *SIMPLIFY)),
    Group(
        "fold",
        (
            lower_batch_norm,
            move_transposes,
            fold_scales,
            move_zero_points,
            fold_padding,
            simplify_matmuls,
            recognize_activations,
            recognize_normalizations,
            *SIMPLIFY,
        ),
    ),
    Group("merge", (narrow_averages, merge_siblings, share_beginnings, *SIMPLIFY)),
    Group("finish", (finish, share_common_subexpressions)),
)
"""The groups of passes in the order in which `optimize` runs them."""


def optimize(
    graph: Graph,
    *,
    observe: Callable[[str, Graph], None] | None = None,
    merge: bool = True,
    keep: Callable[[Node], bool] | None = None,
) -> None:
    """Runs all passes on a graph, in place.

    Parameters
    ----------
    graph : Graph
        The graph; its inputs, and the names and types of its outputs, stay as they are.
    observe : callable, optional
        Called as ``observe(pass_name, graph)`` after every pass that changed the graph, and first
        of all with the name ``"input"``.
    merge : bool
        Whether products that read the same value are merged into wider ones.
    keep : callable, optional
        Which nodes stay though all that they read is constant.

    Raises
    ------
    ModelError
        The graph broke a rule of `planish.graph.verify`; names the pass that left it so.
    """
    graph.tidy()
    verify(graph)
    if observe:
        observe("input", graph)
    for group in PASSES:
        passes = [p for p in group.passes if merge or p is not merge_siblings]
        if keep:
            passes = [_folding_but(keep) if p is fold_constants else p for p in passes]
        for _ in range(ROUNDS):
            changed = [_run(one, graph, observe) for one in passes]
            if not any(changed):
                break


def _folding_but(keep: Callable[[Node], bool]) -> Pass:
    @wraps(fold_constants)
    def fold(graph: Graph) -> bool:
        return fold_constants(graph, keep)

    return fold


def _run(one: Pass, graph: Graph, observe: Callable[[str, Graph], None] | None) -> bool:
    if not one(graph):
        return False
    graph.tidy()
    verify(graph, after=one.__name__)
    if observe:
        observe(one.__name__, graph)
    return True


__all__ = ["PASSES", "Group", "Pass", "optimize"]

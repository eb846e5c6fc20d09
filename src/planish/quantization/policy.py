"""Which layers are quantized: those that are faster so, what conversions cost counted.

Every layer was measured in float32 and as integers, with what is fused around it. Between a layer
of one kind and one of the other a tensor is converted. The choice of least total time is a cheapest
cut: layers on the sink's side are integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from planish.graph.dims import evaluate
from planish.graph.graph import Graph, Node, Value
from planish.passes.min_cut import INFINITE, Network
from planish.plan.plan import Plan, PlanStep
from planish.quantization.rewrite import is_product

_TICK = 1e-9


@dataclass(frozen=True)
class Tensor:
    """A tensor between layers.

    Attributes
    ----------
    makers, readers : tuple of str
        Layers whose results are in it, and that read it, by name.
    seconds : float
        What its conversion costs.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    seconds: float


def seconds_of_layers(plan: Plan, layers: Iterable[str]) -> dict[str, float]:
    """The measured time of each layer's step at the usual sizes, where there is one."""
    wanted = set(layers)
    found: dict[str, float] = {}
    for step in plan.steps:
        seconds = step.choices[0].seconds if step.choices else None
        for node in step.task.nodes:
            if node.name in wanted and seconds is not None:
                found[node.name] = seconds
    return found


def seconds_of_plan(plan: Plan, guess: Callable[[PlanStep], float] | None = None) -> float:
    """The measured times of all steps; where one was not measured, what is guessed, or infinity.

    Guesses know little of the machine. So they are scaled: as steps that were measured take longer
    or less long than is guessed, those with the same op if there are any.
    """
    measured, others = [], []
    for step in plan.steps:
        seconds = step.choices[0].seconds if step.choices else None
        if seconds is None:
            others.append(step)
        else:
            measured.append((step, seconds))
    known = sum(seconds for _, seconds in measured)
    if not others:
        return known
    if guess is None:
        return math.inf
    ratios: dict[type | None, tuple[float, float]] = {}
    for step, seconds in measured:
        for kind in {_kind(step), None}:
            taken, guessed = ratios.get(kind, (0.0, 0.0))
            ratios[kind] = taken + seconds, guessed + guess(step)
    for step in others:
        taken, guessed = ratios.get(_kind(step), ratios.get(None, (1.0, 1.0)))
        known += guess(step) * taken / guessed
    return known


def _kind(step: PlanStep) -> type | None:
    anchor = step.task.anchor
    return None if anchor is None else type(anchor.op)


def tensors_between(
    graph: Graph, sizes: Mapping[str, int], bytes_per_second: float
) -> list[Tensor]:
    """The tensors that products read, with the products that they come from.

    `bytes_per_second` is what a conversion that nothing hides moves.
    """
    sources: dict[Value, frozenset[Node]] = {}
    for node in graph.nodes:
        behind = frozenset().union(*(sources.get(v, frozenset()) for v in node.inputs))
        own = frozenset({node}) if is_product(node) else behind
        sources.update(dict.fromkeys(node.outputs, own))
    readers: dict[Value, list[str]] = {}
    for node in graph.nodes:
        if is_product(node):
            readers.setdefault(node.inputs[0], []).append(node.name)
    found = []
    for value, names in readers.items():
        elements = math.prod(evaluate(d, sizes) for d in value.shape)
        moved = (value.dtype.size + 1) * elements
        makers = sorted(node.name for node in sources.get(value, ()))
        found.append(Tensor(tuple(makers), tuple(names), moved / bytes_per_second))
    return found


def faster_as_integers(
    floats: Mapping[str, float],
    integers: Mapping[str, float],
    tensors: Iterable[Tensor],
    forced: Iterable[str] = (),
) -> set[str]:
    """The layers to quantize.

    Parameters
    ----------
    floats, integers : mapping of str to float
        Seconds of each layer, both ways, by the same names.
    tensors : iterable of Tensor
    forced : iterable of str
        Layers that are quantized in any case.

    Returns
    -------
    set of str
        Layers that are as fast both ways stay in float32.
    """
    network = Network()
    vertex = {name: network.vertex() for name in floats}
    always = set(forced)
    for name, place in vertex.items():
        # on the source's side a layer is computed in floats, on the sink's in integers
        network.edge(place, 1, INFINITE if name in always else _ticks(floats[name]))
        network.edge(0, place, _ticks(integers[name]))
    for tensor in tensors:
        makers = [vertex[n] for n in tensor.makers if n in vertex] or [0]
        for maker in makers:
            for reader in (vertex[n] for n in tensor.readers if n in vertex):
                network.edge(maker, reader, _ticks(tensor.seconds))
                network.edge(reader, maker, _ticks(tensor.seconds))
    _, sink = network.cut()
    return {name for name, place in vertex.items() if place in sink}


def _ticks(seconds: float) -> int:
    return round(seconds / _TICK)

"""Engines that show inner tensors, and engines whose layers do not hear of each other.

    x ──▶ layer ──▶ layer ──▶ y           x ──▶ layer ──▶ (shown)
              │                           given ─────▶ layer ──▶ (shown)
              └──▶ (shown)

A plan is run by its own tactics: only what it keeps in memory is shown. The model in float32 is
built for the purpose, so that all of it can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph, Node, Value
from planish.graph.verify import verify
from planish.ops import Reshape, Slice
from planish.plan.check import check_steps
from planish.plan.plan import Choice, Plan, PlanStep
from planish.plan.views import insert_copies
from planish.runtime.engine import Engine
from planish.targets.base import Tactic
from planish.targets.devices import find_target
from planish.targets.reference import ReferenceTactic
from planish.targets.target import Target

Arrays = Mapping[str, np.ndarray]


def stored_values(plan: Plan) -> dict[Value, Node]:
    """The values that a plan writes to memory of their own, in order, with what computes them."""
    placements = plan.placements
    owner = {node: step.task for step in plan.steps for node in step.task.nodes}
    found = {}
    for node in plan.graph.nodes:
        task = owner.get(node)
        for value in node.outputs:
            if task is not None and value not in task.outputs:
                continue
            if isinstance(node.op, Reshape | Slice) or placements.of[value].root is not value:
                continue
            if task is not None and any(user in task.nodes for user in value.users):
                continue
            found[value] = node
    return found


class Shown(NamedTuple):
    """Where a value is found: among an engine's outputs, or its inputs."""

    name: str
    is_input: bool


class Tapped:
    """An engine that shows values of its graph. A context manager.

    Parameters
    ----------
    engine : Engine
        Its graph has outputs and inputs of the names below.
    shown : sequence of Shown
        Where to find the values.
    given : sequence of str
        Names of inputs that stand for the values, in the same order; empty if it has none.
    """

    def __init__(self, engine: Engine, shown: Sequence[Shown], given: Sequence[str]) -> None:
        self._engine, self._shown, self._given = engine, shown, given

    def __enter__(self) -> Tapped:
        return self

    def __exit__(self, *exception: object) -> None:
        self._engine.close()

    def run(
        self, batch: Arrays, values: Sequence[np.ndarray] = ()
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The values, and all outputs by name.

        Parameters
        ----------
        batch : mapping of str to array
            The model's inputs.
        values : sequence of array
            What layers read in place of the values, if the engine is cut there.
        """
        inputs = dict(batch) | dict(zip(self._given, values, strict=False))
        result = self._engine({info.name: inputs[info.name] for info in self._engine.inputs})
        if not isinstance(result, dict):
            result = {self._engine.outputs[0].name: result}
        return [(batch if s.is_input else result)[s.name] for s in self._shown], result


def tapped_plan(engine: Engine, values: Sequence[Value], *, cut: bool) -> Tapped:
    """A plan as it is, but for its inner values being shown.

    Parameters
    ----------
    engine : Engine
    values : sequence of Value
        Some of `stored_values`.
    cut : bool
        Whether all that read them read inputs in their place.

    Raises
    ------
    PlanError
        A value cannot be shown without changing the plan.
    """
    plan = engine.plan
    graph, made = duplicate(plan.graph)
    node_of = dict(zip(plan.graph.nodes, graph.nodes, strict=True))
    shown, given = _tap(graph, [made[v] for v in values], cut)
    steps = []
    for step in plan.steps:
        anchor = step.task.anchor
        task = make_task(
            [node_of[n] for n in step.task.nodes], None if anchor is None else node_of[anchor]
        )
        choices = [
            Choice(c.at, tactic, c.seconds)
            for c in step.choices
            if (tactic := _again(c.tactic, task, engine.target)) is not None
        ]
        steps.append(PlanStep(task, tuple(choices), step.wrong, step.slow, step.precisions))
    copy = Plan(graph, tuple(steps), plan.about)
    check_steps(graph, copy.placements, [step.task for step in steps])
    return Tapped(Engine(copy, engine.target), shown, given)


def tapped_model(
    graph: Graph, values: Sequence[Value], *, cut: bool, threads: int | None
) -> Tapped:
    """An optimised float32 graph on the CPU by heuristics, inner values shown; see `tapped_plan`.

    The graph is not changed.
    """
    from planish.builder import tune_graph

    copy, made = duplicate(graph)
    shown, given = _tap(copy, [made[v] for v in values], cut)
    insert_copies(copy)
    verify(copy)
    target = find_target("cpu")
    plan, _ = tune_graph(copy, target, threads=threads, tuning_seconds=0)
    return Tapped(Engine(plan, target), shown, given)


def _tap(graph: Graph, values: Sequence[Value], cut: bool) -> tuple[list[Shown], list[str]]:
    """Makes values outputs, and with `cut` their readers read inputs, whose names are given too."""
    taken = set(graph.output_names) | {v.name for v in graph.inputs}
    shown: list[Shown] = []
    given: list[str] = []
    for place, value in enumerate(values):
        name = value.name
        if value.producer is not None and value in graph.outputs:
            name = graph.output_names[graph.outputs.index(value)]
        elif value.producer is not None:
            name = _free(f"value {place}", taken)
            graph.mark_output(value, name)
        shown.append(Shown(name, value.producer is None))
        if cut:
            own = graph.input(_free(f"given {place}", taken), value.type)
            given.append(own.name)
            for user in list(value.users):
                graph.set_inputs(user, [own if v is value else v for v in user.inputs])
    return shown, given


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _again(tactic: Tactic, task: Task, target: Target) -> Tactic | None:
    """A tactic for a copy of its task; None where the copy, of other inputs, does not take it."""
    if isinstance(tactic, ReferenceTactic):
        return ReferenceTactic(task)
    try:
        return target.restore(task, tactic.family, tactic.parameters)
    except PlanError:
        return None

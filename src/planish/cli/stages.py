"""A model as text at every stage on its way to a plan: import, each pass, tasks, plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planish.errors import InputError

if TYPE_CHECKING:
    from planish.fusion.task import Task
    from planish.graph.graph import Graph
    from planish.plan.plan import Plan

FIXED = ("import", "passes", "tasks", "plan")
"""The stages that every model has; "passes" is the graph after all of them."""


def graph_at(
    model: Any,
    stage: str,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
) -> str:
    """The text of a model at a stage before anything is tuned.

    Parameters
    ----------
    model : path or object
        As for `planish.build`.
    stage : str
        "import", "passes", "tasks", or the name of a pass: the graph each time it changed it.

    Raises
    ------
    InputError
        No stage has that name, or the pass changed nothing.
    """
    from planish.frontends import import_model
    from planish.graph.text import dump
    from planish.passes import optimize

    if stage not in (*FIXED, *pass_names()):
        raise InputError(
            f"There is no stage {stage!r}",
            where="--stage",
            cure=f"use one of {', '.join((*FIXED, *pass_names()))}",
        )
    graph = import_model(model, inputs=inputs, outputs=outputs)
    if stage == "import":
        return dump(graph)
    after: list[str] = []

    def observe(name: str, seen: Graph) -> None:
        if name == stage:
            after.append(dump(seen))

    optimize(graph, observe=observe)
    if stage == "passes":
        return dump(graph)
    if stage == "tasks":
        return "\n".join(task_lines(candidates(graph)))
    if not after:
        raise InputError(
            f"The pass {stage} changed nothing in this model",
            where="--stage",
            cure="look at --stage passes, the graph after all of them",
        )
    return "\n\n".join(after)


def pass_names() -> list[str]:
    """The names of all passes, in the order in which they first run."""
    from planish.passes import PASSES

    return list(dict.fromkeys(one.__name__ for group in PASSES for one in group.passes))


def candidates(graph: Graph) -> list[Task]:
    """The candidate tasks of an optimised graph; inserts the copies that a plan needs."""
    from planish.fusion.candidates import propose
    from planish.plan.views import insert_copies, place

    insert_copies(graph)
    return propose(graph, place(graph).free)


def task_lines(tasks: Sequence[Task]) -> Iterator[str]:
    """Each task in a line: its nodes, and what of it is prologue and epilogue."""
    for task in tasks:
        parts = [f"[{task.prologue.expression}] →" if task.prologue else ""]
        parts.append(task.computes)
        if task.epilogue.expression.instructions:
            parts.append(f"→ [{task.epilogue.expression}]")
        yield f"task {task.name}: {' '.join(p for p in parts if p)}"
        yield f"  covers {', '.join(n.name for n in task.nodes)}"


def plan_text(plan: Plan) -> str:
    """The steps of a plan with the tactics chosen for them."""
    from planish.graph.text import dump

    lines = [dump(plan.graph), "", "steps"]
    for step in plan.steps:
        outputs = ", ".join(f"%{v.name}: {v.type}" for v in step.task.outputs)
        inputs = " ".join(("@" if v.is_constant else "%") + v.name for v in step.task.inputs)
        lines.append(f"  {outputs} = {inputs}")
        for choice in step.choices:
            sizes = ", ".join(f"{name}={size}" for name, size in choice.at)
            lines.append(f"    {f'at {sizes}: ' if sizes else ''}{choice.tactic}")
    return "\n".join(lines)

"""From a plan file to an engine: tasks made again, tactics restored for the machine at hand.

Nothing here imports the passes, the frontends or the tuner, unless the plan is to be tuned again.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from planish.checks import check_limits
from planish.errors import InputError, PlanError, PlanishError, PrecisionError
from planish.fusion.task import Task, make_task
from planish.plan.check import check_nodes, check_steps
from planish.plan.device_code import PlanCode
from planish.plan.file import StoredChoice, StoredPlan, deserialize
from planish.plan.plan import Choice, Plan, PlanStep
from planish.precision.permissions import (
    Permissions,
    parse_precision,
    permit,
    precision_text,
    recorded,
)
from planish.targets.base import Tactic
from planish.targets.reference import ReferenceTactic
from planish.targets.target import Target

if TYPE_CHECKING:
    from planish.runtime.engine import Engine

log = logging.getLogger("planish")


def load(
    path_or_bytes: bytes | str | os.PathLike[str],
    device: str | None = None,
    allow_device_code: bool = False,
    retune: bool = False,
    precision: Any = None,
    tuning_seconds: float | None = None,
) -> Engine:
    """Makes an engine from a plan that `Engine.save` or `Engine.serialize` wrote.

    A plan from another machine or version loads too: the tactics that this machine lacks are
    replaced by its best guesses, and a warning says so; `retune` measures again instead.

    Parameters
    ----------
    path_or_bytes : path or bytes
        A file is mapped, not copied: replace it (as `Engine.save` does), never overwrite it.
    device : str, optional
        Where to run; None: the device the plan was built for.
    allow_device_code : bool
        Whether machine code that the plan holds may be run: only for plans that you trust as you
        trust a program. It saves compiling, and so needs no compiler. Plans for GPUs hold such
        code; those for the CPU do not, it is generated on the machine that runs it.
    retune : bool
        Measures tactics again, on this machine.
    precision : str or set, optional
        With `retune`: what is permitted from now on, as `planish.build` takes it; None: what the
        plan permits. So a plan in FP32 of one machine becomes one in FP16 on another, without the
        model it was built from. What a plan has lowered cannot be taken back.
    tuning_seconds : float, optional
        With `retune`: time for measuring, as `planish.build` takes it.

    Raises
    ------
    InputError
        `precision` or `tuning_seconds` without `retune`, or no time.
    PrecisionError
        There is no such precision, or the plan was lowered to another one.
    PlanError
        The file cannot be read, is no plan, is damaged, or has another format version.
    DeviceError
        The device does not exist here.
    """
    from planish.runtime.engine import Engine
    from planish.targets.devices import find_target

    for name, given in (("precision", precision), ("tuning_seconds", tuning_seconds)):
        if given is not None and not retune:
            raise InputError(
                f"{name}= needs retune=True",
                where=f"{name}=",
                why="a plan's tactics were chosen when it was built",
                cure=f"pass retune=True, or leave out {name}=",
            )
    check_limits(tuning_seconds=tuning_seconds)
    stored = deserialize(path_or_bytes)
    target = find_target(str(device or stored.about.get("device", "cpu")))
    if stored.code is not None and not retune:
        target = _with_code(stored.code, target, allow_device_code, stored.source)
    if retune:
        plan = _tuned_again(stored, target, precision, tuning_seconds)
    else:
        plan = restore(stored, target)
    engine = Engine(plan, target)
    engine.bind_usual()
    return engine


def _with_code(code: PlanCode, target: Target, allowed: bool, source: str) -> Target:
    """The target with a plan's code, if that is allowed and fits; else the target, and a line in
    the log.
    """
    if not allowed:
        log.info(
            "%s holds device code (%s), which is not used: load(..., allow_device_code=True) "
            "permits it",
            source,
            code,
        )
        return target
    if code.key != target.code_key:
        log.warning(
            "%s holds device code (%s), which does not fit %s (%s): kernels are compiled here",
            source,
            code,
            target.device,
            target.code_key or "it compiles its own",
        )
        return target
    return target.with_code(code.kernels)


def restore(stored: StoredPlan, target: Target) -> Plan:
    """The plan for a target: tasks checked, tactics restored, those that do not fit dropped.

    Raises
    ------
    PlanError
        The steps do not compute the graph, or a tactic of this very machine is impossible.
    """
    about = stored.about
    foreign = about.get("machine") != target.timing_key
    plan = Plan(stored.graph, (), about)
    steps: list[PlanStep] = []
    dropped = 0
    try:
        for step in stored.steps:
            check_nodes(stored.graph, step.nodes, step.anchor)
            task = make_task(step.nodes, step.anchor)
            choices = []
            for choice in step.choices:
                tactic = _tactic(task, choice, target, foreign, step.precisions)
                if tactic is not None:
                    choices.append(Choice(choice.at, tactic, choice.seconds))
                elif choice.family != ReferenceTactic.family:
                    dropped += 1
            slow = () if foreign else step.slow  # elsewhere something else is slow
            steps.append(PlanStep(task, tuple(choices), step.wrong, slow, step.precisions))
        check_steps(stored.graph, plan.placements, [step.task for step in steps])
    except PlanishError as error:
        where = f"{stored.source}: {error.where}" if error.where else stored.source
        cure = error.cure or "build the plan again, or load it with retune=True"
        raise PlanError(error.what, where=where, why=error.why, cure=cure) from error
    if foreign:
        log.warning(
            "%s was tuned on another machine or by another version (%s, Planish %s); %s. "
            "load(..., retune=True) measures again.",
            stored.source,
            about.get("machine", "unknown"),
            about.get("planish", "unknown"),
            f"{dropped} of its tactics do not exist here and are chosen by heuristics"
            if dropped
            else "its tactics run here, but others may be faster",
        )
    return Plan(plan.graph, tuple(steps), about)


def _tactic(
    task: Task, choice: StoredChoice, target: Target, foreign: bool, precisions: frozenset[str]
) -> Tactic | None:
    """The tactic of a choice; None if it comes from elsewhere and does not exist here."""
    if choice.family == ReferenceTactic.family:
        # where nothing else ran it there may be a kernel here, which binding prefers
        return None if foreign else ReferenceTactic(task)
    try:
        tactic = target.restore(task, choice.family, choice.parameters)
        if not tactic.is_permitted(precisions):
            raise PlanError(
                f"A tactic of the plan computes in {tactic.precision}, which it does not permit",
                where=task.name,
                why=f"its step permits {precision_text(precisions)}",
            )
        return tactic
    except PlanError as error:
        if not foreign:
            raise
        log.debug("tactic %s of %s is dropped: %s", choice.family, task.name, error.what)
        return None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        # parameters of another version's family can be anything
        if not foreign:
            raise PlanError(
                "A tactic of the plan is impossible", where=task.name, why=str(error)
            ) from error
        return None


def _tuned_again(
    stored: StoredPlan, target: Target, precision: Any, tuning_seconds: float | None
) -> Plan:
    from planish.builder import tune_graph

    usual = recorded(stored.about)
    permissions = Permissions(usual, _narrowed(stored, usual))
    if precision is not None:
        asked = parse_precision(precision, target.device, target.precisions)
        permissions = _permitted_now(stored, target, permissions, asked)
    plan, _ = tune_graph(
        stored.graph, target, permissions=permissions, tuning_seconds=tuning_seconds
    )
    return Plan(plan.graph, plan.steps, {**_kept(stored.about), **plan.about})


def _permitted_now(
    stored: StoredPlan, target: Target, before: Permissions, asked: frozenset[str]
) -> Permissions:
    """Lowers a plan's graph to what is permitted now.

    Raises
    ------
    PrecisionError
        It was lowered to something else.
    """
    from planish.graph.verify import verify
    from planish.plan.views import insert_copies
    from planish.precision.settle import settle_precision

    now = Permissions(permit(asked, target.device, target.precisions), before.layers)
    if before.lower is None:
        now, _ = settle_precision(
            stored.graph,
            asked,
            device=target.device,
            available=target.precisions,
            layers=before.layers,
        )
        insert_copies(stored.graph)
        verify(stored.graph)
    elif now.lower is not before.lower:
        raise PrecisionError(
            f"The plan computes in {before}, which cannot be changed to {now}",
            where=stored.source,
            why="its layers were lowered, and what that cost cannot be taken back",
            cure="build it again from the model, or keep a plan in fp32 and load that one",
        )
    return now


def _narrowed(stored: StoredPlan, usual: frozenset[str]) -> dict[str, str]:
    """The layers that permit less than the plan does, by name."""
    return {
        node.name: precision_text(step.precisions)
        for step in stored.steps
        if step.precisions != usual
        for node in step.nodes
    }


def _kept(about: dict[str, Any]) -> dict[str, Any]:
    """What a header says of the model; the rest is about the machine and said anew."""
    return {k: v for k, v in about.items() if k not in ("machine", "planish", "device", "python")}

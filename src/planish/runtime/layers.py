"""The layers of an engine, as people and scripts look at them: what runs, how fast, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planish.errors import PlanishError
from planish.fusion.task import Task
from planish.ops.indexing import Gather
from planish.plan.plan import PlanStep
from planish.profile import tuning_points
from planish.targets.base import Binding, Kernel

if TYPE_CHECKING:
    from planish.runtime.engine import Engine
    from planish.tuning.ceilings import Ceilings


def layer_rows(engine: Engine, limits: Ceilings | None) -> list[dict[str, Any]]:
    """See `Engine.layers`."""
    parts = engine.plan.stages.parts
    stage_of = {i: stage for stage, part in enumerate(parts) for i in part.steps}
    rows = []
    for index, step in enumerate(engine.plan.steps):
        choice = step.choices[0] if step.choices else None
        row: dict[str, Any] = {
            "name": step.task.name,
            "origin": step.task.origin,
            "op": step.task.kind,
            "tactic": str(choice.tactic) if choice else "chosen at run time",
            "precision": (choice.tactic if choice else step.task).precision,
            "output": ", ".join(str(v.type) for v in step.task.outputs),
            "microseconds": choice.seconds * 1e6 if choice and choice.seconds is not None else None,
            **_work(engine, step),
            **({"stage": stage_of[index]} if len(parts) > 1 else {}),
        }
        rate(row, limits)
        rows.append(row)
    return rows


def _work(engine: Engine, step: PlanStep) -> dict[str, Any]:
    """What a step does at the sizes that its first tactic was tuned at."""
    from planish.tuning.estimate import operations

    usual = tuning_points(engine.plan.graph)[0]
    choice = step.choices[0] if step.choices else None
    sizes = {**usual, **dict(choice.at if choice else ())}
    try:
        binding = engine.plan.binding(sizes, step.task)
        tactic = step.tactic(binding, engine.target)
        launches = tactic.launches(binding)
        units, why = engine.target.matrix_units(tactic, binding, step.precisions)
        flops, moved = operations(step.task, binding), moved_bytes(step.task, binding)
    except PlanishError:  # guessed sizes of data may not go together
        launches, units, why, flops, moved = [], None, "", None, None
    kernels = [x.kernel.symbol if isinstance(x.kernel, Kernel) else "host step" for x in launches]
    return {
        "kernels": kernels,
        "tensor_cores": units,
        "why_no_tensor_cores": why,
        "flops": flops,
        "bytes": moved,
    }


def moved_bytes(task: Task, binding: Binding) -> float:
    """Bytes that a task reads and writes, every tensor once."""
    read, repeated = task.inputs, 0
    if task.anchor is not None and isinstance(task.anchor.op, Gather):
        # of the table only what is picked: as much as is written
        read, repeated = task.inputs[1:], math.prod(binding.shape(task.output))
        repeated *= task.output.dtype.size
    values = dict.fromkeys((*read, *task.outputs))
    return float(repeated + sum(math.prod(binding.shape(v)) * v.dtype.size for v in values))


def rate(row: dict[str, Any], limits: Ceilings | None) -> None:
    """Adds to a layer's row what rates its time and work make, and what share of the time the
    machine's ceilings would leave it: 1 is as fast as the machine can.
    """
    microseconds, flops, moved = row["microseconds"], row["flops"], row["bytes"]
    row["gigaflops_per_second"] = row["gigabytes_per_second"] = row["of_ceiling"] = None
    row["bound"] = None
    if not microseconds or flops is None:
        return
    row["gigaflops_per_second"] = flops / microseconds / 1e3
    row["gigabytes_per_second"] = moved / microseconds / 1e3
    if limits is not None:
        precision = row["precision"] if row["tensor_cores"] is not False else "fp32"
        floor = limits.floor(flops, moved, precision)
        row["of_ceiling"] = 1e6 * floor / microseconds
        row["bound"] = "memory" if floor * limits.bytes <= moved * (1 + 1e-9) else "arithmetic"


def totals(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """Sums over layers whose times are known: microseconds, operations, bytes."""
    timed = [row for row in rows if row["microseconds"] and row["flops"] is not None]
    return {key: sum(row[key] for row in timed) for key in ("microseconds", "flops", "bytes")}

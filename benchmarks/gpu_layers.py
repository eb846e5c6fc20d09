"""Where an engine's time goes: per layer the time, the family, and how near it is to the machine.

A layer's floor is what its arithmetic and its bytes, each read or written once, would take at the
rates that the machine reaches with large products and copies (`Engine.ceilings`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planish.fusion.task import Task
from planish.plan.plan import PlanStep
from planish.runtime.layers import rate
from planish.targets.base import Binding

REPEATS = 15

TACTIC = 100
"""Characters of a tactic that are printed."""


def profile(engine: Any, runner: Any, clock: Any) -> list[dict[str, Any]]:
    """A row for each layer, those that lose most time first.

    Launches run one after the other, each between two events: a time holds what it takes to start
    and end a kernel, and the sum is more than a run takes. The tuner's times are of a graph of many
    launches of the same kernel.
    """
    steps = runner.launch_steps(0)
    held = 2 * clock.queueing(lambda i: runner.profile(0), 2)
    samples = []
    for i in range(REPEATS):
        clock.hold(held)
        times = runner.profile(i % 2)
        samples.append(times[:, 1] - times[:, 0])
    nothing = 1e9 * clock.between()
    spent = np.zeros(len(engine.plan.steps))
    launches = np.zeros(len(spent), int)
    for step, nanoseconds in zip(steps, np.median(samples, 0), strict=True):
        spent[step] += max(nanoseconds - nothing, 0.0) / 1e3
        launches[step] += 1
    limits = engine.ceilings()
    rows = []
    known = zip(engine.layers(), engine.plan.steps, spent, launches, strict=True)
    for layer, step, us, count in known:
        tuned = layer["microseconds"]
        layer["microseconds"] = max(float(us), 1e-3)
        rate(layer, limits)
        rows.append(_row(engine, layer, step) | {"launches": int(count), "tuned_us": tuned})
    return sorted(rows, key=lambda row: row["floor_us"] - row["us"])


def _row(engine: Any, layer: Mapping[str, Any], step: PlanStep) -> dict[str, Any]:
    us = layer["microseconds"]
    return {
        **{key: layer[key] for key in ("name", "op", "tactic", "precision", "tensor_cores")},
        "why_no_tensor_cores": layer["why_no_tensor_cores"],
        "nodes": len(step.task.nodes),
        "family": step.choices[0].tactic.family if step.choices else "none",
        "shapes": _shapes(step.task, engine.plan.binding({}, step.task)),
        "us": us,
        "floor_us": layer["of_ceiling"] * us,
        "teraflops": layer["gigaflops_per_second"] / 1e3,
        "gigabytes_per_second": layer["gigabytes_per_second"],
        "share": layer["of_ceiling"],
    }


def _shapes(task: Task, binding: Binding) -> str:
    read = task.anchor.inputs if task.anchor else task.inputs
    shown = ["x".join(map(str, v.type.bind(binding.symbols))) or "scalar" for v in read[:2]]
    more = " prologue" if task.prologue else ""
    more += f" +{len(task.inputs) - len(read)}" if len(task.inputs) > len(read) else ""
    return f"{' '.join(shown)}{more} -> {'x'.join(map(str, binding.shape(task.output)))}"


def table(rows: Sequence[Mapping[str, Any]], limit: int = 25) -> str:
    """The layers that lose most as text, equal ones together, and each family's sum."""
    equal: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        equal.setdefault((row["op"], row["shapes"], row["tactic"]), []).append(row)
    groups = sorted(equal.values(), key=lambda g: sum(r["floor_us"] - r["us"] for r in g))
    head = f"{'n':>3} {'us':>7} {'tuned':>7} {'floor':>7} {'share':>5} {'TFLOP/s':>7} {'GB/s':>6}"
    lines = [f"{head}  layer (the times of one of n)"]
    for group in groups[:limit]:
        count, row = len(group), group[0]
        us = sum(r["us"] for r in group) / count
        best = us if row["tuned_us"] is None else min(us, row["tuned_us"])
        slower = row["us"] / max(best, 1e-3)  # the rates are of the row's own time
        tuned = "" if row["tuned_us"] is None else f"{row['tuned_us']:.2f}"
        lines.append(
            f"{count:3} {us:7.2f} {tuned:>7} {row['floor_us']:7.2f} {row['share'] * slower:5.2f} "
            f"{row['teraflops'] * slower:7.1f} {row['gigabytes_per_second'] * slower:6.0f}  "
            f"{row['op']} {row['shapes']} {row['tactic'][:TACTIC]}"
        )
    lines.append("sums by family:")
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    families["all"] = list(rows)
    for family, members in families.items():
        us, floor = (sum(r[key] for r in members) for key in ("us", "floor_us"))
        tuned = sum(r["us"] if r["tuned_us"] is None else r["tuned_us"] for r in members)
        lines.append(f"{len(members):3} {us:7.1f} {tuned:7.1f} {floor:7.1f}  {family}")
    return "\n".join(lines)

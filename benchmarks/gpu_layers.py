"""Where an engine's time goes: per layer the time, the family, and how near it is to the machine.

A layer's floor is what its arithmetic and its bytes, each read or written once, would take at the
rates that were measured on an H200 with large products and copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.ops.indexing import Gather
from planish.plan.plan import PlanStep
from planish.targets.base import Binding
from planish.tuning.estimate import operations

FLOPS = {"fp16": 680e12, "bf16": 680e12, "tf32": 340e12, "fp32": 55e12}
"""Operations per second: measured for FP16; others in proportion to the vendor's figures."""

BYTES = 4.2e12
"""Bytes per second, read and written."""

REPEATS = 15

TACTIC = 100
"""Characters of a tactic that are printed."""


def profile(engine: Any, runner: Any, clock: Any, precision: str) -> list[dict[str, Any]]:
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
    rows = [
        _row(engine, step, float(us), int(count), precision)
        for step, us, count in zip(engine.plan.steps, spent, launches, strict=True)
    ]
    return sorted(rows, key=lambda row: row["floor_us"] - row["us"])


def _row(engine: Any, step: PlanStep, us: float, launches: int, precision: str) -> dict[str, Any]:
    task = step.task
    binding = engine.plan.binding({}, task)
    flops = operations(task, binding)
    moved = _moved(task.inputs, task.outputs, binding)
    if task.anchor is not None and isinstance(task.anchor.op, Gather):
        moved = 2 * _moved((), task.outputs, binding)
    kind = task.precision if task.precision in FLOPS else "fp32"
    if kind == "fp32" and precision == "tf32":
        kind = "tf32"
    floor = 1e6 * max(flops / FLOPS[kind], moved / BYTES)
    choice = step.choices[0] if step.choices else None
    seconds = max(us, 1e-3) / 1e6
    return {
        "name": task.name,
        "op": task.anchor.op.name if task.anchor else "elementwise",
        "nodes": len(task.nodes),
        "family": choice.tactic.family if choice else "none",
        "tactic": str(choice.tactic) if choice else "",
        "shapes": _shapes(task, binding),
        "precision": task.precision,
        "launches": launches,
        "us": us,
        "tuned_us": 1e6 * choice.seconds if choice and choice.seconds is not None else None,
        "floor_us": floor,
        "teraflops": flops / seconds / 1e12,
        "gigabytes_per_second": moved / seconds / 1e9,
        "share": floor / max(us, 1e-3),
    }


def _moved(inputs: Sequence[Value], outputs: Sequence[Value], binding: Binding) -> float:
    values = dict.fromkeys((*inputs, *outputs))  # each once
    return float(sum(np.prod(binding.shape(v), dtype=float) * v.dtype.size for v in values))


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

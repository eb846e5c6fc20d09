"""Where an engine's time goes: per layer the time, the family, and how near it is to the machine.

A layer's floor is what its arithmetic and its bytes, each read or written once, would take at the
rates that were measured on an H200 with large products and copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def profile(engine: Any, runner: Any, clock: Any, precision: str) -> list[dict[str, Any]]:
    """A row for each layer, those that lose most time first.

    Launches run one after the other, between events, so that the sum is more than a run takes.
    """
    steps = runner.launch_steps(0)
    held = 2 * clock.queueing(lambda i: runner.profile(0), 2)
    samples = []
    for i in range(REPEATS):
        clock.hold(held)
        times = runner.profile(i % 2)
        samples.append(times[:, 1] - times[:, 0])
    spent = np.zeros(len(engine.plan.steps))
    launches = np.zeros(len(spent), int)
    for step, nanoseconds in zip(steps, np.median(samples, 0), strict=True):
        spent[step] += nanoseconds / 1e3
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
        "shapes": " ".join("x".join(map(str, binding.shape(v))) for v in task.inputs[:2])
        + " -> "
        + "x".join(map(str, binding.shape(task.output))),
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
    values = dict.fromkeys((*inputs, *outputs))
    return float(sum(np.prod(binding.shape(v), dtype=float) * v.dtype.size for v in values))


def table(rows: Sequence[Mapping[str, Any]], limit: int = 25) -> str:
    """The layers that lose most as text, and each family's sum."""
    lines = [f"{'us':>8} {'tuned':>7} {'floor':>7} {'share':>5} {'TFLOP/s':>7} {'GB/s':>6}  layer"]
    for row in rows[:limit]:
        tuned = "" if row["tuned_us"] is None else f"{row['tuned_us']:.2f}"
        lines.append(
            f"{row['us']:8.2f} {tuned:>7} {row['floor_us']:7.2f} {row['share']:5.2f} "
            f"{row['teraflops']:7.1f} {row['gigabytes_per_second']:6.0f}  "
            f"{row['op']} x{row['launches']} {row['shapes']} {row['tactic'][:90]}"
        )
    families: dict[str, list[float]] = {}
    for row in rows:
        sums = families.setdefault(row["family"], [0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += row["us"]
        sums[2] += row["floor_us"]
    for family, (count, us, floor) in sorted(families.items(), key=lambda f: -f[1][1]):
        lines.append(f"{us:8.1f} {'':7} {floor:7.1f} {floor / us:5.2f}  {family}, {count} layers")
    return "\n".join(lines)

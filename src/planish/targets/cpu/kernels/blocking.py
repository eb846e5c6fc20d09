"""How the matrix kernel's work is cut into tasks."""

from __future__ import annotations

from dataclasses import dataclass

from planish.targets.cpu.kernels.geometry import Geometry
from planish.targets.cpu.machine import Machine

TASKS_PER_THREAD = 4
"""At least so many tasks, where there is that much work: threads are never equally fast."""

SMALLEST_TASK = 200_000
"""Multiply-adds under which a task is not split further (some ten microseconds)."""


@dataclass(frozen=True)
class Blocking:
    """Sizes of a task, and how many there are along each axis."""

    rows: int
    row_tasks: int
    columns: int
    column_tasks: int
    blocks: int
    channel_tasks: int


def choose_blocking(
    g: Geometry, pixels: int, vectors: int, machine: Machine, smallest: int = SMALLEST_TASK
) -> Blocking:
    """Cuts so that threads are busy, a task's activations stay in the second-level cache, and the
    bytes moved are few: each cut along pixels reads the weights once more, each cut along channels
    the activations. No task of less than `smallest` multiply-adds is split further.
    """
    lanes = machine.lanes
    blocks = ceil(g.channels, vectors * lanes)
    taps = g.window[0] * g.window[1]
    depth = g.depth * taps
    weight_bytes = 4 * blocks * vectors * lanes * depth
    outer = g.batch * g.groups
    source_bytes = 4 * outer * g.height * g.width * g.depth
    work = g.operations // 2
    wanted = max(1, min(machine.cores * TASKS_PER_THREAD, work // smallest))

    best: tuple[float, Blocking] | None = None
    for channel_tasks in _splits(blocks, wanted):
        per_task = ceil(blocks, channel_tasks)
        pixel_tasks = ceil(wanted, channel_tasks * outer)
        rows, columns = _pixel_block(g, pixels, pixel_tasks, machine)
        row_tasks, column_tasks = ceil(g.rows, rows), ceil(g.columns, columns)
        cut = Blocking(rows, row_tasks, columns, column_tasks, per_task, ceil(blocks, per_task))
        moved = weight_bytes * row_tasks * column_tasks * outer
        moved += source_bytes * cut.channel_tasks
        tasks = max(row_tasks * column_tasks * cut.channel_tasks * outer, 1)
        idle = ceil(tasks, machine.cores) * machine.cores / tasks
        # a byte from beyond the cache costs about as much as four multiply-adds
        cost = (work + 4.0 * moved) * idle
        if best is None or cost < best[0]:
            best = cost, cut
    assert best is not None
    return best[1]


def _splits(blocks: int, wanted: int) -> list[int]:
    """Into how many parts the channel blocks may be cut: parts of different numbers of blocks."""
    counts = {ceil(blocks, per) for per in range(1, blocks + 1)}
    return sorted(n for n in counts if n <= max(wanted, 1) or n == 1)


def _pixel_block(g: Geometry, pixels: int, tasks: int, machine: Machine) -> tuple[int, int]:
    """Rows and columns of a task, for about so many tasks per image and group."""
    budget = machine.l2 // 2 // (4 * max(g.depth, 1))  # pixels whose activations fit
    if g.rows == 1:
        columns = ceil(ceil(g.columns, tasks), pixels) * pixels
        columns = min(columns, max(budget // pixels, 1) * pixels)
        return 1, max(min(columns, g.columns), 1)
    rows = max(ceil(g.rows, tasks), 1)
    halo = (g.window[0] - 1) * g.dilations[0] + 1
    fits = max((budget // max(g.width, 1) - halo) // g.strides[0] + 1, 1)
    return min(rows, fits, g.rows), max(g.columns, 1)


def ceil(a: int, b: int) -> int:
    """Ceiling of ``a / b``."""
    return -(-a // b)

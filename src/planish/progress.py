"""Progress of long work on a terminal; silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProgressEvent:
    """Where work stands: a stage, and how much of it is done; `seconds` since the start.

    `total` is 0 where nobody knows how much there is to do.
    """

    stage: str
    done: int
    total: int
    seconds: float


def console_progress() -> tuple[Callable[[ProgressEvent], None] | None, Callable[[], None]]:
    """What to call with each `ProgressEvent`, and what to call at the end.

    Draws one bar with an estimate of the time left on standard error, if that is a terminal.
    """
    if not sys.stderr.isatty():
        return None, lambda: None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}
    bar.start()

    def show(event: ProgressEvent) -> None:
        total = event.total or None  # None: the bar only moves
        if event.stage not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[event.stage] = bar.add_task(event.stage, total=total)
        bar.update(tasks[event.stage], completed=event.done, total=total)

    return show, bar.stop

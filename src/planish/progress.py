"""Progress of long work on a terminal; silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def console_progress() -> tuple[Callable[[Any], None] | None, Callable[[], None]]:
    """What to call with each `ProgressEvent`, and what to call at the end.

    Draws one bar with an estimate of the time left on standard error, if that is a terminal.
    """
    if not sys.stderr.isatty():
        return None, lambda: None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}
    bar.start()

    def show(event: Any) -> None:
        if event.stage not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[event.stage] = bar.add_task(event.stage, total=event.total)
        bar.update(tasks[event.stage], completed=event.done, total=event.total)

    return show, bar.stop

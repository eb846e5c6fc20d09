"""What a plan stored, made a tactic again: `Family.restore` checks parameters with this.

A plan is a file: its parameters may be those of another version or of nobody. A tactic is made
only of a task that its family understands, and of values that the family lists as possible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from planish.errors import PlanError
from planish.fusion.task import Task

Values = Sequence[int] | Sequence[bool] | re.Pattern[str]
"""The possible values of a parameter: integers, `FLAG`, or what its text is like."""
Allowed = Mapping[str, Values]
"""The same of several by name."""

FLAG = (False, True)
"""The possible values of a parameter that is true or false."""


def checked_parameters(
    family: str,
    task: Task,
    parameters: Mapping[str, Any],
    understood: bool,
    **allowed: Values,
) -> dict[str, Any]:
    """The parameters of a tactic, exactly those in `allowed`, each with one of its values.

    Parameters
    ----------
    family : str
        The family's name, for messages.
    task : Task
        What the tactic is to run.
    parameters : mapping
        As the plan stored them.
    understood : bool
        Whether the family offers tactics for tasks of this kind at all.
    **allowed : range, tuple or pattern
        The possible values of each parameter.

    Raises
    ------
    PlanError
        The task is of another kind, a parameter is missing, unknown, or has an impossible value.
    """
    if not understood:
        raise impossible(family, task, f"the family does not compute this {task.kind}")
    if set(parameters) != set(allowed):
        takes, given = (", ".join(sorted(names)) or "none" for names in (allowed, parameters))
        raise impossible(family, task, f"its parameters are {takes}; the plan gives {given}")
    for name, values in allowed.items():
        given = parameters[name]
        if isinstance(values, re.Pattern):
            is_possible = isinstance(given, str) and values.fullmatch(given) is not None
        else:  # bool is an int, and 1.0 == 1
            is_possible = type(given) is type(values[0]) and given in values
        if not is_possible:
            why = f"{name} is {given!r}, which is none of {_shown(values)}"
            raise impossible(family, task, why)
    return dict(parameters)


def impossible(family: str, task: Task, why: str) -> PlanError:
    """The error of a tactic that the family could not have offered for the task."""
    return PlanError(
        f"The plan asks for an impossible {family} kernel",
        where=task.name,
        why=why,
        cure="build the plan again",
    )


def _shown(values: Values) -> str:
    if isinstance(values, re.Pattern):
        return f"those like {values.pattern}"
    if isinstance(values, range):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))

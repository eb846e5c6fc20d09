"""What `planish.build` checks at the door: the kinds of its arguments, and weights that are NaN."""

from __future__ import annotations

import logging
import math
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from planish.errors import InputError
from planish.graph.graph import Graph, Value

log = logging.getLogger("planish")

MOST_NAMES = 5
"""So many tensors are named in a warning, the others counted."""


def checked_inputs(inputs: Any) -> dict[str, Any] | None:
    """The argument `inputs` of `planish.build`.

    Raises
    ------
    InputError
        It is not a mapping from names.
    """
    if inputs is None:
        return None
    if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
        raise InputError(
            "inputs= must be a mapping from the names of inputs to their shapes",
            where="inputs=",
            why=f"it is {_shown(inputs)}",
            cure='pass {"input name": (None, 224, 224, 3)}, or a Profile in place of the shape',
        )
    return dict(inputs)


def checked_outputs(outputs: Any) -> list[str] | None:
    """The argument `outputs` of `planish.build`.

    Raises
    ------
    InputError
        It is not a list of distinct names.
    """
    if outputs is None:
        return None
    listed = isinstance(outputs, Iterable) and not isinstance(outputs, str | bytes)
    names = list(outputs) if listed else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            "outputs= must be a list of names of tensors",
            where="outputs=",
            why=f"it is {_shown(outputs)}",
            cure=f"pass [{outputs!r}]"
            if isinstance(outputs, str)
            else "pass a list of one or more names, or leave it out for the model's own outputs",
        )
    again = [name for i, name in enumerate(names) if name in names[:i]]
    if again:
        raise InputError(
            f"outputs= names {again[0]!r} twice",
            where="outputs=",
            why="an engine gives its outputs by name",
            cure="name each output once",
        )
    return names


def check_limits(
    *,
    threads: Any = None,
    max_workspace_size: Any = None,
    tuning_seconds: Any = None,
    timing_cache: Any = None,
) -> None:
    """The arguments of `planish.build` that limit and help tuning.

    Raises
    ------
    InputError
        A number is none or too small, or the cache is not a path.
    """
    for name, value, least in (
        ("threads", threads, 1),
        ("max_workspace_size", max_workspace_size, 0),
    ):
        if value is not None and not (_is_integer(value) and value >= least):
            raise InputError(
                f"{name}= must be a whole number of at least {least}",
                where=f"{name}=",
                why=f"it is {_shown(value)}",
                cure="leave it out, or pass such a number",
            )
    if tuning_seconds is not None and not _is_duration(tuning_seconds):
        raise InputError(
            "tuning_seconds= must be a number of at least 0",
            where="tuning_seconds=",
            why=f"it is {_shown(tuning_seconds)}",
            cure="leave it out, or pass seconds; 0 builds by heuristics alone",
        )
    if timing_cache is not None and not isinstance(timing_cache, str | os.PathLike):
        raise InputError(
            "timing_cache= must be the path of a file",
            where="timing_cache=",
            why=f"it is {_shown(timing_cache)}",
            cure="leave it out for your own, or pass a path; the file need not exist",
        )


def warn_of_nan(graph: Graph) -> None:
    """Logs a warning that names the weights with NaN in them: most likely a training that failed.

    The model is built all the same and gives NaN where the framework does.
    """
    found = [value.name for value in graph.constants() if _has_nan(value)]
    if found:
        rest = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
        log.warning(
            "the model has weights that are NaN (not a number): %s%s; its results may be NaN too",
            ", ".join(found[:MOST_NAMES]),
            rest,
        )


def _has_nan(value: Value) -> bool:
    data = value.data
    if data is None or not value.dtype.is_float or not data.size:
        return False
    return bool(np.isnan(np.min(data)))  # the minimum of anything and NaN is NaN


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _is_duration(value: Any) -> bool:
    try:
        return not isinstance(value, str | bool) and float(value) >= 0 and not math.isnan(value)
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"

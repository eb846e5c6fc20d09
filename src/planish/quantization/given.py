"""Ranges that users give (TensorRT's `set_dynamic_range`), and made-up ones for trials of speed."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from planish.errors import CalibrationError, InputError
from planish.graph.graph import Graph, Value
from planish.quantization.observe import quantizable
from planish.quantization.ranges import Ranges

log = logging.getLogger("planish")

DUMMY_LIMIT = 6.0
"""The range of every tensor in a trial of speed."""

MOST_NAMES = 10
"""So many tensors are named in a message, the others counted."""


def apply_dynamic_ranges(ranges: Ranges, graph: Graph, given: Mapping[str, Any] | None) -> Ranges:
    """Ranges in which those that a user gives stand in place of others.

    Parameters
    ----------
    ranges : Ranges
        From calibration; ``Ranges({})`` where there was none.
    graph : Graph
        The optimised float32 graph.
    given : mapping of str to (float, float) or float
        By the name of a tensor, or a pattern of names (``"head/*"``): least and greatest, or the
        greatest magnitude. An output may go by the user's name, and TensorFlow's ``":0"`` may stand
        after a name. A name counts more than a pattern; of several patterns the last one.

    Raises
    ------
    InputError
        A name means no tensor, or a range is none.
    """
    if not given:
        return ranges
    names = _names(graph)
    found: dict[str, tuple[float, float]] = {}
    for pattern in sorted(given, key=lambda p: _plain(p) in names):
        limits = _limits(pattern, given[pattern])
        plain = _plain(pattern)
        hit = [names[plain]] if plain in names else _matching(pattern, names)
        if not hit:
            near = difflib.get_close_matches(plain, list(names), 3, 0.5) or list(names)[:3]
            raise InputError(
                f"dynamic_ranges= names no tensor: {pattern!r}",
                where=f"dynamic_ranges[{pattern!r}]",
                why="no floating-point tensor of the optimised network has that name, and none "
                "matches it as a pattern",
                cure=f"near names are {', '.join(map(repr, near))}",
            )
        found.update(dict.fromkeys(hit, limits))
    order = [v.name for v in graph.values()]
    merged = {**ranges.tensors, **found}
    tensors = {name: merged[name] for name in order if name in merged}
    how = f"{ranges.calibrator}, {len(found)} given" if ranges.tensors else "given"
    extremes = {name: e for name, e in ranges.extremes.items() if name not in found}
    return replace(
        ranges,
        tensors=tensors,
        calibrator=how,
        dummy=ranges.dummy - found.keys(),
        extremes=extremes,
    )


def dummy_ranges(graph: Graph, limit: float = DUMMY_LIMIT) -> Ranges:
    """The same made-up range for every tensor: shows how fast INT8 is, with worthless results."""
    tensors = {v.name: (-limit, limit) for v in quantizable(graph)}
    log.warning(
        "INT8 RANGES ARE MADE UP: %d tensors have the range %g to %g, which nobody measured; the "
        "engine shows how fast INT8 is, and its results are worthless",
        len(tensors),
        -limit,
        limit,
    )
    return Ranges(tensors, calibrator="dummy", dummy=frozenset(tensors))


def check_complete(ranges: Ranges, needed: Iterable[Value]) -> None:
    """Whether every tensor that shall be quantized has a range.

    Raises
    ------
    CalibrationError
        Some have none; names them together.
    """
    missing = [value for value in dict.fromkeys(needed) if value.name not in ranges.tensors]
    if not missing:
        return
    names = ", ".join(value.name for value in missing[:MOST_NAMES])
    rest = f" and {len(missing) - MOST_NAMES} more" if len(missing) > MOST_NAMES else ""
    first = missing[0].producer
    raise CalibrationError(
        f"Could not find scales for {len(missing)} tensor(s): {names}{rest}",
        where=(first.origin or first.name) if first else f"input {missing[0].name!r}",
        why=f"{len(ranges.tensors)} tensor(s) have ranges ({ranges.calibrator or 'from nowhere'}), "
        "these have none, and every tensor that is quantized needs one",
        cure="calibrate with data of this model, or add dynamic_ranges={name: (least, greatest)}",
    )


def _names(graph: Graph) -> dict[str, str]:
    """What tensors are called, to the names of their values."""
    found: dict[str, str] = {}
    for value in graph.values():
        if value.dtype.is_float and not value.is_constant:
            found[value.name] = value.name
    for name, value, _ in graph.results():
        if value.dtype.is_float and not value.is_constant:
            found.setdefault(_plain(name), value.name)
    return found


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _matching(pattern: str, names: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(v for k, v in names.items() if fnmatchcase(k, pattern)))


def _limits(name: str, given: Any) -> tuple[float, float]:
    try:
        low, high = (-given, given) if isinstance(given, int | float) else given
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"The dynamic range of {name!r} is {given!r}"[:200],
            where=f"dynamic_ranges[{name!r}]",
            why="a range is two finite numbers, the less one first, or one magnitude above 0",
            cure="pass (-6.0, 6.0), say, or 6.0",
        )
    return min(low, 0.0), max(high, 0.0)

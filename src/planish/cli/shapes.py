"""Shapes on the command line: ``x=8x224x224x3``.

x=8x224x224x3            sizes
x=Nx224x224x3            a name makes a dimension symbolic; ? is symbolic too
x=1..32x224x224x3        a range: least and greatest size (usually the least)
x=1:8:32x224x224x3       least, usual and greatest size
x=scalar                 no dimensions
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import typer

if TYPE_CHECKING:
    from planish.profile import Profile

Shape: TypeAlias = "tuple[int | str | None, ...] | Profile"

_RANGE = re.compile(r"(\d+)(?:\.\.(\d+)|:(\d+):(\d+))")
_FORM = "write NAME=8x224x224x3, with N for a symbolic size and 1..32 or 1:8:32 for a range"


def parse_inputs(specs: Iterable[str]) -> dict[str, Shape]:
    """The shapes of ``NAME=SHAPE`` arguments, by name.

    Raises
    ------
    typer.BadParameter
        An argument is malformed, or a name occurs twice.
    """
    shapes: dict[str, Shape] = {}
    for spec in specs:
        name, equals, text = spec.rpartition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{spec!r} names no input and shape: {_FORM}")
        if name in shapes:
            raise typer.BadParameter(f"input {name!r} is given twice")
        shapes[name] = parse_shape(text)
    return shapes


def parse_shape(text: str) -> Shape:
    """A shape or profile; see the top of this file.

    Raises
    ------
    typer.BadParameter
        The text is malformed.
    """
    if text == "scalar":
        return ()
    parts = text.replace(",", "x").strip("[]()").split("x")
    ranges = [_RANGE.fullmatch(part) for part in parts]
    if not any(ranges):
        return tuple(_dimension(part, text) for part in parts)
    limits = []
    for part, found in zip(parts, ranges, strict=True):
        if found and found[2]:
            limits.append((int(found[1]), int(found[1]), int(found[2])))
        elif found:
            limits.append((int(found[1]), int(found[3]), int(found[4])))
        elif part.isdigit():
            limits.append((int(part),) * 3)
        else:
            raise typer.BadParameter(
                f"in {text!r} the dimension {part!r} has neither a size nor a range, as it must "
                "where another dimension has a range"
            )
    low, usual, high = zip(*limits, strict=True)
    if any(not a <= b <= c for a, b, c in limits):
        raise typer.BadParameter(f"a range in {text!r} is not in rising order")
    from planish.profile import Profile

    return Profile(low, usual, high)


def _dimension(part: str, text: str) -> int | str | None:
    if part.isdigit():
        return int(part)
    if part in ("?", "-1"):
        return None
    if part.isidentifier():
        return part
    raise typer.BadParameter(f"{part!r} in {text!r} is no dimension: {_FORM}")


def parse_bytes(text: str) -> int:
    """A number of bytes: ``1048576``, ``64MB`` (millions), ``64MiB``.

    Raises
    ------
    typer.BadParameter
        The text is malformed.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMG])(i?)B?|B?)", text.strip(), re.IGNORECASE)
    if not found:
        raise typer.BadParameter(f"{text!r} is no number of bytes; write 67108864, 64MB or 64MiB")
    exponent = "KMG".index(found[2].upper()) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** exponent)


def parse_pairs(specs: Iterable[str], form: str) -> dict[str, str]:
    """``KEY=VALUE`` arguments as a dict.

    Raises
    ------
    typer.BadParameter
        An argument is malformed; the message shows `form`.
    """
    pairs = {}
    for spec in specs:
        key, equals, value = spec.rpartition("=")
        if not (key and equals and value):
            raise typer.BadParameter(f"{spec!r} is malformed: write {form}")
        pairs[key] = value
    return pairs


def parse_batches(text: str) -> list[int]:
    """Batch sizes: ``1,8``.

    Raises
    ------
    typer.BadParameter
        The text is malformed.
    """
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdigit() and int(size) for size in sizes):
        raise typer.BadParameter(f"{text!r} are no batch sizes; write 1,8")
    return list(dict.fromkeys(int(size) for size in sizes))

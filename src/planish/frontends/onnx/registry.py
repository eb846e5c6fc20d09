"""The table of converters: which function turns which ONNX operator into our ops.

A converter is registered beside its operator's name and the opset from which on it holds; the
newest one that is not newer than the model's opset is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from planish.frontends.onnx.items import Item

if TYPE_CHECKING:
    from planish.frontends.onnx.context import Conversion

Converter = Callable[["Conversion"], "Item | Sequence[Item]"]
"""Adds the ops for one ONNX node to the graph and returns the node's output(s)."""

_CONVERTERS: dict[tuple[str, str], list[tuple[int, Converter]]] = {}


def converter(*op_types: str, since: int = 1, domain: str = "") -> Callable[[Converter], Converter]:
    """Registers the decorated function for ONNX operators, from opset `since` on."""

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            versions = _CONVERTERS.setdefault((domain, op_type), [])
            versions.append((since, function))
            versions.sort(key=lambda entry: entry[0])
        return function

    return register


def find_converter(op_type: str, domain: str, opset: int) -> Converter | None:
    """The converter of an operator as the given opset defines it, or None."""
    found = None
    for since, function in _CONVERTERS.get((domain, op_type), ()):
        if since <= opset:
            found = function
    return found


def converted_ops() -> list[tuple[str, str]]:
    """Every ``(domain, op type)`` that has a converter, sorted."""
    return sorted(_CONVERTERS)

"""A network's fingerprint: what calibration caches are keyed by.

It holds what decides the ranges of tensors, and nothing else: ops with their attributes, how they
are connected, and the weights. It leaves out

- names, so that a file that is renamed or exported again is the same network;
- sizes: batch and image size, and ops that only give a tensor another shape;
- the last digits of weights: other processors may round sums of a folded weight differently.

Weights count by three numbers of four digits each: their root mean square, their mean, and their
product with a pattern, which sees their order. What these do not see does not change ranges.
"""

from __future__ import annotations

import hashlib

import numpy as np

from planish.graph.dims import Dim
from planish.graph.graph import Graph, Node, Value
from planish.ops import BroadcastTo, Identity, Reshape

SHAPING = (Reshape, BroadcastTo, Identity)
"""Ops that pass on what they are given."""

SIZES = frozenset({"shape", "size", "values", "repeats", "scales"})
"""Attributes that follow from the sizes of the inputs."""

PERIOD = 251
"""Of the pattern that weights are multiplied with; prime, so that no layout repeats it."""

BLOCK = 1 << 20


def fingerprint(graph: Graph) -> str:
    """The fingerprint of an optimised graph, 16 hexadecimal digits."""
    known: dict[Value, str] = {
        value: f"input {place} {value.dtype.value}" for place, value in enumerate(graph.inputs)
    }

    def of(value: Value) -> str:
        if value not in known:
            known[value] = _constant(value)
        return known[value]

    for node in graph.nodes:
        given = [of(value) for value in node.inputs]
        if isinstance(node.op, SHAPING):
            known[node.output] = given[0]
            continue
        own = _digest([node.op.name, *_attributes(node), *given])
        for place, value in enumerate(node.outputs):
            known[value] = f"{own} {place}"
    return _digest([of(value) for _, value, _ in graph.results()])[:16]


def _attributes(node: Node) -> list[str]:
    attributes = node.op.attributes().items()
    return [f"{name}={_text(item)}" for name, item in sorted(attributes) if name not in SIZES]


def _text(item: object) -> str:
    if isinstance(item, Dim):
        return "?"
    if isinstance(item, tuple):
        return f"({' '.join(map(_text, item))})"
    if isinstance(item, float):
        return f"{item:.6g}"
    return repr(item)


def _constant(value: Value) -> str:
    data = np.asarray(value.data)
    if not value.dtype.is_float:
        return f"{value.dtype.value} {_digest([_unrepeated(data).tobytes().hex()])}"
    flat = data.reshape(-1)
    sums = np.zeros(3)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK].astype(np.float64)
        places = np.arange(start, start + part.size)
        pattern = (places % PERIOD) / (PERIOD - 1) - 0.5
        sums += [part @ part, part.sum(), part @ pattern]
    size = max(flat.size, 1)
    scale = float(np.sqrt(sums[0] / size))
    if not scale or not np.isfinite(scale):
        return f"constant {scale}"
    mean, ordered = sums[1] / size / scale, sums[2] / np.sqrt(size) / scale
    return f"constant {scale:.4g} {mean + 0.0:.4f} {ordered + 0.0:.4f}"


def _unrepeated(data: np.ndarray) -> np.ndarray:
    """An array without what it repeats along an axis: positions for each row of a batch, say."""
    for axis in range(data.ndim):
        first = data.take([0], axis) if data.shape[axis] > 1 else data
        if data.shape[axis] > 1 and np.all(data == first):
            data = first
    return np.ascontiguousarray(data)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

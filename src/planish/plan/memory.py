"""Plans the arena: which bytes a tensor gets, given when it lives.

Tensors that live at the same time must not overlap. Placing the largest first, each at the lowest
place that is free during its life, comes close to the largest live set (Pisarchyk & Lee, "Efficient
Memory Management for Deep Neural Net Inference", arXiv:2001.03288, "greedy by size"); a second
order, by the most crowded moment, helps where it does not. The better of the two is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A tensor's bytes, and the first and last step that touch it."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes, in the order of the lifetimes given, and the bytes needed in all."""

    offsets: tuple[int, ...]
    size: int


def largest_live_set(tensors: Sequence[Lifetime]) -> int:
    """The most bytes alive at any step: no arena can be smaller."""
    changes: dict[int, int] = {}
    for tensor in tensors:
        changes[tensor.first] = changes.get(tensor.first, 0) + _aligned(tensor.size)
        changes[tensor.last + 1] = changes.get(tensor.last + 1, 0) - _aligned(tensor.size)
    alive = most = 0
    for step in sorted(changes):
        alive += changes[step]
        most = max(most, alive)
    return most


def plan_arena(tensors: Sequence[Lifetime]) -> Arena:
    """Places tensors in an arena, each at a multiple of `ALIGNMENT` bytes."""
    crowd = _crowding(tensors)
    orders: list[Callable[[int], tuple]] = [
        lambda i: (-tensors[i].size, tensors[i].first, i),
        lambda i: (-crowd[i], -tensors[i].size, i),
        lambda i: (tensors[i].first, -tensors[i].size, i),
    ]
    plans = [_place(tensors, sorted(range(len(tensors)), key=order)) for order in orders]
    return min(plans, key=lambda plan: plan.size)


def _place(tensors: Sequence[Lifetime], order: Sequence[int]) -> Arena:
    offsets = [0] * len(tensors)
    placed: list[int] = []
    size = 0
    for i in order:
        tensor = tensors[i]
        busy = sorted(
            (offsets[j], offsets[j] + _aligned(tensors[j].size))
            for j in placed
            if tensors[j].first <= tensor.last and tensor.first <= tensors[j].last
        )
        best: tuple[int, int] | None = None  # (gap, offset): the tightest gap that is large enough
        end = 0
        need = _aligned(tensor.size)
        for start, stop in busy:
            if start - end >= need and (best is None or start - end < best[0]):
                best = start - end, end
            end = max(end, stop)
        offsets[i] = best[1] if best else end
        size = max(size, offsets[i] + need)
        placed.append(i)
    return Arena(tuple(offsets), size)


def _crowding(tensors: Sequence[Lifetime]) -> list[int]:
    """For each tensor the most bytes alive at any step of its life."""
    last = max((t.last for t in tensors), default=-1)
    alive = [0] * (last + 2)
    for tensor in tensors:
        for step in range(tensor.first, tensor.last + 1):
            alive[step] += _aligned(tensor.size)
    return [max(alive[t.first : t.last + 1]) for t in tensors]


def _aligned(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT

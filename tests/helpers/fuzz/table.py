"""The table of specs, and what they share.

A spec is a function of a `Draft` that gives an op and its operands, or raises `Skip` where what
there is does not do.
"""

from __future__ import annotations

from collections.abc import Callable

from helpers.fuzz.draft import NUMBERS, Draft, Skip, is_static
from helpers.fuzz.recipe import Ref
from planish.ops.base import Op

Choice = tuple[Op, tuple[Ref, ...]]
Spec = Callable[[Draft], Choice]

SPECS: dict[str, Spec] = {}
"""Specs by the op's name."""


def spec(*names: str) -> Callable[[Spec], Spec]:
    """Registers a spec for ops."""

    def register(function: Spec) -> Spec:
        SPECS.update(dict.fromkeys(names, function))
        return function

    return register


def axis_of(d: Draft, rank: int) -> int:
    """An axis, counted from either end."""
    if rank == 0:
        raise Skip
    return d.integer(-rank, rank - 1)


def axes_of(d: Draft, rank: int) -> tuple[int, ...]:
    """One or more axes."""
    count = d.integer(1, max(rank, 1))
    if rank == 0:
        raise Skip
    return tuple(int(a) for a in d.rng.permutation(rank)[:count])


def image(d: Draft, dtypes=NUMBERS, ranks=(3, 4), least: int = 1) -> Ref:
    """Activations ``[N, *spatial, C]`` whose spatial dimensions and channels are known."""

    def fits(v) -> bool:
        return all(is_static(n) and n >= least for n in v.shape[1:])

    return d.pick(dtypes, ranks, fits)


def window_of(d: Draft, ref: Ref) -> tuple[list[int], tuple, tuple, tuple]:
    """A window that fits the activations: sizes, strides, padding, dilations."""
    spatial = [int(n) for n in d.value(ref).shape[1:-1]]  # type: ignore[arg-type]
    window = [d.one_of([1, 2, 3, 3, 5]) for _ in spatial]
    strides = tuple(d.one_of([1, 1, 2, 3]) for _ in spatial)
    dilations = tuple(d.one_of([1, 1, 1, 2]) for _ in spatial)
    padding = tuple((d.integer(0, w // 2 + 1), d.integer(0, w // 2 + 1)) for w in window)
    if d.chance(0.4):
        padding = tuple((0, 0) for _ in window)
    for n, w, s, (before, after) in zip(spatial, window, dilations, padding, strict=True):
        if n + before + after < (w - 1) * s + 1:
            raise Skip
    return window, strides, padding, dilations

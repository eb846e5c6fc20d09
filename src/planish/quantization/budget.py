"""The accuracy budget: which layers stay in float32, and what each of them buys.

Layers are given back their floats in order, those that cost least time first, until the metric is
within the budget; then those that turn out not to be needed become integers again, those that cost
most time first. What is left is as few as it takes, in the sense that none can be left out alone.

All this takes the metric as it is. Of many sets of layers whose scores differ by chance, some look
good by chance, and such a search finds them: on other samples they lose more. `surely.py` is for
metrics that know their samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

log = logging.getLogger("planish")


@dataclass(frozen=True)
class Kept:
    """A layer that stays in float32 for the sake of accuracy.

    Attributes
    ----------
    layer : str
    seconds : float
        What that costs; NaN where it was not measured.
    gain : float
        What it buys: how much the metric falls without it, all else as chosen; its share, where it
        was tried together with others.
    """

    layer: str
    seconds: float
    gain: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    kept : tuple of Kept
    score : float
        The metric with these layers kept.
    doubt : str
        What more samples might change; "" where it is not their number that keeps layers.
    """

    kept: tuple[Kept, ...]
    score: float
    doubt: str = ""


def keep_within(
    layers: Sequence[str],
    costs: dict[str, float],
    score_without: Callable[[frozenset[str]], float],
    least: float,
) -> Found:
    """Layers to keep in float32.

    Parameters
    ----------
    layers : sequence of str
        Those that are quantized otherwise, the cheapest to keep first.
    costs : dict of str to float
        Seconds that keeping each costs.
    score_without : callable
        The metric where these layers are not quantized.
    least : float
        What it must reach.

    Returns
    -------
    Found
        With all layers kept where nothing less is enough.
    """
    known: dict[frozenset[str], float] = {}

    def score(kept: Sequence[str]) -> float:
        key = frozenset(kept)
        if key not in known:
            known[key] = score_without(key)
            log.info("accuracy: %d layer(s) in fp32: %g", len(key), known[key])
        return known[key]

    count = 0
    while count < len(layers) and score(layers[:count]) < least:
        count = min(max(2 * count, 1), len(layers))
    low, high = count // 2, count  # too few, unless it is 0; enough
    while high - low > 1:
        middle = (low + high) // 2
        if score(layers[:middle]) < least:
            low = middle
        else:
            high = middle
    kept = list(layers[:high])
    gains: dict[str, float] = {}
    for layer in reversed(layers[:high]):
        others = [name for name in kept if name != layer]
        gains[layer] = score(kept) - score(others)
        if score(others) >= least:
            kept = others
    best = score(kept)
    found = tuple(Kept(name, costs.get(name, float("nan")), gains[name]) for name in kept)
    return Found(found, best)

"""The accuracy budget of a metric that knows its samples: kept by what the samples can tell.

A set of layers that loses little on a few hundred samples may lose more on others, the more so the
more sets were tried. Two things keep chance out. The loss has to be within the budget by its
standard error. And few sets are tried, which the order of the layers gives, not their scores: the
first so many stay in float32, by bisection, so that every larger set that was tried is within the
budget as well.

Groups of these layers are then tried as integers again, as many times at most as the bisection
took. Such tries look for luck, so they have to be within the budget by twice the error; with too
few samples for that none is made.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from planish.quantization.budget import Found, Kept
from planish.quantization.scores import Loss, Scores, paired_loss

log = logging.getLogger("planish")


def keep_surely(
    layers: Sequence[str],
    costs: dict[str, float],
    score_without: Callable[[frozenset[str]], Scores],
    exact: Scores,
    budget: float,
) -> Found:
    """Layers to keep in float32.

    Parameters
    ----------
    layers, costs, score_without
        As `keep_within` takes them; the metric as its samples' scores.
    exact : Scores
        The metric in float32, of the same samples.
    budget : float
        How much less than that it may be.

    Returns
    -------
    Found
        As `keep_within` gives it.
    """
    tries = _Tries(score_without, exact, budget)
    cuts = _bisected(layers, tries)
    kept = tuple(layers[: cuts[-1]])
    groups = [kept[a:b] for a, b in pairwise(cuts)]
    gains: dict[str, float] = {}
    for a, b in pairwise(cuts):
        gains |= dict.fromkeys(kept[a:b], tries.gain(kept[:b], kept[:a]) / (b - a))
    loss = tries.loss(kept)
    left = math.ceil(math.log2(len(layers) + 1))
    if not loss.within(budget) or 2 * loss.unit > budget:
        left = 0
    while groups and left:
        groups.sort(key=len)
        group = groups.pop()
        others = tuple(name for name in kept if name not in group)
        left -= not tries.knows(others)
        if tries.loss(others).well_within(budget):
            kept = others
            continue
        gains |= dict.fromkeys(group, tries.gain(kept, others) / len(group))
        half = len(group) // 2
        groups += [group[:half], group[half:]] if half else []
    found = tuple(Kept(name, costs.get(name, float("nan")), gains[name]) for name in kept)
    return Found(found, tries.score(kept), tries.doubt())


class _Tries:
    """What was tried, by the layers that were kept."""

    def __init__(
        self,
        score_without: Callable[[frozenset[str]], Scores],
        exact: Scores,
        budget: float,
    ) -> None:
        self.budget = budget
        self._score_without, self._exact = score_without, exact
        self._known: dict[frozenset[str], tuple[Scores, Loss]] = {}

    def knows(self, kept: Sequence[str]) -> bool:
        return frozenset(kept) in self._known

    def score(self, kept: Sequence[str]) -> Scores:
        return self._try(kept)[0]

    def loss(self, kept: Sequence[str]) -> Loss:
        return self._try(kept)[1]

    def gain(self, kept: Sequence[str], others: Sequence[str]) -> float:
        return self.score(kept) - self.score(others)

    def _try(self, kept: Sequence[str]) -> tuple[Scores, Loss]:
        key = frozenset(kept)
        if key not in self._known:
            score = self._score_without(key)
            loss = paired_loss(self._exact, score)
            words = "accuracy: %d layer(s) in fp32: %g, which is %.3g ± %.2g less than in fp32"
            log.info(words, len(key), score, loss.mean, loss.error)
            self._known[key] = score, loss
        return self._known[key]

    def doubt(self) -> str:
        """In words, the fewest layers that would be enough, did the loss stay on more samples."""
        unsure = {
            len(kept): loss
            for kept, (_, loss) in self._known.items()
            if loss.mean < self.budget and not loss.within(self.budget)
        }
        if not unsure:
            return ""
        count = min(unsure)
        loss = unsure[count]
        enough = float(f"{loss.enough(self.budget):.2g}")
        return (
            f"with {count} layer(s) in fp32 the metric loses {loss.mean:.3g} ± {loss.error:.2g}: "
            f"{loss.samples} samples are too few to tell that it is within the budget of "
            f"{self.budget:g}; about {enough:.0f} might"
        )


def _bisected(layers: Sequence[str], tries: _Tries) -> list[int]:
    """Counts of first layers: 0, more that are not enough, and the least that is."""
    if tries.loss(()).within(tries.budget):
        return [0]
    cuts, high = [0], len(layers)
    while high - cuts[-1] > 1:
        middle = (cuts[-1] + high) // 2
        if tries.loss(layers[:middle]).within(tries.budget):
            high = middle
        else:
            cuts.append(middle)
    return [*cuts, high] if high else cuts

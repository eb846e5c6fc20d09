"""What tuning knows of a task at certain sizes: its tactics, and their times as far as known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planish.fusion.task import Task
from planish.precision.permissions import FLOATS
from planish.targets.base import Binding, Tactic
from planish.targets.reference import ReferenceTactic
from planish.tuning.measure import HOPELESS

SHORTLIST = 5
"""At other sizes than the usual ones only so many of the usual sizes' fastest are measured."""

FAR = 1.5
"""A family whose best time so far is so many times the best of all is measured further last. In 70
tasks of ResNet-50 and BERT on an H200 whose tactics all were measured, none held the best one but
once, by 0.3 %.
"""

SETTLED = "settled"
"""In the timing cache, the largest budget within which a task was ever tuned."""


@dataclass
class Entry:
    """A distinct task at one binding: its tactics, and their times as far as known."""

    task: Task
    binding: Binding
    key: str
    tactics: list[Tactic]
    precisions: frozenset[str]
    guess: float
    """Seconds it is taken to need where it was not measured."""
    cold: bool = False
    """Whether it is measured with its operands in memory, for a network larger than the caches."""
    times: dict[int, float] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    expected: list[np.ndarray] | None = None

    shortlist: list[int] | None = None

    def unknown(self) -> list[int]:
        """The tactics worth measuring that are neither timed nor rejected, likely best first: as
        they were offered, but last those of families that are far from the best one so far.
        """
        order = range(len(self.tactics)) if self.shortlist is None else self.shortlist
        least: dict[str, float] = {}
        for i, seconds in self.times.items():
            family = self.tactics[i].family
            least[family] = min(seconds, least.get(family, seconds))
        limit = FAR * min(least.values(), default=0.0)
        left = [i for i in order if i not in self.times and i not in self.rejected]
        return sorted(left, key=lambda i: least.get(self.tactics[i].family, 0.0) > limit)

    def firsts(self) -> list[int]:
        """Of each family the tactic that is measured first, where it is not known yet."""
        first: dict[str, int] = {}
        for i, tactic in enumerate(self.tactics):
            first.setdefault(tactic.family, i)
        unknown = set(self.unknown())
        return [i for i in first.values() if i in unknown]

    def shorten(self, usual: Entry) -> None:
        """Keeps the tactics that are fastest at the usual sizes, and the likeliest at these; drops
        those found wrong there.
        """
        self.drop(usual.wrong())
        ranked = sorted(usual.times, key=lambda i: (usual.times[i], i))[:SHORTLIST]
        if ranked and usual is not self and self.shortlist is None:
            names = [str(usual.tactics[i]) for i in ranked]
            kept = [i for i, t in enumerate(self.tactics) if str(t) in names or i < 2]
            self.shortlist = kept

    def wrong(self) -> set[str]:
        """The tactics rejected here."""
        return {str(self.tactics[i]) for i in self.rejected}

    def drop(self, wrong: set[str]) -> None:
        """Rejects tactics that are wrong elsewhere, even those timed here."""
        self.rejected |= {i for i, t in enumerate(self.tactics) if str(t) in wrong}
        for i in self.rejected:
            self.times.pop(i, None)

    def sane(self) -> dict[str, bool]:
        """For each tactic timed here, whether its time is within reach of the best one's."""
        limit = HOPELESS * min(self.times.values(), default=0.0)
        return {str(self.tactics[i]): seconds <= limit for i, seconds in self.times.items()}

    @property
    def settled_key(self) -> str:
        """Where the timing cache keeps what budget was spent on these tactics."""
        more = sorted(self.precisions - FLOATS.keys())  # dtypes stand in the key
        return " ".join((self.key, SETTLED, *more))

    @property
    def has_tactics(self) -> bool:
        """Whether there is a tactic that was not rejected."""
        return len(self.rejected) < len(self.tactics)

    def best(self) -> tuple[Tactic, float | None]:
        """The fastest tactic measured; the first one offered where none was."""
        if self.times:
            extra = [tactic.extra_seconds for tactic in self.tactics]
            index = min(self.times, key=lambda i: (self.times[i] + extra[i], i))
            return self.tactics[index], self.times[index]
        for i, tactic in enumerate(self.tactics):
            if i not in self.rejected:
                return tactic, None
        return ReferenceTactic(self.task), None


def ordered(
    likely: Sequence[Entry], entries: Sequence[Entry], seconds: Callable[[Entry], float]
) -> list[tuple[Entry, bool]]:
    """Each entry once, and whether it is a likely one: those first, then what takes most in all.

    Equal tasks share an entry, which then stands several times in `likely`.
    """
    uses = Counter(map(id, likely))
    distinct = {id(entry): entry for entry in entries}
    order = sorted(distinct, key=lambda i: (i not in uses, -max(uses[i], 1) * seconds(distinct[i])))
    return [(distinct[i], i in uses) for i in order]

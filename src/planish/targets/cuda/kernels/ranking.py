"""How the best elements of rows are found: which launches, and what memory they take.

Blocks of rows are sorted and the best of each kept. While more than a block is left, the results of
blocks are blocks again, or where most of a block is kept, runs that are merged two by two: either
way the work grows as n log n, and no launch depends on what the data are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planish.targets.base import Launch, Pointer, Workspace
from planish.targets.cuda.kernels.nest import power_of_two
from planish.targets.cuda.kernels.ranking_kernel import BestKernel, MergeKernel, Ranked

_ALIGNMENT = 256
"""Bytes to which parts of the workspace are aligned."""
_MERGED = 1024
"""Tickets that a program of `MergeKernel` places."""
_SHRINKS = 4
"""Blocks are sorted again where their results are so many times fewer."""


def warps_for_block(block: int) -> int:
    """Warps that sort a block: more than four elements of a thread make much code."""
    return max(1, min(16, block // 128))


@dataclass(frozen=True)
class Level:
    """Sorted runs of tickets, ``[rows, runs, each]``."""

    runs: int
    each: int

    @property
    def tickets(self) -> int:
        """Of a row."""
        return self.runs * self.each


@dataclass(frozen=True)
class Ranking:
    """The best `keep` tickets of each row, in descending order.

    Attributes
    ----------
    parts : int
        Integers of a ticket.
    rows, length, keep : int
        Rows, elements of each, and how many are wanted.
    block : int
        Elements that are sorted at once: a power of two.
    warps : int
    base : int
        Where its part of the workspace starts.
    """

    parts: int
    rows: int
    length: int
    keep: int
    block: int
    warps: int
    base: int = 0

    @property
    def columns(self) -> int:
        """Elements of a block."""
        return min(self.block, power_of_two(self.length))

    @property
    def together(self) -> int:
        """Blocks of a program."""
        return max(1, min(self.block // self.columns, power_of_two(self.rows)))

    def levels(self) -> list[Level]:
        """What is left after each launch; at last one run, of `keep` if the rows have so many."""
        found = [self._sorted(self.length)]
        while found[-1].runs > 1:
            last = found[-1]
            if self._sorts(last):
                found.append(self._sorted(last.tickets))
            else:
                found.append(Level(-(-last.runs // 2), min(self.keep, 2 * last.each)))
        return found

    @property
    def stride(self) -> int:
        """Tickets from one row of the result to the next."""
        return self.levels()[-1].tickets

    @property
    def workspace(self) -> int:
        """Bytes: what one launch reads and what it writes lie in different halves."""
        return 2 * self._half

    @property
    def result(self) -> tuple[Workspace, ...]:
        """Pointers to the parts of the result."""
        return self._memory(len(self.levels()) - 1)

    def launches(self, source: Ranked | None, given: tuple[Pointer, ...]) -> list[Launch]:
        """The launches, from elements (or tickets, without `source`) behind the pointers."""
        levels = self.levels()
        launches = [self.best(source, given, self.length, levels[0], 0)]
        for number, (before, after) in enumerate(pairwise(levels)):
            read = self._memory(number)
            if self._sorts(before):
                launches.append(self.best(None, read, before.tickets, after, number + 1))
                continue
            programs = -(-before.tickets // _MERGED)
            numbers = (before.tickets, before.each, after.each, before.runs, after.runs, programs)
            kernel = MergeKernel(4, 1, self.parts, _MERGED)
            pointers = (*read, *self._memory(number + 1))
            launches.append(Launch(kernel, pointers, numbers, self.rows * programs))
        return launches

    def best(
        self,
        source: Ranked | None,
        given: tuple[Pointer, ...],
        length: int,
        after: Level,
        number: int,
    ) -> Launch:
        """The launch that sorts blocks of rows of that length."""
        columns = min(self.block, power_of_two(length))
        together = max(1, min(self.block // columns, power_of_two(self.rows)))
        kernel = BestKernel(
            self.warps, 1, self.parts, source, together, columns, min(after.each, columns)
        )
        units = self.rows * after.runs
        numbers = (units, length, after.runs)
        pointers = (*given, *self._memory(number))
        return Launch(kernel, pointers, numbers, -(-units // together))

    def _sorts(self, level: Level) -> bool:
        """Whether the runs of a level become blocks, rather than being merged."""
        return level.tickets <= self.block or _SHRINKS * self.keep <= self.block

    def _sorted(self, length: int) -> Level:
        columns = min(self.block, power_of_two(length))
        return Level(-(-length // columns), min(self.keep, columns))

    @property
    def _half(self) -> int:
        most = max(level.tickets for level in self.levels())
        return self.parts * self._part(most)

    def _part(self, tickets: int) -> int:
        """Bytes of one part of all tickets."""
        return -(-8 * self.rows * tickets // _ALIGNMENT) * _ALIGNMENT

    def _memory(self, number: int) -> tuple[Workspace, ...]:
        """The pointers behind which a launch of that number writes."""
        most = max(level.tickets for level in self.levels())
        start = self.base + number % 2 * self._half
        return tuple(Workspace(start + i * self._part(most)) for i in range(self.parts))

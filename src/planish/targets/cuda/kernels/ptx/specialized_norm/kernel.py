"""The matrix kernel with specialised warps whose result's rows are normalized before it is stored.

A *team* of blocks holds all columns of the same rows, each a tile of them. When a group has the
sums of its tile, with bias and residual, it computes each row's mean and squared deviations of its
own columns, and gives them to the other blocks of the team, so that every block knows those of
whole rows. They are put together as Chan, Golub & LeVeque do ("Updating formulae and a pairwise
algorithm for computing sample variances", 1979): what is summed are squares of deviations from a
mean, never of the numbers themselves, which stay in registers meanwhile, rounded as the tensor
between would be. The other group's products go on.

A team is no cluster of Hopper's: of clusters of four blocks an H200 runs 30 at once, which leaves
12 of its 132 multiprocessors without work. Blocks exchange through global memory, which is to say
the second-level cache. A number's bits are stored turned over, which makes a zero of none that
arithmetic gives; so a number is there when its place is no longer zero, whichever order stores
arrive in, and whoever has read it writes the zero again that the next launch begins with.

Blocks of a team wait for one another, so all of them must run. Other kernels may hold the
multiprocessors that some need; these end, if they are not kept up by blocks that never begin. Hence
blocks take numbers in the order in which they begin, and teams are of successive numbers: of each
launch all teams but one are complete, and go on until they end.

Boxes of a group's ring come in the same order for each tile: first those that the residual is
loaded into, if there is one, or that the normalized sum is stored from, if others read it, too;
then those of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from planish.graph.types import DType
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.specialized.kernel import SpecializedKernel, mapped_pointer
from planish.targets.cuda.kernels.ptx.specialized.tiles import BARRIER
from planish.targets.cuda.kernels.ptx.specialized_norm.writer import TICKETS, NormWriter

STATE = 8
"""Bytes of a row's mean and squared deviations."""


class Use(NamedTuple):
    """What happens to a box of a tile: the numbers of the pointers that it is loaded from and
    stored to, if it is; which of the tile's boxes it is.
    """

    box: int
    loaded: int | None
    stored: int | None


@dataclass(frozen=True, kw_only=True)
class NormKernel(SpecializedKernel):
    """One specialisation. Parameter: the rows.

    Attributes
    ----------
    result : Work
        Makes of sums of products what is normalized; its output, if there is one, is that.
    after : Work
        Makes the result of normalized numbers: scale, offset, and the rest.
    epsilon : float
    width : int
        Columns of a box of the result.

    The last pointer, of teams of several blocks, is to memory that is zero between launches.
    """

    family = "specialized_norm"

    after: Work
    epsilon: float
    width: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        whole = {self.residual_pointer, self.kept_pointer, self.output_pointer}
        rest = [
            mapped_pointer(a.pointer, self._result_map(a)) if i in whole else a.pointer
            for i, a in enumerate(self._items, 2)
        ]
        states = [Pointer(DType.INT32, aligned=True)] if self.column_tiles > 1 else []
        return (*self.factors, *rest, *states)

    @property
    def _items(self) -> list[Access]:
        leaves = (*self.result.leaves, *self.after.leaves)
        outputs = (*self.after.outputs, *self.result.outputs)
        return [a for a in (*leaves, *outputs) if a is not None]

    @property
    def after_pointer(self) -> int:
        """The number of the pointer of `after`'s first leaf."""
        return 2 + sum(a is not None for a in self.result.leaves)

    @property
    def output_pointer(self) -> int:
        """The number of the result's pointer."""
        return self.after_pointer + sum(a is not None for a in self.after.leaves)

    @property
    def kept_pointer(self) -> int | None:
        """The number of the pointer to what is normalized, if others read it."""
        return self.output_pointer + 1 if self.result.outputs else None

    @property
    def residual_pointer(self) -> int | None:
        """The number of the residual's pointer."""
        return None if self.residual is None else 2 + self.place_of(self.residual)

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """Of the boxes of a group's ring, in the order of a tile."""
        loaded, kept = self.residual_pointer, self.kept_pointer
        boxes = range(self.boxes)
        before = boxes if loaded is not None or kept is not None else ()
        last = [Use(box, None, self.output_pointer) for box in boxes]
        return (*(Use(box, loaded, kept) for box in before), *last)

    @property
    def inner(self) -> DType:
        """Of what is normalized."""
        work = self.result.expression
        return work.dtype(work.results[0])

    @property
    def size(self) -> int:
        return self.after.outputs[0].pointer.dtype.size

    @property
    def neighbours(self) -> int:
        return self.width

    @property
    def state_bytes(self) -> int:
        """What a block of a team is given of another one's tile."""
        return self.tile.rows * STATE

    def memory_of_teams(self, rows: int) -> int:
        """Bytes of the last pointer's memory, for so many rows."""
        team, tiles = self.column_tiles, ceil(rows, self.tile.rows)
        return TICKETS + tiles * team * (team - 1) * self.state_bytes if team > 1 else 0

    @property
    def ticket(self) -> int:
        """Where in shared memory a block's number is."""
        return self.barriers + BARRIER * self.frame_barriers

    @property
    def shared(self) -> int:
        return self.ticket + BARRIER

    def text(self) -> str:
        return NormWriter(self).write()

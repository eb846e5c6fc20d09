"""The distinct elements of a vector: which launches, and what lies where; see `unique_kernel`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.task import Task
from planish.ops.data_dependent import Unique
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.kernels.compaction import CountKernel, Pieces, most_pieces
from planish.targets.cuda.kernels.fused import WIDE, Access
from planish.targets.cuda.kernels.nest import Operand
from planish.targets.cuda.kernels.ranking import Ranking, warps_for_block
from planish.targets.cuda.kernels.ranking_kernel import Ranked
from planish.targets.cuda.kernels.sorting import part_count
from planish.targets.cuda.kernels.unique_kernel import (
    DistinctKernel,
    Firsts,
    GroupKernel,
    Heads,
    OrderKernel,
)
from planish.targets.restoring import Allowed

BLOCKS = (64, 256, 512, 1024, 2048)
"""Elements that a program may sort, or do at a time."""
_ALIGNMENT = 256


@dataclass(frozen=True)
class Distinct(AnchoredTactic):
    """Sorting, numbering what is equal, and writing."""

    family: ClassVar[str] = "unique"

    block: int

    def accepts(self, binding: Binding) -> bool:
        return binding.shape(self.task.inputs[0])[0] < WIDE

    def workspace(self, binding: Binding) -> int:
        return self._memory(binding)["end"].offset

    def launches(self, binding: Binding) -> list[Launch]:
        op, (x,) = self.anchor.op, self.task.inputs
        assert isinstance(op, Unique)
        ranking, memory, block = self._ranking(binding), self._memory(binding), self.block
        access = _access(self.task, binding)
        one_row = replace(access[0], strides=(0, *access[0].strides))
        pieces, parts = Pieces(ranking.length, block), ranking.parts
        counts, groups, starts, firsts = (
            memory[name] for name in ("counts", "groups", "starts", "firsts")
        )
        heads, most = Heads(parts), most_pieces(pieces)
        sorted_ = ranking.result
        group = GroupKernel(4, 1, heads, block, most, parts)
        launches = [
            *ranking.launches(Ranked(x.dtype, one_row, (-1,), False), (x,)),
            pieces.launch(CountKernel(4, 1, heads, block), (*sorted_, counts)),
            pieces.launch(
                group,
                (*sorted_, counts, *sorted_, groups, starts, firsts, self.task.outputs[4]),
                pieces.number,
            ),
        ]
        reordered: tuple[Workspace, ...] = ()
        if not op.sorted:
            marks, looked = Firsts(), (groups, firsts)
            reordered = (memory["order"], memory["ranks"])
            order = OrderKernel(4, 1, marks, block, most)
            launches += [
                pieces.launch(CountKernel(4, 1, marks, block), (*looked, counts)),
                pieces.launch(order, (*looked, counts, groups, *reordered), pieces.number),
            ]
        write = DistinctKernel(4, 1, access[0], access[1:], op.sorted, block)
        pointers: tuple[Pointer, ...] = (
            x,
            self.task.outputs[4],
            groups,
            starts,
            firsts,
            *reordered,
            *self.task.outputs[:4],
        )
        programs = -(-ranking.length // block)
        return [*launches, Launch(write, pointers, (ranking.length,), programs)]

    def _ranking(self, binding: Binding) -> Ranking:
        (x,) = self.task.inputs
        (length,) = binding.shape(x)
        warps = warps_for_block(self.block)
        return Ranking(part_count(x.dtype), 1, length, length, self.block, warps)

    def _memory(self, binding: Binding) -> dict[str, Workspace]:
        """Where vectors of int32 lie behind the tickets, and where they end."""
        ranking = self._ranking(binding)
        each = -(-4 * (ranking.length + 1) // _ALIGNMENT) * _ALIGNMENT
        start = -(-ranking.workspace // _ALIGNMENT) * _ALIGNMENT
        counts = -(-4 * Pieces(ranking.length, self.block).number // _ALIGNMENT) * _ALIGNMENT
        names = ("groups", "starts", "firsts", "order", "ranks", "end")
        found = {n: Workspace(start + counts + i * each) for i, n in enumerate(names)}
        return {"counts": Workspace(start), **found}


def _access(task: Task, binding: Binding) -> tuple[Access, ...]:
    """The input's, and those of all outputs but the count."""
    values = (*task.inputs, *task.outputs[:4])
    return tuple(Operand.of(v, binding).access() for v in values)


class UniqueFamily(Family):
    """`Unique` of any dtype."""

    name: ClassVar[str] = "unique"
    tactic: ClassVar[type[Tactic]] = Distinct
    allowed: ClassVar[Allowed] = {"block": BLOCKS}

    def understands(self, task: Task) -> bool:
        anchor = task.anchor
        return anchor is not None and isinstance(anchor.op, Unique) and len(task.nodes) == 1

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for block in (1024, 512, 2048):
            yield Distinct(task, block)


FAMILIES: tuple[Family, ...] = (UniqueFamily(),)

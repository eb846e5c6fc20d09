"""The kernel of hard non-maximum suppression: one class of one image a program.

Candidates come sorted. A block of them is compared with all boxes that are kept so far, and then
with each other. Which of a block stay is found for all at once: one stays unless an earlier one
that stays overlaps it. From any guess that rule gives a better one; after as many rounds as the
longest chain of boxes that suppress one another (a few) nothing changes any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import constant
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.nest import COLUMNS, ROWS, reduced, running_sum
from planish.targets.cuda.kernels.overlaps import Boxes
from planish.targets.cuda.kernels.sorting import PART, load_tickets, part_count, place_of

NUMBER = Pointer(DType.INT32)
"""A pointer to numbers of boxes, and to how many there are."""


@dataclass(frozen=True)
class SuppressKernel(TritonKernel):
    """Writes the numbers of the boxes that are kept, how many they are, and for each a key.

    Attributes
    ----------
    boxes : Boxes
    iou_threshold : float
    block : int
        Candidates at a time, and kept boxes that they are compared with at a time.

    Pointers: boxes; the parts of the candidates' tickets ``[rows, stride]``; what is written:
    numbers ``[rows, limit]``, counts ``[rows]``, and tickets of the kept ones, whose positions are
    those among all classes of an image, ``[rows, limit]``.
    Parameters: candidates, the stride of their rows, classes, the limit of a row.
    """

    family = "suppress"

    boxes: Boxes
    iou_threshold: float
    block: int

    @property
    def _parts(self) -> int:
        return part_count(self.boxes.pointer.dtype)

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        tickets = (PART,) * self._parts
        return (self.boxes.pointer, *tickets, NUMBER, NUMBER, *tickets)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,) * 4

    def write(self, k: Source) -> None:
        parts, block = self._parts, self.block
        number, count = 1 + parts, 2 + parts
        row = k.let("row", "tl.program_id(0)")
        image, label = k.let("image", f"{row} // n2"), k.let("label", f"{row} % n2")
        first = k.let("first", f"{row}.to(tl.int64) * n3")
        lane = k.let("lane", f"tl.arange(0, {block})")
        start, kept = k.let("start", f"{row} * 0"), k.let("kept", f"{row} * 0")
        with k.block(f"while ({start} < n0) & ({kept} < n3):"):
            place = k.let("place", f"{start} + {lane}")
            inside = k.let("inside", f"{place} < n0")
            at = f"{row}.to(tl.int64) * n1 + {place}"
            ticket = load_tickets(k, 1, parts, at, inside)
            box = place_of(k, ticket)
            alive = k.let("alive", f"{box} >= 0")
            candidates = k.let("candidates", reduced(f"{alive}.to(tl.int32)", "sum"))
            mine = self.boxes.corners(k, 0, image, box, label, alive)
            rows, columns = mine.seen(k, ROWS), mine.seen(k, COLUMNS)
            with k.block(f"for other in range(0, {kept}, {block}):"):
                known = k.let("known", f"other + {lane} < {kept}")
                chosen = k.let(
                    "chosen",
                    f"tl.load(p{number} + {first} + other + {lane}, mask={known}, other=0)",
                )
                theirs = self.boxes.corners(k, 0, image, chosen, label, known).seen(k, COLUMNS)
                above = self._above(k, self.boxes.overlap(k, rows, theirs))
                hit = k.let("hit", f"({above} & {known}[None, :]).to(tl.int32)")
                k.line(f"{alive} = {alive} & ({reduced(hit, 'max', 1)} == 0)")
            above = self._above(k, self.boxes.overlap(k, rows, columns))
            earlier = k.let("earlier", f"{above} & ({lane}[None, :] < {lane}[:, None])")
            stays, changed = k.let("stays", alive), k.let("changed", f"{row} * 0 + 1")
            with k.block(f"while {changed} > 0:"):
                hit = k.let("hit", f"({earlier} & {stays}[None, :]).to(tl.int32)")
                then = k.let("then", f"{alive} & ({reduced(hit, 'max', 1)} == 0)")
                differs = reduced(f"({then} != {stays}).to(tl.int32)", "sum")
                k.line(f"{changed} = {differs}")
                k.line(f"{stays} = {then}")
            taken = k.let("taken", f"{stays}.to(tl.int32)")
            rank = k.let("rank", f"{kept} + {running_sum(taken)} - 1")
            mask = k.let("mask", f"{stays} & ({rank} < n3)")
            k.line(f"tl.store(p{number} + {first} + {rank}, {box}, mask={mask})")
            self._keep(k, ticket, f"{label} * n3 + {rank}", f"{first} + {rank}", mask)
            k.line(f"{kept} = tl.minimum({kept} + {reduced(taken, 'sum')}, n3)")
            # nothing comes after a block that is not full
            k.line(f"{start} = tl.where({candidates} == {block}, {start} + {block}, n0)")
            k.line("tl.debug_barrier()")  # what was kept is read by all threads
        k.line(f"tl.store(p{count} + {row}, {kept})")
        with k.block(f"for rest in range({kept}, n3, {block}):"):
            place = k.let("place", f"rest + {lane}")
            for i in range(parts):
                zero = f"tl.full(({block},), 0, tl.uint64)"
                k.line(f"tl.store(p{count + 1 + i} + {first} + {place}, {zero}, mask={place} < n3)")

    def _above(self, k: Source, overlap: str) -> str:
        threshold = constant(self.iou_threshold, self.boxes.pointer.dtype)
        return k.let("above", f"{overlap} > {threshold}")

    def _keep(
        self, k: Source, ticket: tuple[str, ...], position: str, place: str, mask: str
    ) -> None:
        """Stores tickets of the same elements with another position."""
        ones = constant((1 << 32) - 1, DType.UINT64)
        low = f"({ones} - ({position}).to(tl.uint64))"
        moved = [f"(({ticket[0]} >> 32) << 32) | {low}"] if len(ticket) == 1 else [ticket[0], low]
        for i, part in enumerate(moved):
            k.line(f"tl.store(p{3 + self._parts + i} + {place}, {part}, mask={mask})")

"""The kernels that make outputs of the boxes that `suppression_kernel` kept."""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, load, store
from planish.targets.cuda.kernels.nest import reduced
from planish.targets.cuda.kernels.overlaps import Boxes
from planish.targets.cuda.kernels.sorting import PART, load_tickets, part_count, place_of
from planish.targets.cuda.kernels.suppression_kernel import NUMBER


@dataclass(frozen=True)
class ListKernel(TritonKernel):
    """The boxes of one list, in order: indices, scores, and how many there are.

    Pointers: scores, numbers, the count, the three outputs. Parameter: the limit.
    """

    family = "suppress_list"

    scores: Access
    outputs: tuple[Access, ...]
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (self.scores.pointer, NUMBER, NUMBER, *(a.pointer for a in self.outputs))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        rank = k.let("rank", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        inside = k.let("inside", f"{rank} < n0")
        count = k.let("count", "tl.load(p2)")
        kept = k.let("kept", f"{rank} < {count}")
        box = k.let("box", f"tl.load(p1 + {rank}, mask={kept}, other=0)")
        score = load(k, 0, self.scores, (box,), kept)
        store(k, 3, self.outputs[0], (rank,), inside, box)
        store(k, 4, self.outputs[1], (rank,), inside, score)
        k.line(f"tl.store(p5, {count}, mask=tl.program_id(0) == 0)")


@dataclass(frozen=True)
class SelectionKernel(TritonKernel):
    """Image, class and box of all that are kept, one row after the other, and how many there are.

    A program writes the boxes of one class of an image behind those of the classes before it, and
    zeros where it finds that its share of the places holds no box.

    Pointers: numbers, counts, the two outputs. Parameters: classes, the limit of a row, the rows.
    """

    family = "suppress_selection"

    rows: Access
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (NUMBER, NUMBER, self.rows.pointer, Pointer(DType.INT64))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,) * 3

    def write(self, k: Source) -> None:
        row = k.let("row", "tl.program_id(0)")
        lane = k.let("lane", f"tl.arange(0, {self.block})")
        before, total = k.let("before", f"{row} * 0"), k.let("total", f"{row} * 0")
        with k.block(f"for start in range(0, n2, {self.block}):"):
            place = k.let("place", f"start + {lane}")
            found = k.let("found", f"tl.load(p1 + {place}, mask={place} < n2, other=0)")
            k.line(f"{total} += {reduced(found, 'sum')}")
            earlier = reduced(f"tl.where({place} < {row}, {found}, 0)", "sum")
            k.line(f"{before} += {earlier}")
        count = k.let("count", f"tl.load(p1 + {row})")
        first = k.let("first", f"{row}.to(tl.int64) * n1")
        with k.block(f"for start in range(0, n1, {self.block}):"):
            rank = k.let("rank", f"start + {lane}")
            kept = k.let("kept", f"{rank} < {count}")
            box = k.let("box", f"tl.load(p0 + {first} + {rank}, mask={kept}, other=0)")
            items = (f"{row} // n0", f"{row} % n0", box)
            self._put(k, f"{before} + {rank}", kept, items)
            place = k.let("place", f"{row} * n1 + {rank}")
            empty = k.let("empty", f"({rank} < n1) & ({place} >= {total})")
            self._put(k, place, empty, ("0", "0", "0"))
        k.line(f"tl.store(p3, {total}.to(tl.int64), mask={row} == 0)")

    def _put(self, k: Source, place: str, mask: str, items: tuple[str, ...]) -> None:
        for axis, item in enumerate(items):
            value = f"({place}) * 0 + {item}"
            store(k, 2, self.rows, (f"({place})", str(axis)), mask, value)


@dataclass(frozen=True)
class CombineKernel(TritonKernel):
    """The best boxes over all classes; a program is an image.

    Attributes
    ----------
    boxes : Boxes
    scores : Access
        Over images, boxes and classes.
    clip : bool
        Whether coordinates are clipped to 0 … 1.
    outputs : tuple of Access
        Boxes, scores and classes over images and places (and coordinates), numbers over images.
    block : int

    Pointers: boxes, scores, the parts of tickets, numbers, the outputs. Parameters: places, tickets
    of an image, how many of them there are, the limit of a class, numbers of an image.
    """

    family = "suppress_combine"

    boxes: Boxes
    scores: Access
    clip: bool
    outputs: tuple[Access, ...]
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        tickets = (PART,) * part_count(self.scores.pointer.dtype)
        outputs = (a.pointer for a in self.outputs)
        return (self.boxes.pointer, self.scores.pointer, *tickets, NUMBER, *outputs)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,) * 5

    def write(self, k: Source) -> None:
        dtype = self.scores.pointer.dtype
        parts = part_count(dtype)
        first = 3 + parts
        image = k.let("image", "tl.program_id(0)")
        valid = k.let("valid", f"{image} * 0")
        with k.block(f"for start in range(0, n0, {self.block}):"):
            rank = k.let("rank", f"start + tl.arange(0, {self.block})")
            inside = k.let("inside", f"{rank} < n0")
            at = f"{image}.to(tl.int64) * n1 + {rank}"
            number = place_of(k, load_tickets(k, 2, parts, at, f"{rank} < n2"))
            kept = k.let("kept", f"{inside} & ({number} >= 0)")
            count = reduced(f"{kept}.to(tl.int32)", "sum")
            k.line(f"{valid} += {count}")
            label = k.let("label", f"tl.where({kept}, {number} // n3, 0)")
            at = f"p{2 + parts} + {image}.to(tl.int64) * n4 + {number}"
            box = k.let("box", f"tl.load({at}, mask={kept}, other=0)")
            corners = self.boxes.coordinates(k, 0, image, box, label, kept)
            score = load(k, 1, self.scores, (image, box, label), (None, kept, kept))
            zero, one = constant(0, dtype), constant(1, dtype)
            nan = "propagate_nan=tl.PropagateNan.ALL"
            for axis, x in enumerate(corners):
                if self.clip:
                    x = f"tl.minimum(tl.maximum({x}, {zero}, {nan}), {one}, {nan})"
                x = k.let("x", f"tl.where({kept}, {x}, {zero})")
                store(k, first, self.outputs[0], (image, rank, str(axis)), inside, x)
            score = k.let("score", f"tl.where({kept}, {score}, {zero})")
            store(k, first + 1, self.outputs[1], (image, rank), inside, score)
            number = k.let("number", f"{label}.to({compute_type(dtype)})")
            store(k, first + 2, self.outputs[2], (image, rank), inside, number)
        store(k, first + 3, self.outputs[3], (image,), None, valid)

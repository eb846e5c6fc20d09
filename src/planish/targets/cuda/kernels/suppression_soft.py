"""Soft suppression: scores of boxes that overlap decay. One program; one box after the other.

The best box is taken from the queue. Boxes that were kept since it was last looked at make its
score less, the newest first; if any does, it goes back into the queue, else it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.literals import HALVES
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, load, store
from planish.targets.cuda.kernels.nest import reduced
from planish.targets.cuda.kernels.overlaps import Boxes
from planish.targets.cuda.kernels.suppression_kernel import NUMBER

_NOWHERE = (1 << 31) - 1


@dataclass(frozen=True)
class SoftSuppressKernel(TritonKernel):
    """See the module.

    Attributes
    ----------
    boxes : Boxes
    scores : Access
    sigma, score_threshold : float
    outputs : tuple of Access
        Indices, scores, how many are valid.
    block : int
        Boxes that are looked at at a time.

    Pointers: boxes, scores, what is left of them, how many kept boxes each was compared with, the
    numbers of kept boxes, the outputs. Parameters: boxes, the limit.
    """

    family = "suppress_softly"

    boxes: Boxes
    scores: Access
    sigma: float
    score_threshold: float
    outputs: tuple[Access, ...]
    block: int

    @property
    def wide(self) -> DType:
        """The dtype of what is computed."""
        dtype = self.scores.pointer.dtype
        return DType.FLOAT32 if dtype in HALVES else dtype

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        own = (Pointer(self.wide), NUMBER, NUMBER)
        outputs = (a.pointer for a in self.outputs)
        return (self.boxes.pointer, self.scores.pointer, *own, *outputs)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False)

    def write(self, k: Source) -> None:
        lane = k.let("lane", f"tl.arange(0, {self.block})")
        least, gone = constant(self.score_threshold, self.wide), constant(-np.inf, self.wide)
        with k.block(f"for start in range(0, n0, {self.block}):"):
            place = k.let("place", f"start + {lane}")
            inside = k.let("inside", f"{place} < n0")
            score = load(k, 1, self.scores, (place,), inside)
            score = f"tl.where({score} > {least}, {score}, {gone})"
            k.line(f"tl.store(p2 + {place}, {score}, mask={inside})")
            k.line(f"tl.store(p3 + {place}, {place} * 0, mask={inside})")
        k.line("tl.debug_barrier()")
        count = k.let("count", "tl.program_id(0) * 0")
        goes_on = k.let("goes_on", f"{count} < n1")
        with k.block(f"while {goes_on}:"):
            best, where = self._best(k, lane, gone)
            k.line(f"{goes_on} = {best} > {gone}")
            with k.block(f"if {goes_on}:"):
                self._look_at(k, best, where, count, gone)
                k.line(f"{goes_on} = {count} < n1")
            k.line("tl.debug_barrier()")
        with k.block(f"for start in range({count}, n1, {self.block}):"):
            place = k.let("place", f"start + {lane}")
            inside = k.let("inside", f"{place} < n1")
            for i in range(2):
                store(k, 5 + i, self.outputs[i], (place,), inside, f"{place} * 0")
        k.line(f"tl.store(p7, {count})")

    def _best(self, k: Source, lane: str, gone: str) -> tuple[str, str]:
        """The largest score that is left, and the first box that has it."""
        best, where = k.let("best", gone), k.let("where", "tl.program_id(0) * 0")
        with k.block(f"for start in range(0, n0, {self.block}):"):
            place = k.let("place", f"start + {lane}")
            mask = f"mask={place} < n0"
            left = k.let("left", f"tl.load(p2 + {place}, {mask}, other=float('-inf'))")
            top = k.let("top", reduced(left, "max"))
            first = reduced(f"tl.where({left} == {top}, {place}, {_NOWHERE})", "min")
            k.line(f"{where} = tl.where({top} > {best}, {first}, {where})")
            k.line(f"{best} = tl.maximum({best}, {top})")
        return best, where

    def _look_at(self, k: Source, best: str, where: str, count: str, gone: str) -> None:
        """Compares a box with what was kept since; keeps it, or puts it back."""
        mine = self.boxes.corners(k, 0, "0", where, "0", None)
        compared = k.let("compared", f"tl.load(p3 + {where})")
        score, other = k.let("score", best), k.let("other", f"{count} - 1")
        least = constant(self.score_threshold, self.wide)
        scale = self.wide.numpy.type(-0.5) / self.wide.numpy.type(self.sigma)
        # not `<=`: a score that is no number is compared with all
        with k.block(f"while ({other} >= {compared}) & (({score} <= {least}) == 0):"):
            box = k.let("box", f"tl.load(p4 + {other})")
            overlap = self.boxes.overlap(k, mine, self.boxes.corners(k, 0, "0", box, "0", None))
            scaled = f"libdevice.mul_rn({constant(float(scale), self.wide)}, {overlap})"
            power = k.let("power", f"libdevice.mul_rn({scaled}, {overlap})")
            # in float64, and rounded once, as the reference does it
            decay = f"libdevice.exp({power}.to(tl.float64)).to({compute_type(self.wide)})"
            k.line(f"{score} = {score} * {decay}")
            k.line(f"{other} = {other} - 1")
        stays = k.let("stays", f"{score} == {best}")
        again = f"({score} > {least}) & ({stays} == 0)"
        k.line(f"tl.store(p2 + {where}, tl.where({again}, {score}, {gone}))")
        k.line(f"tl.store(p3 + {where}, {count})")
        k.line(f"tl.store(p4 + {count}, {where}, mask={stays})")
        for i, value in enumerate((where, score)):
            store(k, 5 + i, self.outputs[i], (count,), stays, value)
        k.line(f"{count} = {count} + {stays}.to(tl.int32)")

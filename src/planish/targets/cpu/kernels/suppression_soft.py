"""The kernel of soft non-maximum suppression: overlapping boxes lose score instead of dropping out.

The best box is searched for among all that are left, again and again. Its score decays by its
overlaps with the boxes kept since it was last looked at; if that changes nothing it is kept, else
it goes back with its new score (or drops out). Bodla et al., arXiv:1704.04503.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.graph.types import DType
from planish.targets.cpu.codegen import math as functions
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import I1, I8, I32, I64, register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, for_spans
from planish.targets.cpu.kernels.overlaps import Overlaps, load_box, wide_float
from planish.targets.cpu.kernels.reducers import make_reducer


@dataclass(frozen=True)
class SoftSuppressKernel(CpuKernel):
    """Soft suppression of one list of boxes; one task.

    Parameters: boxes, the limit; the strides of boxes and scores along images, boxes, classes and
    coordinates; those of indices, scores and the number that come out.
    """

    family: ClassVar[str] = "suppress_soft"
    dtype: DType
    sigma: float
    score_threshold: float
    inputs: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        b = k.b
        wide = wide_float(self.dtype)
        f = Floats(k, wide, 1)
        kind = wide.numpy.type
        scale = float(kind(-0.5) / kind(self.sigma))
        boxes, limit = k.param(0), k.param(1)
        boxes_in = Operands(k, self.inputs[:1], 0, 2, 4)
        scores_in = Operands(k, self.inputs[1:], 1, 6, 4)
        indices, scores, valid = (
            Operands(k, (access,), 2 + i, 10 + i, 1) for i, access in enumerate(self.outputs)
        )
        # scratch: scores that are left (-inf: none); kept boxes compared with; kept boxes
        left = k.scratch
        compared = k.offset(left, boxes, wide)
        kept_boxes = b.gep(compared, [k.mul(boxes, 8)], source_etype=I8)
        kept = Overlaps(k, wide, kept_boxes, limit)

        with k.loop(k.begin, k.end):
            start = scores_in.start()
            with k.loop(0, boxes) as box:
                (score,) = scores_in.load(scores_in.move(start, 1, box.index), Span(0, 1))
                above = f.gt(score, f.c(self.score_threshold))
                k.store(
                    b.select(above, score, f.c(-np.inf)),
                    k.offset(left, box.index, wide),
                    wide,
                )
                k.store(I64(0), k.offset(compared, box.index, DType.INT64), DType.INT64)

            def unfinished(state: list[ir.Value]) -> ir.Value:
                return b.and_(state[1], b.icmp_signed("<", state[0], limit))

            with k.loop_while([k.i64(0), I1(1)], unfinished) as loop:
                count = loop.carried[0]
                best, index = _best(k, wide, left, boxes)

                def pop(count: Any = count, best: Any = best, index: Any = index) -> list:
                    place = k.offset(left, index, wide)
                    seen_at = k.offset(compared, index, DType.INT64)
                    seen = k.load(seen_at, DType.INT64)
                    corners = kept.corners(load_box(k, boxes_in, 0, index, 0))
                    score = self._decayed(k, f, kept, corners, best, seen, count, scale)
                    k.store(count, seen_at, DType.INT64)
                    same = f.eq(score, best)
                    stays = b.and_(b.not_(same), f.gt(score, f.c(self.score_threshold)))
                    k.store(b.select(stays, score, f.c(-np.inf)), place, wide)
                    with k.when(same):
                        kept.append(corners, count)
                        number = b.trunc(index, register_type(DType.INT32))
                        indices.store(indices.start(), Span(count, 1), [number])
                        scores.store(scores.start(), Span(count, 1), [score])
                    return [k.add(count, b.zext(same, I64)), I1(1)]

                loop.next = k.choose(
                    f.gt(best, f.c(-np.inf)), pop, lambda count=count: [count, I1(0)]
                )
            count = loop.carried[0]
            with k.loop(count, limit) as rest:
                indices.store(indices.start(), Span(rest.index, 1), [k.zero(DType.INT32)])
                scores.store(scores.start(), Span(rest.index, 1), [f.c(0)])
            number = b.trunc(count, register_type(DType.INT32))
            valid.store(valid.start(), Span(0, 1), [number])

    def _decayed(
        self,
        k: KernelBuilder,
        f: Floats,
        kept: Overlaps,
        corners: Any,
        score: ir.Value,
        seen: ir.Value,
        count: ir.Value,
        scale: float,
    ) -> ir.Value:
        """The score after the overlaps with the kept boxes from `seen` on, the latest first."""

        def more(state: list[ir.Value]) -> ir.Value:
            enough = f.gt(state[0], f.c(self.score_threshold))
            return k.b.and_(k.b.icmp_signed(">=", state[1], seen), enough)

        with k.loop_while([score, k.sub(count, 1)], more) as loop:
            value, number = loop.carried
            overlap = kept.at(corners, number, 1)
            exponent = f.mul(f.mul(f.c(scale), overlap), overlap)
            loop.next = [f.mul(value, _exp(k, f, exponent)), k.sub(number, 1)]
        return loop.carried[0]


def _exp(k: KernelBuilder, f: Floats, x: ir.Value) -> ir.Value:
    """Rounded correctly, as good C libraries do it: whether a box is kept may depend on it."""
    if f.dtype is DType.FLOAT64:
        return functions.exp(f, x)
    wide = Floats(k, DType.FLOAT64, 1)
    return k.b.fptrunc(functions.exp(wide, k.b.fpext(x, wide.type)), f.type)


def _best(
    k: KernelBuilder, dtype: DType, left: ir.Value, boxes: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The largest score that is left and the first place where it stands."""
    lanes = k.lanes
    reducer = make_reducer(k, "argmax", dtype, lanes)
    steps = ir.Constant(ir.VectorType(I32, lanes), [I32(lane) for lane in range(lanes)])

    def step(spans: list[Span], state: list[ir.Value]) -> list[ir.Value]:
        (span,) = spans
        x = k.load(k.offset(left, span.start, dtype), dtype, lanes, mask=span.mask)
        first = k.splat(k.b.trunc(k.i64(span.start), I32), lanes)
        return reducer.step(state, x, k.b.add(first, steps), span.mask)

    state = for_spans(k, 0, boxes, lanes, step, carried=reducer.initial())
    best, index = reducer.horizontal(state)
    return best, k.b.zext(index, I64)


def scratch_bytes(boxes: int, limit: int, size: int) -> int:
    """Scratch memory for so many boxes of floats of that size."""
    return boxes * (size + 8) + 5 * (limit + 16) * size + 64 * math.ceil(size / 8)

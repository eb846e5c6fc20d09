"""The kernel of attention whose products are dot products of short numbers, see `codegen.dot`.

As `attention_kernel`, but a step of depth is a group: two bfloat16 or four bytes, which fill the
lanes of a register as one number of 32 bits. Queries are transposed group by group; keys are read
as they lie. For the second product a group is one of keys: values of a block are copied so that
the keys of a group lie side by side, and so are weights, in the place of their scores.

Bytes are levels. Those of q, k and v are unsigned, with 128 for 0; weights are in 255ths of the
row's greatest (`planish.ops.QuantizedSoftmax`), which is 1 before rows are divided by their sums:

    (q - 128) (k - 128) = (q - 128) k - 128 (q - 128)

where the second term, the same for all keys, is what sums begin with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.fusion.attention import MIDDLE
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.dot import BYTES, HALVES, Dot
from planish.targets.cpu.codegen.math import rough_power
from planish.targets.cpu.codegen.types import I32
from planish.targets.cpu.kernels.attention_kernel import (
    F32,
    AttentionKernel,
    AttentionWriter,
    Matrix,
)
from planish.targets.cpu.kernels.transposition import transpose_registers

GROUP = DType.INT32
"""What a group of short numbers is taken for where it is only moved."""

MIDDLES = MIDDLE * 0x01010101
"""Four bytes of `MIDDLE`: added to unsigned bytes, without carry, they make signed ones."""


@dataclass(frozen=True)
class AttentionDotsKernel(AttentionKernel):
    """One specialisation; pointers, parameters and attributes as `AttentionKernel`'s.

    Attributes
    ----------
    dot : Dot
        HALVES, or BYTES with `levels`; `depth` is a multiple of its group.
    """

    family: ClassVar[str] = "attention_dots"

    dot: Dot = HALVES

    @property
    def packed_keys(self) -> int:
        """Groups of the keys of a block, where they are copied."""
        return self.block * self.depth // self.dot.group if self.packed else 0

    @property
    def packed_values(self) -> int:
        """Groups of the values of a block."""
        return -(-self.block // self.dot.group) * self.values

    def scratch_elements(self, lanes: int) -> int:
        """As `AttentionKernel.scratch_elements`."""
        own = replace(self, packed=False)
        begins = self.groups * self.vectors * lanes
        rest = self.packed_values + self.packed_keys + begins
        return super(AttentionDotsKernel, own).scratch_elements(lanes) + rest

    def write(self, k: KernelBuilder) -> None:
        _Writer(self, k).write()


class _Writer(AttentionWriter):
    kernel: AttentionDotsKernel

    def __init__(self, kernel: AttentionDotsKernel, k: KernelBuilder) -> None:
        super().__init__(replace(kernel, packed=False), k)
        self.kernel = kernel
        self.dot, self.group = kernel.dot, kernel.dot.group
        self.near_v = self._room(kernel.packed_values)
        self.begins = self._room(kernel.groups * self.width)
        if kernel.packed:
            self.near_k = self._room(kernel.packed_keys)

    @property
    def is_bytes(self) -> bool:
        """Whether the numbers are levels."""
        return self.dot == BYTES

    def _signed(self, groups: ir.Value) -> ir.Value:
        """Levels, as they lie, as signed bytes with 0 for 0; bfloat16 as it is."""
        if not self.is_bytes:
            return groups
        return self.k.b.xor(groups, self.k.splat(I32(MIDDLES), self.lanes))

    # ---- queries ----------------------------------------------------------------------------

    def _turn_queries(self, group: ir.Value, q: Matrix, query: ir.Value) -> None:
        k, kernel, lanes = self.k, self.kernel, self.lanes
        depth = kernel.depth // self.group
        out = k.offset(self.q, k.mul(group, depth * self.width), GROUP)
        last = k.sub(self.queries, 1)
        whole = depth // lanes * lanes
        for v in range(kernel.vectors):
            rows = [
                k.offset(q.start, k.mul(k.min(k.add(query, v * lanes + i), last), q.row), q.dtype)
                for i in range(lanes)
            ]

            def turn(
                column: Any, width: int, sums: ir.Value, rows: Any = rows, v: int = v
            ) -> ir.Value:
                mask = k.tail_mask(width, lanes) if width < lanes else None
                lines = [k.load(k.offset(r, column, GROUP), GROUP, lanes, mask=mask) for r in rows]
                for i, line in enumerate(transpose_registers(k, lines)[:width]):
                    signed = self._signed(line)
                    at = k.add(k.mul(k.add(column, i), self.width), v * lanes)
                    k.store(signed, k.offset(out, at, GROUP), GROUP, lanes)
                    if self.is_bytes:
                        sums = self.dot.add(k, sums, k.splat(I32(MIDDLES), lanes), signed)
                return sums

            with k.loop(0, whole, lanes, [k.zero(DType.INT32, lanes)]) as loop:
                loop.next = [turn(loop.index, lanes, loop.carried[0])]
            (sums,) = loop.carried
            if depth > whole:
                sums = turn(whole, depth - whole, sums)
            if self.is_bytes:
                begin = k.b.sub(k.zero(DType.INT32, lanes), sums)
                at = k.add(k.mul(group, self.width), v * lanes)
                k.store(begin, k.offset(self.begins, at, DType.INT32), DType.INT32, lanes)

    # ---- a block of keys --------------------------------------------------------------------

    def _block(
        self, keys: Matrix, values: Matrix, key: ir.Value, count: ir.Value
    ) -> tuple[Matrix, Matrix]:
        k, kernel = self.k, self.kernel
        near_k, near_v = (
            replace(m, start=k.offset(m.start, k.mul(key, m.row), m.dtype)) for m in (keys, values)
        )
        self._pack_values(near_v, count)
        if kernel.packed:
            near_k = self._packed(near_k, count)
        return near_k, near_v

    def _packed(self, keys: Matrix, count: ir.Value) -> Matrix:
        """The keys of a block, copied side by side."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        depth = kernel.depth // self.group
        with k.loop(0, count) as loop:
            source = k.offset(keys.start, k.mul(loop.index, keys.row), keys.dtype)
            target = k.offset(self.near_k, k.mul(loop.index, depth), GROUP)
            for at in range(0, depth, lanes):
                short = depth - at < lanes
                mask = k.tail_mask(depth - at, lanes) if short else None
                line = k.load(k.offset(source, at, GROUP), GROUP, lanes, mask=mask)
                k.store(line, k.offset(target, at, GROUP), GROUP, lanes, mask=mask)
        return Matrix(self.near_k, kernel.depth, keys.dtype)

    def _pack_values(self, values: Matrix, count: ir.Value) -> None:
        """Copies the values of a block to ``[keys / group, values, group]``, 0 past the keys."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        raw = DType.UINT8 if self.is_bytes else DType.UINT16
        last = k.sub(count, 1)

        def pack(number: ir.Value, is_last: bool) -> None:
            keys = [k.add(k.mul(number, self.group), i) for i in range(self.group)]
            rows = [
                k.offset(values.start, k.mul(k.min(key, last), values.row), values.dtype)
                for key in keys
            ]
            target = k.offset(self.near_v, k.mul(number, kernel.values), GROUP)
            for at in range(0, kernel.values, lanes):
                width = min(kernel.values - at, lanes)
                mask = k.tail_mask(width, lanes) if width < lanes else None
                lines = [k.load(k.offset(row, at, raw), raw, lanes, mask=mask) for row in rows]
                wide = [k.b.zext(line, ir.VectorType(I32, lanes)) for line in lines]
                if is_last:  # what is infinite would not vanish by a weight of 0
                    fill = k.constant(MIDDLE if self.is_bytes else 0, GROUP, lanes)
                    wide = [
                        k.b.select(k.b.icmp_signed("<=", key, last), line, fill)
                        for key, line in zip(keys, wide, strict=True)
                    ]
                k.store(
                    self._signed(self._together(wide)),
                    k.offset(target, at, GROUP),
                    GROUP,
                    lanes,
                    mask=mask,
                )

        whole, rest = k.divmod(count, self.group)
        with k.loop(0, whole) as loop:
            pack(loop.index, False)
        with k.when(k.b.icmp_signed(">", rest, k.i64(0))):
            pack(whole, True)

    def _together(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Numbers of few bits, a register for each of a group, side by side in one register."""
        k = self.k
        bits = 32 // self.group
        result = parts[0]
        for i, part in enumerate(parts[1:], 1):
            result = k.b.or_(result, k.b.shl(part, k.splat(I32(i * bits), self.lanes)))
        return result

    def _scores(self, group: ir.Value, keys: Matrix, starts: list[ir.Value]) -> list[ir.Value]:
        k, kernel, lanes, f = self.k, self.kernel, self.lanes, self.f
        depth = kernel.depth // self.group
        q = k.offset(self.q, k.mul(group, depth * self.width), GROUP)
        zeros = [k.zero(self.dot.sums, lanes)] * kernel.vectors
        if self.is_bytes:
            begins = k.offset(self.begins, k.mul(group, self.width), DType.INT32)
            zeros = [
                k.load(k.offset(begins, v * lanes, DType.INT32), DType.INT32, lanes)
                for v in range(kernel.vectors)
            ]
        sums = self._products(
            depth,
            q,
            lambda i, d: self._group_at(k.offset(starts[i], k.mul(d, self.group), keys.dtype)),
            zeros * len(starts),
            GROUP,
            lambda added, a, b: self.dot.add(k, added, a, b),
        )
        if self.is_bytes:
            sums = [f.to_float(s) for s in sums]
        scale = self._score_scale()
        return sums if scale is None else [f.mul(s, scale) for s in sums]

    def _group_at(self, place: ir.Value) -> ir.Value:
        """A group anywhere in memory."""
        return self.k.b.load(place, typ=I32, align=1)

    def _weights(self, shift: list[ir.Value], count: ir.Value) -> list[ir.Value]:
        k, f, lanes = self.k, self.f, self.lanes
        to_power = f.c(1 / math.log(2))

        def weigh(number: Any, left: ir.Value | None, sums: Sequence[ir.Value]) -> list[ir.Value]:
            """Weights of a group of keys, of which so many are `left`."""
            first = k.mul(number, self.group)
            added = []
            for v, most in enumerate(shift):
                weights = []
                for i in range(self.group):
                    at = k.add(k.mul(k.add(first, i), self.width), v * lanes)
                    score = k.load(k.offset(self.p, at, F32), F32, lanes)
                    power = f.max(f.c(-200.0), f.mul(f.sub(score, most), to_power))
                    weight = rough_power(f, power)  # NaN goes through
                    if left is not None and i:
                        is_key = k.b.icmp_signed(">", left, k.i64(i))
                        weight = k.b.select(is_key, weight, f.c(0.0))
                    weights.append(weight)
                total, packed = (self._levels if self.is_bytes else self._halves)(weights)
                added.append(f.add(sums[v], total))
                at = k.add(k.mul(number, self.width), v * lanes)
                k.store(packed, k.offset(self.p, at, GROUP), GROUP, lanes)
            return added

        whole, rest = k.divmod(count, self.group)
        with k.loop(0, whole, 1, [k.zero(F32, lanes)] * len(shift)) as loop:
            loop.next = weigh(loop.index, None, loop.carried)
        sums = loop.carried
        more = k.b.icmp_signed(">", rest, k.i64(0))
        return k.choose(more, lambda: weigh(whole, rest, sums), lambda: list(sums))

    def _levels(self, weights: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
        """The sum of a group's weights as levels, and these side by side."""
        k, f = self.k, self.f
        # a float of this size has its integer in its lowest bits
        base = 1.5 * 2.0**23
        shifted = [f.fma(w, f.c(float(self.kernel.levels)), f.c(base)) for w in weights]
        total, packed, surplus = f.c(0.0), k.zero(GROUP, self.lanes), 0
        bits = int(np.float32(base).view(np.uint32))
        for i, number in enumerate(shifted):
            total = f.add(total, f.sub(number, f.c(base)))
            packed = k.b.add(packed, k.b.shl(f.bits(number), f.i(8 * i)))
            surplus += bits << 8 * i
        return total, k.b.sub(packed, k.constant(surplus, GROUP, self.lanes))

    def _halves(self, weights: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
        """The sum of two weights, and these rounded to bfloat16, side by side."""
        k, f = self.k, self.f
        low, high = (k.b.add(f.bits(w), f.i(0x8000)) for w in weights)
        packed = k.b.or_(k.b.lshr(low, f.i(16)), k.b.and_(high, f.i(0xFFFF0000)))
        return f.add(*weights), packed

    def _weighted(
        self, values: Matrix, first: Any, count: ir.Value, sums: list[ir.Value]
    ) -> list[ir.Value]:
        k, lanes = self.k, self.lanes
        groups, _ = k.divmod(k.add(count, self.group - 1), self.group)
        start = k.offset(self.near_v, first, GROUP)
        begins = [k.zero(DType.INT32, lanes)] * len(sums) if self.is_bytes else sums

        def left(i: int, number: Any) -> ir.Value:
            return k.load(
                k.offset(start, k.add(k.mul(number, self.kernel.values), i), GROUP), GROUP
            )

        mixed = self._products(
            groups,
            self.p,
            left,
            begins,
            GROUP,
            lambda added, a, b: self.dot.add(k, added, b, a),
        )
        if not self.is_bytes:
            return mixed
        return [self.f.add(s, self.f.to_float(m)) for s, m in zip(sums, mixed, strict=True)]

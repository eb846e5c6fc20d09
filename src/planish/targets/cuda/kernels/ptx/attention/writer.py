"""Writes the kernel of attention of short sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planish.graph.types import DType
from planish.targets.cuda.codegen.ptx import Lanes, number
from planish.targets.cuda.kernels.ptx.attention.operands import Leaves
from planish.targets.cuda.kernels.ptx.specialized.products import TYPES
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER, THREADS, GroupWriter

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.ptx.attention.kernel import Boxes, ShortAttentionKernel

LOG2_E = 1.4426950408889634
LEAST = number(float("-inf"))
DEPTH = 16
"""Of an instruction."""
FACTORS = 3
"""Pointers: q, k and v."""
ROWS, WARP_ROWS = 64, 16
"""Queries of a tile, and of them those of a warp."""
HALVES = range(2)
"""A thread's rows of a tile: one of a warp's first eight, and the eighth behind it."""
CHAINS = 2
"""Of operations that wait for one another, in a sum or maximum of a row."""


class AttentionWriter(GroupWriter):
    """Writes a `ShortAttentionKernel`."""

    kernel: ShortAttentionKernel

    def write(self) -> str:
        a, kernel = self.a, self.kernel
        self._begin()
        self._place()
        turn = a("mov.u32 {}, 0;")
        scores = a.registers(kernel.whole_keys // 2)
        mixed = a.registers(kernel.v_boxes.count * kernel.sums)
        self._wait(self._barrier(0, "0"), "0")
        self._loop(turn, kernel.turns, lambda: self._compute(turn, scores, mixed))
        self._look_ahead(kernel.groups * THREADS)
        a.line(f"@{self.leads} cp.async.bulk.wait_group.read 0;")  # results have left their places
        a.line("ret;")
        return self._wrapped(a.body())

    # ---- what comes first ------------------------------------------------------------------------

    def _begin(self) -> None:
        a, kernel = self.a, self.kernel
        self.tid = a("mov.u32 {}, %tid.x;")
        self.warp = a("shfl.sync.idx.b32 {}, {}, 0, 31, -1;", a("shr.u32 {}, {}, 5;", self.tid))
        self.group = a("shr.u32 {}, {}, 2;", self.warp)
        self.lane = a("and.b32 {}, {}, 31;", self.tid)
        self.leads = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
        self.memory = a("mov.u32 {}, memory;")
        self.maps = {
            i: a("cvta.param.u64 {}, {};", a(f"mov.b64 {{}}, p{i};", kind="d"), kind="d")
            for i, pointer in enumerate(self.pointers)
            if pointer.map is not None
        }
        rest, part = self._divided(a("mov.u32 {}, %ctaid.x;"), kernel.parts)
        self.batch, self.head = self._divided(rest, kernel.heads)
        self.first = a("mul.lo.u32 {}, {}, {};", part, kernel.tiles)
        with a.skipped_unless(a("setp.eq.u32 {}, {}, 0;", self.tid, kind="p")):
            for i in range(2):
                place = kernel.barriers + BARRIER * i
                a.line(f"mbarrier.init.shared::cta.b64 [{self.memory}+{place}], 1;")
            a.line("fence.mbarrier_init.release.cluster;")
            a.line("fence.proxy.async.shared::cta;")
            a.line("griddepcontrol.wait;")
            self._load()
            a.line("griddepcontrol.launch_dependents;")
        a.line("bar.sync 0;")
        a.line("griddepcontrol.wait;")

    def _divided(self, value: str, by: int) -> tuple[str, str]:
        """Quotient and remainder."""
        a = self.a
        if by == 1:
            return value, "0"
        quotient = a("div.u32 {}, {}, {};", value, by)
        return quotient, a("sub.u32 {}, {}, {};", value, a("mul.lo.u32 {}, {}, {};", quotient, by))

    def _load(self) -> None:
        """Asks for all that the block reads as boxes."""
        a, kernel = self.a, self.kernel
        barrier = self._barrier(0, "0")
        self._expect(barrier, kernel.tiles * kernel.q_boxes.bytes + kernel.k_boxes.bytes)
        for tile in range(kernel.tiles):
            row = a("add.u32 {}, {}, {};", self.first, tile)
            row = a("mul.lo.u32 {}, {}, {};", row, ROWS)
            self._load_boxes(0, kernel.q_boxes, tile * kernel.tile_bytes, row, barrier)
        self._load_boxes(1, kernel.k_boxes, kernel.keys_start, "0", barrier)
        barrier = self._barrier(0, "1")
        self._expect(barrier, kernel.v_boxes.bytes)
        self._load_boxes(2, kernel.v_boxes, kernel.values_start, "0", barrier)

    def _expect(self, barrier: str, count: int) -> None:
        how = "mbarrier.arrive.expect_tx.shared::cta.b64"
        self.a.line(f"{how} _, [{barrier}], {count};")

    def _load_boxes(self, pointer: int, boxes: Boxes, to: int, row: str, barrier: str) -> None:
        for i in range(boxes.count):
            there = self.a("add.u32 {}, {}, {};", self.memory, to + i * boxes.each)
            self._copy_in(pointer, there, self._located(pointer, row, i * boxes.wide), barrier)

    def _located(self, pointer: int, row: str, column: int) -> list[str]:
        """Where a box of a tensor begins, the last axis first."""
        axes = self.kernel.axes[pointer]
        place = (self.batch, self.head, row, str(column))
        return [place[axis] for axis in reversed(axes)]

    # ---- places ----------------------------------------------------------------------------------

    def _place(self) -> None:
        """What a thread needs for all of its tiles."""
        a, kernel = self.a, self.kernel
        self.always, self.never = (a("setp.ne.u32 {}, {}, 0;", n, kind="p") for n in (1, 0))
        # a row by four threads, eight rows by a warp's
        row, self.quarter = a("shr.u32 {}, {}, 2;", self.lane), a("and.b32 {}, {}, 3;", self.lane)
        self.warp_row = a("mul.lo.u32 {}, {}, {};", a("and.b32 {}, {}, 3;", self.warp), WARP_ROWS)
        self.row = a("add.u32 {}, {}, {};", self.warp_row, row)
        # where the thread writes results: the first two columns, as tensor maps exchange places
        boxes = kernel.result_boxes
        piece = row if boxes.line == 128 else a("bfe.u32 {}, {}, 1, 2;", row)
        inside = a("mul.lo.u32 {}, {}, {};", self.quarter, 2 * boxes.size)
        inside = a("mad.lo.u32 {}, {}, 16, {};", piece, inside)
        self.written = a("mad.lo.u32 {}, {}, {}, {};", self.row, boxes.line, inside)
        self.epilogue = Leaves(kernel.result, a, kernel.first_of_result, kernel.values)
        self.epilogue.place(self.batch, self.head, self.quarter)
        if kernel.scores is not None:
            self.work = Leaves(kernel.scores, a, FACTORS, kernel.keys)
            self.work.place(self.batch, self.head, self.quarter)

    # ---- a tile ----------------------------------------------------------------------------------

    def _compute(self, turn: str, scores: list[str], mixed: list[str]) -> None:
        a, kernel = self.a, self.kernel
        tile = a("mad.lo.u32 {}, {}, {}, {};", turn, kernel.groups, self.group)
        start = a("mad.lo.u32 {}, {}, {}, {};", tile, kernel.tile_bytes, self.memory)
        first = a("mul.lo.u32 {}, {}, {};", a("add.u32 {}, {}, {};", self.first, tile), ROWS)
        self._multiply(start, scores)
        weights, totals = self._weigh(scores, first)
        self._wait(self._barrier(0, "1"), "0")
        self._mix(weights, mixed)
        self._meet()  # all have read the tile's queries
        self._finish(mixed, totals, start, first)

    def _multiply(self, start: str, scores: Sequence[str]) -> None:
        """Queries by keys."""
        a, kernel = self.a, self.kernel
        q, k = kernel.q_boxes, kernel.k_boxes
        left = self._described(start)
        right = self._described(a("add.u32 {}, {}, {};", self.memory, kernel.keys_start))
        high = self._high(q)
        op = self._product(kernel.whole_keys)
        a.line("wgmma.fence.sync.aligned;")
        for step in range(-(-kernel.depth // DEPTH)):
            box, inner = divmod(step * DEPTH, q.wide)
            more = inner * q.size >> 4
            first = self._descriptor(left, (box * q.each >> 4) + more, high)
            second = self._descriptor(right, (box * k.each >> 4) + more, high)
            adds = self.always if step else self.never
            a.line(f"{op} {{{', '.join(scores)}}}, {first}, {second}, {adds}, 1, 1, 0, 0;")
        self._end_product()

    def _mix(self, weights: Sequence[Sequence[str]], mixed: Sequence[str]) -> None:
        """Weights by values, which lie key by key: they are the right factor across."""
        a, kernel = self.a, self.kernel
        boxes = kernel.v_boxes
        start = a("add.u32 {}, {}, {};", self.memory, kernel.values_start)
        # from one box of columns to the next one; eight keys lie behind the eight before them
        low = a("or.b32 {}, {}, {};", a("bfe.u32 {}, {}, 4, 14;", start), boxes.each >> 4 << 16)
        high = self._high(boxes)
        op = self._product(boxes.count * boxes.wide)
        a.line("wgmma.fence.sync.aligned;")
        for step in range(kernel.whole_keys // DEPTH):
            upper, lower = (half[2 * step : 2 * step + 2] for half in weights)
            left = f"{{{upper[0]}, {lower[0]}, {upper[1]}, {lower[1]}}}"
            right = self._descriptor(low, step * DEPTH * boxes.line >> 4, high)
            adds = self.always if step else self.never
            a.line(f"{op} {{{', '.join(mixed)}}}, {left}, {right}, {adds}, 1, 1, 1;")
        self._end_product()

    def _product(self, columns: int) -> str:
        return f"wgmma.mma_async.sync.aligned.m64n{columns}k{DEPTH}.{TYPES[self.kernel.dtype][0]}"

    def _end_product(self) -> None:
        self.a.line("wgmma.commit_group.sync.aligned;")
        self.a.line("wgmma.wait_group.sync.aligned 0;")

    def _high(self, boxes: Boxes) -> str:
        """The high half of a descriptor."""
        pattern = 1 if boxes.line == 128 else 2
        return self.a("mov.u32 {}, {};", pattern << 30 | 8 * boxes.line >> 4)

    # ---- softmax ---------------------------------------------------------------------------------

    def _weigh(self, sums: Sequence[str], first: str) -> tuple[list[list[str]], list[str]]:
        """Weights of both rows, two in a register, before they are divided by their sums; these."""
        a, kernel = self.a, self.kernel
        factor = kernel.scale * LOG2_E
        # the largest one times the factor is finite; then one operation scales and subtracts
        at_once = kernel.scores is None and 0 < factor <= 1
        scores = list(sums) if at_once else self._worked(sums, first)
        self._hide(scores)
        rows = [[n for i, n in enumerate(scores) if i // 2 % 2 == half] for half in HALVES]
        weights: list[list[str]] = []
        totals = []
        for row in rows:
            most = self._shared("max.f32", self._folded("max.f32", row))
            hidden = a("setp.eq.f32 {}, {}, {};", most, LEAST, kind="p")
            # all weights of a row are 0 then, and none of them NaN
            most = a("selp.f32 {}, {}, {}, {};", number(0.0), most, hidden)
            if at_once:
                most = a("mul.f32 {}, {}, {};", most, number(-factor))
            made = []
            packed = []
            for name in row:
                if at_once:
                    power = a("fma.rn.f32 {}, {}, {}, {};", name, number(factor), most)
                else:
                    power = a("sub.f32 {}, {}, {};", name, most)
                    power = a("mul.f32 {}, {}, {};", power, number(LOG2_E))
                made.append(a("ex2.approx.ftz.f32 {}, {};", power))
                if len(made) % 2 == 0:
                    packed.append(self._packed(*made[-2:]))
            weights.append(packed)
            totals.append(self._shared("add.f32", self._folded("add.f32", made)))
        return weights, totals

    def _packed(self, low: str, high: str) -> str:
        kind = "f16x2" if self.kernel.dtype is DType.FLOAT16 else "bf16x2"
        return self.a(f"cvt.rn.{kind}.f32 {{}}, {{}}, {{}};", high, low)

    def _worked(self, sums: Sequence[str], first: str) -> list[str]:
        """The scores that softmax is given."""
        a, kernel = self.a, self.kernel
        if kernel.scale != 1.0:
            sums = [a("mul.f32 {}, {}, {};", name, number(kernel.scale)) for name in sums]
        if kernel.scores is None:
            return list(sums)
        self._enter(self.work, first)
        made: list[str] = []
        for i in range(0, len(sums), 4):
            lanes = Lanes(a, "float32", tuple(sums[i : i + 4]))
            result = self.work.expression.apply(lanes, self.work.load(2 * i))
            made += result.names * (4 // len(result.names))
        return made

    def _enter(self, leaves: Leaves, first: str) -> None:
        """Names the thread's rows, if it matters; those that are not there read the last one's."""
        if not leaves.has_rows:
            return
        a = self.a
        own = a("add.u32 {}, {}, {};", first, self.row)
        rows = [a("add.u32 {}, {}, {};", own, 8 * half) for half in HALVES]
        last = self.kernel.queries - 1
        leaves.enter([a("min.u32 {}, {}, {};", row, last) for row in rows])

    def _hide(self, scores: list[str]) -> None:
        """Makes scores of keys that are not there -inf."""
        a, kernel = self.a, self.kernel
        for place in range(kernel.keys // 8 * 4, len(scores), 4):
            for i in range(2):
                left = kernel.keys - 2 * place - i  # of what is behind the first thread's column
                column = a("mul.lo.u32 {}, {}, 2;", self.quarter)
                there = a("setp.lt.s32 {}, {}, {};", column, left, kind="p")
                for half in HALVES:
                    which = place + 2 * half + i
                    scores[which] = a("selp.f32 {}, {}, {}, {};", scores[which], LEAST, there)

    def _folded(self, op: str, names: Sequence[str]) -> str:
        """All of them by one operation, in some chains."""
        a = self.a
        chains = list(names[:CHAINS])
        for i, name in enumerate(names[CHAINS:]):
            chains[i % CHAINS] = a(f"{op} {{}}, {{}}, {{}};", chains[i % CHAINS], name)
        while len(chains) > 1:
            chains[-2:] = [a(f"{op} {{}}, {{}}, {{}};", *chains[-2:])]
        return chains[0]

    def _shared(self, op: str, name: str) -> str:
        """The same of the four threads of a row."""
        a = self.a
        for distance in (1, 2):
            other = a("shfl.sync.bfly.b32 {}, {}, {}, 31, -1;", name, distance)
            name = a(f"{op} {{}}, {{}}, {{}};", name, other)
        return name

    # ---- results ---------------------------------------------------------------------------------

    def _finish(self, mixed: Sequence[str], totals: Sequence[str], start: str, first: str) -> None:
        """Divides by the sums of weights, applies the epilogue, and stores the tile."""
        a, kernel = self.a, self.kernel
        shares = [a("div.rn.f32 {}, {}, {};", number(1.0), total) for total in totals]
        seen = [a("setp.gt.f32 {}, {}, {};", t, number(0.0), kind="p") for t in totals]
        here = a("add.u32 {}, {}, {};", start, self.written)
        self._enter(self.epilogue, first)
        for i in range(0, len(mixed), 4):
            if 2 * i >= kernel.values:
                break
            names = []
            for j, name in enumerate(mixed[i : i + 4]):
                value = a("mul.f32 {}, {}, {};", name, shares[j // 2])
                if kernel.guarded:
                    value = a("selp.f32 {}, {}, {}, {};", value, number(0.0), seen[j // 2])
                names.append(value)
            made = self.epilogue.expression.finish(
                Lanes(a, "float32", tuple(names)), self.epilogue.load(2 * i)
            )
            self._write(here, 2 * i, made)
        a.line("fence.proxy.async.shared::cta;")
        a.line("bar.warp.sync -1;")
        with a.skipped_unless(self.leads):
            self._store(start, first)

    def _meet(self) -> None:
        """Waits for the group. A barrier that a register names would take all that there are."""
        a = self.a
        for group in range(self.kernel.groups):
            own = a("setp.eq.u32 {}, {}, {};", self.group, group, kind="p")
            a.line(f"@{own} bar.sync {1 + group}, {THREADS};")

    def _write(self, start: str, column: int, made: Sequence[str]) -> None:
        """Two elements of both rows to shared memory."""
        a, boxes = self.a, self.kernel.result_boxes
        box, inner = divmod(column, boxes.wide)
        piece, rest = divmod(inner * boxes.size, 16)
        where = a("xor.b32 {}, {}, {};", start, piece * 16) if piece else start
        kind, names = "b32", list(made)
        if boxes.size == 1:
            kind, names = "b16", [a.register("h"), a.register("h")]
            a.line(f"mov.b32 {{{', '.join(names)}}}, {made[0]};")
        for half, name in enumerate(names):
            more = box * boxes.each + 8 * half * boxes.line + rest
            a.line(f"st.shared.{kind} [{where}+{more}], {name};")

    def _store(self, start: str, first: str) -> None:
        """A warp's rows of the result."""
        a, boxes, pointer = self.a, self.kernel.result_boxes, len(self.pointers) - 1
        row = a("add.u32 {}, {}, {};", first, self.warp_row)
        start = a("mad.lo.u32 {}, {}, {}, {};", self.warp_row, boxes.line, start)
        for i in range(boxes.count):
            place = self._located(-1, row, i * boxes.wide)
            how = f"cp.async.bulk.tensor.{len(place)}d.global.shared::cta.bulk_group"
            here = a("add.u32 {}, {}, {};", start, i * boxes.each)
            a.line(f"{how} [{self.maps[pointer]}, {{{', '.join(place)}}}], [{here}];")
        a.line("cp.async.bulk.commit_group;")

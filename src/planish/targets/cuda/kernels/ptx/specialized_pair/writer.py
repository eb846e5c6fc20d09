"""Writes the kernel of pairs of convolutions with specialised warps."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from planish.targets.cuda.codegen.ptx import Lanes
from planish.targets.cuda.kernels.ptx.specialized.products import TYPES
from planish.targets.cuda.kernels.ptx.specialized.results import Operands
from planish.targets.cuda.kernels.ptx.specialized.tiles import COMPUTING, GROUPS, LOADING
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER, THREADS, GroupWriter

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.fused import Work
    from planish.targets.cuda.kernels.ptx.specialized_pair.kernel import SpecializedPairKernel

SIDE = 64
"""Rows and columns of a box: 128 bytes wide, and as many rows as an instruction multiplies."""
LINE = 128
"""Bytes of a box's row."""
BOX = SIDE * LINE
"""Bytes of a box."""
OWN = SIDE // 4
"""Columns of a box's row that a thread has."""
EACH = 8
"""Of them that it writes at once: 16 bytes."""
DEPTH = 16
"""Of an instruction."""


class Place(NamedTuple):
    """Registers: one of some places, and the parity of their turn."""

    number: str
    parity: str


class Cursor(NamedTuple):
    """Registers: a box of a group's results, by the unit of rows and its number there."""

    unit: str
    box: str


class SpecializedPairWriter(GroupWriter):
    """Writes a `SpecializedPairKernel`."""

    kernel: SpecializedPairKernel

    def write(self) -> str:
        a = self.a
        self._begin()
        computing, end = a.label(), a.label()
        computes = a("setp.lt.u32 {}, {}, {};", self.group, GROUPS, kind="p")
        a.line(f"@{computes} bra {computing};")
        a.line(f"setmaxnreg.dec.sync.aligned.u32 {LOADING};")
        leads = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
        with a.skipped_unless(leads):
            own = a("and.b32 {}, {}, 3;", self.warp)
            for number, body in ((0, self._load_weights), (1, self._load_images)):
                with a.skipped_unless(a("setp.eq.u32 {}, {}, {};", own, number, kind="p")):
                    body()
            with a.skipped_unless(a("setp.ge.u32 {}, {}, 2;", own, kind="p")):
                self._keep(a("sub.u32 {}, {}, 2;", own))
        a.line(f"bra {end};")
        a.line(f"{computing}:")
        a.line(f"setmaxnreg.inc.sync.aligned.u32 {COMPUTING};")
        self._compute()
        a.line(f"{end}:")
        a.line("ret;")
        return self._wrapped(a.body())

    def _begin(self) -> None:
        a, kernel = self.a, self.kernel
        self.tid = a("mov.u32 {}, %tid.x;")
        self.warp = a("shfl.sync.idx.b32 {}, {}, 0, 31, -1;", a("shr.u32 {}, {}, 5;", self.tid))
        self.group = a("shr.u32 {}, {}, 2;", self.warp)
        self.lane = a("and.b32 {}, {}, 31;", self.tid)
        self.memory = a("mov.u32 {}, memory;")
        self.first, self.stride = a("mov.u32 {}, %ctaid.x;"), a("mov.u32 {}, %nctaid.x;")
        rows = a("ld.param.u32 {}, [n0];")
        both = GROUPS * kernel.rows
        self.units = a("div.u32 {}, {}, {};", a("add.u32 {}, {}, {};", rows, both - 1), both)
        with a.skipped_unless(a("setp.eq.u32 {}, {}, 0;", self.tid, kind="p")):
            for i, count in enumerate(kernel.counts):
                place = kernel.barriers + BARRIER * i
                a.line(f"mbarrier.init.shared::cta.b64 [{self.memory}+{place}], {count};")
            a.line("fence.mbarrier_init.release.cluster;")
        self.maps = {
            i: a("cvta.param.u64 {}, {};", a(f"mov.b64 {{}}, p{i};", kind="d"), kind="d")
            for i, pointer in enumerate(self.pointers)
            if pointer.map is not None
        }
        a.line("bar.sync 0;")

    def _place(self, parity: int) -> Place:
        return Place(self.a("mov.u32 {}, 0;"), self.a("mov.u32 {}, {};", parity))

    def _row(self, unit: str, group: object) -> str:
        """The first row of a group's tile."""
        tile = self.a("mad.lo.u32 {}, {}, {}, {};", unit, GROUPS, group)
        return self.a("mul.lo.u32 {}, {}, {};", tile, self.kernel.rows)

    def _expect(self, barrier: str, count: int) -> None:
        how = "mbarrier.arrive.expect_tx.shared::cta.b64"
        self.a.line(f"{how} _, [{barrier}], {count};")

    # ---- loading ---------------------------------------------------------------------------------

    def _load_weights(self) -> None:
        """Chunks of both weights, which no kernel before this one has written: at once."""
        a, kernel = self.a, self.kernel
        if kernel.keeps_weights:
            chunk = a("mov.u32 {}, 0;")
            self._loop(chunk, kernel.chunks, lambda: self._load_chunk(chunk, chunk))
            return
        stage, unit = self._place(1), a("mov.u32 {}, {};", self.first)

        def load_unit() -> None:
            def body() -> None:
                self._wait(self._barrier(kernel.stages, stage.number), stage.parity)
                self._load_chunk(chunk, stage.number)
                self._turn(*stage, kernel.stages)

            chunk = a("mov.u32 {}, 0;")
            self._loop(chunk, kernel.chunks, body)

        self._loop(unit, self.units, load_unit, self.stride)

    def _load_chunk(self, chunk: str, stage: str) -> None:
        a, kernel = self.a, self.kernel
        barrier = self._barrier(0, stage)
        self._expect(barrier, kernel.stage_bytes)
        here = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
        start = a("mul.lo.u32 {}, {}, {};", chunk, SIDE)
        for part in range(kernel.parts + 1):
            there = a("add.u32 {}, {}, {};", here, part * BOX)
            if part < kernel.parts:
                self._copy_in(kernel.first, there, [str(part * SIDE), start], barrier)
            else:
                self._copy_in(kernel.second, there, [start, "0"], barrier)

    def _load_images(self) -> None:
        """Tiles of the image, for both groups in turns."""
        a, kernel = self.a, self.kernel
        a.line("griddepcontrol.wait;")
        slot, unit = self._place(1), a("mov.u32 {}, {};", self.first)

        def body() -> None:
            for group in range(GROUPS):
                number = a("add.u32 {}, {}, {};", slot.number, group * kernel.ahead)
                self._wait(self._image_barrier(1, number), slot.parity)
                barrier = self._image_barrier(0, number)
                self._expect(barrier, kernel.image_bytes)
                here = a("mad.lo.u32 {}, {}, {}, {};", number, kernel.image_bytes, self.memory)
                row = self._row(unit, group)
                for i in range(kernel.blocks * kernel.parts):
                    block, part = divmod(i, kernel.parts)
                    there = a("add.u32 {}, {}, {};", here, kernel.image_start + i * BOX)
                    own = a("add.u32 {}, {}, {};", row, block * SIDE)
                    image, channel = kernel.places[part]
                    self._copy_in(image, there, [str(channel), own], barrier)
            self._turn(*slot, kernel.ahead)

        self._loop(unit, self.units, body, self.stride)

    def _image_barrier(self, kind: int, number: str) -> str:
        """What says that a tile is there (0), or was read (1)."""
        kernel = self.kernel
        return self._barrier(kernel.image_barriers + kind * GROUPS * kernel.ahead, number)

    # ---- boxes of results ------------------------------------------------------------------------

    def _keep(self, group: str) -> None:
        """Stores boxes of a group's results that are complete; loads what is added to others into
        those that were stored before.
        """
        a, kernel = self.a, self.kernel
        a.line("griddepcontrol.wait;")
        start = a("mad.lo.u32 {}, {}, {}, {};", group, kernel.ring * BOX, self.memory)
        now, later = (
            Cursor(a("mov.u32 {}, {};", self.first), a("mov.u32 {}, 0;")) for _ in range(2)
        )
        place, free = self._place(0), a("mov.u32 {}, {};", kernel.ring - 1)
        for number in range(kernel.ring - 1):
            self._ask(group, start, str(number), later)
        again, end = a.label(), a.label()
        a.line(f"{again}:")
        a.line(f"@{a('setp.ge.u32 {}, {}, {};', now.unit, self.units, kind='p')} bra {end};")
        self._wait(self._box_barrier(1, group, place.number), place.parity)
        self._store(group, a("mad.lo.u32 {}, {}, {}, {};", place.number, BOX, start), now)
        a.line("cp.async.bulk.commit_group;")
        a.line("cp.async.bulk.wait_group.read 1;")  # the box before has left its place
        self._ask(group, start, free, later)
        a.line(f"mov.u32 {free}, {place.number};")
        self._next_box(now)
        self._turn(*place, kernel.ring)
        a.line(f"bra {again};")
        a.line(f"{end}:")
        a.line("cp.async.bulk.wait_group.read 0;")

    def _box_barrier(self, kind: int, group: str, place: str) -> str:
        """What says that a box may be computed (0), or that it is complete (1)."""
        kernel = self.kernel
        number = self.a("mad.lo.u32 {}, {}, {}, {};", group, kernel.ring, place)
        return self._barrier(kernel.box_barriers + kind * GROUPS * kernel.ring, number)

    def _next_box(self, cursor: Cursor) -> None:
        a = self.a
        a.line(f"add.u32 {cursor.box}, {cursor.box}, 1;")
        over = a("setp.ge.u32 {}, {}, {};", cursor.box, self.kernel.boxes, kind="p")
        a.line(f"@{over} mov.u32 {cursor.box}, 0;")
        a.line(f"@{over} add.u32 {cursor.unit}, {cursor.unit}, {self.stride};")

    def _located(self, group: str, cursor: Cursor, first: int) -> list[str]:
        """Where a box lies in its tensor, whose first one has that number; the columns first."""
        a, kernel = self.a, self.kernel
        box = a("sub.u32 {}, {}, {};", cursor.box, first)
        column = a("div.u32 {}, {}, {};", box, kernel.blocks)
        block = a("sub.u32 {}, {}, {};", box, a("mul.lo.u32 {}, {}, {};", column, kernel.blocks))
        row = a("mad.lo.u32 {}, {}, {}, {};", block, SIDE, self._row(cursor.unit, group))
        return [a("mul.lo.u32 {}, {}, {};", column, SIDE), row]

    def _store(self, group: str, start: str, cursor: Cursor) -> None:
        a, kernel = self.a, self.kernel
        where = a("add.u32 {}, {}, {};", start, kernel.buffers)
        results = {len(self.pointers) - 1: kernel.between_boxes}
        if kernel.kept:
            results[kernel.second - 1] = 0
        for number, first in results.items():
            how = "lt" if first == 0 < kernel.between_boxes else "ge"
            these = a(
                f"setp.{how}.u32 {{}}, {{}}, {{}};", cursor.box, kernel.between_boxes, kind="p"
            )
            with a.skipped_unless(these):
                place = ", ".join(self._located(group, cursor, first))
                how = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
                a.line(f"{how} [{self.maps[number]}, {{{place}}}], [{where}];")

    def _ask(self, group: str, start: str, to: str, cursor: Cursor) -> None:
        """Has the next box's place made ready, if there is one: what is added to it is loaded."""
        a, kernel = self.a, self.kernel
        with a.skipped_unless(a("setp.lt.u32 {}, {}, {};", cursor.unit, self.units, kind="p")):
            barrier = self._box_barrier(0, group, to)
            count = 0 if kernel.residual is None else kernel.between_boxes
            adds = a("setp.lt.u32 {}, {}, {};", cursor.box, count, kind="p")
            a.line(f"@!{adds} mbarrier.arrive.shared::cta.b64 _, [{barrier}];")
            if kernel.residual is not None:
                with a.skipped_unless(adds):
                    self._expect(barrier, BOX)
                    there = a("mad.lo.u32 {}, {}, {}, {};", to, BOX, start)
                    there = a("add.u32 {}, {}, {};", there, kernel.buffers)
                    number = kernel.first + 1 + _place_of(kernel.between, kernel.residual)
                    self._copy_in(number, there, self._located(group, cursor, 0), barrier)
            self._next_box(cursor)

    # ---- the groups that compute -----------------------------------------------------------------

    def _compute(self) -> None:
        a, kernel = self.a, self.kernel
        self._prepare()
        unit = a("mov.u32 {}, {};", self.first)
        stage, slot = self._place(0), self._place(0)
        self.box = self._place(0)
        sums = a.registers(SIDE // 2)
        totals = [a.registers(kernel.columns // 2) for _ in range(kernel.blocks)]
        for name in (*sums, *(name for names in totals for name in names)):
            a.line(f"mov.b32 {name}, 0;")

        def body() -> None:
            number = a("mad.lo.u32 {}, {}, {}, {};", self.group, kernel.ahead, slot.number)
            self._wait(self._image_barrier(0, number), slot.parity)
            image = a("mad.lo.u32 {}, {}, {}, {};", number, kernel.image_bytes, self.memory)
            image = self._described(a("add.u32 {}, {}, {};", image, kernel.image_start))
            last = self._multiply(image, stage, sums, totals)
            a.line("wgmma.wait_group.sync.aligned 0;")
            if not kernel.keeps_weights:
                self._free(kernel.stages, last, self.leads)
            read = kernel.image_barriers + GROUPS * kernel.ahead
            self._free(read, number, self.leads)
            self._turn(*slot, kernel.ahead)
            for column in range(kernel.columns // SIDE):
                vectors = self._load_vectors(self.second, column * SIDE)
                for total in totals:
                    own = total[column * SIDE // 2 :][: SIDE // 2]
                    self._finish_second(own, vectors)

        self._loop(unit, self.units, body, self.stride)
        self._look_ahead(GROUPS * THREADS)

    def _prepare(self) -> None:
        """What a thread needs for all of its tiles."""
        a, kernel = self.a, self.kernel
        self.leads = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
        self.high = a("mov.u32 {}, {};", 1 << 30 | 8 * LINE >> 4)  # of descriptors
        self.always = a("setp.lt.u32 {}, {}, 32;", self.lane, kind="p")
        self.never = a("setp.ge.u32 {}, {}, 32;", self.lane, kind="p")
        # a row by four threads, eight rows by a warp's
        row, self.quarter = a("shr.u32 {}, {}, 2;", self.lane), a("and.b32 {}, {}, 3;", self.lane)
        warp = a("and.b32 {}, {}, 3;", self.warp)
        line = a("mad.lo.u32 {}, {}, {}, {};", self.group, kernel.ring * BOX, self.memory)
        own = a("mad.lo.u32 {}, {}, {}, {};", row, LINE, line)
        line = a("mad.lo.u32 {}, {}, {}, {};", warp, 16 * LINE, own)
        self.pieces = []
        for i in range(OWN // EACH):
            piece = a("mad.lo.u32 {}, {}, {}, {};", self.quarter, OWN // EACH, i)
            piece = a("xor.b32 {}, {}, {};", piece, row)  # as tensor maps exchange places
            self.pieces.append(a("mad.lo.u32 {}, {}, 16, {};", piece, line))
        own = a("mul.lo.u32 {}, {}, {};", self.quarter, OWN)
        self.between = Operands(kernel.between, a, kernel.first + 1, kernel.residual)
        self.second = Operands(kernel.result, a, kernel.second + 1)
        self.addresses = {o: o.addresses(own) for o in (self.between, self.second)}

    def _multiply(self, image: str, stage: Place, sums: list[str], totals: list[list[str]]) -> str:
        """Both products of a tile, chunk by chunk; the last stage, which may still be read."""
        a, kernel = self.a, self.kernel
        chunk, last = a("mov.u32 {}, 0;"), a("mov.u32 {}, 0;")
        if kernel.keeps_weights:
            stage = Place(chunk, "0")

        def body() -> None:
            self._wait(self._barrier(0, stage.number), stage.parity)
            here = a("mad.lo.u32 {}, {}, {}, {};", stage.number, kernel.stage_bytes, self.memory)
            weights = self._described(here)
            begun = a("setp.ne.u32 {}, {}, 0;", chunk, kind="p")
            for block, total in enumerate(totals):
                self._begin_first(image, weights, block, sums)
                if block == 0:
                    vectors = self._load_vectors(self.between, chunk)
                a.line("wgmma.wait_group.sync.aligned 0;")
                if block == 0 and not kernel.keeps_weights:  # nothing reads those before
                    leads = a("and.pred {}, {}, {};", begun, self.leads, kind="p")
                    self._free(kernel.stages, last, leads)
                made = self._finish_between(sums, vectors)
                self._begin_second(made, weights, begun, total)
            if not kernel.keeps_weights:
                a.line(f"mov.u32 {last}, {stage.number};")
                self._turn(*stage, kernel.stages)

        self._loop(chunk, kernel.chunks, body)
        return last

    def _begin_first(self, image: str, weights: str, block: int, sums: list[str]) -> None:
        """Has tensor cores begin with a chunk of the first product."""
        a, kernel = self.a, self.kernel
        op = f"wgmma.mma_async.sync.aligned.m64n{SIDE}k{DEPTH}.{TYPES[kernel.dtype][0]}"
        a.line("wgmma.fence.sync.aligned;")
        for step in range(kernel.parts * SIDE // DEPTH):
            part, inner = divmod(step, SIDE // DEPTH)
            first = self._descriptor(
                image, ((block * kernel.parts + part) * BOX >> 4) + 2 * inner, self.high
            )
            right = self._descriptor(weights, (part * BOX >> 4) + 2 * inner, self.high)
            adds = self.always if step else self.never
            a.line(f"{op} {{{', '.join(sums)}}}, {first}, {right}, {adds}, 1, 1, 0, 0;")
        a.line("wgmma.commit_group.sync.aligned;")

    def _begin_second(
        self, made: list[list[str]], weights: str, adds: str, total: list[str]
    ) -> None:
        """The same of the second one, by a chunk of the first result."""
        a, kernel = self.a, self.kernel
        op = f"wgmma.mma_async.sync.aligned.m64n{kernel.columns}k{DEPTH}.{TYPES[kernel.dtype][0]}"
        a.line("wgmma.fence.sync.aligned;")
        for step in range(SIDE // DEPTH):
            low, high = (half[2 * step : 2 * step + 2] for half in made)
            left = f"{{{low[0]}, {high[0]}, {low[1]}, {high[1]}}}"
            right = self._descriptor(weights, (kernel.parts * BOX >> 4) + 2 * step, self.high)
            predicate = self.always if step else adds
            a.line(f"{op} {{{', '.join(total)}}}, {left}, {right}, {predicate}, 1, 1, 0;")
        a.line("wgmma.commit_group.sync.aligned;")

    # ---- what happens to sums --------------------------------------------------------------------

    def _load_vectors(self, operands: Operands, start: str | int) -> list[dict[int, Lanes]]:
        """What the thread's columns of a chunk, or from a column on, have of their own; for each
        piece.
        """
        addresses, place = self.addresses[operands], 0
        if isinstance(start, str):
            addresses = operands.further(addresses, start, SIDE)
        else:
            place = start
        loaded = [operands.load(addresses, place + i * EACH, EACH) for i in range(OWN // EACH)]
        return [operands.unpacked(found) for found in loaded]

    def _finish_between(self, sums: list[str], vectors: list[dict[int, Lanes]]) -> list[list[str]]:
        """A chunk of 64 rows of the first result; both of the thread's rows as they are stored."""
        if self.kernel.between_boxes == 0:
            return self._finish(self.between, sums, vectors, None, False)
        starts = self._enter_box()
        made = self._finish(self.between, sums, vectors, starts, self.kernel.kept)
        self._leave_box(self.kernel.kept)
        return made

    def _finish_second(self, sums: list[str], vectors: list[dict[int, Lanes]]) -> None:
        """64 rows and columns of the second result."""
        self._finish(self.second, sums, vectors, self._enter_box(), True)
        self._leave_box(True)

    def _enter_box(self) -> list[str]:
        """Waits until the next box may be computed; where each of a thread's pieces begins."""
        a = self.a
        self._wait(self._box_barrier(0, self.group, self.box.number), self.box.parity)
        return [a("mad.lo.u32 {}, {}, {}, {};", self.box.number, BOX, p) for p in self.pieces]

    def _leave_box(self, written: bool) -> None:
        """Says that a box is complete, or was read."""
        a = self.a
        if written:
            a.line("fence.proxy.async.shared::cta;")
        a.line("bar.warp.sync -1;")
        done = self._box_barrier(1, self.group, self.box.number)
        a.line(f"@{self.leads} mbarrier.arrive.shared::cta.b64 _, [{done}];")
        self._turn(*self.box, self.kernel.ring)

    def _finish(
        self,
        operands: Operands,
        sums: list[str],
        vectors: list[dict[int, Lanes]],
        starts: list[str] | None,
        stored: bool,
    ) -> list[list[str]]:
        """Applies an epilogue to 64 rows and columns, 16 bytes of a row at a time."""
        a = self.a
        made: list[list[str]] = [[], []]
        for piece, half in product(range(OWN // EACH), range(2)):
            where, residual = "", list[str]()
            if starts is not None:
                where = f"[{starts[piece]}+{self.kernel.buffers + 8 * half * LINE}]"
            if operands.residual is not None:
                residual = a.registers(4)
                a.line(f"ld.shared.v4.b32 {{{', '.join(residual)}}}, {where};")
            own = range(2 * EACH * piece + 2 * half, 2 * EACH * (piece + 1), 4)
            names = tuple(name for i in own for name in sums[i : i + 2])
            leaves = operands.leaves(vectors[piece], residual)
            results = operands.epilogue.finish(Lanes(a, self.sums, names), leaves)
            if stored:
                a.line(f"st.shared.v4.b32 {where}, {{{', '.join(results)}}};")
            made[half] += results
        return made


def _place_of(work: Work, leaf: int) -> int:
    """The number of a leaf's pointer among the work's."""
    return sum(a is not None for a in work.leaves[:leaf])

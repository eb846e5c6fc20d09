"""Writes the matrix kernel with specialised warps that normalizes rows; see `NormKernel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planish.targets.cuda.codegen.ptx import Assembly, Lanes, number
from planish.targets.cuda.kernels.ptx.specialized.results import Operands
from planish.targets.cuda.kernels.ptx.specialized.writer import SpecializedWriter
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.ptx.specialized_norm.kernel import NormKernel, Use

Rows = list[list[list[Sequence[str]]]]
"""Registers: of both rows of each 64, the pieces."""
EIGHT = 8
"""Columns that a thread finishes at a time."""
State = tuple[str, str]
"""Registers: of a row the mean and the sum of squared deviations."""
AT_ONCE = 3
"""States of 64 rows that a thread waits for at a time: the cache is as quick with several, but
registers are short.
"""
TICKETS = 128
"""Bytes before all states: how many blocks have begun."""
_QUAD = (1, 2)
"""Distances of the four threads that share a row."""


class NormWriter(SpecializedWriter):
    """Writes a `NormKernel`."""

    kernel: NormKernel

    # ---- blocks and tiles ------------------------------------------------------------------------

    def _number_blocks(self) -> None:
        """Names the block's team, how many there are, and its number in it."""
        a, team = self.a, self.kernel.column_tiles
        blocks = a("mov.u32 {}, %nctaid.x;")
        self.rank = "0"
        if team == 1:
            self.unit, self.units = a("mov.u32 {}, %ctaid.x;"), blocks
            return
        place = f"[{self.memory}+{self.kernel.ticket}]"
        with a.skipped_unless(a("setp.eq.u32 {}, {}, 0;", self.tid, kind="p")):
            a.line("griddepcontrol.wait;")  # the kernel before may have the same memory
            last = a("sub.u32 {}, {}, 1;", blocks)
            # which is zero again when all have begun
            ticket = a("atom.global.inc.u32 {}, [{}], {};", self._memory_of_teams(), last)
            a.line(f"st.shared.b32 {place}, {{{ticket}}};")
        a.line("bar.sync 0;")
        block = a(f"ld.shared.b32 {{}}, {place};")
        self.unit = a("div.u32 {}, {}, {};", block, team)
        self.units = a("div.u32 {}, {}, {};", blocks, team)
        whole = a("mul.lo.u32 {}, {}, {};", self.unit, team)
        self.rank = a("sub.u32 {}, {}, {};", block, whole)

    def _memory_of_teams(self) -> str:
        a = self.a
        address = a(f"ld.param.u64 {{}}, [p{len(self.pointers) - 1}];", kind="d")
        return a("cvta.to.global.u64 {}, {};", address, kind="d")

    def _count_tiles(self, rows: str) -> None:
        a, count = self.a, self.kernel.tile.rows
        self.tiles = a("div.u32 {}, {}, {};", a("add.u32 {}, {}, {};", rows, count - 1), count)

    def _locate(self, tile: str) -> tuple[str, list[str]]:
        a, kernel = self.a, self.kernel
        column = a("mul.lo.u32 {}, {}, {};", self.rank, kernel.tile.columns)
        return column, [a("mul.lo.u32 {}, {}, {};", tile, kernel.tile.rows)]

    # ---- boxes -----------------------------------------------------------------------------------

    @property
    def _first_turn(self) -> int:
        return 0  # the thread that looks after boxes says of each one that it may be computed

    def _keep(self) -> None:
        """Loads and stores a group's boxes, in the order of their uses."""
        a, kernel = self.a, self.kernel
        group = a("sub.u32 {}, {}, 10;", self.warp)
        buffer = self._buffer(group)
        self._begin_ring(0)
        tile, _, stride = self._tiles_of(group)
        for place in range(kernel.ring):
            self._open(group, buffer, str(place), (tile, stride), place)

        def body() -> None:
            for count, use in enumerate(kernel.uses):
                self._wait(self._ring_barrier(1, group, self.place), self.turned)
                if use.stored is not None:
                    start = a("mad.lo.u32 {}, {}, {}, {};", self.place, kernel.box_bytes, buffer)
                    self._store(use, use.stored, start, tile)
                self._open(group, buffer, self.place, (tile, stride), count + kernel.ring)
                self._next_of_ring()

        self._loop(tile, self.tiles, body, stride)

    def _store(self, use: Use, pointer: int, start: str, tile: str) -> None:
        a = self.a
        where = ", ".join(self._box_of(use, tile))
        how = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
        a.line(f"{how} [{self.maps[pointer]}, {{{where}}}], [{start}];")
        a.line("cp.async.bulk.commit_group;")
        a.line("cp.async.bulk.wait_group.read 0;")

    def _box_of(self, use: Use, tile: str) -> list[str]:
        column, rows = self._locate(tile)
        return [self.a("add.u32 {}, {}, {};", column, use.box * self.kernel.width), *rows]

    def _open(
        self, group: str, buffer: str, place: str, tiles: tuple[str, str], count: int
    ) -> None:
        """Says that a box may be computed, `count` uses behind a tile's first one: loads what it is
        loaded with, if there is such a tile.
        """
        a, kernel = self.a, self.kernel
        tile, stride = tiles
        later, which = divmod(count, len(kernel.uses))
        use = kernel.uses[which]
        barrier = self._ring_barrier(0, group, place)
        if use.loaded is None:
            a.line(f"mbarrier.arrive.shared::cta.b64 _, [{barrier}];")
            return
        if later:
            tile = a("mad.lo.u32 {}, {}, {}, {};", stride, later, tile)
        with a.skipped_unless(a("setp.lt.u32 {}, {}, {};", tile, self.tiles, kind="p")):
            how = "mbarrier.arrive.expect_tx.shared::cta.b64"
            a.line(f"{how} _, [{barrier}], {kernel.box_bytes};")
            start = a("mad.lo.u32 {}, {}, {}, {};", place, kernel.box_bytes, buffer)
            self._copy_in(use.loaded, start, self._box_of(use, tile), barrier)

    # ---- ends of tiles ---------------------------------------------------------------------------

    def _prepare_results(self) -> None:
        super()._prepare_results()
        self.after = Operands(self.kernel.after, self.a, self.kernel.after_pointer)

    def _finish(self, sums: Sequence[Sequence[str]], column: str, tile: str) -> None:
        made, totals = self._sum(sums, column)
        rows = self._scales(made, totals, tile)
        self._normalize(made, rows, column)

    def _sum(self, sums: Sequence[Sequence[str]], column: str) -> tuple[Rows, list[list[str]]]:
        """What is normalized, and the sum of a thread's numbers of each row. Numbers are rounded as
        the tensor's would be: else registers were too few for all of them and anything beside.
        """
        a, kernel, operands = self.a, self.kernel, self.operands
        made: Rows = [[[], []] for _ in sums]
        totals = [[number(0)] * 2 for _ in sums]
        has_boxes = len(kernel.uses) > kernel.boxes
        for box, eight, vectors in self._pieces(operands, column):
            if eight == 0 and has_boxes:
                starts = self._enter_box()
            for block, names in enumerate(sums):
                for half in range(2):
                    where = self._place_of_eight(starts, eight, block, half) if has_boxes else ""
                    residual = self._load_eight(where) if kernel.residual is not None else ()
                    own = tuple(names[i] for i in self._numbers(box, eight, half))
                    leaves = operands.leaves(vectors, residual)
                    lanes = operands.epilogue.apply(Lanes(a, self.sums, own), leaves)
                    total = _joined_by("add.f32", a, lanes.names)
                    totals[block][half] = a("add.f32 {}, {}, {};", totals[block][half], total)
                    packed = operands.epilogue.packed(lanes, EIGHT, kernel.inner)
                    made[block][half].append(packed)
                    if kernel.kept_pointer is not None:
                        self._store_eight(where, packed)
                    a.line("bar.warp.sync -1;")  # or later residuals' loads are moved up to here
            if eight == self._last and has_boxes:
                self._leave_box(kernel.kept_pointer is not None)
        return made, totals

    # ---- eight columns of a row ------------------------------------------------------------------

    @property
    def each(self) -> int:
        return EIGHT

    def _place_of_eight(self, starts: Sequence[str], eight: int, block: int, half: int) -> str:
        piece, rest = divmod(eight * EIGHT * self.kernel.size, 16)
        return self._place_of(starts[piece], block, half, rest)

    @property
    def _words(self) -> int:
        """Registers of a box's eight columns."""
        return EIGHT * self.kernel.size // 4

    def _load_eight(self, where: str) -> list[str]:
        registers = self.a.registers(self._words)
        self.a.line(f"ld.shared.v{self._words}.b32 {{{', '.join(registers)}}}, {where};")
        return registers

    def _store_eight(self, where: str, names: Sequence[str]) -> None:
        self.a.line(f"st.shared.v{self._words}.b32 {where}, {{{', '.join(names)}}};")

    # ---- statistics ------------------------------------------------------------------------------

    def _scales(
        self, made: Rows, totals: Sequence[Sequence[str]], tile: str
    ) -> list[list[tuple[str, str]]]:
        """For both rows of each 64: by what numbers are multiplied, and what is added then."""
        a, kernel = self.a, self.kernel
        states: list[list[State]] = []
        for rows, sums in zip(made, totals, strict=True):
            states.append([])
            for pieces, total in zip(rows, sums, strict=True):
                whole = self._of_quad(total)
                mean = a("mul.rn.f32 {}, {}, {};", whole, number(1 / kernel.tile.columns))
                parts = [number(0)] * 2
                for piece in pieces:
                    for i, name in enumerate(self._unpacked(piece)):
                        away = a("sub.rn.f32 {}, {}, {};", name, mean)
                        parts[i % 2] = a("fma.rn.f32 {}, {}, {}, {};", away, away, parts[i % 2])
                squares = self._of_quad(a("add.f32 {}, {}, {};", *parts))
                states[-1].append((mean, squares))
        if kernel.column_tiles > 1:
            states = self._of_whole_rows(states, tile)
        return [[(mean, self._scale(squares)) for mean, squares in rows] for rows in states]

    def _unpacked(self, piece: Sequence[str]) -> tuple[str, ...]:
        """A piece's numbers as float32."""
        return self.operands.epilogue.unpacked(self.kernel.inner, piece).names

    def _of_quad(self, total: str) -> str:
        """The sum of what the four threads that share a row have."""
        a = self.a
        for distance in _QUAD:
            other = a(f"shfl.sync.bfly.b32 {{}}, {{}}, {distance}, 31, -1;", total)
            total = a("add.f32 {}, {}, {};", total, other)
        return total

    def _scale(self, squares: str) -> str:
        """The inverse of the deviation of a row with that sum of squared deviations."""
        a, kernel = self.a, self.kernel
        share, epsilon = number(1 / kernel.columns), number(kernel.epsilon)
        variance = a("fma.rn.f32 {}, {}, {}, {};", squares, share, epsilon)
        return a("rsqrt.approx.ftz.f32 {}, {};", variance)

    def _of_whole_rows(self, states: Sequence[Sequence[State]], tile: str) -> list[list[State]]:
        """Exchanges what blocks know of their columns: gives what is true of all."""
        a, kernel = self.a, self.kernel
        team = kernel.column_tiles
        start = a("and.b32 {}, {}, {};", self.tid, THREADS - 4)
        start = a("mul.lo.u32 {}, {}, 4;", start)  # threads of a row have the same place
        start = a("mad.wide.u32 {}, {}, 1, {};", start, self._memory_of_teams(), kind="d")
        first = a("mul.lo.u32 {}, {}, {};", tile, team)
        self._give(states, start, first)
        own = a("add.u32 {}, {}, {};", first, self.rank)
        received = self._place(start, a("mul.lo.u32 {}, {}, {};", own, team - 1))
        known = [list(rows) for rows in states]
        order = [(count, block) for count in range(1, team) for block in range(len(states))]
        for i in range(0, len(order), AT_ONCE):
            some = order[i : i + AT_ONCE]
            found = self._receive(received, some)
            for (count, block), four in zip(some, found, strict=True):
                parts = zip(known[block], (four[:2], four[2:]), strict=True)
                known[block] = [self._joined(state, part, count) for state, part in parts]
        a.line("bar.warp.sync -1;")
        self._clear(received)
        return known

    def _place(self, start: str, number: str) -> str:
        """Where a tile's states of that number are, for the thread that starts there."""
        return self.a(
            "mad.wide.u32 {}, {}, {}, {};", number, self.kernel.state_bytes, start, kind="d"
        )

    def _give(self, states: Sequence[Sequence[State]], start: str, first: str) -> None:
        """Writes states to the places of the team's other blocks: each thread of a quad to some.
        What a block is given by the one behind it comes first, by the one before it last.
        """
        a, kernel = self.a, self.kernel
        team = kernel.column_tiles
        turned = [
            ", ".join(a("not.b32 {}, {};", name) for state in rows for name in state)
            for rows in states
        ]
        for least in range(1, team, 4):
            behind = a("add.u32 {}, {}, {};", self.quarter, least)
            exists = a("setp.lt.u32 {}, {}, {};", behind, team, kind="p")
            to = a("add.u32 {}, {}, {};", self.rank, behind)
            over = a("setp.ge.u32 {}, {}, {};", to, team, kind="p")
            a.line(f"@{over} sub.u32 {to}, {to}, {team};")
            number = a("mad.lo.u32 {}, {}, {}, {};", to, team - 1, team - 1)
            number = a("sub.u32 {}, {}, {};", number, behind)
            number = a("mad.lo.u32 {}, {}, {}, {};", first, team - 1, number)
            there = self._place(start, number)
            for block, four in enumerate(turned):
                where = f"[{there}+{TICKETS + 512 * block}]"
                a.line(f"@{exists} st.relaxed.gpu.global.v4.b32 {where}, {{{four}}};")

    def _receive(self, start: str, wanted: Sequence[tuple[int, int]]) -> list[list[str]]:
        """What blocks so far behind have given of some 64 rows, when all of it is there."""
        a = self.a
        again, found = a.label(), [a.registers(4) for _ in wanted]
        a.line(f"{again}:")
        for (count, block), four in zip(wanted, found, strict=True):
            place = TICKETS + (count - 1) * self.kernel.state_bytes + 512 * block
            a.line(f"ld.relaxed.gpu.global.v4.b32 {{{', '.join(four)}}}, [{start}+{place}];")
        least = _joined_by("min.u32", a, [name for four in found for name in four])
        missing = a("setp.eq.u32 {}, {}, 0;", least, kind="p")
        a.line(f"@{missing} bra {again};")
        return [[a("not.b32 {}, {};", name) for name in four] for four in found]

    def _clear(self, received: str) -> None:
        """Makes zero what all threads of a warp have read: each of a quad some."""
        a, kernel = self.a, self.kernel
        team = kernel.column_tiles
        for least in range(0, team - 1, 4):
            number = a("add.u32 {}, {}, {};", self.quarter, least)
            exists = a("setp.lt.u32 {}, {}, {};", number, team - 1, kind="p")
            there = self._place(received, number)
            for block in range(kernel.tile.rows // 64):
                where = f"[{there}+{TICKETS + 512 * block}]"
                a.line(f"@{exists} st.global.v4.b32 {where}, {{0, 0, 0, 0}};")

    def _joined(self, known: State, part: Sequence[str], count: int) -> State:
        """The mean and squares of so many parts of a row and another one of as many columns."""
        a, columns = self.a, self.kernel.tile.columns
        away = a("sub.f32 {}, {}, {};", part[0], known[0])
        mean = a("fma.rn.f32 {}, {}, {}, {};", away, number(1 / (count + 1)), known[0])
        squares = a("add.f32 {}, {}, {};", known[1], part[1])
        between = a("mul.f32 {}, {}, {};", away, away)
        weight = number(columns * count / (count + 1))
        return mean, a("fma.rn.f32 {}, {}, {}, {};", between, weight, squares)

    def _normalize(
        self, made: Rows, rows: Sequence[Sequence[tuple[str, str]]], column: str
    ) -> None:
        """Normalizes, applies what is left to do, and hands boxes over to be stored."""
        a, after = self.a, self.after
        for count, (_, eight, vectors) in enumerate(self._pieces(after, column)):
            if eight == 0:
                starts = self._enter_box()
            for block, halves in enumerate(made):
                for half, eights in enumerate(halves):
                    mean, scale = rows[block][half]
                    # the mean first: its product with the inverse deviation may be large
                    away = [
                        a("sub.rn.f32 {}, {}, {};", name, mean)
                        for name in self._unpacked(eights[count])
                    ]
                    own = [a("mul.rn.f32 {}, {}, {};", name, scale) for name in away]
                    leaves = after.leaves(vectors)
                    result = after.epilogue.finish(Lanes(a, "float32", tuple(own)), leaves)
                    self._store_eight(self._place_of_eight(starts, eight, block, half), result)
            if eight == self._last:
                self._leave_box()


def _joined_by(op: str, a: Assembly, names: Sequence[str]) -> str:
    """What an operation makes of registers, of which neighbours are joined first."""
    while len(names) > 1:
        pairs = zip(names[::2], names[1::2], strict=False)
        rest = names[-1:] if len(names) % 2 else ()
        names = [*(a(f"{op} {{}}, {{}}, {{}};", x, y) for x, y in pairs), *rest]
    return names[0]

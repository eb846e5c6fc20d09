"""Writes the matrix kernel that is ready before its turn: what happens to sums.

A thread's sums are cut into pieces, 16 bytes of a row of the result each. The blocks of a cluster
each finish as many pieces of every thread, and hand the others' sums over, thread by thread: nobody
reads another thread's sums but those of the thread of its number.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.targets.cuda.codegen.ptx import Lanes
from planish.targets.cuda.kernels.fused import Access
from planish.targets.cuda.kernels.matrix_tile import SHARED_BYTES
from planish.targets.cuda.kernels.ptx.prompt.loading import PromptLoader
from planish.targets.cuda.kernels.ptx.specialized.results import Epilogue
from planish.targets.cuda.kernels.ptx.specialized.tiles import SIDE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS

PIECE = 16
"""Bytes of a row of the result that a thread writes at once."""


class PromptResultWriter(PromptLoader):
    """Writes what surrounds the products of the group that computes."""

    epilogue: Epilogue

    def _place_pieces(self) -> None:
        """Names the rows of the pieces that the thread finishes, whether they exist, and the first
        box of columns.
        """
        a, kernel = self.a, self.kernel
        share, boxes = kernel.share, kernel.boxes
        count = max(share // boxes, 1)
        if share >= boxes:
            first, self.box = a("mul.lo.u32 {}, {}, {};", self.rank, count), "0"
        else:
            first, inside = self._divided(self.rank, boxes // share)
            self.box = a("mul.lo.u32 {}, {}, {};", inside, share)
        own = a("mad.lo.u32 {}, {}, 16, {};", self.warp, a("shr.u32 {}, {}, 2;", self.lane))
        self.rows = []
        for number in range(count):
            block, half = self._divided(a("add.u32 {}, {}, {};", first, number), 2)
            row = a("mad.lo.u32 {}, {}, 64, {};", block, own)
            self.rows.append(self._place_row(a("mad.lo.u32 {}, {}, 8, {};", half, row)))

    def _place_row(self, local: str) -> tuple[str, str]:
        """A row of the result by its number in the tile, and whether it exists."""
        a, kernel = self.a, self.kernel
        count = a("ld.param.u32 {}, [n0];")
        if kernel.window is None:
            row = a("add.u32 {}, {}, {};", self.origin[0], local)
            return row, a("setp.lt.u32 {}, {}, {};", row, count, kind="p")
        high, wide = kernel.axes[1:]
        start = self.origin
        if kernel.frames:
            square, local = self._divided(local, SIDE * SIDE)
            start = self._located(a("add.u32 {}, {}, {};", self.origin[0], square))
        rest, x = self._divided(local, kernel.wide)
        image, y = self._divided(rest, kernel.high)
        x, y, image = (
            a("add.u32 {}, {}, {};", inside, begin)
            for inside, begin in zip((x, y, image), start, strict=True)
        )
        row = a("mad.lo.u32 {}, {}, {}, {};", image, high, y)
        row = a("mad.lo.u32 {}, {}, {}, {};", row, wide, x)
        # those beside an image would be others; those of images that are not there are too many
        exists = a("setp.lt.u32 {}, {}, {};", row, count, kind="p")
        for at, extent in ((x, wide), (y, high)):
            inside = a("setp.lt.u32 {}, {}, {};", at, extent, kind="p")
            exists = a("and.pred {}, {}, {};", exists, inside, kind="p")
        return row, exists

    def _columns_of(self, start: str) -> str:
        """The first column of a thread's first piece, counted from there."""
        a, kernel = self.a, self.kernel
        column = a("mad.lo.u32 {}, {}, {}, {};", self.box, kernel.neighbours, start)
        return a("mad.lo.u32 {}, {}, {}, {};", self.quarter, PIECE // kernel.size, column)

    def _address(self, item: Access, number: int, column: str, row: str) -> str:
        a = self.a
        address = a(f"ld.param.u64 {{}}, [p{number}];", kind="d")
        address = a("cvta.to.global.u64 {}, {};", address, kind="d")
        element = a("mad.lo.u32 {}, {}, {}, {};", row, item.strides[0], column)
        size = item.pointer.dtype.size
        return a("mad.wide.u32 {}, {}, {}, {};", element, size, address, kind="d")

    def _row_of(self, number: int) -> tuple[int, int]:
        """Of the thread's pieces: the row's number, and the box behind the first one."""
        boxes = min(self.kernel.boxes, self.kernel.share)
        return number // boxes, number % boxes

    # ---- what sums meet --------------------------------------------------------------------------

    def _begin_vectors(self) -> None:
        """Copies what columns share to shared memory, and loads what all have in common."""
        a, kernel = self.a, self.kernel
        self.scalars = {}
        for number, item in enumerate(kernel.result.leaves):
            if item is not None and not any(item.strides):
                address = a(f"ld.param.u64 {{}}, [p{2 + kernel.place_of(number)}];", kind="d")
                address = a("cvta.to.global.u64 {}, {};", address, kind="d")
                self.scalars[number] = self.epilogue.scalar(item.pointer.dtype, address)
        for number, vector, place in kernel.vectors:
            size = vector.pointer.dtype.size
            few = kernel.tile.columns * size // 16
            with a.skipped_unless(a("setp.lt.u32 {}, {}, {};", self.tid, few, kind="p")):
                column = a("mad.lo.u32 {}, {}, {}, {};", self.tid, 16 // size, self.column)
                address = self._address(vector, 2 + kernel.place_of(number), column, "0")
                names = ", ".join(a.registers(4))
                a.line(f"ld.global.v4.b32 {{{names}}}, [{address}];")
                there = a("mad.lo.u32 {}, {}, 16, {};", self.tid, self.memory)
                a.line(f"st.shared.v4.b32 [{there}+{place}], {{{names}}};")
        if kernel.vectors:
            a.line(f"bar.sync 1, {THREADS};")
            self.along = self._columns_of("0")

    def _load_residual(self) -> list[list[str]]:
        """What is added to the thread's pieces, for each the registers; before the products, so
        that nothing waits for it.
        """
        a, kernel = self.a, self.kernel
        if kernel.residual is None:
            return []
        item = kernel.result.leaves[kernel.residual]
        assert item is not None
        column, number = self._columns_of(self.column), 2 + kernel.place_of(kernel.residual)
        starts = [self._address(item, number, column, row) for row, _ in self.rows]
        found = []
        for piece in range(kernel.share):
            row, box = self._row_of(piece)
            registers = a.registers(4)
            for name in registers:
                a.line(f"mov.b32 {name}, 0;")
            where = f"[{starts[row]}+{box * SHARED_BYTES}]"
            names = ", ".join(registers)
            a.line(f"@{self.rows[row][1]} ld.global.v4.b32 {{{names}}}, {where};")
            found.append(registers)
        return found

    def _of_piece(
        self, sums: Sequence[Sequence[str]], piece: tuple[int, int, int], each: int
    ) -> list[str]:
        """The sums of a piece."""
        block, half, box = piece
        first = box * self.kernel.neighbours // 8
        return [sums[block][4 * (first + i // 2) + 2 * half + i % 2] for i in range(each)]

    def _exchange(self, pieces: Sequence[Sequence[str]]) -> list[list[str]]:
        """Hands sums to the blocks that finish them; gives those that this one finishes, added up
        in the order of the blocks.
        """
        a, kernel = self.a, self.kernel
        own = a("mad.lo.u32 {}, {}, 16, {};", self.tid, self.memory)
        self._meet_cluster()  # nobody reads factors from shared memory any more
        slot = a("mad.lo.u32 {}, {}, {}, {};", self.rank, kernel.share_bytes, own)
        for block in range(kernel.cluster):
            there = a("mapa.shared::cluster.u32 {}, {}, {};", slot, block)
            given = pieces[block * kernel.share : (block + 1) * kernel.share]
            names = [name for piece in given for name in piece]
            for i in range(0, len(names), 4):
                where = f"[{there}+{i // 4 * 16 * THREADS}]"
                values = ", ".join(names[i : i + 4])
                a.line(f"st.shared::cluster.v4.b32 {where}, {{{values}}};")
        self._meet_cluster()
        each = len(pieces[0])
        op = "add.s32" if self.sums == "int32" else "add.f32"
        made: list[str] = []
        for i in range(0, kernel.share * each, 4):
            total: list[str] = []
            for block in range(kernel.cluster):
                four = a.registers(4)
                where = f"[{own}+{block * kernel.share_bytes + i // 4 * 16 * THREADS}]"
                a.line(f"ld.shared.v4.b32 {{{', '.join(four)}}}, {where};")
                if total:
                    pairs = zip(total, four, strict=True)
                    four = [a(f"{op} {{}}, {{}}, {{}};", x, y) for x, y in pairs]
                total = four
            made += total
        return [made[i : i + each] for i in range(0, len(made), each)]

    def _meet_cluster(self) -> None:
        """Waits for all threads of the cluster that have not ended."""
        self.a.line("barrier.cluster.arrive.release;")
        self.a.line("barrier.cluster.wait.acquire;")

    # ---- the end ---------------------------------------------------------------------------------

    def _finish_piece_of(
        self, number: int, sums: Sequence[str], residual: Sequence[Sequence[str]]
    ) -> None:
        """Applies the epilogue to 16 bytes of a row, and stores them."""
        a, kernel = self.a, self.kernel
        each = PIECE // kernel.size
        row, box = self._row_of(number)
        if number == 0:
            column = self._columns_of(self.column)
            output, last = kernel.result.outputs[0], len(self.pointers) - 1
            self.starts = [self._address(output, last, column, r) for r, _ in self.rows]
        loaded: list[Lanes | None] = [None] * len(kernel.result.leaves)
        for leaf, lanes in self.scalars.items():
            loaded[leaf] = lanes
        for leaf, vector, place in kernel.vectors:
            size = vector.pointer.dtype.size
            start = a("mad.lo.u32 {}, {}, {}, {};", self.along, size, self.memory)
            registers = a.registers(each * size // 4)
            for i in range(0, len(registers), 4):
                four = ", ".join(registers[i : i + 4])
                where = f"[{start}+{place + box * kernel.neighbours * size + 4 * i}]"
                a.line(f"ld.shared.v4.b32 {{{four}}}, {where};")
            loaded[leaf] = self.epilogue.unpacked(vector.pointer.dtype, registers)
        if kernel.residual is not None:
            item = kernel.result.leaves[kernel.residual]
            assert item is not None
            loaded[kernel.residual] = self.epilogue.unpacked(item.pointer.dtype, residual[number])
        results = self.epilogue.finish(Lanes(a, self.sums, tuple(sums)), loaded)
        where = f"[{self.starts[row]}+{box * SHARED_BYTES}]"
        a.line(f"@{self.rows[row][1]} st.global.v4.b32 {where}, {{{', '.join(results)}}};")

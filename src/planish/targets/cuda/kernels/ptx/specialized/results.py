"""Writes the matrix kernel with specialised warps: what happens to sums, and how results go out.

A group has a ring of boxes in shared memory. Its threads write a box when it is free, or when what
is to be added has been loaded into it, to the very places that they read; another thread stores
complete boxes, and frees them or loads what is added to later ones. Nobody who computes waits for
memory but for a box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, emit
from planish.targets.cuda.codegen.ptx import Assembly, Lanes, NotExpressible, run
from planish.targets.cuda.codegen.ptx import number as literal
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Work
from planish.targets.cuda.kernels.ptx.specialized.tiles import GROUPS, LINES, TileWriter


def is_expressible(result: Work, sums: str) -> bool:
    """Whether PTX can be written for an epilogue."""
    a = Assembly()
    try:
        epilogue = Epilogue(result, a)
        loaded = [
            None
            if item is None
            else epilogue.unpacked(item.pointer.dtype, a.registers(4 * item.pointer.dtype.size))
            for item in result.leaves
        ]
        made = epilogue.apply(Lanes(a, sums, tuple(a.registers(16))), loaded)
        epilogue.packed(made, 16, result.expression.dtype(result.expression.results[0]))
    except NotExpressible:
        return False
    return True


class Epilogue:
    """What happens to sums: writes it for some elements at a time."""

    def __init__(self, work: Work, assembly: Assembly) -> None:
        self.work, self.assembly = work, assembly
        k = Source()
        self._leaves = [
            None if leaf.constant is not None else k.name(f"leaf{i}")
            for i, leaf in enumerate(work.expression.leaves)
        ]
        (self._result,) = emit(k, work.expression, self._leaves, work.facts)
        self._code = compile(k.statements(), "<epilogue>", "exec")

    def unpacked(self, dtype: DType, registers: Sequence[str]) -> Lanes:
        """What was loaded, in the type it is computed in."""
        a = self.assembly
        if dtype in (DType.FLOAT16, DType.BFLOAT16):
            halves: list[str] = []
            for name in registers:
                pair = a.register("h"), a.register("h")
                a.line(f"mov.b32 {{{pair[0]}, {pair[1]}}}, {name};")
                halves += pair
            kind = "float16" if dtype is DType.FLOAT16 else "bfloat16"
            return Lanes(a, kind, tuple(halves)).to("float32")
        if dtype not in (DType.FLOAT32, DType.INT32, DType.INT8, DType.UINT8):
            raise NotExpressible(f"a tensor of {dtype}")
        return Lanes(a, compute_type(dtype).removeprefix("tl."), tuple(registers))

    def scalar(self, dtype: DType, address: str) -> Lanes:
        """Loads one number."""
        a = self.assembly
        if dtype.size == 2:
            half = a("ld.global.nc.b16 {}, [{}];", address, kind="h")
            return Lanes(a, dtype.numpy.name, (half,)).to("float32")
        if dtype.size != 4:
            raise NotExpressible(f"one number of {dtype}")
        return self.unpacked(dtype, [a("ld.global.nc.b32 {}, [{}];", address)])

    def finish(self, sums: Lanes, loaded: Sequence[Lanes | None]) -> list[str]:
        """Registers with the result's elements as they are stored; per leaf what was loaded."""
        dtype = self.work.outputs[0].pointer.dtype
        return self.packed(self.apply(sums, loaded), len(sums.names), dtype)

    def apply(self, sums: Lanes, loaded: Sequence[Lanes | None]) -> Lanes:
        """The result's elements in the type they are computed in. What was summed with the sums is
        zero; see `fuse`.
        """
        names: dict[str, Lanes] = {}
        left = sums
        for name, lanes in zip(self._leaves, loaded, strict=True):
            if name is None:
                continue
            names[name] = left if lanes is None else lanes
            if lanes is None:
                zero = literal(0.0) if sums.kind == "float32" else "0"
                left = Lanes(self.assembly, sums.kind, (zero,))
        made: Lanes = run(self.assembly, self._code, names)[self._result]
        return made

    def packed(self, made: Lanes, count: int, dtype: DType) -> list[str]:
        """So many elements as they are stored."""
        a = self.assembly
        wanted = compute_type(dtype).removeprefix("tl.")
        if made.kind != wanted or (len(made.names) == 1 and count > 4):
            raise NotExpressible(f"a result of {made.kind}")
        if dtype.size != 2:
            return list(made.names)
        op = "cvt.rn.f16x2.f32" if dtype is DType.FLOAT16 else "cvt.rn.bf16x2.f32"
        pairs = zip(made.names[::2], made.names[1::2], strict=True)
        return [a(f"{op} {{}}, {{}}, {{}};", high, low) for low, high in pairs]


class Operands:
    """What the leaves of some work read, but for a residual: numbers, which are loaded once, and
    what columns have in common. `first` is the number of the first leaf's pointer.
    """

    def __init__(
        self, work: Work, assembly: Assembly, first: int, residual: int | None = None
    ) -> None:
        a = self.assembly = assembly
        self.work, self.residual, self.epilogue = work, residual, Epilogue(work, a)
        self._scalars: dict[int, Lanes] = {}
        self._vectors: dict[int, tuple[DType, int]] = {}
        read = [number for number, item in enumerate(work.leaves) if item is not None]
        for pointer, number in enumerate(read, first):
            item = work.leaves[number]
            if item is None or number == residual:
                continue
            if any(item.strides):
                self._vectors[number] = item.pointer.dtype, pointer
            else:
                address = self._address(pointer)
                self._scalars[number] = self.epilogue.scalar(item.pointer.dtype, address)

    def _address(self, pointer: int) -> str:
        a = self.assembly
        address = a(f"ld.param.u64 {{}}, [p{pointer}];", kind="d")
        return a("cvta.to.global.u64 {}, {};", address, kind="d")

    def addresses(self, column: str) -> dict[int, str]:
        """Where what columns have in common lies, from a column on."""
        a, found = self.assembly, {}
        for number, (dtype, pointer) in self._vectors.items():
            address = self._address(pointer)  # anew: registers are short while there are sums
            found[number] = a("mad.wide.u32 {}, {}, {}, {};", column, dtype.size, address, kind="d")
        return found

    def further(self, addresses: Mapping[int, str], steps: str, count: int) -> dict[int, str]:
        """So many times so many columns behind them."""
        a = self.assembly
        sizes = {n: count * self._vectors[n][0].size for n in addresses}
        how = "mad.wide.u32 {}, {}, {}, {};"
        return {n: a(how, steps, sizes[n], start, kind="d") for n, start in addresses.items()}

    def load(self, addresses: Mapping[int, str], place: int, count: int) -> dict[int, list[str]]:
        """What so many columns from a place on have in common, as it was loaded."""
        a = self.assembly
        found = {}
        for number, address in addresses.items():
            size = self._vectors[number][0].size
            names = a.registers(count * size // 4)
            for i in range(0, len(names), 4):
                where = f"[{address}+{place * size + 4 * i}]"
                a.line(f"ld.global.nc.v4.b32 {{{', '.join(names[i : i + 4])}}}, {where};")
            found[number] = names
        return found

    def unpacked(self, loaded: Mapping[int, Sequence[str]]) -> dict[int, Lanes]:
        """The same in the type it is computed in."""
        return {n: self.epilogue.unpacked(self._vectors[n][0], x) for n, x in loaded.items()}

    def leaves(
        self, vectors: Mapping[int, Lanes], residual: Sequence[str] = ()
    ) -> list[Lanes | None]:
        """Per leaf what was loaded; None for constants and sums."""
        known: dict[int, Lanes] = {**self._scalars, **vectors}
        if self.residual is not None:
            item = self.work.leaves[self.residual]
            assert item is not None
            known[self.residual] = self.epilogue.unpacked(item.pointer.dtype, residual)
        return [known.get(number) for number in range(len(self.work.leaves))]


class ResultWriter(TileWriter):
    """Writes the ends of tiles."""

    def _prepare_results(self) -> None:
        """What a thread needs for the results of all of its tiles."""
        a, kernel = self.a, self.kernel
        self.leads = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
        buffer = self._buffer(self.group)
        # a row by four threads, eight rows by a warp's
        high = a("shr.u32 {}, {}, 2;", self.lane)
        self.quarter = a("and.b32 {}, {}, 3;", self.lane)
        warp = a("and.b32 {}, {}, 3;", self.warp)
        row = a("mad.lo.u32 {}, {}, 16, {};", warp, high)
        pitch = kernel.neighbours * kernel.size
        line = a("mad.lo.u32 {}, {}, {}, {};", row, pitch, buffer)
        pieces = pitch // 64
        self.pieces = []
        for i in range(pieces):
            piece = a("mad.lo.u32 {}, {}, {}, {};", self.quarter, pieces, i)
            # as tensor maps exchange places, against conflicts
            by = high if pitch == LINES[1] else a("bfe.u32 {}, {}, 1, 2;", high)
            piece = a("xor.b32 {}, {}, {};", piece, by)
            self.pieces.append(a("mad.lo.u32 {}, {}, 16, {};", piece, line))
        self.operands = Operands(kernel.result, a, 2, kernel.residual)

    def _finish(self, sums: Sequence[Sequence[str]], column: str, tile: str) -> None:
        """Applies the epilogue, 16 bytes of a row at a time, and hands boxes over to be stored."""
        a = self.a
        for box, piece, vectors in self._pieces(self.operands, column):
            if piece == 0:
                starts = self._enter_box()
            for block, names in enumerate(sums):
                for half in range(2):
                    where = self._place_of(starts[piece], block, half)
                    own = [names[i] for i in self._numbers(box, piece, half)]
                    leaves = self.operands.leaves(vectors, self._residual_at(where))
                    made = self.operands.epilogue.finish(Lanes(a, self.sums, tuple(own)), leaves)
                    a.line(f"st.shared.v4.b32 {where}, {{{', '.join(made)}}};")
            if piece == self._last:
                self._leave_box()

    def _pieces(
        self, operands: Operands, column: str
    ) -> Iterator[tuple[int, int, dict[int, Lanes]]]:
        """Goes through the pieces of a thread's rows: a box, the piece in it, and what its columns
        have in common, the next piece's being loaded meanwhile.
        """
        a, kernel = self.a, self.kernel
        first = a("mad.lo.u32 {}, {}, {}, {};", self.quarter, kernel.neighbours // 4, column)
        addresses = operands.addresses(first)
        order = [(box, piece) for box in range(kernel.boxes) for piece in range(self._last + 1)]
        places = [box * kernel.neighbours + piece * self.each for box, piece in order]
        loaded = operands.load(addresses, places[0], self.each)
        for (box, piece), after in zip(order, (*places[1:], None), strict=True):
            now = operands.unpacked(loaded)
            if after is not None:
                loaded = operands.load(addresses, after, self.each)
            yield box, piece, now

    @property
    def each(self) -> int:
        """Columns of a piece."""
        return 16 // self.kernel.size

    @property
    def _last(self) -> int:
        """The number of a box's last piece: four threads share a row."""
        return self.kernel.neighbours // 4 // self.each - 1

    def _numbers(self, box: int, piece: int, half: int) -> list[int]:
        """Which of a thread's sums of 64 rows are a piece of one of its two rows."""
        eight = box * self.kernel.neighbours // 8
        places = range(piece * self.each, (piece + 1) * self.each)
        return [4 * (eight + i // 2) + 2 * half + i % 2 for i in places]

    def _place_of(self, start: str, block: int, half: int, more: int = 0) -> str:
        """Where a piece of a row of a box lies, or what is so many bytes behind its beginning."""
        pitch = self.kernel.neighbours * self.kernel.size
        return f"[{start}+{(64 * block + 8 * half) * pitch + more}]"

    def _residual_at(self, where: str) -> Sequence[str]:
        """What is added to a piece: the registers."""
        a = self.a
        if self.kernel.residual is None:
            return ()
        registers = a.registers(4)
        a.line(f"ld.shared.v4.b32 {{{', '.join(registers)}}}, {where};")
        return registers

    def _enter_box(self) -> list[str]:
        """Waits until the next box may be computed; where each of a thread's pieces begins."""
        a, kernel = self.a, self.kernel
        self._wait(self._ring_barrier(0, self.group, self.place), self.turned)
        return [
            a("mad.lo.u32 {}, {}, {}, {};", self.place, kernel.box_bytes, start)
            for start in self.pieces
        ]

    def _leave_box(self, written: bool = True) -> None:
        """Says that a box is complete, or was read."""
        a = self.a
        if written:
            a.line("fence.proxy.async.shared::cta;")
        a.line("bar.warp.sync -1;")
        done = self._ring_barrier(1, self.group, self.place)
        a.line(f"@{self.leads} mbarrier.arrive.shared::cta.b64 _, [{done}];")
        self._next_of_ring()

    def _buffer(self, group: str) -> str:
        """Where a group's boxes begin."""
        a, kernel = self.a, self.kernel
        start = a("add.u32 {}, {}, {};", self.memory, kernel.factor_bytes)
        return a("mad.lo.u32 {}, {}, {}, {};", group, kernel.ring * kernel.box_bytes, start)

    def _ring_barrier(self, kind: int, group: str, place: str) -> str:
        """The address of what says that a box may be computed (0), or that it is complete (1)."""
        ring = self.kernel.ring
        number = self.a("mad.lo.u32 {}, {}, {}, {};", group, ring, place)
        return self._barrier(2 * self.kernel.stages + kind * GROUPS * ring, number)

    def _begin_ring(self, parity: int) -> None:
        self.place, self.turned = self.a("mov.u32 {}, 0;"), self.a("mov.u32 {}, {};", parity)

    def _next_of_ring(self) -> None:
        self._turn(self.place, self.turned, self.kernel.ring)

    def _keep(self) -> None:
        """Stores boxes of a group's result that are complete, and loads residuals for others."""
        a, kernel = self.a, self.kernel
        group = a("sub.u32 {}, {}, 10;", self.warp)
        buffer = self._buffer(group)
        self._begin_ring(0)
        now, ahead = (self._tiles_of(group) for _ in range(2))
        if kernel.residual is not None:
            for place in range(kernel.ring):
                self._ask(group, buffer, str(place), ahead)
        again, end = a.label(), a.label()
        a.line(f"{again}:")
        over = a("setp.ge.u32 {}, {}, {};", now[0], self.tiles, kind="p")
        a.line(f"@{over} bra {end};")
        self._wait(self._ring_barrier(1, group, self.place), self.turned)
        start = a("mad.lo.u32 {}, {}, {}, {};", self.place, kernel.box_bytes, buffer)
        where = self._box(now)
        how = f"cp.async.bulk.tensor.{len(where)}d.global.shared::cta.bulk_group"
        tensor = self.maps[len(self.pointers) - 1]
        a.line(f"{how} [{tensor}, {{{', '.join(where)}}}], [{start}];")
        a.line("cp.async.bulk.commit_group;")
        a.line("cp.async.bulk.wait_group.read 0;")
        if kernel.residual is None:
            free = self._ring_barrier(0, group, self.place)
            a.line(f"mbarrier.arrive.shared::cta.b64 _, [{free}];")
        else:
            self._ask(group, buffer, self.place, ahead)
        self._next_box(now)
        self._next_of_ring()
        a.line(f"bra {again};")
        a.line(f"{end}:")

    def _next_box(self, place: tuple[str, str, str]) -> None:
        tile, box, stride = place
        a = self.a
        a.line(f"add.u32 {box}, {box}, 1;")
        over = a("setp.ge.u32 {}, {}, {};", box, self.kernel.boxes, kind="p")
        a.line(f"@{over} mov.u32 {box}, 0;")
        a.line(f"@{over} add.u32 {tile}, {tile}, {stride};")

    def _box(self, place: tuple[str, str, str]) -> list[str]:
        """Where a box of the result lies, the last axis first."""
        a, kernel = self.a, self.kernel
        column, rows = self._locate(place[0])
        return [a("mad.lo.u32 {}, {}, {}, {};", place[1], kernel.neighbours, column), *rows]

    def _ask(self, group: str, buffer: str, to: str, ahead: tuple[str, str, str]) -> None:
        """Loads the residual of the next box, if there is one."""
        a, kernel = self.a, self.kernel
        assert kernel.residual is not None
        with a.skipped_unless(a("setp.lt.u32 {}, {}, {};", ahead[0], self.tiles, kind="p")):
            barrier = self._ring_barrier(0, group, to)
            how = "mbarrier.arrive.expect_tx.shared::cta.b64"
            a.line(f"{how} _, [{barrier}], {kernel.box_bytes};")
            start = a("mad.lo.u32 {}, {}, {}, {};", to, kernel.box_bytes, buffer)
            pointer = 2 + kernel.place_of(kernel.residual)
            self._copy_in(pointer, start, self._box(ahead), barrier)
            self._next_box(ahead)

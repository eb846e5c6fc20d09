"""Writes the kernel of first convolutions: blocks, the ring, and how images get there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import emit
from planish.targets.cuda.codegen.ptx import Assembly, Lanes, NotExpressible, run
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Work
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER, THREADS, GroupWriter

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.ptx.first_conv.kernel import FirstConvKernel

QUAD, CHANNELS, CHUNK = 4, 4, 16
"""See `kernel`."""
ALL = 2 * THREADS
SOURCES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
"""What images may be."""


class Prologue:
    """What happens to an image's elements: writes it for some pixels at a time."""

    def __init__(self, work: Work, assembly: Assembly) -> None:
        self.assembly = assembly
        k = Source()
        expression: Expression = work.expression
        leaves = [
            None if leaf.constant is not None else k.name(f"leaf{i}")
            for i, leaf in enumerate(expression.leaves)
        ]
        (self._leaf,) = (name for name in leaves if name is not None)
        (self._result,) = emit(k, expression, leaves, work.facts)
        self._code = compile(k.statements(), "<prologue>", "exec")

    def pixels(self, elements: Lanes, dtype: DType) -> list[str]:
        """Registers with pixels, for their channels in order."""
        a = self.assembly
        made = run(a, self._code, {self._leaf: elements.to("float32")})[self._result]
        if len(made.names) != len(elements.names) and made.kind != "int8":
            raise NotExpressible("pixels that are all the same")
        if dtype is DType.INT8 and made.kind == "int8":
            return list(made.names)
        if dtype is DType.INT8 or made.kind != "float32":
            raise NotExpressible(f"pixels of {made.kind}")
        op = "cvt.rn.f16x2.f32" if dtype is DType.FLOAT16 else "cvt.rn.bf16x2.f32"
        pairs = zip(made.names[::2], made.names[1::2], strict=True)
        return [a(f"{op} {{}}, {{}}, {{}};", high, low) for low, high in pairs]


def is_expressible(work: Work, dtype: DType) -> bool:
    """Whether PTX can be written for what happens to an image's elements."""
    a = Assembly()
    try:
        lanes = Lanes(a, "float32", tuple(a.registers(QUAD * CHANNELS)))
        Prologue(work, a).pixels(lanes, dtype)
    except NotExpressible:
        return False
    return True


class Item(NamedTuple):
    """Four pixels of a row of a unit that a thread loads.

    `row` is that of the image, of the unit that is stored next, and not inside the image where
    there is no such item; `pointer` is where its elements are. `inside` says per pixel whether it
    is one of the image (None: all are).
    """

    active: str | None
    quad: str
    within: str
    row: str
    pointer: str
    inside: list[str] | None


class Piece(NamedTuple):
    """Words of an item that are stored side by side: where in a unit, and by whom."""

    first: int
    words: int
    place: str
    predicate: str | None


class ImageLoadingWriter(GroupWriter):
    """Writes what blocks begin with, and the warps that load."""

    kernel: FirstConvKernel

    def _begin_block(self) -> None:
        a, kernel = self.a, self.kernel
        self.tid = a("mov.u32 {}, %tid.x;")
        warp = a("shr.u32 {}, {}, 5;", self.tid)
        self.warp = a("shfl.sync.idx.b32 {}, {}, 0, 31, -1;", warp)  # the same in all lanes
        self.lane = a("and.b32 {}, {}, 31;", self.tid)
        self.leads = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
        self.memory = a("mov.u32 {}, memory;")
        rest, self.part = self._divided(a("mov.u32 {}, %ctaid.x;"), kernel.parts)
        self.image, strip = self._divided(rest, kernel.strips)
        self.first = a("mul.lo.u32 {}, {}, {};", strip, kernel.high)
        end = a("add.u32 {}, {}, {};", self.first, kernel.high)
        self.end = a("min.u32 {}, {}, {};", end, kernel.outputs[0])
        self._begin_rows()
        units = a("sub.u32 {}, {}, {};", self.last_row, self.first_row)
        self.units = a("add.u32 {}, {}, {};", units, kernel.seen - 1)

    def _divided(self, number: str, by: int) -> tuple[str, str]:
        """Quotient and remainder."""
        a = self.a
        quotient = a("div.u32 {}, {}, {};", number, by)
        return quotient, a("sub.u32 {}, {}, {};", number, a("mul.lo.u32 {}, {}, {};", quotient, by))

    def _begin_rows(self) -> None:
        """Names the first row of the convolution's result that the block computes, and the end."""
        a, pool = self.a, self.kernel.pool
        self.first_row, self.last_row = self.first, self.end
        if pool is None:
            return
        row = a("shl.b32 {}, {}, 1;", self.first)
        row = a("sub.s32 {}, {}, {};", row, pool.pads[0])
        self.first_row = a("max.s32 {}, {}, 0;", row)
        row = a("shl.b32 {}, {}, 1;", self.end)
        row = a("add.s32 {}, {}, {};", row, pool.window - 2 - pool.pads[0])
        self.last_row = a("min.s32 {}, {}, {};", row, self.kernel.positions[0])

    def _meet_all(self) -> None:
        """Makes barriers, and the ring zero: what lies beside images stays so."""
        a, kernel = self.a, self.kernel
        with a.skipped_unless(a("setp.eq.u32 {}, {}, 0;", self.tid, kind="p")):
            for i in range(2 * kernel.ring):
                at = kernel.barriers + BARRIER * i
                a.line(f"mbarrier.init.shared::cta.b64 [{self.memory}+{at}], 4;")
        place = a("mad.lo.u32 {}, {}, {}, {};", self.tid, CHUNK, self.memory)
        end = a("add.u32 {}, {}, {};", self.memory, kernel.barriers)
        zero = a("mov.u32 {}, 0;")

        def body() -> None:
            a.line(f"st.shared.v4.b32 [{place}], {{{zero}, {zero}, {zero}, {zero}}};")

        self._loop(place, end, body, ALL * CHUNK)
        a.line("bar.sync 0;")

    # ---- warps that load ------------------------------------------------------------------------

    def _load(self) -> None:
        """Loads some units ahead, while others are being computed."""
        a, kernel = self.a, self.kernel
        self.prologue = Prologue(kernel.image, a)
        items = [self._item(number) for number in range(kernel.items)]
        pieces = [list(self._pieces(item)) for item in items]
        ahead = kernel.ahead
        held = [[self._registers() for _ in items] for _ in range(ahead)]
        a.line("griddepcontrol.wait;")
        number = a("mov.u32 {}, 0;")
        for unit, sets in enumerate(held):
            self._ask(items, sets, number, unit)
        self._meet_all()
        slot, parity, again, end = a("mov.u32 {}, 0;"), a("mov.u32 {}, 1;"), a.label(), a.label()
        a.line(f"{again}:")
        for sets in held:
            self._wait(self._barrier(kernel.ring, slot), parity)
            there = a("mad.lo.u32 {}, {}, {}, {};", slot, kernel.unit_bytes, self.memory)
            for item, own, registers in zip(items, pieces, sets, strict=True):
                self._store_item(item, own, registers, there)
            a.line("bar.warp.sync -1;")
            done = self._barrier(0, slot)
            a.line(f"@{self.leads} mbarrier.arrive.shared::cta.b64 _, [{done}];")
            self._turn(slot, parity, kernel.ring)
            self._ask(items, sets, number, ahead)
            for item in items:
                a.line(f"add.u32 {item.row}, {item.row}, {kernel.strides[0]};")
                a.line(f"add.u64 {item.pointer}, {item.pointer}, {self._unit_stride};")
            a.line(f"add.u32 {number}, {number}, 1;")
            over = a("setp.ge.u32 {}, {}, {};", number, self.units, kind="p")
            a.line(f"@{over} bra {end};")
        a.line(f"bra {again};")
        a.line(f"{end}:")

    @property
    def _unit_stride(self) -> int:
        """Bytes from a unit's elements to the next one's."""
        source = self.kernel.source
        return self.kernel.strides[0] * source.strides[1] * source.pointer.dtype.size

    def _item(self, number: int) -> Item:
        a, kernel = self.a, self.kernel
        wide = ceil(kernel.size[1], QUAD)
        own = a("sub.u32 {}, {}, {};", self.tid, THREADS - number * THREADS)
        within, quad = self._divided(own, wide)
        every = kernel.strides[0] * wide
        active = None
        if every % THREADS and every < (number + 1) * THREADS:
            active = a("setp.lt.u32 {}, {}, {};", own, every, kind="p")
        row = a("mad.lo.u32 {}, {}, {}, {};", self.first_row, kernel.strides[0], within)
        source, size = kernel.source, kernel.source.pointer.dtype.size
        pointer = a("ld.param.u64 {}, [p0];", kind="d")
        pointer = a("cvta.to.global.u64 {}, {};", pointer, kind="d")
        above = kernel.pads[0] * source.strides[1] - source.offset
        pointer = a("sub.u64 {}, {}, {};", pointer, above * size, kind="d")
        for place, stride in ((self.image, source.strides[0]), (row, source.strides[1])):
            far = stride * size
            pointer = a("mad.wide.u32 {}, {}, {}, {};", place, far, pointer, kind="d")
        far = QUAD * source.strides[2] * size
        pointer = a("mad.wide.u32 {}, {}, {}, {};", quad, far, pointer, kind="d")
        row = a("sub.u32 {}, {}, {};", row, kernel.pads[0])
        if active:  # never a row of the image
            row = a("selp.b32 {}, {}, {}, {};", row, 1 << 30, active)
        inside = None
        if kernel.size[1] % QUAD:
            left = a("mad.lo.u32 {}, {}, {}, 0;", quad, QUAD)
            inside = [
                a("setp.lt.s32 {}, {}, {};", left, kernel.size[1] - i, kind="p")
                for i in range(QUAD)
            ]
        return Item(active, quad, within, row, pointer, inside)

    # ---- elements -------------------------------------------------------------------------------

    @property
    def _loads(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """What is loaded of an item: offsets in elements, and which pixel and channel each is."""
        kernel, source = self.kernel, self.kernel.source
        channels, (*outer, across, deep) = kernel.size[2], source.strides
        whole = [*outer, source.offset, kernel.size[1]]
        if source.pointer.aligned and all(n % QUAD == 0 for n in whole):
            if across == 1 and deep % QUAD == 0:
                return [(deep * c, [(pixel, c) for pixel in range(QUAD)]) for c in range(channels)]
            if deep == 1 and across == channels:
                each = [divmod(i, channels) for i in range(QUAD * channels)]
                return [(i, each[i : i + QUAD]) for i in range(0, QUAD * channels, QUAD)]
        places = [(pixel, c) for pixel in range(QUAD) for c in range(channels)]
        return [(across * pixel + deep * c, [(pixel, c)]) for pixel, c in places]

    def _registers(self) -> list[list[str]]:
        """Registers for an item's elements, zero."""
        a, size = self.a, self.kernel.source.pointer.dtype.size
        made = []
        for _, elements in self._loads:
            kind = "h" if size * len(elements) == 2 else "r"
            names = [a.register(kind) for _ in range(max(size * len(elements) // 4, 1))]
            for name in names:
                a.line(f"mov.b{16 if kind == 'h' else 32} {name}, 0;")
            made.append(names)
        return made

    def _ask(self, items: list[Item], sets: list[list[list[str]]], number: str, ahead: int) -> None:
        """Loads the items of a unit some units behind the one of that number, if there is one."""
        a, kernel = self.a, self.kernel
        size = kernel.source.pointer.dtype.size
        later = a("add.u32 {}, {}, {};", number, ahead)
        exists = a("setp.lt.u32 {}, {}, {};", later, self.units, kind="p")
        for item, registers in zip(items, sets, strict=True):
            row = a("add.u32 {}, {}, {};", item.row, ahead * kernel.strides[0])
            inside = a("setp.lt.u32 {}, {}, {};", row, kernel.size[0], kind="p")
            wanted = a("and.pred {}, {}, {};", exists, inside, kind="p")
            for (offset, elements), names in zip(self._loads, registers, strict=True):
                predicate = wanted
                if item.inside:
                    own = item.inside[elements[0][0]]
                    predicate = a("and.pred {}, {}, {};", wanted, own, kind="p")
                where = f"[{item.pointer}+{ahead * self._unit_stride + offset * size}]"
                kind = "b16" if names[0][1] == "h" else "b32"
                vector = f".v{len(names)}" if len(names) > 1 else ""
                to = f"{{{', '.join(names)}}}" if len(names) > 1 else names[0]
                a.line(f"@{predicate} ld.global.nc{vector}.{kind} {to}, {where};")

    def _elements(self, registers: list[list[str]]) -> Lanes:
        """An item's elements, pixel by pixel; a missing channel is the first one."""
        a, dtype = self.a, self.kernel.source.pointer.dtype
        found: dict[tuple[int, int], str] = {}
        for (_, elements), names in zip(self._loads, registers, strict=True):
            if dtype.size == 2 and len(elements) > 1:
                halves: list[str] = []
                for name in names:
                    pair = a.register("h"), a.register("h")
                    a.line(f"mov.b32 {{{pair[0]}, {pair[1]}}}, {name};")
                    halves += pair
                names = halves
            found |= dict(zip(elements, names, strict=True))
        order = [(pixel, c) for pixel in range(QUAD) for c in range(CHANNELS)]
        kind = {4: "float32", 2: dtype.numpy.name}[dtype.size]
        channels = self.kernel.size[2]
        return Lanes(a, kind, tuple(found[p, c if c < channels else 0] for p, c in order))

    # ---- shared memory --------------------------------------------------------------------------

    def _pieces(self, item: Item) -> Iterator[Piece]:
        """Where an item's pixels are stored, in every copy of a row."""
        a, kernel = self.a, self.kernel
        words = QUAD * kernel.pixel // 4
        spacing = kernel.strides[1] * kernel.pixel
        start = a("mul.lo.u32 {}, {}, {};", item.within, kernel.row_bytes)
        for copy in range(kernel.copies):
            size = math.gcd(CHUNK, copy * spacing) // 4
            for first in range(0, words, size):
                shift = 4 * first + kernel.lead * kernel.pixel - copy * spacing
                chunk, inside = divmod(shift, CHUNK)
                quads = QUAD * kernel.pixel // CHUNK
                place = a("mad.lo.s32 {}, {}, {}, {};", item.quad, quads, chunk)
                for where, predicate in self._blocks(place, copy, item.active):
                    where = a("add.u32 {}, {}, {};", where, start)
                    where = a("add.u32 {}, {}, {};", where, inside)
                    yield Piece(first, size, where, predicate)

    def _blocks(
        self, chunk: str, copy: int, active: str | None
    ) -> Iterator[tuple[str, str | None]]:
        """Where 16 bytes of a copy lie: in the block of eight results, and also behind the one
        before it, whose last windows reach so far.
        """
        a, kernel = self.a, self.kernel
        if kernel.copies == 1:
            yield a("mul.lo.u32 {}, {}, {};", chunk, CHUNK), active
            return
        block, own = a("shr.s32 {}, {}, 3;", chunk), a("and.b32 {}, {}, 7;", chunk)
        number = a("mad.lo.s32 {}, {}, {}, {};", block, kernel.copies, copy)
        for back in (0, 1):
            at = number if not back else a("sub.s32 {}, {}, {};", number, kernel.copies)
            place = a("mad.lo.s32 {}, {}, {}, {};", own, CHUNK, back * 8 * CHUNK)
            place = a("mad.lo.s32 {}, {}, {}, {};", at, kernel.block, place)
            exists = a("sub.s32 {}, {}, {};", block, back)
            exists = a("setp.lt.u32 {}, {}, {};", exists, kernel.runs, kind="p")
            if back:
                seen = a("setp.lt.u32 {}, {}, {};", own, kernel.chunks - 1, kind="p")
                exists = a("and.pred {}, {}, {};", exists, seen, kind="p")
            if active:
                exists = a("and.pred {}, {}, {};", exists, active, kind="p")
            yield place, exists

    def _store_item(
        self, item: Item, pieces: list[Piece], registers: list[list[str]], there: str
    ) -> None:
        """Stores an item's pixels, zeros where there is no image."""
        a, kernel = self.a, self.kernel
        words = self.prologue.pixels(self._elements(registers), kernel.dtype)
        each = len(words) // QUAD
        valid = a("setp.lt.u32 {}, {}, {};", item.row, kernel.size[0], kind="p")
        for pixel in range(QUAD):
            exists = valid
            if item.inside:
                exists = a("and.pred {}, {}, {};", valid, item.inside[pixel], kind="p")
            for i in range(pixel * each, (pixel + 1) * each):
                words[i] = a("selp.b32 {}, {}, 0, {};", words[i], exists)
        for piece in pieces:
            names = words[piece.first : piece.first + piece.words]
            where = a("add.u32 {}, {}, {};", there, piece.place)
            vector = f".v{piece.words}" if piece.words > 1 else ""
            what = f"{{{', '.join(names)}}}" if piece.words > 1 else names[0]
            guard = f"@{piece.predicate} " if piece.predicate else ""
            a.line(f"{guard}st.shared{vector}.b32 [{where}], {what};")

"""Writes the matrix kernel with specialised warps: the whole, loading, and loops of products."""

from __future__ import annotations

from collections.abc import Sequence

from planish.targets.cuda.kernels.mapped_kernel import PAIRS, whole_strides
from planish.targets.cuda.kernels.ptx.specialized.frames import FrameWriter, Place
from planish.targets.cuda.kernels.ptx.specialized.tiles import COMPUTING, GROUPS, LOADING
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS


class SpecializedWriter(FrameWriter):
    """Writes a `SpecializedKernel`."""

    def write(self) -> str:
        a = self.a
        self._begin()
        consumers, end = a.label(), a.label()
        computes = a("setp.lt.u32 {}, {}, 2;", self.group, kind="p")
        a.line(f"@{computes} bra {consumers};")
        a.line(f"setmaxnreg.dec.sync.aligned.u32 {LOADING};")
        for thread, body in ((2 * THREADS, self._load), (2 * THREADS + 64, self._keep)):
            # the last two warps' first threads each look after a group's results
            own = a("and.b32 {}, {}, {};", self.tid, -1 if body == self._load else ~32)
            mine = a("setp.eq.u32 {}, {}, {};", own, thread, kind="p")
            with a.skipped_unless(mine):
                body()
                self._part()
        a.line(f"bra {end};")
        a.line(f"{consumers}:")
        a.line(f"setmaxnreg.inc.sync.aligned.u32 {COMPUTING};")
        self._compute()
        self._part()
        a.line(f"{end}:")
        a.line("ret;")
        return self._wrapped(a.body())

    def _load(self) -> None:
        tile = self.a("mov.u32 {}, {};", self.unit)
        if self.kernel.frames:
            self._load_framed(tile)
        else:
            self._load_steps(tile)

    def _own_columns(self, column: str) -> str:
        """The first of a tile's columns whose weights this block loads."""
        share = self.kernel.tile.columns // self.kernel.sharing
        if self.kernel.sharing == 1:
            return column
        return self.a("mad.lo.u32 {}, {}, {}, {};", self.rank, share, column)

    def _load_framed(self, tile: str) -> None:
        """Frames, and for each the weights of its taps; or these once, behind the first frame."""
        a, kernel = self.a, self.kernel
        stage, slot = ((a("mov.u32 {}, 0;"), a("mov.u32 {}, 1;")) for _ in range(2))

        def load_weights(tap: str, unit: str, column: str) -> None:
            step = a("mad.lo.u32 {}, {}, {}, {};", tap, kernel.units, unit)
            depth = a("mul.lo.u32 {}, {}, {};", step, kernel.tile.depth)
            self._load_weights(stage[0], depth, column)

        def load_all(column: str) -> None:
            def body() -> None:
                unit, tap = self._divided(stage[0], kernel.taps)
                load_weights(tap, unit, column)

            self._loop(stage[0], kernel.stages, body)  # which leaves none for a second time

        def load_taps(unit: str, column: str) -> None:
            def body() -> None:
                self._wait(self._barrier(kernel.stages, stage[0]), stage[1])
                load_weights(tap, unit, column)
                self._next(*stage)

            tap = a("mov.u32 {}, 0;")
            self._loop(tap, kernel.taps, body)

        def load_tile() -> None:
            def body() -> None:
                self._wait(self._barrier(kernel.frame_barriers + kernel.frames, slot[0]), slot[1])
                self._load_frame(slot[0], unit, [origin])
                self._turn(*slot, kernel.frames)
                if kernel.keeps_weights:
                    load_all(column)
                else:
                    load_taps(unit, column)

            column, origin = self._locate(tile)
            unit, column = a("mov.u32 {}, 0;"), self._own_columns(column)
            self._loop(unit, kernel.units, body)

        self._loop(tile, self.tiles, load_tile, self.units)

    def _load_steps(self, tile: str) -> None:
        """For each step a box of both factors."""
        a, kernel = self.a, self.kernel
        stage, parity = a("mov.u32 {}, 0;"), a("mov.u32 {}, 1;")

        def body() -> None:
            column, rows = self._locate(tile)
            column = self._own_columns(column)
            step, again = a("mov.u32 {}, 0;"), a.label()
            a.line(f"{again}:")
            self._wait(self._barrier(kernel.stages, stage), parity)
            full = self._barrier(0, stage)
            a.line(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [{full}], {kernel.stage_bytes};")
            here = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
            self._copy_in(0, here, self._places(step, rows), full)
            there = a("add.u32 {}, {}, {};", here, kernel.tile.rows * kernel.line)
            depth = a("mul.lo.u32 {}, {}, {};", step, kernel.tile.depth)
            self._copy_weights(there, depth, column, full)
            self._next(stage, parity)
            a.line(f"add.u32 {step}, {step}, 1;")
            more = a("setp.lt.u32 {}, {}, {};", step, kernel.steps, kind="p")
            a.line(f"@{more} bra {again};")

        self._loop(tile, self.tiles, body, self.units)

    def _places(self, step: str, rows: Sequence[str]) -> list[str]:
        """Where a step's box of the left factor begins, the last axis first."""
        a, kernel = self.a, self.kernel
        depth, window = kernel.tile.depth, kernel.window
        if window is None:
            return [a("mul.lo.u32 {}, {}, {};", step, depth), *rows]
        tap, block = self._divided(step, kernel.blocks)
        channel = a("mul.lo.u32 {}, {}, {};", block, depth)
        down, across = self._divided(tap, window.taps[1])
        shifts = [
            a("mad.lo.s32 {}, {}, {}, {};", at, spread, -pad)
            for at, spread, pad in zip((down, across), window.dilations, window.pads, strict=True)
        ]
        left_side, top, image = rows
        if window.strides != PAIRS:
            x = a("add.s32 {}, {}, {};", left_side, shifts[1])
            return [channel, x, a("add.s32 {}, {}, {};", top, shifts[0]), image]
        # a shift by two is one pair; of an odd one the second of a pair, also before the image
        pairs = [a("shr.s32 {}, {}, 1;", s) for s in shifts]
        odd = [a("and.b32 {}, {}, 1;", s) for s in shifts]
        pixel = whole_strides(self.kernel.left.strides, (0, *window.size, kernel.channels))[2]
        channel = a("mad.lo.u32 {}, {}, {}, {};", odd[1], pixel, channel)
        x = a("add.s32 {}, {}, {};", left_side, pairs[1])
        return [channel, x, odd[0], a("add.s32 {}, {}, {};", top, pairs[0]), image]

    def _divided(self, number: str, by: int) -> tuple[str, str]:
        """Quotient and remainder."""
        a = self.a
        if by == 1:
            return number, "0"
        quotient = a("div.u32 {}, {}, {};", number, by)
        return quotient, a("sub.u32 {}, {}, {};", number, a("mul.lo.u32 {}, {}, {};", quotient, by))

    def _compute(self) -> None:
        a, kernel = self.a, self.kernel
        self._prepare()
        self._prepare_results()
        tile, _, stride = self._tiles_of(self.group)
        stage = self._begin_at(kernel.steps, kernel.stages)
        slot = self._begin_at(kernel.units, kernel.frames) if kernel.frames else ("0", "0")
        second = a("setp.eq.u32 {}, {}, 1;", self.group, kind="p")
        a.line(f"@{second} bar.arrive 1, {GROUPS * THREADS};")
        self._begin_ring(self._first_turn)

        def body() -> None:
            column, _ = self._locate(tile)
            sums = self._multiply(stage, slot)
            self._finish(sums, column, tile)
            if not kernel.keeps_weights:
                self._pass_by(stage, kernel.steps, kernel.stages)
            if kernel.frames:
                self._pass_by(slot, kernel.units, kernel.frames)

        self._loop(tile, self.tiles, body, stride)
        self._look_ahead(GROUPS * THREADS)

    @property
    def _first_turn(self) -> int:
        """The parity that a group's first box waits for: what is loaded into, or free as it is."""
        return 0 if self.kernel.residual is not None else 1

    def _begin_at(self, used: int, places: int) -> Place:
        """A group's first of some places, of which a tile uses so many: the second group's are
        behind the first one's.
        """
        a = self.a
        place = a("mul.lo.u32 {}, {}, {};", self.group, used % places)
        return place, a("mul.lo.u32 {}, {}, {};", self.group, used // places % 2)

    def _pass_by(self, place: Place, used: int, places: int) -> None:
        """Goes on past those that the other group's tile uses."""
        a = self.a
        a.line(f"add.u32 {place[0]}, {place[0]}, {used % places};")
        self._wrap(*place, places)
        if used // places % 2:
            a.line(f"xor.b32 {place[1]}, {place[1]}, 1;")

    def _prepare(self) -> None:
        """What a thread needs for the products of all of its tiles."""
        a, kernel = self.a, self.kernel
        self.turn = a("add.u32 {}, {}, 1;", self.group)
        self.other_turn = a("sub.u32 {}, 2, {};", self.group)
        self.releases = a("setp.lt.u32 {}, {}, {};", self.lane, kernel.sharing, kind="p")

    def _multiply(self, stage: Place, slot: Place) -> list[list[str]]:
        """The loop over the depth; the sums of each 64 rows."""
        a, kernel = self.a, self.kernel
        sums = [a.registers(kernel.tile.columns // 2) for _ in range(kernel.tile.rows // 64)]
        for name in (name for names in sums for name in names):
            a.line(f"mov.b32 {name}, 0;")
        a.line(f"bar.sync {self.turn}, {GROUPS * THREADS};")
        if kernel.frames:
            if kernel.keeps_weights:
                stage = a("mov.u32 {}, 0;"), "0"
            last, left = self._multiply_frames(stage, slot, kernel.units, sums)
        else:
            last = self._multiply_steps(*stage, sums)
        a.line(f"bar.arrive {self.other_turn}, {GROUPS * THREADS};")
        a.line("wgmma.wait_group.sync.aligned 0;")
        if not kernel.keeps_weights:
            self._release(last, self.releases)
        if kernel.frames:
            self._free(kernel.frame_barriers + kernel.frames, left, self.leads)
        return sums

    def _multiply_steps(self, stage: str, parity: str, sums: Sequence[Sequence[str]]) -> str:
        """A stage for each step; the one that products may still read."""
        a, kernel = self.a, self.kernel
        step, again = a("mov.u32 {}, 0;"), a.label()
        last = a("mov.u32 {}, 0;")
        a.line(f"{again}:")
        self._multiply_step(stage, parity, step, last, sums)
        a.line(f"add.u32 {step}, {step}, 1;")
        more = a("setp.lt.u32 {}, {}, {};", step, kernel.steps, kind="p")
        a.line(f"@{more} bra {again};")
        return last

    def _multiply_step(
        self, stage: str, parity: str, step: str, last: str, sums: Sequence[Sequence[str]]
    ) -> None:
        """Begins a step's products, and gives the stage of the `last` one back when they ended."""
        a = self.a
        self._wait(self._barrier(0, stage), parity)
        a.line("wgmma.fence.sync.aligned;")
        self._multiply_stage(stage, step, sums)
        a.line("wgmma.commit_group.sync.aligned;")
        a.line("wgmma.wait_group.sync.aligned 1;")
        begun = a("setp.ne.u32 {}, {}, 0;", step, kind="p")
        self._release(last, a("and.pred {}, {}, {};", begun, self.releases, kind="p"))
        a.line(f"mov.u32 {last}, {stage};")
        self._next(stage, parity)

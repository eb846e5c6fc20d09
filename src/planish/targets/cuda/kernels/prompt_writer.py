"""Writes the matrix kernel that is ready before its turn: the whole, and products."""

from __future__ import annotations

from collections.abc import Sequence

from planish.targets.cuda.kernels.prompt_results import PIECE, PromptResultWriter
from planish.targets.cuda.kernels.specialized_results import Epilogue
from planish.targets.cuda.kernels.specialized_tiles import THREADS
from planish.targets.cuda.kernels.specialized_writer import CODES, TYPES


class PromptWriter(PromptResultWriter):
    """Writes a `PromptKernel`."""

    def write(self) -> str:
        a = self.a
        self._begin()
        loads = a("setp.eq.u32 {}, {}, {};", self.warp, THREADS // 32, kind="p")
        computing, end = a.label(), a.label()
        a.line(f"@!{loads} bra {computing};")
        with a.skipped_unless(a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")):
            self._load()
        a.line(f"bra {end};")
        a.line(f"{computing}:")
        self._compute()
        a.line(f"{end}:")
        a.line("ret;")
        return self._wrapped(a.body())

    # ---- the group that computes -----------------------------------------------------------------

    def _compute(self) -> None:
        a, kernel = self.a, self.kernel
        self.epilogue = Epilogue(kernel.result, a)
        self.leads = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
        self.quarter = a("and.b32 {}, {}, 3;", self.lane)
        self._place_pieces()
        self._look_ahead(THREADS)  # nothing else is there to do
        a.line("griddepcontrol.wait;")
        self._begin_vectors()
        residual = self._load_residual()
        sums = self._multiply_all()
        each = PIECE // kernel.size
        pieces = [self._of_piece(sums, piece, each) for piece in kernel.pieces]
        if kernel.cluster > 1:
            pieces = self._exchange(pieces)
        for number, names in enumerate(pieces):
            self._finish_piece_of(number, names, residual)

    # ---- products --------------------------------------------------------------------------------

    def _multiply_all(self) -> list[list[str]]:
        """The loop over the block's share of the depth; the sums of each 64 rows."""
        a, kernel = self.a, self.kernel
        sums = [a.registers(kernel.tile.columns // 2) for _ in range(kernel.tile.rows // 64)]
        for name in (name for names in sums for name in names):
            a.line(f"mov.b32 {name}, 0;")
        if kernel.frames:
            self._multiply_frames(sums)
        else:
            self._multiply_boxes(sums)
        a.line("wgmma.wait_group.sync.aligned 0;")
        return sums

    def _multiply_boxes(self, sums: Sequence[Sequence[str]]) -> None:
        a, kernel = self.a, self.kernel
        stage, parity, step, last = (a("mov.u32 {}, 0;") for _ in range(4))

        def body() -> None:
            self._wait(self._barrier(0, stage), parity)
            a.line("wgmma.fence.sync.aligned;")
            self._multiply_stage(stage, step, sums)
            a.line("wgmma.commit_group.sync.aligned;")
            a.line("wgmma.wait_group.sync.aligned 1;")
            begun = a("setp.ne.u32 {}, {}, 0;", step, kind="p")
            self._release_one(kernel.stages, last, begun)
            a.line(f"mov.u32 {last}, {stage};")
            self._next(stage, parity)

        self._repeat(step, self.count, body)

    def _multiply_frames(self, sums: Sequence[Sequence[str]]) -> None:
        """The same where a frame serves all taps; these stand one behind the other."""
        a, kernel = self.a, self.kernel
        stage, parity, unit, last = (a("mov.u32 {}, 0;") for _ in range(4))
        slot, turned, left = (a("mov.u32 {}, 0;") for _ in range(3))
        assert kernel.window is not None
        _, across = kernel.window.taps

        def body() -> None:
            begun = a("setp.ne.u32 {}, {}, 0;", unit, kind="p")
            always = a("setp.ne.u32 {}, {}, -1;", unit, kind="p")
            self._wait(self._barrier(2 * kernel.stages, slot), turned)
            for tap in range(kernel.taps):
                self._wait(self._barrier(0, stage), parity)
                a.line("wgmma.fence.sync.aligned;")
                predicates = (begun if tap == 0 else always), always
                self._multiply_tap(stage, slot, divmod(tap, across), sums, predicates)
                a.line("wgmma.commit_group.sync.aligned;")
                a.line("wgmma.wait_group.sync.aligned 1;")
                self._release_one(kernel.stages, last, predicates[0])
                if tap == 0 and kernel.frames > 1:
                    self._release_one(2 * kernel.stages + kernel.frames, left, begun)
                a.line(f"mov.u32 {last}, {stage};")
                self._next(stage, parity)
            if kernel.frames == 1:  # the next one has no other place
                a.line("wgmma.wait_group.sync.aligned 0;")
                self._release_one(2 * kernel.stages + 1, slot, always)
            a.line(f"mov.u32 {left}, {slot};")
            self._turn(slot, turned, kernel.frames)

        self._repeat(unit, self.count, body)

    def _multiply_tap(
        self,
        stage: str,
        slot: str,
        tap: tuple[int, int],
        sums: Sequence[Sequence[str]],
        predicates: tuple[str, str],
    ) -> None:
        """Multiplies the pixels that a tap sees by its weights."""
        a, kernel = self.a, self.kernel
        assert kernel.window is not None
        op, whole = self._product
        pitch = kernel.frame[1]
        y, x = (n * spread for n, spread in zip(tap, kernel.window.dilations, strict=True))
        frames = kernel.stages * kernel.stage_bytes + (y * pitch + x) * kernel.line
        start = a("add.u32 {}, {}, {};", self.memory, frames)
        start = a("mad.lo.u32 {}, {}, {}, {};", slot, kernel.frames_bytes, start)
        there = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
        pixels, weights = self._described(start), self._described(there)
        # a row of eight pixels is a frame's row from the next; of weights eight rows
        pattern = (1 if kernel.line == 128 else 2) << 30
        high = a("mov.u32 {}, {};", pattern | (pitch * kernel.line >> 4))
        of_weights = a("mov.u32 {}, {};", pattern | (8 * kernel.line >> 4))
        for part in range(kernel.line // 32):
            b = self._descriptor(weights, 2 * part, of_weights)
            for block, names in enumerate(sums):
                moved = 2 * part + (kernel.frame_bytes >> 4) * block
                first = self._descriptor(pixels, moved, high)
                predicate = predicates[part > 0]
                a.line(f"{op} {{{', '.join(names)}}}, {first}, {b}, {predicate}{whole};")

    @property
    def _product(self) -> tuple[str, str]:
        """The instruction of tensor cores, and what stands behind its operands."""
        kernel = self.kernel
        types, depth = CODES if kernel.codes else TYPES[kernel.dtype]
        whole = "" if self.sums == "int32" else ", 1, 1" if kernel.codes else ", 1, 1, 0, 0"
        return f"wgmma.mma_async.sync.aligned.m64n{kernel.tile.columns}k{depth}.{types}", whole

    def _release_one(self, first: int, place: str, predicate: str) -> None:
        """Tells the thread that loads that a place is free, if a predicate holds."""
        a = self.a
        free = self._barrier(first, place)
        leads = a("and.pred {}, {}, {};", predicate, self.leads, kind="p")
        a.line(f"@{leads} mbarrier.arrive.shared::cta.b64 _, [{free}];")

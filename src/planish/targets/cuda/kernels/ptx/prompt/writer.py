"""Writes the matrix kernel that is ready before its turn: the whole, and products."""

from __future__ import annotations

from collections.abc import Sequence

from planish.targets.cuda.kernels.ptx.prompt.results import PIECE, PromptResultWriter
from planish.targets.cuda.kernels.ptx.specialized.results import Epilogue
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS


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
        self.leads = self.releases = a("setp.eq.u32 {}, {}, 0;", self.lane, kind="p")
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
            stage, slot = ((a("mov.u32 {}, 0;"), a("mov.u32 {}, 0;")) for _ in range(2))
            self._multiply_frames(stage, slot, self.count, sums)
        else:
            self._multiply_boxes(sums)
        a.line("wgmma.wait_group.sync.aligned 0;")
        return sums

    def _multiply_boxes(self, sums: Sequence[Sequence[str]]) -> None:
        stage, parity, step, last = (self.a("mov.u32 {}, 0;") for _ in range(4))
        self._loop(step, self.count, lambda: self._multiply_step(stage, parity, step, last, sums))

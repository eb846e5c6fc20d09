"""Writes the matrix kernel with specialised warps: products of a stage."""

from __future__ import annotations

from collections.abc import Sequence

from planish.graph.types import DType
from planish.targets.cuda.kernels.ptx.specialized.results import ResultWriter

TYPES = {
    DType.FLOAT16: ("f32.f16.f16", 16),
    DType.BFLOAT16: ("f32.bf16.bf16", 16),
    DType.INT8: ("s32.s8.s8", 32),
}
CODES = "f32.e4m3.e4m3", 32


class ProductWriter(ResultWriter):
    """Writes what tensor cores do with a stage."""

    releases: str
    """Whether a thread tells a block that a stage may be loaded: one for each block."""

    def _multiply_stage(self, stage: str, step: str, sums: Sequence[Sequence[str]]) -> None:
        a, kernel = self.a, self.kernel
        op, whole = self._product
        here = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
        right = a("add.u32 {}, {}, {};", here, kernel.tile.rows * kernel.line)
        lows = [self._described(x) for x in (here, right)]
        high = self._layout(8)
        adds = a("setp.ne.u32 {}, {}, 0;", step, kind="p")
        always = a("setp.ne.u32 {}, {}, -1;", step, kind="p")
        for part in range(kernel.line // 32):
            b = self._descriptor(lows[1], 2 * part, high)
            for block, names in enumerate(sums):
                first = self._descriptor(lows[0], 2 * part + (64 * kernel.line >> 4) * block, high)
                predicate = adds if part == 0 else always
                a.line(f"{op} {{{', '.join(names)}}}, {first}, {b}, {predicate}{whole};")

    @property
    def _product(self) -> tuple[str, str]:
        """The instruction of tensor cores, and what stands behind its operands."""
        kernel = self.kernel
        types, depth = CODES if kernel.codes else TYPES[kernel.dtype]
        whole = "" if self.sums == "int32" else ", 1, 1" if kernel.codes else ", 1, 1, 0, 0"
        return f"wgmma.mma_async.sync.aligned.m64n{kernel.tile.columns}k{depth}.{types}", whole

    def _layout(self, lines: int) -> str:
        """The high half of a descriptor: eight rows are so many lines behind the eight before
        them, and places are exchanged as tensor maps do.
        """
        line = self.kernel.line
        pattern = 1 if line == 128 else 2
        return self.a("mov.u32 {}, {};", (pattern << 30) | (lines * line >> 4))

    def _release(self, stage: str, predicate: str) -> None:
        """Tells the threads that load, of all blocks that share weights, that a stage may be
        loaded.
        """
        a, kernel = self.a, self.kernel
        if kernel.sharing == 1:
            self._free(kernel.stages, stage, predicate)
            return
        barrier = self._barrier(kernel.stages, stage)
        there = a("mapa.shared::cluster.u32 {}, {}, {};", barrier, self.lane)
        how = "mbarrier.arrive.shared::cluster.b64"
        a.line(f"@{predicate} {how} _, [{there}];")

"""Writes the matrix kernel with specialised warps: the whole, loading, and products."""

from __future__ import annotations

from collections.abc import Sequence

from planish.graph.types import DType
from planish.targets.cuda.codegen.ptx import VERSION
from planish.targets.cuda.kernels.mapped_kernel import PAIRS, whole_strides
from planish.targets.cuda.kernels.specialized_results import ResultWriter
from planish.targets.cuda.kernels.specialized_tiles import (
    COMPUTING,
    GROUPS,
    LOADING,
    THREADS,
)

TYPES = {
    DType.FLOAT16: ("f32.f16.f16", 16),
    DType.BFLOAT16: ("f32.bf16.bf16", 16),
    DType.INT8: ("s32.s8.s8", 32),
}
CODES = "f32.e4m3.e4m3", 32


class SpecializedWriter(ResultWriter):
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

    def _wrapped(self, body: str) -> str:
        parameters = []
        for i, pointer in enumerate(self.pointers):
            if pointer.map is None:
                parameters.append(f".param .u64 p{i}")
                continue
            parameters.append(f".param .align 64 .b8 p{i}[128]")
            axes = range(len(pointer.map.shape))
            parameters += [f".param .u32 p{i}_n{j}" for j in axes]
            parameters += [f".param .u64 p{i}_s{j}" for j in axes]
        parameters += [".param .u32 n0", ".param .u64 ahead", ".param .u32 lines"]
        parameters += [".param .u64 none0", ".param .u64 none1"]
        cluster = self.kernel.cluster
        shape = f".explicitcluster\n.reqnctapercluster {cluster}, 1, 1\n" if cluster > 1 else ""
        return (
            f".version {VERSION}\n.target sm_90a\n.address_size 64\n\n"
            ".extern .shared .align 1024 .b8 memory[];\n\n"
            f".visible .entry {self.kernel.symbol}(\n    {f',{chr(10)}    '.join(parameters)}\n)\n"
            f"{shape}.maxntid {32 * self.kernel.warps}, 1, 1\n"
            f".minnctapersm {self.kernel.at_once}\n{{\n{body}}}\n"
        )

    def _load(self) -> None:
        a, kernel = self.a, self.kernel
        tile = a("mov.u32 {}, {};", self.unit)
        stage, parity = a("mov.u32 {}, 0;"), a("mov.u32 {}, 1;")

        def body() -> None:
            column, rows = self._locate(tile)
            share = kernel.tile.columns // kernel.cluster
            if kernel.cluster > 1:
                column = a("mad.lo.u32 {}, {}, {}, {};", self.rank, share, column)
            step, again = a("mov.u32 {}, 0;"), a.label()
            a.line(f"{again}:")
            self._wait(self._barrier(kernel.stages, stage), parity)
            full = self._barrier(0, stage)
            a.line(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [{full}], {kernel.stage_bytes};")
            here = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
            self._copy_in(0, here, self._places(step, rows), full)
            there = a("add.u32 {}, {}, {};", here, kernel.tile.rows * kernel.line)
            depth = a("mul.lo.u32 {}, {}, {};", step, kernel.tile.depth)
            if kernel.cluster > 1:
                there = a("mad.lo.u32 {}, {}, {}, {};", self.rank, share * kernel.line, there)
            self._copy_in(1, there, [depth, column], full, kernel.cluster > 1)
            self._next(stage, parity)
            a.line(f"add.u32 {step}, {step}, 1;")
            more = a("setp.lt.u32 {}, {}, {};", step, kernel.steps, kind="p")
            a.line(f"@{more} bra {again};")

        self._loop(tile, self.tiles, self.units, body)

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
        # the second group begins behind the stages of the first
        stage = a("mul.lo.u32 {}, {}, {};", self.group, kernel.steps % kernel.stages)
        parity = a("mul.lo.u32 {}, {}, {};", self.group, kernel.steps // kernel.stages % 2)
        second = a("setp.eq.u32 {}, {}, 1;", self.group, kind="p")
        a.line(f"@{second} bar.arrive 1, {GROUPS * THREADS};")
        self._begin_ring(0 if kernel.residual is not None else 1)

        def body() -> None:
            column, _ = self._locate(tile)
            sums = self._multiply(stage, parity)
            self._finish(sums, column)
            # past the other group's stages
            a.line(f"add.u32 {stage}, {stage}, {kernel.steps % kernel.stages};")
            self._wrap(stage, parity)
            if kernel.steps // kernel.stages % 2:
                a.line(f"xor.b32 {parity}, {parity}, 1;")

        self._loop(tile, self.tiles, stride, body)
        self._look_ahead()

    def _prepare(self) -> None:
        """What a thread needs for the products of all of its tiles."""
        a, kernel = self.a, self.kernel
        self.turn = a("add.u32 {}, {}, 1;", self.group)
        self.other_turn = a("sub.u32 {}, 2, {};", self.group)
        self.releases = a("setp.lt.u32 {}, {}, {};", self.lane, kernel.cluster, kind="p")

    def _multiply(self, stage: str, parity: str) -> list[list[str]]:
        """The loop over the depth; the sums of each 64 rows."""
        a, kernel = self.a, self.kernel
        sums = [a.registers(kernel.tile.columns // 2) for _ in range(kernel.tile.rows // 64)]
        for name in (name for names in sums for name in names):
            a.line(f"mov.b32 {name}, 0;")
        a.line(f"bar.sync {self.turn}, {GROUPS * THREADS};")
        step, again = a("mov.u32 {}, 0;"), a.label()
        last = a("mov.u32 {}, 0;")
        a.line(f"{again}:")
        self._wait(self._barrier(0, stage), parity)
        a.line("wgmma.fence.sync.aligned;")
        self._multiply_stage(stage, step, sums)
        a.line("wgmma.commit_group.sync.aligned;")
        a.line("wgmma.wait_group.sync.aligned 1;")
        begun = a("setp.ne.u32 {}, {}, 0;", step, kind="p")
        self._release(last, a("and.pred {}, {}, {};", begun, self.releases, kind="p"))
        a.line(f"mov.u32 {last}, {stage};")
        self._next(stage, parity)
        a.line(f"add.u32 {step}, {step}, 1;")
        more = a("setp.lt.u32 {}, {}, {};", step, kernel.steps, kind="p")
        a.line(f"@{more} bra {again};")
        a.line(f"bar.arrive {self.other_turn}, {GROUPS * THREADS};")
        a.line("wgmma.wait_group.sync.aligned 0;")
        self._release(last, self.releases)
        return sums

    def _multiply_stage(self, stage: str, step: str, sums: Sequence[Sequence[str]]) -> None:
        a, kernel = self.a, self.kernel
        types, depth = CODES if kernel.codes else TYPES[kernel.dtype]
        whole = "" if self.sums == "int32" else ", 1, 1" if kernel.codes else ", 1, 1, 0, 0"
        op = f"wgmma.mma_async.sync.aligned.m64n{kernel.tile.columns}k{depth}.{types}"
        here = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
        right = a("add.u32 {}, {}, {};", here, kernel.tile.rows * kernel.line)
        lows = [self._described(x) for x in (here, right)]
        # eight rows behind one another, exchanged as tensor maps do
        pattern = 1 if kernel.line == 128 else 2
        high = a("mov.u32 {}, {};", (pattern << 30) | (8 * kernel.line >> 4))
        adds = a("setp.ne.u32 {}, {}, 0;", step, kind="p")
        always = a("setp.ne.u32 {}, {}, -1;", step, kind="p")
        for part in range(kernel.line // 32):
            b = self._descriptor(lows[1], 2 * part, high)
            for block, names in enumerate(sums):
                first = self._descriptor(lows[0], 2 * part + (64 * kernel.line >> 4) * block, high)
                predicate = adds if part == 0 else always
                a.line(f"{op} {{{', '.join(names)}}}, {first}, {b}, {predicate}{whole};")

    def _described(self, address: str) -> str:
        a = self.a
        place = a("bfe.u32 {}, {}, 4, 14;", address)
        return a("or.b32 {}, {}, 65536;", place)

    def _descriptor(self, low: str, more: int, high: str) -> str:
        a = self.a
        moved = a("add.u32 {}, {}, {};", low, more) if more else low
        return a("mov.b64 {}, {{{}, {}}};", moved, high, kind="d")

    def _release(self, stage: str, predicate: str) -> None:
        """Tells the threads that load, of all blocks of the cluster, that a stage may be loaded."""
        a, kernel = self.a, self.kernel
        barrier = self._barrier(kernel.stages, stage)
        if kernel.cluster == 1:
            a.line(f"@{predicate} mbarrier.arrive.shared::cta.b64 _, [{barrier}];")
            return
        there = a("mapa.shared::cluster.u32 {}, {}, {};", barrier, self.lane)
        how = "mbarrier.arrive.shared::cluster.b64"
        a.line(f"@{predicate} {how} _, [{there}];")

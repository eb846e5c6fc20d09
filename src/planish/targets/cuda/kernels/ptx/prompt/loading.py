"""Writes the matrix kernel that is ready before its turn: what comes first, and loading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planish.targets.cuda.kernels.ptx.specialized.writer import SpecializedWriter
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER, THREADS

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.ptx.prompt.kernel import PromptKernel


class PromptLoader(SpecializedWriter):
    """What does not depend on the kernel before this one, and the thread that loads."""

    kernel: PromptKernel

    # ---- before the turn -------------------------------------------------------------------------

    def _begin(self) -> None:
        """All that does not depend on the kernel before this one."""
        a, kernel = self.a, self.kernel
        self.tid = a("mov.u32 {}, %tid.x;")
        self.warp = a("shfl.sync.idx.b32 {}, {}, 0, 31, -1;", a("shr.u32 {}, {}, 5;", self.tid))
        self.lane = a("and.b32 {}, {}, 31;", self.tid)
        self.memory = a("mov.u32 {}, memory;")
        block = a("mov.u32 {}, %ctaid.x;")
        self.rank = a("mov.u32 {}, {};", "%cluster_ctarank" if kernel.cluster > 1 else 0)
        self.maps = {
            i: a("cvta.param.u64 {}, {};", a(f"mov.b64 {{}}, p{i};", kind="d"), kind="d")
            for i in range(2)
        }
        self.column, self.origin = self._locate(a("div.u32 {}, {}, {};", block, kernel.cluster))
        begun = a("mul.lo.u32 {}, {}, {};", self.rank, kernel.units)
        self.first = self._divided(begun, kernel.cluster)[0]
        ended = a("add.u32 {}, {}, {};", begun, kernel.units)
        ended = self._divided(ended, kernel.cluster)[0]
        self.count = a("sub.u32 {}, {}, {};", ended, self.first)
        with a.skipped_unless(a("setp.eq.u32 {}, {}, {};", self.tid, THREADS, kind="p")):
            counts = [1] * kernel.stages + [THREADS // 32] * kernel.stages
            counts += [1] * kernel.frames + [THREADS // 32] * kernel.frames
            for i, count in enumerate(counts):
                place = kernel.barriers + BARRIER * i
                a.line(f"mbarrier.init.shared::cta.b64 [{self.memory}+{place}], {count};")
            a.line("fence.mbarrier_init.release.cluster;")
            a.line("fence.proxy.async.shared::cta;")
            for i in range(kernel.first_steps):
                self._load_weights(str(i), self._early_depth(i), self.column)
            a.line(f"prefetch.tensormap [{self.maps[0]}];")
        a.line("bar.sync 0;")

    def _early_depth(self, step: int) -> str:
        """Where the weights of one of the first steps begin in the depth."""
        a, kernel = self.a, self.kernel
        unit, tap = divmod(step, kernel.taps)
        unit_of = a("add.u32 {}, {}, {};", self.first, unit)
        if kernel.frames:
            unit_of = a("add.u32 {}, {}, {};", unit_of, tap * kernel.blocks)
        return a("mul.lo.u32 {}, {}, {};", unit_of, kernel.tile.depth)

    def _locate(self, tile: str) -> tuple[str, list[str]]:
        a, kernel = self.a, self.kernel
        place, column = self._divided(tile, kernel.column_tiles)
        column = a("mul.lo.u32 {}, {}, {};", column, kernel.tile.columns)
        if kernel.window is None:
            return column, [a("mul.lo.u32 {}, {}, {};", place, kernel.tile.rows)]
        if kernel.frames:  # the number of the first square
            return column, [a("mul.lo.u32 {}, {}, {};", place, kernel.tile.rows // 64)]
        return column, self._located(place)

    def _located(self, place: str) -> list[str]:
        """Where a box of pixels begins, by its number: column, row and image."""
        a, kernel = self.a, self.kernel
        found = []
        for extent, size in zip(reversed(self._of_image), (kernel.wide, kernel.high), strict=True):
            place, inside = self._divided(place, extent)
            found.append(a("mul.lo.u32 {}, {}, {};", inside, size))
        return [*found, a("mul.lo.u32 {}, {}, {};", place, kernel.images)]

    # ---- the thread that loads -------------------------------------------------------------------

    def _load(self) -> None:
        a, kernel = self.a, self.kernel
        if kernel.frames:
            self._load_frames()
        else:
            self._load_boxes()
        a.line("griddepcontrol.launch_dependents;")

    def _load_boxes(self) -> None:
        a, kernel = self.a, self.kernel
        early = range(kernel.first_steps)
        boxes = [self._places(a("add.u32 {}, {}, {};", self.first, i), self.origin) for i in early]
        a.line("griddepcontrol.wait;")
        for i, box in zip(early, boxes, strict=True):
            self._load_box(str(i), box)
        step, stage, parity = self._begin_later()

        def body() -> None:
            self._wait(self._barrier(kernel.stages, stage), parity)
            where = a("add.u32 {}, {}, {};", self.first, step)
            depth = a("mul.lo.u32 {}, {}, {};", where, kernel.tile.depth)
            self._load_weights(stage, depth, self.column)
            self._load_box(stage, self._places(where, self.origin))
            self._next(stage, parity)

        self._loop(step, self.count, body)

    def _load_frames(self) -> None:
        a, kernel = self.a, self.kernel
        places = [
            self._located(a("add.u32 {}, {}, {};", self.origin[0], i))
            for i in range(kernel.tile.rows // 64)
        ]
        a.line("griddepcontrol.wait;")
        for number in range(kernel.first_frames):
            unit = a("add.u32 {}, {}, {};", self.first, number)
            self._load_frame(str(number), unit, places, kernel.square_bytes)
        step, stage, parity = self._begin_later()
        # of the step: the frame's number, and the tap
        unit, tap = (a("mov.u32 {}, {};", n) for n in divmod(kernel.first_steps, kernel.taps))
        slot = a("mov.u32 {}, {};", kernel.first_frames % kernel.frames)
        turned = a("mov.u32 {}, {};", int(kernel.frames > kernel.first_frames))
        last = a("mul.lo.u32 {}, {}, {};", self.count, kernel.taps)

        def body() -> None:
            where = a("add.u32 {}, {}, {};", self.first, unit)
            with a.skipped_unless(a("setp.eq.u32 {}, {}, 0;", tap, kind="p")):
                self._wait(self._barrier(kernel.frame_barriers + kernel.frames, slot), turned)
                self._load_frame(slot, where, places, kernel.square_bytes)
                self._turn(slot, turned, kernel.frames)
            self._wait(self._barrier(kernel.stages, stage), parity)
            place = a("mad.lo.u32 {}, {}, {}, {};", tap, kernel.blocks, where)
            depth = a("mul.lo.u32 {}, {}, {};", place, kernel.tile.depth)
            self._load_weights(stage, depth, self.column)
            self._next(stage, parity)
            a.line(f"add.u32 {tap}, {tap}, 1;")
            over = a("setp.ge.u32 {}, {}, {};", tap, kernel.taps, kind="p")
            a.line(f"@{over} mov.u32 {tap}, 0;")
            a.line(f"@{over} add.u32 {unit}, {unit}, 1;")

        self._loop(step, last, body)

    def _begin_later(self) -> tuple[str, str, str]:
        """The first step that waits for a stage, that stage, and the parity waited for."""
        a, first, stages = self.a, self.kernel.first_steps, self.kernel.stages
        parity = a("mov.u32 {}, {};", int(first < stages))
        return a("mov.u32 {}, {};", first), a("mov.u32 {}, {};", first % stages), parity

    def _load_box(self, stage: str, box: Sequence[str]) -> None:
        here = self.a("mad.lo.u32 {}, {}, {}, {};", stage, self.kernel.stage_bytes, self.memory)
        self._copy_in(0, here, box, self._barrier(0, stage))

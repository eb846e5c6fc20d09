"""Writes the matrix kernel with specialised warps: pixels that are loaded once for all taps.

A frame is what the taps of a window see of a tile's pixels, of as many channels as a step has. It
lies in shared memory as its image does, so that what a tap sees of it is the same rows from another
beginning. Tensor cores exchange places by the bits of whole addresses, as the copies do; so such a
beginning may be any line (a descriptor's base offset stays 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from planish.targets.cuda.kernels.ptx.specialized.products import ProductWriter

Place = tuple[str, str]
"""Registers: the number of a place in shared memory, and the parity of its barrier."""


class FrameWriter(ProductWriter):
    """Writes how frames and the weights of their taps are loaded, and multiplied."""

    # ---- loading ---------------------------------------------------------------------------------

    def _load_frame(
        self, slot: str, unit: str, origins: Sequence[Sequence[str]], stride: int = 0
    ) -> None:
        """Loads a frame of some channels, or several that lie so many bytes behind one another: for
        each where its pixels begin, by column, row and image.
        """
        a, kernel = self.a, self.kernel
        assert kernel.window is not None
        full = self._barrier(kernel.frame_barriers, slot)
        count = len(origins) * kernel.images * math.prod(kernel.frame) * kernel.line
        a.line(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [{full}], {count};")
        channel = a("mul.lo.u32 {}, {}, {};", unit, kernel.tile.depth)
        start = a("add.u32 {}, {}, {};", self.memory, kernel.stages * kernel.stage_bytes)
        start = a("mad.lo.u32 {}, {}, {}, {};", slot, kernel.frame_bytes, start)
        for number, (x, y, image) in enumerate(origins):
            top, side = (
                a("sub.s32 {}, {}, {};", at, pad)
                for at, pad in zip((y, x), kernel.window.pads, strict=True)
            )
            there = a("add.u32 {}, {}, {};", start, number * stride)
            self._copy_in(0, there, [channel, side, top, image], full)

    def _load_weights(self, stage: str, depth: str, column: str) -> None:
        """Begins a stage: its barrier is told of all bytes that will come."""
        a, kernel = self.a, self.kernel
        full = self._barrier(0, stage)
        a.line(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [{full}], {kernel.stage_bytes};")
        there = a("add.u32 {}, {}, {};", self.memory, kernel.weights)
        there = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, there)
        self._copy_weights(there, depth, column, full)

    def _copy_weights(self, to: str, depth: str, column: str, barrier: str) -> None:
        """Loads a step's weights: of a block that shares them its part, for all blocks."""
        a, kernel = self.a, self.kernel
        if kernel.sharing > 1:
            share = kernel.tile.columns // kernel.sharing * kernel.line
            to = a("mad.lo.u32 {}, {}, {}, {};", self.rank, share, to)
        self._copy_in(1, to, [depth, column], barrier, kernel.sharing > 1)

    # ---- products --------------------------------------------------------------------------------

    def _multiply_frames(
        self, stage: Place, slot: Place, count: object, sums: Sequence[Sequence[str]]
    ) -> Place:
        """Multiplies so many frames, the taps of each one behind the other; the stage and the frame
        that products may still read.
        """
        a, kernel = self.a, self.kernel
        assert kernel.window is not None
        unit, last, left = (a("mov.u32 {}, 0;") for _ in range(3))
        _, across = kernel.window.taps

        def body() -> None:
            begun = a("setp.ne.u32 {}, {}, 0;", unit, kind="p")
            always = a("setp.ne.u32 {}, {}, -1;", unit, kind="p")
            releases = a("and.pred {}, {}, {};", begun, self.releases, kind="p")
            leads = a("and.pred {}, {}, {};", begun, self.leads, kind="p")
            self._wait(self._barrier(kernel.frame_barriers, slot[0]), slot[1])
            for tap in range(kernel.taps):
                self._wait(self._barrier(0, stage[0]), stage[1])
                a.line("wgmma.fence.sync.aligned;")
                predicates = (begun if tap == 0 else always), always
                self._multiply_tap(stage[0], slot[0], divmod(tap, across), sums, predicates)
                a.line("wgmma.commit_group.sync.aligned;")
                if tap == 0 or not kernel.keeps_weights:
                    a.line("wgmma.wait_group.sync.aligned 1;")
                if not kernel.keeps_weights:
                    self._release(last, self.releases if tap else releases)
                if tap == 0 and kernel.frames > 1:
                    self._free(kernel.frame_barriers + kernel.frames, left, leads)
                a.line(f"mov.u32 {last}, {stage[0]};")
                if kernel.keeps_weights:  # each step has its own stage, which stays
                    a.line(f"add.u32 {stage[0]}, {stage[0]}, 1;")
                else:
                    self._next(*stage)
            if kernel.frames == 1:  # the next one has no other place
                a.line("wgmma.wait_group.sync.aligned 0;")
                self._free(kernel.frame_barriers + 1, slot[0], self.leads)
            a.line(f"mov.u32 {left}, {slot[0]};")
            self._turn(*slot, kernel.frames)

        self._loop(unit, count, body)
        return last, left

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
        start = a("mad.lo.u32 {}, {}, {}, {};", slot, kernel.frame_bytes, start)
        there = a("mad.lo.u32 {}, {}, {}, {};", stage, kernel.stage_bytes, self.memory)
        pixels, weights = self._described(start), self._described(there)
        # a row of eight pixels is a frame's row from the next; of weights eight rows
        high, of_weights = self._layout(pitch), self._layout(8)
        for part in range(kernel.line // 32):
            b = self._descriptor(weights, 2 * part, of_weights)
            for block, names in enumerate(sums):
                moved = 2 * part + (kernel.frame_place(block) >> 4)
                first = self._descriptor(pixels, moved, high)
                predicate = predicates[part > 0]
                a.line(f"{op} {{{', '.join(names)}}}, {first}, {b}, {predicate}{whole};")

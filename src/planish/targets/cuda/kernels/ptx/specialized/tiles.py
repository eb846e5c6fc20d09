"""Writes the matrix kernel with specialised warps: threads, tiles, barriers, copies of boxes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER, GroupWriter

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.ptx.specialized.kernel import SpecializedKernel

LINES = 64, 128
"""Bytes of a row of a factor's box in shared memory, and of the result's."""
GROUPS = 2
"""Groups of warps that compute."""
WARPS = 4 * (GROUPS + 1)
COMPUTING, LOADING = 240, 24
"""Registers of threads."""
SIDE = 8
"""Pixels side by side of tiles with frames: rows of the matrix that tensor cores take as they lie.
"""
WHOLE = 1024
"""Bytes of which places in shared memory are multiples where exchanged ones begin."""


class TileWriter(GroupWriter):
    """What all groups of warps have in common; one object per kernel."""

    kernel: SpecializedKernel

    def _begin(self) -> None:
        a, kernel = self.a, self.kernel
        self.tid = a("mov.u32 {}, %tid.x;")
        warp = a("shr.u32 {}, {}, 5;", self.tid)
        self.warp = a("shfl.sync.idx.b32 {}, {}, 0, 31, -1;", warp)  # the same in all lanes
        self.group = a("shr.u32 {}, {}, 2;", self.warp)
        self.lane = a("and.b32 {}, {}, 31;", self.tid)
        self.memory = a("mov.u32 {}, memory;")
        self._number_blocks()
        rows = a("ld.param.u32 {}, [n0];")
        self._count_tiles(rows)
        first = a("setp.eq.u32 {}, {}, 0;", self.tid, kind="p")
        with a.skipped_unless(first):
            counts = [1] * kernel.stages + [4 * kernel.cluster] * kernel.stages
            counts += [1] * (GROUPS * kernel.ring) + [4] * (GROUPS * kernel.ring)
            counts += [1] * kernel.frames + [4] * kernel.frames
            for i, count in enumerate(counts):
                place = kernel.barriers + BARRIER * i
                a.line(f"mbarrier.init.shared::cta.b64 [{self.memory}+{place}], {count};")
            a.line("fence.mbarrier_init.release.cluster;")
        self.maps = {
            i: a("cvta.param.u64 {}, {};", a(f"mov.b64 {{}}, p{i};", kind="d"), kind="d")
            for i, pointer in enumerate(self.pointers)
            if pointer.map is not None
        }
        self._meet()
        a.line("griddepcontrol.wait;")

    def _number_blocks(self) -> None:
        """Names the cluster that this block is in, of how many, and its number there."""
        a, kernel = self.a, self.kernel
        block, blocks = a("mov.u32 {}, %ctaid.x;"), a("mov.u32 {}, %nctaid.x;")
        self.rank = a("mov.u32 {}, %cluster_ctarank;") if kernel.cluster > 1 else "0"
        self.unit = a("div.u32 {}, {}, {};", block, kernel.cluster)
        self.units = a("div.u32 {}, {}, {};", blocks, kernel.cluster)

    def _meet(self) -> None:
        """Waits for all threads of the cluster."""
        if self.kernel.cluster > 1:
            self.a.line("barrier.cluster.arrive;")
            self.a.line("barrier.cluster.wait;")
        else:
            self.a.line("bar.sync 0;")

    def _part(self) -> None:
        """No block ends while the other one still writes to its shared memory."""
        if self.kernel.cluster > 1:
            self._meet()

    def _count_tiles(self, rows: str) -> None:
        """Names `tiles`: those of a cluster's rows by those of columns."""
        a, kernel = self.a, self.kernel
        if kernel.window is None:
            of_cluster = kernel.tile.rows * kernel.cluster
            count = a(
                "div.u32 {}, {}, {};", a("add.u32 {}, {}, {};", rows, of_cluster - 1), of_cluster
            )
        else:
            images = a("div.u32 {}, {}, {};", rows, math.prod(kernel.axes[1:]))
            down, across = self._of_image
            whole = a("add.u32 {}, {}, {};", images, kernel.images - 1)
            whole = a("div.u32 {}, {}, {};", whole, kernel.images)
            count = a("mul.lo.u32 {}, {}, {};", whole, down * across)
            count = a("add.u32 {}, {}, {};", count, kernel.cluster - 1)
            count = a("div.u32 {}, {}, {};", count, kernel.cluster)
        self.tiles = a("mul.lo.u32 {}, {}, {};", count, kernel.column_tiles)

    @property
    def _of_image(self) -> tuple[int, int]:
        """Tiles of an image: down and across."""
        high, wide = self.kernel.axes[1:]
        return ceil(high, self.kernel.high), ceil(wide, self.kernel.wide)

    def _locate(self, tile: str) -> tuple[str, list[str]]:
        """The first column of a tile, and where its rows begin: the last axis first."""
        a, kernel = self.a, self.kernel
        place = a("div.u32 {}, {}, {};", tile, kernel.column_tiles)
        own = a("mul.lo.u32 {}, {}, {};", place, kernel.column_tiles)
        column = a("sub.u32 {}, {}, {};", tile, own)
        column = a("mul.lo.u32 {}, {}, {};", column, kernel.tile.columns)
        if kernel.cluster > 1:
            place = a("mad.lo.u32 {}, {}, {}, {};", place, kernel.cluster, self.rank)
        if kernel.window is None:
            return column, [a("mul.lo.u32 {}, {}, {};", place, kernel.tile.rows)]
        found = []
        for extent, size in zip(reversed(self._of_image), (kernel.wide, kernel.high), strict=True):
            rest = a("div.u32 {}, {}, {};", place, extent)
            inside = a("sub.u32 {}, {}, {};", place, a("mul.lo.u32 {}, {}, {};", rest, extent))
            found.append(a("mul.lo.u32 {}, {}, {};", inside, size))
            place = rest
        return column, [*found, a("mul.lo.u32 {}, {}, {};", place, kernel.images)]

    def _next(self, stage: str, parity: str) -> None:
        """Goes on to the next stage."""
        self.a.line(f"add.u32 {stage}, {stage}, 1;")
        self._wrap(stage, parity, self.kernel.stages)

    def _wrap(self, place: str, parity: str, count: int) -> None:
        a = self.a
        over = a("setp.ge.u32 {}, {}, {};", place, count, kind="p")
        a.line(f"@{over} sub.u32 {place}, {place}, {count};")
        a.line(f"@{over} xor.b32 {parity}, {parity}, 1;")

    def _tiles_of(self, group: str) -> tuple[str, str, str]:
        """A group's tile, a box of it, and how far the next tile is."""
        a, box = self.a, self.a("mov.u32 {}, 0;")
        tile = a("mad.lo.u32 {}, {}, {}, {};", group, self.units, self.unit)
        return tile, box, a("add.u32 {}, {}, {};", self.units, self.units)

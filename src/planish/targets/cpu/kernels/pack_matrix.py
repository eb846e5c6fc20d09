"""Packs a matrix that is not constant the way the matrix kernel reads its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.kernel import CpuKernel

F32 = DType.FLOAT32


@dataclass(frozen=True)
class PackMatrixKernel(CpuKernel):
    """Matrices ``[depth, channels]`` to ``[block][depth][vectors x lanes]``, zero padded.

    A task is one block of one matrix. Pointers: source, target. Parameters: blocks, depth,
    channels, groups (matrices of a batch), strides between batches, groups, rows and columns.
    """

    family: ClassVar[str] = "pack_matrix"
    vectors: int
    contiguous: bool

    def write(self, k: KernelBuilder) -> None:
        blocks, depth, channels, groups = (k.param(i) for i in range(4))
        per_batch, per_group, down, along = (k.param(i) for i in range(4, 8))
        source, target = k.pointer(0), k.pointer(1)
        width = self.vectors * k.lanes
        with k.loop(k.begin, k.end) as tasks:
            matrix, block = k.divmod(tasks.index, blocks)
            first = k.mul(block, width)
            left = k.sub(channels, first)
            batch, group = k.divmod(matrix, groups)
            start = k.add(k.mul(batch, per_batch), k.mul(group, per_group))
            start = k.add(start, k.mul(first, along))
            place = k.mul(k.mul(tasks.index, depth), width)
            masks = [k.tail_mask(k.sub(left, v * k.lanes), k.lanes) for v in range(self.vectors)]
            with k.loop(0, depth) as rows:
                row = k.offset(source, k.add(start, k.mul(rows.index, down)), F32)
                out = k.offset(target, k.add(place, k.mul(rows.index, width)), F32)
                for v in range(self.vectors):
                    if self.contiguous:
                        here = k.offset(row, v * k.lanes, F32)
                        vector = k.load(here, F32, k.lanes, mask=masks[v])
                    else:
                        here = k.offset(row, k.mul(along, v * k.lanes), F32)
                        # lanes beyond the matrix read its last column again, then become zero
                        count = k.max(k.sub(left, v * k.lanes), 1 - v * k.lanes)
                        spread = k.gather(here, along, F32, k.lanes, count)
                        vector = k.b.select(masks[v], spread, k.zero(F32, k.lanes))
                    k.store(vector, k.offset(out, v * k.lanes, F32), F32, k.lanes)

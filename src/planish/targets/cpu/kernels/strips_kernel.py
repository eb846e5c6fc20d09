"""Several kernels one after the other on a strip of an image, then on the next strip.

    for each task: an image, a band of its rows
        for each strip of the band
            keep the rows of the first result that the next strip reads again
            first kernel: new rows of its result, into scratch memory
            other kernels: from scratch to scratch, the last one into the output

What lies between the kernels stays in the cache of the thread. Each of them is a function of its
own in this kernel's module, called with the parameters that it has for a strip of that height.

Parameters, all offsets in elements of its tensors, all positions counted in parameters:

    `HEADER`
    for each pointer that follows the image: its steps from image to image and from row to row
    for each band: its first strip and the one after its last
    for each strip: `STRIP`; for each kernel, where its parameters are and how many tasks it has
    the parameters of the kernels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64, PTR
from planish.targets.cpu.kernel import CpuKernel

HEADER = ("bands", "bands_at", "strips_at", "second_buffer")
"""How many bands an image has; where they, the strips, and the second buffer begin."""
STRIP = ("source_row", "result_row", "kept_from", "kept")
"""Of a strip: the rows of source and result with which it begins; of the first buffer, from where
how many elements are kept: behind them new rows begin."""

_MOVED = {2: DType.INT16, 4: DType.INT32}
"""What elements are taken for that are moved and not looked at, by their size."""


class Slot(NamedTuple):
    """Where a kernel's pointer comes from.

    Attributes
    ----------
    kind : str
        "given": the outer kernel's pointer of that number. "source", "result": that one, moved to
        the image and to the strip's first row of the source or of the result. "buffer": scratch
        memory of that number. "fresh": the new rows in the first buffer.
    number : int
    """

    kind: str
    number: int


@dataclass(frozen=True)
class Stage:
    """A kernel, and what its pointers are."""

    kernel: CpuKernel
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class StripsKernel(CpuKernel):
    """Kernels that run strip by strip.

    Attributes
    ----------
    stages : tuple of Stage
        In order.
    moving : tuple of int
        The pointers that follow the image.
    keeps : bool
        Whether rows of the first buffer are kept for the next strip.
    dtype : DType
        Of all tensors, of 2 or 4 bytes.
    """

    family: ClassVar[str] = "strips"
    stages: tuple[Stage, ...]
    moving: tuple[int, ...]
    keeps: bool
    dtype: DType = DType.FLOAT32

    def write(self, k: KernelBuilder) -> None:
        functions = []
        for i, stage in enumerate(self.stages):
            inner = k.inner(f"stage{i}")  # not the kernel's symbol: that is the kernel alone
            stage.kernel.write(inner)
            functions.append(inner.close())
        tables = [
            k.b.alloca(PTR, len(stage.slots), name=f"pointers{i}")
            for i, stage in enumerate(self.stages)
        ]
        header = {name: k.param(i) for i, name in enumerate(HEADER)}
        buffers = [k.scratch, k.offset(k.scratch, header["second_buffer"], self.dtype)]
        with k.loop(k.begin, k.end) as task:
            image, band = k.divmod(task.index, header["bands"])
            span = k.add(header["bands_at"], k.mul(band, 2))
            images = {}
            for number in self.moving:
                moved = k.mul(image, self._step(k, number, 0))
                images[number] = k.offset(k.pointer(number), moved, self.dtype)
            with k.loop(k.param(span), k.param(k.add(span, 1))) as strip:
                width = len(STRIP) + 2 * len(self.stages)
                at = k.add(header["strips_at"], k.mul(strip.index, width))
                place = {name: k.param(k.add(at, i)) for i, name in enumerate(STRIP)}
                if self.keeps:
                    self._keep(k, buffers[0], place["kept_from"], place["kept"])
                rows = {"source": place["source_row"], "result": place["result_row"]}
                fresh = k.offset(buffers[0], place["kept"], self.dtype)
                for i, (stage, function) in enumerate(zip(self.stages, functions, strict=True)):
                    for j, slot in enumerate(stage.slots):
                        match slot.kind:
                            case "given":
                                pointer = k.pointer(slot.number)
                            case "buffer":
                                pointer = buffers[slot.number]
                            case "fresh":
                                pointer = fresh
                            case kind:
                                step = self._step(k, slot.number, 1)
                                moved = k.mul(rows[kind], step)
                                pointer = k.offset(images[slot.number], moved, self.dtype)
                        k.b.store(pointer, k.b.gep(tables[i], [I64(j)], source_etype=PTR))
                    own = k.add(at, len(STRIP) + 2 * i)
                    self._call(k, function, tables[i], k.param(own), k.param(k.add(own, 1)))

    def _step(self, k: KernelBuilder, number: int, axis: int) -> ir.Value:
        """The step of a moving pointer from image to image (axis 0) or from row to row."""
        return k.param(len(HEADER) + 2 * self.moving.index(number) + axis)

    def _keep(self, k: KernelBuilder, buffer: ir.Value, start: ir.Value, count: ir.Value) -> None:
        """Moves elements to the buffer's begin. What is written beyond is written again."""
        dtype = _MOVED[self.dtype.size]
        with k.loop(0, count, k.lanes) as i:
            value = k.load(k.offset(buffer, k.add(start, i.index), dtype), dtype, k.lanes)
            k.store(value, k.offset(buffer, i.index, dtype), dtype, k.lanes)

    def _call(
        self,
        k: KernelBuilder,
        function: ir.Function,
        table: ir.Value,
        at: ir.Value,
        tasks: ir.Value,
    ) -> None:
        arguments: Sequence[ir.Value] = (table, k.params_at(at), I64(0), tasks, k.scratch)
        k.b.call(function, arguments)

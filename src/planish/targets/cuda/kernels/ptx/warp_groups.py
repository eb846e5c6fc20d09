"""Writes what kernels have in common whose groups of four warps have tasks of their own, in PTX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from planish.graph.types import DType
from planish.targets.cuda.codegen.ptx import VERSION, Assembly
from planish.targets.cuda.codegen.source import ASKING, LINE
from planish.targets.cuda.kernel import Pointer

THREADS = 128
"""Of a group."""
BARRIER = 8
"""Bytes of a barrier in shared memory."""


class GroupedKernel(Protocol):
    """A kernel whose groups of warps have tasks of their own."""

    @property
    def symbol(self) -> str: ...
    @property
    def pointers(self) -> Sequence[Pointer]: ...
    @property
    def dtype(self) -> DType:
        """Of the factors."""

    @property
    def codes(self) -> bool:
        """Whether bytes are codes of FP8."""

    @property
    def warps(self) -> int: ...
    @property
    def cluster(self) -> int: ...
    @property
    def at_once(self) -> int:
        """Blocks that registers are left for on a multiprocessor."""

    @property
    def barriers(self) -> int:
        """Where they begin in shared memory."""


class GroupWriter:
    """Arguments, loops, barriers; one object per kernel."""

    kernel: GroupedKernel
    tid: str
    memory: str
    """Where shared memory begins."""
    maps: dict[int, str]
    """Where tensor maps are, by the numbers of their pointers."""

    def __init__(self, kernel: GroupedKernel) -> None:
        self.kernel, self.a = kernel, Assembly()
        self.pointers = kernel.pointers
        self.sums = "int32" if kernel.dtype is DType.INT8 and not kernel.codes else "float32"

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

    def _look_ahead(self, threads: int) -> None:
        """Has the second-level cache fetch what a later kernel reads, by so many threads of
        a block; see `source.AHEAD`.
        """
        a = self.a
        block, blocks = a("mov.u32 {}, %ctaid.x;"), a("mov.u32 {}, %nctaid.x;")
        lines, ahead = a("ld.param.u32 {}, [lines];"), a("ld.param.u64 {}, [ahead];", kind="d")
        with a.skipped_unless(a("setp.lt.u32 {}, {}, {};", block, ASKING, kind="p")):
            asking = a("min.u32 {}, {}, {};", blocks, ASKING)
            line = a("mad.lo.u32 {}, {}, {}, {};", self.tid, asking, block)
            stride = a("mul.lo.u32 {}, {}, {};", asking, threads)

            def body() -> None:
                where = a("mad.wide.u32 {}, {}, {}, {};", line, LINE, ahead, kind="d")
                a.line(f"prefetch.global.L2 [{where}];")

            self._loop(line, lines, body, stride)

    def _loop(self, number: str, end: object, body: Callable[[], None], stride: object = 1) -> None:
        """Goes through numbers: of tiles, of steps, or of lines."""
        a = self.a
        again, done = a.label(), a.label()
        a.line(f"{again}:")
        over = a("setp.ge.u32 {}, {}, {};", number, end, kind="p")
        a.line(f"@{over} bra {done};")
        body()
        a.line(f"add.u32 {number}, {number}, {stride};")
        a.line(f"bra {again};")
        a.line(f"{done}:")

    def _barrier(self, first: int, stage: str) -> str:
        """The address of a stage's barrier; `first` is the number of the first stage's."""
        start = self.kernel.barriers + BARRIER * first
        base = self.a("add.u32 {}, {}, {};", self.memory, start)
        return self.a("mad.lo.u32 {}, {}, {}, {};", stage, BARRIER, base)

    def _wait(self, barrier: str, parity: str) -> None:
        a = self.a
        again, done = a.label(), a.label()
        a.line(f"{again}:")
        ready = a.register("p")
        how = "mbarrier.try_wait.parity.shared::cta.b64"
        a.line(f"{how} {ready}, [{barrier}], {parity};")
        a.line(f"@{ready} bra {done};")
        a.line(f"bra {again};")
        a.line(f"{done}:")

    def _turn(self, place: str, parity: str, count: int) -> None:
        """Goes on to the next of so many places."""
        a = self.a
        a.line(f"add.u32 {place}, {place}, 1;")
        over = a("setp.ge.u32 {}, {}, {};", place, count, kind="p")
        a.line(f"@{over} mov.u32 {place}, 0;")
        a.line(f"@{over} xor.b32 {parity}, {parity}, 1;")

    def _free(self, first: int, place: str, predicate: str) -> None:
        """Tells this block's thread that loads that a place is free."""
        barrier = self._barrier(first, place)
        self.a.line(f"@{predicate} mbarrier.arrive.shared::cta.b64 _, [{barrier}];")

    def _copy_in(
        self, number: int, to: str, place: Sequence[str], barrier: str, for_all: bool = False
    ) -> None:
        """Loads a box of a tensor, for all blocks of the cluster or for this one."""
        how = "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes"
        text = how.format(len(place)) + (".multicast::cluster" if for_all else "")
        box = f"[{self.maps[number]}, {{{', '.join(place)}}}]"
        mask = ""
        if for_all:
            every = self.a("mov.b16 {}, {};", (1 << self.kernel.cluster) - 1, kind="h")
            mask = f", {every}"
        self.a.line(f"{text} [{to}], {box}, [{barrier}]{mask};")

    def _described(self, address: str) -> str:
        """The low half of a descriptor."""
        a = self.a
        place = a("bfe.u32 {}, {}, 4, 14;", address)
        return a("or.b32 {}, {}, 65536;", place)

    def _descriptor(self, low: str, more: int, high: str) -> str:
        a = self.a
        moved = a("add.u32 {}, {}, {};", low, more) if more else low
        return a("mov.b64 {}, {{{}, {}}};", moved, high, kind="d")

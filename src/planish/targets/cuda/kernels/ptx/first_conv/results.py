"""Writes the kernel of first convolutions: what happens to sums, and how results are stored.

A thread has two neighbouring filters of some pixels: what filters have of their own, biases and
scales, it loads once. Both results of a pixel are stored together, and those of a warp are 16
neighbouring filters: whole sectors of memory, of halves.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.targets.cuda.codegen.ptx import Lanes
from planish.targets.cuda.kernels.ptx.first_conv.loading import ImageLoadingWriter
from planish.targets.cuda.kernels.ptx.specialized.results import Epilogue

Rows = list[str]
"""A thread's sums of (half) a row of the convolution's result; only tensor cores write there."""
PAIR = 2
"""Pixels of which a thread finishes its two filters at a time."""


class FirstConvResultWriter(ImageLoadingWriter):
    """Writes what happens behind products and poolings."""

    def _prepare_results(self) -> None:
        """What a thread needs for all of its results."""
        a, kernel = self.a, self.kernel
        self.epilogue = Epilogue(kernel.result, a)
        self.quarter = quarter = a("and.b32 {}, {}, 3;", self.lane)
        high = a("shr.u32 {}, {}, 2;", self.lane)
        filters = a("mad.lo.u32 {}, {}, 8, {};", self.warp, high)
        filters = a("mad.lo.u32 {}, {}, 32, {};", self.part, filters)
        filters = a("shl.b32 {}, {}, 1;", filters)
        self.exists = None
        if kernel.columns % 64:
            self.exists = a("setp.lt.u32 {}, {}, {};", filters, kernel.columns, kind="p")
        self._load_leaves(filters)
        (output,) = kernel.result.outputs
        size, pitch = output.pointer.dtype.size, output.strides[0]
        number = len(self.pointers) - 1
        start = a(f"ld.param.u64 {{}}, [p{number}];", kind="d")
        start = a("cvta.to.global.u64 {}, {};", start, kind="d")
        rows, columns = kernel.outputs
        each = kernel.run // (2 if kernel.pool else 1)  # pixels of a run
        pixel = a("mul.lo.u32 {}, {}, {};", quarter, each)
        row = a("mad.lo.u32 {}, {}, {}, {};", self.image, rows, self.first)
        start = a("mad.wide.u32 {}, {}, {}, {};", row, columns * pitch * size, start, kind="d")
        start = a("mad.wide.u32 {}, {}, {}, {};", pixel, pitch * size, start, kind="d")
        self.out = a("mad.wide.u32 {}, {}, {}, {};", filters, size, start, kind="d")
        self.pixel = pixel

    def _load_leaves(self, filters: str) -> None:
        """What a thread's two filters have of their own, and single numbers."""
        a, kernel = self.a, self.kernel
        own = a("min.u32 {}, {}, {};", filters, kernel.columns - 2)
        self.leaves: list[Lanes | None] = []
        for number, item in enumerate(kernel.result.leaves):
            if item is None:
                self.leaves.append(None)
                continue
            dtype = item.pointer.dtype
            address = a(f"ld.param.u64 {{}}, [p{2 + kernel.place_of(number)}];", kind="d")
            address = a("cvta.to.global.u64 {}, {};", address, kind="d")
            if not any(item.strides):
                self.leaves.append(self.epilogue.scalar(dtype, address))
                continue
            address = a("mad.wide.u32 {}, {}, {}, {};", own, dtype.size, address, kind="d")
            names = a.registers(2 * dtype.size // 4)
            vector, to = ("", names[0]) if len(names) == 1 else (".v2", f"{{{', '.join(names)}}}")
            a.line(f"ld.global.nc{vector}.b32 {to}, [{address}];")
            lanes = self.epilogue.unpacked(dtype, names)
            self.leaves.append(Lanes(a, lanes.kind, lanes.names * PAIR))

    def _by_filters(self, sums: Rows, runs: int) -> list[tuple[str, str]]:
        """The sums of each column, of both filters."""
        kernel = self.kernel
        columns = [(run, column) for run in range(runs) for column in range(kernel.run)]
        first, second = ([sums[kernel.sum_of(*c, f)] for c in columns] for f in range(2))
        return list(zip(first, second, strict=True))

    def _next_result(self) -> None:
        (output,) = self.kernel.result.outputs
        far = self.kernel.outputs[1] * output.strides[0] * output.pointer.dtype.size
        self.a.line(f"add.u64 {self.out}, {self.out}, {far};")

    def _finish(self, sums: Sequence[tuple[str, str]], runs: range, each: int) -> None:
        """Stores a half of a row: pixels by runs of so many, and of each both filters."""
        (output,) = self.kernel.result.outputs
        pitch = output.strides[0] * output.pointer.dtype.size
        wide, a = self.kernel.outputs[1], self.a
        places = [4 * each * run + i for run in runs for i in range(each)]  # of four threads' first
        known = [(p, s) for p, s in zip(places, sums, strict=True) if p < wide]
        for start in range(0, len(known), PAIR):
            some = known[start : start + PAIR]
            filled = (some * PAIR)[:PAIR]
            names = tuple(name for _, both in filled for name in both)
            results = self.epilogue.finish(Lanes(a, self.sums, names), self.leaves)
            for i, words in enumerate(self._by_pixels(results)):
                if i == len(some):
                    break
                self._store(words, some[i][0], pitch, each)

    def _by_pixels(self, results: list[str]) -> list[list[str]]:
        """Registers of each pixel's two filters: of bytes halves of one."""
        a, size = self.a, self.kernel.result.outputs[0].pointer.dtype.size
        if size > 1:
            count = len(results) // PAIR
            return [results[i : i + count] for i in range(0, len(results), count)]
        halves = a.register("h"), a.register("h")
        a.line(f"mov.b32 {{{halves[0]}, {halves[1]}}}, {results[0]};")
        return [[half] for half in halves]

    def _store(self, words: list[str], place: int, pitch: int, each: int) -> None:
        a, wide = self.a, self.kernel.outputs[1]
        predicate = self.exists
        if place + 3 * each >= wide:
            inside = a("setp.lt.u32 {}, {}, {};", self.pixel, wide - place, kind="p")
            if predicate:
                inside = a("and.pred {}, {}, {};", inside, predicate, kind="p")
            predicate = inside
        guard = f"@{predicate} " if predicate else ""
        where = f"[{self.out}+{place * pitch}]"
        if len(words) > 1:
            a.line(f"{guard}st.global.v2.b32 {where}, {{{', '.join(words)}}};")
        else:
            kind = "b16" if words[0][1] == "h" else "b32"
            a.line(f"{guard}st.global.{kind} {where}, {words[0]};")

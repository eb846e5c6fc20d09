"""Writes the kernel of first convolutions: products, poolings, and what happens to sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

from planish.targets.cuda.kernels.ptx.first_conv.loading import CHUNK
from planish.targets.cuda.kernels.ptx.first_conv.results import FirstConvResultWriter, Rows
from planish.targets.cuda.kernels.ptx.specialized.products import TYPES
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS

Pooled = tuple[list[str], list[str]]
"""What is largest along a row, of a thread's two filters."""


class FirstConvWriter(FirstConvResultWriter):
    """Writes a `FirstConvKernel`."""

    def write(self) -> str:
        a = self.a
        self._begin_block()
        loads = a("setp.ge.u32 {}, {}, {};", self.warp, THREADS // 32, kind="p")
        computing, end = a.label(), a.label()
        a.line(f"@!{loads} bra {computing};")
        self._have(self.kernel.loading, "dec")
        self._load()
        a.line(f"bra {end};")
        a.line(f"{computing}:")
        self._have(self.kernel.computing, "inc")
        self._compute()
        a.line(f"{end}:")
        a.line("ret;")
        return self._wrapped(a.body())

    def _have(self, registers: int, how: str) -> None:
        """Threads that compute take registers of those that load, where two blocks share them."""
        if self.kernel.at_once > 1:
            self.a.line(f"setmaxnreg.{how}.sync.aligned.u32 {registers};")

    # ---- the warps that compute -----------------------------------------------------------------

    def _compute(self) -> None:
        a, kernel = self.a, self.kernel
        self.weights = self._load_weights()
        self._prepare_results()
        self._prepare_pooling()
        self._meet_all()
        a.line("griddepcontrol.wait;")
        self.slot, self.read = (a("mov.u32 {}, 0;") for _ in range(2))
        self.seen = a("mov.u32 {}, {};", kernel.seen - 1), a("mov.u32 {}, 0;")
        for unit in range(kernel.seen - 1):
            self._wait(self._barrier(0, str(unit)), "0")
        self.halves = kernel.shares
        if kernel.pool is None:
            self._go_plainly()
        elif kernel.pool.window == 2:
            self._go_by_pairs()
        else:
            self._go_overlapping()
        self._look_ahead(THREADS)

    def _sums(self) -> list[Rows]:
        """Registers for a row, by halves."""
        each = 4 * self.kernel.copies
        return [self.a.registers(each * len(runs)) for runs in self.halves]

    def _load_weights(self) -> list[list[str]]:
        """For each instruction the thread's registers of its left factor."""
        a, kernel = self.a, self.kernel
        count = kernel.weights // 4
        start = a("ld.param.u64 {}, [p1];", kind="d")
        start = a("cvta.to.global.u64 {}, {};", start, kind="d")
        own = a("mad.lo.u32 {}, {}, {}, {};", self.part, count * THREADS, self.tid)
        start = a("mad.wide.u32 {}, {}, {}, {};", own, CHUNK, start, kind="d")
        weights = [a.registers(4) for _ in range(count)]
        for i, names in enumerate(weights):
            where = f"[{start}+{i * THREADS * CHUNK}]"
            a.line(f"ld.global.nc.v4.b32 {{{', '.join(names)}}}, {where};")
        return weights

    def _for_rows(self, body: Callable[[], None]) -> None:
        """Goes through the rows of the (pooled) result."""
        a = self.a
        again = a.label()
        a.line(f"{again}:")
        body()
        a.line(f"add.u32 {self.first}, {self.first}, 1;")
        more = a("setp.lt.u32 {}, {}, {};", self.first, self.end, kind="p")
        a.line(f"@{more} bra {again};")

    # ---- products -------------------------------------------------------------------------------

    def _begin(self, half: int, rows: Sequence[Rows]) -> None:
        """Has tensor cores begin with a half of the next rows of the convolution's result."""
        a, kernel = self.a, self.kernel
        if half == 0:
            for _ in rows:
                self._wait(self._barrier(0, self.seen[0]), self.seen[1])
                self._turn(*self.seen, kernel.ring)
            # tensor cores see what was stored behind a fence: those that load would wait there for
            # all that they have asked for
            a.line("fence.proxy.async.shared::cta;")
        units = [self._unit(i) for i in range(kernel.seen + len(rows) - 1)]
        runs = self.halves[half]
        types, depth = TYPES[kernel.dtype]
        columns = 8 * kernel.copies * len(runs)
        op = f"wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.{types}"
        whole = "" if self.sums == "int32" else ", 1, 1, 0"
        high = a("mov.u32 {}, {};", kernel.block >> 4)
        adds = a("setp.ne.u32 {}, {}, {};", self.lane, self.lane, kind="p")
        always = a("setp.eq.u32 {}, {}, {};", self.lane, self.lane, kind="p")
        start = runs[0] * kernel.copies * kernel.block
        a.line("wgmma.fence.sync.aligned;")
        for later, sums in enumerate(rows):
            for number, weights in enumerate(self.weights):
                tap, step = divmod(number, kernel.steps)
                unit, row = divmod(tap, kernel.strides[0])
                first = units[unit + later]
                more = (start + row * kernel.row_bytes + 2 * CHUNK * step) >> 4
                low = a("add.u32 {}, {}, {};", first, more) if more else first
                pixels = a("mov.b64 {}, {{{}, {}}};", low, high, kind="d")
                predicate = always if number else adds
                both = f"{{{', '.join(sums)}}}, {{{', '.join(weights)}}}"
                a.line(f"{op} {both}, {pixels}, {predicate}{whole};")
        if half == len(self.halves) - 1:
            self._step(self.slot, len(rows))

    def _commit(self) -> None:
        """Ends what a half has begun, perhaps nothing."""
        self.a.line("wgmma.commit_group.sync.aligned;")

    def _have_half(self, half: int, rows: int = 1) -> None:
        """Waits for what a half began before the other one did; units that nobody reads any longer
        are free.
        """
        self.a.line(f"wgmma.wait_group.sync.aligned {len(self.halves) - 1};")
        if half == len(self.halves) - 1:
            self._release(rows)

    def _release(self, rows: int) -> None:
        a, kernel = self.a, self.kernel
        for _ in range(rows):
            free = self._barrier(kernel.ring, self.read)
            a.line(f"@{self.leads} mbarrier.arrive.shared::cta.b64 _, [{free}];")
            self._step(self.read, 1)

    def _begin_next(self, half: int, rows: Sequence[Rows]) -> None:
        """Begins with a half of the next rows, if there are more."""
        a = self.a
        later = a("add.u32 {}, {}, 1;", self.first)
        with a.skipped_unless(a("setp.lt.u32 {}, {}, {};", later, self.end, kind="p")):
            self._begin(half, rows)
        self._commit()

    def _unit(self, number: int) -> str:
        """The low half of a descriptor that begins with a unit: so many behind the first one."""
        a, kernel = self.a, self.kernel
        slot = self.slot
        if number:
            slot = a("mov.u32 {}, {};", self.slot)
            self._step(slot, number)
        place = a("mad.lo.u32 {}, {}, {}, {};", slot, kernel.unit_bytes, self.memory)
        place = a("bfe.u32 {}, {}, 4, 14;", place)
        return a("or.b32 {}, {}, {};", place, CHUNK >> 4 << 16)

    def _step(self, slot: str, by: int) -> None:
        a, ring = self.a, self.kernel.ring
        a.line(f"add.u32 {slot}, {slot}, {by};")
        over = a("setp.ge.u32 {}, {}, {};", slot, ring, kind="p")
        a.line(f"@{over} sub.u32 {slot}, {slot}, {ring};")

    # ---- rows that are not pooled ----------------------------------------------------------------

    def _go_plainly(self) -> None:
        """All rows, not pooled."""
        sums = self._sums()
        for half, own in enumerate(sums):
            self._begin(half, [own])
            self._commit()

        def row() -> None:
            for half, own in enumerate(sums):
                self._have_half(half)
                runs = self.halves[half]
                self._finish(self._by_filters(own, len(runs)), runs, self.kernel.run)
                self._begin_next(half, [own])
            self._next_result()

        self._for_rows(row)

    # ---- poolings -------------------------------------------------------------------------------

    def _prepare_pooling(self) -> None:
        """What a thread needs for all of its windows."""
        a, kernel, pool = self.a, self.kernel, self.kernel.pool
        if pool is None:
            return
        self.least, self.edges = self._name_least(), ["", ""]
        self.beside = a("mul.lo.u32 {}, {}, {};", self.quarter, kernel.run)
        if pool.window == 2:
            return
        # of four threads that share a row, the one before or behind, around
        near = a("add.u32 {}, {}, {};", self.quarter, 3 if pool.pads[1] else 1)
        near = a("and.b32 {}, {}, 3;", near)
        self.neighbour = a("sub.u32 {}, {}, {};", self.lane, self.quarter)
        self.neighbour = a("add.u32 {}, {}, {};", self.neighbour, near)
        end = 3 if pool.pads[1] else 0  # the thread whose neighbour has another run
        self.wraps = a("setp.eq.u32 {}, {}, {};", self.quarter, end, kind="p")

    def _name_least(self) -> str:
        """What is larger than nothing, in a register whose content the assembler does not know: of
        sums that begin with a number it knows, that of CUDA 12.8 shuffles that number.
        """
        a = self.a
        number = 0x80000000 if self.sums == "int32" else 0xFF800000
        none = a("shr.u32 {}, {}, 31;", a("ld.param.u32 {}, [n0];"))
        return a("or.b32 {}, {}, {};", none, number)

    def _larger(self, first: str, second: str, to: str | None = None) -> str:
        a = self.a
        op = "max.s32" if self.sums == "int32" else "max.NaN.f32"
        if to is None:
            return a(f"{op} {{}}, {{}}, {{}};", first, second)
        a.line(f"{op} {to}, {first}, {second};")
        return to

    def _go_by_pairs(self) -> None:
        """All rows; windows do not overlap."""
        first, second = self._sums(), self._sums()
        for half, rows in enumerate(zip(first, second, strict=True)):
            self._begin(half, rows)
            self._commit()

        def both() -> None:
            for half, rows in enumerate(zip(first, second, strict=True)):
                self._have_half(half, 2)
                larger = [self._larger(*names) for names in zip(*rows, strict=True)]
                found = self._along(half, larger)
                self._begin_next(half, rows)
                self._finish_pooled(half, found)
            self._next_result()

        self._for_rows(both)

    def _go_overlapping(self) -> None:
        """All rows; what is largest along a window's last row is kept for the next window."""
        a, pool = self.a, self.kernel.pool
        assert pool is not None
        sums, held = self._sums(), [self._pooled(runs) for runs in self.halves]
        self.row = a("mov.u32 {}, {};", self.first_row)  # of the convolution's result, the next
        if pool.pads[0]:
            for name in (name for half in held for names in half for name in names):
                a.line(f"mov.b32 {name}, {self.least};")
            above = a("setp.ne.u32 {}, {}, 0;", self.first, kind="p")
            with a.skipped_unless(above):
                self._have_row(sums, held)
        else:
            self._have_row(sums, held)
        for half, own in enumerate(sums):
            self._begin(half, [own])
            self._commit()

        def rows() -> None:
            found = []
            for half, own in enumerate(sums):
                self._have_half(half)
                along = self._along(half, own)
                self._begin_last(half, own)
                found.append(self._larger_of(held[half], along))
            for half, own in enumerate(sums):
                self._have_half(half)
                self._along(half, own, held[half])
                self._begin_next(half, [own])
                self._hide_last(held[half])
                self._finish_pooled(half, self._larger_of(found[half], held[half]))
            a.line(f"add.u32 {self.row}, {self.row}, 2;")
            self._next_result()

        self._for_rows(rows)

    def _pooled(self, runs: range) -> Pooled:
        """Registers for what is largest along a half of a row, of both filters."""
        count = len(runs) * self.kernel.run // 2
        return self.a.registers(count), self.a.registers(count)

    def _larger_of(self, some: Pooled, others: Pooled) -> Pooled:
        first, second = (
            [self._larger(*both) for both in zip(*names, strict=True)]
            for names in zip(some, others, strict=True)
        )
        return first, second

    def _have_row(self, sums: list[Rows], to: list[Pooled]) -> None:
        """A row before all others."""
        a = self.a
        for half, own in enumerate(sums):
            self._begin(half, [own])
        self._commit()
        a.line("wgmma.wait_group.sync.aligned 0;")
        self._release(1)
        for half, own in enumerate(sums):
            self._along(half, own, to[half])
        a.line(f"add.u32 {self.row}, {self.row}, 1;")

    @property
    def _has_last(self) -> bool:
        """Whether all windows' last rows are rows of the convolution's result."""
        pool = self.kernel.pool
        assert pool is not None
        return 2 * (pool.size[0] - 1) - pool.pads[0] + 2 < self.kernel.positions[0]

    def _exists(self) -> str:
        """Whether this window's last row is one."""
        a = self.a
        last = a("add.u32 {}, {}, 1;", self.row)
        return a("setp.lt.u32 {}, {}, {};", last, self.kernel.positions[0], kind="p")

    def _begin_last(self, half: int, sums: Rows) -> None:
        """Begins with a half of a window's last row."""
        if self._has_last:
            self._begin(half, [sums])
        else:
            with self.a.skipped_unless(self._exists()):
                self._begin(half, [sums])
        self._commit()

    def _hide_last(self, found: Pooled) -> None:
        """Of a last row below the convolution's result, all is less than everything."""
        if self._has_last:
            return
        exists = self._exists()
        for name in (name for names in found for name in names):
            self.a.line(f"@!{exists} mov.b32 {name}, {self.least};")

    def _finish_pooled(self, half: int, found: Pooled) -> None:
        self._finish(list(zip(*found, strict=True)), self.halves[half], self.kernel.run // 2)

    def _along(self, half: int, sums: Rows, to: Pooled | None = None) -> Pooled:
        """What is largest of each window's columns of a row, of both filters."""
        runs = self.halves[half]
        shown = self._shown(sums, runs)
        first, second = (
            self._across(shown, runs, which, to[which] if to else None) for which in range(2)
        )
        return first, second

    def _shown(self, sums: Rows, runs: range) -> Rows:
        """Sums, but for those beside the convolution's result that windows reach: these are less
        than all.
        """
        a, kernel, pool = self.a, self.kernel, self.kernel.pool
        assert pool is not None
        columns, shown = kernel.positions[1], list(sums)
        seen = 2 * (pool.size[1] - 1) - pool.pads[1] + pool.window
        if seen <= columns:
            return shown
        for own, run in enumerate(runs):
            for column in range(kernel.run):
                at = 4 * kernel.run * run + column  # of the first of four threads
                if at + 3 * kernel.run < columns:
                    continue
                exists = a("setp.lt.s32 {}, {}, {};", self.beside, columns - at, kind="p")
                for which in range(2):
                    number = kernel.sum_of(own, column, which)
                    there = sums[number]
                    shown[number] = a("selp.b32 {}, {}, {}, {};", there, self.least, exists)
        return shown

    def _across(self, sums: Rows, runs: range, which: int, to: Rows | None) -> Rows:
        """The largest of each window's columns, of one filter."""
        a, kernel, pool = self.a, self.kernel, self.kernel.pool
        assert pool is not None
        names = [
            [sums[kernel.sum_of(run, column, which)] for column in range(kernel.run)]
            for run in range(len(runs))
        ]
        found: Rows = []
        targets: Iterator[str | None] = iter(to) if to else repeat(None)
        before = pool.pads[1] > 0  # a third column is before a pair, or behind it
        for number, run in enumerate(names):
            pairs = [self._larger(run[i], run[i + 1]) for i in range(0, len(run), 2)]
            if pool.window == 3:
                edge = self._edge(names, number, runs, which)  # perhaps another thread's
                sent = a("selp.b32 {}, {}, {}, {};", edge, run[-before], self.wraps)
                got = a("shfl.sync.idx.b32 {}, {}, {}, 31, -1;", sent, self.neighbour)
                thirds = [got, *run[1:-1:2]] if before else [*run[2::2], got]
                both = zip(pairs, thirds, strict=True)
                pairs = [self._larger(pair, third, next(targets)) for pair, third in both]
            found += pairs
        if pool.window == 3:  # tensor cores write there before the other half is done
            self.edges[which] = a("mov.b32 {}, {};", names[-before][-before])
        return found

    def _edge(self, names: list[Rows], number: int, runs: range, which: int) -> str:
        """The last column of the run before, or the first of the one behind, of the same thread."""
        pool = self.kernel.pool
        assert pool is not None
        away = -1 if pool.pads[1] else 1
        if 0 <= number + away < len(names):
            return names[number + away][-1 if pool.pads[1] else 0]
        if 0 <= runs[number] + away < self.kernel.runs:
            return self.edges[which]
        return self.least

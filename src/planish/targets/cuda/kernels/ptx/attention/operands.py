"""Loads what is done to scores and results needs, for two neighbouring columns of two rows each.

That is what a thread of a group of warps has of every eight columns of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.graph.types import DType
from planish.targets.cuda.codegen.ptx import Assembly, Lanes, NotExpressible
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.ptx.specialized.results import Epilogue

DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.BOOL)


def is_expressible(work: Work) -> bool:
    """Whether PTX can be written for some work on sums."""
    a = Assembly()
    try:
        leaves = Leaves(work, a, 0, 8)
        leaves.place("0", "0", "0")
        leaves.enter(("0", "0"))
        sums = Lanes(a, "float32", tuple(a.registers(4)))
        if work.outputs:
            leaves.expression.finish(sums, leaves.load(0))
        elif leaves.expression.apply(sums, leaves.load(0)).kind != "float32":
            return False
    except NotExpressible:
        return False
    return True


class Leaves:
    """The leaves of some work along batch, head, rows and columns.

    `first` is the number of the first leaf's pointer, `columns` how many columns there are.
    """

    def __init__(self, work: Work, assembly: Assembly, first: int, columns: int) -> None:
        self.expression = Epilogue(work, assembly)
        self._a, self._columns = assembly, columns
        self._items: list[_Leaf | None] = []
        for item in work.leaves:
            self._items.append(None if item is None else _Leaf(assembly, item, first))
            first += item is not None

    def place(self, batch: str, head: str, quarter: str) -> None:
        """Says which head this is, and which of the four threads of a row."""
        for item in self._known():
            item.place(batch, head, quarter)

    @property
    def has_rows(self) -> bool:
        """Whether rows differ in what they need."""
        return any(item.has_rows for item in self._known())

    def enter(self, rows: Sequence[str]) -> None:
        """Says which two rows those of the thread are."""
        for item in self._known():
            item.enter(rows)

    def load(self, column: int) -> list[Lanes | None]:
        """What the thread needs of the eight columns from one on; per leaf, None for sums."""
        return [i if i is None else i.load(column, self._columns) for i in self._items]

    def _known(self) -> list[_Leaf]:
        return [item for item in self._items if item is not None]


class _Leaf:
    """A tensor that is read."""

    def __init__(self, assembly: Assembly, item: Access, pointer: int) -> None:
        if item.pointer.dtype not in DTYPES:
            raise NotExpressible(f"a tensor of {item.pointer.dtype}")
        self._a, self._item, self._pointer = assembly, item, pointer
        self._dtype, (*self._outer, self._row, self._column) = item.pointer.dtype, item.strides
        self._one: Lanes | None = None
        even = not any(s % 2 for s in (*self._outer, self._row))
        self._by_pairs = self._column == 1 and even and item.pointer.aligned and self._size > 1

    @property
    def _size(self) -> int:
        return self._dtype.size

    @property
    def has_rows(self) -> bool:
        return self._row != 0

    def place(self, batch: str, head: str, quarter: str) -> None:
        a = self._a
        address = a(f"ld.param.u64 {{}}, [p{self._pointer}];", kind="d")
        address = a("cvta.to.global.u64 {}, {};", address, kind="d")
        for place, stride in zip((batch, head), self._outer, strict=True):
            address = self._moved(address, place, stride)
        self._start, self._quarter = address, quarter
        self._rows = [address]
        if not self._row and not self._column:
            self._one = self._lanes(self._loaded(address))
        elif not self._row:
            self._own = [self._moved(address, quarter, 2 * self._column)]

    def enter(self, rows: Sequence[str]) -> None:
        if self._row:
            self._rows = [self._moved(self._start, row, self._row) for row in rows]
            self._own = [self._moved(r, self._quarter, 2 * self._column) for r in self._rows]

    def load(self, column: int, columns: int) -> Lanes:
        if self._one is not None:
            return self._one
        if not self._column:
            found = [name for row in self._rows for name in self._loaded(row) * 2]
        elif column + 8 > columns:
            found = [n for row in self._rows for n in self._last(row, column, columns)]
        else:
            found = [n for own in self._own for n in self._two(own, column * self._column)]
        return self._lanes(found * (4 // len(found)))

    def _moved(self, address: str, place: str, stride: int) -> str:
        """So many times so many elements behind an address."""
        if not stride or place == "0":
            return address
        how = "mad.wide.u32 {}, {}, {}, {};"
        return self._a(how, place, stride * self._size, address, kind="d")

    def _two(self, own: str, element: int) -> list[str]:
        """Two neighbours."""
        a = self._a
        where = f"[{own}+{element * self._size}]"
        if self._by_pairs and self._size == 4:
            pair = a.registers(2)
            a.line(f"ld.global.v2.b32 {{{', '.join(pair)}}}, {where};")
            return pair
        if self._by_pairs:
            halves = [a.register("h"), a.register("h")]
            both = a("ld.global.b32 {}, {};", where)
            a.line(f"mov.b32 {{{', '.join(halves)}}}, {both};")
            return halves
        return self._loaded(own, element) + self._loaded(own, element + self._column)

    def _last(self, row: str, column: int, columns: int) -> list[str]:
        """The same where some are not there: the last one is read in their place."""
        a = self._a
        found = []
        for i in range(2):
            place = a("mad.lo.u32 {}, {}, 2, {};", self._quarter, column + i)
            place = a("min.u32 {}, {}, {};", place, columns - 1)
            found += self._loaded(self._moved(row, place, self._column))
        return found

    def _loaded(self, address: str, element: int = 0) -> list[str]:
        """One element."""
        a = self._a
        where = f"[{address}+{element * self._size}]"
        if self._dtype is DType.BOOL:
            byte = a("ld.global.u8 {}, {};", where)
            return [a("setp.ne.u32 {}, {}, 0;", byte, kind="p")]
        if self._size == 2:
            return [a("ld.global.b16 {}, {};", where, kind="h")]
        return [a("ld.global.b32 {}, {};", where)]

    def _lanes(self, names: Sequence[str]) -> Lanes:
        kinds = {DType.BOOL: "int1", DType.FLOAT32: "float32"}
        kind = kinds.get(self._dtype, self._dtype.numpy.name)
        lanes = Lanes(self._a, kind, tuple(names))
        return lanes.to("float32") if self._size == 2 else lanes

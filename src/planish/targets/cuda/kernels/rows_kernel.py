"""The kernels of ops that go over a row several times: softmax, layer norm and their kin.

A program has some rows. While a row fits into its registers it is read once; longer ones are read
anew in every pass. Few and very long rows are cut into chunks: a first launch leaves the statistics
of each chunk in the workspace, in a second one each program puts those of its row together and
writes its chunk. The passes, per row:

    softmax        m = max x;           s = sum exp(x - m);       exp(x - m) / s
                                        (quantized: exp(x - m) times levels, rounded)
    log softmax    m = max x;           s = sum exp(x - m);       x - m - log s
    standardize    m = sum x / count;   v = sum (x - m)² / count;
                                        (x - m) / sqrt(v + epsilon) * scale + offset
    affine         (x - mean) * (scale / sqrt(variance + epsilon)) + offset
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.graph.types import DType
from planish.ops.normalization import Lrn
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.literals import HALVES
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, Work, apply, finish, load, whole_mask
from planish.targets.cuda.kernels.nest import COLUMNS, ROWS, Tile, across, lanes, spread


@dataclass(frozen=True)
class Arithmetic:
    """Functions as text, of the precision that a dtype deserves."""

    dtype: DType

    @property
    def wide(self) -> DType:
        """The dtype that is computed in."""
        return DType.FLOAT32 if self.dtype in HALVES else self.dtype

    @property
    def kind(self) -> str:
        """The same as Triton text."""
        return compute_type(self.wide)

    def c(self, value: float) -> str:
        """A number."""
        return constant(value, self.wide)

    def exp(self, x: str) -> str:
        """The exponential."""
        return f"tl.exp({x})" if self.dtype in HALVES else f"libdevice.exp({x})"

    def log(self, x: str) -> str:
        """The natural logarithm."""
        return f"tl.log({x})" if self.dtype in HALVES else f"libdevice.log({x})"

    def root(self, x: str) -> str:
        """The square root."""
        return f"tl.sqrt_rn({x})" if self.wide is DType.FLOAT32 else f"tl.sqrt({x})"

    def quotient(self, a: str, b: str) -> str:
        """A quotient of equally shaped numbers."""
        return f"tl.div_rn({a}, {b})" if self.wide is DType.FLOAT32 else f"({a}) / ({b})"


@dataclass(frozen=True)
class RowsKernel(TritonKernel):
    """A program does some rows, or one chunk of some rows.

    Attributes
    ----------
    program : str
        "softmax", "log_softmax", "standardize" or "affine".
    epsilon : float
    dtype : DType
        Of the op's input.
    kept, reduced : tuple of int
        The axes that tell rows apart, the first -1, and those inside a row.
    even : bool
        Whether there is always a multiple of 16 rows.
    block : (int, int)
        Rows, and elements of a row at a time.
    chunk : int
        Elements of a row that a program does.
    stage : str
        "whole"; or "partial", which writes the statistics of chunks to the workspace as
        ``[2, rows, chunks]``, and "final", which reads them.
    before : Work
        Over the axes of rows, then those inside a row; so are the others.
    parameters : tuple of Access
        The op's inputs after the first.
    after : Work
    levels : int
        Of the weights of a quantized softmax, whose rows are whole; 0: they are floats.

    Parameter: the rows.
    """

    family = "rows"

    program: str
    epsilon: float
    dtype: DType
    kept: tuple[int, ...]
    even: bool
    reduced: tuple[int, ...]
    block: tuple[int, int]
    chunk: int
    stage: str
    before: Work
    parameters: tuple[Access, ...]
    after: Work
    levels: int = 0

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        wide = Pointer(Arithmetic(self.dtype).wide)
        states = () if self.stage == "whole" else (wide, wide)
        written = () if self.stage == "partial" else self.after.pointers
        used = () if self.stage == "partial" else tuple(a.pointer for a in self.parameters)
        return (*states, *self.before.pointers, *used, *written)

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.even,)

    def write(self, k: Source) -> None:
        _Writer(self, k).write()


class _Writer:
    """Writes a `RowsKernel`."""

    def __init__(self, kernel: RowsKernel, k: Source) -> None:
        self.kernel, self.k = kernel, k
        self.f = Arithmetic(kernel.dtype)
        self.count = math.prod(kernel.reduced)
        self.chunks = -(-self.count // kernel.chunk)
        self.first = 0 if kernel.stage == "whole" else 2
        self.softmax = kernel.program in ("softmax", "log_softmax")
        self.kept_in_registers = kernel.chunk <= kernel.block[1]

    def write(self) -> None:
        k, kernel, rows = self.k, self.kernel, self.kernel.block[0]
        task = k.let("task", "tl.program_id(0)")
        self.begin, self.end, part = "0", str(self.count), "0"
        if kernel.stage != "whole":
            part = k.let("part", f"{task} % {self.chunks}")
            task = k.let("task", f"{task} // {self.chunks}")
            self.begin = k.let("begin", f"{part} * {kernel.chunk}")
            self.end = k.let("end", f"tl.minimum({self.begin} + {kernel.chunk}, {self.count})")
        self.row = lanes(k, f"{task} * {rows}", rows, ROWS)
        self.exists = k.let("exists", f"{self.row} < n0")
        self.kept = spread(k, self.row, kernel.kept, self.exists)
        tile, x = None, None
        if self.kept_in_registers:
            tile = self._tile(self.begin)
            x = self._element(tile)
        if kernel.stage == "final":
            facts = self._joined()
        elif kernel.program == "affine":
            facts = ("", "")
        elif self.softmax:
            facts = self._softmax_facts(tile, x)
        else:
            facts = self._moments(tile, x)
        if kernel.stage == "partial":
            for number, fact in enumerate(facts):
                place = f"p{number} + {self.row} * {self.chunks} + {part}"
                k.line(f"tl.store({place}, {fact}, mask={self.exists})")
            return
        facts = self._concluded(*facts)
        if tile is not None and x is not None:
            self._map(tile, x, facts)
            return
        with self._loop():
            tile = self._tile("start")
            self._map(tile, self._element(tile), facts)

    # ---- elements

    def _loop(self):
        return self.k.block(
            f"for start in range({self.begin}, {self.end}, {self.kernel.block[1]}):"
        )

    def _tile(self, start: str) -> Tile:
        """The elements from `start` on."""
        kernel, columns = self.kernel, self.kernel.block[1]
        column = lanes(self.k, start, columns, COLUMNS)
        even = self.count % columns == 0 and (
            kernel.stage == "whole" or self.count % kernel.chunk == kernel.chunk % columns == 0
        )
        inside = None if even else self.k.let("inside", f"{column} < {self.end}")
        return self.kept + spread(self.k, column, kernel.reduced, inside)

    def _element(self, tile: Tile) -> str:
        """What the op sees, in the type that is computed in."""
        (x,) = apply(self.k, self.kernel.before, self.first, tile.index, tile.masks)
        x = f"{x}.to({self.f.kind})"
        return self.k.let("x", f"tl.broadcast_to({x}, {self.kernel.block})")

    def _masked(self, tile: Tile, value: str, other: float) -> str:
        mask = whole_mask(tile.masks)
        if mask is None:
            return value
        return self.k.let("kept", f"tl.where({mask}, {value}, {self.f.c(other)})")

    def _summed(self, tile: Tile | None, x: str | None, term) -> str:
        """The sum along rows of a term of the elements."""
        k = self.k
        if tile is not None and x is not None:
            return k.let("sum", across(self._masked(tile, term(x), 0), "sum"))
        total = k.let("total", f"tl.full({self.kernel.block}, 0, {self.f.kind})")
        with self._loop():
            tile = self._tile("start")
            value = self._masked(tile, term(self._element(tile)), 0)
            k.line(f"{total} = {total} + {value}")
        return k.let("sum", across(total, "sum"))

    # ---- statistics

    def _softmax_facts(self, tile: Tile | None, x: str | None) -> tuple[str, str]:
        """The maximum, and the sum of exponentials of what is below it."""
        k = self.k
        if tile is not None and x is not None:
            top = self._masked(tile, x, -np.inf)
        else:
            top = k.let("top", f"tl.full({self.kernel.block}, float('-inf'), {self.f.kind})")
            with self._loop():
                part = self._tile("start")
                value = self._masked(part, self._element(part), -np.inf)
                k.line(f"{top} = tl.maximum({top}, {value})")
        top = k.let("top", across(top, "max"))
        base = top
        if self.kernel.stage == "partial":  # a chunk of nothing but -inf adds nothing
            base = k.let("base", f"tl.where({top} == float('-inf'), {self.f.c(0)}, {top})")
        return top, self._summed(tile, x, lambda v: k.let("e", self._weight(v, base)))

    def _weight(self, x: str, top: str) -> str:
        """What an element counts in a softmax."""
        weight, levels = self.f.exp(f"{x} - {top}"), self.kernel.levels
        return f"libdevice.rint({weight} * {self.f.c(levels)})" if levels else weight

    def _moments(self, tile: Tile | None, x: str | None) -> tuple[str, str]:
        """The mean, and the sum of squares around it."""
        k = self.k
        total = self._summed(tile, x, lambda v: v)
        number = f"{self.end} - {self.begin}" if self.kernel.stage == "partial" else str(self.count)
        size = k.let("size", f"tl.full(({self.kernel.block[0]}, 1), 0, {self.f.kind}) + ({number})")
        mean = k.let("mean", self.f.quotient(total, size))

        def square(v: str) -> str:
            away = k.let("away", f"{v} - {mean}")
            return k.let("square", f"{away} * {away}")

        return mean, self._summed(tile, x, square)

    def _joined(self) -> tuple[str, str]:
        """The statistics of rows from those of their chunks.

        Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979.
        """
        k, f = self.k, self.f
        width = 1 << max(self.chunks - 1, 0).bit_length()
        part = lanes(k, "0", width, COLUMNS)
        mask = k.let("inside", f"({part} < {self.chunks}) & {self.exists}")
        place = f"{self.row} * {self.chunks} + {part}"
        first, second = (
            k.let("state", f"tl.load(p{i} + {place}, mask={mask}, other=0)") for i in (0, 1)
        )
        if self.softmax:
            first = k.let("tops", f"tl.where({mask}, {first}, float('-inf'))")
            top = k.let("top", across(first, "max"))
            factor = k.let("factor", f.exp(f"{first} - {top}"))
            terms = k.let("terms", f"tl.where({mask}, {second} * {factor}, {f.c(0)})")
            return top, k.let("sum", across(terms, "sum"))
        rest = f"tl.minimum({self.count} - {part} * {self.kernel.chunk}, {self.kernel.chunk})"
        size = k.let("size", f"tl.where({mask}, {rest}, 0).to({f.kind})")
        total = k.let("total", across(f"{size} * {first}", "sum"))
        mean = k.let("mean", f"{total} / {f.c(self.count)}")
        away = k.let("away", f"tl.where({mask}, {first} - {mean}, {f.c(0)})")
        return mean, k.let("squares", across(f"{second} + {size} * {away} * {away}", "sum"))

    def _concluded(self, first: str, second: str) -> tuple[str, str]:
        """What the last pass uses of the statistics."""
        k, f, program = self.k, self.f, self.kernel.program
        one = f"tl.full(({self.kernel.block[0]}, 1), 1, {f.kind})"
        if program == "softmax":
            return first, k.let("inverse", f.quotient(one, second))
        if program == "log_softmax":
            return first, k.let("log", f.log(second))
        if program == "standardize":
            variance = f"{second} / {f.c(self.count)} + {f.c(self.kernel.epsilon)}"
            root = k.let("root", f.root(variance))
            return first, k.let("inverse", f.quotient(one, root))
        return first, second

    # ---- results

    def _map(self, tile: Tile, x: str, facts: tuple[str, str]) -> None:
        """The op's output, through the epilogue, to memory."""
        k, f, program = self.k, self.f, self.kernel.program
        first = self.first + len(self.kernel.before.pointers)
        values = []
        for item in self.kernel.parameters:
            value = load(k, first, item, tile.index, tile.masks)
            values.append(k.let("parameter", f"{value}.to({f.kind})"))
            first += 1
        if program == "softmax":
            y = k.let("y", f"{self._weight(x, facts[0])} * {facts[1]}")
        elif program == "log_softmax":
            y = k.let("y", f"{x} - {facts[0]} - {facts[1]}")
        elif program == "standardize":
            scale, offset = values
            y = k.let("y", f"({x} - {facts[0]}) * {facts[1]} * {scale} + {offset}")
        else:
            scale, offset, mean, variance = values
            root = k.let("root", f.root(f"{variance} + {f.c(self.kernel.epsilon)}"))
            factor = k.let("factor", f"{scale} / {root}")
            y = k.let("y", f"({x} - {mean}) * {factor} + {offset}")
        y = k.let("y", f"{y}.to({compute_type(self.kernel.dtype)})")
        finish(k, self.kernel.after, first, tile.index, tile.masks, [y])


@dataclass(frozen=True)
class LrnKernel(TritonKernel):
    """Local response normalization; a program does a tile of rows and channels, and reads the
    channels around it too.

    Attributes
    ----------
    op : Lrn
    dtype : DType
    kept : tuple of int
        The axes that tell rows apart, the first -1.
    length : int
        The channels.
    block : (int, int)
    before, after : Work
        Over the axes of rows, then the channels.

    Parameter: the rows.
    """

    family = "lrn"

    op: Lrn
    dtype: DType
    kept: tuple[int, ...]
    length: int
    block: tuple[int, int]
    before: Work
    after: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.before.pointers, *self.after.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        (rows, columns), f, op = self.block, Arithmetic(self.dtype), self.op
        blocks = -(-self.length // columns)
        task = k.let("task", "tl.program_id(0)")
        row = lanes(k, f"{task} // {blocks} * {rows}", rows, ROWS)
        kept = spread(k, row, self.kept, k.let("exists", f"{row} < n0"))
        column = lanes(k, f"{task} % {blocks} * {columns}", columns, COLUMNS)

        def element(column: str) -> tuple[Tile, str]:
            inside = k.let("inside", f"({column} >= 0) & ({column} < {self.length})")
            tile = kept + Tile((column,), (inside,))
            (x,) = apply(k, self.before, 0, tile.index, tile.masks)
            mask = whole_mask(tile.masks)
            return tile, k.let("x", f"tl.where({mask}, {x}.to({f.kind}), {f.c(0)})")

        total = k.let("total", f"tl.full({self.block}, 0, {f.kind})")
        reach = min(op.radius, self.length - 1)
        with k.block(f"for shift in range({-reach}, {reach + 1}):"):
            _, x = element(k.let("near", f"{column} + shift"))
            k.line(f"{total} = {total} + {x} * {x}")
        tile, x = element(column)
        base = k.let("base", f"{f.c(op.bias)} + {f.c(op.alpha)} * {total}")
        exponent = k.let("beta", f"{base} * 0 + {f.c(op.beta)}")
        power = k.let("power", f"libdevice.pow({base}, {exponent})")
        y = k.let("y", f"{f.quotient(x, power)}.to({compute_type(self.dtype)})")
        finish(k, self.after, len(self.before.pointers), tile.index, tile.masks, [y])

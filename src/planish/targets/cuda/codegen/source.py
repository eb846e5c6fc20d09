"""The text of a Triton kernel, line by line.

A kernel is a function `kernel(p0, p1, …, n0, n1, …)`: pointers, then 32-bit integer parameters.
Everything else (strides, tile sizes, which ops are fused) is written into the text as numbers, so
that the compiler knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

HEADER = """\
import triton
import triton.language as tl
from triton.language.extra import cuda, libdevice
"""

OVERLAP = "    cuda.gdc_wait()\n"
"""Waits until what the kernel before writes can be read.

Programmatic dependent launch: the blocks of a kernel are set up while the last ones of the kernel
before it end, and wait here, so that memory is never read too early, nor written while it is still
read. Letting the next kernel in even earlier (`gdc_launch_dependents`) was slower at every batch.
"""

LINE = 128
"""Bytes of the second-level cache that are asked for at once; addresses are multiples of them."""

ASKING = 128
"""Programs that ask, at most: those of a kernel that run first, about as many as a GPU runs."""

_PREFETCH = "{ .reg .pred %p; setp.lt.s32 %p, $2, $3; @%p prefetch.global.L2 [$1]; mov.b32 $0, 0; }"

AHEAD = f"""\
    _first = tl.where(tl.program_id(0) < {ASKING}, tl.program_id(0), _lines)
    _asking = tl.minimum(tl.num_programs(0), {ASKING})
    for _begin in range(_first, _lines, _asking * LANES):
        _line = _begin + tl.arange(0, LANES) * _asking
        _there = (_ahead + _line.to(tl.int64) * {LINE}).to(tl.int64)
        tl.inline_asm_elementwise(
            {_PREFETCH!r}, "=r,l,r,r", [_there, _line, _lines], tl.int32, False, 1
        )
"""
"""Has the second-level cache fetch what a later kernel reads of constants (`_ahead`, so many
`_lines`), while memory is idle: in small batches each kernel waits for its weights else.

Every program asks for as much as the others, so that none is late, and does so when its result is
stored. At its beginning its own loads wait behind that, by instructions that copy much at once
(`cp.async.bulk.prefetch`) those of boxes (see `tensor_map`) in particular.
"""


SETTLE = "# settle "
"""What a line begins with that only a compiled kernel has; see `Source.settle`."""

SETTLED = '{0} = tl.inline_asm_elementwise("", "={1},0", [{0}], dtype={2}, is_pure=True, pack=1)'


COMPILED = "  # compiled: "
"""What stands between an expression and the one that compiled kernels have; see `Source.either`."""


class Source:
    """A kernel's body under construction.

    >>> k = Source()
    >>> x = k.let("x", "tl.load(p0)")
    >>> with k.block("for i in range(4):"):
    ...     k.line(f"{x} += 1")

    Attributes
    ----------
    packs : bool
        Whether all tensors have four elements or more, of which instructions take several at once.
    """

    def __init__(self) -> None:
        self.packs = True
        self._lines: list[str] = []
        self._depth = 1
        self._names: set[str] = set()

    def line(self, text: str) -> None:
        """Adds a statement."""
        self._lines.append("    " * self._depth + text)

    def name(self, hint: str) -> str:
        """A variable's name that is not in use: the hint, numbered if need be."""
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name

    def let(self, hint: str, expression: str) -> str:
        """Assigns an expression to a new variable and gives its name."""
        name = self.name(hint)
        self.line(f"{name} = {expression}")
        return name

    def either(self, hint: str, expression: str, compiled: str) -> str:
        """Assigns one of two expressions of the same value to a new variable and gives its name: in
        kernels that are compiled for Hopper the second, which may have instructions of its own for
        four elements.
        """
        return self.let(hint, f"{expression}{COMPILED}{compiled}" if self.packs else expression)

    def settle(self, name: str, dtype: str = "tl.float32") -> None:
        """Has a sum of products be complete, in a loop, before the next step begins.

        Where a product's left factor was computed, Hopper's tensor cores read it from registers
        while the program goes on, and Triton 3.6 lets the next step overwrite them too early
        (triton-lang/triton#9433): results then differ from run to run. An empty instruction on the
        sum, which Triton cannot look into, has it wait.
        """
        self.line(f"{SETTLE}{name} {dtype}")

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Indents what is written inside under a header that ends in a colon."""
        self.line(header)
        self._depth += 1
        yield
        self._depth -= 1

    def statements(self) -> str:
        """What was written so far, as a module, and as kernels compiled for Hopper have it."""
        return "".join(_compiled(line)[4:] + "\n" for line in self._lines)

    def finish(self, symbol: str, pointers: int, params: int, threads: int = 0) -> str:
        """The whole module, with the kernel under its symbol.

        With a number of `threads`, those of a program, the kernel may be launched before the one
        before it has ended, and asks for what a later one reads; see `AHEAD`.
        """
        overlaps = threads > 0
        arguments = [f"p{i}" for i in range(pointers)] + [f"n{i}" for i in range(params)]
        arguments += ["_ahead", "_lines"] * overlaps
        head = f"\n\n@triton.jit\ndef {symbol}({', '.join(arguments)}):\n"
        lines = [_compiled(line) if overlaps else line for line in self._lines]
        body = "\n".join(lines or ["    pass"]) + "\n"
        early, late = OVERLAP * overlaps, AHEAD.replace("LANES", str(threads)) * overlaps
        return HEADER + head + early + body + late


def _compiled(line: str) -> str:
    """A line as GPUs whose kernels overlap are given it."""
    before, found, after = line.partition(COMPILED)
    if found:
        return before.partition(" = ")[0] + " = " + after
    indent, found, rest = line.partition(SETTLE)
    if not found:
        return line
    name, dtype = rest.split()
    return indent + SETTLED.format(name, "f" if dtype == "tl.float32" else "r", dtype)

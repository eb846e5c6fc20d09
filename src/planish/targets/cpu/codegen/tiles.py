"""Tiles (Intel AMX): eight registers of up to 16 rows of 64 bytes, and products of them.

A tile of sums gains ``sums[m, n] += left[m, k, i] * right[k, n, i]``, summed over k and over the
elements i of a `Dot`'s group: weights lie as vectors multiply them, a row of a tile for a group of
depth. (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.)

What tiles are configured and what they hold belongs to the thread: a kernel configures them when it
begins and releases them when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.dot import BYTES, HALVES, SIGNED_BYTES, Dot
from planish.targets.cpu.codegen.types import I8, I64, memory_type

TILES, ROWS, ROW_BYTES = 8, 16, 64
"""How many there are, and the largest one."""

PALETTE = 1
"""The only kind of tiles there is."""

_PRODUCTS = {HALVES: "tdpbf16ps", BYTES: "tdpbusd", SIGNED_BYTES: "tdpbssd"}


def configure(k: KernelBuilder, shapes: Sequence[tuple[int, int]]) -> None:
    """Gives tiles 0, 1, … their rows, and bytes of a row; they are zero then."""
    table = bytearray(64)
    table[0] = PALETTE
    for tile, (rows, row_bytes) in enumerate(shapes):
        assert tile < TILES and 0 < rows <= ROWS and 0 < row_bytes <= ROW_BYTES
        table[16 + 2 * tile] = row_bytes
        table[48 + tile] = rows
    place = memory(k, 8, DType.INT64)
    for i in range(8):
        number = I64(int.from_bytes(table[8 * i : 8 * i + 8], "little"))
        k.b.store(number, k.offset(place, i, DType.INT64), align=8)
    _call(k, "ldtilecfg", place)


def memory(k: KernelBuilder, count: int, dtype: DType) -> ir.Value:
    """Memory of this call, aligned to 64 bytes, for so many elements; not to be used in a loop."""
    place = k.b.alloca(memory_type(dtype), count)
    place.align = 64
    return place


def release(k: KernelBuilder) -> None:
    """Gives all tiles back: whoever runs on this thread next finds none configured."""
    _call(k, "tilerelease")


def zero(k: KernelBuilder, tile: int) -> None:
    """Makes a tile zero."""
    _call(k, "tilezero", I8(tile))


def load(k: KernelBuilder, tile: int, pointer: ir.Value, step: int | ir.Value) -> None:
    """Loads a tile whose rows lie `step` bytes apart."""
    _call(k, "tileloadd64", I8(tile), pointer, k.i64(step))


def store(k: KernelBuilder, tile: int, pointer: ir.Value, step: int | ir.Value) -> None:
    """Stores a tile, its rows `step` bytes apart."""
    _call(k, "tilestored64", I8(tile), pointer, k.i64(step))


def multiply(k: KernelBuilder, dot: Dot, sums: int, left: int, right: int) -> None:
    """Adds the product of two tiles to a third one."""
    _call(k, _PRODUCTS[dot], I8(sums), I8(left), I8(right))


def dot_of_tiles(element: DType) -> Dot:
    """How tiles multiply elements of a dtype, bfloat16 or bytes: bytes as they are."""
    if element is DType.BFLOAT16:
        return HALVES
    return SIGNED_BYTES if element is DType.INT8 else BYTES


def _call(k: KernelBuilder, name: str, *arguments: ir.Value) -> None:
    k.call(f"llvm.x86.{name}", ir.VoidType(), arguments)

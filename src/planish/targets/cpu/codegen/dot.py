"""Products of short numbers, added up in 32 bits: what the matrix kernel of groups multiplies with.

Sums of integers are exact. ``vpmaddubsw``, which multiplies bytes on every x86 CPU, saturates sums
of two products and is not used: pairs of 16-bit integers are as fast on those CPUs, see `Dot`.
"""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I8, I16, I32
from planish.targets.cpu.machine import Machine


@dataclass(frozen=True)
class Dot:
    """A way to add sums of products to a register of int32 or float32.

    Attributes
    ----------
    group : int
        Products added to each lane.
    left, right : DType
        The elements of the factors; `group` of each side by side for every lane.
    """

    group: int
    left: DType
    right: DType

    @property
    def sums(self) -> DType:
        """What products are added up in."""
        return DType.FLOAT32 if self.left.is_float else DType.INT32

    @property
    def is_of_bytes(self) -> bool:
        """Whether bytes are multiplied as they are, and the zero point is taken out of the sums."""
        return self.left.size == 1

    def add(self, k: KernelBuilder, sums: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
        """``sums[i] + left[i, 0] * right[i, 0] + left[i, 1] * right[i, 1] + …``.

        Parameters
        ----------
        k : KernelBuilder
        sums : register of `sums` ``[lanes]``
        left, right : registers of int32 ``[lanes]``
            Each holds `group` elements.
        """
        lanes = sums.type.count
        if self == BYTES:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            factor = ir.VectorType(I8, 4 * lanes)
            factors = [k.b.bitcast(x, factor) for x in (left, right)]
            return k.call(name, sums.type, [sums, *factors])
        if self == HALVES:
            return _add_halves(k, sums, left, right, lanes)
        pairs = ir.VectorType(I16, 2 * lanes)
        a, b = k.b.bitcast(left, pairs), k.b.bitcast(right, pairs)
        if k.machine.isa == "neon":
            return _pinned(k, k.b.add(sums, _multiply_pairs(k, a, b, lanes)))
        name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"
        return _pinned(k, k.b.add(sums, k.call(name, sums.type, [a, b])))


PAIRS = Dot(2, DType.INT16, DType.INT16)
"""Two products of 16-bit integers: on every CPU."""

BYTES = Dot(4, DType.UINT8, DType.INT8)
"""Four products of bytes (``vpdpbusd``): x86 with VNNI."""

SIGNED_BYTES = Dot(4, DType.INT8, DType.INT8)
"""Four products of signed bytes: of tiles only (`codegen.tiles`)."""

HALVES = Dot(2, DType.BFLOAT16, DType.BFLOAT16)
"""Two products of bfloat16 in float32: ``vdpbf16ps`` where there is AVX-512 BF16, else two
multiply-adds, which are correct and slow."""


def dot_of(machine: Machine, element: DType) -> Dot:
    """The fastest way to multiply elements of a dtype, bytes or bfloat16, on a machine."""
    if element is DType.BFLOAT16:
        return HALVES
    return BYTES if machine.has_vnni else PAIRS


def _pinned(k: KernelBuilder, sums: ir.Value) -> ir.Value:
    """The same register, but LLVM takes it for another one.

    Otherwise it adds the products of several steps to each other first, for which there are not
    enough registers.
    """
    place = {"neon": "w", "avx512": "v"}.get(k.machine.isa, "x")
    signature = ir.FunctionType(sums.type, [sums.type])
    return k.b.call(ir.InlineAsm(signature, "", f"={place},0"), [sums])


def _add_halves(
    k: KernelBuilder, sums: ir.Value, left: ir.Value, right: ir.Value, lanes: int
) -> ir.Value:
    if k.machine.has_bf16:
        factor = ir.VectorType(I32, lanes)
        factors = [k.b.bitcast(x, factor) for x in (left, right)]
        return k.call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}", sums.type, [sums, *factors])
    low, high = k.splat(I32(16), lanes), k.splat(I32(-65536), lanes)
    for half in (lambda x: k.b.shl(x, low), lambda x: k.b.and_(x, high)):
        a, b = (k.b.bitcast(half(x), sums.type) for x in (left, right))
        sums = k.fma(a, b, sums)
    return sums


def _multiply_pairs(k: KernelBuilder, a: ir.Value, b: ir.Value, lanes: int) -> ir.Value:
    wide = ir.VectorType(I32, 2 * lanes)
    product = k.b.mul(k.b.sext(a, wide), k.b.sext(b, wide))
    even = k.shuffle(product, product, range(0, 2 * lanes, 2))
    odd = k.shuffle(product, product, range(1, 2 * lanes, 2))
    return k.b.add(even, odd)

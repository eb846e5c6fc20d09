"""Products of short numbers, added up in 32 bits: what the matrix kernel of groups multiplies with.

Sums of integers are exact. ``vpmaddubsw``, which multiplies bytes on every x86 CPU, saturates sums
of two products, so that x86 without VNNI multiplies bytes only where the weights rule that out, see
`fits`. On a core of AMD Zen 3 it then does 87 G products a second, 102 G where sums of four fit 16
bits, 62 G as pairs of 16-bit integers (and 51 G of float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import llvmlite.ir as ir
import numpy as np

from planish.graph.types import DType
from planish.ops.saturation import EIGHTS, LARGEST_SUM, largest_sums
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
    together : int
        How many groups are added up before their sums are widened.
    """

    group: int
    left: DType
    right: DType
    together: int = 1

    @property
    def sums(self) -> DType:
        """What products are added up in."""
        return DType.FLOAT32 if self.left.is_float else DType.INT32

    @property
    def is_of_bytes(self) -> bool:
        """Whether bytes are multiplied as they are, and the zero point is taken out of the sums."""
        return self.left.size == 1

    def instructions(self, machine: Machine) -> float:
        """How many the products of a group take."""
        if machine.has_vnni or self.left.is_float:
            return 1
        return 2 + 1 / self.together if self.is_of_bytes else 2

    def add_groups(
        self,
        k: KernelBuilder,
        sums: ir.Value,
        lefts: Sequence[ir.Value],
        rights: Sequence[ir.Value],
    ) -> ir.Value:
        """As `add`, for up to `together` groups."""
        if len(lefts) == 1:
            return self.add(k, sums, lefts[0], rights[0])
        products = [_multiply_bytes(k, *factors) for factors in zip(lefts, rights, strict=True)]
        return _add_widened(k, sums, reduce(k.b.add, products))

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
        if self.is_of_bytes:
            return _add_bytes(k, sums, left, right, lanes)
        if self == HALVES:
            return _add_halves(k, sums, left, right, lanes)
        pairs = ir.VectorType(I16, 2 * lanes)
        a, b = k.b.bitcast(left, pairs), k.b.bitcast(right, pairs)
        if k.machine.has_vnni:
            return _add_pairs(k, sums, left, right)
        if k.machine.isa == "neon":
            return _pinned(k, k.b.add(sums, _multiply_pairs(k, a, b, lanes)))
        return _pinned(k, k.b.add(sums, k.call(_PAIRS_OF[lanes], sums.type, [a, b])))


PAIRS = Dot(2, DType.INT16, DType.INT16)
"""Two products of 16-bit integers: on every CPU; ``vpdpwssd`` on x86 with VNNI."""

BYTES = Dot(4, DType.UINT8, DType.INT8)
"""Four products of bytes: ``vpdpbusd`` on x86 with VNNI; on other x86 ``vpmaddubsw`` and
``vpmaddwd``, for weights that it `fits`.
"""

BYTES_TWICE = replace(BYTES, together=2)
"""The same without VNNI: two results of ``vpmaddubsw`` are added up for a ``vpmaddwd``, for weights
that it `fits`.
"""

SIGNED_BYTES = Dot(4, DType.INT8, DType.INT8)
"""Four products of signed bytes: of tiles only (`codegen.tiles`)."""

HALVES = Dot(2, DType.BFLOAT16, DType.BFLOAT16)
"""Two products of bfloat16 in float32: ``vdpbf16ps`` where there is AVX-512 BF16, else two
multiply-adds, which are correct and slow."""


_BYTES_OF = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}
_PAIRS_OF = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def fits(dot: Dot, weights: np.ndarray) -> bool:
    """Whether all sums of products of any unsigned bytes by these weights fit 16 bits.

    Parameters
    ----------
    dot : Dot
        `BYTES` or `BYTES_TWICE`.
    weights : array of int32, ``[taps, depth, channels]``
    """
    count = 2 * dot.together
    if count == 4 and weights.shape[-2] % EIGHTS:
        return False
    return bool(np.all(largest_sums(weights, count) <= LARGEST_SUM))


def _pinned(k: KernelBuilder, sums: ir.Value) -> ir.Value:
    """The same register, but LLVM takes it for another one.

    Otherwise it adds the products of several steps to each other first, for which there are not
    enough registers.
    """
    place = {"neon": "w", "avx512": "v"}.get(k.machine.isa, "x")
    signature = ir.FunctionType(sums.type, [sums.type])
    return k.b.call(ir.InlineAsm(signature, "", f"={place},0"), [sums])


def _add_bytes(
    k: KernelBuilder, sums: ir.Value, left: ir.Value, right: ir.Value, lanes: int
) -> ir.Value:
    if k.machine.has_vnni:
        factors = [k.b.bitcast(x, ir.VectorType(I8, 4 * lanes)) for x in (left, right)]
        return k.call(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums.type, [sums, *factors])
    return _add_widened(k, sums, _multiply_bytes(k, left, right))


def _multiply_bytes(k: KernelBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Sums of two products, int16 ``[2 * lanes]``."""
    lanes = left.type.count
    factors = [k.b.bitcast(x, ir.VectorType(I8, 4 * lanes)) for x in (left, right)]
    return k.call(_BYTES_OF[lanes], ir.VectorType(I16, 2 * lanes), factors)


def _add_widened(k: KernelBuilder, sums: ir.Value, pairs: ir.Value) -> ir.Value:
    """Pairs of 16 bits, added up and to the sums."""
    ones = ir.Constant(pairs.type, [1] * pairs.type.count)
    wide = k.call(_PAIRS_OF[sums.type.count], sums.type, [pairs, ones])
    return _pinned(k, k.b.add(sums, wide))


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


def _add_pairs(k: KernelBuilder, sums: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
    """By ``vpdpwssd``, written out: of LLVM's intrinsic LLVM makes a product and a sum again, whose
    sum alone depends on the one before, though there are enough other sums to wait with.
    """
    signature = ir.FunctionType(sums.type, [sums.type, left.type, right.type])
    place, prefix = ("v", "") if k.machine.isa == "avx512" else ("x", "{vex} ")
    text = f"{prefix}vpdpwssd $3, $2, $0"
    code = ir.InlineAsm(signature, text, f"={place},0,{place},{place}")
    return k.b.call(code, [sums, left, right])


def _multiply_pairs(k: KernelBuilder, a: ir.Value, b: ir.Value, lanes: int) -> ir.Value:
    wide = ir.VectorType(I32, 2 * lanes)
    product = k.b.mul(k.b.sext(a, wide), k.b.sext(b, wide))
    even = k.shuffle(product, product, range(0, 2 * lanes, 2))
    odd = k.shuffle(product, product, range(1, 2 * lanes, 2))
    return k.b.add(even, odd)

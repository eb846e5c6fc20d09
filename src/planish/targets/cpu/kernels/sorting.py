"""Order as integers, and sorting of them: what top k and non-maximum suppression share.

An element becomes a *ticket*: an unsigned integer whose upper half orders elements and whose lower
half is the complement of a position. The larger ticket is the better element, or the earlier of
equal ones; no two tickets are equal, so any sorting of them is stable. Tickets have 64 bits for
elements of up to 32, otherwise 128.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I1, I64, PTR

_UNSIGNED = (DType.UINT64, DType.UINT32, DType.UINT16, DType.UINT8)


def key_bits(dtype: DType) -> int:
    """Bits of an element's order: half of a ticket."""
    return 64 if dtype.size == 8 else 32


def order_key(
    k: KernelBuilder, x: ir.Value, dtype: DType, lanes: int, largest: bool = True
) -> ir.Value:
    """Integers whose unsigned order is that of elements in register form.

    Zeros of either sign are equal, and so are all NaNs, which are larger than any number.
    `largest` says whether large elements come first.
    """
    bits = key_bits(dtype)

    def many(value: int) -> ir.Constant:
        scalar = ir.Constant(ir.IntType(bits), value & ((1 << bits) - 1))
        return (
            ir.Constant(ir.VectorType(scalar.type, lanes), [scalar] * lanes)
            if lanes > 1
            else scalar
        )

    top = 1 << (bits - 1)
    if dtype.is_float:
        nan = k.b.fcmp_unordered("uno", x, x)
        number = k.b.bitcast(k.b.fadd(x, k.zero(dtype, lanes)), many(0).type)
        sign = k.b.ashr(number, many(bits - 1))
        key = k.b.xor(number, k.b.or_(sign, many(top)))
        key = k.b.select(nan, many(-1), key)
    elif dtype in _UNSIGNED or dtype is DType.BOOL:
        key = x if x.type == many(0).type else k.b.zext(x, many(0).type)
    else:
        wide = x if x.type == many(0).type else k.b.sext(x, many(0).type)
        key = k.b.xor(wide, many(top))
    return key if largest else k.b.not_(key)


def ticket(k: KernelBuilder, key: ir.Value, position: ir.Value) -> ir.Value:
    """The ticket of a key and a position (int64, of at most the key's bits)."""
    bits = key.type.width
    wide = ir.IntType(2 * bits)
    high = k.b.shl(k.b.zext(key, wide), wide(bits))
    low = position if bits == 64 else k.b.trunc(position, key.type)
    return k.b.or_(high, k.b.zext(k.b.not_(low), wide))


def ticket_position(k: KernelBuilder, value: ir.Value) -> ir.Value:
    """The position in a ticket, as int64."""
    half = ir.IntType(value.type.width // 2)
    low = k.b.not_(k.b.trunc(value, half))
    return low if half == I64 else k.b.zext(low, I64)


def ticket_key(k: KernelBuilder, value: ir.Value) -> ir.Value:
    """The key in a ticket."""
    half = value.type.width // 2
    return k.b.trunc(k.b.lshr(value, value.type(half)), ir.IntType(half))


def load_ticket(k: KernelBuilder, base: ir.Value, index: int | ir.Value, bits: int) -> ir.Value:
    """The ticket of that number in an array of tickets of so many bits."""
    kind = ir.IntType(bits)
    return k.b.load(k.b.gep(base, [k.i64(index)], source_etype=kind), typ=kind, align=8)


def store_ticket(k: KernelBuilder, value: ir.Value, base: ir.Value, index: int | ir.Value) -> None:
    """Stores a ticket at that number."""
    place = k.b.gep(base, [k.i64(index)], source_etype=value.type)
    k.b.store(value, place, align=8)


def define_sort(k: KernelBuilder, bits: int) -> Callable[[ir.Value, ir.Value, ir.Value], ir.Value]:
    """Adds a merge sort of tickets to the module and gives what calls it.

    The call takes the array, as much memory again, and how many tickets there are; it gives
    whichever of the two holds them in descending order. Both have room for one ticket more.
    """
    function = ir.Function(k.module, ir.FunctionType(PTR, [PTR, PTR, I64]), f"sort{bits}")
    function.linkage = "internal"
    outer = k.function, k.b
    k.function, k.b = function, ir.IRBuilder(function.append_basic_block("entry"))
    k.b.ret(_merge_sort(k, bits, *function.args))
    k.function, k.b = outer

    def call(data: ir.Value, spare: ir.Value, count: ir.Value) -> ir.Value:
        return k.b.call(function, [data, spare, k.i64(count)])

    return call


def _merge_sort(
    k: KernelBuilder, bits: int, data: ir.Value, spare: ir.Value, count: ir.Value
) -> ir.Value:
    """Bottom-up merge sort; both candidates of a step are read, whether they exist or not."""
    b = k.b
    leading = k.call("llvm.ctlz.i64", I64, [k.sub(k.max(count, 1), 1), I1(0)])
    with k.loop(0, k.sub(64, leading), carried=[data, spare]) as level:
        source, target = level.carried
        width = b.shl(I64(1), level.index)
        with k.loop(0, count, b.shl(width, I64(1))) as run:
            middle = k.min(k.add(run.index, width), count)
            end = k.min(k.add(middle, width), count)
            with k.loop(run.index, end, carried=[run.index, middle]) as out:
                left, right = out.carried
                x = load_ticket(k, source, left, bits)
                y = load_ticket(k, source, right, bits)
                better = b.and_(
                    b.icmp_signed("<", left, middle),
                    b.or_(b.icmp_signed(">=", right, end), b.icmp_unsigned(">", x, y)),
                )
                store_ticket(k, b.select(better, x, y), target, out.index)
                step = b.zext(better, I64)
                out.next = [k.add(left, step), k.sub(k.add(right, 1), step)]
        level.next = [target, source]
    return level.carried[0]


def mask_bits(k: KernelBuilder, mask: ir.Value, lanes: int) -> ir.Value:
    """A vector of conditions as the bits of an int64."""
    if lanes == 1:
        return k.b.zext(mask, I64)
    return k.b.zext(k.b.bitcast(mask, ir.IntType(lanes)), I64)


def for_bits(
    k: KernelBuilder,
    bits: ir.Value,
    carried: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Runs the body for the number of each bit that is set, the lowest first."""
    count = k.call("llvm.ctpop.i64", I64, [bits])
    with k.loop(0, count, carried=[bits, *carried]) as loop:
        rest, *values = loop.carried
        number = k.call("llvm.cttz.i64", I64, [rest, I1(0)])
        loop.next = [k.b.and_(rest, k.sub(rest, 1)), *body(number, values)]
    return loop.carried[1:]

"""Order as integers, and sorting of them inside a program, as Triton text.

An element becomes a *ticket*: unsigned integers that order elements first and positions second. The
larger ticket is the better element, or the earlier of equal ones; no two tickets of a row are
equal, so any sorting of them is stable. Nothing is a ticket of 0. A ticket is one uint64 (its upper
half the key of an element, its lower half the complement of its position) for elements of up to 32
bits, otherwise two: key and complement.

Sorting is Batcher's bitonic sort ("Sorting networks and their applications", 1968) of a tile
reshaped to a cube of two places along each axis, so that partners are neighbours along an axis and
the compiler exchanges them between registers, lanes and warps.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.literals import is_signed
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer

Ticket = tuple[str, ...]
"""The names of a ticket's one or two parts: tensors of uint64."""
U32, U64 = DType.UINT32, DType.UINT64
PART = Pointer(U64)
"""A pointer to tickets, or to one part of them."""


def part_count(dtype: DType) -> int:
    """How many integers make a ticket of elements of a dtype."""
    return 2 if dtype.size == 8 else 1


def order_key(k: Source, x: str, dtype: DType, largest: bool = True) -> str:
    """Integers whose unsigned order is that of elements in the type they are computed in.

    Zeros of either sign are equal, and so are all NaNs, which are larger than any number.
    `largest` says whether large elements come first.
    """
    unsigned = U64 if dtype.size == 8 else U32
    kind, bits = compute_type(unsigned), 8 * unsigned.size
    top, ones = constant(1 << (bits - 1), unsigned), constant((1 << bits) - 1, unsigned)
    if dtype.is_float:
        zero = constant(0, dtype)
        plain = k.let("plain", f"tl.where({x} == {zero}, {zero}, {x}).to({kind}, bitcast=True)")
        turned = f"tl.where({plain} >= {top}, {ones}, {top})"
        key = k.let("key", f"tl.where({x} == {x}, {plain} ^ {turned}, {ones})")
    elif is_signed(dtype):
        wide = "tl.int64" if dtype.size == 8 else "tl.int32"
        key = k.let("key", f"{x}.to({wide}).to({kind}, bitcast=True) ^ {top}")
    else:
        key = k.let("key", f"{x}.to({kind})")
    return key if largest else k.let("key", f"{key} ^ {ones}")


def make_ticket(k: Source, key: str, place: str, parts: int, mask: str) -> Ticket:
    """Tickets of keys and positions (int32); nothing where the mask does not hold."""
    nothing = constant(0, U64)
    complement = f"({constant((1 << 32) - 1, U64)} - ({place}).to(tl.uint64))"
    if parts == 1:
        whole = f"({key}.to(tl.uint64) << 32) | {complement}"
        return (k.let("ticket", f"tl.where({mask}, {whole}, {nothing})"),)
    return (
        k.let("ticket", f"tl.where({mask}, {key}, {nothing})"),
        k.let("ticket", f"tl.where({mask}, {complement}, {nothing})"),
    )


def place_of(k: Source, ticket: Ticket) -> str:
    """The positions in tickets, int32; of nothing -1."""
    low = f"({ticket[-1]} & {constant((1 << 32) - 1, U64)})"
    place = f"({constant((1 << 32) - 1, U64)} - {low})"
    return k.let("place", f"tl.where({low} == 0, -1, {place}.to(tl.int32))")


def same_element(a: Ticket, b: Ticket) -> str:
    """Whether two tickets are of equal elements."""
    return f"(({a[0]} >> 32) == ({b[0]} >> 32))" if len(a) == 1 else f"({a[0]} == {b[0]})"


def better(a: Ticket, b: Ticket, or_equal: bool = False) -> str:
    """Whether the first of two tickets is the better one."""
    sign = ">=" if or_equal else ">"
    if len(a) == 1:
        return f"({a[0]} {sign} {b[0]})"
    return f"(({a[0]} > {b[0]}) | (({a[0]} == {b[0]}) & ({a[1]} {sign} {b[1]})))"


def load_tickets(
    k: Source, pointer: int, parts: int, place: str, mask: str | None = None
) -> Ticket:
    """Tickets at a place; nothing where the mask does not hold."""
    masked = f", mask={mask}, other=0" if mask is not None else ""
    return tuple(
        k.let("ticket", f"tl.load(p{pointer + i} + ({place}){masked})") for i in range(parts)
    )


def store_tickets(k: Source, pointer: int, ticket: Ticket, place: str, mask: str) -> None:
    """Stores tickets at a place."""
    for i, part in enumerate(ticket):
        k.line(f"tl.store(p{pointer + i} + ({place}), {part}, mask={mask})")


def sort(k: Source, ticket: Ticket, rows: int, columns: int, keep: int) -> Ticket:
    """The best `keep` tickets of each row of a tile in descending order: ``[rows, keep]``.

    Columns and `keep` are powers of two. Runs of `keep` are sorted, in alternating directions; then
    of two runs the better half is taken, which is bitonic, and merged, until one is left.
    """
    bits, kept = columns.bit_length() - 1, keep.bit_length() - 1
    ticket = _reshaped(k, ticket, (rows, *(2,) * bits))
    for stage in range(1, kept + 1):
        for bit in reversed(range(stage)):
            ticket = _exchange(k, ticket, bits, bit, stage if stage < bits else None)
    while bits > kept:
        best = _better_of_pair(k, ticket, bits, kept)
        axis = bits - kept
        ticket = tuple(
            k.let("ticket", f"tl.reduce({part}, {axis}, tl.standard._elementwise_max)")
            for part in best
        )
        bits -= 1
        for bit in reversed(range(kept)):
            ticket = _exchange(k, ticket, bits, bit, kept if kept < bits else None)
    return _reshaped(k, ticket, (rows, keep))


def _reshaped(k: Source, ticket: Ticket, shape: Sequence[int]) -> Ticket:
    return tuple(k.let("ticket", f"tl.reshape({part}, {list(shape)})") for part in ticket)


def _partner(k: Source, ticket: Ticket, bits: int, bit: int) -> Ticket:
    """The tickets whose places differ in a bit: their sum less the own one, modulo 2**64."""
    axis = bits - bit
    sums = (f"tl.reduce({p}, {axis}, tl.standard._sum_combine, keep_dims=True)" for p in ticket)
    return tuple(
        k.let("other", f"{total} - {part}") for part, total in zip(ticket, sums, strict=True)
    )


def _better_of_pair(k: Source, ticket: Ticket, bits: int, bit: int) -> Ticket:
    other = _partner(k, ticket, bits, bit)
    if len(ticket) == 1:
        return ticket  # the reduction that follows finds the larger one
    wins = k.let("wins", better(other, ticket))
    return tuple(
        k.let("best", f"tl.where({wins}, {o}, {t})") for t, o in zip(ticket, other, strict=True)
    )


def _exchange(k: Source, ticket: Ticket, bits: int, bit: int, turned: int | None) -> Ticket:
    """Puts the better of two partners first; last where the bit `turned` of their places is 1."""
    other = _partner(k, ticket, bits, bit)
    wanted = f"{better(other, ticket)} ^ {_is_set(bits, bit)}"
    if turned is not None:
        wanted += f" ^ {_is_set(bits, turned)}"
    moves = k.let("moves", wanted)
    return tuple(
        k.let("ticket", f"tl.where({moves}, {o}, {t})") for t, o in zip(ticket, other, strict=True)
    )


def _is_set(bits: int, bit: int) -> str:
    """Whether a bit of the place is 1, along its axis of the cube."""
    shape = [1] * (bits + 1)
    shape[bits - bit] = 2
    return f"(tl.reshape(tl.arange(0, 2), {shape}) == 1)"

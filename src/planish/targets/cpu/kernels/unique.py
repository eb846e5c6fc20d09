"""The distinct elements of a vector: found by hashing, and sorted where they must be in order.

The table is open addressing with linear probing, at most half full; the hash is Fibonacci's
(Knuth, "The Art of Computer Programming", volume 3, section 6.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.data_dependent import Unique
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I8, I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, bind_values
from planish.targets.cpu.kernels.sorting import (
    define_sort,
    key_bits,
    load_ticket,
    order_key,
    store_ticket,
    ticket,
    ticket_position,
)

_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio."""


@dataclass(frozen=True)
class UniqueKernel(CpuKernel):
    """Groups equal elements, numbers the groups, and writes them; one task.

    Parameters: the number of elements, bits of the table's size; strides of the input and of the
    five outputs (elements, first places, inverse, how often, number). Scratch: the table; of each
    element its group; of each group the key, the first place, how often, and its number in the
    output; if sorted, two lists of tickets.
    """

    family: ClassVar[str] = "unique"
    dtype: DType
    sorted: bool
    source: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        count, bits = k.param(0), k.param(1)
        source = Operands(k, self.source, 0, 2, 1)
        distinct, first, inverse, often, number = (
            Operands(k, (access,), 1 + i, 3 + i, 1) for i, access in enumerate(self.outputs)
        )

        def load(index: ir.Value) -> ir.Value:
            (x,) = source.load(source.start(), Span(index, 1))
            assert x is not None
            return x

        def write(tensor: Operands, index: ir.Value, value: ir.Value) -> None:
            tensor.store(tensor.start(), Span(index, 1), [value])

        size = k.b.shl(I64(1), bits)
        with k.loop(k.begin, k.end):
            table = _Table(k, k.scratch, 0)
            group, keys, head, sizes, place = (
                _Table(k, k.scratch, k.add(size, k.mul(count, i))) for i in range(5)
            )
            with k.loop(0, size) as each:
                table.put(each.index, I64(0))
            with k.loop(0, count, carried=[I64(0)]) as each:
                key = order_key(k, load(each.index), self.dtype, 1, largest=False)
                key = key if key.type == I64 else k.b.zext(key, I64)
                slot, found = self._find(k, key, table, keys, bits)
                fresh = k.b.icmp_signed("==", found, I64(0))
                here = k.b.select(fresh, each.carried[0], k.sub(found, 1))
                with k.when(fresh):
                    table.put(slot, k.add(here, 1))
                    keys.put(here, key)
                    head.put(here, each.index)
                    sizes.put(here, I64(0))
                sizes.put(here, k.add(sizes.get(here), 1))
                group.put(each.index, here)
                each.next = [k.add(each.carried[0], k.b.zext(fresh, I64))]
            groups = each.carried[0]
            if self.sorted:
                self._order(k, groups, keys, place, k.add(size, k.mul(count, 5)), count)
            else:
                with k.loop(0, groups) as each:
                    place.put(each.index, each.index)
            with k.loop(0, groups) as each:
                index, position = place.get(each.index), head.get(each.index)
                write(distinct, index, load(position))
                write(first, index, position)
                write(often, index, sizes.get(each.index))
            with k.loop(0, count) as each:
                write(inverse, each.index, place.get(group.get(each.index)))
            with k.loop(groups, count) as each:
                write(distinct, each.index, k.zero(self.dtype))
                write(first, each.index, I64(0))
                write(often, each.index, I64(0))
            write(number, k.i64(0), groups)

    @staticmethod
    def _find(
        k: KernelBuilder, key: ir.Value, table: _Table, keys: _Table, bits: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """The slot of a key, and what it holds: its group's number plus 1, or 0."""
        b = k.b
        mask = k.sub(b.shl(I64(1), bits), 1)
        start = b.lshr(b.mul(key, I64(_GOLDEN)), k.sub(64, bits))

        def elsewhere(state: list[ir.Value]) -> ir.Value:
            found = state[1]
            # the first key stands in for that of an empty slot
            other = b.icmp_unsigned("!=", keys.get(k.max(k.sub(found, 1), 0)), key)
            return b.and_(b.icmp_signed("!=", found, I64(0)), other)

        with k.loop_while([start, table.get(start)], elsewhere) as probe:
            slot = b.and_(k.add(probe.carried[0], 1), mask)
            probe.next = [slot, table.get(slot)]
        slot, found = probe.carried
        return slot, found

    def _order(
        self,
        k: KernelBuilder,
        groups: ir.Value,
        keys: _Table,
        place: _Table,
        start: ir.Value,
        count: ir.Value,
    ) -> None:
        """Numbers the groups in ascending order of their elements."""
        bits = 2 * key_bits(self.dtype)
        key_type = ir.IntType(bits // 2)
        sort = define_sort(k, bits)
        data = k.offset(k.scratch, start, DType.INT64)
        spare = k.b.gep(data, [k.mul(k.add(count, 1), bits // 8)], source_etype=I8)
        with k.loop(0, groups) as each:
            key = keys.get(each.index)
            key = key if key_type == I64 else k.b.trunc(key, key_type)
            store_ticket(k, ticket(k, key, each.index), data, each.index)
        ordered = sort(data, spare, groups)
        with k.loop(0, groups) as each:
            position = ticket_position(k, load_ticket(k, ordered, each.index, bits))
            place.put(position, each.index)


class _Table:
    """Integers in memory, from some place on."""

    def __init__(self, k: KernelBuilder, memory: ir.Value, start: Any) -> None:
        self._k, self._base = k, k.offset(memory, k.i64(start), DType.INT64)

    def get(self, index: ir.Value) -> ir.Value:
        return self._k.load(self._k.offset(self._base, index, DType.INT64), DType.INT64)

    def put(self, index: ir.Value, value: ir.Value) -> None:
        self._k.store(value, self._k.offset(self._base, index, DType.INT64), DType.INT64)


@dataclass(frozen=True)
class Hashed(AnchoredTactic):
    """Distinct elements by hashing, on one thread."""

    family: ClassVar[str] = "unique"

    def accepts(self, binding: Binding) -> bool:
        return True

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, Unique)
        (count,) = binding.shape(task.inputs[0])
        dtype, bits = task.inputs[0].dtype, (2 * count).bit_length()
        source = bind_values(task.inputs, binding.strides)
        outputs = bind_values(task.outputs, lambda v: binding.strides(v) or (0,))
        return [
            Launch(
                UniqueKernel(dtype, op.sorted, source.accesses, outputs.accesses),
                (*source.pointers, *outputs.pointers),
                (count, bits, *source.params, *outputs.params),
                scratch=8 * (1 << bits) + 5 * 8 * count + 2 * (count + 1) * (key_bits(dtype) // 4),
            )
        ]


class UniqueFamily(Family):
    """`Unique` of any dtype."""

    name: ClassVar[str] = "unique"
    tactic: ClassVar[type[Tactic]] = Hashed

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None and isinstance(task.anchor.op, Unique) and len(task.nodes) == 1
        )


FAMILIES: tuple[Family, ...] = (UniqueFamily(),)

"""Non-maximum suppression of many classes, whose result is the list of what was kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import llvmlite.ir as ir

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.data_dependent import SelectBoxes
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.detection import SuppressionSizes
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, bind_values
from planish.targets.cpu.kernels.overlaps import wide_float
from planish.targets.cpu.kernels.sorting import key_bits, load_ticket


@dataclass(frozen=True)
class SelectionKernel(CpuKernel):
    """The boxes that are kept, class by class, and how many; one task.

    Parameters: images, classes, the limit of a class, rows of the output; strides of the output and
    of the number. Pointers: tickets, box numbers (see `suppression`), output, number.
    """

    family: ClassVar[str] = "selection"
    dtype: DType
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        b, bits = k.b, 2 * key_bits(self.dtype)
        images, classes, limit, room = (k.param(i) for i in range(4))
        tickets, chosen = k.pointer(0), k.pointer(1)
        rows = Operands(k, self.outputs[:1], 2, 4, 2)
        number = Operands(k, self.outputs[1:], 3, 6, 1)

        def put(row: ir.Value, items: list[ir.Value]) -> None:
            place = rows.at([row])
            for axis, item in enumerate(items):
                rows.store(place, Span(axis, 1), [item])

        with k.loop(k.begin, k.end) as task:
            with k.loop(0, k.mul(images, classes), carried=[I64(0)]) as pair:
                image, label = k.divmod(pair.index, classes)
                start = k.mul(pair.index, limit)

                def kept(state: list[ir.Value]) -> ir.Value:
                    inside = b.icmp_signed("<", state[0], limit)
                    return b.and_(inside, b.icmp_unsigned("!=", state[2], state[2].type(0)))

                first = load_ticket(k, tickets, start, bits)
                with k.loop_while([I64(0), pair.carried[0], first], kept) as each:
                    rank, count, _ = each.carried
                    box = b.load(b.gep(chosen, [k.add(start, rank)], source_etype=I64), typ=I64)
                    put(count, [image, label, box])
                    following = k.add(rank, 1)
                    # at the end of a class its last ticket is read once more, and not used
                    last = k.add(start, k.min(following, k.sub(limit, 1)))
                    each.next = [following, k.add(count, 1), load_ticket(k, tickets, last, bits)]
                pair.next = [each.carried[1]]
            total = pair.carried[0]
            number.store(number.start(), Span(0, 1), [total])
            with k.loop(total, room) as rest:
                put(rest.index, [I64(0)] * 3)
            task.next = []


@dataclass(frozen=True)
class Selection(AnchoredTactic):
    """Suppression class by class in parallel, then the list of what was kept."""

    family: ClassVar[str] = "selection"

    def accepts(self, binding: Binding) -> bool:
        return True

    def workspace(self, binding: Binding) -> int:
        return self._sizes(binding).workspace

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, sizes = self.task, self.anchor.op, self._sizes(binding)
        assert isinstance(op, SelectBoxes)
        outputs = bind_values(task.outputs, lambda v: binding.strides(v) or (0,))
        room = binding.shape(task.outputs[0])[0]
        write = Launch(
            SelectionKernel(task.inputs[0].dtype, outputs.accesses),
            (Workspace(0), Workspace(sizes.tickets), *outputs.pointers),
            (sizes.images, sizes.classes, sizes.limit, room, *outputs.params),
        )
        everything = sizes.classes * sizes.limit
        return [sizes.launch(task, binding, op, everything), write]

    def _sizes(self, binding: Binding) -> SuppressionSizes:
        images, boxes, classes = binding.shape(self.task.inputs[1])
        dtype, op = self.task.inputs[0].dtype, self.anchor.op
        assert isinstance(op, SelectBoxes)
        limit = min(op.max_per_class, boxes)
        size = wide_float(dtype).size
        return SuppressionSizes(images, boxes, classes, limit, key_bits(dtype) // 4, size)


class SelectionFamily(Family):
    """`SelectBoxes` of any layout."""

    name: ClassVar[str] = "selection"
    tactic: ClassVar[type[Tactic]] = Selection

    def understands(self, task: Task) -> bool:
        anchor = task.anchor
        return anchor is not None and isinstance(anchor.op, SelectBoxes) and len(task.nodes) == 1


FAMILIES: tuple[Family, ...] = (SelectionFamily(),)

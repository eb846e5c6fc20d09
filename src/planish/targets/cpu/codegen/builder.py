"""A thin layer over llvmlite in which kernels are written: loops, vectors, loads, stores.

Every kernel is a function of one signature (see ``native/planish.h``)::

    void kernel(void *const *pointers, const int64_t *params,
                int64_t begin, int64_t end, void *scratch)

It does tasks ``begin`` to ``end`` of as many as the launch says; different tasks may run on
different threads and must write different elements. What elements are in registers, `types` says. A
vector has any number of lanes: LLVM splits what is wider than a register.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.types import (
    F16,
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    PTR,
    constant,
    mangled,
    memory_type,
    register_type,
    vector_type,
)
from planish.targets.cpu.machine import Machine


class Loop:
    """A counted loop with values carried from one round to the next; see `KernelBuilder.loop`."""

    def __init__(self, index: ir.Value, carried: list[ir.Value]) -> None:
        self.index = index
        self.carried = carried
        self.next: list[ir.Value] = list(carried)
        """What the carried values become after this round; set it inside the loop."""


class KernelBuilder:
    """Writes one kernel into a module of its own.

    Attributes
    ----------
    b : llvmlite.ir.IRBuilder
        For whatever this layer does not wrap.
    begin, end, scratch : llvmlite.ir.Value
        The kernel's arguments.
    """

    def __init__(self, name: str, machine: Machine, module: ir.Module | None = None) -> None:
        self.machine = machine
        self.lanes = machine.lanes
        self.module = module or ir.Module(name=name)
        self.module.triple = machine.triple
        signature = ir.FunctionType(ir.VoidType(), [PTR, PTR, I64, I64, PTR])
        self.function = ir.Function(self.module, signature, name)
        self._pointers, self._params, self.begin, self.end, self.scratch = self.function.args
        for argument in (self._pointers, self._params, self.scratch):
            argument.add_attribute("noalias")
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def inner(self, name: str) -> KernelBuilder:
        """A builder of another kernel in the same module, for this one alone to call."""
        inner = KernelBuilder(name, self.machine, self.module)
        inner.function.linkage = "internal"
        inner.function.attributes.add("noinline")  # registers are allocated for one at a time
        return inner

    def close(self) -> ir.Function:
        """Ends the kernel and gives its function."""
        if not self.b.block.is_terminated:
            self.b.ret_void()
        return self.function

    def finish(self) -> str:
        """Ends the kernel and gives its module as LLVM assembly."""
        self.close()
        return str(self.module)

    # ---- arguments and constants ----------------------------------------------------------

    def pointer(self, index: int) -> ir.Value:
        """The kernel's pointer of that number."""
        slot = self.b.gep(self._pointers, [I64(index)], source_etype=PTR)
        return self.b.load(slot, typ=PTR)

    def param(self, index: int | ir.Value) -> ir.Value:
        """The kernel's integer parameter of that number."""
        slot = self.b.gep(self._params, [self.i64(index)], source_etype=I64)
        return self.b.load(slot, typ=I64)

    def params_at(self, index: ir.Value) -> ir.Value:
        """The kernel's parameters from that number on."""
        return self.b.gep(self._params, [index], source_etype=I64)

    def i64(self, value: int | ir.Value) -> ir.Value:
        """A 64-bit integer; values pass through."""
        return I64(value) if isinstance(value, int) else value

    def constant(self, value: float | int | bool, dtype: DType, lanes: int = 1) -> ir.Constant:
        """A constant of the dtype's register type, the same in all lanes."""
        return constant(value, dtype, lanes)

    def zero(self, dtype: DType, lanes: int = 1) -> ir.Constant:
        """Zero of the dtype's register type."""
        return ir.Constant(register_type(dtype, lanes), None)

    # ---- integer arithmetic that folds constants -------------------------------------------

    def add(self, a: int | ir.Value, b: int | ir.Value) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(b, int) and b == 0:
            return a
        if isinstance(a, int) and a == 0:
            return b
        return self.b.add(self.i64(a), self.i64(b))

    def sub(self, a: int | ir.Value, b: int | ir.Value) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        if isinstance(b, int) and b == 0:
            return a
        return self.b.sub(self.i64(a), self.i64(b))

    def mul(self, a: int | ir.Value, b: int | ir.Value) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        for x, y in ((a, b), (b, a)):
            if isinstance(x, int) and x in (0, 1):
                return y if x else 0
        return self.b.mul(self.i64(a), self.i64(b))

    def divmod(self, a: ir.Value, b: int | ir.Value) -> tuple[Any, Any]:
        """Quotient and remainder of non-negative integers."""
        if isinstance(b, int) and b == 1:
            return a, 0
        quotient = self.b.udiv(self.i64(a), self.i64(b))
        return quotient, self.b.sub(self.i64(a), self.b.mul(quotient, self.i64(b)))

    def unravel(self, index: ir.Value, extents: Sequence[int | ir.Value]) -> list[Any]:
        """The indices along axes that a flat index stands for, the last axis varying fastest.

        What is left after all extents comes first: the index along an axis before them.
        """
        indices: list[Any] = []
        for extent in reversed(extents):
            index, here = self.divmod(self.i64(index), extent)
            indices.insert(0, here)
        return [index, *indices]

    def min(self, a: int | ir.Value, b: int | ir.Value) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        a, b = self.i64(a), self.i64(b)
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def max(self, a: int | ir.Value, b: int | ir.Value) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        a, b = self.i64(a), self.i64(b)
        return self.b.select(self.b.icmp_signed(">", a, b), a, b)

    # ---- control flow ---------------------------------------------------------------------

    @contextmanager
    def loop(
        self,
        start: int | ir.Value,
        stop: int | ir.Value,
        step: int | ir.Value = 1,
        carried: Sequence[ir.Value] = (),
    ) -> Iterator[Loop]:
        """``for (i = start; i < stop; i += step)``; after it, `Loop.carried` holds the results."""
        before = self.b.block
        header = self.function.append_basic_block("loop")
        body = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        self.b.branch(header)
        self.b.position_at_end(header)
        index = self.b.phi(I64)
        index.add_incoming(self.i64(start), before)
        phis = []
        for value in carried:
            phi = self.b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        self.b.cbranch(self.b.icmp_signed("<", index, self.i64(stop)), body, after)
        self.b.position_at_end(body)
        loop = Loop(index, phis)
        yield loop
        index.add_incoming(self.b.add(index, self.i64(step)), self.b.block)
        for phi, value in zip(phis, loop.next, strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(header)
        self.b.position_at_end(after)

    @contextmanager
    def loop_while(
        self,
        carried: Sequence[ir.Value],
        condition: Callable[[list[ir.Value]], ir.Value],
    ) -> Iterator[Loop]:
        """Repeats while the condition on the carried values holds; see `loop`.

        The loop's `index` counts the rounds.
        """
        before = self.b.block
        header = self.function.append_basic_block("while")
        body = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        self.b.branch(header)
        self.b.position_at_end(header)
        phis = [self.b.phi(value.type) for value in (I64(0), *carried)]
        for phi, value in zip(phis, (I64(0), *carried), strict=True):
            phi.add_incoming(value, before)
        holds = condition(phis[1:])
        self.b.cbranch(holds, body, after)
        self.b.position_at_end(body)
        loop = Loop(phis[0], phis[1:])
        yield loop
        following = [self.b.add(phis[0], I64(1)), *loop.next]
        for phi, value in zip(phis, following, strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(header)
        self.b.position_at_end(after)

    def choose(self, condition: ir.Value, then: Any, otherwise: Any) -> list[ir.Value]:
        """Runs one of two functions, each giving a list of values of the same types."""
        yes = self.function.append_basic_block("then")
        no = self.function.append_basic_block("else")
        join = self.function.append_basic_block("join")
        self.b.cbranch(condition, yes, no)
        incoming = []
        for block, branch in ((yes, then), (no, otherwise)):
            self.b.position_at_end(block)
            results = branch() or []
            incoming.append((results, self.b.block))
            self.b.branch(join)
        self.b.position_at_end(join)
        merged = []
        for a, c in zip(incoming[0][0], incoming[1][0], strict=True):
            phi = self.b.phi(a.type)
            phi.add_incoming(a, incoming[0][1])
            phi.add_incoming(c, incoming[1][1])
            merged.append(phi)
        return merged

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        """Runs the body only if the condition holds."""
        body = self.function.append_basic_block("when")
        after = self.function.append_basic_block("after")
        self.b.cbranch(condition, body, after)
        self.b.position_at_end(body)
        yield
        self.b.branch(after)
        self.b.position_at_end(after)

    # ---- memory ---------------------------------------------------------------------------

    def offset(self, pointer: ir.Value, elements: int | ir.Value, dtype: DType) -> ir.Value:
        """The pointer moved by a number of elements."""
        if isinstance(elements, int) and elements == 0:
            return pointer
        return self.b.gep(pointer, [self.i64(elements)], source_etype=memory_type(dtype))

    def load(
        self,
        pointer: ir.Value,
        dtype: DType,
        lanes: int = 1,
        *,
        mask: ir.Value | None = None,
        aligned: bool = False,
    ) -> ir.Value:
        """Loads consecutive elements into a register; masked-off lanes are zero.

        `mask` is a vector of i1, as `tail_mask` gives. `aligned` promises 64-byte alignment.
        """
        raw = self.load_raw(pointer, dtype, lanes, mask=mask, aligned=aligned)
        return self.from_memory(raw, dtype, lanes)

    def load_raw(
        self,
        pointer: ir.Value,
        dtype: DType,
        lanes: int = 1,
        *,
        mask: ir.Value | None = None,
        aligned: bool = False,
    ) -> ir.Value:
        """Loads consecutive elements as memory holds them; `from_memory` makes registers of it."""
        memory = memory_type(dtype, lanes)
        align = 64 if aligned else dtype.size
        if mask is None:
            return self.b.load(pointer, typ=memory, align=align)
        return self.call(
            f"llvm.masked.load.{mangled(memory)}.p0",
            memory,
            [pointer, I32(align), mask, ir.Constant(memory, None)],
        )

    def store(
        self,
        value: ir.Value,
        pointer: ir.Value,
        dtype: DType,
        lanes: int = 1,
        *,
        mask: ir.Value | None = None,
    ) -> None:
        """Stores a register into consecutive elements; masked-off lanes are not touched."""
        self.store_raw(self.to_memory(value, dtype, lanes), pointer, dtype, mask=mask)

    def store_raw(
        self, raw: ir.Value, pointer: ir.Value, dtype: DType, *, mask: ir.Value | None = None
    ) -> None:
        """Stores consecutive elements in memory's form, as `to_memory` gives."""
        if mask is None:
            self.b.store(raw, pointer, align=dtype.size)
            return
        self.call(
            f"llvm.masked.store.{mangled(raw.type)}.p0",
            ir.VoidType(),
            [raw, pointer, I32(dtype.size), mask],
        )

    def gather(
        self, pointer: ir.Value, stride: int | ir.Value, dtype: DType, lanes: int, count: Any = None
    ) -> ir.Value:
        """Loads elements `stride` apart, one by one; lanes from `count` on repeat the last one."""
        result = ir.Constant(memory_type(dtype, lanes), ir.Undefined)
        for lane in range(lanes):
            index = lane if count is None else self.min(lane, self.sub(count, 1))
            element = self.b.load(
                self.offset(pointer, self.mul(index, stride), dtype),
                typ=memory_type(dtype),
                align=dtype.size,
            )
            result = self.b.insert_element(result, element, I32(lane))
        return self.from_memory(result, dtype, lanes)

    def gather_at(
        self,
        pointer: ir.Value,
        offsets: ir.Value,
        dtype: DType,
        lanes: int,
        mask: ir.Value | None = None,
    ) -> ir.Value:
        """Loads the elements at a vector of offsets; masked-off lanes may read element 0."""
        if lanes == 1:
            return self.load(self.offset(pointer, offsets, dtype), dtype)
        memory = memory_type(dtype, lanes)
        if dtype.size >= 4 and self.machine.isa != "neon":
            base = self.splat(self.b.ptrtoint(pointer, I64), lanes)
            size = self.splat(I64(dtype.size), lanes)
            address = self.b.add(base, self.b.mul(offsets, size))
            places = self.b.inttoptr(address, ir.VectorType(PTR, lanes))
            if mask is None:
                mask = ir.Constant(ir.VectorType(I1, lanes), [I1(1)] * lanes)
            raw = self.call(
                f"llvm.masked.gather.{mangled(memory)}.v{lanes}p0",
                memory,
                [places, I32(dtype.size), mask, ir.Constant(memory, None)],
            )
            return self.from_memory(raw, dtype, lanes)
        if mask is not None:
            offsets = self.b.select(mask, offsets, ir.Constant(offsets.type, None))
        result: ir.Value = ir.Constant(memory, ir.Undefined)
        for lane in range(lanes):
            offset = self.b.extract_element(offsets, I32(lane))
            place = self.offset(pointer, offset, dtype)
            element = self.b.load(place, typ=memory_type(dtype), align=dtype.size)
            result = self.b.insert_element(result, element, I32(lane))
        return self.from_memory(result, dtype, lanes)

    def scatter(
        self,
        value: ir.Value,
        pointer: ir.Value,
        stride: int | ir.Value,
        dtype: DType,
        lanes: int,
        count: Any = None,
    ) -> None:
        """Stores a register's lanes `stride` elements apart, one by one; the first `count` only."""
        raw = self.to_memory(value, dtype, lanes)
        for lane in range(lanes):
            element = raw if lanes == 1 else self.b.extract_element(raw, I32(lane))
            place = self.offset(pointer, self.mul(stride, lane), dtype)
            if count is None:
                self.b.store(element, place, align=dtype.size)
            else:
                with self.when(self.b.icmp_signed("<", self.i64(lane), self.i64(count))):
                    self.b.store(element, place, align=dtype.size)

    def from_memory(self, raw: ir.Value, dtype: DType, lanes: int = 1) -> ir.Value:
        """The register form of loaded elements."""
        if dtype is DType.BOOL:
            return self.b.icmp_unsigned("!=", raw, ir.Constant(raw.type, None))
        if dtype is DType.FLOAT16:
            return self.b.fpext(raw, vector_type(F32, lanes))
        if dtype is DType.BFLOAT16:
            wide = self.b.zext(raw, vector_type(I32, lanes))
            shift = self.splat(I32(16), lanes)
            return self.b.bitcast(self.b.shl(wide, shift), vector_type(F32, lanes))
        return raw

    def to_memory(self, value: ir.Value, dtype: DType, lanes: int = 1) -> ir.Value:
        """The memory form of a register; half precisions round to nearest even.

        Where a CPU rounds to bfloat16 itself, subnormal numbers become 0.
        """
        if dtype is DType.BOOL:
            return self.b.zext(value, vector_type(I8, lanes))
        if dtype is DType.FLOAT16:
            return self.b.fptrunc(value, vector_type(F16, lanes))
        if dtype is DType.BFLOAT16:
            return self._round_bfloat16(value, lanes)
        return value

    def _round_bfloat16(self, value: ir.Value, lanes: int) -> ir.Value:
        if self.machine.has_bf16 and lanes in (8, 16):
            name = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * lanes}"
            return self.call(name, vector_type(I16, lanes), [value])

        def many(n: int) -> ir.Value:
            return self.splat(I32(n), lanes)

        bits = self.b.bitcast(value, vector_type(I32, lanes))
        odd = self.b.and_(self.b.lshr(bits, many(16)), many(1))
        rounded = self.b.add(self.b.add(bits, many(0x7FFF)), odd)
        quiet = self.b.or_(bits, many(0x400000))
        nan = self.b.fcmp_unordered("uno", value, value)
        chosen = self.b.select(nan, quiet, rounded)
        return self.b.trunc(self.b.lshr(chosen, many(16)), vector_type(I16, lanes))

    # ---- vectors --------------------------------------------------------------------------

    def splat(self, scalar: ir.Value, lanes: int) -> ir.Value:
        """A vector of equal elements."""
        if lanes == 1:
            return scalar
        vector = ir.VectorType(scalar.type, lanes)
        if isinstance(scalar, ir.Constant):
            return ir.Constant(vector, [scalar] * lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), None)
        return self.b.shuffle_vector(first, undefined, zeros)

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """A vector of lanes picked from two vectors, those of the second counted on."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), [I32(n) for n in lanes])
        return self.b.shuffle_vector(a, b, mask)

    def tail_mask(self, count: int | ir.Value, lanes: int) -> ir.Value:
        """A mask of the first `count` lanes (all of them if `count` is larger)."""
        if self.machine.isa == "avx512" and lanes in (8, 16, 32, 64):
            # masks are integers in registers of their own: made by a shift, not by comparing
            some = self.max(self.i64(self.min(count, lanes)), 0)
            if lanes < 64:
                bits = self.b.trunc(
                    self.b.sub(self.b.shl(I64(1), self.i64(some)), I64(1)), ir.IntType(lanes)
                )
            else:
                none = self.b.icmp_signed("==", self.i64(some), I64(0))
                ones = self.b.lshr(I64(-1), self.b.sub(I64(64), self.i64(some)))
                bits = self.b.select(none, I64(0), ones)
            return self.b.bitcast(bits, ir.VectorType(I1, lanes))
        lane = ir.Constant(ir.VectorType(I64, lanes), [I64(i) for i in range(lanes)])
        return self.b.icmp_signed("<", lane, self.splat(self.i64(count), lanes))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``, rounded once."""
        return self.call(f"llvm.fma.{mangled(a.type)}", a.type, [a, b, c])

    def call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
        """Calls an LLVM intrinsic, declaring it where needed."""
        function = self.module.globals.get(name)
        if function is None:
            signature = ir.FunctionType(result, [a.type for a in arguments])
            function = ir.Function(self.module, signature, name)
        return self.b.call(function, list(arguments))

    def intrinsic(self, name: str, *arguments: ir.Value, suffix: str = "") -> ir.Value:
        """Calls ``llvm.<name>``, overloaded on its first argument, which it gives back.

        `suffix` is what a second overloaded type adds to the name.
        """
        kind = arguments[0].type
        overload = mangled(kind) + (f".{suffix}" if suffix else "")
        return self.call(f"llvm.{name}.{overload}", kind, arguments)

    def reduce(self, name: str, vector: ir.Value) -> ir.Value:
        """Combines all lanes by ``llvm.vector.reduce.<name>`` (or, and, umax, ...)."""
        if not isinstance(vector.type, ir.VectorType):
            return vector
        intrinsic = f"llvm.vector.reduce.{name}.{mangled(vector.type)}"
        return self.call(intrinsic, vector.type.element, [vector])

    def prefetch(self, pointer: ir.Value, locality: int = 3) -> None:
        """Asks for a cache line (`locality` 3: into L1, 2: into L2)."""
        self.call("llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(locality), I32(1)])

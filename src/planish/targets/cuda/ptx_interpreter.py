"""Runs kernels in PTX without a GPU, in NumPy: for `run`.

All warps of all blocks take turns, a few instructions each, in random order. What hardware does
meanwhile happens late, and in random order, too: copies of boxes and their stores some time after
they were asked for, products of matrices when they are waited for. So a kernel that lacks a barrier
mostly gives wrong results here, and one whose threads wait for one another for ever is found out.

It knows the instructions that kernels of this target have (`ptx_instructions`), and no others.
"""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planish.targets.cuda.codegen.tensor_map import TensorMap
from planish.targets.cuda.ptx_instructions import (
    LANES,
    TYPES,
    Array,
    Barrier,
    exchanged,
    execute,
    parsed,
)

TURN = 400
"""Instructions that a warp executes before another one has its turn, at most."""
VERY_LATE = 0.1
"""How much of what hardware does is done when nothing else can be."""
PATIENCE = 50
"""Turns of all warps without anything new: those that poll look at one place in each."""
SHARED = 232448
"""Bytes of a block's shared memory."""

_WIDTHS = {"%r": np.uint32, "%d": np.uint64, "%h": np.uint16, "%p": np.bool_}


class Deadlock(AssertionError):
    """All threads wait."""


def interpret(
    text: str,
    maps: Sequence[TensorMap | None],
    dtypes: Sequence[np.dtype],
    addresses: Sequence[int],
    params: Sequence[int],
    programs: int,
    cluster: int,
    seed: int = 0,
) -> None:
    """Runs a kernel's blocks on host addresses.

    Raises
    ------
    Deadlock
        Its threads wait for one another.
    """
    Grid(text, maps, dtypes, addresses, params, programs, cluster, seed).run()


class Grid:
    """A launch."""

    def __init__(
        self,
        text: str,
        maps: Sequence[TensorMap | None],
        dtypes: Sequence[np.dtype],
        addresses: Sequence[int],
        params: Sequence[int],
        programs: int,
        cluster: int,
        seed: int,
    ) -> None:
        self.code, self.labels = parsed(text)
        found = re.search(r"\.maxntid (\d+)", text)
        assert found is not None
        self.threads, self.cluster, self.programs = int(found[1]), cluster, programs
        self.maps = {
            f"p{i}": Boxes(a, d, m, m.extents(params))
            for i, (a, d, m) in enumerate(zip(addresses, dtypes, maps, strict=True))
            if m is not None
        }
        self.params = {f"p{i}": a for i, a in enumerate(addresses)}
        self.params |= {f"n{i}": n for i, n in enumerate(params)} | {"ahead": 0, "lines": 0}
        self.asked: list[int] = []
        """Addresses that the second-level cache was asked to fetch."""
        self.random = random.Random(seed)
        self.delay = self.random.random()
        self.late: list[Callable[[], None]] = []
        self.last: list[Callable[[], None]] = []
        self.stuck = 0
        self.blocks = [Block(self, i) for i in range(programs)]

    def run(self) -> None:
        warps = [w for block in self.blocks for w in block.warps]
        while warps:
            self.random.shuffle(warps)
            moved = [warp.run() for warp in warps]
            warps = [w for w in warps if not w.is_done]
            if not any(moved) or self.random.random() > self.delay:
                self._do_late(any(moved) or not warps)
        assert not self.late and not self.last, "a kernel ends before its copies"

    def _do_late(self, can_go_on: bool) -> None:
        """Some of what hardware does; what is very late only where all threads wait for it."""
        if self.late:
            self.random.shuffle(self.late)
            for _ in range(1 + int(len(self.late) * self.random.random() ** 2)):
                if self.late:
                    self.late.pop()()
        elif self.last and not can_go_on:
            self.last.pop(self.random.randrange(len(self.last)))()
        self.stuck = 0 if can_go_on or self.late or self.last else self.stuck + 1
        if self.stuck > PATIENCE:
            raise Deadlock("all threads of a kernel wait")

    def later(self, what: Callable[[], None]) -> None:
        """Has something done at some time."""
        (self.last if self.random.random() < VERY_LATE else self.late).append(what)

    def of_cluster(self, block: Block) -> list[Block]:
        first = block.index // self.cluster * self.cluster
        return self.blocks[first : first + self.cluster]


class Block:
    """A block: its shared memory and barriers."""

    def __init__(self, grid: Grid, index: int) -> None:
        self.grid, self.index = grid, index
        self.memory = np.full(SHARED, 0xAB, np.uint8)
        self.barriers: dict[int, Barrier] = {}
        self.named: dict[int, int] = {}
        self.warps = [Warp(self, i) for i in range(grid.threads // LANES)]


class Boxes:
    """A tensor as boxes of it are copied: places in shared memory are exchanged."""

    def __init__(
        self, address: int, dtype: np.dtype, tensor: TensorMap, extents: Sequence[int]
    ) -> None:
        self.extents, self.block = extents, tensor.block
        self.size = dtype.itemsize
        reach = 1 + sum(s * (n - 1) for s, n in zip(tensor.strides, extents, strict=True))
        memory = (ctypes.c_uint8 * (reach * self.size)).from_address(address)
        raw = np.ctypeslib.as_array(memory).view(f"V{self.size}")
        steps = [s * self.size for s in tensor.strides]
        self.view = np.lib.stride_tricks.as_strided(raw, extents, steps)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.block)) * self.size

    def _inside(self, place: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What of a box is inside the tensor: in the tensor, and in the box."""
        inside, own = [], []
        for at, box, extent in zip(place, self.block, self.extents, strict=True):
            low, high = max(at, 0), max(min(at + box, extent), max(at, 0))
            inside.append(slice(low, high))
            own.append(slice(low - at, high - at))
        return tuple(inside), tuple(own)

    def places(self, start: int) -> Array:
        """Where the bytes of a box lie."""
        line = self.block[-1] * self.size
        return exchanged(start + np.arange(self.bytes), line)

    def load(self, place: Sequence[int], memory: Array, start: int) -> None:
        box = np.zeros(self.block, f"V{self.size}")
        inside, own = self._inside(place)
        box[own] = self.view[inside]
        memory[self.places(start)] = box.reshape(-1).view(np.uint8)

    def store(self, place: Sequence[int], memory: Array, start: int) -> None:
        box = memory[self.places(start)].view(f"V{self.size}").reshape(self.block)
        inside, own = self._inside(place)
        self.view[inside] = box[own]


@dataclass
class Warp:
    """32 threads, each with a place in the code."""

    block: Block
    index: int
    at: Array = field(default_factory=lambda: np.zeros(LANES, np.int64))
    done: Array = field(default_factory=lambda: np.zeros(LANES, np.bool_))
    registers: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.products: list[list[Callable[[], None]]] = []
        self.begun: list[Callable[[], None]] = []
        self.stores: list[list[Sequence[int]]] = []  # by groups, those that are not done
        self.asked: list[Sequence[int]] = []
        self.arrived: dict[int, tuple[int, ...]] = {}
        self.met = np.zeros(LANES, np.int64)
        self.polled: dict[int, bytes] = {}
        self.is_polling = False
        every = np.ones(LANES, np.uint32)
        self.special = {
            "%tid.x": self.index * LANES + np.arange(LANES, dtype=np.uint32),
            "%ctaid.x": every * self.block.index,
            "%nctaid.x": every * self.block.grid.programs,
            "%cluster_ctarank": every * (self.block.index % self.block.grid.cluster),
            "memory": every * 0,
        }

    @property
    def is_done(self) -> bool:
        return bool(self.done.all())

    def run(self) -> bool:
        """Executes some instructions; says whether there were any that it could, other than polling
        what has not changed.
        """
        moved, was_polling, self.is_polling = False, self.is_polling, False
        for _ in range(TURN):
            if self.is_done or not self._step():
                break
            moved = True
            if self.is_polling:  # others are to have their turn
                return not was_polling
        return moved

    def poll(self, found: bytes) -> None:
        """Notes what an instruction has read, and whether that is what it read last."""
        place = int(self.at[~self.done].min())
        self.is_polling = self.polled.get(place) == found
        self.polled[place] = found

    def _step(self) -> bool:
        """An instruction of those threads that are the furthest behind and need not wait."""
        places = self.at[~self.done]
        together = places.min() == places.max()  # as nearly always
        for place in places[:1] if together else np.unique(places):
            lanes = ~self.done if together else (self.at == place) & ~self.done
            instruction = self.block.grid.code[place]
            mask = lanes
            if instruction.predicate:
                mask = lanes & self.predicate(instruction.predicate)
            if not mask.any():
                self.at[lanes] += 1
                return True
            self.target: int | None = None
            if not execute(self, instruction, mask):
                continue
            self.at[lanes] = place + 1
            if self.target is not None:
                self.at[mask] = self.target
            return True
        return False

    # ---- operands ------------------------------------------------------------------------------

    def predicate(self, name: str) -> Array:
        return ~self.registers[name[1:]] if name[0] == "!" else self.registers[name]

    def get(self, operand: str, kind: str = "u32") -> Array:
        """An operand of all threads, as a type."""
        dtype = TYPES[kind]
        if operand in self.registers:
            data = self.registers[operand]
            if data.dtype == np.bool_:
                return data
            if data.itemsize > np.dtype(dtype).itemsize:  # the low bits
                data = data.astype(f"u{np.dtype(dtype).itemsize}")
            return data.view(dtype)
        assert operand[0] != "%" or operand in self.special, f"{operand} is read before written"
        if operand in self.special:
            return self.special[operand].astype(np.uint32).view(dtype)
        if operand.startswith("0f"):
            return np.full(LANES, int(operand[2:], 16), np.uint32).view(dtype)
        value = int(operand, 0)
        bits = 8 * np.dtype(dtype).itemsize
        unsigned = np.full(LANES, value & ((1 << bits) - 1), f"u{bits // 8}")
        return unsigned.view(dtype)

    def set(self, name: str, value: Array, mask: Array) -> None:
        """Writes a register in some threads."""
        dtype = _WIDTHS.get(name[:2], np.uint32)
        if dtype is not np.bool_:
            value = np.ascontiguousarray(value).view(dtype)
        if name not in self.registers:
            self.registers[name] = np.zeros(LANES, dtype)
        np.copyto(self.registers[name], value, where=mask)

    def one(self, operand: str, mask: Array) -> int:
        """An operand of the only thread, or of all alike."""
        values = np.unique(self.get(operand, "s32")[mask])
        assert len(values) == 1, f"{operand} differs between threads"
        return int(values[0])

    def places(self, operand: str) -> Array:
        """An address in shared memory, ``[%r1+8]``."""
        base, _, more = operand.strip("[]").partition("+")
        wide = base.startswith("%d")
        start = self.get(base, "u64" if wide else "u32").astype(np.int64)
        return start + int(more or 0)

    def barrier(self, operand: str, mask: Array) -> Barrier:
        (place,) = np.unique(self.places(operand)[mask])
        return self.block.barriers[int(place)]

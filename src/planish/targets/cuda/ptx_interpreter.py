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
from functools import cache

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

_WIDTHS = {
    name: np.dtype(kind) for name, kind in {"%r": "u4", "%d": "u8", "%h": "u2", "%p": "?"}.items()
}
_BOOL, _WORD = _WIDTHS["%p"], _WIDTHS["%r"]


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
        with np.errstate(all="ignore"):
            self._run()

    def _run(self) -> None:
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
    """32 threads, nearly always at the same place in the code.

    Attributes
    ----------
    at : int
        Where all threads are that are alive, if they are not apart.
    apart : array of int or None
        Where each is, if they are.
    alive : array of bool
        Those that have not ended. As a mask it is this very array where all of them do something.
    """

    block: Block
    index: int
    at: int = 0
    apart: Array | None = None
    alive: Array = field(default_factory=lambda: np.ones(LANES, np.bool_))
    is_done: bool = False
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

    def end(self, mask: Array) -> None:
        """Some threads end."""
        self.alive = self.alive & ~mask
        self.is_done = not self.alive.any()

    def are_all(self, mask: Array) -> bool:
        """Whether a mask holds all threads that are alive."""
        return mask is self.alive or bool(np.array_equal(mask & self.alive, self.alive))

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
        place = self.at if self.apart is None else int(self.apart[self.alive].min())
        self.is_polling = self.polled.get(place) == found
        self.polled[place] = found

    def _step(self) -> bool:
        """An instruction of those threads that are the furthest behind and need not wait."""
        if self.apart is None:
            return self._execute(self.at, self.alive)
        places = np.unique(self.apart[self.alive])
        return any(self._execute(int(p), (self.apart == p) & self.alive) for p in places)

    def _execute(self, place: int, lanes: Array) -> bool:
        """The instruction there, in these threads; False: they must wait."""
        instruction = self.block.grid.code[place]
        mask, some = lanes, True
        self.target = place + 1
        if instruction.predicate:
            mask = lanes & self.predicate(instruction.predicate)
            some = bool(mask.any())
            if np.array_equal(mask, lanes):
                mask = lanes
        if some and not execute(self, instruction, mask):
            return False
        if self.apart is None and (mask is lanes or self.target == place + 1):
            self.at = self.target
            return True
        apart = np.full(LANES, place) if self.apart is None else self.apart
        apart[lanes] = place + 1
        apart[mask] = self.target
        left = apart[self.alive]
        if (left == left[:1]).all():
            self.at, self.apart = int(left[0]) if left.size else place, None
        else:
            self.apart = apart
        return True

    # ---- operands ------------------------------------------------------------------------------

    def predicate(self, name: str) -> Array:
        return ~self.registers[name[1:]] if name[0] == "!" else self.registers[name]

    def get(self, operand: str, kind: str = "u32") -> Array:
        """An operand of all threads, as a type."""
        data = self.registers.get(operand)
        if data is None:
            if operand in self.special:
                return self.special[operand].view(TYPES[kind])
            assert operand[0] != "%", f"{operand} is read before written"
            return _literal(operand, kind)
        dtype = TYPES[kind]
        if data.dtype == dtype or data.dtype == _BOOL:
            return data
        if data.itemsize > dtype.itemsize:  # the low bits
            data = data.astype(f"u{dtype.itemsize}")
        return data.view(dtype)

    def set(self, name: str, value: Array, mask: Array) -> None:
        """Writes a register in some threads."""
        dtype = _WIDTHS.get(name[:2], _WORD)
        if value.dtype != dtype:
            value = np.ascontiguousarray(value).view(dtype)
        register = self.registers.get(name)
        if register is None:
            register = self.registers[name] = np.zeros(LANES, dtype)
        if mask is self.alive:
            register[:] = value
        else:
            np.copyto(register, value, where=mask)

    def one(self, operand: str, mask: Array) -> int:
        """An operand of the only thread, or of all alike."""
        return _alike(self.get(operand, "s32")[mask], operand)

    def places(self, operand: str) -> Array:
        """An address in shared memory, ``[%r1+8]``."""
        base, _, more = operand.strip("[]").partition("+")
        wide = base.startswith("%d")
        start = self.get(base, "u64" if wide else "u32").astype(np.int64)
        return start + int(more or 0)

    def barrier(self, operand: str, mask: Array) -> Barrier:
        return self.block.barriers[_alike(self.places(operand)[mask], operand)]


def _alike(values: Array, operand: str) -> int:
    assert (values == values[0]).all(), f"{operand} differs between threads"
    return int(values[0])


@cache
def _literal(operand: str, kind: str) -> Array:
    """A number in the text, for all threads."""
    dtype = TYPES[kind]
    if operand.startswith("0f"):
        value = np.full(LANES, int(operand[2:], 16), np.uint32).view(dtype)
    else:
        bits = 8 * dtype.itemsize
        value = np.full(LANES, int(operand, 0) & ((1 << bits) - 1), f"u{bits // 8}").view(dtype)
    value.flags.writeable = False
    return value

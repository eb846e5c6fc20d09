"""Tiles of positions x channels: what kernels share that give every position its own elements.

A result ``[N, *size, C]`` is positions and channels. A program does some of both; channels lie
along the threads, so that a thread loads 16 bytes at a time wherever in the source they lie.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Tactic
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import TritonKernel
from planish.targets.cuda.kernels.fused import Access, decompose, store
from planish.targets.cuda.kernels.patch_cost import channel_blocks
from planish.targets.restoring import Allowed

_POWERS = tuple(1 << n for n in range(13))


@dataclass(frozen=True)
class Positions:
    """Names of the positions and channels of a tile.

    Attributes
    ----------
    index : tuple of str
        One per axis of the result but the channels', each ``[rows, 1]``; places that do not exist
        are the last one.
    exists : str
        Which of them exist.
    channel : str
        The channels ``[rows, block]``.
    inside : str or None
        Which of them exist; None: all.
    """

    index: tuple[str, ...]
    exists: str
    channel: str
    inside: str | None

    @property
    def whole(self) -> tuple[str, ...]:
        """The index of the result."""
        return (*self.index, self.channel)

    @property
    def masks(self) -> tuple[str | None, ...]:
        """Which elements of the result exist, an axis each."""
        return (*[self.exists] * len(self.index), self.inside)


@dataclass(frozen=True)
class PositionsKernel(TritonKernel):
    """A program does `rows` positions x `block` channels. First parameter: the positions.

    Attributes
    ----------
    shape : tuple of int
        Of the result, the first extent -1.
    rows, block : int
    """

    shape: tuple[int, ...]
    rows: int
    block: int

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @abstractmethod
    def compute(self, k: Source, at: Positions) -> None:
        """Computes and stores the elements of a tile."""

    def write(self, k: Source) -> None:
        channels = self.shape[-1]
        blocks = -(-channels // self.block)
        program = k.let("program", "tl.program_id(0)")
        first = f"{program} % {blocks} * {self.block} + " if blocks > 1 else ""
        channel = f"({first}tl.arange(0, {self.block}))[None, :]"
        channel = k.let("channel", f"tl.broadcast_to({channel}, ({self.rows}, {self.block}))")
        inside = k.let("inside", f"{channel} < {channels}") if channels % self.block else None
        row = f"({program} // {blocks} * {self.rows} + tl.arange(0, {self.rows}))[:, None]"
        row = k.let("row", row)
        exists = k.let("exists", f"{row} < n0")
        # what is beyond the last position reads that one again, so that only stores need a mask
        index = decompose(k, k.let("row", f"tl.minimum({row}, n0 - 1)"), self.shape[:-1])
        self.compute(k, Positions(tuple(index), exists, channel, inside))

    def store(
        self, k: Source, pointer: int, accesses: Sequence[Access], at: Positions, *values: str
    ) -> None:
        """Stores elements of several outputs, the first of which has that pointer."""
        for number, (access, value) in enumerate(zip(accesses, values, strict=True)):
            store(k, pointer + number, access, at.whole, at.masks, value)


@dataclass(frozen=True)
class PositionsTactic(AnchoredTactic):
    """A program does `rows` positions of the result x `channels`."""

    rows: int
    channels: int
    warps: int

    def accepts(self, binding: Binding) -> bool:
        return super().accepts(binding) and math.prod(self.result_shape(binding)[:-1]) < 1 << 30

    def programs(self, shape: Sequence[int]) -> int:
        """How many programs a result takes."""
        return -(-math.prod(shape[:-1]) // self.rows) * -(-shape[-1] // self.channels)


class PositionsFamily(Family):
    """Offers a `PositionsTactic`: threads that load 16 bytes each, for several numbers of them."""

    tactic: ClassVar[type[PositionsTactic]]
    allowed: ClassVar[Allowed] = {
        "rows": _POWERS,
        "channels": _POWERS[:9],
        "warps": (1, 2, 4, 8),
    }

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        channels = task.outputs[0].type.bind(binding.symbols)[-1]
        vector = max(1, 16 // task.inputs[0].dtype.size)
        block = channel_blocks(channels, vector)[-1]
        for warps, vectors in ((4, 1), (2, 1), (1, 1), (4, 2)):
            rows = max(1, 32 * warps * vectors * vector // block)
            yield self.tactic(task, rows, block, warps)

"""Kernels of sliding windows that mix no channels: depthwise convolution and pooling.

A program computes `patches` rectangles of neighbouring output positions (the tile) x `block`
channels. The tile is unrolled: every input element that its windows see is loaded once and given
to each of them. Channels lie along the threads, so that a thread loads 16 bytes at a time.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from planish.fusion.expression import identity
from planish.fusion.task import Fused, Task
from planish.graph.graph import Value
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Launch, Pointer
from planish.targets.cuda.codegen.elementwise import emit, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer as Argument
from planish.targets.cuda.kernel import TritonKernel
from planish.targets.cuda.kernels.fused import (
    Work,
    apply,
    bind_work,
    decompose,
    load,
    offset,
    whole_mask,
)

UNROLLED = 64
"""Loads of a tile that are unrolled; larger windows are looped over."""


@dataclass(frozen=True)
class Windows:
    """Sliding windows; each attribute has one number per spatial axis.

    Attributes
    ----------
    extents, sizes : tuple of int
        Of the input and of the output.
    window, strides, dilations : tuple of int
    before : tuple of int
        Padding before the first element.
    """

    extents: tuple[int, ...]
    sizes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    def reach(self, axis: int, tile: int) -> list[int]:
        """What the windows of neighbouring positions see, counted from the first one's start."""
        stride, dilation = self.strides[axis], self.dilations[axis]
        taps = range(self.window[axis])
        return sorted({u * stride + t * dilation for u in range(tile) for t in taps})

    def tiles(self, tile: Sequence[int]) -> tuple[int, ...]:
        """How many tiles cover the output."""
        return tuple(-(-size // n) for size, n in zip(self.sizes, tile, strict=True))

    def is_unrolled(self, tile: Sequence[int]) -> bool:
        """Whether a tile's loads are few enough to write them all out."""
        return math.prod(len(self.reach(a, n)) for a, n in enumerate(tile)) <= UNROLLED


@dataclass(frozen=True)
class PatchKernel(TritonKernel):
    """Combines what each window sees. Parameter: the tiles of all images together.

    Pointers: the source's, `extra`, the work's.
    """

    reads: Work
    work: Work
    windows: Windows
    tile: tuple[int, ...]
    patches: int
    block: int

    @property
    def extra(self) -> tuple[Argument, ...]:
        """Pointers of the kernel's own, after the source's."""
        return ()

    @property
    def pointers(self) -> tuple[Argument, ...]:
        return (*self.reads.pointers, *self.extra, *self.work.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return self.work.shape[-1]

    @property
    def fill(self) -> str:
        """What lies outside of the image."""
        return "0"

    @abstractmethod
    def start(self) -> str:
        """An accumulator before the first element."""

    def tap(self, k: Source, place: Sequence[str], channel: str, mask: str | None) -> str:
        """What the kernel needs of a place in the window: a variable's name."""
        return ""

    def element(self, k: Source, x: str) -> str:
        """An element as `step` takes it."""
        return x

    @abstractmethod
    def step(self, accumulator: str, x: str, tap: str) -> str:
        """The accumulator after one more element."""

    def result(self, k: Source, accumulator: str, position: Sequence[str]) -> str:
        """What the windows at a position (one name per spatial axis) give."""
        return accumulator

    def source_channel(self, k: Source, channel: str) -> str:
        """The channel that is read for one of the result's."""
        return channel

    def write(self, k: Source) -> None:
        windows, tile = self.windows, self.tile
        blocks = -(-self.channels // self.block)
        program = k.let("program", "tl.program_id(0)")
        first = f"{program} % {blocks} * {self.block} + " if blocks > 1 else ""
        channel = f"({first}tl.arange(0, {self.block}))[None, :]"
        # of the whole shape: what all patches share is then loaded where it is needed, widely
        channel = k.let("channel", f"tl.broadcast_to({channel}, ({self.patches}, {self.block}))")
        even = self.channels % self.block == 0
        inside = None if even else k.let("inside", f"{channel} < {self.channels}")
        number = f"{program} // {blocks} * {self.patches} + tl.arange(0, {self.patches})"
        number = k.let("number", f"({number})[:, None]")
        exists = k.let("exists", f"{number} < n0")
        # what is beyond the last tile reads that one again, so that only stores need the mask
        number = k.let("tile", f"tl.minimum({number}, n0 - 1)")
        image, *corner = decompose(k, number, (-1, *windows.tiles(tile)), "tile")
        corner = [c if n == 1 else k.let("corner", f"{c} * {n}") for c, n in zip(corner, tile)]  # noqa: B905
        outputs = [self._outputs(k, a, corner[a]) for a in range(len(tile))]
        shape = f"({self.patches}, {self.block})"
        k.line(f"shape = tl.full({shape}, 0, tl.int32)")
        sums = {
            place: k.let("sum", self.start())
            for place in itertools.product(*(range(n) for n in tile))
        }
        write = self._unrolled if windows.is_unrolled(tile) else self._looped
        write(k, image, corner, channel, inside, sums)
        rows: list[tuple[list[str], list[str | None], str]] = []
        for place, accumulator in sums.items():
            position = [outputs[a][u][0] for a, u in enumerate(place)]
            masks = [outputs[a][u][1] for a, u in enumerate(place)]
            value = self.result(k, accumulator, position)
            rows.append(([image, *position, channel], [exists, *masks, inside], value))
        self._finish(k, rows)

    def _outputs(self, k: Source, axis: int, corner: str) -> list[tuple[str, str | None]]:
        """The output positions of a tile along an axis, and which of them exist."""
        size, tile = self.windows.sizes[axis], self.tile[axis]
        last = (-(-size // tile) - 1) * tile
        found: list[tuple[str, str | None]] = []
        for u in range(tile):
            name = k.let("out", f"{corner} + {u}") if u else corner
            found.append((name, k.let("is_out", f"{name} < {size}") if last + u >= size else None))
        return found

    def _origin(self, k: Source, axis: int, corner: str) -> str:
        """Where the first window of a tile starts."""
        stride, before = self.windows.strides[axis], self.windows.before[axis]
        return k.let("start", f"{corner} * {stride} - {before}")

    def _unrolled(
        self,
        k: Source,
        image: str,
        corner: Sequence[str],
        channel: str,
        inside: str | None,
        sums: dict[tuple[int, ...], str],
    ) -> None:
        windows, seen = self.windows, self._seen(k, corner)
        taps: dict[tuple[int, ...], str] = {}
        own = self.source_channel(k, channel)
        for choice in itertools.product(*seen):
            index = [image, *(name for _, name, _ in choice), own]
            masks = [None, *(mask for *_, mask in choice), inside]
            x = self.element(k, read_source(k, self.reads, index, masks, self.fill))
            for place, accumulator in sums.items():
                tap = []
                for axis, (step, *_) in enumerate(choice):
                    distance = step - place[axis] * windows.strides[axis]
                    number, rest = divmod(distance, windows.dilations[axis])
                    if rest or not 0 <= number < windows.window[axis]:
                        break
                    tap.append(number)
                else:
                    key = tuple(tap)
                    if key not in taps:
                        taps[key] = self.tap(k, [str(t) for t in key], channel, inside)
                    k.line(f"{accumulator} = {self.step(accumulator, x, taps[key])}")

    def _seen(self, k: Source, corner: Sequence[str]) -> list[list[tuple[int, str, str | None]]]:
        """For each axis what a tile's windows see: the step from the first one's start, the name of
        the place, and whether it lies in the image.
        """
        seen = []
        for axis, n in enumerate(self.tile):
            origin = self._origin(k, axis, corner[axis])
            places = []
            for step in self.windows.reach(axis, n):
                name = k.let("at", f"{origin} + {step}") if step else origin
                places.append((step, name, self._is_inside(k, axis, step, name)))
            seen.append(places)
        return seen

    def _is_inside(self, k: Source, axis: int, step: int, name: str) -> str | None:
        """Whether a place lies in the image; None where all tiles' do."""
        windows = self.windows
        extent, stride, n = windows.extents[axis], windows.strides[axis], self.tile[axis]
        least = step - windows.before[axis]
        most = least + (-(-windows.sizes[axis] // n) - 1) * n * stride
        tests = [f"({name} >= 0)"] * (least < 0) + [f"({name} < {extent})"] * (most >= extent)
        return k.let("is_in", " & ".join(tests)) if tests else None

    def _looped(
        self,
        k: Source,
        image: str,
        corner: Sequence[str],
        channel: str,
        inside: str | None,
        sums: dict[tuple[int, ...], str],
    ) -> None:
        windows = self.windows
        own = self.source_channel(k, channel)
        starts: dict[tuple[int, int], str] = {}
        for axis, n in enumerate(self.tile):
            starts[axis, 0] = self._origin(k, axis, corner[axis])
            for u in range(1, n):
                step = u * windows.strides[axis]
                starts[axis, u] = k.let("start", f"{starts[axis, 0]} + {step}")
        with ExitStack() as loops:
            taps = []
            for window in windows.window:
                taps.append(k.name("tap"))
                loops.enter_context(k.block(f"for {taps[-1]} in range({window}):"))
            weight = self.tap(k, taps, channel, inside)
            for place, accumulator in sums.items():
                at: list[str] = []
                masks: list[str | None] = [None]
                for axis, u in enumerate(place):
                    moved = f"{taps[axis]} * {windows.dilations[axis]}"
                    name = k.let("at", f"{starts[axis, u]} + {moved}")
                    at.append(name)
                    test = f"({name} >= 0) & ({name} < {windows.extents[axis]})"
                    masks.append(k.let("is_in", test))
                index = [image, *at, own]
                x = self.element(k, read_source(k, self.reads, index, [*masks, inside], self.fill))
                k.line(f"{accumulator} = {self.step(accumulator, x, weight)}")

    def _finish(self, k: Source, rows: Sequence[tuple[list[str], list[str | None], str]]) -> None:
        """Applies the expression at every position; what several of them read is read once."""
        work = self.work
        first = len(self.reads.pointers) + len(self.extra)
        known: dict[object, str] = {}
        results = []
        for index, masks, value in rows:
            leaves: list[str | None] = []
            pointer = first
            for leaf, item in zip(work.expression.leaves, work.leaves, strict=True):
                if item is None:
                    leaves.append(None if leaf.constant is not None else value)
                    continue
                axes = [a for a, stride in enumerate(item.strides) if stride]
                key = (pointer, *(index[a] for a in axes))
                if key not in known:
                    # tiles that do not exist read the last one's
                    known[key] = load(k, pointer, item, index, [None, *masks[1:]])
                leaves.append(known[key])
                pointer += 1
            results.append(emit(k, work.expression, leaves, work.facts))
        place = first + sum(item is not None for item in work.leaves)
        for (index, masks, _), values in zip(rows, results, strict=True):
            mask = whole_mask(masks)
            for number, (value, item) in enumerate(zip(values, work.outputs, strict=True)):
                where = f"p{place + number} + ({offset(item, index)} + shape)"
                stored = f"({value}).to({storage_type(item.pointer.dtype)})"
                k.line(f"tl.store({where}, {stored}, mask={mask})")


def read_source(
    k: Source,
    work: Work,
    index: Sequence[str],
    masks: Sequence[str | None],
    fill: str = "0",
) -> str:
    """Elements of the anchor's input 0; `fill` where a mask (one for each axis) does not hold.

    The prologue is applied before: what lies outside is that of its result.
    """
    (x,) = apply(k, work, 0, index, masks)
    mask = whole_mask(masks)
    if mask is None:
        return x
    if fill == "0" and work.expression.is_copy:
        (item,) = work.leaves
        assert item is not None
        if all(stride for stride, test in zip(item.strides, masks, strict=True) if test):
            return x  # masked elements are loaded as 0
    return k.let("x", f"tl.where({mask}, {x}, {fill})")


# ---- when binding ------------------------------------------------------------------------------


def bind_source(task: Task, binding: Binding) -> tuple[Work, tuple[Value, ...]]:
    """The anchor's input 0 as kernels read it, the prologue applied: work without outputs.

    Its axes are not merged, so that an index is one number per axis of the input.
    """
    assert task.anchor is not None
    fed = task.anchor.inputs[0]
    fused = task.prologue or Fused(identity(fed.dtype), (0,))
    shape = fed.type.bind(binding.symbols)
    work, _, values = bind_work(task, fused, (), binding, shape, range(len(shape)))
    return work, values


@dataclass(frozen=True)
class PatchTactic(AnchoredTactic):
    """Tiles of `rows` x `columns`; a program does `patches` of them x `channels`."""

    rows: int
    columns: int
    patches: int
    channels: int
    warps: int

    def windows(self, binding: Binding) -> Windows:
        """The windows at these shapes."""
        raise NotImplementedError

    def tile(self, spatial: int) -> tuple[int, ...]:
        """The tile per spatial axis."""
        return (*(1,) * (spatial - 2), self.rows, self.columns)[-spatial:]

    def accepts(self, binding: Binding) -> bool:
        return super().accepts(binding) and math.prod(self.result_shape(binding)[:-1]) < 1 << 30

    def kernel(
        self, source: Work, work: Work, windows: Windows, binding: Binding
    ) -> tuple[PatchKernel, tuple[Pointer, ...]]:
        """The kernel, and the values behind its `extra` pointers."""
        raise NotImplementedError

    def launches(self, binding: Binding) -> list[Launch]:
        task, shape = self.task, self.result_shape(binding)
        if 0 in shape:
            return []
        windows = self.windows(binding)
        source, reads = bind_source(task, binding)
        axes = range(len(shape))
        work, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape, axes)
        kernel, extra = self.kernel(source, work, windows, binding)
        tiles = shape[0] * math.prod(windows.tiles(kernel.tile))
        programs = -(-tiles // self.patches) * -(-shape[-1] // self.channels)
        return [Launch(kernel, (*reads, *extra, *values), (tiles,), programs)]


RANGES = {
    "rows": (1, 2, 3, 4, 8),
    "columns": (1, 2, 3, 4, 8),
    "patches": tuple(1 << n for n in range(10)),
    "channels": tuple(1 << n for n in range(11)),
    "warps": (1, 2, 4, 8),
}
"""The possible parameters of a `PatchTactic`."""

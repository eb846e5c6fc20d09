"""Depthwise convolutions of signed bytes by dot products of four of them.

A register holds four channels of a pixel; the instruction for dot products (`dp4a`) wants four
pixels of a channel. Neighbouring pixels of a row are turned so, eight byte permutations for four of
them and four channels, which serve all outputs of the tile that see them; filters are packed for
every way in which a window may lie over four pixels. A 3x3 window then takes three products of an
output instead of nine, and no conversion of what it reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.targets.cuda.codegen.source import COMPILED, Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Access, load
from planish.targets.cuda.kernels.patches import PatchKernel, Windows, read_source

WIDTH = 4
"""Pixels of a dot product."""


@dataclass(frozen=True)
class DepthwiseDotKernel(PatchKernel):
    """One specialisation. `filters` has a stride per axis of the window but the last, per way of
    `offsets`, and per channel.
    """

    family = "depthwise_dots"

    filters: Access

    @property
    def extra(self) -> tuple[Pointer, ...]:
        return (self.filters.pointer,)

    def start(self) -> str:
        return f"tl.full(({self.patches}, {self.block}), 0, tl.int32)"

    def step(self, accumulator: str, x: str, tap: str) -> str:
        shifts = [24 - 8 * i for i in range(WIDTH)]
        terms = [f"(({x} << {n}) >> 24) * (({tap} << {n}) >> 24)" for n in shifts]
        how = f"[{x}, {tap}, {accumulator}], dtype=tl.int32, is_pure=True, pack=1"
        asm = '"dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r"'
        plain = f"{accumulator} + {' + '.join(terms)}"
        return f"{plain}{COMPILED}tl.inline_asm_elementwise({asm}, {how})"

    def _unrolled(
        self,
        k: Source,
        image: str,
        corner: Sequence[str],
        channel: str,
        inside: str | None,
        sums: dict[tuple[int, ...], str],
    ) -> None:
        windows, tile = self.windows, self.tile
        stride = windows.strides[-1]
        ways = offsets(windows.window[-1], stride, tile[-1])
        seen = self._seen(k, corner)
        own = self.source_channel(k, channel)
        taps: dict[tuple[int, ...], str] = {}
        for outer in itertools.product(*seen[:-1]):
            pixels = []
            for choice in ((*outer, pixel) for pixel in seen[-1]):
                index = [image, *(name for _, name, _ in choice), own]
                masks = [None, *(mask for *_, mask in choice), inside]
                pixels.append(read_source(k, self.reads, index, masks, self.fill))
            steps = [step for step, *_ in outer]
            for first in range(0, len(pixels), WIDTH):
                turned = _turned(k, pixels[first : first + WIDTH])
                for place, total in sums.items():
                    way = first - place[-1] * stride
                    rows = self._rows(steps, place)
                    if rows is None or way not in ways:
                        continue
                    key = (*rows, ways.index(way))
                    if key not in taps:
                        index = [*map(str, key), channel]
                        taps[key] = load(k, len(self.reads.pointers), self.filters, index, inside)
                    k.line(f"{total} = {self.step(total, turned, taps[key])}")

    def _rows(self, steps: Sequence[int], place: tuple[int, ...]) -> list[int] | None:
        """The taps, but along the last axis, that lie on these steps from a tile's corner."""
        found = []
        for axis, step in enumerate(steps):
            distance = step - place[axis] * self.windows.strides[axis]
            number, rest = divmod(distance, self.windows.dilations[axis])
            if rest or not 0 <= number < self.windows.window[axis]:
                return None
            found.append(number)
        return found


def serves(windows: Windows, tile: Sequence[int]) -> bool:
    """Whether the kernel is for such windows: those whose taps lie side by side."""
    stride, dilation, taps = windows.strides[-1], windows.dilations[-1], windows.window[-1]
    return dilation == 1 < taps and stride <= taps and windows.is_unrolled(tile)


def offsets(taps: int, stride: int, tile: int) -> list[int]:
    """The ways in which windows of a tile's outputs lie over four pixels: how many taps are before
    the first of these.
    """
    reach = (tile - 1) * stride + taps
    ways = {first - u * stride for u in range(tile) for first in range(0, reach, WIDTH)}
    return sorted(way for way in ways if -WIDTH < way < taps)


def packed(filters: np.ndarray, stride: int, tile: int) -> np.ndarray:
    """Filters ``[*window, C]`` of int8 as the kernel reads them.

    Returns
    -------
    array of int32, ``[*window but the last, ways, C]``
        Four taps each, the first one in the last bits.
    """
    *outer, taps, channels = filters.shape
    ways = offsets(taps, stride, tile)
    found = np.zeros((*outer, len(ways), channels, WIDTH), np.int8)
    for number, way in enumerate(ways):
        for i in range(WIDTH):
            if 0 <= way + i < taps:
                found[..., number, :, i] = filters[..., way + i, :]
    return found.view("<i4")[..., 0]


def _turned(k: Source, pixels: Sequence[str]) -> str:
    """Four pixels of each channel as an int32; of fewer the last ones again, which meet zeros."""
    pixels = [*pixels, *[pixels[-1]] * (WIDTH - len(pixels))]
    bits = [f"{x}.to(tl.uint8, bitcast=True).to(tl.int32)" for x in pixels]
    plain = " | ".join(f"({text} << {8 * i})" for i, text in enumerate(bits))
    half = "prmt.b32 {0}, ${2}, ${3}, 0x5140; prmt.b32 {1}, ${2}, ${3}, 0x7362;"
    pairs = half.format("a", "b", 4, 5) + " " + half.format("c", "d", 6, 7)
    whole = "prmt.b32 $0, a, c, 0x5410; prmt.b32 $1, a, c, 0x7632; "
    whole += "prmt.b32 $2, b, d, 0x5410; prmt.b32 $3, b, d, 0x7632;"
    asm = f"{{ .reg .b32 a, b, c, d; {pairs} {whole} }}"
    how = f"[{', '.join(pixels)}], dtype=tl.int32, is_pure=True, pack=4"
    compiled = f'tl.inline_asm_elementwise("{asm}", "=r,=r,=r,=r,r,r,r,r", {how})'
    return k.either("turned", plain, compiled)

"""How the matrix kernel's work is cut: everything is covered, and not in crumbs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.targets.cpu.kernels.blocking import ceil, choose_blocking
from planish.targets.cpu.kernels.geometry import Geometry, Place
from planish.targets.cpu.machine import host


def geometry(rows: int, columns: int, depth: int, channels: int, window: int = 1) -> Geometry:
    place = Place(rows * columns * depth, 0, columns * depth, depth)
    return Geometry(
        batch=1,
        rows=rows,
        columns=columns,
        groups=1,
        depth=depth,
        channels=channels,
        height=rows,
        width=columns,
        window=(window, window),
        strides=(1, 1),
        dilations=(1, 1),
        pads=(window // 2, window // 2),
        padded=window > 1,
        source=place,
        outputs=(place,),
        operands=(),
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 300),
    depth=st.integers(1, 600),
    channels=st.integers(1, 600),
    window=st.sampled_from([1, 3]),
    pixels=st.integers(1, 30),
    vectors=st.integers(1, 6),
)
def test_tasks_cover_everything(rows, columns, depth, channels, window, pixels, vectors) -> None:
    g = geometry(rows, columns, depth, channels, window)
    cut = choose_blocking(g, pixels, vectors, host())
    assert cut.row_tasks == ceil(rows, cut.rows)
    assert cut.column_tasks == ceil(columns, cut.columns)
    assert cut.channel_tasks == ceil(ceil(channels, vectors * host().lanes), cut.blocks)


def test_large_work_gives_every_core_tasks() -> None:
    machine = replace(host(), cores=8)
    cut = choose_blocking(geometry(56, 56, 64, 64, 3), 14, 2, machine)
    assert cut.row_tasks * cut.column_tasks * cut.channel_tasks >= 8


def test_small_work_stays_in_one_piece() -> None:
    cut = choose_blocking(geometry(1, 4, 8, 8), 4, 1, replace(host(), cores=64))
    assert cut.row_tasks * cut.column_tasks * cut.channel_tasks == 1


@pytest.mark.parametrize("batches", ["dense", "apart", "strided columns"])
def test_flattening_keeps_the_pixels(batches: str) -> None:
    g = replace(geometry(6, 7, 8, 16), batch=3)
    if batches == "apart":
        g = replace(g, source=replace(g.source, batch=g.source.batch + 64))
    if batches == "strided columns":
        g = replace(g, source=replace(g.source, column=16))
    flat = g.flattened()
    assert flat.pixels == g.pixels
    expected = {"dense": (1, 1, 126), "apart": (1, 3, 42), "strided columns": (1, 18, 7)}
    assert (flat.batch, flat.rows, flat.columns) == expected[batches]

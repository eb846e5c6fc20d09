"""Shapes, sizes and pairs on the command line."""

from __future__ import annotations

import pytest
import typer

from planish.cli.shapes import parse_batches, parse_bytes, parse_inputs, parse_pairs, parse_shape
from planish.profile import Profile


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("8x224x224x3", (8, 224, 224, 3)),
        ("8,224,224,3", (8, 224, 224, 3)),
        ("Nx224x224x3", ("N", 224, 224, 3)),
        ("?x3", (None, 3)),
        ("scalar", ()),
        ("5", (5,)),
        ("1..32x3", Profile((1, 3), (1, 3), (32, 3))),
        ("1:8:32x3", Profile((1, 3), (8, 3), (32, 3))),
        ("1:8:32x16..128", Profile((1, 16), (8, 16), (32, 128))),
    ],
)
def test_shapes(text: str, shape: object) -> None:
    assert parse_shape(text) == shape
    assert parse_inputs([f"x={text}"]) == {"x": shape}


def test_names_may_hold_an_equals_sign() -> None:
    assert parse_inputs(["a=b=2x3"]) == {"a=b": (2, 3)}


@pytest.mark.parametrize("text", ["", "8x", "8x-3", "2.5x3", "32..1x3", "Nx1..3", "8:1:32"])
def test_malformed_shapes(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_shape(text)


@pytest.mark.parametrize("specs", [["8x3"], ["=8x3"], ["x=2", "x=3"]])
def test_malformed_inputs(specs: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_inputs(specs)


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100), ("64MB", 64_000_000), ("64MiB", 64 << 20), ("1.5 GiB", 3 << 29), ("2k", 2000)],
)
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "64XB", "64 MBi"])
def test_malformed_bytes(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_bytes(text)


def test_pairs() -> None:
    assert parse_pairs(["a=b", "c=d=e"], "K=V") == {"a": "b", "c=d": "e"}
    with pytest.raises(typer.BadParameter, match="K=V"):
        parse_pairs(["a"], "K=V")


def test_batches() -> None:
    assert parse_batches("1, 8,1") == [1, 8]
    for text in ("", "0", "1,,2", "a"):
        with pytest.raises(typer.BadParameter):
            parse_batches(text)

"""Plan files that are none, are damaged, or come from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import planish
from helpers.plan_bytes import FIRST_LINE, join, split
from helpers.provoke.arguments import engine
from helpers.provoke.models import written
from helpers.provoke.registry import case


@cache
def whole() -> bytes:
    """The bytes of a plan."""
    return engine().serialize()


def load_changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Loads a plan whose header was changed, its checksums made right."""
    header, weights = split(whole())
    change(header)
    planish.load(written(folder / "model.plan", join(header, weights)))


@case("A plan file that does not exist")
def missing(folder: Path) -> None:
    planish.load(folder / "model.plan")


@case("A folder instead of a plan file")
def is_folder(folder: Path) -> None:
    planish.load(folder)


@case("An object instead of a plan file")
def no_path(folder: Path) -> None:
    planish.load(3)  # type: ignore[arg-type]


@case("A file that is no plan")
def no_plan(folder: Path) -> None:
    planish.load(written(folder / "model.plan", b"something else " * 30))


@case("An empty plan file")
def empty(folder: Path) -> None:
    planish.load(written(folder / "model.plan", b""))


@case("A plan cut short in its header")
def cut_header(folder: Path) -> None:
    planish.load(written(folder / "model.plan", whole()[: FIRST_LINE + 50]))


@case("A plan cut short in its weights")
def cut_weights(folder: Path) -> None:
    planish.load(written(folder / "model.plan", whole()[:-1]))


@case("A plan with a changed header")
def changed_header(folder: Path) -> None:
    data = bytearray(whole())
    data[FIRST_LINE + 10] ^= 1
    planish.load(written(folder / "model.plan", bytes(data)))


@case("A plan with changed weights")
def changed_weights(folder: Path) -> None:
    data = bytearray(whole())
    data[-1] ^= 1
    planish.load(written(folder / "model.plan", bytes(data)))


@case("A plan of a newer format")
def newer(folder: Path) -> None:
    planish.load(written(folder / "model.plan", join(*split(whole()), version=2)))


@case("A plan of an older format")
def older(folder: Path) -> None:
    planish.load(written(folder / "model.plan", join(*split(whole()), version=0)))


@case("A plan with an op that this version lacks")
def unknown_op(folder: Path) -> None:
    load_changed(folder, lambda h: h["graph"]["nodes"][0].update(op="teleport"))


@case("A plan of this machine with a tactic that it lacks")
def unknown_tactic(folder: Path) -> None:
    load_changed(folder, lambda h: h["steps"][0]["choices"][0].update(family="quantum"))


@case("A plan of this machine with an impossible tactic")
def impossible_tactic(folder: Path) -> None:
    load_changed(folder, lambda h: h["steps"][0]["choices"][0].update(parameters={"unroll": 3}))


@case("A plan for a device that is not here")
def other_device(folder: Path) -> None:
    load_changed(folder, lambda h: h["about"].update(device="npu:7", machine="elsewhere"))


@case("A plan of another machine")
def other_machine(folder: Path) -> None:
    load_changed(folder, lambda h: h["about"].update(machine="elsewhere"))


@case("A plan of another machine, with tactics that this one lacks")
def other_tactics(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["about"].update(machine="elsewhere")
        for step in header["steps"]:
            for choice in step["choices"]:
                choice["family"] = "quantum"

    load_changed(folder, change)

"""Models, data and labels that do not go with the engine that is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from helpers.engines import quick_engine
from helpers.onnx_graph import model, node
from helpers.provoke.arguments import addition
from helpers.provoke.registry import case
from planish.cli.images import read_labels
from planish.quantization import compare_layers

X = np.arange(8, dtype=np.float32).reshape(2, 4)
DATA = {"x": X, "z": X}


def compared(made: onnx.ModelProto, other: onnx.ModelProto | None = None, **options: Any) -> None:
    """Compares a model's engine with the same model, or with another one."""
    data = options.pop("data", DATA)
    compare_layers(other or made, quick_engine(made), data, progress=False, **options)


@case("An engine compared with another model")
def other_inputs(folder: Path) -> None:
    compared(addition(), model([node("Relu", "a", "y")], {"a": (np.float32, ["N", 4])}, ["y"]))


@case("An engine compared with a model of other layers")
def other_layers(folder: Path) -> None:
    shapes = {name: (np.float32, ["N", 4]) for name in "xz"}
    nodes = [node("Mul", "x z", "p", "product"), node("ReduceSum", "p", "y", "total", keepdims=0)]
    compared(addition(), model(nodes, shapes, ["y"]))


@case("Data to compare on that are empty")
def no_data(folder: Path) -> None:
    compared(addition(), data=[])


@case("Labels for outputs of which none holds scores")
def no_scores(folder: Path) -> None:
    nodes = [node("ReduceMax", "x axes", "y", "largest", keepdims=0)]
    made = model(nodes, {"x": (np.float32, ["N", 4])}, ["y"], {"axes": np.array([1])})
    compared(made, data=X, labels=[1, 2])


@case("Labels for an output that does not exist")
def other_output(folder: Path) -> None:
    compared(addition(), labels=[1, 2], output="w")


@case("Another number of labels than of samples to compare on")
def few_labels(folder: Path) -> None:
    compared(addition(), labels=[1, 2, 3])


@case("A file of labels that does not exist")
def no_labels(folder: Path) -> None:
    read_labels(str(folder / "labels.txt"), None)


def labels(folder: Path, text: str, files: list[Path] | None = None) -> None:
    (folder / "labels.txt").write_text(text)
    read_labels(str(folder / "labels.txt"), files)


@case("A file of labels with a line that holds none")
def no_number(folder: Path) -> None:
    labels(folder, "1\ncat\n")


@case("A file of labels that lacks an image")
def no_label(folder: Path) -> None:
    labels(folder, "a.png,1\n", [Path("a.png"), Path("b.png")])


@case("A file of labels by name for data without names")
def by_name(folder: Path) -> None:
    labels(folder, "a.png,1\n")

"""Real ONNX models against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from helpers.onnx_graph import compare
from planish.frontends.onnx import import_model

MODELS = ["squeezenet1.1", "resnet20_cifar10", "resnet56_cifar10", "nanodet_m_320_coco"]


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_real_model(name: str, data_dir: Path) -> None:
    path = data_dir / f"{name}.onnx"
    graph = import_model(path, allow_fallback=False)
    rng = np.random.default_rng(0)
    feeds = {
        v.name: rng.standard_normal(v.type.bind(dict.fromkeys(graph.symbols(), 2)), np.float32)
        for v in graph.inputs
    }
    compare(onnx.load(path), feeds, tolerance=1e-4)


@pytest.mark.data
def test_shape_arithmetic_disappears(data_dir: Path) -> None:
    graph = import_model(data_dir / "nanodet_m_320_coco.onnx")
    assert not {n.op.name for n in graph.nodes} & {"shape_of", "dims", "gather", "cast"}


@pytest.mark.data
def test_a_middle_tensor_of_a_real_model(data_dir: Path) -> None:
    path = data_dir / "squeezenet1.1.onnx"
    proto = onnx.load(path)
    middle = next(n.output[0] for n in proto.graph.node if n.op_type == "Concat")
    graph = import_model(path, inputs={"data": (1, 3, 64, 64)}, outputs=[middle])
    assert graph.output_names == [middle]
    assert graph.outputs[0].type.is_static

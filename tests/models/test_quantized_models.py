"""A real model that ONNX Runtime's tool quantized: the classes that ONNX Runtime finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import frameworks, images
from helpers.engines import quick_engine
from helpers.onnx_quantizer import FORMATS, quantized
from planish.ops import Conv, ConvInteger

pytestmark = pytest.mark.data


@pytest.mark.parametrize("style", FORMATS)
def test_resnet20(style: str, data_dir: Path, tmp_path: Path) -> None:
    x = images.channels_first(images.standardized(images.cifar(data_dir, 32)))
    path = quantized(data_dir / "resnet20_cifar10.onnx", x[:4], style, tmp_path)
    engine = quick_engine(path, precision="int8", allow_fallback=False)
    ops = [type(node.op) for node in engine.plan.graph.nodes]
    assert ops.count(ConvInteger) == 19 and ops.count(Conv) == 0
    assert len(engine.report.quantized) == 20
    reference = frameworks.onnx_model(path)
    want = np.concatenate([reference({"input": row[None]})["logits"] for row in x])
    have = engine(x)
    assert (have.argmax(1) == want.argmax(1)).mean() > 0.98
    assert np.abs(have - want).mean() < 0.01 * np.abs(want).max()

"""Architectures of torchvision, timm and Transformers, whose long form is a campaign
(`tests/campaigns/torch_architectures.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

SHORT = (
    "transformers BERT",
    "transformers GPT-2, one step",
    "transformers T5 encoder",
    "torchvision resnet18",
    "torchvision r3d_18",
    "torchvision ssdlite320_mobilenet_v3_large",
    "timm vit_tiny_patch16_224",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_converted_whole_and_equal(name: str, tmp_path: Path) -> None:
    for package in ("torch", "onnxscript", name.split()[0]):
        pytest.importorskip(package, reason=f"needs {package}: make test-torch")
    from helpers.torch_models import FAMILIES
    from helpers.torch_routes import outcomes

    (case,) = [c for c in FAMILIES[name.split()[0]]() if c.name == name]
    for route, outcome in outcomes(case, tmp_path).items():
        assert outcome.is_right, f"{route}: {outcome}"

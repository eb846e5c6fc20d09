"""The models of `gpu.py`: built with PyTorch, random weights, written as ONNX files.

    python benchmarks/gpu_models.py MODEL FOLDER

writes ``MODEL.onnx``, whose batch may change, and ``MODEL.pt``, the same weights for PyTorch. Batch
norms get the statistics of a random batch, scales and offsets are random, so that activations
neither vanish nor overflow in FP16.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

CALIBRATION_BATCH = 4

OFFSET = 0.7

SMALL = 1e-3
"""Parameters that are all smaller are taken for not yet trained."""


@dataclass(frozen=True)
class Input:
    """An input: its shape without the batch, and for integers what they are below."""

    shape: tuple[int, ...]
    below: int | None = None

    def sample(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Random data of that batch, on the CPU."""
        shape = (batch, *self.shape)
        if self.below is not None:
            return torch.randint(0, self.below, shape, generator=generator)
        return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Model:
    """How a model is made, and its inputs by name in the order of ``forward``."""

    make: Callable[[], nn.Module]
    inputs: Mapping[str, Input]
    note: str = ""


class Detector(nn.Module):
    """Backbone and heads of a detector of torchvision; boxes are not decoded or selected."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, image: Any) -> Any:
        found = self.head(list(self.backbone(image).values()))
        return found["bbox_regression"], found["cls_logits"]


class Encoder(nn.Module):
    """A text encoder of Transformers on unpadded texts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any) -> Any:
        return self.model(input_ids=ids).last_hidden_state


class Small(nn.Module):
    """A few layers, to try the script itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Any) -> Any:
        x = self.stem(image)
        return self.head(torch.relu(x + self.body(x)).mean((2, 3)))


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = importlib.import_module("torchvision.models")
        return getattr(models, name)(weights=None, **arguments)

    return make


def _ssd() -> nn.Module:
    detection = importlib.import_module("torchvision.models.detection")
    return Detector(
        detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    )


def _bert() -> nn.Module:
    t = importlib.import_module("transformers")
    return Encoder(t.BertModel(t.BertConfig(), add_pooling_layer=False))


def _image(size: int = 224) -> dict[str, Input]:
    return {"image": Input((3, size, size))}


MODELS: dict[str, Model] = {
    "resnet50": Model(_torchvision("resnet50"), _image()),
    "bert": Model(_bert, {"ids": Input((128,), below=30522)}, "BERT-base, 128 tokens, no mask"),
    "mobilenetv2": Model(_torchvision("mobilenet_v2"), _image()),
    "vgg16": Model(_torchvision("vgg16"), _image()),
    "inceptionv3": Model(
        _torchvision("inception_v3", aux_logits=False, init_weights=False), _image(299)
    ),
    "densenet121": Model(_torchvision("densenet121"), _image()),
    "efficientnetb0": Model(_torchvision("efficientnet_b0"), _image()),
    "vit_b_16": Model(_torchvision("vit_b_16"), _image()),
    "ssd_mobilenetv3": Model(_ssd, _image(320), "SSDLite320, backbone and heads, no box selection"),
    "small": Model(Small, _image(32), "to try the script"),
}
"""By name; "small" only where it is asked for."""


def samples(model: Model, batch: int, seed: int) -> list[torch.Tensor]:
    """Random inputs on the CPU, in the order of ``forward``."""
    generator = torch.Generator().manual_seed(seed)
    return [i.sample(batch, generator) for i in model.inputs.values()]


def create(name: str, weights: Path | None = None) -> nn.Module:
    """The module in evaluation mode, with weights from a file if there is one."""
    torch.manual_seed(0)
    module = MODELS[name].make().eval()
    if weights is not None:
        module.load_state_dict(torch.load(weights, weights_only=True, mmap=True))
    return module.requires_grad_(False)


def settle(module: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Random scales and offsets; then the statistics of a batch for batch norms.

    Offsets of batch norms lie above 0: around it, where half of the activations are cut off, each
    layer of a random network amplifies the rounding of those before, and PyTorch's own result in
    FP16 is off by percents.

    Parameters that start at zero or next to it (a head, a class token, biases) become random too:
    otherwise the output would not depend on the input, and FP16 could not hold them.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _BatchNorm | nn.LayerNorm):
                part.weight.uniform_(0.7, 1.3)
                part.bias.normal_(OFFSET if isinstance(part, _BatchNorm) else 0.0, 0.1)
        for parameter in module.parameters():
            if parameter.abs().max() < SMALL:
                parameter.normal_(0, 0.05)
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        if norms:
            module(*inputs)
    module.eval()


def export(name: str, folder: Path) -> Path:
    """Writes ``NAME.onnx`` and ``NAME.pt`` into a folder.

    Raises
    ------
    Exception
        PyTorch's exporter cannot export the model.
    """
    model = MODELS[name]
    module = create(name)
    settle(module, samples(model, CALIBRATION_BATCH, seed=1))
    torch.save(module.state_dict(), folder / f"{name}.pt")
    path = folder / f"{name}.onnx"
    batch = torch.export.Dim("N", min=1, max=4096)
    torch.onnx.export(
        module,
        tuple(samples(model, 2, seed=2)),
        str(path),
        input_names=list(model.inputs),
        dynamic_shapes=tuple({0: batch} for _ in model.inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path


def main() -> None:
    """Exports one model."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(2)
    start = time.perf_counter()
    path = export(name, folder)
    size = path.stat().st_size / 1e6
    print(f"{path.name}: {size:.0f} MB in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

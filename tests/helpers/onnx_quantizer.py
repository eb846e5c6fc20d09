"""Models quantized by ONNX Runtime's own tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

FORMATS = ("QDQ", "QOperator")


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, data: np.ndarray) -> None:
        self._batches: Iterator[Any] = iter([{name: row[None]} for row in data])

    def get_next(self) -> Any:
        return next(self._batches, None)


def quantized(path: Path, data: np.ndarray, style: str, folder: Path) -> Path:
    """A file in `folder`: the model with levels for all tensors, and for each filter's weights.

    Weights have seven bits: ONNX Runtime's sums saturate on CPUs without 8-bit dot products.
    """
    ready, made = folder / "ready.onnx", folder / f"{path.stem}_{style}.onnx"
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(made),
        _Reader(onnx.load(str(ready)).graph.input[0].name, data),
        quant_format=QuantFormat[style],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return made

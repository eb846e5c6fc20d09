"""Models of one operator of the domain com.microsoft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from helpers.onnx_graph import model, node


def contrib_model(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    outputs: str = "y",
    constant: Sequence[int] = (),
    domain: str = "com.microsoft",
    **attributes: Any,
) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]]:
    names = [f"x{i}" if a is not None else "_" for i, a in enumerate(inputs)]
    arrays = {n: np.asarray(a) for n, a in zip(names, inputs, strict=True) if a is not None}
    fixed = {f"x{i}": arrays.pop(f"x{i}") for i in constant}
    one = node(op_type, " ".join(names), outputs, domain=domain, **attributes)
    declared = {n: (a.dtype, a.shape) for n, a in arrays.items()}
    wanted = [n for n in outputs.split() if n != "_"]
    proto = model([one], declared, wanted, fixed)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto, arrays

"""The ways of a PyTorch module into an engine, compared with PyTorch and ONNX Runtime."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import planish
from helpers.torch_models import Case
from planish.frontends.torch.convert import trace

BATCHES = (1, 3)

ROUNDING = 1e-5
"""Differences by an output's scale that are no matter."""

MAGNIFIED = 5
"""And how many times as far from PyTorch as ONNX Runtime is an engine may be."""


@dataclass(frozen=True)
class Outcome:
    """What an engine is, and the largest differences by the scale of the output."""

    layers: int
    host_steps: int
    to_pytorch: float
    to_runtime: float
    """To ONNX Runtime, which runs the exported file; NaN without one."""
    runtime_to_pytorch: float

    @property
    def is_right(self) -> bool:
        """Whether differences are those of rounding, which ONNX Runtime has as well."""
        least = np.fmax(ROUNDING, MAGNIFIED * self.runtime_to_pytorch)
        return bool(self.to_pytorch <= least) and not self.host_steps


@torch.no_grad()
def outcomes(case: Case, folder: Path) -> dict[str, Outcome]:
    """Of the engine of a module's ``program``, where it can be traced, and of its ONNX ``file``."""
    torch.manual_seed(0)
    module = case.make()
    case = _with_parameters(case, module)
    enliven(module, case)
    calls = [feeds(case, number) for number in BATCHES]
    truth = [_leaves(module(**_tensors(call))) for call in calls]
    path = folder / "model.onnx"
    found = {}
    if case.recorded:
        record(module, case, path)
    else:
        program = trace(torch, module, case.inputs)
        torch.onnx.export(program, dynamo=True, verbose=False).save(str(path), external_data=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    told = [session.run(names, call) for call in calls]
    del session
    sources = {"file": path} if case.recorded else {"program": program, "file": path}
    for route, source in sources.items():
        engine = planish.build(
            source,
            inputs={n: s.shape for n, s in case.inputs.items()},
            tuning_seconds=0,
            progress=False,
        )
        results = [_arrays(engine(call)) for call in calls]
        found[route] = Outcome(
            len(engine.layers()),
            len(engine.host_steps()),
            distance(results, truth),
            distance(results, told),
            distance(told, truth),
        )
    return found


def distance(have: Sequence[Sequence[np.ndarray]], want: Sequence[Sequence[np.ndarray]]) -> float:
    """The largest difference by the scale of each output; infinite where the shapes differ."""
    worst = 0.0
    for arrays, expected in zip(have, want, strict=True):
        for a, b in zip(arrays, expected, strict=True):
            if a.shape != b.shape:
                return float("inf")
            if a.size:
                scale = max(float(np.abs(b).max()), 1e-6)
                worst = max(worst, float(np.abs(a.astype(float) - b).max()) / scale)
    return worst


def enliven(module: Any, case: Case) -> None:
    """Makes what a network computes matter in its outputs, as training would.

    Freshly made, vectors are all zeros or ones, scales of residual branches next to nothing, and
    batch norms know nothing of their inputs: activations vanish, and errors with them.
    """
    for parameter in module.parameters():
        if parameter.ndim == 1 or (parameter == parameter.flatten()[0]).all():
            low = 0.5 if parameter.abs().max() > 0 else -0.1
            parameter.uniform_(low, low + (0.5 if low > 0 else 0.2))
    module.eval()
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    if norms:
        module(**_tensors(feeds(case, 4)))
    module.eval()


def record(module: Any, case: Case, path: Path) -> None:
    """Writes the ONNX file that ``torch.onnx`` records from one run."""
    torch.onnx.export(
        module,
        (),
        str(path),
        kwargs=_tensors(feeds(case, 2)),
        input_names=list(case.inputs),
        dynamic_axes={
            n: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)}
            for n, s in case.inputs.items()
        },
        dynamo=False,
    )


def feeds(case: Case, batch: int) -> dict[str, np.ndarray]:
    """Inputs of a case, the same ones for the same batch."""
    rng = np.random.default_rng(batch)
    sizes = {"N": batch, "length": 7 + batch, "past_length": 5 + batch}
    found = {}
    for name, spec in case.inputs.items():
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        if spec.dtype == "int64":
            found[name] = rng.integers(0, case.below, shape)
            if name == "attention_mask":
                found[name][:] = 1
                found[name][-1, -2:] = 0
        else:
            found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def _with_parameters(case: Case, module: Any) -> Case:
    """The case with its only input called as the module's parameter is."""
    parameters = inspect.signature(module.forward).parameters
    (*_, name) = names = list(case.inputs)
    if len(names) > 1 or name in parameters:
        return case
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return case
    return replace(case, inputs={next(iter(parameters)): case.inputs[name]})


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {n: torch.from_numpy(a) for n, a in arrays.items()}


def _leaves(output: Any) -> list[np.ndarray]:
    return [t.numpy() for t in torch.utils._pytree.tree_leaves(output)]


def _arrays(result: Any) -> list[np.ndarray]:
    return list(result.values()) if isinstance(result, dict) else [result]

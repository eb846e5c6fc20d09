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
"""And how many times as far as ONNX Runtime is from PyTorch an engine may be."""

MOST_MAGNIFIED, OF_DETECTIONS = 1e-4, 2e-3
"""Beyond that it is the file that says something else than the module. Boxes and masks are cut out
where other boxes say, by coordinates: Mask R-CNN's differ from float64 by 1.6e-3 in PyTorch."""


@dataclass(frozen=True)
class Outcome:
    """What an engine is, and the largest differences by the scale of the output."""

    layers: int
    host_steps: int
    to_pytorch: float
    to_runtime: float
    """To ONNX Runtime, which runs the exported file."""
    runtime_to_pytorch: float
    detections: bool = False

    @property
    def is_right(self) -> bool:
        """Whether differences are those of rounding, which ONNX Runtime has as well."""
        most = OF_DETECTIONS if self.detections else MOST_MAGNIFIED
        magnified = min(self.runtime_to_pytorch, most) * MAGNIFIED
        nearest = min(self.to_pytorch, self.to_runtime)
        return nearest <= max(ROUNDING, magnified) and not self.host_steps


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
    sources: dict[str, Any] = {}
    if case.recorded:
        record(module, case, path)
    else:
        sources["program"] = program = trace(torch, module, case.inputs)
        exported = torch.onnx.export(program, dynamo=True, verbose=False, optimize=case.optimized)
        exported.save(str(path), external_data=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    told = [session.run(names, call) for call in calls]
    del session
    for route, source in {**sources, "file": path}.items():
        engine = planish.build(
            source,
            inputs={n: s.shape for n, s in case.inputs.items()},
            tuning_seconds=0,
            progress=False,
        )
        results = [_arrays(engine(call)) for call in calls]
        pairs = ((results, truth), (results, told), (told, truth))
        found[route] = Outcome(
            len(engine.layers()),
            len(engine.host_steps()),
            *(distance(a, b, case.detections) for a, b in pairs),
            detections=case.detections,
        )
    return found


Results = Sequence[Sequence[np.ndarray]]


def distance(have: Results, want: Results, detections: bool = False) -> float:
    """The largest difference by the scale of each output; infinite where the shapes differ.

    A detection is compared with the nearest one.
    """
    worst = 0.0
    for arrays, expected in zip(have, want, strict=True):
        if [a.shape for a in arrays] != [b.shape for b in expected]:
            return float("inf")
        scales = [max(float(np.abs(b).max(initial=0)), 1e-6) for b in expected]
        ours, theirs = (
            [a.astype(np.float64) / s for a, s in zip(part, scales, strict=True)]
            for part in (arrays, expected)
        )
        if detections:
            rows = [np.concatenate([a.reshape(len(a), -1) for a in p], 1) for p in (ours, theirs)]
            apart = np.array([[np.abs(a - b).max() for b in rows[1]] for a in rows[0]])
            found = [apart.min(0), apart.min(1)] if apart.size else []
        else:
            found = [np.abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        worst = max([worst, *(float(f.max(initial=0)) for f in found)])
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
        module(**_tensors(_several(case)))
    module.eval()


def _several(case: Case) -> dict[str, np.ndarray]:
    """Inputs of four, in one batch or, of what takes one image, in a stack."""
    calls = [feeds(case, number) for number in (4, 5, 6, 7)]
    return {
        name: calls[0][name] if "N" in spec.shape else np.stack([c[name] for c in calls])
        for name, spec in case.inputs.items()
    }


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

"""A PyTorch module or exported program becomes an ONNX model, and that a `Graph`.

`torch.export` traces, ``torch.onnx`` translates: both are PyTorch's own, so that the operators of
PyTorch are defined in one place, theirs. What is added here are the names: of inputs, of the
dimensions that may change, and of outputs.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.errors import InputError, ModelError
from planish.frontends.torch.examples import Examples
from planish.graph.graph import Graph
from planish.profile import TensorSpec

LARGEST_MESSAGE = 1 << 30
"""Bytes of weights above which the ONNX model goes through a file: protobuf ends at 2 GB."""


def import_model(
    model: Any,
    *,
    inputs: Mapping[str, TensorSpec] | None = None,
    outputs: Sequence[str] | None = None,
    allow_fallback: bool = True,
) -> Graph:
    """The graph of a ``torch.nn.Module``, a ``torch.export.ExportedProgram`` or its ``.pt2`` file.

    Parameters
    ----------
    model : Module, ExportedProgram or path
        A module is traced in evaluation mode, and left in the mode it was in.
    inputs : mapping of names to TensorSpec
        A module needs one for each parameter of ``forward`` that it is called with. Dimensions
        that are names, None or ranges may change between calls.
    outputs : sequence of str, optional
        Names of the outputs to keep.

    Raises
    ------
    InputError
        `inputs` does not fit the module.
    ModelError
        PyTorch cannot trace or translate the model; its reason is given.
    """
    from planish.frontends.onnx.convert import import_model as import_onnx

    torch = _torch()
    shapes = {name: spec.shape for name, spec in (inputs or {}).items()}
    with tempfile.TemporaryDirectory(prefix="planish-") as name:
        folder = Path(name)
        if isinstance(model, str | os.PathLike):
            program = _load(torch, Path(model))
        elif isinstance(model, torch.nn.Module):
            program = trace(torch, model, inputs)
        else:
            program = model
        return import_onnx(
            translate(torch, program, folder),
            inputs=shapes or None,
            outputs=outputs,
            allow_fallback=allow_fallback,
        )


def _torch() -> Any:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("torch")
    except ImportError as error:
        raise ModelError(
            "PyTorch models need torch and onnxscript",
            why=str(error),
            cure="pip install 'planish[torch]'",
        ) from error


def _load(torch: Any, path: Path) -> Any:
    try:
        return torch.export.load(str(path))
    except Exception as error:
        raise ModelError(
            f"{path.name} is not an exported program",
            where=str(path),
            why=f"{type(error).__name__}: {_first_line(error)}",
            cure="write it with torch.export.save(torch.export.export(module, arguments), path)",
        ) from error


def _ordered_inputs(module: Any, inputs: Mapping[str, TensorSpec] | None) -> dict[str, TensorSpec]:
    """The inputs in the order of the module's parameters."""
    name = type(module).__name__
    parameters = inspect.signature(module.forward).parameters
    accepted = [p for p in parameters.values() if p.kind is not p.VAR_POSITIONAL]
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted)
    known = [p.name for p in accepted if p.kind is not p.VAR_KEYWORD]
    if not inputs:
        raise InputError(
            f"A PyTorch module needs inputs=, and {name} was given without",
            where="inputs=",
            why="a module does not know the shapes and dtypes of its inputs",
            cure="pass {"
            + ", ".join(f'"{p}": (…shape…)' for p in known[:3])
            + "}, with planish.TensorSpec(shape, dtype) where it is not float32",
        )
    for given in inputs:
        if given not in known and not anything:
            raise InputError(
                f"{name} has no input {given!r}",
                where="inputs=",
                why=f"its forward takes {', '.join(known)}",
                cure="use these names",
            )
    return {n: inputs[n] for n in (*known, *inputs) if n in inputs}


def trace(torch: Any, module: Any, inputs: Mapping[str, TensorSpec] | None) -> Any:
    """The exported program of a module."""
    examples = Examples(torch, _ordered_inputs(module, inputs))
    parameters = inspect.signature(module.forward).parameters
    try:
        with _evaluating(module), _quiet(), torch.no_grad():
            program = torch.export.export(
                module,
                (),
                examples.tensors,
                dynamic_shapes=examples.in_structure_of(parameters),
            )
    except Exception as error:
        raise ModelError(
            f"PyTorch cannot trace {type(module).__name__}",
            where=type(module).__name__,
            why=f"{type(error).__name__}: {_first_line(error)}",
            cure="give fixed sizes for dimensions that the module fixes, or pass what "
            "torch.export.export makes of it",
        ) from error
    _drop_guards(program)
    return program


def _drop_guards(program: Any) -> None:
    """Keeps checks of input shapes out of a program.

    An engine checks its inputs itself, and the exporter cannot run the guards of ``**kwargs``.
    """
    program._example_inputs = None  # PyTorch writes guards only for programs that have some


def translate(torch: Any, program: Any, folder: Path) -> Any:
    """An ONNX ModelProto, or the path of a file in `folder` where the weights are large."""
    # what the exporter decomposes has other strides where gradients are asked for
    with _quiet(), torch.no_grad():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,  # our passes do that
                output_names=output_names(torch, program),
            )
        except Exception as error:
            raise ModelError(
                "PyTorch cannot translate the program to ONNX",
                where=type(program).__name__,
                why=f"{type(error).__name__}: {_first_line(error)}",
                cure="export the model to ONNX yourself (torch.onnx.export), and pass the file",
            ) from error
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if weights < LARGEST_MESSAGE:
        return exported.model_proto
    path = folder / "model.onnx"
    exported.save(str(path), external_data=True)
    return path


def output_names(torch: Any, program: Any) -> list[str] | None:
    """Names for the outputs of a program: the keys that lead to them, ``output_0`` for positions.

    None where PyTorch does not tell the structure.
    """
    pytree = torch.utils._pytree
    try:
        count = len(program.graph_signature.user_outputs)
        structure = pytree.tree_unflatten(list(range(count)), program.call_spec.out_spec)
        leaves = pytree.tree_leaves_with_path(structure)
    except Exception:
        return None
    names = []
    for path, _ in leaves:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        name = ".".join(keys) or "output"
        names.append(f"output_{name}" if name[0].isdigit() else name)
    return names if len(set(names)) == count else None


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode, with every submodule back in its own afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about its own workings from the user."""
    loggers = [logging.getLogger(n) for n in ("torch", "torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400]

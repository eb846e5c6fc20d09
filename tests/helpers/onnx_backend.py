"""Runs the tests that the onnx package brings for backends, and says what became of each.

The onnx package defines, for every operator, models with inputs and expected outputs
(`onnx.backend.test`). Each is built without tuning and run; see `Outcome.kind` for the classes.
What an engine must know while it is built (a target shape, axes, the number of rounds of a loop)
comes as an input in these models. Where a case is not compiled as it stands, those inputs, and no
others, are made constants; `Outcome.bound` names them. Inputs and outputs of element types that an
engine lacks (4-bit integers, 8-bit floats) are passed and compared in the wider types that stand
for them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

import planish
from helpers.onnx_graph import runtime
from planish import PlanishError
from planish.frontends.onnx.narrow import widened

PARAMETERS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), (0,)),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"), (1,)),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"), (1,)),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare"), (1,)),
}
"""By operator, the inputs that decide shapes, axes or control flow, and no elements."""


@dataclass(frozen=True)
class Tolerance:
    """A tolerance for a test whose own cannot be met, and the reason."""

    rtol: float
    atol: float
    why: str


_HALF = Tolerance(2**-9, 1e-7, "two units in the last place of float16; ONNX Runtime misses 1e-3")
_ZERO = Tolerance(1e-3, 1e-6, "expects the rounding error of a float32 transform where 0 is exact")
TOLERANCES = {
    "test_attention_4d_causal_fp16": _HALF,
    "test_attention_4d_causal_fp16_expanded": _HALF,
    "test_dft_inverse": _ZERO,
    "test_dft_inverse_opset19": _ZERO,
}
"""By name of the test."""

BY_RUNTIME = {
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
}
"""Tests that expect what neither the operator's text nor ONNX Runtime gives: their code divides by
the unrounded length of the result. What is expected comes from ONNX Runtime instead.
"""

KINDS = ("generated", "folded", "fallback", "refused", "wrong", "crash")


@dataclass(frozen=True)
class Case:
    """One test: a model, and inputs with the outputs expected for them."""

    name: str
    op_type: str
    model: onnx.ModelProto
    data_sets: tuple[tuple[Sequence[Any], Sequence[Any]], ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    kind : str
        "generated": equal, all in generated kernels; "folded": equal, and computed while the engine
        was built, because nothing depends on an input; "fallback": equal, with a host step;
        "refused": a `PlanishError` while it was built; "wrong": outputs differ; "crash": any other
        error, or one while it ran.
    bound : tuple of str
        Inputs that were made constants.
    message : str
        The error, or what the host steps are.
    """

    name: str
    op_type: str
    kind: str
    bound: tuple[str, ...] = ()
    message: str = ""


def node_cases() -> list[Case]:
    """Every node test of the installed onnx package, in order."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    operators = {t.name: t.model.graph.node[0].op_type for t in tests}
    return [_node_case(t, operators.get(_unexpanded(t.name), operators[t.name])) for t in tests]


def _node_case(test: Any, op_type: str) -> Case:
    own = TOLERANCES.get(test.name, Tolerance(test.rtol, test.atol, ""))
    data = tuple(test.data_sets)
    if test.name in BY_RUNTIME:
        data = tuple(
            (given, runtime(test.model, dict(zip(_fed(test.model), given, strict=True))))
            for given, _ in data
        )
    return Case(test.name, op_type, test.model, data, own.rtol, own.atol)


def _unexpanded(name: str) -> str:
    """The test whose operator is replaced by its function body in this one."""
    return re.sub(r"_expanded(_ver\d+)?$", "", name)


def model_cases(kind: str) -> list[Case]:
    """The tests that lie as files in the onnx package: "simple", "pytorch-converted", …"""
    from onnx.backend.test.loader import load_model_tests

    cases = []
    for test in sorted(load_model_tests(kind=kind), key=lambda t: t.name):
        if test.model_dir is None:  # would have to be downloaded
            continue
        folder = Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        data_sets = tuple(
            (
                _stored(data, "input", [i.type for i in model.graph.input]),
                _stored(data, "output", [o.type for o in model.graph.output]),
            )
            for data in sorted(folder.glob("test_data_set*"))
        )
        cases.append(Case(test.name, kind, model, data_sets, test.rtol, test.atol))
    return cases


def light_cases(names: Collection[str] | None = None) -> list[Case]:
    """The architectures of the onnx package ("light" models) with random weights: all, or some.

    Their own weights are all equal, so that an error in one place is averaged away in the next;
    what is expected comes from ONNX Runtime instead.
    """
    import onnx.backend.test

    folder = Path(onnx.backend.test.__path__[0]) / "data/light"
    paths = [p for p in sorted(folder.glob("*.onnx")) if names is None or p.stem in names]
    return [_light_case(path, np.random.default_rng(0)) for path in paths]


def _light_case(path: Path, rng: np.random.Generator) -> Case:
    model = onnx.load(path)
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    filled = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    for node in filled:
        shape = tuple(int(d) for d in shapes[node.input[0]])
        weights = rng.uniform(0.5, 1.5, shape)  # of batch norms and biases
        if len(shape) > 1:
            weights = rng.standard_normal(shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))
        array = weights.astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        graph.node.remove(node)
    feeds = {}
    for name in _fed(model):
        info = next(i for i in graph.input if i.name == name)
        shape = tuple(d.dim_value or 1 for d in info.type.tensor_type.shape.dim)
        feeds[name] = rng.standard_normal(shape).astype(np.float32)
    expected = runtime(model, feeds)
    return Case(path.stem, "light", model, ((list(feeds.values()), expected),), 1e-3, 1e-5)


def _stored(folder: Path, which: str, types: Sequence[onnx.TypeProto]) -> list[Any]:
    values: list[Any] = []
    for i, proto in enumerate(types):
        path = folder / f"{which}_{i}.pb"
        if not path.exists():
            break
        data = path.read_bytes()
        if proto.HasField("sequence_type"):
            values.append(numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        elif proto.HasField("optional_type"):
            values.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(data)))
        else:
            values.append(numpy_helper.to_array(onnx.TensorProto.FromString(data)))
    return values


def run_case(case: Case) -> Outcome:
    """Builds and runs a case, if need be again with its parameters as constants."""
    first = _attempt(case, ())
    if first.kind in ("generated", "folded"):
        return first
    names = _parameters(case)
    if not names:
        return first
    second = _attempt(case, names)
    failed = [o for o in (first, second) if o.kind in ("wrong", "crash")]
    return (failed or sorted((first, second), key=lambda o: KINDS.index(o.kind)))[0]


def _defined(
    case: Case, feeds: Mapping[str, Any], outputs: list[np.ndarray], expected: list[Any]
) -> tuple[list[np.ndarray], list[Any]]:
    """Outputs and what is expected, both 0 where ONNX leaves open what a cast gives: where a float
    is none of the integers that it becomes. What is expected there depends on ml_dtypes' version.
    """
    if case.op_type not in ("Cast", "CastLike") or expected[0].dtype.kind not in "Vui":
        return outputs, expected
    (result,), (wanted,) = outputs, expected
    x = np.asarray(next(iter(feeds.values())))
    if wanted.dtype.name not in ("int2", "uint2", "int4", "uint4") or x.dtype.kind not in "fV":
        return outputs, expected
    info, whole = ml_dtypes.iinfo(wanted.dtype), np.trunc(x.astype(np.float32))
    inside = (whole >= int(info.min)) & (whole <= int(info.max))
    return [np.where(inside, result, 0).astype(result.dtype)], [np.where(inside, wanted, 0)]


def _parameters(case: Case) -> tuple[str, ...]:
    declared = [info.name for info in case.model.graph.input]
    nodes = case.model.graph.node
    if case.op_type in PARAMETERS and nodes[0].op_type != case.op_type:
        # a function body: its inputs are those of the operator
        return tuple(declared[i] for i in PARAMETERS[case.op_type] if i < len(declared))
    read = [
        name
        for node in (nodes[:1] if case.op_type in PARAMETERS else nodes)
        for place, name in enumerate(node.input)
        if place in PARAMETERS.get(node.op_type, ())
    ]
    return tuple(dict.fromkeys(name for name in read if name in declared))


def _attempt(case: Case, bound: tuple[str, ...]) -> Outcome:
    def outcome(kind: str, message: str = "") -> Outcome:
        return Outcome(case.name, case.op_type, kind, bound, message)

    results: list[tuple[list[np.ndarray], list[Any]]] = []
    for inputs, expected in case.data_sets:
        feeds = dict(zip(_fed(case.model), map(_array, inputs), strict=False))
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for name in bound:
            model.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
        try:
            engine = _built(model, feeds)
        except PlanishError as error:
            return outcome("refused" if _is_clear(error) else "crash", str(error))
        except Exception as error:
            return outcome("crash", f"{type(error).__name__} while building: {error}")
        try:
            results.append(_defined(case, feeds, _poisoned_run(engine, feeds), _flat(expected)))
        except PlanishError as error:
            absent = any(value is None for value in feeds.values())
            return outcome("refused" if absent else "crash", str(error))
        except Exception as error:
            return outcome("crash", f"{type(error).__name__} while running: {error}")
    for outputs, expected in results:
        wide = [widened(a) if isinstance(a, np.ndarray) else a for a in expected]
        if problem := difference(outputs, wide, case.rtol, case.atol):
            return outcome("wrong", problem)
    if hosts := _host_ops(engine):
        return outcome("fallback", ", ".join(sorted(set(hosts))))
    return outcome("generated" if _uses_inputs(engine) else "folded")


def _is_clear(error: PlanishError) -> bool:
    """Whether a refusal says what, where or why, and a cure, and is no internal error."""
    complete = error.what and (error.where or error.why) and error.cure
    return bool(complete) and "report this" not in str(error)


def _uses_inputs(engine: planish.Engine) -> bool:
    """Whether any output depends on an input."""
    graph = engine.plan.graph
    fed = set(graph.inputs)
    for node in graph.nodes:
        if fed & set(node.inputs):
            fed |= set(node.outputs)
    return bool(fed & set(graph.outputs))


@cache
def _timing_folder() -> TemporaryDirectory[str]:
    """One timing cache for all cases: nothing is measured, and to make one takes 30 ms."""
    return TemporaryDirectory()


def _built(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> planish.Engine:
    """Unknown dimensions begin with 1, so that what is given without elements is declared so."""
    timing = Path(_timing_folder().name) / "timing.sqlite"
    stored = {tensor.name for tensor in model.graph.initializer}
    given = {n: a.shape for n, a in feeds.items() if isinstance(a, np.ndarray) and not a.size}
    return planish.build(
        model,
        inputs={name: shape for name, shape in given.items() if name not in stored},
        tuning_seconds=0,
        timing_cache=timing,
        progress=False,
        threads=1,
    )


def _poisoned_run(engine: planish.Engine, feeds: Mapping[str, Any]) -> list[np.ndarray]:
    """Runs twice, the second time into memory full of rubbish; a kernel that skips elements shows.

    The outputs of the second run are given back: they differ from the first where one did.
    """
    given = {
        info.name: widened(value) if isinstance(value := feeds[info.name], np.ndarray) else value
        for info in engine.inputs
    }
    with engine.create_execution_context() as context:
        first = _listed(context.execute(given))
        targets = {}
        for info, array in zip(engine.outputs, first, strict=True):
            rubbish = np.full(array.nbytes, 0xA5, np.uint8)
            if array.dtype == np.bool_:
                rubbish[:] = 1
            targets[info.name] = rubbish.view(array.dtype).reshape(array.shape)
        return _listed(context.execute(given, out=targets))


def _listed(result: Any) -> list[np.ndarray]:
    return list(result.values()) if isinstance(result, dict) else [result]


def _host_ops(engine: planish.Engine) -> list[str]:
    """What runs outside generated kernels."""
    hosts = set(engine.host_steps())
    names = []
    for step in engine.plan.steps:
        empty = all(v.type.elements == 0 for v in step.task.outputs)
        if step.task.name in hosts and not empty:  # nothing is done for what has no elements
            for node in step.task.nodes:
                kind = getattr(node.op, "op_type", "")
                names.append(f"{kind} by ONNX's reference" if kind else f"{node.op.name} by NumPy")
    return names


def _fed(model: onnx.ModelProto) -> list[str]:
    stored = {t.name for t in model.graph.initializer}
    return [info.name for info in model.graph.input if info.name not in stored]


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic | float | int) else value


def _flat(values: Sequence[Any]) -> list[Any]:
    """Sequences as their tensors, which is how an engine gives them."""
    parts = [value if isinstance(value, list) else [value] for value in values]
    return [_array(part) for each in parts for part in each]


def difference(
    outputs: Sequence[np.ndarray], expected: Sequence[Any], rtol: float, atol: float
) -> str:
    """How outputs differ from what is expected by the rule of onnx's own runner, or ""."""
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs, not {len(expected)}"
    for place, (output, other) in enumerate(zip(outputs, expected, strict=True)):
        if not isinstance(other, np.ndarray):
            return f"output {place} should be a {type(other).__name__}"
        if output.shape != other.shape or output.dtype != other.dtype:
            return f"output {place} is {output.dtype}{output.shape}, not {other.dtype}{other.shape}"
        relative = rtol
        if output.dtype.name == "bfloat16":  # two units in the last place
            relative = max(rtol, 2**-6)
        if output.dtype.kind not in "biu":
            wide = np.complex128 if output.dtype.kind == "c" else np.float64
            output, other = output.astype(wide), other.astype(wide)
        try:
            np.testing.assert_allclose(output, other, rtol=relative, atol=atol)
        except AssertionError as error:
            return f"output {place}: " + " ".join(str(error).split())[:300]
    return ""

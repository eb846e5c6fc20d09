"""The pipeline on one screen: import, passes, fusion, tuning, plan, engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.checks import check_limits, checked_inputs, checked_outputs, warn_of_nan
from planish.errors import DeviceError, InputError, PrecisionError, ShapeError, UnsupportedOpError
from planish.fusion.candidates import propose
from planish.graph.graph import Graph
from planish.graph.verify import verify
from planish.ops import ConvInteger, MatMulFloat8, MatMulInteger, QuantizedSoftmax
from planish.passes import optimize
from planish.passes.counted import settle_counts
from planish.plan.plan import Plan, PlanStep
from planish.plan.views import insert_copies, place
from planish.precision.layers import all_names, check_layer_precision, match_layers
from planish.precision.permissions import (
    FP8,
    FP32,
    INT8,
    QUANTIZED,
    Permissions,
    parse_precision,
)
from planish.precision.settle import settle_precision
from planish.profile import settle_ranges, tuning_points
from planish.progress import ProgressEvent, console_progress
from planish.quantization.attention import quantizable_attentions
from planish.quantization.budget import Kept
from planish.quantization.calibration import calibrate
from planish.quantization.choose import Attempt, Chooser, Outcome
from planish.quantization.explicit import holds_weights, settle_scales
from planish.quantization.explicit_products import explicit_candidates, use_scales
from planish.quantization.level_moves import move_levels
from planish.quantization.policy import tensors_between
from planish.quantization.scheme import scheme_of
from planish.quantization.settle import candidates, quantize_layers, ways
from planish.runtime.engine import Engine
from planish.runtime.turns import remembered_seconds
from planish.targets.base import Binding
from planish.targets.devices import find_target
from planish.targets.target import Target
from planish.tuning.cache import TimingCache
from planish.tuning.estimate import estimate
from planish.tuning.tuner import Tuner, TuningReport
from planish.version import __version__

log = logging.getLogger("planish")

SECONDS_PER_TASK = 0.3
"""The default tuning budget per candidate task, within limits."""

LEAST_BUDGET, MOST_BUDGET = 5.0, 48.0
"""With all else a build takes no more than a minute, as a rule."""


@dataclass
class BuildReport:
    """What a build did.

    Attributes
    ----------
    nodes_imported, nodes_optimized, layers : int
    lowered : int
        Nodes that compute in a lower precision than FP32.
    quantized : list of str
        The layers that compute in INT8 or FP8.
    not_quantized : dict
        Where INT8 or FP8 is permitted, the layers that compute in another precision, with the
        reason.
    kept_in_fp32 : dict
        Where lower precisions are permitted, the nodes that stay in FP32, with the reason.
    accuracy : dict
        The metric of ``evaluate=`` in "fp32", with every layer quantized that is faster so
        ("int8", also of FP8), and as "chosen" within the budget.
    bought : list of Kept
        The layers that the accuracy budget keeps in FP32: what each costs, and what it gains.
    doubt : str
        Which layers stay in FP32 only because the metric has too few samples to tell that it is
        within the budget without them; "" if none do.
    fallbacks : dict
        Host steps by layer name, with the reason.
    tuning : TuningReport
    seconds : dict
        Time of each stage.
    """

    nodes_imported: int = 0
    nodes_optimized: int = 0
    layers: int = 0
    lowered: int = 0
    quantized: list[str] = field(default_factory=list)
    not_quantized: dict[str, str] = field(default_factory=dict)
    kept_in_fp32: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    bought: list[Kept] = field(default_factory=list)
    doubt: str = ""
    fallbacks: dict[str, str] = field(default_factory=dict)
    tuning: TuningReport = field(default_factory=TuningReport)
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    model: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Iterable[str] | None = None,
    device: str = "cpu",
    precision: Any = "fp32",
    layer_precision: Mapping[str, str] | None = None,
    strict_types: bool = False,
    calibration: Any = None,
    evaluate: Callable[[Engine], Any] | None = None,
    accuracy_budget: float | None = None,
    allow_fallback: bool = True,
    max_workspace_size: int | None = None,
    threads: int | None = None,
    tuning_seconds: float | None = None,
    timing_cache: Any = None,
    progress: bool | Callable[[ProgressEvent], None] = True,
) -> Engine:
    """Builds an engine from a trained model.

    Parameters
    ----------
    model : path or object
        A SavedModel folder, a frozen GraphDef (.pb), a Keras model or file (.keras, .h5), an ONNX
        file or ModelProto.
    inputs : mapping, optional
        For each input a shape, or a `Profile`; None: the model's own, unknown batch symbolic.
    outputs : iterable of str, optional
        Names of the tensors to give back, also middle ones; None: the model's own.
    device : str
        "cpu", or a GPU: "cuda:0".
    precision : str or set
        Permitted precisions: "fp32", "tf32", "fp16", "bf16", "int8", "fp8", or "best" for all that
        the device has. FP32 is always permitted, and stands in where the device lacks another; a
        line in the log says so. INT8 needs `calibration`, or a model that brings its own scales;
        FP8, of matrix products alone, needs `calibration`; "best" leaves both out without.
    layer_precision : mapping of str to str, optional
        Precisions by the names of layers, or patterns of them ("head/*"), in place of what Planish
        chooses; of those that `precision` permits.
    strict_types : bool
        Whether a layer that cannot have the precision asked for is an error.
    calibration : optional
        For INT8 and FP8: representative inputs, a calibrator, or a calibration cache; see
        `planish.quantization.calibrate`. None for models that bring their own scales (fake
        quantization, QuantizeLinear and DequantizeLinear): these are obeyed.
    evaluate : callable, optional
        From an engine to its accuracy, larger is better: a number, or an array ``[N]`` of numbers
        whose mean it is, one for each of always the same samples. The number is reported.
    accuracy_budget : float, optional
        What INT8 and FP8 may cost, in the unit of `evaluate`: as many layers stay in FP32 as it
        takes. Where `evaluate` gives a number for each sample, it is kept by the standard error of
        what is lost, as other samples count, too. A number alone is taken as it is.
    allow_fallback : bool
        Whether an op without a kernel may run by its NumPy reference; False makes it an error.
    max_workspace_size : int, optional
        Bytes of workspace no tactic may exceed.
    threads : int, optional
        Threads to tune for; None: all cores.
    tuning_seconds : float, optional
        Time for measuring; None: by the size of the network, 0: heuristics only.
    timing_cache : path, optional
        File of measured times; None: the user's own.
    progress : bool or callable
        Whether to show progress, or what to call with each `ProgressEvent`.

    Raises
    ------
    ModelError, UnsupportedOpError, ShapeError, InputError, PrecisionError, CalibrationError,
    DeviceError
    """
    from planish.frontends import import_model

    target = find_target(device)
    asked = parse_precision(precision, device, target.precisions)
    layer_precision = check_layer_precision(layer_precision, strict_types, asked)
    _refuse_unused(asked, calibration, evaluate, accuracy_budget)
    inputs, outputs = checked_inputs(inputs), checked_outputs(outputs)
    check_limits(
        threads=threads,
        max_workspace_size=max_workspace_size,
        tuning_seconds=tuning_seconds,
        timing_cache=timing_cache,
    )
    clock = _Clock(progress)
    with clock.stage("import"):
        graph = import_model(
            model,
            inputs=inputs,
            outputs=outputs,
            allow_fallback=allow_fallback,
        )
        warn_of_nan(graph)
        by_chance = {name for name in QUANTIZED if name in asked and not _names(precision, name)}
        if calibration is None and by_chance:  # "best" is what can be had
            asked -= {FP8} & by_chance if settle_scales(graph) else by_chance
            check_layer_precision(layer_precision or None, strict_types, asked)
            _refuse_unused(asked, calibration, evaluate, accuracy_budget)
    return build_graph(
        graph,
        target,
        clock=clock,
        precision=asked,
        layer_precision=layer_precision,
        strict_types=strict_types,
        calibration=calibration,
        evaluate=evaluate,
        accuracy_budget=accuracy_budget,
        allow_fallback=allow_fallback,
        max_workspace_size=max_workspace_size,
        threads=threads,
        tuning_seconds=tuning_seconds,
        timing_cache=timing_cache,
    )


def build_graph(
    graph: Graph,
    target: Target,
    *,
    clock: _Clock | None = None,
    precision: frozenset[str] = frozenset({FP32}),
    layer_precision: Mapping[str, str] | None = None,
    strict_types: bool = False,
    calibration: Any = None,
    evaluate: Callable[[Engine], Any] | None = None,
    accuracy_budget: float | None = None,
    allow_fallback: bool = True,
    max_workspace_size: int | None = None,
    threads: int | None = None,
    tuning_seconds: float | None = None,
    timing_cache: Any = None,
) -> Engine:
    """The rest of the pipeline, from an imported graph to an engine; changes the graph."""
    clock = clock or _Clock(False)
    report = BuildReport(nodes_imported=len(graph.nodes))
    settle_ranges(graph)
    with clock.stage("optimize"):
        settle_counts(graph)
        before = all_names(graph)
        explicit = INT8 in precision and settle_scales(graph)
        if explicit:
            _refuse_calibration(calibration)
        optimize(graph, keep=holds_weights if explicit else None)
        if explicit:
            move_levels(graph)
        report.nodes_optimized = len(graph.nodes)
    names = {node.name for node in graph.nodes}

    # for INT8 or FP8 the network is tuned twice, and then what was measured is put together
    quantizing = not precision.isdisjoint(QUANTIZED)
    split = tuning_seconds is not None and quantizing
    budget = tuning_seconds / 2 if split and tuning_seconds else tuning_seconds

    def finish(graph: Graph) -> Attempt:
        permissions, decision = settle_precision(
            graph,
            precision,
            device=target.device,
            available=target.precisions,
            layers=layer_precision,
            strict=strict_types,
            before=before,
        )
        insert_copies(graph)
        verify(graph)
        with clock.stage("tune"):
            plan, tuning = tune_graph(
                graph,
                target,
                clock=clock,
                max_workspace_size=max_workspace_size,
                threads=threads,
                tuning_seconds=budget,
                timing_cache=timing_cache,
                permissions=permissions,
            )
        return Attempt(plan, (decision, tuning))

    def guess(step: PlanStep) -> float:
        binding = Binding(tuning_points(graph)[0])
        return estimate(step.task, binding, target.rates)

    def in_turns(plans: Sequence[Plan]) -> list[float] | None:
        cache = _opened(timing_cache)
        try:
            with clock.stage("compare"):
                return remembered_seconds(plans, target, threads or target.threads, cache)
        except DeviceError as error:
            log.debug("whole plans are not compared: %s", error)
            return None
        finally:
            cache.close()

    if quantizing:
        asked = match_layers(graph, layer_precision or {}, strict=strict_types, before=before)
        if explicit:  # levels lie between layers in any case: there is nothing to convert
            found = explicit_candidates(graph, asked, strict=strict_types)
            chooser = Chooser(graph, found, use_scales, finish, guess, in_turns)
            outcome = chooser.by_time()
        else:
            each = ways(graph, precision, asked)
            float8 = {node.name for node, way in each.items() if way == FP8}
            with clock.stage("calibrate"):
                ranges = calibrate(
                    graph, calibration, device=target.device, threads=threads, report=clock.report
                )
            scheme = scheme_of(target)
            able = quantizable_attentions(graph, ranges, scheme) if INT8 in precision else {}
            possible = {*each, *able}
            found = candidates(graph, asked, strict=strict_types, possible=possible.__contains__)
            chooser = Chooser(
                graph,
                found,
                lambda copy, layers: quantize_layers(copy, layers, ranges, scheme, float8),
                finish,
                guess,
                in_turns,
            )
            sizes, bandwidth = tuning_points(graph)[0], target.rates.bytes
            outcome = chooser.by_time(tensors_between(graph, sizes, bandwidth))
        if evaluate is not None:
            outcome = chooser.by_metric(
                outcome, lambda plan: evaluate(Engine(plan, target)), accuracy_budget
            )
        _tell(report, outcome, found.kept)
        attempt = outcome.attempt
    else:
        attempt = finish(graph)
    plan = attempt.plan
    of_bytes = ConvInteger | MatMulFloat8 | MatMulInteger | QuantizedSoftmax
    report.quantized = sorted(n.name for n in plan.graph.nodes if isinstance(n.op, of_bytes))
    decision, report.tuning = attempt.notes
    report.lowered = len(decision.lowered)
    of_others = {*report.quantized, *(node.name for node in decision.lowered)}
    reasons = {node.name: why for node, why in decision.kept.items()} | report.not_quantized
    report.kept_in_fp32 = {
        name: why for name, why in reasons.items() if name in names and name not in of_others
    }
    report.layers = len(plan.steps)
    report.seconds = clock.seconds
    by_name = {step.task.name: step.task for step in plan.steps}
    report.fallbacks = {
        name: f"no kernel for {by_name[name].key[:200]}" for name in report.tuning.host_steps
    }
    if report.fallbacks and not allow_fallback:
        clock.close()
        name = next(iter(report.fallbacks))
        raise UnsupportedOpError(
            f"{len(report.fallbacks)} op(s) have no kernel on {target.device}",
            where=by_name[name].origin,
            why=report.fallbacks[name],
            cure="allow_fallback=True runs them by their NumPy reference",
        )
    with clock.stage("finish"):
        engine = Engine(plan, target, report)
        try:
            engine.bind_usual()
        except ShapeError as error:
            if not plan.graph.symbols():
                raise
            log.debug("nothing is made ready for the usual sizes, which are none: %s", error)
    clock.close()
    return engine


def tune_graph(
    graph: Graph,
    target: Target,
    *,
    clock: _Clock | None = None,
    max_workspace_size: int | None = None,
    threads: int | None = None,
    tuning_seconds: float | None = None,
    timing_cache: Any = None,
    permissions: Permissions | None = None,
) -> tuple[Plan, TuningReport]:
    """The tuned plan of an optimised graph, lowered where permitted, whose copies were inserted."""
    permissions = permissions or Permissions()
    clock = clock or _Clock(False)
    placements = place(graph)
    tasks = propose(graph, placements.free)
    cache = _opened(timing_cache)
    try:
        tuner = Tuner(
            graph,
            placements,
            target,
            cache,
            budget=default_budget(len(tasks)) if tuning_seconds is None else tuning_seconds,
            threads=threads or target.threads,
            max_workspace=max_workspace_size,
            permissions=permissions,
            report=clock.report,
        )
        plan = tuner.run(tasks, tuning_points(graph))
    finally:
        cache.close()
    about = _about(target, str(permissions), len(plan.steps), threads)
    return Plan(plan.graph, plan.steps, about), tuner.result


def _opened(timing_cache: Any) -> TimingCache:
    """The timing cache at a path; None: the user's."""
    return TimingCache(timing_cache if timing_cache is not None else default_timing_cache())


def default_timing_cache() -> Path:
    """The user's timing cache."""
    from planish.targets.cache import cache_root

    return cache_root() / "timing.sqlite"


def default_budget(tasks: int) -> float:
    """Seconds of tuning for a network of so many candidate tasks."""
    return min(max(SECONDS_PER_TASK * tasks, LEAST_BUDGET), MOST_BUDGET)


def _names(precision: Any, name: str) -> bool:
    """Whether the argument `precision=`, which has been checked, names one."""
    given = [precision] if isinstance(precision, str) else precision
    return any(one.strip().lower() == name for one in given)


def _tell(report: BuildReport, outcome: Outcome, kept: Mapping[str, str]) -> None:
    """Puts down what was not quantized and why."""
    report.not_quantized = {**kept, **outcome.kept}
    report.accuracy = outcome.scores
    report.bought = list(outcome.bought)
    report.doubt = outcome.doubt


def _refuse_unused(asked: frozenset[str], calibration: Any, evaluate: Any, budget: Any) -> None:
    if budget is not None and evaluate is None:
        raise InputError(
            "accuracy_budget needs evaluate",
            why="the budget is in the unit of your metric",
            cure="pass evaluate=, a function of an engine that gives a number, larger is better",
        )
    for name, given in (
        ("calibration", calibration),
        ("evaluate", evaluate),
        ("accuracy_budget", budget),
    ):
        if given is not None and asked.isdisjoint(QUANTIZED):
            raise PrecisionError(
                f"{name}= has no effect",
                where=f"{name}=",
                why="it steers INT8 and FP8, which are not permitted",
                cure='leave it out, or pass precision="int8"',
            )
    if budget is not None and not (isinstance(budget, int | float) and budget >= 0):
        raise InputError(
            f"accuracy_budget= must be a number from 0 on, not {budget!r}"[:200],
            where="accuracy_budget=",
            why="it is how much less than in FP32 the metric may be",
            cure="pass 0.2, say, for 0.2 points of a metric in percent",
        )


def _refuse_calibration(calibration: Any) -> None:
    if calibration is not None:
        raise PrecisionError(
            "calibration= has no effect",
            where="calibration=",
            why="the model brings its own scales (quantized layers, or simulated quantization), "
            "which are obeyed",
            cure="leave it out (in TensorFlow: use_calibration=False), or pass the model as it was "
            "before it was quantized",
        )


def _about(target: Target, precision: str, layers: int, threads: int | None) -> dict[str, Any]:
    import platform

    return {
        "planish": __version__,
        "device": target.device,
        "machine": target.timing_key,
        "python": platform.python_version(),
        "precision": precision,
        "layers": layers,
        "threads": threads,  # null: all cores of the machine that runs it
    }


class _Clock:
    """Times the stages of a build and tells the user about them."""

    def __init__(self, progress: bool | Callable[[ProgressEvent], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.monotonic()
        self._listener: Callable[[ProgressEvent], None] | None = None
        self._close: Callable[[], None] = lambda: None
        if callable(progress):
            self._listener = progress
        elif progress:
            self._listener, self._close = console_progress()

    def stage(self, name: str) -> _Stage:
        return _Stage(self, name)

    def report(self, what: str, done: int, total: int) -> None:
        if self._listener:
            elapsed = time.monotonic() - self._start
            self._listener(ProgressEvent(what, done, total, elapsed))

    def close(self) -> None:
        self._close()


class _Stage:
    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self._clock.report(self._name, 0, 1)

    def __exit__(self, kind: object, *rest: object) -> None:
        spent = time.monotonic() - self._start
        self._clock.seconds[self._name] = self._clock.seconds.get(self._name, 0.0) + spent
        if kind is not None:
            self._clock.close()

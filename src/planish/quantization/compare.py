"""What a plan's precision costs, layer by layer, and why.

The model in float32 and the plan run on the same data, twice:

- both from the inputs on, which shows the error that has come together at each tensor;
- cut at every tensor that the plan keeps, each layer given what float32 gives there, in the form in
  which the plan holds it. Both sides then compute from the same numbers, and what differs was made
  in this layer.

Wu et al., "Integer Quantization for Deep Learning Inference", arXiv:2004.09602, section 6, find
the layers to blame by quantizing one at a time; here all are judged in the same run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from planish.checks import checked_inputs, checked_outputs
from planish.errors import CalibrationError, InputError, ShapeError
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph
from planish.graph.types import DType
from planish.passes import optimize
from planish.passes.counted import settle_counts
from planish.profile import settle_ranges
from planish.progress import ProgressEvent, console_progress
from planish.quantization.batches import Batches
from planish.quantization.comparison import Comparison, Labels, Rows, checked_labels
from planish.quantization.forms import Match, match
from planish.quantization.observe import independent_rows
from planish.quantization.taps import stored_values, tapped_model, tapped_plan
from planish.runtime.engine import Engine

MOST_BYTES = 64 << 20
"""Memory of the tensors of one run, in float32; there are up to six copies of them."""

STAGE = "compare"


def compare_layers(
    model: Any,
    engine: Engine,
    data: Any,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    classes_before: int = 0,
    output: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Iterable[str] | None = None,
    threads: int | None = None,
    progress: bool | Callable[[ProgressEvent], None] = True,
) -> Comparison:
    """Compares an engine with its model in float32, layer by layer.

    The engine runs by its own kernels. The model is run by Planish's own float32 kernels on the
    CPU, whatever the engine's device.

    Parameters
    ----------
    model : path or object
        What the engine was built from.
    engine : Engine
    data : array, mapping, iterable, function, or path
        Inputs as the model gets them; whatever calibration takes
        (`planish.quantization.batches.Batches`). They are read once, a batch at a time.
    labels : sequence of int, optional
        The class of each sample, in the order of the data.
    classes_before : int
        How many classes the model has before the first label; 1 for models with a background class.
    output : str, optional
        With labels: the output that holds the scores, ``[N, classes]``; None: the only one.
    inputs, outputs : optional
        As given to `planish.build`; None: as the engine says.
    threads : int, optional
        None: all cores.
    progress : bool or callable
        Whether to show progress, or what to call with each `ProgressEvent`.

    Raises
    ------
    InputError
        The engine is not of this model, or data or labels do not fit.
    ModelError, ShapeError
        The model cannot be read.
    """
    graph = _reference(model, engine, inputs, outputs)
    labelled = None if labels is None else checked_labels(labels, classes_before, output, engine)
    return compare_graph(graph, engine, data, labels=labelled, threads=threads, progress=progress)


def compare_graph(
    graph: Graph,
    engine: Engine,
    data: Any,
    *,
    labels: Labels | None = None,
    threads: int | None = None,
    progress: bool | Callable[[ProgressEvent], None] = False,
) -> Comparison:
    """Compares an engine with the optimised float32 graph that it came from; see `compare_layers`.

    The graph is not changed.
    """
    found = match(graph, engine.plan.graph, stored_values(engine.plan))
    _check_same(graph, engine, found)
    rows = Rows(engine, found, labels)
    listener, close = progress if callable(progress) else None, lambda: None
    if progress is True:
        listener, close = console_progress()
    start = time.monotonic()
    try:
        batches = Batches(graph.inputs, data)
        with ExitStack() as stack:
            run = _Run(graph, engine, found, threads, stack)
            portions = _Portions(graph, found)
            for number, batch in enumerate(batches):
                if listener:
                    elapsed = time.monotonic() - start
                    listener(ProgressEvent(STAGE, number, batches.total, elapsed))
                for portion in portions.of(batch):
                    run.add(portion, rows)
    except CalibrationError as error:  # the same data, of another argument
        raise InputError(
            error.what.replace("calibration data", "data"),
            where=error.where.replace("calibration=", "data="),
            why=error.why,
            cure=error.cure.replace("calibration=", "data="),
        ) from error
    finally:
        close()
    return rows.result()


def _reference(
    model: Any, engine: Engine, inputs: Mapping[str, Any] | None, outputs: Iterable[str] | None
) -> Graph:
    """The optimised float32 graph of which the plan was made."""
    from planish.frontends import import_model

    plan = engine.plan.graph
    given = inputs or {
        info.name: tuple(
            d if isinstance(d, int) else str(d) if str(d).isidentifier() else None
            for d in info.shape
        )
        for info in engine.inputs
    }
    wanted = [info.name for info in engine.outputs]

    def read(outputs: Sequence[str] | None) -> Graph:
        return import_model(model, inputs=checked_inputs(given), outputs=checked_outputs(outputs))

    try:
        graph = read(None if outputs is None else list(outputs))
        if outputs is None and [name for name, _, _ in graph.results()] != wanted:
            graph = read(wanted)
    except (InputError, ShapeError) as error:
        if inputs is not None or outputs is not None:
            raise
        raise _foreign(error.what) from error  # what was asked for is the engine's
    for name in graph.symbols() & plan.ranges.keys():
        graph.ranges[name] = plan.ranges[name]
    settle_ranges(graph)
    settle_counts(graph)
    optimize(graph)
    return graph


def _check_same(graph: Graph, engine: Engine, found: Sequence[Match]) -> None:
    own = [(v.name, v.dtype) for v in graph.inputs]
    plan = [(v.name, v.dtype) for v in engine.plan.graph.inputs]
    if own != plan:
        raise _foreign(f"the model's inputs are {_shown(own)}, the engine's {_shown(plan)}")
    if not found:
        raise _foreign("no tensor that it keeps has the name of one of the model's")


def _foreign(why: str) -> InputError:
    return InputError(
        "The engine is not of this model",
        where="compare_layers(model, engine)",
        why=why,
        cure="pass the model that it was built from, and inputs= and outputs= of that build",
    )


def _shown(inputs: Sequence[tuple[str, DType]]) -> str:
    return ", ".join(f"{name} ({dtype.numpy.name})" for name, dtype in inputs)


class _Portions:
    """Batches in parts of which the tensors are not too large, where rows are independent."""

    def __init__(self, graph: Graph, found: Sequence[Match]) -> None:
        self._types = [one.reference.type for one in found]
        self._dim = independent_rows(graph)
        self._range = graph.ranges.get(self._dim)
        self._graph, _ = duplicate(graph)
        self._graph.ranges = {}  # a batch of more rows than the profile allows is divided

    def of(self, batch: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
        """The parts of a batch."""
        if not self._dim:
            yield batch
            return
        symbols = self._graph.bindings({name: a.shape for name, a in batch.items()})
        shapes = (type.bind(symbols) for type in self._types)
        size = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes)
        rows = symbols[self._dim]
        step = max(rows * MOST_BYTES // max(size, 1), 1)
        if self._range is not None:
            step = min(max(step, self._range.min), self._range.max)
        for at in range(0, rows, step):
            yield {name: a[at : at + step] for name, a in batch.items()}


class _Run:
    """The engines of a comparison."""

    def __init__(
        self,
        graph: Graph,
        engine: Engine,
        found: Sequence[Match],
        threads: int | None,
        stack: ExitStack,
    ) -> None:
        self._forms = [m.form for m in found]
        right, held = [m.reference for m in found], [m.held for m in found]
        exact = all(form.is_exact for form in self._forms)
        enter = stack.enter_context
        self._model = enter(tapped_model(graph, right, cut=False, threads=threads))
        self._plan = enter(tapped_plan(engine, held, cut=False))
        self._layers = enter(tapped_plan(engine, held, cut=True))
        self._right_layers = (
            None if exact else enter(tapped_model(graph, right, cut=True, threads=threads))
        )
        self._pool = enter(ThreadPoolExecutor(threads or os.cpu_count() or 1))

    def add(self, batch: Mapping[str, np.ndarray], rows: Rows) -> None:
        """Runs everything on a batch, and adds what is found to the rows."""
        right, outputs = self._model.run(batch)
        plan, own_outputs = self._plan.run(batch)
        given = [form.encode(x) for form, x in zip(self._forms, right, strict=True)]
        held = [form.decode(x) for form, x in zip(self._forms, given, strict=True)]
        layers, _ = self._layers.run(batch, given)
        exact, _ = self._right_layers.run(batch, held) if self._right_layers else (right, None)

        def look(place: int) -> None:
            decode = self._forms[place].decode
            row = rows.evidence[place]
            row.held.add(right[place], held[place])
            row.total.add(right[place], decode(plan[place]))
            row.own.add(exact[place], decode(layers[place]))

        order = sorted(range(len(right)), key=lambda place: -right[place].size)
        for _ in self._pool.map(look, order):
            pass
        rows.add_outputs(outputs, own_outputs)

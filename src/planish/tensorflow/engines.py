"""The engines behind the ops of this process: found by their plan, loaded once, shared by kernels.

TensorFlow's kernels know a plan as a string: the path of an asset, or the plan itself. Engines are
kept under what that string stands for, so that a model that is loaded again costs nothing.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish import native
from planish.errors import PlanError, ShapeError
from planish.graph.dims import evaluate, floordiv, symbol, symbols
from planish.graph.graph import Graph
from planish.graph.types import TensorType
from planish.native import Program
from planish.profile import UNBOUNDED
from planish.runtime.engine import PROGRAMS, Engine
from planish.runtime.native_engine import Bound, NativeEngine, Trim
from planish.tensorflow.settings import native_segments_allowed

_PLAN = b"planish plan "
"""How the bytes of a plan start."""


class LoadedEngine:
    """An engine with the programs that kernels run.

    Attributes
    ----------
    engine : Engine
    shapes : dict
        The sizes of the dimensions that were bound so far.
    """

    def __init__(self, engine: Engine, settings: Mapping[str, Any]) -> None:
        self.engine = engine
        self.shapes: dict[tuple[tuple[str, int], ...], None] = {}
        strict = not settings.get("native", True) or not native_segments_allowed()
        capacity = max(int(settings.get("programs", 1)), PROGRAMS)
        self.native = NativeEngine(
            self._bind,
            can_bind=None if strict else self._can_bind,
            capacity=capacity,
            threads=thread_count(),
        )

    def _bind(self, types: Sequence[TensorType]) -> Bound:
        graph = self.engine.plan.graph
        sizes = bindings(graph, types)
        outputs = [TensorType(v.type.bind(sizes), v.dtype) for v in graph.outputs]
        if graph.counts:
            return self._counted(sizes, outputs)
        if all(kind.elements == 0 for kind in outputs):  # an empty batch: nothing to compute
            empty = Program([], input_count=len(graph.inputs), output_count=len(outputs))
            return Bound(empty, tuple(outputs))
        bound = self.engine.bound(sizes)
        self.shapes[tuple(sorted(sizes.items()))] = None
        program = bound.executable.program
        return Bound(program, tuple(outputs))

    def _counted(self, sizes: dict[str, int], outputs: list[TensorType]) -> Bound:
        """The program of a graph whose outputs are cut to what was counted."""
        graph = self.engine.plan.graph
        visible, trims = [], []
        for name, _, shape in graph.results():
            place = graph.output_names.index(name)
            visible.append(place)
            for axis, dim in enumerate(shape):
                for counted in symbols(dim) & graph.counts.keys():
                    factor = evaluate(floordiv(dim, symbol(counted)), sizes)
                    holder = graph.output_names.index(graph.counts[counted].output)
                    trims.append(Trim(place, axis, holder, factor))
        program = self.engine.bound(sizes).executable.program
        self.shapes[tuple(sorted(sizes.items()))] = None
        return Bound(program, tuple(outputs), tuple(visible), tuple(trims))

    def _can_bind(self, types: Sequence[TensorType]) -> bool:
        try:
            bindings(self.engine.plan.graph, types)
        except ShapeError:
            return False
        return True


def bindings(graph: Graph, types: Sequence[TensorType]) -> dict[str, int]:
    """The sizes of a graph's dimensions for inputs of static types.

    Raises
    ------
    ShapeError
        The types do not fit the graph.
    """
    for value, kind in zip(graph.inputs, types, strict=True):
        if value.dtype is not kind.dtype:
            raise ShapeError(f"Input {value.name!r} is {kind.dtype}, not {value.dtype}")
    shapes = {
        v.name: tuple(int(d) for d in t.shape)  # type: ignore[arg-type]
        for v, t in zip(graph.inputs, types, strict=True)
    }
    return graph.bindings(shapes)


def thread_count() -> int:
    """How many threads an engine uses: TensorFlow's for one op, at most the cores."""
    import tensorflow as tf
    from planish.targets.cpu.target import cpu

    cores = cpu().threads
    return min(cores, tf.config.threading.get_intra_op_parallelism_threads() or cores)


class Registry:
    """Finds engines and weights for the ops; thread-safe."""

    def __init__(self) -> None:
        self.renew_locks()
        native.renew_after_fork(self)
        self._engines: dict[Hashable, Engine] = {}
        self._loaded: dict[tuple[Hashable, Hashable], LoadedEngine] = {}
        self._weights: dict[Hashable, dict[str, np.ndarray]] = {}

    def renew_locks(self) -> None:
        """See `planish.native.renew_after_fork`."""
        self._lock = threading.Lock()

    def resolve(self, name: str, plan: bytes, settings: Mapping[str, Any]) -> NativeEngine:
        """The programs of a plan; see `engine_op.connect`."""
        return self.loaded(plan, settings).native

    def loaded(self, plan: bytes, settings: Mapping[str, Any]) -> LoadedEngine:
        """The engine of a plan with these settings, made at the first call."""
        identity = _identity(plan)
        key = (identity, tuple(sorted(settings.items())))
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = LoadedEngine(self._engine(identity, plan), settings)
            return self._loaded[key]

    def weight(self, name: str, plan: bytes, expected: TensorType) -> np.ndarray:
        """A constant of a plan; see `engine_op.connect`."""
        identity = _identity(plan)
        with self._lock:
            if identity not in self._weights:
                graph = self._engine(identity, plan).plan.graph
                self._weights[identity] = {
                    v.name: v.data for v in graph.constants() if v.data is not None
                }
            found = self._weights[identity].get(name)
        if found is None:
            raise PlanError(
                f"The plan holds no weight {name!r}",
                cure="convert the model again; its plan belongs to another one",
            )
        return found.reshape(tuple(int(d) for d in expected.shape))  # type: ignore[arg-type]

    def put(self, plan: bytes, engine: Engine) -> None:
        """An engine that need not be loaded, because it was built in this process."""
        relax(engine.plan.graph)
        with self._lock:
            self._engines[_identity(plan)] = engine

    def shapes(self, plan: bytes) -> list[dict[str, int]]:
        """The sizes that the engine of a plan was run with so far."""
        identity = _identity(plan)
        with self._lock:
            found = [e for (i, _), e in self._loaded.items() if i == identity]
        return [dict(sizes) for loaded in found for sizes in loaded.shapes]

    def release(self) -> None:
        """Forgets all engines. Those in use go on, but take no new shapes."""
        with self._lock:
            self._engines.clear()
            self._loaded.clear()
            self._weights.clear()

    def _engine(self, identity: Hashable, plan: bytes) -> Engine:
        if identity not in self._engines:
            from planish.plan.load import load

            engine = load(plan if plan.startswith(_PLAN) else os.fsdecode(plan))
            relax(engine.plan.graph)
            self._engines[identity] = engine
        return self._engines[identity]


def relax(graph: Graph) -> None:
    """Lifts the limits of all dimensions: a profile says what to tune for, not what is allowed."""
    for name, limits in graph.ranges.items():
        graph.ranges[name] = type(limits)(0, limits.opt, UNBOUNDED)


def _identity(plan: bytes) -> Hashable:
    if plan.startswith(_PLAN):
        return hashlib.sha256(plan).digest()
    path = Path(os.fsdecode(plan))
    try:
        found = path.stat()
    except OSError:
        return str(path)
    return str(path.resolve()), found.st_mtime_ns, found.st_size, found.st_ino


registry = Registry()
"""The engines of this process."""

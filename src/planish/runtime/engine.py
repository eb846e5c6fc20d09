"""Engines run plans: immutable, shared by threads; contexts hold what one caller needs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish import native
from planish.errors import InputError, ShapeError
from planish.graph.dims import DimLike
from planish.graph.graph import DimRange, Value
from planish.plan.plan import Plan
from planish.runtime.arrays import describe, input_array, no_memory, refuse_overlaps
from planish.runtime.bind import BoundPlan, ConstantStore, bind
from planish.runtime.staged import StageMemory, cut, run_stages
from planish.targets.base import Target

PROGRAMS = 16
"""Shapes for which an engine keeps everything ready; the least recently used one goes first."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    shape : tuple
        Integers, or dimensions that print as their name ("N").
    profile : dict
        For each symbolic dimension its least, usual and greatest size.
    """

    name: str
    dtype: np.dtype
    shape: tuple[DimLike, ...]
    profile: Mapping[str, DimRange]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class Engine:
    """A plan ready to run. Thread-safe; call it, or make contexts of your own.

    >>> y = engine(x)                       # arrays in the order of `inputs`
    >>> y = engine(input=x)                 # by name
    >>> y = engine({"input": x})

    The result is one array, or a dict by name if the engine has several outputs.
    """

    def __init__(self, plan: Plan, target: Target, report: Any = None) -> None:
        self.plan = plan
        self.target = target
        self.report = report
        self._constants = ConstantStore(target)
        self._bound: OrderedDict[tuple, BoundPlan] = OrderedDict()
        self.renew_locks()
        native.renew_after_fork(self)
        self._contexts = threading.local()
        self._closed = False
        graph = plan.graph
        self.inputs = tuple(self._info(v, v.name, v.shape) for v in graph.inputs)
        self.outputs = tuple(self._info(v, name, shape) for name, v, shape in graph.results())
        self._input_names = [info.name for info in self.inputs]

    def renew_locks(self) -> None:
        """In a forked child nobody else makes anything; see `planish.native.renew_after_fork`."""
        self._lock = threading.Lock()
        self._making: dict[tuple, threading.Lock] = {}

    def _info(self, value: Value, name: str, shape: tuple[DimLike, ...]) -> TensorInfo:
        ranges = self.plan.graph.ranges
        profile = {str(d): ranges[str(d)] for d in shape if str(d) in ranges}
        return TensorInfo(name, value.dtype.numpy, shape, profile)

    # ---- running --------------------------------------------------------------------------

    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        """Runs the engine on arrays (NumPy, or anything with DLPack on the CPU).

        Raises
        ------
        InputError
            A name, dtype, rank or number of inputs is wrong; nothing has run.
        ShapeError
            A shape does not fit the model or is outside the profile; nothing has run.
        """
        context = getattr(self._contexts, "own", None)
        if context is None or context.closed:
            context = self._contexts.own = self.create_execution_context()
        results = context.execute(self._by_name(args, named), out=out)
        return results

    def create_execution_context(
        self, threads: int | None = None, stream: Any = None
    ) -> ExecutionContext:
        """A context for one caller at a time; several run in parallel.

        Parameters
        ----------
        threads : int, optional
            Threads that one execution may use; None: as many as the
            engine was built for.
        stream : optional
            For devices that have streams; must be None on the CPU.
        """
        if self._closed:
            raise InputError(
                "The engine was closed",
                where=f"engine {self.plan.graph.name!r}",
                why="close() was called",
                cure="load the plan again",
            )
        if stream is not None:
            raise InputError(
                "The CPU has no streams",
                where="stream=",
                why="an execution has ended when the call returns",
                cure="leave out the argument",
            )
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise InputError(
                f"An execution needs at least one thread, not {threads!r}",
                where="threads=",
                why="threads is the most that one execution may use",
                cure="leave it out for all cores",
            )
        tuned_for = self.plan.about.get("threads")
        return ExecutionContext(self, threads or tuned_for or self.target.threads)

    def bind_usual(self) -> None:
        """Makes everything ready for the usual sizes of the dimensions."""
        try:
            self.bound_stages({})
        except ShapeError:
            if not self.plan.graph.counts:  # guessed sizes may not go together
                raise

    def bound_stages(self, symbols: Mapping[str, int]) -> list[BoundPlan]:
        """All stages for these sizes, and the usual ones of what depends on the data."""
        from planish.profile import tuning_points

        sizes = {**tuning_points(self.plan.graph)[0], **symbols}
        return [self.bound(sizes, stage) for stage in range(len(self.plan.stages.parts))]

    def bound(self, symbols: Mapping[str, int], stage: int = 0) -> BoundPlan:
        """A stage ready to run for these sizes of the dimensions; kept for the next time.

        The first thread that asks for unseen sizes compiles what they need. Others that want the
        same sizes wait for it; whoever wants other sizes does not.
        """
        stages = self.plan.stages.parts
        key = (stage, *(symbols[s] for s in stages[stage].symbols))
        while True:
            with self._lock:
                known = self._bound.get(key)
                if known is not None:
                    self._bound.move_to_end(key)
                    return known
                elsewhere = self._making.get(key)
            if elsewhere is None:
                made = self._make(key, symbols, stage)
                if made is not None:
                    return made
            else:  # if it fails there, this thread tries, and has an error of its own
                with elsewhere:
                    pass
                self._forget(key, elsewhere)

    def _make(self, key: tuple, symbols: Mapping[str, int], stage: int) -> BoundPlan | None:
        """Binds a stage and keeps it; None where another thread has begun to."""
        # A lock rather than an event, because an interrupt cannot come before its release.
        making = threading.Lock()
        making.acquire()
        try:
            if self._making.setdefault(key, making) is not making:
                return None
            made = self._bound.get(key) or bind(
                self.plan, symbols, self.target, self._constants, stage
            )
            with self._lock:
                if not self._closed:
                    self._bound[key] = made
                    if len(self._bound) > PROGRAMS * len(self.plan.stages.parts):
                        self._bound.popitem(last=False)
            return made
        finally:
            making.release()
            self._forget(key, making)

    def _forget(self, key: tuple, making: threading.Lock) -> None:
        """Notes that nobody makes a stage any more; whoever waited does it after an interrupt."""
        if self._making.get(key) is making:
            self._making.pop(key, None)

    def _by_name(self, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) == 1 and isinstance(args[0], Mapping) and not named:
            named, args = args[0], ()
        if len(args) > len(self.inputs):
            raise InputError(
                f"The engine has {len(self.inputs)} input(s) and was given {len(args)}",
                where="the arguments of the engine",
                why=f"its inputs are {', '.join(map(str, self.inputs))}",
                cure="pass one array for each",
            )
        given = dict(zip(self._input_names, args, strict=False))
        for name, value in named.items():
            if name in given or name not in self._input_names:
                raise InputError(
                    f"Input {name!r} is given twice"
                    if name in given
                    else f"There is no input {name!r}",
                    where="the arguments of the engine",
                    why=f"its inputs are {', '.join(map(str, self.inputs))}",
                    cure="give each of them once",
                )
            given[name] = value
        missing = [n for n in self._input_names if n not in given]
        if missing:
            raise InputError(
                f"Input {missing[0]!r} is missing",
                where="the arguments of the engine",
                why=f"its inputs are {', '.join(map(str, self.inputs))}",
                cure="pass an array for each",
            )
        return given

    # ---- looking --------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """The device the engine runs on."""
        return self.target.device

    @property
    def precision(self) -> str:
        """The precisions that were permitted."""
        return str(self.plan.about.get("precision", "fp32"))

    @property
    def packed_bytes(self) -> int:
        """Bytes of weights packed for the kernels in use so far, besides the plan's own."""
        return self._constants.bytes

    def layers(self) -> list[dict[str, Any]]:
        """The fused layers in order: name, origin (the user's ops), tactic, output type; of a plan
        of several stages also the stage.
        """
        rows = []
        parts = self.plan.stages.parts
        stage_of = {i: stage for stage, part in enumerate(parts) for i in part.steps}
        for index, step in enumerate(self.plan.steps):
            choice = step.choices[0] if step.choices else None
            rows.append(
                {
                    "name": step.task.name,
                    "origin": step.task.origin,
                    "op": step.task.anchor.op.name if step.task.anchor else "elementwise",
                    "tactic": str(choice.tactic) if choice else "chosen at run time",
                    "precision": choice.tactic.precision if choice else "fp32",
                    "output": ", ".join(str(v.type) for v in step.task.outputs),
                    "microseconds": choice.seconds * 1e6
                    if choice and choice.seconds is not None
                    else None,
                    **({"stage": stage_of[index]} if len(parts) > 1 else {}),
                }
            )
        return rows

    def host_steps(self) -> list[str]:
        """The names of layers that run by their NumPy reference, outside native code."""
        return [
            s.task.name
            for s in self.plan.steps
            if any(c.tactic.family == "reference" for c in s.choices)
        ]

    def summary(self) -> str:
        """The engine in a few lines of text."""
        graph = self.plan.graph
        weights = sum(v.data.nbytes for v in graph.constants() if v.data is not None)
        lines = [
            f"Planish engine {graph.name!r} on {self.device}, {self.precision}",
            *(f"  input  {info}" for info in self.inputs),
            *(f"  output {info}" for info in self.outputs),
            f"  {len(self.plan.steps)} layers, {weights / 1e6:.1f} MB of weights",
        ]
        if len(self.plan.stages.parts) > 1:
            counts = [s for s, c in graph.counts.items() if not c.padded]
            stages = len(self.plan.stages.parts)
            lines.append(f"  {stages} stages: {', '.join(counts)} depend(s) on the data")
        if self.host_steps():
            lines.append(f"  host steps: {', '.join(self.host_steps())}")
        return "\n".join(lines)

    # ---- keeping --------------------------------------------------------------------------

    def serialize(self) -> bytes:
        """The plan as bytes; see `planish.load`."""
        from planish.plan.file import serialize

        return serialize(self.plan)

    def save(self, path: Any) -> None:
        """Writes the plan to a file, replacing it atomically.

        Raises
        ------
        PlanError
            The file cannot be written (no space, no permission); an old file is left as it was.
        """
        from planish.plan.file import save

        save(self.plan, path)

    def close(self) -> None:
        """Releases memory; running executions finish first."""
        self._closed = True
        with self._lock:
            self._bound.clear()
        self._contexts = threading.local()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


Profiler = Callable[[str, float], None]


class ExecutionContext:
    """The arena of one caller. Not thread-safe: one execution at a time.

    Attributes
    ----------
    profiler : object or callable, optional
        Called with (layer name, milliseconds) after each execution for each layer; an object with
        a method ``report_layer_time`` works too.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine = engine
        self.threads = threads
        self.profiler: Any = None
        self.closed = False
        self._arena: Any = None
        self._last: tuple[tuple, BoundPlan, dict[str, int]] | None = None
        self._memory = StageMemory()

    def execute(self, inputs: Any, out: Any = None) -> Any:
        """Runs the engine.

        Parameters
        ----------
        inputs : mapping or sequence or array
            Arrays by name, or in the order of the engine's inputs.
        out : array or mapping, optional
            Where to write the outputs. Where their shapes depend on the data they are copied there,
            and arrays of other shapes are refused after the run.

        Returns
        -------
        array, or dict of arrays by name if there are several outputs.
        """
        arrays, bound, symbols = self._prepared(inputs)
        if self.engine.plan.graph.counts:
            outputs = self._counted(arrays, symbols)
            if out is not None:
                targets = self._outputs([a.shape for a in outputs], out)
                for target, array in zip(targets, outputs, strict=True):
                    np.copyto(target, array)
                outputs = targets
        else:
            outputs = self._outputs(bound.output_shapes, out)
            if out is not None:
                refuse_overlaps(outputs, arrays, [info.name for info in self.engine.outputs])
            self._run(bound, arrays, [a.ctypes.data for a in outputs])
        if len(outputs) == 1:
            return outputs[0]
        return {i.name: a for i, a in zip(self.engine.outputs, outputs, strict=True)}

    def _counted(
        self,
        arrays: list[np.ndarray],
        symbols: Mapping[str, int],
        times: list[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The outputs where shapes depend on the data."""
        graph = self.engine.plan.graph

        def run(bound: BoundPlan, targets: list[int]) -> None:
            self._run(bound, arrays, targets, times)

        padded, sizes = run_stages(self.engine, symbols, self._memory, run)
        by_name = dict(zip(graph.output_names, padded, strict=True))
        return [cut(by_name[name], shape, sizes) for name, _, shape in graph.results()]

    def _prepared(self, inputs: Any) -> tuple[list[np.ndarray], BoundPlan, dict[str, int]]:
        """The arrays in the order of the engine's inputs, what runs (first) for their shapes, and
        the sizes of their dimensions.
        """
        if self.closed:
            raise InputError(
                "This execution context was closed",
                where=f"a context of engine {self.engine.plan.graph.name!r}",
                why="close() was called",
                cure="create another one",
            )
        engine = self.engine
        if engine._closed:
            raise InputError(
                "The engine was closed",
                where=f"engine {engine.plan.graph.name!r}",
                why="close() was called",
                cure="load the plan again",
            )
        if not isinstance(inputs, Mapping):
            inputs = engine._by_name(inputs if isinstance(inputs, list | tuple) else (inputs,), {})
        elif inputs.keys() != set(engine._input_names):
            inputs = engine._by_name((), inputs)
        arrays = [input_array(inputs[value.name], value) for value in engine.plan.graph.inputs]
        shapes = tuple(a.shape for a in arrays)
        if self._last is None or self._last[0] != shapes:
            names = engine._input_names
            symbols = engine.plan.graph.bindings(dict(zip(names, shapes, strict=True)))
            self._last = (shapes, engine.bound(symbols), symbols)
        return arrays, *self._last[1:]

    def _run(
        self,
        bound: BoundPlan,
        arrays: list[np.ndarray],
        targets: list[int],
        record: list[np.ndarray] | None = None,
    ) -> None:
        """Runs a program; `record` receives start and end of its launches."""
        if self._arena is None or self._arena.nbytes < bound.arena_bytes:
            self._arena = self.engine.target.arena(bound.arena_bytes)
        addresses = [a.ctypes.data for a in arrays]
        if self.profiler is None and record is None:
            bound.executable.run(self._arena, addresses, targets, self.threads)
            return
        times = np.zeros((len(bound.launch_steps), 2), np.int64)
        bound.executable.run(self._arena, addresses, targets, self.threads, times)
        if record is not None:
            record.append(times)
            return
        report = getattr(self.profiler, "report_layer_time", self.profiler)
        spent: dict[int, float] = {}
        for step, (start, end) in zip(bound.launch_steps, times, strict=True):
            spent[step] = spent.get(step, 0.0) + (end - start) / 1e6
        for step, milliseconds in spent.items():
            report(self.engine.plan.steps[step].task.name, milliseconds)

    def profile(self, inputs: Any) -> np.ndarray:
        """Runs once and gives start and end of every launch in nanoseconds, int64 [launches, 2]."""
        arrays, bound, symbols = self._prepared(inputs)
        times: list[np.ndarray] = []
        if self.engine.plan.graph.counts:
            self._counted(arrays, symbols, times)
        else:
            outputs = self._outputs(bound.output_shapes, None)
            self._run(bound, arrays, [a.ctypes.data for a in outputs], times)
        return np.concatenate(times)

    def _outputs(self, shapes: Sequence[tuple[int, ...]], out: Any) -> list[np.ndarray]:
        infos = self.engine.outputs
        if out is None:
            try:
                return [np.empty(s, info.dtype) for s, info in zip(shapes, infos, strict=True)]
            except MemoryError as error:
                raise no_memory("the outputs", error) from error
        given = out if isinstance(out, Mapping) else {infos[0].name: out}
        unknown = [name for name in given if name not in {info.name for info in infos}]
        if unknown:
            raise InputError(
                f"There is no output {unknown[0]!r}",
                where="out=",
                why=f"the engine's outputs are {', '.join(map(str, infos))}",
                cure="use these names",
            )
        outputs = []
        for info, shape in zip(infos, shapes, strict=True):
            array = given.get(info.name)
            if (
                not isinstance(array, np.ndarray)
                or array.shape != shape
                or array.dtype != info.dtype
                or not array.flags.c_contiguous
                or not array.flags.writeable
            ):
                raise InputError(
                    f"out= for {info.name!r} must be a writeable, contiguous {info.dtype} array "
                    f"of shape {shape}",
                    where=f"output {info.name!r}",
                    why=f"it is {describe(array)}",
                    cure="pass an array of that dtype and shape for each output, or leave out out=",
                )
            outputs.append(array)
        return outputs

    def close(self) -> None:
        """Releases the arena."""
        self.closed = True
        self._arena = self._last = None
        self._memory = StageMemory()

    def __enter__(self) -> ExecutionContext:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

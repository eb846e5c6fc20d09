"""Engines run plans: immutable, shared by threads; contexts hold what one caller needs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.errors import DeviceError, InputError
from planish.graph.dims import DimLike
from planish.graph.graph import DimRange, Value
from planish.graph.types import DType
from planish.plan.plan import Plan
from planish.runtime.bind import BoundPlan, ConstantStore, bind
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
        self._lock = threading.Lock()
        self._contexts = threading.local()
        self._closed = False
        graph = plan.graph
        self.inputs = tuple(self._info(v, v.name) for v in graph.inputs)
        self.outputs = tuple(
            self._info(v, name) for v, name in zip(graph.outputs, graph.output_names, strict=True)
        )
        self._input_names = [info.name for info in self.inputs]

    def _info(self, value: Value, name: str) -> TensorInfo:
        ranges = self.plan.graph.ranges
        profile = {str(d): ranges[str(d)] for d in value.shape if str(d) in ranges}
        return TensorInfo(name, value.dtype.numpy, value.shape, profile)

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
                "This engine was closed", why="close() was called", cure="load the plan again"
            )
        if stream is not None:
            raise InputError(
                "The CPU has no streams", where="stream=", cure="leave out the argument"
            )
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise InputError(
                f"An execution needs at least one thread, not {threads!r}",
                where="threads=",
                cure="leave it out for all cores",
            )
        tuned_for = self.plan.about.get("threads")
        return ExecutionContext(self, threads or tuned_for or self.target.threads)

    def bound(self, symbols: Mapping[str, int]) -> BoundPlan:
        """Everything ready to run for these sizes of the dimensions; kept for the next time."""
        key = tuple(sorted(symbols.items()))
        with self._lock:
            known = self._bound.get(key)
            if known is not None:
                self._bound.move_to_end(key)
                return known
            made = bind(self.plan, symbols, self.target, self._constants)
            self._bound[key] = made
            if len(self._bound) > PROGRAMS:
                self._bound.popitem(last=False)
            return made

    def _by_name(self, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) == 1 and isinstance(args[0], Mapping) and not named:
            named, args = args[0], ()
        if len(args) > len(self.inputs):
            raise InputError(
                f"The engine has {len(self.inputs)} input(s) and was given {len(args)}",
                why=f"its inputs are {', '.join(map(str, self.inputs))}",
                cure="pass one array for each",
            )
        given = dict(zip(self._input_names, args, strict=False))
        for name, value in named.items():
            if name in given or name not in self._input_names:
                raise InputError(
                    f"{name!r} is given twice" if name in given else f"There is no input {name!r}",
                    why=f"the engine's inputs are {', '.join(map(str, self.inputs))}",
                    cure="use these names",
                )
            given[name] = value
        missing = [n for n in self._input_names if n not in given]
        if missing:
            raise InputError(
                f"Input {missing[0]!r} is missing",
                why=f"the engine's inputs are {', '.join(map(str, self.inputs))}",
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

    def layers(self) -> list[dict[str, Any]]:
        """The fused layers in order: name, origin (the user's ops), tactic, output type."""
        rows = []
        for step in self.plan.steps:
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
        self._last: tuple[tuple, BoundPlan] | None = None

    def execute(self, inputs: Any, out: Any = None) -> Any:
        """Runs the engine.

        Parameters
        ----------
        inputs : mapping or sequence or array
            Arrays by name, or in the order of the engine's inputs.
        out : array or mapping, optional
            Where to write the outputs.

        Returns
        -------
        array, or dict of arrays by name if there are several outputs.
        """
        arrays, bound = self._prepared(inputs)
        outputs = self._outputs(bound, out)
        if out is not None:
            _refuse_overlaps(outputs, arrays, self.engine)
        self._run(bound, arrays, outputs)
        if len(outputs) == 1:
            return outputs[0]
        return dict(zip(self.engine.plan.graph.output_names, outputs, strict=True))

    def _prepared(self, inputs: Any) -> tuple[list[np.ndarray], BoundPlan]:
        """The arrays in the order of the engine's inputs, and what runs for their shapes."""
        if self.closed:
            raise InputError(
                "This execution context was closed",
                why="close() was called",
                cure="create another one",
            )
        engine = self.engine
        if engine._closed:
            raise InputError(
                "The engine was closed", why="close() was called", cure="load the plan again"
            )
        if not isinstance(inputs, Mapping):
            inputs = engine._by_name(inputs if isinstance(inputs, list | tuple) else (inputs,), {})
        elif inputs.keys() != set(engine._input_names):
            inputs = engine._by_name((), inputs)
        arrays = [_input_array(inputs[value.name], value) for value in engine.plan.graph.inputs]
        shapes = tuple(a.shape for a in arrays)
        if self._last is None or self._last[0] != shapes:
            names = engine._input_names
            symbols = engine.plan.graph.bindings(dict(zip(names, shapes, strict=True)))
            self._last = (shapes, engine.bound(symbols))
        return arrays, self._last[1]

    def _run(self, bound: BoundPlan, arrays: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        if self._arena is None or self._arena.nbytes < bound.arena_bytes:
            self._arena = self.engine.target.arena(bound.arena_bytes)
        addresses = [a.ctypes.data for a in arrays]
        targets = [a.ctypes.data for a in outputs]
        if self.profiler is None:
            bound.executable.run(self._arena, addresses, targets, self.threads)
            return
        times = np.zeros((len(bound.launch_steps), 2), np.int64)
        bound.executable.run(self._arena, addresses, targets, self.threads, times)
        report = getattr(self.profiler, "report_layer_time", self.profiler)
        spent: dict[int, float] = {}
        for step, (start, end) in zip(bound.launch_steps, times, strict=True):
            spent[step] = spent.get(step, 0.0) + (end - start) / 1e6
        for step, milliseconds in spent.items():
            report(self.engine.plan.steps[step].task.name, milliseconds)

    def profile(self, inputs: Any) -> np.ndarray:
        """Runs once and gives start and end of every launch in nanoseconds, int64 [launches, 2]."""
        engine = self.engine
        arrays, bound = self._prepared(inputs)
        outputs = self._outputs(bound, None)
        times = np.zeros((len(bound.launch_steps), 2), np.int64)
        if self._arena is None or self._arena.nbytes < bound.arena_bytes:
            self._arena = engine.target.arena(bound.arena_bytes)
        bound.executable.run(
            self._arena,
            [a.ctypes.data for a in arrays],
            [a.ctypes.data for a in outputs],
            self.threads,
            times,
        )
        return times

    def _outputs(self, bound: BoundPlan, out: Any) -> list[np.ndarray]:
        infos = self.engine.outputs
        shapes = bound.output_shapes
        if out is None:
            try:
                return [np.empty(s, info.dtype) for s, info in zip(shapes, infos, strict=True)]
            except MemoryError as error:
                raise _no_memory("the outputs", error) from error
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
                    why=f"it is {_describe(array)}",
                    cure="pass an array of that dtype and shape for each output, or leave out out=",
                )
            outputs.append(array)
        return outputs

    def close(self) -> None:
        """Releases the arena."""
        self.closed = True
        self._arena = self._last = None

    def __enter__(self) -> ExecutionContext:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _input_array(given: Any, value: Value) -> np.ndarray:
    """A dense array of the input's dtype; never converts silently."""
    array = given
    if not isinstance(array, np.ndarray):
        array = _exported(given)
        if array is None:
            raise InputError(
                f"Input {value.name!r} is a {type(given).__name__}, not an array",
                where=f"input {value.name!r}",
                cure="pass a NumPy array",
            )
    if array.dtype != value.dtype.numpy:
        raise InputError(
            f"Input {value.name!r} has dtype {array.dtype}, not {value.dtype.numpy}",
            where=f"input {value.name!r}",
            why="arrays are not converted silently",
            cure=f"pass array.astype({_dtype_name(value.dtype)})",
        )
    try:
        return np.ascontiguousarray(array) if not array.flags.c_contiguous else array
    except MemoryError as error:
        raise _no_memory(f"a dense copy of input {value.name!r}", error) from error


def _no_memory(what: str, error: MemoryError) -> DeviceError:
    return DeviceError(
        f"There is no memory for {what}",
        where="host memory",
        why=str(error),
        cure="use smaller inputs, or a smaller batch",
    )


def _exported(given: Any) -> np.ndarray | None:
    """The array that another library's object shows through DLPack or ``__array__``, if any."""
    if hasattr(given, "__dlpack__"):
        try:
            return np.from_dlpack(given)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            # on another device, or of a dtype that DLPack or NumPy lacks
            if not hasattr(given, "__array__"):
                raise InputError(
                    f"A {type(given).__name__} cannot be read on the CPU",
                    why=str(error),
                    cure="copy it to the CPU, or pass a NumPy array",
                ) from error
    return np.asarray(given) if hasattr(given, "__array__") else None


def _refuse_overlaps(
    outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], engine: Engine
) -> None:
    """Kernels write outputs while inputs are still read: they must be memory of their own."""
    for i, output in enumerate(outputs):
        for other in (*inputs, *outputs[:i]):
            if np.may_share_memory(output, other):
                raise InputError(
                    f"out= for {engine.outputs[i].name!r} overlaps another array of this call",
                    where=f"output {engine.outputs[i].name!r}",
                    why="outputs are written while inputs are still read",
                    cure="pass arrays with memory of their own",
                )


def _dtype_name(dtype: DType) -> str:
    return f"np.{dtype.numpy.name}"


def _describe(array: Any) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {array.shape}"
    return f"a {type(array).__name__}"

"""Engines run plans: immutable, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planish import native
from planish.errors import InputError, ShapeError
from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.plan.plan import Plan
from planish.runtime.arrays import TensorInfo
from planish.runtime.bind import BoundPlan, ConstantStore, bind
from planish.runtime.context import ExecutionContext
from planish.targets.target import Target

if TYPE_CHECKING:
    from planish.plan.device_code import PlanCode
    from planish.tuning.ceilings import Ceilings

PROGRAMS = 16
"""Shapes for which an engine keeps everything ready; the least recently used one goes first."""


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
        self._input_set = set(self._input_names)
        self._output_names = {info.name for info in self.outputs}

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
            Where work is queued, on devices that have streams: one of cuda.core, PyTorch or
            CuPy, or its address. None: a stream of the context's own. Must be None on the CPU.
        """
        if self._closed:
            raise InputError(
                "The engine was closed",
                where=f"engine {self.plan.graph.name!r}",
                why="close() was called",
                cure="load the plan again",
            )
        queue = self._queue(stream)
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise InputError(
                f"An execution needs at least one thread, not {threads!r}",
                where="threads=",
                why="threads is the most that one execution may use",
                cure="leave it out for all cores",
            )
        tuned_for = self.plan.about.get("threads")
        return ExecutionContext(self, threads or tuned_for or self.target.threads, queue)

    def _queue(self, stream: Any) -> Any:
        """A caller's stream as the target takes it; None where there is none."""
        if stream is None:
            return None
        if not self.target.has_streams:
            raise InputError(
                "The CPU has no streams",
                where="stream=",
                why="an execution has ended when the call returns",
                cure="leave out the argument",
            )
        return self.target.stream(stream)

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

    def layers(self, ceilings: bool = False) -> list[dict[str, Any]]:
        """The fused layers in order, a dict each.

        ``name``, ``origin`` (the user's ops), ``op``, ``tactic``, ``precision``, ``output``
        (types); ``microseconds`` as tuning measured it; of a plan of several stages the ``stage``;
        ``kernels``, by the names that profilers show; ``flops`` and ``bytes`` at the usual sizes;
        ``tensor_cores`` (None on machines without), ``why_no_tensor_cores``;
        ``gigaflops_per_second``, ``gigabytes_per_second``; ``of_ceiling``, the share of the time
        that would do if the machine ran at what it reaches with large products and copies, and
        which of both ``bound`` it.

        Parameters
        ----------
        ceilings : bool
            Measures what the machine can reach, if that is not in the timing cache yet: seconds,
            once. Without it ``of_ceiling`` is None then; it always is for a plan that was tuned on
            another machine.
        """
        from planish.runtime.layers import layer_rows

        return layer_rows(self, self.ceilings(measure=ceilings))

    @property
    def was_tuned_here(self) -> bool:
        """Whether the plan's times are of this machine and version."""
        return self.plan.about.get("machine") == self.target.timing_key

    def ceilings(self, measure: bool = True) -> Ceilings | None:
        """What the machine can reach, see `layers`; None for a plan that was tuned on another one,
        and where it is not known and not to be measured.
        """
        from planish.tuning.ceilings import ceilings

        if not self.was_tuned_here:
            return None
        return ceilings(self.target, self.plan.about.get("threads"), measure)

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

    def serialize(self, device_code: bool = True) -> bytes:
        """The plan as bytes; see `save`."""
        from planish.plan.file import serialize

        return serialize(self.plan, self._code(device_code))

    def save(self, path: Any, device_code: bool = True) -> None:
        """Writes the plan to a file, replacing it atomically.

        Parameters
        ----------
        path : path
        device_code : bool
            Whether a plan for a GPU takes along what its kernels were compiled to, which
            ``planish.load(..., allow_device_code=True)`` runs without a compiler.

        Raises
        ------
        PlanError
            The file cannot be written (no space, no permission); an old file is left as it was.
        """
        from planish.plan.file import save

        save(self.plan, path, self._code(device_code))

    def _code(self, wanted: bool) -> PlanCode | None:
        from planish.plan.device_code import code_of

        return code_of(self.plan, self.target) if wanted else None

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

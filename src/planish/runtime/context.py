"""Execution contexts: what one caller of an engine needs, and the path of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import InputError
from planish.plan.stages import Stage
from planish.runtime.arrays import address_of, input_array, output_arrays, refuse_overlaps
from planish.runtime.bind import BoundPlan
from planish.runtime.staged import StageMemory, cut, run_stages

if TYPE_CHECKING:
    from planish.runtime.engine import Engine

Profiler = Callable[[str, float], None]


class ExecutionContext:
    """The arena of one caller. Not thread-safe: one execution at a time.

    Attributes
    ----------
    profiler : object or callable, optional
        Called with (layer name, milliseconds) after each execution for each layer; an object with
        a method ``report_layer_time`` works too.
    """

    def __init__(self, engine: Engine, threads: int, queue: Any = None) -> None:
        self.engine = engine
        self.threads = threads
        self._queue = queue
        self.profiler: Any = None
        self.closed = False
        self._arena: Any = None
        self._last: tuple[tuple, BoundPlan, dict[str, int]] | None = None
        self._apart: tuple[BoundPlan, list[int]] | None = None
        self._memory = StageMemory(engine.target)

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
            if out is not None or not all(isinstance(a, np.ndarray) for a in arrays):
                given = self._outputs([a.shape for a in outputs], out, arrays)
                for target, array in zip(given, outputs, strict=True):
                    self._copy(array, target)
                outputs = given
        else:
            outputs = self._outputs(bound.output_shapes, out, arrays)
            targets = [address_of(a) for a in outputs]
            if out is not None:
                self._refuse_overlaps(bound, arrays, outputs, targets)
            self._run(bound, arrays, targets, outputs=outputs)
        if len(outputs) == 1:
            return outputs[0]
        return {i.name: a for i, a in zip(self.engine.outputs, outputs, strict=True)}

    def _refuse_overlaps(
        self, bound: BoundPlan, arrays: list[Any], outputs: list[Any], targets: list[int]
    ) -> None:
        """See `refuse_overlaps`; arrays at the places of the last call are not compared again."""
        places = [address_of(a) for a in arrays] + targets
        if self._apart is not None and self._apart[0] is bound and self._apart[1] == places:
            return
        refuse_overlaps(outputs, arrays, [info.name for info in self.engine.outputs])
        self._apart = bound, places

    def enqueue(self, inputs: Any, outputs: Any, stream: Any = None) -> None:
        """Queues an execution on a stream and returns, where all arrays are on the device.

        Parameters
        ----------
        inputs : mapping or sequence or array
            As `execute` takes them. They must stay as they are until the work is done.
        outputs : array or mapping
            Where to write every output.
        stream : optional
            See `Engine.create_execution_context`; None: the context's. On a device without
            streams, and where an array lies on the host, the work is done when this returns.

        Raises
        ------
        InputError
            An output is missing, or an array does not fit; nothing is queued.
        """
        names = self.engine._output_names
        given = outputs.keys() if isinstance(outputs, Mapping) else {self.engine.outputs[0].name}
        if names != given:
            raise InputError(
                "enqueue needs an array for every output",
                where="outputs=",
                why=f"the engine's outputs are {', '.join(map(str, self.engine.outputs))}",
                cure="pass a mapping with an array for each name",
            )
        if stream is None:
            self.execute(inputs, out=outputs)
            return
        before = self._queue
        self._queue = self.engine._queue(stream)
        try:
            self.execute(inputs, out=outputs)
        finally:
            self._queue = before

    def _counted(
        self,
        arrays: list[Any],
        symbols: Mapping[str, int],
        times: list[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The outputs where shapes depend on the data."""
        graph = self.engine.plan.graph

        def run(bound: BoundPlan, part: Stage, targets: list[int]) -> None:
            read = [a if i in part.inputs else None for i, a in enumerate(arrays)]
            self._run(bound, read, targets, times)
            if self._queue is not None:  # counts are about to be read
                self._queue.sync()

        padded, sizes = run_stages(self.engine, symbols, self._memory, run)
        by_name = dict(zip(graph.output_names, padded, strict=True))
        return [cut(by_name[name], shape, sizes) for name, _, shape in graph.results()]

    def _prepared(self, inputs: Any) -> tuple[list[Any], BoundPlan, dict[str, int]]:
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
        elif inputs.keys() != engine._input_set:
            inputs = engine._by_name((), inputs)
        target = engine.target
        arrays = [
            input_array(inputs[v.name], v, target, self._queue) for v in engine.plan.graph.inputs
        ]
        shapes = tuple(a.shape for a in arrays)
        if self._last is None or self._last[0] != shapes:
            names = engine._input_names
            symbols = engine.plan.graph.bindings(dict(zip(names, shapes, strict=True)))
            self._last = (shapes, engine.bound(symbols), symbols)
        return arrays, *self._last[1:]

    def _run(
        self,
        bound: BoundPlan,
        arrays: list[Any],
        targets: list[int],
        record: list[np.ndarray] | None = None,
        outputs: Sequence[Any] = (),
    ) -> None:
        """Runs a program; `record` receives start and end of its launches."""
        if self._arena is None or self._arena.nbytes < bound.arena_bytes:
            self._arena = self.engine.target.arena(bound.arena_bytes)
        addresses = [0 if a is None else address_of(a) for a in arrays]
        run, queue = bound.executable.run, self._queue
        if self.profiler is None and record is None:
            foreign = [a for a in outputs if not isinstance(a, np.ndarray)]
            local = len(foreign) == len(targets) and not any(
                isinstance(a, np.ndarray) for a in arrays
            )
            run(self._arena, addresses, targets, self.threads, stream=queue, local=local)
            for array in foreign:
                array.written_on(queue)
            return
        times = np.zeros((len(bound.launch_steps), 2), np.int64)
        run(self._arena, addresses, targets, self.threads, times, stream=queue)
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
            outputs = self._outputs(bound.output_shapes, None, arrays)
            self._run(bound, arrays, [address_of(a) for a in outputs], times)
        return np.concatenate(times)

    def _outputs(
        self, shapes: Sequence[tuple[int, ...]], out: Any, arrays: Sequence[Any]
    ) -> list[Any]:
        engine = self.engine
        return output_arrays(engine.outputs, shapes, out, arrays, engine.target, self._queue)

    def _copy(self, array: np.ndarray, target: Any) -> None:
        """Copies an array on the host to one that may be the target's own."""
        if isinstance(target, np.ndarray):
            np.copyto(target, array)
        elif array.size:
            self.engine.target.write_array(target, np.ascontiguousarray(array))

    def close(self) -> None:
        """Releases the arena."""
        self.closed = True
        self._arena = self._last = self._apart = None
        self._memory = StageMemory(self.engine.target)

    def __enter__(self) -> ExecutionContext:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""INT8 calibration inside TensorFlow: what each segment is given while the native graph runs.

In the *calibration graph* the inputs of every segment pass through a Python function, which hands
them to the segment's `Collector`:

    before ──▶ segment            before ──▶ PyFunc ──▶ segment (native)
                                               │
                                               └─▶ Collector: runs the segment's own graph

All users' ways of calibrating run this graph: a function that yields inputs (TensorFlow 2), a
session that `calibrate` runs, and one of the user's own between `create_inference_graph` and
`calib_graph_to_infer_graph` (TensorFlow 1). It runs in this process only, as TF-TRT's did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from planish.errors import PlanishError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.model import tensorflow
from planish.frontends.tensorflow.weights import Weights, put_back
from planish.passes import optimize
from planish.profile import settle_ranges
from planish.quantization.calibrator import Calibrator
from planish.quantization.collect import Collector
from planish.quantization.ranges import Ranges
from planish.tensorflow.engines import thread_count
from planish.tensorflow.function import FrozenFunction, make_function
from planish.tensorflow.segments import Segment, import_segment
from planish.tensorflow.settings import Settings

_running: dict[str, Calibration] = {}
"""The calibrations of this process, by the tokens of their nodes."""


class Calibration:
    """The segments of a graph while they are calibrated. A context manager.

    Parameters
    ----------
    graph_def : GraphDef
        Frozen, without calls of functions.
    segments : mapping of str to Segment
        By the names of the engines to be.
    settings : Settings
    weights : Weights, optional
        The arrays of nodes that only stand for them.

    Attributes
    ----------
    graph_def : GraphDef
        The calibration graph; it has the same inputs, outputs and weights.
    finish : callable
        Gives the graph for inference that follows; whoever begins a calibration sets it.
    """

    def __init__(
        self,
        graph_def: Any,
        segments: Mapping[str, Segment],
        settings: Settings,
        weights: Weights | None = None,
    ) -> None:
        self.weights = weights or {}
        self.finish: Callable[[], Any] = lambda: None
        self._error: BaseException | None = None
        self._exit = ExitStack()
        self._observers: dict[str, _Observer] = {}
        self.graph_def = type(graph_def)()
        self.graph_def.CopyFrom(graph_def)
        for name, segment in segments.items():
            graph = import_segment(graph_def, segment, name, self.weights)
            settle_ranges(graph)
            optimize(graph)
            collector = Collector(graph, target=settings.device, threads=thread_count())
            self._exit.enter_context(collector)
            observer = _Observer(collector, [v.name for v in graph.inputs], self._failed)
            self._observers[name] = observer
            token = observer.register([v.dtype.numpy for v in graph.inputs])
            _insert(self.graph_def, segment, name, token, observer.types)
            _running[token] = self
            self._exit.callback(_running.pop, token, None)

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the engines that observe; the calibration graph cannot be run any more."""
        self._exit.close()

    def ranges(self, calibrator: Calibrator) -> dict[str, Ranges]:
        """The ranges of each engine's tensors, by its name.

        Raises
        ------
        CalibrationError
            The graph was not run, or values are NaN or infinite.
        """
        return {
            name: observer.collector.ranges(calibrator)
            for name, observer in self._observers.items()
        }

    # ---- running --------------------------------------------------------------------------

    def run_function(self, frozen: FrozenFunction, batches: Iterable[Mapping[str, Any]]) -> None:
        """Runs the graph as a function of TensorFlow 2.

        Parameters
        ----------
        frozen : FrozenFunction
            The function whose graph it is.
        batches : iterable of mappings
            Tensors by the function's keywords.
        """
        tf = tensorflow()
        read = {graphdef.tensor_name(t)[0] for n in self.graph_def.node for t in n.input}
        variables = {
            name: tf.Variable(array, trainable=False)
            for name, array in self.weights.items()
            if name in read
        }
        function = make_function(self.graph_def, frozen, frozen.outputs, {}, variables)
        with self._own_errors():
            for batch in batches:
                # empty ones tell nothing, and TensorFlow refuses to convolve them on some CPUs
                if all(np.prod(tensor.shape) for tensor in batch.values()):
                    function(**batch)

    def run_session(
        self,
        fetch_names: Iterable[str],
        num_runs: int,
        feed_dict_fn: Callable[[], Mapping[str, Any]] | None = None,
        input_map_fn: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Runs the graph in a session of TensorFlow 1, as TF-TRT's ``calibrate`` did.

        Parameters
        ----------
        fetch_names : iterable of str
            Operations or tensors.
        num_runs : int
        feed_dict_fn : callable, optional
            Gives what is fed to each run, by the names of tensors.
        input_map_fn : callable, optional
            Gives what takes the place of inputs, made inside the session's graph.
        """
        tf = tensorflow()
        body = type(self.graph_def)()
        body.CopyFrom(self.graph_def)
        put_back(body, self.weights)
        with tf.Graph().as_default() as graph, self._own_errors():
            fetches = tf.graph_util.import_graph_def(
                body,
                input_map=input_map_fn() if input_map_fn else None,
                return_elements=list(fetch_names),
                name="",
            )
            with tf.compat.v1.Session(graph=graph) as session:
                for _ in range(num_runs):
                    session.run(fetches, feed_dict=feed_dict_fn() if feed_dict_fn else None)

    def _failed(self, error: BaseException) -> None:
        self._error = self._error or error

    @contextmanager
    def _own_errors(self) -> Any:
        """Raises what a collector raised, rather than what TensorFlow makes of it."""
        try:
            yield
        except tensorflow().errors.OpError:
            if self._error is not None:
                raise self._error from None
            raise


class _Observer:
    """The Python function of a segment."""

    def __init__(
        self, collector: Collector, names: list[str], failed: Callable[[BaseException], None]
    ) -> None:
        self.collector = collector
        self._names, self._failed = names, failed
        self._lock = threading.Lock()  # a collector takes one batch at a time
        self.types: list[int] = []
        self._kept: Any = None

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        try:
            if all(array.size for array in arrays):
                batch = dict(zip(self._names, map(np.asarray, arrays), strict=True))
                with self._lock:
                    self.collector.add(batch)
        except (PlanishError, KeyboardInterrupt) as error:
            self._failed(error)
            raise
        return list(arrays)

    def register(self, dtypes: list[np.dtype]) -> str:
        """Makes the function known to TensorFlow; gives the token by which nodes call it."""
        v1 = tensorflow().compat.v1
        with tensorflow().Graph().as_default() as graph:
            inputs = [v1.placeholder(dtype) for dtype in dtypes]
            v1.py_func(self, inputs, [x.dtype for x in inputs])
            (node,) = (n for n in graph.as_graph_def().node if n.op == "PyFunc")
        self.types = [x.dtype.as_datatype_enum for x in inputs]
        self._kept = graph  # TensorFlow forgets the function with the graph
        return node.attr["token"].s.decode()


def find_calibration(graph_def: Any) -> Calibration | None:
    """The calibration of this process that a graph belongs to, while it lasts."""
    for node in graph_def.node:
        if node.op == "PyFunc" and (found := _running.get(node.attr["token"].s.decode())):
            return found
    return None


def _insert(graph_def: Any, segment: Segment, name: str, token: str, types: Iterable[int]) -> None:
    """Puts the observing node of a segment before it, in place."""
    observer = f"{name}/calibrate"
    place = {t: f"{observer}:{i}" if i else observer for i, t in enumerate(segment.inputs)}
    members = set(segment.nodes)
    for node in graph_def.node:
        if node.name in members:
            inputs = [
                t if graphdef.is_control(t) else place.get(graphdef.tensor_name(t), t)
                for t in node.input
            ]
            del node.input[:]
            node.input.extend(inputs)
    node = graph_def.node.add(name=observer, op="PyFunc")
    node.input.extend(f"{n}:{i}" if i else n for n, i in segment.inputs)
    node.attr["token"].s = token.encode()
    for attribute in ("Tin", "Tout"):
        node.attr[attribute].list.type.extend(types)

"""TF-TRT's converter for TensorFlow 1: frozen GraphDefs, and SavedModels with sessions.

A GraphDef has no assets, so a plan is a constant in it. Names of outputs stay.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from planish.errors import InputError, PlanError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.load import load_graph_def
from planish.frontends.tensorflow.model import LoadedModel, ModelOutput, tensorflow
from planish.frontends.tensorflow.weights import Weights, put_back
from planish.quantization.calibration import DEFAULT
from planish.quantization.ranges import Ranges
from planish.runtime.engine import Engine
from planish.tensorflow.calibration import Calibration, find_calibration
from planish.tensorflow.conversion import convert_graph_def, name_segments
from planish.tensorflow.converter_base import ConverterBase, whole_folder
from planish.tensorflow.engines import registry
from planish.tensorflow.optimize import optimize_graph_def
from planish.tensorflow.parameters import (
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    ArgumentError,
    OrderError,
    TrtConversionParams,
    TrtPrecisionMode,
    needs_calibration,
    settle_precision,
)
from planish.tensorflow.rewrite import keep_names
from planish.tensorflow.segments import find_segments
from planish.tensorflow.settings import Settings

log = logging.getLogger("planish")

_LARGEST = 2**31 - 1
"""Bytes that a protobuf message may have."""


class TrtGraphConverter(ConverterBase):
    """Converts a frozen GraphDef or a SavedModel, as TF-TRT's class of this name did.

    >>> converter = TrtGraphConverter(input_graph_def=frozen, nodes_denylist=["logits"])
    >>> graph_def = converter.convert()

    Parameters
    ----------
    input_saved_model_dir : path, optional
    input_saved_model_tags : list of str, optional
        Default ``["serve"]``.
    input_saved_model_signature_key : str, optional
        Default ``"serving_default"``.
    input_graph_def : GraphDef, optional
        Instead of a SavedModel.
    nodes_denylist : list of str or tensors, optional
        Nodes that stay as they are; of a GraphDef, also its outputs.
    max_batch_size : int
        Checked as TF-TRT did; engines take any batch.
    max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines,
    use_calibration
        See `TrtConversionParams`.
    is_dynamic_op : bool
        Without effect: engines take every shape.
    nodes_blacklist
        The former name of `nodes_denylist`.
    device : str
        Where engines run: "cpu", "cuda:0".

    Raises
    ------
    ArgumentError
        An argument is wrong; it is a ValueError, too.
    """

    def __init__(
        self,
        input_saved_model_dir: str | os.PathLike[str] | None = None,
        input_saved_model_tags: Iterable[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        input_graph_def: Any = None,
        nodes_denylist: Iterable[Any] | None = None,
        max_batch_size: int | None = 1,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        is_dynamic_op: bool = False,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        nodes_blacklist: Iterable[Any] | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        tensorflow()
        if (input_graph_def is None) == (input_saved_model_dir is None):
            both = input_graph_def is not None
            raise ArgumentError(
                f"{'Can only' if both else 'Must'} specify one of input_graph_def and "
                "input_saved_model_dir",
                where="input_graph_def=, input_saved_model_dir=",
                why=f"{'both are' if both else 'none is'} given",
                cure="pass the GraphDef or the folder",
            )
        if not is_dynamic_op and not isinstance(max_batch_size, int):
            raise ArgumentError(
                "When is_dynamic_op==False max_batch_size should be an integer",
                where="max_batch_size=",
                why=f"it is {max_batch_size!r}",
                cure="leave the argument out: engines take any batch",
            )
        params = TrtConversionParams(
            max_workspace_size_bytes,
            precision_mode,
            minimum_segment_size,
            maximum_cached_engines,
            use_calibration,
        )
        super().__init__(
            params,
            input_saved_model_dir,
            input_saved_model_tags,
            input_saved_model_signature_key,
            device,
        )
        self._graph_def = input_graph_def
        denied = nodes_denylist if nodes_denylist is not None else nodes_blacklist
        self._denied = [_tensor(item) for item in denied or ()]
        self._outputs = list(self._denied)
        self._model: LoadedModel | None = None
        self._calibration: Calibration | None = None

    @classmethod
    def of_graph(
        cls, graph_def: Any, outputs: Iterable[Any], **arguments: Any
    ) -> TrtGraphConverter:
        """A converter of a GraphDef whose outputs may be computed by engines."""
        converter = cls(input_graph_def=graph_def, **arguments)
        converter._outputs = [_tensor(item) for item in outputs]
        return converter

    def convert(self) -> Any:
        """Finds the segments, builds their engines, and gives the new GraphDef.

        For INT8 with calibration it gives the graph to calibrate: `calibrate` runs it, or a session
        of the user's does, upon which `calib_graph_to_infer_graph` makes the new GraphDef.

        Raises
        ------
        OrderError
            The model was converted already.
        ModelError, InputError
            The model cannot be read, or lacks an output that is named.
        PrecisionError
            There are no kernels for the precision.
        """
        self._before_convert(begun=self._calibration is not None)
        self._precisions = settle_precision(self._params, self._device)
        model = self._load()
        inputs = [graphdef.tensor_name(i.tensor)[0] for i in model.inputs]
        outputs = [graphdef.tensor_name(o.tensor)[0] for o in model.outputs]
        source, weights = optimize_graph_def(model.graph_def, [*inputs, *outputs], model.weights)
        self._model = model
        if not needs_calibration(self._params):
            return self._finished(source, weights, outputs)
        found = find_segments(
            source, map(graphdef.tensor_name, self._ends()), self._own_settings(), weights=weights
        )
        segments = name_segments(source, found.segments)
        calibration = Calibration(source, segments, self._own_settings(), weights)

        def finish() -> Any:
            with calibration:
                ranges = calibration.ranges(DEFAULT())
            return self._finished(source, weights, outputs, ranges)

        calibration.finish, self._calibration = finish, calibration
        graph_def = type(source)()
        graph_def.CopyFrom(calibration.graph_def)
        put_back(graph_def, weights)
        return graph_def

    def _ends(self) -> list[str]:
        """The tensors that stay available."""
        assert self._model is not None
        return _with_lower_outputs(o.tensor for o in self._model.outputs)

    def _own_settings(self) -> Settings:
        return self._settings(denied_nodes=frozenset(self._denied))

    def _finished(
        self,
        source: Any,
        weights: Weights,
        outputs: list[str],
        ranges: Mapping[str, Ranges] | None = None,
    ) -> Any:
        """The GraphDef with engines; `ranges` by their names, where they were calibrated."""
        result = convert_graph_def(
            source,
            self._ends(),
            self._own_settings(),
            _store_in_constant,
            weights=weights,
            calibrate=None if ranges is None else lambda segments: ranges,
        )
        keep_names(result.graph_def, result.engines, outputs)
        native = result.native_weights()
        size = result.graph_def.ByteSize() + sum(array.nbytes for array in native.values())
        if size > _LARGEST:
            raise PlanError(
                "The converted graph is larger than 2 GB",
                why="a GraphDef holds its plans, and TensorFlow limits its size",
                cure="convert a SavedModel with TrtGraphConverterV2, which keeps plans in files",
            )
        put_back(result.graph_def, native)
        self._result = result
        return result.graph_def

    def calibrate(
        self,
        fetch_names: Iterable[str],
        num_runs: int,
        feed_dict_fn: Callable[[], Mapping[str, Any]] | None = None,
        input_map_fn: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Any:
        """Measures the ranges of values for INT8, and gives the new GraphDef.

        Parameters
        ----------
        fetch_names : iterable of str
            Operations or tensors that are computed.
        num_runs : int
            How many batches there are.
        feed_dict_fn : callable, optional
            Gives what is fed to each run, by the names of tensors.
        input_map_fn : callable, optional
            Gives tensors that take the place of inputs, made in the graph that is run.

        Raises
        ------
        OrderError
            Before `convert`, where the precision needs no calibration, or a second time.
        CalibrationError
            There are no batches, or what they give is NaN or infinite.
        ArgumentError
            Not exactly one of the two functions is given; it is a ValueError, too.
        """
        if (feed_dict_fn is None) == (input_map_fn is None):
            raise ArgumentError(
                "Should specify one and only one of feed_dict_fn and input_map_fn.",
                where="calibrate()",
                why="none of them is given" if feed_dict_fn is None else "both of them are given",
                cure="pass the one that feeds the calibration data",
            )
        if self._calibration is None or self._result is not None:
            self._after_convert("calibrate()")
            done = self._calibration is not None
            raise OrderError(
                "calibrate() was called already"
                if done
                else f"{self._params.precision_mode} needs no calibration",
                where="calibrate()",
                why="ranges are measured once" if done else "only INT8 measures ranges",
                cure="use the graph that it gave" if done else "use the graph that convert() gave",
            )
        self._calibration.run_session(fetch_names, num_runs, feed_dict_fn, input_map_fn)
        return self._calibration.finish()

    def save(self, output_saved_model_dir: str | os.PathLike[str]) -> None:
        """Writes the converted model as a SavedModel of TensorFlow 1.

        Raises
        ------
        OrderError
            Before `convert`.
        ArgumentError
            The input was a GraphDef, which has no signature; it is a ValueError, too.
        PlanError
            The folder cannot be written (no space, no permission).
        """
        if self._calibration is not None and self._result is None:
            self._after_convert("save()", "Need to call calibrate() before {}")
        result = self._after_convert("save()")
        assert self._model is not None
        if self._graph_def is not None:
            raise ArgumentError(
                "Not able to save to a SavedModel since input is a GraphDef",
                where="save()",
                why="a GraphDef has no signature",
                cure="write the GraphDef that convert() gave to a file",
            )
        v1 = tensorflow().compat.v1
        graph_def, model = result.graph_def, self._model
        with whole_folder(output_saved_model_dir) as folder:
            builder = v1.saved_model.Builder(folder)
            with tensorflow().Graph().as_default() as graph, v1.Session(graph=graph) as session:
                tensorflow().graph_util.import_graph_def(graph_def, name="")

                def described(ends: Iterable[Any]) -> dict[str, Any]:
                    return {
                        end.name: v1.saved_model.build_tensor_info(
                            graph.get_tensor_by_name(end.tensor)
                        )
                        for end in ends
                    }

                signature = v1.saved_model.build_signature_def(
                    described(model.inputs),
                    described(model.outputs),
                    v1.saved_model.signature_constants.PREDICT_METHOD_NAME,
                )
                builder.add_meta_graph_and_variables(
                    session, self._tags, signature_def_map={self._signature: signature}
                )
            builder.save()

    def _load(self) -> LoadedModel:
        if self._graph_def is None:
            assert self._folder is not None
            return load_graph_def(self._folder, tags=self._tags, signature=self._signature)
        model = load_graph_def(self._graph_def)
        if not self._outputs:
            return model
        nodes = graphdef.nodes_by_name(model.graph_def)
        for name in self._outputs:
            if graphdef.tensor_name(name)[0] not in nodes:
                raise InputError(
                    f"The graph has no node {graphdef.tensor_name(name)[0]!r}",
                    where="outputs= or nodes_denylist=",
                    cure="pass names of nodes of the graph",
                )
        outputs = tuple(ModelOutput(n, n) for n in dict.fromkeys(self._outputs))
        return replace(model, outputs=outputs)


def create_inference_graph(
    input_graph_def: Any,
    outputs: Iterable[Any] | None,
    max_batch_size: int = 1,
    max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    precision_mode: str = TrtPrecisionMode.FP32,
    minimum_segment_size: int = 3,
    is_dynamic_op: bool = False,
    maximum_cached_engines: int = 1,
    input_saved_model_dir: str | os.PathLike[str] | None = None,
    input_saved_model_tags: Iterable[str] | None = None,
    input_saved_model_signature_key: str | None = None,
    output_saved_model_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """The GraphDef with its convertible parts replaced by engines.

    Parameters
    ----------
    input_graph_def : GraphDef or None
        A frozen graph; None: the SavedModel's.
    outputs : list of str or tensors
        The outputs of the GraphDef.
    output_saved_model_dir : path, optional
        Where to save the result; only of a SavedModel.
    max_batch_size, max_workspace_size_bytes, precision_mode, minimum_segment_size, is_dynamic_op,
    maximum_cached_engines, input_saved_model_dir, input_saved_model_tags,
    input_saved_model_signature_key
        See `TrtGraphConverter`.

    Raises
    ------
    ArgumentError
        The arguments contradict each other; it is a ValueError, too.
    ModelError, InputError, PrecisionError
        As for `TrtGraphConverter.convert`.
    """
    arguments: dict[str, Any] = {
        "max_batch_size": max_batch_size,
        "max_workspace_size_bytes": max_workspace_size_bytes,
        "precision_mode": precision_mode,
        "minimum_segment_size": minimum_segment_size,
        "is_dynamic_op": is_dynamic_op,
        "maximum_cached_engines": maximum_cached_engines,
        "use_calibration": True,
    }
    saved_model: dict[str, Any] = {
        "input_saved_model_dir": input_saved_model_dir,
        "input_saved_model_tags": input_saved_model_tags,
        "input_saved_model_signature_key": input_saved_model_signature_key,
    }
    if input_graph_def is not None and input_saved_model_dir is None:
        names = [outputs] if isinstance(outputs, str) else outputs or ()
        converter = TrtGraphConverter.of_graph(input_graph_def, names, **arguments)
    else:
        converter = TrtGraphConverter(input_graph_def=input_graph_def, **saved_model, **arguments)
    graph_def = converter.convert()
    if output_saved_model_dir:
        converter.save(output_saved_model_dir)
    return graph_def


def calib_graph_to_infer_graph(calibration_graph_def: Any, is_dynamic_op: bool = False) -> Any:
    """The graph for inference of a graph whose calibration was run.

    Only INT8 is calibrated: what `create_inference_graph` gives for other precisions is ready to
    run, and comes back as it is.

    Raises
    ------
    InputError
        The graph has no engines of Planish, and is not being calibrated.
    CalibrationError
        The graph was not run, or what it gave is NaN or infinite.
    """
    if (calibration := find_calibration(calibration_graph_def)) is not None:
        return calibration.finish()
    nodes = list(calibration_graph_def.node)
    nodes += [n for f in calibration_graph_def.library.function for n in f.node_def]
    if not any(n.op == "PlanishEngine" for n in nodes):
        raise InputError(
            "The graph has no engines",
            where="calibration_graph_def=",
            cure="pass the graph that create_inference_graph gave",
        )
    return calibration_graph_def


def _store_in_constant(graph_def: Any, name: str, engine: Engine) -> str:
    """See `PlanStore`."""
    plan = engine.serialize(device_code=False)  # nothing there may use it
    if len(plan) > _LARGEST:
        raise PlanError(
            f"The plan of {name} is larger than 2 GB",
            why="a GraphDef holds its plans, and TensorFlow limits its size",
            cure="convert a SavedModel with TrtGraphConverterV2, which keeps plans in files",
        )
    node = graph_def.node.add(name=f"{name}/plan", op="Const")
    node.attr["dtype"].type = 7
    tensor = node.attr["value"].tensor
    tensor.dtype = 7
    tensor.tensor_shape.SetInParent()
    tensor.string_val.append(plan)
    registry.put(plan, engine)
    return node.name


def _with_lower_outputs(tensors: Iterable[str]) -> list[str]:
    """Each tensor, and the outputs before it of the same node, which keep their numbers."""
    found: dict[str, None] = {}
    for text in tensors:
        name, index = graphdef.tensor_name(text)
        found.update(dict.fromkeys(f"{name}:{i}" for i in range(index + 1)))
    return list(found)


def _tensor(item: Any) -> str:
    """The name of a node or tensor, of itself or of TensorFlow's object."""
    if isinstance(item, bytes):
        return item.decode()
    return item if isinstance(item, str) else item.name

"""TF-TRT's converter for TensorFlow 2: a SavedModel goes in, one with engines comes out.

Plans are assets of the SavedModel, so that engine nodes find them wherever the folder is moved.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from planish.errors import InputError
from planish.frontends.tensorflow.model import tensorflow
from planish.graph.graph import DimRange
from planish.profile import tuning_points
from planish.quantization.calibration import DEFAULT
from planish.quantization.ranges import Ranges
from planish.runtime.engine import Engine
from planish.tensorflow.calibration import Calibration
from planish.tensorflow.conversion import build_segment, convert_graph_def
from planish.tensorflow.converter_base import ConverterBase, whole_folder
from planish.tensorflow.engines import registry
from planish.tensorflow.function import (
    FrozenFunction,
    freeze_function,
    load_function,
    make_function,
)
from planish.tensorflow.names import asset_name
from planish.tensorflow.parameters import (
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    ArgumentError,
    OrderError,
    TrtConversionParams,
    TrtPrecisionMode,
    check_profile_strategy,
    needs_calibration,
    settle_precision,
)
from planish.tensorflow.segments import Segment
from planish.tensorflow.summary import write_summary

log = logging.getLogger("planish")


class TrtGraphConverterV2(ConverterBase):
    """Converts a SavedModel of TensorFlow 2, as TF-TRT's class of this name did.

    >>> converter = TrtGraphConverterV2(input_saved_model_dir="resnet50")
    >>> converter.convert()
    >>> converter.build(input_fn=lambda: [(images,)])  # optional: tunes for these shapes
    >>> converter.save("resnet50_planish")

    Parameters
    ----------
    input_saved_model_dir : path
    input_saved_model_tags : list of str, optional
        Default ``["serve"]``.
    input_saved_model_signature_key : str, optional
        The signature to convert; default ``"serving_default"``.
    use_dynamic_shape, dynamic_shape_profile_strategy
        Accepted; engines take any shape that the model takes.
    max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines,
    use_calibration, allow_build_at_runtime
        See `TrtConversionParams`.
    conversion_params : TrtConversionParams, optional
        Wins over the single arguments.
    device : str
        Where engines run: "cpu", or "cuda:0", also inside a TensorFlow without GPU support. TF-TRT
        had no such argument.

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
        use_dynamic_shape: bool | None = None,
        dynamic_shape_profile_strategy: str | None = None,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        allow_build_at_runtime: bool = True,
        conversion_params: Any = None,
        *,
        device: str = "cpu",
    ) -> None:
        tensorflow()
        params: Any = conversion_params or TrtConversionParams(
            max_workspace_size_bytes,
            precision_mode,
            minimum_segment_size,
            maximum_cached_engines,
            use_calibration,
            allow_build_at_runtime,
        )
        super().__init__(
            params,
            input_saved_model_dir,
            input_saved_model_tags,
            input_saved_model_signature_key,
            device,
        )
        if input_saved_model_dir is None:
            raise ArgumentError(
                "There is no model to convert",
                where="input_saved_model_dir=",
                why="the argument is missing",
                cure="pass the folder of a SavedModel",
            )
        if use_dynamic_shape and dynamic_shape_profile_strategy is not None:
            check_profile_strategy(dynamic_shape_profile_strategy)
        self._plans: _PlanFolder | None = None
        self._frozen: FrozenFunction | None = None
        self._function: Any = None
        self._variables: dict[str, Any] = {}

    # ---- the three steps ------------------------------------------------------------------

    def convert(self, calibration_input_fn: Callable[[], Iterable[Any]] | None = None) -> Any:
        """Finds the segments, builds their engines, and gives the converted function.

        Parameters
        ----------
        calibration_input_fn : callable, optional
            Yields inputs; for INT8 with calibration, and for nothing else.

        Returns
        -------
        ConcreteFunction
            With the signature's inputs and outputs.

        Raises
        ------
        ArgumentError
            The calibration function is missing or not needed; it is a ValueError, too.
        OrderError
            The model was converted already.
        ModelError
            The SavedModel cannot be read.
        PrecisionError
            There are no kernels for the precision.
        CalibrationError
            The inputs cannot be used for calibration.
        """
        self._before_convert()
        needed = needs_calibration(self._params)
        if needed != (calibration_input_fn is not None):
            raise ArgumentError(
                f"Should {'' if needed else 'not '}specify calibration_input_fn",
                where="calibration_input_fn=",
                why=f"INT8 calibration is {'' if needed else 'not '}needed",
                cure="pass a function that yields inputs" if needed else "leave the argument out",
            )
        self._precisions = settle_precision(self._params, self._device)
        assert self._folder is not None
        loaded, function = load_function(self._folder, self._tags, self._signature)
        self._frozen = frozen = freeze_function(loaded, function)
        plans = _PlanFolder()

        def calibrate(segments: Mapping[str, Segment]) -> dict[str, Ranges]:
            assert calibration_input_fn is not None
            with Calibration(
                frozen.graph_def, segments, self._settings(), frozen.weights
            ) as calibration:
                batches = (self._arguments(given) for given in calibration_input_fn())
                calibration.run_function(frozen, batches)
                return calibration.ranges(DEFAULT())

        result = convert_graph_def(
            frozen.graph_def,
            frozen.outputs.values(),
            self._settings(),
            plans.store,
            weights=frozen.weights,
            calibrate=calibrate if needed else None,
        )
        self._plans, self._result = plans, result
        tf = tensorflow()
        self._variables = {
            name: tf.Variable(array, trainable=False, name="weight")
            for name, array in result.native_weights().items()
        }
        self._function = self._make_function()
        return self._function

    def build(self, input_fn: Callable[[], Iterable[Any]]) -> None:
        """Tunes the engines for the shapes of these inputs, and makes everything ready for them.

        May be called again, for other shapes.

        Parameters
        ----------
        input_fn : callable
            Yields arrays, or lists, tuples or dicts of arrays.

        Raises
        ------
        OrderError
            Before `convert`, or without a function; it is a RuntimeError, too.
        """
        if input_fn is None:
            raise OrderError(
                "input_fn is None",
                where="build()",
                why="engines are tuned for the shapes that it yields",
                cure="pass a function that yields inputs of the shapes to come",
            )
        result = self._after_convert("build()")
        assert self._frozen is not None and self._plans is not None
        inputs = [self._arguments(given) for given in input_fn()]
        for arguments in inputs:
            self._function(**arguments)
        renewed = False
        for node in result.engines:
            engine = result.built[node.name]
            shapes = registry.shapes(self._plans.path(node.name))
            if _is_tuned(engine, shapes):
                continue
            engine = build_segment(
                self._frozen.graph_def,
                node.segment,
                node.name,
                self._settings(),
                _ranges(shapes),
                self._frozen.weights,
                result.ranges.get(node.name),
            )
            result.built[node.name] = engine
            self._plans.renew(node.name, engine)
            renewed = True
        if renewed:
            self._function = self._make_function()
            for arguments in inputs:
                self._function(**arguments)

    def save(
        self,
        output_saved_model_dir: str | os.PathLike[str],
        save_gpu_specific_engines: bool = True,
        options: Any = None,
    ) -> None:
        """Writes the converted SavedModel, with the one signature that was converted.

        Parameters
        ----------
        output_saved_model_dir : path
        save_gpu_specific_engines : bool
            Accepted; plans are portable in any case.
        options : tf.saved_model.SaveOptions, optional

        Raises
        ------
        OrderError
            Before `convert`.
        PlanError
            The folder cannot be written (no space, no permission).
        """
        self._after_convert("save()")
        assert self._frozen is not None and self._plans is not None
        tf = tensorflow()
        root = tf.Module()
        root.engines = dict(self._plans.assets)
        root.resources = list(self._frozen.owners)
        root.weights = list(self._variables.values())
        root.function = self._function
        signatures = {self._signature: self._function}
        with whole_folder(output_saved_model_dir) as folder:
            tf.saved_model.save(root, folder, signatures, options)

    # ---- looking --------------------------------------------------------------------------

    def summary(
        self,
        line_length: int = 160,
        detailed: bool = True,
        print_fn: Callable[..., Any] | None = None,
    ) -> None:
        """Prints the engines, what is in them, and the share of the ops that was converted.

        Parameters
        ----------
        line_length : int
            At least 160.
        detailed : bool
            Whether to list the ops of each engine.
        print_fn : callable, optional
            Called with each line, and without argument for a blank one; default `print`.

        Raises
        ------
        OrderError
            Before `convert`; it is a RuntimeError, too.
        ArgumentError
            The lines are too short; it is a ValueError, too.
        """
        graph_def = None if self._function is None else self._function.graph.as_graph_def()
        told = "Impossible to call {} before calling convert()"
        converted = self._after_convert("summary()", told)
        write_summary(converted, graph_def, line_length, detailed, print_fn or print)

    # ---- inside ---------------------------------------------------------------------------

    def _make_function(self) -> Any:
        result, frozen, plans = self._result, self._frozen, self._plans
        assert result is not None and frozen is not None and plans is not None
        outputs = {key: result.tensor(name) for key, name in frozen.outputs.items()}
        given = {node.plan: plans.assets[node.name].asset_path for node in result.engines}
        function = make_function(result.graph_def, frozen, outputs, given, self._variables)
        function.planish_plans = plans  # the files must live as long as the function
        return function

    def _arguments(self, given: Any) -> dict[str, Any]:
        """The function's arguments, by keyword, from what an input function yields."""
        tf = tensorflow()
        assert self._frozen is not None
        names = list(self._frozen.inputs)
        if not isinstance(given, Mapping):
            items = given if isinstance(given, list | tuple) else [given]
            if len(items) != len(names):
                raise InputError(
                    f"The input function yields {len(items)} arrays, and the model has "
                    f"{len(names)} inputs",
                    where="input_fn=",
                    why=f"its inputs are {', '.join(map(repr, names))}",
                    cure="yield one array for each, or a dict by name",
                )
            given = dict(zip(names, items, strict=True))
        try:
            return {name: tf.convert_to_tensor(array) for name, array in given.items()}
        except (TypeError, ValueError) as error:
            raise InputError(
                "The input function yields what is no tensor",
                where="input_fn=",
                why=str(error),
                cure="yield arrays, lists or tuples of arrays, or dicts of arrays by name",
            ) from error


class _PlanFolder:
    """The plan files of a converter, in a folder that goes when nobody needs it any more."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="planish-"))
        self.assets: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        self._count = 0
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)

    def store(self, graph_def: Any, name: str, engine: Engine) -> str:
        """See `PlanStore`; the node is a placeholder that the asset's path will be fed to."""
        self.renew(name, engine)
        node = graph_def.node.add(name=f"{name}/plan", op="Placeholder")
        node.attr["dtype"].type = 7
        node.attr["shape"].shape.SetInParent()
        return node.name

    def renew(self, name: str, engine: Engine) -> None:
        """Puts an engine in the place of the one of this name, in a new file."""
        self._count += 1
        folder = self._root / str(self._count)
        folder.mkdir()
        path = folder / asset_name(name)
        engine.save(path)
        self._paths[name] = path
        self.assets[name] = tensorflow().saved_model.Asset(str(path))
        registry.put(self.path(name), engine)

    def path(self, name: str) -> bytes:
        """The plan of an engine, as the ops know it."""
        return os.fsencode(self._paths[name])


def _is_tuned(engine: Engine, shapes: Iterable[Mapping[str, int]]) -> bool:
    """Whether the engine was measured at these sizes."""
    known = [dict(point) for point in tuning_points(engine.plan.graph)]
    return all(dict(sizes) in known for sizes in shapes)


def _ranges(shapes: list[dict[str, int]]) -> dict[str, DimRange]:
    """What to tune for: the first shape, and the extremes."""
    return {
        name: DimRange(
            max(min(s[name] for s in shapes), 1),
            max(first, 1),
            max(*(s[name] for s in shapes), 1),
        )
        for name, first in (shapes[0] if shapes else {}).items()
    }

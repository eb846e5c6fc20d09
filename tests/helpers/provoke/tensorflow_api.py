"""TF-TRT's interface: wrong arguments, and methods called in the wrong order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.provoke.models import frozen, keras_model, written
from helpers.provoke.registry import case


def converter(folder: Path, **options: Any) -> Any:
    """A converter of a SavedModel; there need not be one until it converts."""
    from planish.tensorflow import trt_convert as trt

    return trt.TrtGraphConverterV2(str(folder / "model"), **options)


def first_converter(**options: Any) -> Any:
    """A converter for TensorFlow 1, of a GraphDef unless told otherwise."""
    from planish.tensorflow import trt_convert as trt

    return trt.TrtGraphConverter(**{"input_graph_def": frozen(), **options})


def converted(folder: Path) -> Any:
    """A converter that has converted."""
    keras_model().export(str(folder / "model"), verbose=False)
    made = converter(folder)
    made.convert()
    return made


# ---- the order of calls ----------------------------------------------------------------------


@case("`build()` before `convert()`")
def build_first(folder: Path) -> None:
    converter(folder).build(lambda: [])


@case("`save()` before `convert()`")
def save_first(folder: Path) -> None:
    converter(folder).save(str(folder / "out"))


@case("`summary()` before `convert()`")
def summary_first(folder: Path) -> None:
    converter(folder).summary()


@case("`convert()` twice")
def convert_twice(folder: Path) -> None:
    converted(folder).convert()


@case("`build()` without a function")
def build_without(folder: Path) -> None:
    converter(folder).build(None)


@case("`calibrate()` before `convert()` (TensorFlow 1)")
def calibrate_first(folder: Path) -> None:
    first_converter().calibrate(["y:0"], 1, feed_dict_fn=dict)


@case("`calibrate()` where nothing needs it (TensorFlow 1)")
def calibrate_fp32(folder: Path) -> None:
    made = first_converter(nodes_denylist=["y"])
    made.convert()
    made.calibrate(["y:0"], 1, feed_dict_fn=dict)


@case("`save()` of a converted GraphDef (TensorFlow 1)")
def save_graph_def(folder: Path) -> None:
    made = first_converter(nodes_denylist=["y"])
    made.convert()
    made.save(str(folder / "out"))


# ---- arguments -------------------------------------------------------------------------------


@case("A converter without a model")
def no_model(folder: Path) -> None:
    from planish.tensorflow import trt_convert as trt

    trt.TrtGraphConverterV2()


@case("A converter of a folder that does not exist")
def no_folder(folder: Path) -> None:
    converter(folder).convert()


@case("A converter with a signature that the model lacks")
def no_signature(folder: Path) -> None:
    keras_model().export(str(folder / "model"), verbose=False)
    converter(folder, input_saved_model_signature_key="predict").convert()


@case("An unknown `precision_mode`")
def precision(folder: Path) -> None:
    converter(folder, precision_mode="FP12")


@case('`precision_mode="INT8"` without calibration')
def int8(folder: Path) -> None:
    keras_model().export(str(folder / "model"), verbose=False)
    converter(folder, precision_mode="INT8", use_calibration=False).convert()


@case("`minimum_segment_size` of 0")
def segment_size(folder: Path) -> None:
    converter(folder, minimum_segment_size=0)


@case("`maximum_cached_engines` of 0")
def cached_engines(folder: Path) -> None:
    converter(folder, maximum_cached_engines=0)


@case("An unknown `dynamic_shape_profile_strategy`")
def strategy(folder: Path) -> None:
    converter(folder, use_dynamic_shape=True, dynamic_shape_profile_strategy="Best")


@case("A calibration function without INT8")
def calibration(folder: Path) -> None:
    converter(folder).convert(calibration_input_fn=lambda: [])


@case("INT8 with calibration, without a calibration function")
def no_calibration(folder: Path) -> None:
    converter(folder, precision_mode="INT8").convert()


@case("An input function that yields too many arrays")
def too_many(folder: Path) -> None:
    x = np.zeros((2, 4), np.float32)
    converted(folder).build(lambda: [(x, x)])


@case("An input function that yields no tensors")
def no_tensors(folder: Path) -> None:
    converted(folder).build(lambda: [object()])


@case("`summary()` in short lines")
def short_lines(folder: Path) -> None:
    converted(folder).summary(line_length=80)


@case("A GraphDef and a SavedModel at once (TensorFlow 1)")
def both(folder: Path) -> None:
    first_converter(input_saved_model_dir=str(folder))


@case("Neither a GraphDef nor a SavedModel (TensorFlow 1)")
def neither(folder: Path) -> None:
    first_converter(input_graph_def=None)


@case("`max_batch_size` that is no integer (TensorFlow 1)")
def batch(folder: Path) -> None:
    first_converter(max_batch_size=None)


@case("`nodes_denylist` with a node that the graph lacks (TensorFlow 1)")
def denylist(folder: Path) -> None:
    first_converter(nodes_denylist=["elsewhere"]).convert()


@case("Both functions for `calibrate()` (TensorFlow 1)")
def two_functions(folder: Path) -> None:
    first_converter().calibrate(["y:0"], 1, feed_dict_fn=dict, input_map_fn=dict)


# ---- converted models ------------------------------------------------------------------------


@case("A converted SavedModel whose plan was lost")
def lost_plan(folder: Path) -> None:
    run_with_plan(folder, lambda plan: plan.unlink())


@case("A converted SavedModel whose plan is damaged")
def damaged_plan(folder: Path) -> None:
    run_with_plan(folder, lambda plan: written(plan, plan.read_bytes()[:-1]))


def run_with_plan(folder: Path, change: Any) -> None:
    """Converts, saves, changes the plan, loads and runs."""
    import tensorflow as tf

    made = converted_large(folder)
    made.save(str(folder / "out"))
    for plan in (folder / "out" / "assets").iterdir():
        change(plan)
    infer = tf.saved_model.load(str(folder / "out")).signatures["serving_default"]
    infer(x=tf.zeros((2, 8, 8, 3)))


def converted_large(folder: Path) -> Any:
    """A converter of a model with enough work to become an engine."""
    import tensorflow as tf

    layers = [tf.keras.Input((8, 8, 3), name="x")]
    layers += [tf.keras.layers.Conv2D(16, 3, activation="relu") for _ in range(3)]
    tf.keras.Sequential(layers).export(str(folder / "model"), verbose=False)
    made = converter(folder)
    made.convert()
    assert made.converted.engines
    return made

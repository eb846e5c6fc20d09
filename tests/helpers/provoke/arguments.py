"""Wrong arguments of `planish.build`, of engines, and of execution contexts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx

import planish
from helpers.engines import quick_engine
from helpers.onnx_graph import model, node
from helpers.provoke.registry import case
from helpers.qdq import residual_model

FLOAT = np.float32
ONES = np.ones((2, 4), FLOAT)


def addition() -> onnx.ModelProto:
    """x + z, both [N, 4], to y."""
    inputs = {name: (FLOAT, ["N", 4]) for name in "xz"}
    return model([node("Add", "x z", "y", "sum")], inputs, ["y"])


@cache
def engine() -> planish.Engine:
    """`addition` for batches of 1 to 8."""
    profile = planish.Profile((1, 4), (2, 4), (8, 4))
    return quick_engine(addition(), inputs={"x": profile, "z": profile})


# ---- planish.build ---------------------------------------------------------------------------


@case("An unknown device")
def device(folder: Path) -> None:
    quick_engine(addition(), device="tpu")


@case("An unknown precision")
def precision(folder: Path) -> None:
    quick_engine(addition(), precision="fp12")


@case('`precision="fp8"`')
def precision_without_kernels(folder: Path) -> None:
    quick_engine(addition(), precision="fp8")


@case("A precision that the device has no kernels for")
def precision_not_used(folder: Path) -> None:
    quick_engine(addition(), precision="fp16")


@case("`layer_precision=` where only FP32 is permitted")
def layer_precision_without_effect(folder: Path) -> None:
    quick_engine(addition(), layer_precision={"sum": "fp32"})


@case("`layer_precision=` that is no mapping")
def layer_precision_kind(folder: Path) -> None:
    quick_engine(addition(), precision="fp16", layer_precision=["sum"])


@case("`layer_precision=` with a precision that is not permitted")
def layer_precision_not_permitted(folder: Path) -> None:
    quick_engine(addition(), precision="fp16", layer_precision={"sum": "bf16"})


@case("`layer_precision=` with an unknown precision")
def layer_precision_unknown(folder: Path) -> None:
    quick_engine(addition(), precision="fp16", layer_precision={"sum": "half"})


@case("`layer_precision=` with a name that no layer has")
def layer_precision_name(folder: Path) -> None:
    quick_engine(addition(), precision="fp16", layer_precision={"summ": "fp16"})


@case("`strict_types=` without `layer_precision=`")
def strict_types_without_effect(folder: Path) -> None:
    quick_engine(addition(), precision="fp16", strict_types=True)


@case("`strict_types=` that cannot be obeyed")
def strict_types(folder: Path) -> None:
    layers = {"sum": "fp16"}
    quick_engine(addition(), precision="fp16", layer_precision=layers, strict_types=True)


@case("`calibration=` where INT8 and FP8 are not permitted")
def calibration(folder: Path) -> None:
    quick_engine(addition(), calibration=ONES)


@case("`calibration=` for a model that brings its own scales")
def calibration_of_scales(folder: Path) -> None:
    quick_engine(residual_model(), precision="int8", calibration=ONES)


@case("`evaluate=` that gives no number")
def metric(folder: Path) -> None:
    quick_engine(addition(), precision="int8", calibration="dummy", evaluate=lambda engine: "good")


@case("`evaluate=` that scores other samples each time")
def metric_of_other_samples(folder: Path) -> None:
    answers = iter([[0.5, 1.0], [0.5, 1.0, 1.0]])
    quick_engine(residual_model(), precision="int8", evaluate=lambda engine: next(answers))


@case("`inputs=` that is no mapping")
def inputs_kind(folder: Path) -> None:
    quick_engine(addition(), inputs=[(1, 4)])


@case("`inputs=` with a name that the model lacks")
def inputs_name(folder: Path) -> None:
    quick_engine(addition(), inputs={"w": (1, 4)})


@case("`inputs=` with a shape of another rank")
def inputs_rank(folder: Path) -> None:
    quick_engine(addition(), inputs={"x": (1, 4, 1)})


@case("`inputs=` with a negative size")
def inputs_size(folder: Path) -> None:
    quick_engine(addition(), inputs={"x": (1, -4)})


@case("`inputs=` whose shapes do not fit each other")
def inputs_misfit(folder: Path) -> None:
    quick_engine(addition(), inputs={"x": (3, 4), "z": (2, 4)})


@case("`outputs=` with a name that the model lacks")
def outputs_name(folder: Path) -> None:
    quick_engine(addition(), outputs=["w"])


@case("`outputs=` that is one name, not a list")
def outputs_kind(folder: Path) -> None:
    quick_engine(addition(), outputs="y")


@case("`outputs=` with a name twice")
def outputs_twice(folder: Path) -> None:
    quick_engine(addition(), outputs=["y", "y"])


@case("`threads=` of 0")
def threads(folder: Path) -> None:
    quick_engine(addition(), threads=0)


@case("`max_workspace_size=` in words")
def workspace(folder: Path) -> None:
    quick_engine(addition(), max_workspace_size="1 GB")


@case("`tuning_seconds=` below 0")
def tuning_seconds(folder: Path) -> None:
    planish.build(addition(), tuning_seconds=-1, progress=False)


@case("`timing_cache=` that is no path")
def timing_cache(folder: Path) -> None:
    planish.build(addition(), timing_cache=3, progress=False)


@case("A profile out of order")
def profile(folder: Path) -> None:
    planish.Profile((4, 4), (2, 4), (8, 4))


@case("A profile that is no shapes")
def profile_kind(folder: Path) -> None:
    planish.Profile("a", (2, 4), (8, 4))  # type: ignore[arg-type]


# ---- running ---------------------------------------------------------------------------------


@case("Too few arrays")
def too_few(folder: Path) -> None:
    engine()(ONES)


@case("Too many arrays")
def too_many(folder: Path) -> None:
    engine()(ONES, ONES, ONES)


@case("A wrong name of an input")
def wrong_name(folder: Path) -> None:
    engine()(x=ONES, w=ONES)


@case("An input given twice")
def given_twice(folder: Path) -> None:
    engine()(ONES, x=ONES)


@case("An array of another dtype")
def dtype(folder: Path) -> None:
    engine()(ONES.astype(np.float64), ONES)


@case("A list instead of an array")
def no_array(folder: Path) -> None:
    engine()(ONES.tolist(), ONES)


@case("An array of another rank")
def rank(folder: Path) -> None:
    engine()(ONES[0], ONES)


@case("An array of another size")
def size(folder: Path) -> None:
    engine()(ONES[:, :3], ONES)


@case("Arrays whose sizes disagree")
def disagree(folder: Path) -> None:
    engine()(ONES, ONES[:1])


@case("A shape outside the profile")
def outside_profile(folder: Path) -> None:
    many = np.ones((9, 4), FLOAT)
    engine()(many, many)


@case("An empty batch, where the profile begins at 1")
def empty_batch(folder: Path) -> None:
    engine()(ONES[:0], ONES[:0])


@case("`out=` of another shape or dtype")
def out_shape(folder: Path) -> None:
    engine()(ONES, ONES, out=np.empty((3, 4), FLOAT))


@case("`out=` with a name that the engine lacks")
def out_name(folder: Path) -> None:
    engine()(ONES, ONES, out={"w": np.empty((2, 4), FLOAT)})


@case("`out=` that overlaps an input")
def out_overlap(folder: Path) -> None:
    x = ONES.copy()
    engine()(x, ONES, out=x)


@case("An execution context of 0 threads")
def context_threads(folder: Path) -> None:
    engine().create_execution_context(threads=0)


@case("An execution context with a stream")
def context_stream(folder: Path) -> None:
    engine().create_execution_context(stream=object())


@case("A closed execution context")
def closed_context(folder: Path) -> None:
    context = engine().create_execution_context()
    context.close()
    context.execute([ONES, ONES])


@case("A closed engine")
def closed_engine(folder: Path) -> None:
    own = quick_engine(addition())
    own.close()
    own(ONES, ONES)

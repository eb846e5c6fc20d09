"""Calibration without a build: for a cache that is made on one machine and used on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from planish.checks import checked_inputs, checked_outputs
from planish.passes import optimize
from planish.passes.counted import settle_counts
from planish.profile import settle_ranges
from planish.progress import ProgressEvent, console_progress
from planish.quantization.calibration import calibrate
from planish.quantization.ranges import Ranges


def calibrate_model(
    model: Any,
    calibration: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Iterable[str] | None = None,
    dynamic_ranges: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool | Callable[[ProgressEvent], None] = True,
) -> Ranges:
    """The dynamic ranges of a model's tensors.

    Parameters
    ----------
    model, inputs, outputs
        As for `planish.build`.
    calibration, dynamic_ranges
        See `planish.quantization.calibrate`; with a calibrator that has a ``cache=``, the ranges
        are written there.
    device : str
        Where the network is run; the ranges serve every device.
    threads : int, optional
        None: all cores.
    progress : bool or callable
        Whether to show progress, or what to call with each `ProgressEvent`.

    Raises
    ------
    ModelError, InputError, CalibrationError
    """
    from planish.frontends import import_model

    listener, close = progress if callable(progress) else None, lambda: None
    if progress is True:
        listener, close = console_progress()
    start = time.monotonic()

    def report(stage: str, done: int, total: int) -> None:
        if listener:
            listener(ProgressEvent(stage, done, total, time.monotonic() - start))

    graph = import_model(model, inputs=checked_inputs(inputs), outputs=checked_outputs(outputs))
    settle_ranges(graph)
    settle_counts(graph)
    optimize(graph)
    try:
        return calibrate(
            graph,
            calibration,
            dynamic_ranges=dynamic_ranges,
            device=device,
            threads=threads,
            report=report,
        )
    finally:
        close()

"""Calibration: runs a network on data, and finds the range of each of its tensors.

Every tensor has a `Histogram`, to which each batch is added; at the end the calibrator makes ranges
of them. The result depends on the samples alone: not on their order, nor on how they came in
batches, as far as the network itself computes the same for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from planish.errors import CalibrationError, InputError, ShapeError
from planish.graph.graph import Graph, Value
from planish.quantization.batches import Batches
from planish.quantization.calibrator import Calibrator
from planish.quantization.fingerprint import fingerprint
from planish.quantization.histogram import Histogram
from planish.quantization.observe import Observer, quantizable
from planish.quantization.ranges import Ranges
from planish.targets.devices import find_target

log = logging.getLogger("planish")

STAGE = "calibrate"

MOST_NAMES = 5
"""So many tensors are named in a message, the others counted."""

Report = Callable[[str, int, int], None]
"""Told the stage, how many batches are done, and of how many (0: nobody knows)."""


def collect_ranges(
    graph: Graph,
    data: Any,
    calibrator: Calibrator,
    *,
    target: str = "cpu",
    tensors: Iterable[str] | None = None,
    threads: int | None = None,
    report: Report | None = None,
) -> Ranges:
    """Runs an optimised float32 graph on data and gives the ranges of its tensors.

    Parameters
    ----------
    graph : Graph
        As after `planish.passes.optimize`; it is not changed.
    data : array, mapping, iterable, function, path, or calibrator
        See `planish.quantization.batches.Batches`.
    calibrator : Calibrator
        Its algorithm; its own data and cache are not looked at.
    target : str
        The device that runs the network.
    tensors : iterable of str, optional
        Names of values; None: every float32 input and output of products, convolutions, pooling,
        concatenations and elementwise work. Fewer are faster: each is written out and counted.
    threads : int, optional
        None: all cores.
    report : callable, optional
        Told of the progress.

    Raises
    ------
    CalibrationError
        The data cannot be used: see `planish.quantization.batches`; or the network gives NaN or
        infinity for them.
    InputError
        `tensors` names something else.
    """
    values = quantizable(graph) if tensors is None else _named(graph, tensors)
    histograms = observe_histograms(
        graph, data, values, target=target, threads=threads, report=report
    )
    by_name = {value.name: value for value in values}
    _refuse_unfit({by_name[n]: h for n, h in histograms.items()}, graph)
    _warn_of_constant(histograms)
    ranges = {name: calibrator.range(histogram) for name, histogram in histograms.items()}
    return Ranges(ranges, fingerprint(graph), calibrator.algorithm)


def observe_histograms(
    graph: Graph,
    data: Any,
    values: Iterable[Value],
    *,
    target: str = "cpu",
    threads: int | None = None,
    report: Report | None = None,
) -> dict[str, Histogram]:
    """The histogram of each value on all the data, by name; see `collect_ranges`."""
    values = list(values)
    histograms = {value.name: Histogram() for value in values}
    batches = Batches(graph.inputs, data)
    workers = threads or find_target(target).threads
    with Observer(graph, values, target, threads) as observer, ThreadPoolExecutor(workers) as pool:
        for number, batch in enumerate(batches):
            if report:
                report(STAGE, number, batches.total)
            try:
                for arrays in observer.run(batch):
                    _add(pool, histograms, arrays)
            except ShapeError as error:
                raise CalibrationError(
                    error.what,
                    where=f"calibration=, batch {number}",
                    why=error.why,
                    cure=error.cure,
                ) from error
    if report:
        report(STAGE, number + 1, number + 1)
    return histograms


def _add(
    pool: ThreadPoolExecutor,
    histograms: Mapping[str, Histogram],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Counts arrays on several threads, the largest first."""
    order = sorted(arrays, key=lambda name: -arrays[name].size)
    for _ in pool.map(lambda name: histograms[name].add(arrays[name]), order):
        pass


def _named(graph: Graph, tensors: Iterable[str]) -> list[Value]:
    known = {v.name: v for v in graph.values() if not v.is_constant and v.dtype.is_float}
    names = list(dict.fromkeys(tensors))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"The network has no floating-point tensor {unknown[0]!r}",
            where="tensors=",
            why="names are those of the optimised graph",
            cure="list them by planish inspect --stage passes",
        )
    return [known[name] for name in names]


def _refuse_unfit(histograms: Mapping[Value, Histogram], graph: Graph) -> None:
    if any(count.padded for count in graph.counts.values()):
        return  # rows past a count hold anything
    unfit = [(value, h) for value, h in histograms.items() if h.unfit]
    if not unfit:
        return
    value, histogram = unfit[0]
    node = value.producer
    place = (node.origin or node.name) if node else f"input {value.name!r}"
    rest = f", and so are values of {len(unfit) - 1} tensor(s) after it" if len(unfit) > 1 else ""
    raise CalibrationError(
        "The network gives NaN or infinity on the calibration data",
        where=place,
        why=f"{histogram.unfit} values of {value.name!r} are not finite{rest}",
        cure="check the model in its framework, and the pre-processing of the data",
    )


def _warn_of_constant(histograms: Mapping[str, Histogram]) -> None:
    constant = [name for name, h in histograms.items() if h.total and h.least == h.greatest]
    if constant:
        rest = f" and {len(constant) - MOST_NAMES} more" if len(constant) > MOST_NAMES else ""
        log.warning(
            "calibration: %d tensor(s) have the same value everywhere on the calibration data: "
            "%s%s; more varied data would give them a range",
            len(constant),
            ", ".join(constant[:MOST_NAMES]),
            rest,
        )

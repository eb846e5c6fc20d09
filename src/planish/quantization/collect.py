"""Calibration: runs a network on data, and finds the range of each of its tensors.

Every tensor has a `Histogram`, to which each batch is added; at the end the calibrator makes ranges
of them. The result depends on the samples alone: not on their order, nor on how they came in
batches, as far as the network itself computes the same for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from planish.errors import CalibrationError, InputError, ShapeError
from planish.graph.graph import Graph, Value
from planish.quantization.batches import Batches, no_data
from planish.quantization.calibrator import Calibrator
from planish.quantization.fingerprint import fingerprint
from planish.quantization.histogram import Histogram
from planish.quantization.means import Means, averaged
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
    with Collector(graph, values, target=target, threads=threads) as collector:
        collector.add_all(data, report)
        return collector.ranges(calibrator)


class Collector:
    """Takes batches one by one, and gives ranges at the end. A context manager.

    Parameters
    ----------
    graph : Graph
        As after `planish.passes.optimize`; it is not changed.
    values : sequence of Value, optional
        What to observe; None: all that may be quantized.
    target : str
    threads : int, optional

    Attributes
    ----------
    histograms : dict of str to Histogram
        By the name of a value.
    """

    def __init__(
        self,
        graph: Graph,
        values: Sequence[Value] | None = None,
        *,
        target: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self._graph = graph
        self._values = quantizable(graph) if values is None else list(values)
        self.histograms = {value.name: Histogram() for value in self._values}
        self._means = {v.name: Means() for v in averaged(graph) if v.name in self.histograms}
        self._batches = 0
        self._exit = ExitStack()
        self._observer = self._exit.enter_context(Observer(graph, self._values, target, threads))
        workers = threads or find_target(target).threads
        self._pool = self._exit.enter_context(ThreadPoolExecutor(workers))

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def add_all(self, data: Any, report: Report | None = None) -> None:
        """Adds all batches of data of any kind; see `collect_ranges`."""
        batches = Batches(self._graph.inputs, data)
        for number, batch in enumerate(batches):
            if report:
                report(STAGE, number, batches.total)
            self.add(batch)
        if report:
            report(STAGE, self._batches, self._batches)

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Runs the network on a batch: an array of the right dtype and rank for each input.

        Raises
        ------
        CalibrationError
            The sizes do not fit.
        """
        try:
            for arrays in self._observer.run(batch):
                self._count(arrays)
        except ShapeError as error:
            raise CalibrationError(
                error.what,
                where=f"calibration=, batch {self._batches}",
                why=error.why,
                cure=error.cure,
            ) from error
        self._batches += 1

    def ranges(self, calibrator: Calibrator) -> Ranges:
        """The ranges by what was observed so far.

        Raises
        ------
        CalibrationError
            There was nothing, or values are NaN or infinite.
        """
        if not self._batches:
            raise no_data()
        self._refuse_unfit()
        _warn_of_constant(self.histograms)
        ranges = {name: calibrator.range(h) for name, h in self.histograms.items()}
        means = {name: mean.rounded() for name, mean in self._means.items()}
        extremes = {name: mean.extremes() for name, mean in self._means.items()}
        return Ranges(
            ranges, fingerprint(self._graph), calibrator.algorithm, means=means, extremes=extremes
        )

    def _count(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Counts arrays on several threads, the largest first."""

        def add(name: str) -> None:
            self.histograms[name].add(arrays[name])
            if name in self._means:
                self._means[name].add(arrays[name])

        order = sorted(arrays, key=lambda name: -arrays[name].size)
        for _ in self._pool.map(add, order):
            pass

    def _refuse_unfit(self) -> None:
        if any(count.padded for count in self._graph.counts.values()):
            return  # rows past a count hold anything
        unfit = [value for value in self._values if self.histograms[value.name].unfit]
        if not unfit:
            return
        value, node = unfit[0], unfit[0].producer
        count = self.histograms[value.name].unfit
        rest = f", and so are values of {len(unfit) - 1} tensor(s) after it" if unfit[1:] else ""
        raise CalibrationError(
            "The network gives NaN or infinity on the calibration data",
            where=(node.origin or node.name) if node else f"input {value.name!r}",
            why=f"{count} values of {value.name!r} are not finite{rest}",
            cure="check the model in its framework, and the pre-processing of the data",
        )


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

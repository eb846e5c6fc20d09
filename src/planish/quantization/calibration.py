"""From what a user passes as ``calibration=`` to ranges: data, a calibrator, or a cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from planish.errors import CalibrationError, InputError, PlanishError
from planish.graph.graph import Graph
from planish.quantization.cache import check_network, decode, encode
from planish.quantization.calibrator import Calibrator, is_calibrator
from planish.quantization.collect import Report, collect_ranges
from planish.quantization.entropy import EntropyCalibrator, EntropyCalibrator2
from planish.quantization.files import check_writable, read_limited
from planish.quantization.given import apply_dynamic_ranges, dummy_ranges
from planish.quantization.mean_square import MseCalibrator
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.paths import is_cache
from planish.quantization.percentile import PercentileCalibrator
from planish.quantization.ranges import Ranges

log = logging.getLogger("planish")

ALGORITHMS: dict[str, type[Calibrator]] = {
    "entropy": EntropyCalibrator,
    "entropy-2": EntropyCalibrator2,
    "min-max": MinMaxCalibrator,
    "mse": MseCalibrator,
    "percentile": PercentileCalibrator,
}
"""Calibrators by the names that the command line takes."""

DEFAULT: type[Calibrator] = MseCalibrator
"""Where data come without a calibrator."""

DUMMY = "dummy"
"""``calibration="dummy"``: made-up ranges."""


def calibrate(
    graph: Graph,
    calibration: Any,
    *,
    dynamic_ranges: Mapping[str, Any] | None = None,
    device: str = "cpu",
    tensors: Iterable[str] | None = None,
    threads: int | None = None,
    report: Report | None = None,
) -> Ranges:
    """The ranges of a network by what a user passes.

    Parameters
    ----------
    graph : Graph
        The optimised float32 graph; it is not changed.
    calibration : optional
        `Ranges`; a calibrator, whose cache is used if it has one, and written if not; the path of a
        cache; "dummy"; or data, for which see `collect_ranges`. None: nothing but `dynamic_ranges`.
    dynamic_ranges : mapping, optional
        See `apply_dynamic_ranges`.
    device, tensors, threads, report
        See `collect_ranges`.

    Raises
    ------
    CalibrationError
        Data or cache cannot be used.
    InputError
        `dynamic_ranges` is wrong.
    """
    if dynamic_ranges is not None and not isinstance(dynamic_ranges, Mapping):
        raise InputError(
            "dynamic_ranges= must be a mapping from names of tensors to ranges",
            where="dynamic_ranges=",
            why=f"its type is {type(dynamic_ranges).__name__}",
            cure='pass {"conv1/Relu": (0.0, 6.0)}',
        )
    ranges = _found(
        graph,
        calibration,
        {"target": device, "tensors": tensors, "threads": threads, "report": report},
    )
    return apply_dynamic_ranges(ranges, graph, dynamic_ranges)


def load_ranges(path: str | os.PathLike[str], graph: Graph) -> Ranges:
    """The ranges of a cache file, which must be of this network.

    Raises
    ------
    CalibrationError
        It cannot be read, is damaged, or is of another network or version.
    """
    ranges = decode(read_limited(path), os.fspath(path))
    check_network(ranges, graph, os.fspath(path))
    return ranges


def _found(graph: Graph, calibration: Any, options: dict[str, Any]) -> Ranges:
    if calibration is None:
        return Ranges({})
    if isinstance(calibration, Ranges):
        check_network(calibration, graph, "calibration=")
        return calibration
    if isinstance(calibration, str | os.PathLike):
        if calibration == DUMMY and not Path(DUMMY).exists():
            return dummy_ranges(graph)
        if is_cache(calibration):
            return load_ranges(calibration, graph)
    if not is_calibrator(calibration):
        return collect_ranges(graph, calibration, DEFAULT(), **options)
    return _by_calibrator(graph, calibration, options)


def _by_calibrator(graph: Graph, calibrator: Any, options: dict[str, Any]) -> Ranges:
    """By the calibrator's cache, or else by its data; then the cache is written."""
    source = str(getattr(calibrator, "cache", None) or type(calibrator).__name__)
    known = _own(calibrator, "read_calibration_cache")
    if known is not None and not isinstance(known, bytes | bytearray | memoryview):
        raise CalibrationError(
            "read_calibration_cache gave no bytes",
            where=type(calibrator).__name__,
            why=f"its type is {type(known).__name__}",
            cure="return what write_calibration_cache was given, or None",
        )
    method = calibrator if isinstance(calibrator, Calibrator) else DEFAULT()
    if known:
        ranges = decode(bytes(known), source)
        check_network(ranges, graph, source)
        if isinstance(calibrator, Calibrator) and ranges.calibrator != calibrator.algorithm:
            raise CalibrationError(
                "The calibration cache is another calibrator's",
                where=source,
                why=f"its ranges are by {ranges.calibrator}, and this calibrator is "
                f"{calibrator.algorithm}",
                cure="delete it, or name another file",
            )
        log.info("calibration: ranges of %d tensors from %s", len(ranges.tensors), source)
        return ranges
    if isinstance(calibrator, Calibrator) and calibrator.cache is not None:
        check_writable(calibrator.cache)  # rather now than after minutes
    ranges = collect_ranges(graph, calibrator, method, **options)
    _own(calibrator, "write_calibration_cache", encode(ranges))
    return ranges


def _own(calibrator: Any, method: str, *arguments: Any) -> Any:
    """Calls a method that a user may have written."""
    try:
        return getattr(calibrator, method)(*arguments)
    except PlanishError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"{method} raised {type(error).__name__}",
            where=type(calibrator).__name__,
            why=str(error) or "it says nothing more",
            cure="mend the method; the traceback above shows where",
        ) from error

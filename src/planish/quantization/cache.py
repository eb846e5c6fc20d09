"""The calibration cache: ranges as a text that people can read, and that other machines can use.

    planish calibration cache 1                       the version of what ranges mean
    network 5d41402abc4b2a76                          the fingerprint of the float32 network
    calibrator entropy-2
    tensors 3
    -6.25 6.25 "conv1/Relu" 0.5:-6.25:3 1.25:0:6.25   least, greatest, name (a JSON string); then
    …                                                 mean, least and greatest of each channel, if
                                                      a product reads it

Nothing in it depends on a device, a batch size or a tuned kernel. It is read as untrusted input.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import NoReturn

import numpy as np

from planish.errors import CalibrationError
from planish.graph.graph import Graph
from planish.quantization.fingerprint import fingerprint
from planish.quantization.ranges import VERSION, Ranges

MOST_TENSORS = 1 << 20
LONGEST_NAME = 1 << 14

_FIRST = re.compile(r"planish calibration cache (\d{1,9})")
_AGAIN = "delete it and calibrate again, or copy it again from where it is whole"


def encode(ranges: Ranges) -> bytes:
    """Ranges as the text of a cache; equal ranges are equal bytes."""
    lines = [
        f"planish calibration cache {ranges.version}",
        f"network {ranges.network}",
        f"calibrator {ranges.calibrator}",
        f"tensors {len(ranges.tensors)}",
    ]
    for name, (least, greatest) in ranges.tensors.items():
        channels = [repr(mean) for mean in ranges.means.get(name, ())]
        if ends := ranges.extremes.get(name):
            channels = [
                f"{mean}:{low!r}:{high!r}" for mean, (low, high) in zip(channels, ends, strict=True)
            ]
        rest = "".join(f" {channel}" for channel in channels)
        lines.append(f"{_number(least)} {_number(greatest)} {json.dumps(name)}{rest}")
    return ("\n".join(lines) + "\n").encode()


def decode(data: bytes, source: str = "calibration cache") -> Ranges:
    """The ranges of a cache.

    Parameters
    ----------
    data : bytes
    source : str
        What messages call it: its path.

    Raises
    ------
    CalibrationError
        It is no cache, is damaged or cut short, or is of another version.
    """
    if data.startswith(b"TRT-"):
        raise CalibrationError(
            "This is a calibration cache of TensorRT",
            where=source,
            why="its tensors are those of TensorRT's own network, after its own fusion",
            cure="calibrate again with the same data",
        )
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        lines = []
    first = _FIRST.fullmatch(lines[0]) if lines else None
    if first is None:
        raise CalibrationError(
            "This is not a calibration cache",
            where=source,
            why='it does not begin with "planish calibration cache"',
            cure="check the path; a folder of images or an .npz file are data, not a cache",
        )
    if int(first[1]) != VERSION:
        raise CalibrationError(
            f"The calibration cache is of version {int(first[1])}",
            where=source,
            why=f"this release reads version {VERSION}; which tensors there are has changed",
            cure="delete it and calibrate again",
        )
    network = _field(lines, 1, "network", source)
    calibrator = _field(lines, 2, "calibrator", source)
    count = _field(lines, 3, "tensors", source)
    if not re.fullmatch(r"\d{1,7}", count) or int(count) > MOST_TENSORS:
        _damaged(source, f"line 4 says {count[:20]!r} tensors")
    if len(lines) != int(count) + 5 or lines[-1]:
        _damaged(source, f"line 4 says {int(count)} tensors, and {max(len(lines) - 5, 0)} follow")
    tensors: dict[str, tuple[float, float]] = {}
    means: dict[str, tuple[float, ...]] = {}
    extremes: dict[str, tuple[tuple[float, float], ...]] = {}
    for number, line in enumerate(lines[4:-1], 5):
        name, limits, channels = _tensor(line, number, source)
        if name in tensors:
            _damaged(source, f"line {number} names a tensor that another line names")
        tensors[name] = limits
        if channels:
            means[name] = tuple(channel[0] for channel in channels)
        if channels and len(channels[0]) == 3:
            extremes[name] = tuple((channel[1], channel[2]) for channel in channels)
    return Ranges(tensors, network, calibrator, means=means, extremes=extremes)


def check_network(ranges: Ranges, graph: Graph, source: str = "calibration cache") -> None:
    """Whether ranges are of this network.

    Parameters
    ----------
    ranges : Ranges
    graph : Graph
        The optimised float32 graph.
    source : str
        What messages call the ranges: the path of the cache.

    Raises
    ------
    CalibrationError
        They are of another one.
    """
    own = fingerprint(graph)
    if ranges.network == own:
        return
    names = {value.name for value in graph.values()}
    known = sum(name in names for name in ranges.tensors)
    raise CalibrationError(
        "The calibration cache is of another network",
        where=source,
        why=f"it is of {ranges.network or 'none'}, and the model is {own}; the model has {known} "
        f"of its {len(ranges.tensors)} tensors"
        + (": its weights or outputs are others" if known == len(ranges.tensors) else ""),
        cure="delete it and calibrate again, or pass the cache of this model",
    )


def _field(lines: list[str], index: int, name: str, source: str) -> str:
    line = lines[index] if index < len(lines) else ""
    if not line.startswith(f"{name} "):
        _damaged(source, f"line {index + 1} does not say {name}")
    return line[len(name) + 1 :]


def _tensor(
    line: str, number: int, source: str
) -> tuple[str, tuple[float, float], list[tuple[float, ...]]]:
    parts = line.split(" ", 2)
    try:
        with np.errstate(over="ignore"):
            least, greatest = (float(np.float32(float(part))) for part in parts[:2])
        name, end = json.JSONDecoder().raw_decode(parts[2])
        channels = [
            tuple(float(part) for part in channel.split(":"))
            for channel in parts[2][end:].split(" ")[1:]
        ]
        if parts[2][end : end + 1].strip() or end > LONGEST_NAME:
            name = None
    except (ValueError, IndexError, RecursionError):
        _damaged(source, f"line {number} is not two numbers and a name")
    if not isinstance(name, str) or not name:
        _damaged(source, f"line {number} has no name")
    if not (math.isfinite(least) and math.isfinite(greatest) and least <= 0 <= greatest):
        _damaged(source, f"line {number} has no range around zero")
    if not all(map(math.isfinite, itertools.chain(*channels))):
        _damaged(source, f"line {number} has means that are not finite")
    kinds = {len(channel) for channel in channels}
    if len(kinds) > 1 or kinds - {1, 3} or any(c[-2] > c[-1] for c in channels if len(c) == 3):
        _damaged(source, f"line {number} does not say what its channels reach")
    return name, (least, greatest), channels


def _damaged(source: str, why: str) -> NoReturn:
    raise CalibrationError(
        "The calibration cache is damaged or cut short", where=source, why=why, cure=_AGAIN
    )


def _number(value: float) -> str:
    """The shortest text of a float32."""
    return str(np.float32(value))

"""What a machine can reach: measured once, with its own kernels, and kept in the timing cache.

A ceiling of arithmetic is the rate of the best of the likely tactics on a large matrix product, one
for each precision; that of memory is the rate of reading and writing a tensor that no cache holds.
A layer may be above it: its data may lie in a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from planish.errors import PlanishError
from planish.fusion.task import PRECISIONS, Task, make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import Cast, ew
from planish.ops.float8 import DecodeFloat8, MatMulFloat8, encode
from planish.ops.matmul import MatMul
from planish.ops.quantization import Dequantize, MatMulInteger, Quantize
from planish.targets.base import Binding, Tactic
from planish.targets.cache import cache_root
from planish.targets.target import Target
from planish.tuning.cache import TimingCache
from planish.tuning.measure import Bench, kernels_of

log = logging.getLogger("planish")

TACTICS = 6
"""So many tactics are tried."""

SECONDS = 0.1
"""Time given to each."""

NOWHERE = Binding({})
"""No dimension is symbolic."""

_DTYPES = {name: dtype for dtype, name in PRECISIONS.items()} | {"tf32": DType.FLOAT32}

_INT8, _FP8 = "int8", "fp8"


@dataclass(frozen=True)
class Ceilings:
    """Rates that a machine reaches.

    Attributes
    ----------
    flops : mapping of str to float
        Operations per second by precision.
    bytes : float
        Bytes per second, read or written.
    """

    flops: Mapping[str, float]
    bytes: float

    def floor(self, flops: float, moved: float, precision: str) -> float:
        """The seconds below which work cannot be done, for all that is known."""
        rate = self.flops.get(precision, self.flops.get("fp32"))
        return max(flops / rate if rate else 0.0, moved / self.bytes)


def ceilings(target: Target, threads: int | None = None, measure: bool = True) -> Ceilings | None:
    """The ceilings of a target; measured now, in seconds, where they never were.

    Parameters
    ----------
    target : Target
    threads : int, optional
        Of a CPU; None: all.
    measure : bool
        Without it what is not known yet is not measured, and the result is None.
    """
    threads = threads or target.threads
    names = ("bytes", *sorted(target.precisions & {*_DTYPES, _INT8, _FP8}))
    keys = {name: f"{target.timing_key} t{threads} ceiling {name}" for name in names}
    cache = TimingCache(cache_root() / "timing.sqlite")
    try:
        found = {name: cache.get(key) for name, key in keys.items()}
        missing = [name for name, rate in found.items() if rate is None]
        if missing and not measure:
            return None
        if missing:
            measured = _measured(target, threads, missing)
            cache.put((keys[name], rate) for name, rate in measured.items())
            found |= measured
    finally:
        cache.close()
    moved = found.pop("bytes")
    return Ceilings({name: rate for name, rate in found.items() if rate}, moved) if moved else None


@dataclass(frozen=True)
class _Probe:
    """A task, how much it computes or moves, and the tactics to try."""

    task: Task
    work: float
    tactics: list[Tactic]


def _measured(target: Target, threads: int, names: Sequence[str]) -> dict[str, float]:
    """Operations or bytes per second; 0 where nothing runs."""
    probes = {name: _probe(target, name) for name in names}
    rates = {}
    with target.compiling():
        tactics = [tactic for probe in probes.values() for tactic in probe.tactics]
        try:
            target.prepare(k for tactic in tactics for k in kernels_of(tactic, NOWHERE))
        except PlanishError as error:  # the others are compiled all the same
            log.debug("a kernel does not compile: %s", error)
        for name, probe in probes.items():
            seconds = _best(probe, target, threads)
            rates[name] = probe.work / seconds if seconds else 0.0
    return rates


def _probe(target: Target, name: str) -> _Probe:
    size, elements = target.ceiling_sizes
    graph = Graph("ceiling")
    if name == "bytes":
        x = graph.input("x", TensorType((elements // 1024, 1024), DType.FLOAT32))
        graph.mark_output(graph.add(ew.Neg(), x), "y")
        task, work = make_task(graph.nodes), 8.0 * elements
    elif name == _FP8:
        task, work = _product_of_codes(graph, size), 2.0 * size**3
    elif name == _INT8:
        task, work = _product_of_bytes(graph, size, target), 2.0 * size**3
    else:
        dtype = _DTYPES[name]
        weights = np.random.default_rng(0).standard_normal((size, size), np.float32)
        a = graph.input("a", TensorType((size, size), dtype))
        b = graph.constant(weights.astype(dtype.numpy))  # packed beforehand, as weights are
        graph.mark_output(graph.add(MatMul(), a, b), "y")
        task, work = make_task(graph.nodes, graph.nodes[0]), 2.0 * size**3
    precision = "fp32" if name == "bytes" else name
    fitting = (
        t for t in target.tactics(task, NOWHERE) if t.precision == precision and t.accepts(NOWHERE)
    )
    return _Probe(task, work, list(islice(fitting, TACTICS)))


def _product_of_bytes(graph: Graph, size: int, target: Target) -> Task:
    """A product of levels, whose results are levels again."""
    random = np.random.default_rng(0)
    dtype = DType.INT8 if target.symmetric_levels else DType.UINT8
    a = graph.input("a", TensorType((size, size), dtype))
    b = graph.constant(random.integers(-127, 128, (size, size), np.int8))
    zeros = [graph.constant(np.zeros((), v.dtype.numpy)) for v in (a, b)]
    scale, one, none = (graph.constant(np.float32(n)) for n in (1e-4, 1, 0))
    floats = graph.add(Dequantize(), graph.add(MatMulInteger(), a, b, *zeros), scale, none)
    info = np.iinfo(dtype.numpy)
    levels = graph.add(Quantize(dtype, int(info.min), int(info.max)), floats, one, none)
    graph.mark_output(levels, "y")
    return make_task(graph.nodes, graph.nodes[0])


def _product_of_codes(graph: Graph, size: int) -> Task:
    """A product of codes of FP8, whose results are half floats."""
    weights = np.random.default_rng(0).standard_normal((size, size), np.float32)
    a = graph.input("a", TensorType((size, size), DType.INT8))
    b, scale = graph.constant(encode(weights)), graph.constant(np.float32(1e-2))
    y = graph.add(DecodeFloat8(), graph.add(MatMulFloat8(), a, b), scale)
    graph.mark_output(graph.add(Cast(DType.FLOAT16), y), "y")
    return make_task(graph.nodes, graph.nodes[0])


def _best(probe: _Probe, target: Target, threads: int) -> float | None:
    """The least time of the tactics."""
    if not probe.tactics:
        return None
    bench, best = Bench(probe.task, NOWHERE, target, threads), None
    for tactic in probe.tactics:
        try:
            seconds = bench.time(tactic, SECONDS)
        except PlanishError as error:
            log.debug("a ceiling is not measured with %s: %s", tactic, error.what)
            continue
        best = seconds if best is None else min(best, seconds)
    return best

"""What kernels of reductions combine elements by."""

from __future__ import annotations

from planish.ops.reduce import (
    ArgMax,
    ArgMin,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
)

KINDS: dict[type, str] = {
    ReduceSum: "sum",
    ReduceMean: "mean",
    ReduceMax: "max",
    ReduceMin: "min",
    ReduceProd: "prod",
    ReduceAny: "any",
    ReduceAll: "all",
    ArgMax: "argmax",
    ArgMin: "argmin",
}
"""The ops that reduce axes, with what the reducers of both targets are called."""

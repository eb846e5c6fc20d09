"""Random cases of one TensorFlow op: dtypes its CPU kernels take, shapes, numbers, attributes.

Which dtypes a kernel takes is read from TensorFlow itself, so that a case is always one that
TensorFlow runs, and none is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np

from planish.graph.types import DType

Build = Callable[..., Any]
"""Makes the op of its operands' tensors; gives a tensor or a list of tensors."""


@dataclass(frozen=True)
class Tolerance:
    """How far two right results may be apart: units in the last place.

    Attributes
    ----------
    ulps : float
        Multiples of the dtype's epsilon; 0: the results must be equal.
    of_largest : bool
        Of the largest element of the output, as sums of terms with both signs need, or of each.
    wide : bool
        Whether halves are compared with TensorFlow's float32 result, rounded once. TensorFlow
        adds up many of its half results in halves, which is no measure.
    """

    ulps: float = 0.0
    of_largest: bool = False
    wide: bool = False


EXACT = Tolerance()
FUNCTION = Tolerance(6, wide=True)
"""A function of real numbers that both compute by an approximation of a few ulps."""
SUM = Tolerance(8, of_largest=True, wide=True)
"""A sum of up to some hundred terms, in any order."""


@dataclass(frozen=True, eq=False)
class Operand:
    """An input of the op: an array, fed or a constant, and the dimensions it leaves unknown."""

    array: np.ndarray
    fed: bool = True
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """One use of an op, which TensorFlow and Planish are to run alike."""

    op: str
    build: Build
    operands: tuple[Operand, ...]
    tolerance: Tolerance
    note: str = ""
    reference: Build | None = None
    """The same of ops that TensorFlow's CPU kernels can run; None: they run the op itself."""
    edit: Callable[[Any], None] | None = None
    """Changes the GraphDef before Planish sees it, into what TensorFlow cannot make."""

    def __str__(self) -> str:
        operands = ", ".join(
            f"{'' if o.fed else 'const '}{o.array.dtype.name}"
            f"[{', '.join('?' * (i in o.unknown) + str(d) for i, d in enumerate(o.array.shape))}]"
            for o in self.operands
        )
        return f"{self.op}({operands}) {self.note}".strip()


@dataclass
class Draw:
    """Random choices for a case; the same seed makes the same case."""

    op: str
    seed: int
    rng: np.random.Generator = field(init=False)
    dynamic: str = field(init=False)
    operands: list[Operand] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([crc32(self.op.encode()), self.seed])
        self.dynamic = self.choose(["none", "batch", "all"])

    # ---- choices --------------------------------------------------------------------------

    def choose(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def flip(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def note(self, **attributes: Any) -> dict[str, Any]:
        """Attributes of the op, written down for the case's name."""
        self.notes += [f"{k}={v}" for k, v in attributes.items()]
        return attributes

    def types(self, *among: str) -> dict[str, DType]:
        """The dtypes of one of the op's CPU kernels; `among` keeps those of these short names."""
        rows = kernel_types(self.op)
        if among:
            rows = [r for r in rows if all(d.value in among for d in r.values())]
        if not rows:
            raise LookupError(f"TensorFlow has no CPU kernel of {self.op} for {among}")
        return dict(self.choose(rows))

    def dtype(self, name: str = "T", *among: str) -> DType:
        """One of the dtypes that the op's CPU kernels take."""
        known = sorted({r[name] for r in kernel_types(self.op)}, key=lambda d: d.value)
        return self.choose([d for d in known if not among or d.value in among])

    def shape(self, low: int = 0, high: int = 5, most: int = 7) -> tuple[int, ...]:
        """A shape of `low` to `high` dimensions, now and then with none or one element in one."""
        rank = self.integer(low, high)
        return tuple(self.size(most) for _ in range(rank))

    def size(self, most: int = 7) -> int:
        return 0 if self.flip(0.01) else self.integer(1, most)

    def axis(self, rank: int) -> int:
        """One of the axes, counted from either end."""
        return self.integer(-rank, rank - 1)

    def axes(self, rank: int) -> list[int]:
        """Some of the axes in any order, counted from either end; perhaps none."""
        chosen = self.rng.permutation(rank)[: self.integer(0, rank)]
        return [int(a) - rank * self.flip() for a in chosen]

    # ---- numbers --------------------------------------------------------------------------

    def numbers(
        self,
        shape: Sequence[int],
        dtype: DType,
        low: float = -4,
        high: float = 4,
        special: float = 0.0,
    ) -> np.ndarray:
        """Elements from `low` to `high`; with probability `special` some that are not finite."""
        if dtype is DType.BOOL:
            return self.rng.integers(0, 2, shape).astype(bool)
        if dtype.is_integer:
            least = max(low, np.iinfo(dtype.numpy).min)
            return self.rng.integers(int(np.ceil(least)), int(high) + 1, shape).astype(dtype.numpy)
        array = np.asarray(self.rng.uniform(low, high, shape)).astype(dtype.numpy)
        if self.flip(special) and array.size:
            places = self.rng.integers(0, array.size, 3)
            array.reshape(-1)[places] = self.rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], 3)
        return array

    def whole(self, shape: Sequence[int], dtype: DType) -> np.ndarray:
        """Elements of the whole range of an integer dtype, or numbers."""
        if not dtype.is_integer:
            return self.numbers(shape, dtype)
        limits = np.iinfo(dtype.numpy)
        return self.rng.integers(limits.min, limits.max, shape, dtype.numpy, endpoint=True)

    # ---- operands -------------------------------------------------------------------------

    def feed(self, array: np.ndarray, known: Sequence[int] = ()) -> Operand:
        """An operand that is fed; its dimensions may be unknown but for those in `known`."""
        array = np.asarray(array)
        axes = {"none": 0, "batch": min(1, array.ndim), "all": array.ndim}[self.dynamic]
        kept = {k % array.ndim for k in known} if array.ndim else set()
        # unknown dimensions are taken to be at least 1
        unknown = tuple(i for i in range(axes) if i not in kept and array.shape[i])
        return Operand(array, True, unknown)

    def constant(self, array: Any, dtype: Any = None) -> Operand:
        return Operand(np.asarray(array, dtype), False)

    def either(self, array: np.ndarray, known: Sequence[int] = ()) -> Operand:
        """A fed operand, or a constant."""
        return self.constant(array) if self.flip(0.3) else self.feed(array, known)

    def broadcast(self, count: int, dtype: DType, **numbers: Any) -> list[Operand]:
        """Operands whose shapes broadcast, the first one fed.

        A dimension is unknown only where all operands agree that it is, or have a 1 there.
        """
        full = self.shape()
        arrays, fed = [], []
        for i in range(count):
            shape = tuple(1 if self.flip(0.2) else d for d in full)
            shape = shape[self.integer(0, len(shape)) if self.flip(0.3) else 0 :]
            arrays.append(self.numbers(shape, dtype, **numbers))
            fed.append(i == 0 or self.flip(0.7))
        unknown = set(
            range({"none": 0, "batch": min(1, len(full)), "all": len(full)}[self.dynamic])
        )
        for array, is_fed in zip(arrays, fed, strict=True):
            first = len(full) - array.ndim
            for i, size in enumerate(array.shape):
                if not is_fed and size == full[first + i] != 1:
                    unknown.discard(first + i)
        operands = []
        for array, is_fed in zip(arrays, fed, strict=True):
            first = len(full) - array.ndim
            free = [
                i
                for i, size in enumerate(array.shape)
                if is_fed and first + i in unknown and size == full[first + i] != 0
            ]
            operands.append(Operand(array, is_fed, tuple(free)))
        return operands

    def index(self, values: Any) -> Operand:
        """A constant that says sizes or axes, int32 or int64."""
        return self.constant(values, self.choose([np.int32, np.int64]))

    def case(
        self,
        build: Build,
        *operands: Operand,
        tolerance: Tolerance = EXACT,
        reference: Build | None = None,
        edit: Callable[[Any], None] | None = None,
    ) -> Case:
        return Case(self.op, build, operands, tolerance, " ".join(self.notes), reference, edit)


@cache
def kernel_types(op: str) -> list[dict[str, DType]]:
    """For each combination of dtypes that TensorFlow has a CPU kernel of: dtype by attribute.

    Dtypes that only TensorFlow has (strings, complex numbers) are left out.
    """
    from tensorflow.python.framework import kernels, op_def_registry

    from planish.frontends.tensorflow import graphdef

    op_def = op_def_registry.get(op)
    declared: dict[str, list[DType]] = {}
    for attribute in op_def.attr:
        if attribute.type != "type":
            continue
        allowed = attribute.allowed_values.list.type
        found = [d for t in allowed if (d := graphdef.dtype_of(t))] if allowed else list(DType)
        declared[attribute.name] = found
    rows: dict[tuple[DType, ...], dict[str, DType]] = {}
    for kernel in kernels.get_registered_kernels_for_op(op).kernel:
        if kernel.device_type not in ("CPU", "DEFAULT"):
            continue
        limits = dict(declared)
        for constraint in kernel.constraint:
            if constraint.name in limits:
                types = constraint.allowed_values.list.type
                limits[constraint.name] = [
                    d
                    for t in types
                    if t < 100 and (d := graphdef.dtype_of(t)) and d in declared[constraint.name]
                ]
        for combination in product(*limits.values()):
            rows[combination] = dict(zip(limits, combination, strict=True))
    return list(rows.values())

"""What a plan keeps a tensor as: float32, halves, or levels; and which tensor of the model it is.

A plan's values are found in the float32 graph by their names: rewrites to lower precisions put
suffixes behind the name of the value that they change ("conv/Relu/int8").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planish.graph.dims import symbols
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops import Cast, Dequantize, Quantize
from planish.precision.kinds import Kind, kind_of
from planish.precision.ranges import LARGEST

BYTES = (DType.INT8, DType.UINT8)
FLOATS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)

SUFFIXES = frozenset({"int8", "fp32", "fp16", "bf16", "corrected"})
"""What rewrites put behind names, after a slash, where the value stays what it is."""


@dataclass(frozen=True)
class Form:
    """How a tensor is held.

    Attributes
    ----------
    dtype : DType
        FLOAT32, FLOAT16, BFLOAT16; or INT8, UINT8, which are levels.
    scale, zero : float
        Of levels.
    factors : tuple of float
        By which `scale` is multiplied for each channel (the last axis), at most 1; empty: none.
    inside : bool
        Whether memory has it as float32, and all that read it bring it into the form first.
    """

    dtype: DType
    scale: float = 1.0
    zero: float = 0.0
    inside: bool = False
    factors: tuple[float, ...] = ()

    @property
    def scales(self) -> np.ndarray:
        """Of levels: a float32, or one for each channel."""
        return np.asarray(self.scale * np.asarray(self.factors or 1.0), np.float32)

    @property
    def is_levels(self) -> bool:
        return self.dtype in BYTES

    @property
    def is_exact(self) -> bool:
        """Whether it holds every float32."""
        return self.dtype is DType.FLOAT32

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest number that it holds, in the widest of the channels."""
        if self.is_levels:
            info = np.iinfo(self.dtype.numpy)
            return (info.min - self.zero) * self.scale, (info.max - self.zero) * self.scale
        largest = LARGEST.get(self.dtype, float(np.finfo(np.float32).max))
        return -largest, largest

    @property
    def slack(self) -> float:
        """How far past an end a number may lie and only be rounded to it, in the widest channel."""
        return self.scale / 2 if self.is_levels else 0.0

    @property
    def widths(self) -> np.ndarray:
        """How wide each channel is by the widest; one number where all are alike."""
        return np.asarray(self.factors or 1.0)

    def encode(self, array: np.ndarray) -> np.ndarray:
        """A float32 array as memory has it."""
        return self._widened(self._narrowed(array)) if self.inside else self._narrowed(array)

    def decode(self, array: np.ndarray) -> np.ndarray:
        """What an array that memory has stands for, as float32."""
        return self._widened(self._narrowed(array) if self.inside else array)

    def _narrowed(self, array: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            if not self.is_levels:
                return array.astype(self.dtype.numpy, copy=False)
            info = np.iinfo(self.dtype.numpy)
            level = np.rint(array / self.scales) + np.float32(self.zero)
            level = np.nan_to_num(np.clip(level, np.float32(info.min), np.float32(info.max)))
            return level.astype(self.dtype.numpy)

    def _widened(self, array: np.ndarray) -> np.ndarray:
        if not self.is_levels:
            return array.astype(np.float32, copy=False)
        return (array.astype(np.float32) - np.float32(self.zero)) * self.scales

    def __str__(self) -> str:
        names = {DType.FLOAT32: "fp32", DType.FLOAT16: "fp16", DType.BFLOAT16: "bf16"}
        return names.get(self.dtype, "int8")


def forms(graph: Graph) -> dict[Value, Form]:
    """The forms of the floating-point tensors of a plan's graph, and of those kept as levels.

    Bytes of which nobody knows what they stand for have none.
    """
    known: dict[Value, Form] = {}
    for node in graph.nodes:
        for value in node.outputs:
            if value.dtype in FLOATS:
                known[value] = Form(value.dtype)
            elif value.dtype in BYTES:
                found = _levels(node, value, known, graph.scales)
                if found is not None:
                    known[value] = found
    return known


def _levels(
    node: Node, value: Value, known: Mapping[Value, Form], scales: Mapping[str, tuple[float, ...]]
) -> Form | None:
    if value.name in scales:
        scale, zero, *factors = scales[value.name]
        return Form(value.dtype, scale, zero, factors=tuple(factors))
    if isinstance(node.op, Quantize):
        found = _form(value, *node.inputs[1:])
        # 1 stands where scales were folded into other factors, by versions that kept no note of it
        return found if found is None or found.scale != 1 else _read(value)
    if kind_of(node) in (Kind.MOVE, Kind.WINDOW) and node.inputs[0].dtype is value.dtype:
        return known.get(node.inputs[0])
    return _read(value)


def _read(value: Value) -> Form | None:
    """What the readers of bytes take them for."""
    for user in value.users:
        if isinstance(user.op, Dequantize) and user.inputs[0] is value:
            found = _form(value, *user.inputs[1:])
            if found is not None:
                return found
    return None


def _form(value: Value, scale: Value, zero: Value) -> Form | None:
    """Levels of a scale, or of one for each channel, and a zero point; None if these are others."""
    level, steps = _number(zero), scale.data
    if level is None or steps is None:
        return None
    if steps.size == 1:
        return Form(value.dtype, float(steps.reshape(())), level)
    if steps.shape != value.shape[-1:]:
        return None
    widest = float(steps.max())
    return Form(value.dtype, widest, level, factors=tuple(map(float, steps / widest)))


def _number(value: Value) -> float | None:
    data = value.data
    return float(data.reshape(())) if data is not None and data.size == 1 else None


@dataclass(frozen=True, eq=False)
class Match:
    """A tensor of the model, and what a plan keeps of it.

    Attributes
    ----------
    reference : Value
        Of the float32 graph.
    held : Value
        Of the plan's graph.
    form : Form
    """

    reference: Value
    held: Value
    form: Form


def match(reference: Graph, plan: Graph, stored: Mapping[Value, Node]) -> list[Match]:
    """The tensors of a model that a plan keeps in memory, in the plan's order.

    Those whose sizes depend on the data are left out.

    Parameters
    ----------
    reference : Graph
        The optimised float32 graph.
    plan : Graph
        The same, lowered or quantized.
    stored : mapping of Value to Node
        The plan's values that are written to memory, with what computes them.
    """
    named = {
        v.name: v for v in reference.values() if v.dtype is DType.FLOAT32 and not v.is_constant
    }
    outputs = {value: name for name, value, _ in plan.results()}
    wanted = {name: value for name, value, _ in reference.results() if not value.is_constant}
    counted = reference.counts.keys() | plan.counts.keys()
    trimmed = {v for g in (plan, reference) for name, v, _ in g.results() if name in g.trims}
    known = forms(plan)
    found: dict[Value, Match] = {}
    for value in (*plan.inputs, *stored):
        form = _made_inside(value, known, stored) or known.get(value)
        if form is None:
            continue
        same = _named(value.name, named)
        if same is None and value in outputs:
            same = wanted.get(outputs[value])
        if same is None or same.dtype is not DType.FLOAT32 or same.shape != value.shape:
            continue
        if same in trimmed or value in trimmed:
            continue
        if counted and any(s in counted for d in same.shape for s in symbols(d)):
            continue
        if same not in found or form.is_levels:
            found[same] = Match(same, value, form)
    return list(found.values())


def _made_inside(
    value: Value, known: Mapping[Value, Form], stored: Collection[Value]
) -> Form | None:
    """The form that all readers of a float32 tensor bring it into, each for itself."""
    if value.dtype is not DType.FLOAT32 or not value.users:
        return None
    made = set()
    for user in value.users:
        if not isinstance(user.op, Quantize | Cast) or user.output in stored:
            return None
        made.add(known.get(user.output))
    form = made.pop()
    return replace(form, inside=True) if form and not made and not form.is_exact else None


def _named(name: str, known: Mapping[str, Value]) -> Value | None:
    """The value of a name, whose last suffixes may have come with a rewrite."""
    while name not in known:
        name, _, suffix = name.rpartition("/")
        if suffix not in SUFFIXES:
            return None
    return known[name]

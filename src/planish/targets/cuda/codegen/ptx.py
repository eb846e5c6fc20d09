"""PTX, NVIDIA's assembly language, line by line, for kernels that Triton's language cannot express.

`Assembly` collects instructions and numbers registers. `Lanes` are what a thread holds of a tensor,
an element or four bytes a register; the text of an elementwise expression, which generated kernels
have in Triton's language, is run with them in place of tensors, and writes instructions as it goes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, SimpleNamespace
from typing import Any

VERSION = "8.3"
"""Of PTX: the first driver that runs it came with CUDA 12.3."""

BYTES = ("int8", "uint8", "float8e4nv")
"""Types of which a register holds four elements."""


class NotExpressible(Exception):
    """An expression has something that is not known here."""


class Assembly:
    """A function's body under construction.

    >>> a = Assembly()
    >>> x = a("mov.u32 {}, %tid.x;")
    >>> y = a("add.u32 {}, {}, 1;", x)
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._counts = {"r": 0, "p": 0, "d": 0, "h": 0}
        self._labels = 0

    def register(self, kind: str = "r") -> str:
        """A new register: "r" of 32 bits, "d" of 64, "h" of 16, "p" a predicate."""
        self._counts[kind] += 1
        return f"%{kind}{self._counts[kind] - 1}"

    def registers(self, count: int) -> list[str]:
        """New registers of 32 bits."""
        return [self.register() for _ in range(count)]

    def label(self) -> str:
        """A new label."""
        self._labels += 1
        return f"$L{self._labels}"

    def line(self, text: str) -> None:
        """Adds an instruction or a label."""
        self._lines.append("    " + text)

    def __call__(self, text: str, *operands: object, kind: str = "r") -> str:
        """Adds an instruction whose first ``{}`` is a new register, and gives that."""
        made = self.register(kind)
        self.line(text.format(made, *operands))
        return made

    @contextmanager
    def skipped_unless(self, predicate: str) -> Iterator[None]:
        """What is written inside is jumped over where a predicate ("!%p1": its opposite) fails."""
        end = self.label()
        opposite = predicate[1:] if predicate[0] == "!" else "!" + predicate
        self.line(f"@{opposite} bra {end};")
        yield
        self.line(f"{end}:")

    def body(self) -> str:
        """The declarations and instructions."""
        types = {"r": "b32", "p": "pred", "d": "b64", "h": "b16"}
        declared = [f"    .reg .{types[k]} %{k}<{n}>;" for k, n in self._counts.items() if n]
        return "\n".join([*declared, *self._lines]) + "\n"


def number(value: float) -> str:
    """A float32 as an operand."""
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"


@dataclass(frozen=True, eq=False)
class Lanes:
    """What a thread holds of a tensor; one operand stands for all elements.

    Attributes
    ----------
    assembly : Assembly
    kind : str
        The type of the elements, by Triton's name.
    names : tuple of str
        Registers or numbers.
    """

    assembly: Assembly
    kind: str
    names: tuple[str, ...]

    # ---- operators -----------------------------------------------------------------------------

    def _with(self, op: Mapping[str, str], other: Any, swapped: bool = False) -> Lanes:
        a, b = (_like(other, self), self) if swapped else (self, _like(other, self))
        if a.kind != b.kind or a.kind not in op:
            raise NotExpressible(f"{a.kind} and {b.kind}")
        return _each(op[a.kind], a.kind, a, b)

    def __add__(self, other: Any) -> Lanes:
        return self._with({"float32": "add.f32", "int32": "add.s32"}, other)

    def __sub__(self, other: Any) -> Lanes:
        return self._with({"float32": "sub.f32", "int32": "sub.s32"}, other)

    def __rsub__(self, other: Any) -> Lanes:
        return self._with({"float32": "sub.f32", "int32": "sub.s32"}, other, True)

    def __mul__(self, other: Any) -> Lanes:
        return self._with({"float32": "mul.f32", "int32": "mul.lo.s32"}, other)

    def __truediv__(self, other: Any) -> Lanes:
        return self._with({"float32": "div.full.f32"}, other)

    def __and__(self, other: Any) -> Lanes:
        return self._with({"int1": "and.pred", "int32": "and.b32"}, other)

    def __or__(self, other: Any) -> Lanes:
        return self._with({"int1": "or.pred", "int32": "or.b32"}, other)

    def __xor__(self, other: Any) -> Lanes:
        return self._with({"int1": "xor.pred", "int32": "xor.b32"}, other)

    def __rshift__(self, other: Any) -> Lanes:
        return self._with({"int32": "shr.s32"}, other)

    def __lshift__(self, other: Any) -> Lanes:
        return self._with({"int32": "shl.b32"}, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def _compared(self, how: str, other: Any) -> Lanes:
        other = _like(other, self)
        if self.kind not in ("float32", "int32"):
            raise NotExpressible(f"a comparison of {self.kind}")
        kind = "f32" if self.kind == "float32" else "s32"
        if how == "ne" and kind == "f32":
            how = "neu"  # NaN differs from everything
        return _each(f"setp.{how}.{kind}", "int1", self, other)

    def __lt__(self, other: Any) -> Lanes:
        return self._compared("lt", other)

    def __le__(self, other: Any) -> Lanes:
        return self._compared("le", other)

    def __gt__(self, other: Any) -> Lanes:
        return self._compared("gt", other)

    def __ge__(self, other: Any) -> Lanes:
        return self._compared("ge", other)

    def __eq__(self, other: Any) -> Lanes:  # type: ignore[override]
        return self._compared("eq", other)

    def __ne__(self, other: Any) -> Lanes:  # type: ignore[override]
        return self._compared("ne", other)

    # ---- conversions ---------------------------------------------------------------------------

    def to(self, kind: str, bitcast: bool = False) -> Lanes:
        """As another type; with `bitcast` the same bits."""
        if kind == self.kind:
            return self
        if bitcast:
            if _size(kind) != _size(self.kind):
                raise NotExpressible(f"the bits of {self.kind} as {kind}")
            return Lanes(self.assembly, kind, self.names)
        a = self.assembly
        if (self.kind, kind) in _CONVERSIONS:
            text, register = _CONVERSIONS[self.kind, kind]
            made = tuple(a(text, n, kind=register) for n in self.names)
            return Lanes(a, kind, made)
        if self.kind == "int32" and kind in ("int8", "uint8"):
            return Lanes(a, kind, tuple(_packed(a, four) for four in _groups(self.names, 4)))
        if self.kind == "float32" and kind == "float8e4nv":
            return Lanes(a, kind, tuple(_codes(a, four) for four in _groups(self.names, 4)))
        if self.kind == "float8e4nv" and kind == "float32":
            return Lanes(a, kind, tuple(x for n in self.names for x in _of_codes(a, n)))
        raise NotExpressible(f"{self.kind} as {kind}")


_CONVERSIONS = {
    ("int32", "float32"): ("cvt.rn.f32.s32 {}, {};", "r"),
    ("float32", "float16"): ("cvt.rn.f16.f32 {}, {};", "h"),
    ("float16", "float32"): ("cvt.f32.f16 {}, {};", "r"),
    ("float32", "bfloat16"): ("cvt.rn.bf16.f32 {}, {};", "h"),
    ("bfloat16", "float32"): ("cvt.f32.bf16 {}, {};", "r"),
}


def _size(kind: str) -> int:
    """Bytes of an element."""
    return 1 if kind in BYTES else 2 if kind.endswith("float16") else 4


def _groups(names: Sequence[str], count: int) -> list[Sequence[str]]:
    if len(names) % count:
        raise NotExpressible("bytes that are no whole registers")
    return [names[i : i + count] for i in range(0, len(names), count)]


def _packed(a: Assembly, four: Sequence[str]) -> str:
    """The last bytes of four registers in one."""
    low = a("prmt.b32 {}, {}, {}, 0x0040;", *four[:2])
    high = a("prmt.b32 {}, {}, {}, 0x0040;", *four[2:])
    return a("prmt.b32 {}, {}, {}, 0x5410;", low, high)


def _codes(a: Assembly, four: Sequence[str]) -> str:
    pairs = [
        a("cvt.rn.satfinite.e4m3x2.f32 {}, {}, {};", high, low, kind="h")
        for low, high in (four[:2], four[2:])
    ]
    return a("mov.b32 {}, {{{}, {}}};", *pairs)


def _of_codes(a: Assembly, name: str) -> list[str]:
    pairs = a.register("h"), a.register("h")
    a.line(f"mov.b32 {{{pairs[0]}, {pairs[1]}}}, {name};")
    found = []
    for pair in pairs:
        halves = a("cvt.rn.f16x2.e4m3x2 {}, {};", pair)
        low, high = a.register("h"), a.register("h")
        a.line(f"mov.b32 {{{low}, {high}}}, {halves};")
        found += [a("cvt.f32.f16 {}, {};", half) for half in (low, high)]
    return found


def _like(value: Any, other: Lanes) -> Lanes:
    """A number as `Lanes`."""
    if isinstance(value, Lanes):
        return value
    text = number(value) if other.kind == "float32" else str(int(value))
    return Lanes(other.assembly, other.kind, (text,))


def _each(op: str, kind: str, *operands: Lanes) -> Lanes:
    """An instruction for each element."""
    count = max(len(o.names) for o in operands)
    if any(len(o.names) not in (1, count) for o in operands):
        raise NotExpressible("operands of different lengths")
    a = operands[0].assembly
    columns = [o.names if len(o.names) == count else o.names * count for o in operands]
    register = "p" if kind == "int1" else "r"
    places = ", ".join(["{}"] * (len(operands) + 1))
    made = tuple(a(f"{op} {places};", *row, kind=register) for row in zip(*columns, strict=True))
    return Lanes(a, kind, made)


def _float(op: str, result: str = "float32") -> Callable[..., Lanes]:
    """A function of float32."""

    def call(*operands: Any) -> Lanes:
        first = next(o for o in operands if isinstance(o, Lanes))
        lanes = [_like(o, first) for o in operands]
        if any(o.kind != "float32" for o in lanes):
            raise NotExpressible(f"{op} of {[o.kind for o in lanes]}")
        return _each(op, result, *lanes)

    return call


def _extreme(name: str) -> Callable[..., Lanes]:
    def call(a: Any, b: Any, propagate_nan: bool = False) -> Lanes:
        first = a if isinstance(a, Lanes) else b
        ops = {"float32": f"{name}{'.NaN' if propagate_nan else ''}.f32", "int32": f"{name}.s32"}
        return first._with(ops, b if first is a else a)

    return call


def _abs(x: Lanes) -> Lanes:
    if x.kind not in ("float32", "int32"):
        raise NotExpressible(f"abs of {x.kind}")
    return _each("abs.f32" if x.kind == "float32" else "abs.s32", x.kind, x)


def _where(condition: Lanes, yes: Any, no: Any) -> Lanes:
    first = yes if isinstance(yes, Lanes) else no
    if not isinstance(first, Lanes) or _size(first.kind) != 4:
        raise NotExpressible("a choice")
    a, b = _like(yes, first), _like(no, first)
    if a.kind != b.kind or condition.kind != "int1":
        raise NotExpressible("a choice")
    return _each("selp.f32" if a.kind == "float32" else "selp.s32", a.kind, a, b, condition)


def _exp(x: Lanes) -> Lanes:
    return _float("ex2.approx.ftz.f32")(x * 1.4426950408889634)


_SYNTAX = {
    "tl": SimpleNamespace(
        float32="float32",
        float16="float16",
        bfloat16="bfloat16",
        int32="int32",
        int8="int8",
        uint8="uint8",
        float8e4nv="float8e4nv",
        int1="int1",
        minimum=_extreme("min"),
        maximum=_extreme("max"),
        abs=_abs,
        where=_where,
        exp=_exp,
        fma=_float("fma.rn.f32"),
        div_rn=_float("div.rn.f32"),
        sqrt=_float("sqrt.approx.ftz.f32"),
        sqrt_rn=_float("sqrt.rn.f32"),
        rsqrt=_float("rsqrt.approx.ftz.f32"),
        floor=_float("cvt.rmi.f32.f32"),
        ceil=_float("cvt.rpi.f32.f32"),
        PropagateNan=SimpleNamespace(ALL=True),
    ),
    "libdevice": SimpleNamespace(
        exp2=_float("ex2.approx.ftz.f32"),
        rint=_float("cvt.rni.f32.f32"),
        trunc=_float("cvt.rzi.f32.f32"),
        mul_rn=_float("mul.rn.f32"),
        float2int_rn=_float("cvt.rni.s32.f32", "int32"),
    ),
}
"""What the text of expressions may name; other functions are not expressible."""


def run(assembly: Assembly, text: str | CodeType, names: Mapping[str, Lanes]) -> dict[str, Any]:
    """Writes what the lines of an expression compute, given what they name; gives all names.

    Raises
    ------
    NotExpressible
        They have something that is not known here.
    """

    def full(_: object, value: float, kind: str) -> Lanes:
        if kind not in ("float32", "int32"):
            raise NotExpressible(f"a number of {kind}")
        return Lanes(assembly, kind, (number(value) if kind == "float32" else str(int(value)),))

    def asm(text: str, how: str, args: list[Lanes], dtype: str, is_pure: bool, pack: int) -> Lanes:
        return _inline(assembly, text, how, args, dtype, pack)

    tl = SimpleNamespace(**vars(_SYNTAX["tl"]), full=full, inline_asm_elementwise=asm)
    space: dict[str, Any] = {"tl": tl, "libdevice": _SYNTAX["libdevice"], **names}
    try:
        exec(text, space)  # which a kernel generator of ours wrote
    except (AttributeError, TypeError) as error:
        raise NotExpressible(str(error)) from error
    return space


def _inline(
    a: Assembly, text: str, how: str, args: Sequence[Lanes], dtype: str, pack: int
) -> Lanes:
    """Instructions for `pack` elements at a time."""
    outputs = sum(c.startswith("=") for c in how.split(","))
    each = []
    for lanes in args:
        if _size(lanes.kind) == 2:
            raise NotExpressible("halves among instructions")
        each.append(_groups(lanes.names, pack // 4 if lanes.kind in BYTES else pack))
    made: list[str] = []
    for group in zip(*each, strict=True):
        results = a.registers(outputs)
        operands = [*results, *(n for names in group for n in names)]
        line = text
        for place in reversed(range(len(operands))):  # $10 before $1
            line = line.replace(f"${place}", operands[place])
        a.line(line if line.startswith("{") else f"{{ {line} }}")
        made += results
    return Lanes(a, dtype, tuple(made))

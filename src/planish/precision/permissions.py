"""Which precisions a build may use: what `precision=` says, and what the target has.

A precision is a permission, never an order: FP32 always is one, each further name allows faster
kernels, and nothing is allowed that was not named. FP16 and BF16 change the dtypes of the graph
(`planish.precision.policy`, `planish.precision.lower`); TF32 leaves them and allows tactics that
round the factors of products (`planish.targets.base.Tactic.precision`); INT8 and FP8 are the
business of `planish.quantization`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.errors import PrecisionError
from planish.graph.graph import Node
from planish.graph.types import DType

log = logging.getLogger("planish")

FP32 = "fp32"

FLOATS = {"fp16": DType.FLOAT16, "bf16": DType.BFLOAT16, FP32: DType.FLOAT32}
"""The precisions that are dtypes of the graph. Of several lower ones the first is taken."""

INT8, FP8 = "int8", "fp8"

QUANTIZED = (FP8, INT8)
"""The precisions that need ranges: bytes stand for numbers."""

PRECISIONS = (FP32, "tf32", "fp16", "bf16", INT8, FP8)
"""The precisions that may be permitted, as they are written in plans."""

NO_STAND_IN = QUANTIZED
"""Precisions that change results so much that FP32 cannot stand in for them."""

BEST = "best"
"""All precisions that the target has."""


@dataclass(frozen=True)
class Permissions:
    """What a build may compute in.

    Attributes
    ----------
    allowed : frozenset of str
        The precisions permitted anywhere; always FP32 among them.
    layers : mapping of str to str
        By name of a node the precision that `layer_precision` gave it.
    """

    allowed: frozenset[str] = frozenset({FP32})
    layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def lower(self) -> DType | None:
        """The dtype that work in float32 may be lowered to."""
        return next(
            (t for name, t in FLOATS.items() if name != FP32 and name in self.allowed), None
        )

    def of(self, nodes: Iterable[Node]) -> frozenset[str]:
        """What a task of these nodes may compute in: what all of them permit."""
        given = [self.layers[n.name] for n in nodes if n.name in self.layers]
        return self.allowed.intersection(*({FP32, name} for name in given))

    def __str__(self) -> str:
        return precision_text(self.allowed)


def precision_text(allowed: Iterable[str]) -> str:
    """Permitted precisions as one text, as plans record it; FP32 is not named beside others."""
    names = [name for name in PRECISIONS if name in set(allowed)]
    return ",".join(name for name in names if name != FP32) or FP32


def recorded(about: Mapping[str, Any]) -> frozenset[str]:
    """The permitted precisions that a plan's header records; unknown ones are not permitted."""
    names = str(about.get("precision", FP32)).split(",")
    return frozenset({FP32, *(name for name in names if name in PRECISIONS)})


def parse_precision(precision: Any, device: str, available: Iterable[str]) -> frozenset[str]:
    """The permissions that an argument `precision=` gives, whether or not the target has them.

    Parameters
    ----------
    precision : str, or set, list or tuple of str
        "fp32", "tf32", "fp16", "bf16", "int8", "fp8", "best", in any case; one or several.
    device : str
        The target's name, for messages.
    available : iterable of str
        What it has: the meaning of "best".

    Raises
    ------
    PrecisionError
        A name is unknown, none is given, or there are no kernels for it and FP32 cannot stand in.
    """
    given = [precision] if isinstance(precision, str) else precision
    if not isinstance(given, set | frozenset | list | tuple) or not given:
        raise _unknown(precision)
    names: set[str] = {FP32}
    for one in given:
        name = one.strip().lower() if isinstance(one, str) else one
        if name == BEST:
            names |= set(available)
        elif name in NO_STAND_IN and name not in set(available):
            raise PrecisionError(
                f"Precision {one!r} is not available on {device}",
                where="precision=",
                why=f"this version has kernels for {', '.join(_ordered(available))}",
                cure=f'leave it out, or pass "{precision_text(available)}"',
            )
        elif isinstance(name, str) and name in PRECISIONS:
            names.add(name)
        else:
            raise _unknown(one)
    return frozenset(names)


def permit(asked: frozenset[str], device: str, available: Iterable[str]) -> frozenset[str]:
    """What remains of permissions on a target; logs one line where FP32 stands in for some.

    FP16 is never replaced by BF16, nor the other way round.
    """
    missing = _ordered(asked.difference(available))
    if missing:
        log.warning(
            "%s %s permitted and not used: %s has kernels for %s",
            ", ".join(missing).upper(),
            "is" if len(missing) == 1 else "are",
            device,
            ", ".join(_ordered({FP32, *available})).upper(),
        )
    return asked.intersection(available) | {FP32}


def _ordered(names: Iterable[str]) -> list[str]:
    found = set(names)
    return [name for name in PRECISIONS if name in found]


def _unknown(given: Any) -> PrecisionError:
    return PrecisionError(
        f"There is no precision {given!r}",
        where="precision=",
        why=f"precisions are {', '.join(PRECISIONS)}, and {BEST} for all that the device has",
        cure='pass one of these names or a set of them; "fp16" permits FP32 too',
    )

"""What steers a conversion: arguments, and the environment variables of TF-TRT and their twins."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from planish.errors import InputError

DEFAULT_MAX_ENGINES = 20


@dataclass(frozen=True)
class Settings:
    """How a graph is converted.

    Attributes
    ----------
    minimum_segment_size : int
        Nodes, constants counted, that a segment must have; -1: nothing of the main graph is
        converted.
    max_engines : int
        Only so many segments are converted, the largest ones; 0 or less: all.
    denied_nodes, denied_ops : collections of str
        Nodes and op types that stay in TensorFlow.
    maximum_cached_engines : int
        Programs (one a shape) that each engine holds at least.
    allow_native_segments : bool
        Whether a shape that an engine does not take may run in TensorFlow instead.
    max_workspace_size : int, optional
        Bytes of workspace no tactic may exceed.
    tuning_seconds : float, optional
        Time for measuring, per engine; None: by the size of the engine, 0: heuristics only.
    weigh : bool
        Whether segments that would not pay stay in TensorFlow.
    device : str
        Where engines run.
    precisions : frozenset of str
        Permitted precisions.
    report : str
        "" none, "1" a report to standard output, else the path of a CSV file.
    """

    minimum_segment_size: int = 3
    max_engines: int = DEFAULT_MAX_ENGINES
    denied_nodes: Collection[str] = frozenset()
    denied_ops: Collection[str] = frozenset()
    maximum_cached_engines: int = 1
    allow_native_segments: bool = True
    max_workspace_size: int | None = None
    tuning_seconds: float | None = None
    weigh: bool = True
    device: str = "cpu"
    precisions: frozenset[str] = frozenset({"fp32"})
    report: str = ""

    @classmethod
    def from_environment(cls, **arguments: Any) -> Settings:
        """The settings that the environment asks for; arguments that are given win.

        Raises
        ------
        InputError
            A variable holds what cannot be understood.
        """
        found: dict[str, Any] = {}
        ops = {op.strip() for op in variable("OP_DENYLIST").split(",") if op.strip()}
        found["denied_ops"] = frozenset(ops)
        if text := variable("MAX_ALLOWED_ENGINES"):
            found["max_engines"] = _number(text, "MAX_ALLOWED_ENGINES", int)
        found["allow_native_segments"] = native_segments_allowed()
        if text := os.environ.get("PLANISH_TUNING_SECONDS", ""):
            found["tuning_seconds"] = _number(text, "PLANISH_TUNING_SECONDS", float)
        report = variable("SHOW_DETAILED_REPORT")
        found["report"] = "" if report.lower() in ("0", "false") else report
        found.update(arguments)
        return cls(**found)


def variable(name: str) -> str:
    """The value of ``PLANISH_<name>``, or else of ``TF_TRT_<name>``; "" where neither is set."""
    for full in (f"PLANISH_{name}", f"TF_TRT_{name}"):
        if os.environ.get(full):
            return os.environ[full]
    return ""


def native_segments_allowed() -> bool:
    """Whether the environment lets native segments run; read again where engines are loaded."""
    text = variable("ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION")
    return text.strip().lower() not in ("0", "false", "no", "off")


def _number(text: str, name: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise InputError(
            f"{name} is {text!r}, not a number",
            where="environment variable",
            cure="set it to a number, or unset it",
        ) from None

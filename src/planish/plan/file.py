"""The plan file: a plan as data, with nothing in it that is run or unpickled.

    planish plan 001 0000012345 <sha256 of the header>      the first line; also the format version
    { "about": …, "graph": …, "steps": …, "weights": … }    the header: JSON, readable with `head`
    <safetensors>                                           the original weights, each once
    <device code>                                           of GPUs; see `planish.plan.device_code`

The header states size and SHA-256 of the weights. What can be derived is not stored: placements,
memory plan, packed weights, a CPU's machine code. Reading checks everything and trusts nothing; the
result is a `StoredPlan`, which `planish.plan.load` makes into a plan for a target.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.errors import PlanError
from planish.files import replaced
from planish.graph.graph import Graph, Node, Value
from planish.plan import device_code, tensors
from planish.plan.codec import Json, decode_graph, encode_graph, expect
from planish.plan.device_code import PlanCode
from planish.plan.plan import Choice, Plan, PlanStep
from planish.precision.permissions import FP32, recorded

FORMAT = 1
"""The version of the format. A reader refuses others: what the parts mean may have changed."""

_FIRST_LINE = re.compile(rb"planish plan (\d{3}) (\d{10}) ([0-9a-f]{64})\n")
_FIRST_LINE_SIZE = 93
_ANY_PLAN = b"planish plan "
MOST_THREADS = 4096
"""No machine has more cores."""
_AGAIN = "build the plan again, or copy the file again from where it is whole"


@dataclass(frozen=True)
class StoredChoice:
    """A tactic by the name of its family and its parameters; see `Choice`."""

    at: tuple[tuple[str, int], ...]
    family: str
    parameters: Mapping[str, Any]
    seconds: float | None


@dataclass(frozen=True)
class StoredStep:
    """The nodes of a task, its anchor, the tactics chosen, those found bad, what is permitted."""

    nodes: tuple[Node, ...]
    anchor: Node | None
    choices: tuple[StoredChoice, ...]
    wrong: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    precisions: frozenset[str] = frozenset({FP32})


@dataclass(frozen=True)
class StoredPlan:
    """What a plan file holds: everything but what needs a target.

    Attributes
    ----------
    graph : Graph
        Types inferred again and verified. Constants are views of the file, read-only.
    steps : tuple of StoredStep
        Nodes of the graph; not yet checked to be tasks.
    about : dict
        What the header says of machine, versions and precision.
    source : str
        The file's name, for messages.
    code : PlanCode or None
        Whole, but not to be trusted.
    """

    graph: Graph
    steps: tuple[StoredStep, ...]
    about: dict[str, Any]
    source: str
    code: PlanCode | None = None


# ---- writing -------------------------------------------------------------------------------


def serialize(plan: Plan, code: PlanCode | None = None) -> bytes:
    """A plan as bytes, with its kernels' code or without; the same plan always gives the same.

    Raises
    ------
    PlanError
        The graph holds something that cannot be stored.
    """
    return b"".join(_pieces(plan, code))


def save(plan: Plan, path: str | os.PathLike[str], code: PlanCode | None = None) -> None:
    """Writes a plan to a file, replacing an old one atomically; see `serialize`.

    Raises
    ------
    PlanError
        The file cannot be written (no space, no permission); an old file is left as it was.
    """
    try:
        with replaced(path) as file:
            for piece in _pieces(plan, code):
                file.write(piece)
    except OSError as error:
        raise PlanError(
            "The plan cannot be written",
            where=os.fspath(path),
            why=str(error.strerror or error),
            cure="choose a file in a folder that can be written, on a disk with space left",
        ) from error


def _pieces(plan: Plan, code: PlanCode | None) -> Iterator[bytes | memoryview]:
    """The file in pieces, in order."""
    names, arrays = _stored_once(plan.graph)
    weights = list(tensors.pieces(arrays))
    digest = hashlib.sha256()
    for piece in weights:
        digest.update(piece)
    header = {
        "about": plan.about,
        "weights": {"bytes": sum(map(len, weights)), "sha256": digest.hexdigest()},
        **({"device_code": device_code.described(code)} if code else {}),
        "steps": [_encode_step(step, recorded(plan.about)) for step in plan.steps],
        "graph": encode_graph(plan.graph, names),
    }
    try:
        text = _lines(header, 3).encode()
    except (TypeError, ValueError) as error:
        raise PlanError("The plan holds something that JSON does not", why=str(error)) from error
    # the weights start aligned; the header ends with a line break
    text += b" " * (-(_FIRST_LINE_SIZE + len(text) + 1) % tensors.ALIGNMENT) + b"\n"
    line = f"planish plan {FORMAT:03} {len(text):010} {hashlib.sha256(text).hexdigest()}\n"
    yield line.encode()
    yield text
    yield from weights
    yield from code.kernels.values() if code else ()


def _stored_once(graph: Graph) -> tuple[dict[Value, str], dict[str, np.ndarray]]:
    """For each constant the tensor that holds its data, and the tensors; equal ones are one."""
    names: dict[Value, str] = {}
    arrays: dict[str, np.ndarray] = {}
    alike: dict[tuple, str] = {}
    for value in graph.constants():
        assert value.data is not None
        data = np.asarray(value.data, order="C")
        digest = hashlib.sha256(data.reshape(-1).view(np.uint8).data).digest()
        key = value.dtype, data.shape, digest
        if key not in alike:
            name = value.name
            while name in arrays or name == "__metadata__" or name.startswith(tensors.PADDING):
                name = f"constant {name}"
            alike[key] = name
            arrays[name] = data
        names[value] = alike[key]
    return names, arrays


def _encode_step(step: PlanStep, usual: frozenset[str]) -> Json:
    item: dict[str, Json] = {"nodes": [node.name for node in step.task.nodes]}
    if step.task.anchor is not None:
        item["anchor"] = step.task.anchor.name
    item["choices"] = [_encode_choice(choice) for choice in step.choices]
    if step.wrong:
        item["wrong"] = list(step.wrong)
    if step.slow:
        item["slow"] = list(step.slow)
    if step.precisions != usual:
        item["precisions"] = sorted(step.precisions)
    return item


def _encode_choice(choice: Choice) -> Json:
    return {
        "at": dict(choice.at),
        "family": choice.tactic.family,
        "parameters": choice.tactic.parameters,
        "seconds": choice.seconds,
    }


def _lines(data: Json, depth: int) -> str:
    """JSON text with an item a line down to some depth."""
    if isinstance(data, dict) and data and depth:
        items = [f"{json.dumps(str(k))}: {_lines(v, depth - 1)}" for k, v in data.items()]
        return "{\n" + ",\n".join(items) + "\n}"
    if isinstance(data, list) and data and depth:
        return "[\n" + ",\n".join(_lines(item, depth - 1) for item in data) + "\n]"
    return json.dumps(data, allow_nan=False)


# ---- reading -------------------------------------------------------------------------------


def deserialize(source: bytes | bytearray | memoryview | str | os.PathLike[str]) -> StoredPlan:
    """Reads a plan from bytes, or from a file, which is mapped and not copied.

    A file that is mapped must not be overwritten in place while the plan is in use; `save` never
    does, it replaces.

    Raises
    ------
    PlanError
        The file cannot be read, is no plan, is damaged, or has another format version.
    """
    data, name = _content(source)
    header, blob = _split(data, name)
    try:
        weights = expect(header, "weights", dict)
        size, digest = expect(weights, "bytes", int), expect(weights, "sha256", str)
        embedded = header.get("device_code")
        extra = 0 if embedded is None else expect(embedded, "bytes", int)
        if size + extra != len(blob) or extra < 0:
            ends = "ends early" if size + extra > len(blob) else "is longer than it should be"
            of = "weights" if embedded is None else "weights and device code"
            why = f"the file {ends}: {len(blob)} bytes of {of} instead of {size + extra}"
            raise PlanError("The plan file is damaged", why=why)
        code = None if embedded is None else device_code.read(embedded, blob[size:])
        blob = blob[:size]
        if hashlib.sha256(blob).hexdigest() != digest:
            raise PlanError("The plan file is damaged", why="the weights do not fit their checksum")
        graph = decode_graph(expect(header, "graph", dict), tensors.read(blob))
        by_name = {node.name: node for node in graph.nodes}
        about = _about(header)
        usual = recorded(about)
        steps = tuple(_decode_step(s, by_name, usual) for s in expect(header, "steps", list))
    except RecursionError as error:
        raise _damaged(name, "the header is nested too deeply") from error
    except PlanError as error:
        raise _located(error, name) from error
    return StoredPlan(graph, steps, about, name, code)


def read_about(source: bytes | str | os.PathLike[str]) -> dict[str, Any]:
    """What a plan's header says of machine, versions and precision; the weights are not read.

    Raises
    ------
    PlanError
        As for `deserialize`.
    """
    data, name = _content(source)
    try:
        return expect(_split(data, name)[0], "about", dict)
    except PlanError as error:
        raise _located(error, name) from error


def read_device_code(source: bytes | str | os.PathLike[str]) -> str | None:
    """What device code a plan holds, in a few words; None if it holds none.

    Raises
    ------
    PlanError
        As for `deserialize`.
    """
    data, name = _content(source)
    header, blob = _split(data, name)
    entry = header.get("device_code")
    if entry is None:
        return None
    try:
        start = expect(expect(header, "weights", dict), "bytes", int)
        return str(device_code.read(entry, blob[start:]))
    except PlanError as error:
        raise _located(error, name) from error


def _about(header: Json) -> dict[str, Any]:
    """What the header says of machine and settings; what is used of it must make sense."""
    about: dict[str, Any] = expect(header, "about", dict)
    threads = about.get("threads")
    if threads is not None and not (type(threads) is int and 1 <= threads <= MOST_THREADS):
        raise PlanError("The entry 'threads' is not a number of threads", why=f"it is {threads!r}")
    return about


def _content(source: Any) -> tuple[memoryview, str]:
    """The bytes of a plan, and what to call it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        # a buffer that may change is copied before it is checked
        data = source if isinstance(source, bytes) else bytes(source)
        return memoryview(data), "the bytes given"
    try:
        name = os.fspath(source)
    except TypeError:
        raise PlanError(
            f"A plan cannot be loaded from an object of type {type(source).__name__}",
            where="the plan given",
            why="a plan is a file, or bytes",
            cure="pass the path of a plan file, or its bytes",
        ) from None
    name = os.fsdecode(name)
    try:
        # a pipe is not waited for
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise PlanError("This is not a file", where=name, cure="pass a plan file's path")
            if info.st_size == 0:
                raise _damaged(name, "the file is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), name
    except (OSError, ValueError) as error:
        raise PlanError(
            "The plan file cannot be read",
            where=name,
            why=str(getattr(error, "strerror", None) or error),
            cure="check the path and its permissions",
        ) from error


def _split(data: memoryview, name: str) -> tuple[Json, memoryview]:
    """The header and the weights; checks first line, sizes and the header's checksum."""
    line = _FIRST_LINE.fullmatch(bytes(data[:_FIRST_LINE_SIZE]))
    start = bytes(data[: len(_ANY_PLAN)])
    if line is None:
        if start == _ANY_PLAN or (start and _ANY_PLAN.startswith(start)):
            raise _damaged(name, "its first line is cut short or changed")
        raise PlanError(
            "This is not a plan file",
            where=name,
            why="a plan file starts with the words 'planish plan'",
            cure="pass a file that Engine.save wrote; models are built with planish.build",
        )
    if int(line[1]) != FORMAT:
        newer = int(line[1]) > FORMAT
        raise PlanError(
            f"The plan has format version {int(line[1])}; this Planish reads {FORMAT}",
            where=name,
            why=f"{'a newer' if newer else 'an older'} version of Planish wrote it",
            cure="update Planish" if newer else "build the plan again from the model",
        )
    end = _FIRST_LINE_SIZE + int(line[2])
    if end > len(data):
        raise _damaged(name, "the file ends early")
    text = data[_FIRST_LINE_SIZE:end]
    if hashlib.sha256(text).hexdigest().encode() != line[3]:
        raise _damaged(name, "the header does not fit its checksum")
    try:
        header = json.loads(bytes(text), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, f"the header is not JSON: {error}") from error
    return header, data[end:]


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _decode_step(item: Json, nodes: Mapping[str, Node], usual: frozenset[str]) -> StoredStep:
    def find(name: Json) -> Node:
        if not isinstance(name, str) or name not in nodes:
            raise PlanError("A step of the plan names a node that is not there", why=str(name)[:99])
        return nodes[name]

    members = tuple(find(name) for name in expect(item, "nodes", list))
    anchor = find(item["anchor"]) if item.get("anchor") is not None else None
    choices = tuple(_decode_choice(choice) for choice in expect(item, "choices", list))
    wrong, slow = _names(item, "wrong"), _names(item, "slow")
    precisions = frozenset(_names(item, "precisions")) if "precisions" in item else usual
    return StoredStep(members, anchor, choices, wrong, slow, precisions)


def _names(item: Json, key: str) -> tuple[str, ...]:
    """The tactics, or precisions, in a list that a step may lack."""
    names = item.get(key, [])
    if type(names) is not list or not all(isinstance(name, str) for name in names):
        raise PlanError(f"The entry {key!r} of a step is not a list of names")
    return tuple(names)


def _decode_choice(item: Json) -> StoredChoice:
    at = expect(item, "at", dict)
    if not all(type(size) is int and size >= 0 for size in at.values()):
        raise PlanError("A tactic is stored with sizes that are none", why=str(at)[:99])
    seconds = item.get("seconds")
    if seconds is not None:
        # a nan would make every comparison of times false
        if type(seconds) not in (float, int) or not 0 <= seconds < math.inf:
            raise PlanError("A tactic is stored with a time that is none", why=str(seconds)[:99])
        seconds = float(seconds)
    return StoredChoice(
        tuple(sorted(at.items())),
        expect(item, "family", str),
        expect(item, "parameters", dict),
        seconds,
    )


def _damaged(name: str, why: str) -> PlanError:
    return PlanError("The plan file is damaged", where=name, why=why, cure=_AGAIN)


def _located(error: PlanError, name: str) -> PlanError:
    """The error with the file's name in it."""
    where = f"{name}: {error.where}" if error.where else name
    return PlanError(error.what, where=where, why=error.why, cure=error.cure or _AGAIN)

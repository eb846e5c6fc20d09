"""Writes docs/tensorflow-support.md: which TensorFlow ops engines run, and where they do not.

    python docs/make_tensorflow_support.py            writes the page
    python docs/make_tensorflow_support.py --check    fails if the page is not what would be written

Nothing in the tables is written by hand. The dtypes are those that TensorFlow has CPU kernels for;
what must be known, and why an op stays in TensorFlow, is read from the converters themselves: the
arguments of ``ctx.ints`` and its kin, and of ``ctx.unsupported``, in the function of an op and in
those that it calls.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from planish.frontends.tensorflow import context, families, graphdef, layout
from planish.frontends.tensorflow.context import CONVERTERS
from planish.graph.types import DType

PAGE = Path(__file__).with_name("tensorflow-support.md")

TEXT = """\
# TensorFlow ops

<!-- Written by docs/make_tensorflow_support.py; change it there. -->

An engine runs the ops of the first tables by kernels, in every dtype listed, with any attribute
that TensorFlow takes, but for what the last column says; `NCHW` as well as `NHWC` where an op has a
data format, though TensorFlow itself needs a GPU for that. Each is compared with TensorFlow on
random attributes, dtypes and shapes, with known and with unknown dimensions
(`tests/frontends/tensorflow/test_every_op.py`; more of them:
`python tests/campaigns/tensorflow_ops.py`).

An op that cannot be converted is an error of `planish.build`, which names it and says why. The
converter of SavedModels (`planish.tensorflow`) leaves it in TensorFlow and makes engines of what is
around it; its report (`PLANISH_SHOW_DETAILED_REPORT=1`) names each such op with its reason.

**Known when converting.** An engine's shapes follow from the shapes of its inputs. What the third
column names must be a constant; *or of shapes* says that it may also be computed from shapes of
tensors (`Shape`, `StridedSlice`, `Pack`, arithmetic on integers), of unknown dimensions, too.

**Unknown dimensions.** A dimension of the model that is `None` becomes a symbol; the first
dimensions of all inputs share one, the batch. Two dimensions that must be equal, or one of them 1,
must be known to be so: give them one name, as in
`inputs={{"a": ("N", "length"), "b": ("N", "length")}}`. A size that an op does not take (a slice
beyond the end) is an error when the engine is called.

**Inputs with defaults.** A `PlaceholderWithDefault` is its default, unless it is named in
`inputs=`: then it is an input like any other, and must be given. In converted SavedModels it can be
fed as before.

**Dtypes.** {dtypes};
*all* are both and bool. Halves (f16, bf16) are computed in float32 and rounded once, where
TensorFlow adds up many of its halves in halves. Strings, complex numbers, resources and variants
stay in TensorFlow.
"""

GROUPS = {
    "floats": ("f16", "bf16", "f32", "f64"),
    "ints": ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"),
}
DATA_ATTRIBUTES = ("T", "SrcT", "Tparams", "dtype", "Ta")
READERS = {"array": "", "ints": "", "integer": "", "number": "", "dims": " (or of shapes)"}
"""Methods of a context that read an input which must be known."""

TITLES = {
    "passing": "Constants, identities, control flow",
    "arithmetic": "Elementwise",
    "nn": "Convolutions",
    "pooling": "Pooling",
    "normalization": "Normalization",
    "array": "Shapes and layouts",
    "indexing": "Slicing, gathering, scattering",
    "reduction": "Reductions",
    "linalg": "Matrix products",
    "image": "Images",
    "detection": "Detection",
    "data_dependent": "As many elements as the data say",
    "quantization": "Simulated quantization",
}


@dataclass
class Facts:
    """What a function, and those that it calls, ask for and refuse."""

    known: dict[str, None] = field(default_factory=dict)
    refusals: dict[str, None] = field(default_factory=dict)
    calls: dict[str, None] = field(default_factory=dict)
    only_refuses: bool = False


def facts_of(module: ModuleType) -> dict[str, Facts]:
    """The facts of each function of a module, of its own body alone."""
    tree = ast.parse(inspect.getsource(module))
    found: dict[str, Facts] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            facts = found[node.name] = Facts()
            body = [s for s in node.body if not isinstance(s, ast.Expr)]
            facts.only_refuses = len(body) == 1 and isinstance(body[0], ast.Raise)
            for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
                _note(facts, call)
            for name in (n for n in ast.walk(node) if isinstance(n, ast.Name)):
                facts.calls[name.id] = None
    return found


def _note(facts: Facts, call: ast.Call) -> None:
    function = call.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return
    if function.value.id != "ctx":
        return
    if function.attr in READERS:
        what = _text(call.args[1]) if len(call.args) > 1 else "shape"
        facts.known[what + READERS[function.attr]] = None
    if function.attr == "unsupported":
        facts.refusals[_text(call.args[0])] = None


def _text(node: ast.expr) -> str:
    """A string as its reader sees it, with an ellipsis for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) for v in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def collected(name: str, functions: dict[str, Facts]) -> Facts:
    """The facts of a function and of all that it calls."""
    result, stack, seen = Facts(), [name], {name}
    while stack:
        facts = functions[stack.pop()]
        result.known |= facts.known
        result.refusals |= facts.refusals
        for called in facts.calls:
            if called in functions and called not in seen:
                seen.add(called)
                stack.append(called)
    result.only_refuses = functions[name].only_refuses
    return result


def dtypes_of(op: str) -> str:
    """The dtypes of TensorFlow's CPU kernels of an op, as a short list."""
    from tensorflow.python.framework import kernels, op_def_registry

    op_def = op_def_registry.get(op)
    if op_def is None:
        return "f32"
    types = {a.name: a for a in op_def.attr if a.type == "type"}
    first = op_def.input_arg[0].type_attr if op_def.input_arg else ""
    main = next((a for a in (*DATA_ATTRIBUTES, first) if a in types), None)
    if main is None:
        return "all" if "T" in {a.name for a in op_def.attr} else _fixed(op_def)
    allowed = list(types[main].allowed_values.list.type) or _all_numbers()
    found: set[str] = set()
    for kernel in kernels.get_registered_kernels_for_op(op).kernel:
        if kernel.device_type not in ("CPU", "DEFAULT"):
            continue
        limits = [c.allowed_values.list.type for c in kernel.constraint if c.name == main]
        listed = limits[0] if limits else allowed
        real = (graphdef.dtype_of(t) for t in listed if t < 100 and t in allowed)
        found |= {d.value for d in real if d}
    if not found:
        found = {d.value for t in allowed if (d := graphdef.dtype_of(t))}
    return short(found)


def _all_numbers() -> list[int]:
    return [t for t in range(1, 100) if graphdef.dtype_of(t)]


def _fixed(op_def: Any) -> str:
    if not op_def.input_arg:
        return ""
    dtype = graphdef.dtype_of(op_def.input_arg[0].type)
    return dtype.value if dtype else ""


def short(names: set[str]) -> str:
    """Names of dtypes, those of a group as its name."""
    if names >= {d.value for d in DType}:
        return "all"
    rest, parts = set(names), []
    for group, members in GROUPS.items():
        if rest.issuperset(members):
            parts.append(group)
            rest -= set(members)
    return ", ".join([*parts, *sorted(rest)])


def rows(family: str) -> Iterator[tuple[str, Facts]]:
    """The ops of a family with their facts."""
    module = sys.modules[f"planish.frontends.tensorflow.{family}"]
    functions: dict[str, Facts] = {}
    for other in FUNCTIONS:
        functions |= facts_of(sys.modules[f"planish.frontends.tensorflow.{other}"])
    functions |= facts_of(layout) | facts_of(module)
    for op, function in sorted(CONVERTERS.items()):
        if function.__module__ != module.__name__:
            continue
        name = function.__name__
        # made by a function of a table: what that one asks for
        name = function.__qualname__.split(".")[0] if name == "convert" else name
        yield op, collected(name, functions) if name in functions else Facts()


FUNCTIONS = ("arithmetic", "nn", "indexing", "array")
"""Families whose functions others call."""


def render() -> str:
    """The page."""
    names = ", ".join(f"*{n}* are {', '.join(g)}" for n, g in GROUPS.items())
    lines = [TEXT.format(dtypes=names[0].upper() + names[1:])]
    never: list[tuple[str, str]] = []
    for family in families.FAMILIES:
        table = []
        for op, facts in rows(family):
            reasons = "; ".join(_sentence(r) for r in facts.refusals)
            if facts.only_refuses:
                never.append((op, reasons))
                continue
            known = ", ".join(facts.known)
            table.append(f"| {op} | {dtypes_of(op)} | {known} | {reasons} |")
        if table:
            lines += [
                f"## {TITLES.get(family, family.replace('_', ' ').capitalize())}\n",
                "| op | dtypes | known when converting | stays in TensorFlow where |",
                "|---|---|---|---|",
                *table,
                "",
            ]
    lines += [
        "## Ops that always stay\n",
        "Every op that is not on this page stays, too: there is no conversion of it.\n",
        "| op | because |",
        "|---|---|",
        *(f"| {op} | {reason or 'it must be named as an input'} |" for op, reason in never),
        "",
    ]
    return "\n".join(lines)


def _sentence(reason: str) -> str:
    reason = re.sub(r"^its (\w+) is …$", r"its \1 is none that TensorFlow documents", reason)
    return reason.replace("its … …", "its window, strides or dilations").replace("|", "\\|")


def comparable(page: str) -> list[str]:
    """The page without what depends on the version of TensorFlow: the dtypes of its kernels."""
    return [re.sub(r"^(\| \w+ \|)[^|]*\|(.*\|)$", r"\1\2", line) for line in page.splitlines()]


def main() -> int:
    """Writes or checks the page."""
    page = render()
    if "--check" in sys.argv[1:]:
        return int(comparable(PAGE.read_text()) != comparable(page))
    PAGE.write_text(page)
    return 0


families.load()
assert context.CONVERTERS is CONVERTERS

if __name__ == "__main__":
    sys.exit(main())

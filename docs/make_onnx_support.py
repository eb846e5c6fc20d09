"""Writes docs/onnx-support.md: what becomes of every test that the onnx package brings.

    python docs/make_onnx_support.py

It runs all of them, which takes some minutes, and fails where one is wrong or crashes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.onnx_backend import (  # noqa: E402
    BY_RUNTIME,
    TOLERANCES,
    Outcome,
    light_cases,
    model_cases,
    node_cases,
    run_case,
)

PAGE = Path(__file__).with_name("onnx-support.md")
EQUAL = ("generated", "folded", "fallback")
TEXT = """\
# What works of ONNX

<!-- Written by docs/make_onnx_support.py; change it there. -->

The onnx package brings tests for backends: models with inputs and expected outputs, for every
operator in all its variants, for small models and for well-known architectures. This page says what
becomes of them with planish {planish}, onnx {onnx} (operator sets up to {opset}) and NumPy {numpy}.
Each is built without tuning and compared by the rule of onnx's own runner.

{summary}

- **generated**: equal, and every step is a generated kernel.
- **folded**: equal, and computed while the engine was built, as nothing depends on an input.
- **fallback**: equal, with a step outside generated kernels: ONNX's reference or NumPy runs it. The
  build report and `planish inspect` name such steps; `allow_fallback=False` makes them an error.
- **refused**: an error that says what, where, why and how to cure it.

None is wrong, and none crashes.

## What must be known while an engine is built

Axes, and most of what decides shapes or control flow, must be constants or follow from the shapes
of the inputs. Where a test gives that as an input, and is not compiled as it stands, it is a
constant here ({bound} tests of single operators).

## Element types

Integers of 2 and 4 bits are held in 8 bits, floats of 4 to 8 bits in float32: every number is
exact in the wider type, and a cast to the narrow one rounds and saturates as ONNX defines. Inputs
and outputs of such a type have the wider one. Strings and complex numbers are refused: an engine
computes with numbers. Do what a model does with strings before it, and cut it behind that
(`onnx.utils.extract_model`).

## Control flow, sequences, functions

- `If`: of a known condition one branch is left; where the data decide, both are computed and one
  is selected, with its own size, if they are small and agree in rank; else ONNX's reference runs
  the node.
- `Loop`, `Scan`: unrolled where the number of rounds is known and at most 256. Where the data
  decide when a loop ends, it runs its greatest number of rounds, if that is small; else ONNX's
  reference runs it, if its states keep their sizes, or grow by the same every round and only the
  number of rounds ends it.
- Sequences and optionals exist while a model is converted, so lengths and positions must be known.
  A model's output that is a sequence becomes an output for each of its tensors: `y_0`, `y_1`, ….
  An input that is a sequence is refused, and so is an output whose length the data decide.
- Functions of the model, and operators that ONNX defines by others, are expanded.

## Where the rule is another

{exceptions}

## What falls back

{fallback}

## What is refused

{refused}

## Operators of other domains

Of `com.microsoft`: {contrib}.

Other domains fall back to ONNX's reference where it knows the operator (`ai.onnx.ml`), else they
are refused.

## Single operators

The number of tests of each class; an operator's own and those of its function body together.

{operators}
"""


def main() -> None:
    """Runs all tests and writes the page."""
    nodes = _run("single operators", node_cases())
    suites = {"single operators": nodes}
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        suites[kind] = _run(kind, model_cases(kind))
    suites["architectures with random weights"] = _run("light", light_cases())
    bad = [o for outcomes in suites.values() for o in outcomes if o.kind in ("wrong", "crash")]
    for outcome in bad:
        print(f"{outcome.kind}: {outcome.name}: {outcome.message}", file=sys.stderr)
    equal = sum(o.kind in EQUAL for o in nodes)
    if bad or equal < 0.95 * len(nodes):
        raise SystemExit(f"{len(bad)} wrong or crashed, {equal} of {len(nodes)} equal")
    PAGE.write_text(_page(suites))


def _run(label: str, cases: Sequence) -> list[Outcome]:
    outcomes = []
    for place, case in enumerate(cases):
        print(f"\r{label}: {place + 1} of {len(cases)}", end="", file=sys.stderr, flush=True)
        outcomes.append(run_case(case))
    print(file=sys.stderr)
    return outcomes


def _page(suites: dict[str, list[Outcome]]) -> str:
    import onnx

    from planish.frontends.onnx.registry import converted_ops

    everything = [o for outcomes in suites.values() for o in outcomes]
    nodes = suites["single operators"]
    return TEXT.format(
        planish=version("planish"),
        onnx=version("onnx"),
        numpy=version("numpy"),
        opset=onnx.defs.onnx_opset_version(),
        summary=_summary(suites),
        bound=sum(bool(o.bound) for o in nodes),
        exceptions=_exceptions(),
        fallback=_reasons(o for o in everything if o.kind == "fallback"),
        refused=_reasons(o for o in everything if o.kind == "refused"),
        contrib=", ".join(f"`{n}`" for d, n in converted_ops() if d == "com.microsoft"),
        operators=_operators(nodes),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _summary(suites: dict[str, list[Outcome]]) -> str:
    rows = []
    for name, outcomes in suites.items():
        counts = Counter(o.kind for o in outcomes)
        equal = sum(counts[k] for k in EQUAL)
        row = [name, len(outcomes), *(counts[k] for k in EQUAL), counts["refused"]]
        rows.append([*row, f"{equal / len(outcomes):.1%}"])
    return _table(["tests", "all", *EQUAL, "refused", "equal"], rows)


def _exceptions() -> str:
    rows = [
        [f"`{n}`", f"tolerance {t.rtol:.1e}, {t.atol:.0e}: {t.why}"] for n, t in TOLERANCES.items()
    ]
    for name in sorted(BY_RUNTIME):
        rows.append([f"`{name}`", "expects another length than the text; ONNX Runtime decides"])
    return _table(["test", "rule"], rows)


def _reasons(outcomes: Iterable[Outcome]) -> str:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for outcome in outcomes:
        found[(outcome.op_type, _reason(outcome))].append(outcome.name)
    rows = [
        [operator, len(names), reason, f"`{names[0]}`"]
        for (operator, reason), names in sorted(found.items())
    ]
    return _table(["operator or suite", "tests", "why", "for example"], rows)


def _reason(outcome: Outcome) -> str:
    """The reason an error gives, without the names of the test's tensors."""
    if outcome.kind == "fallback":
        return outcome.message
    match = re.search(r"^\s*why:\s*(.*)", outcome.message, re.MULTILINE)
    reason = match[1] if match else outcome.message.splitlines()[0]
    return re.sub(r"\d+", "…", reason).replace("|", "or")


def _operators(outcomes: Sequence[Outcome]) -> str:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.op_type][outcome.kind] += 1
    kinds = (*EQUAL, "refused")
    rows = [[name, *(own[k] or "" for k in kinds)] for name, own in sorted(counts.items())]
    return _table(["operator", *kinds], rows)


if __name__ == "__main__":
    main()

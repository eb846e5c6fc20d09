"""Writes docs/how-it-works.md: the real text of a small net at every stage on its way to a plan.

    python docs/make_how_it_works.py            writes the page
    python docs/make_how_it_works.py --check    fails if the page is not what would be written

Nothing is measured (tuning_seconds=0), so the page is the same on every machine, but for the
tactics of the last section, whose parameters depend on the vector width and the caches;
`comparable` leaves these out.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import planish
from planish.cli.stages import candidates, plan_text, task_lines
from planish.frontends import import_model
from planish.graph.graph import Graph
from planish.graph.text import dump
from planish.passes import optimize

PAGE = Path(__file__).with_name("how-it-works.md")

TEXT = """\
# How a model becomes a plan

<!-- Written by docs/make_how_it_works.py; change it there. -->

```text
  SavedModel, .pb, Keras, ONNX
        │ import          framework ops become few ops of ours, channels last
        ▼
      Graph  ──────────▶  passes: fold batch norms, cancel transposes, recognise activations, …
        │
        │ fusion          overlapping sets of nodes that one kernel could run
        ▼
  candidate Tasks         ┌──────────────────────────────────────────────┐
        │                 │ Target: for each task several Tactics        │
        │ tuning  ◀────── │ (kernel family + parameters), compiled and   │
        ▼                 │ measured on this machine, kept in the cache  │
      Plan                └──────────────────────────────────────────────┘
        │                 the cheapest exact cover of the graph by tasks
        │ runtime         shapes bound, memory planned, addresses known
        ▼
     Engine ──▶ ExecutionContext ──▶ outputs
```

Below is a small net of two convolutions with a residual, as it looks at each stage. Every text on
this page was printed by Planish; `planish inspect MODEL --graph --stage STAGE` prints it for a
model of yours.

## The model

An ONNX file, so channels first, with its batch norm not folded:

```text
{model}
```

## Import

The frontend turns {onnx_nodes} ONNX nodes into {imported_nodes} nodes of the graph. `Conv` knows
only channels last, so there is a transpose before and after each one; the batch is a symbol, `N`.
An operand `@name` is a constant, `%name` a value; behind `#` stands the op of the model.

```text
{imported}
```

## Passes

These passes changed the graph, in this order:
{changed}.
The batch norm went into the weights and the offset of the convolution, the transposes met and
vanished (only one is left, on the input), and {optimized_nodes} nodes remain:

```text
{optimized}
```

## Tasks

A task is a set of nodes that one kernel could run: an anchor (convolution, product, reduction, …)
with elementwise work before and after it, which costs nothing while the values are in registers.
Tasks overlap on purpose. Here the residual `add` may be fused with the convolution before it, with
the elementwise work around it, or run alone:

```text
{tasks}
```

## Plan

Each task is offered tactics, these are measured (here they were only estimated: nothing was tuned),
and an integer program finds the cheapest set of tasks that covers every node exactly once. A step
below shows what it writes and reads, and the tactic for each size of `N` that was tuned for:

```text
{steps}
```

{layer_count} steps run what were {onnx_nodes} nodes. The plan file holds this text as data, and
the original weights; packed weights, memory plan and machine code are made again on the machine
that loads it.
"""


def small_net() -> onnx.ModelProto:
    """Conv, batch norm, ReLU; a second conv with a residual; pooling and a dense layer."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.random(shape, np.float32) + 0.5, name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "s", "o", "m", "v"], ["n1"], "norm"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "branch", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], "residual"),
        helper.make_node("Relu", ["a"], ["r2"], "join"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "small_net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [
            weight("w1", 16, 3, 3, 3), weight("s", 16), weight("o", 16), weight("m", 16),
            weight("v", 16), weight("w2", 16, 16, 3, 3), weight("b2", 16), weight("w3", 16, 10),
            weight("b3", 10),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def render() -> str:
    """The page."""
    model = small_net()
    graph = import_model(model)
    parts = {
        "model": "\n".join(_onnx_lines(model)),
        "onnx_nodes": len(model.graph.node),
        "imported": dump(graph),
        "imported_nodes": len(graph.nodes),
    }
    changed: list[str] = []

    def observe(name: str, _: Graph) -> None:
        changed.append(name)

    optimize(graph, observe=observe)
    parts["changed"] = ", ".join(f"`{name}`" for name in dict.fromkeys(changed[1:]))
    parts["optimized"], parts["optimized_nodes"] = dump(graph), len(graph.nodes)
    parts["tasks"] = "\n".join(task_lines(candidates(graph)))
    with tempfile.TemporaryDirectory() as folder:
        engine = planish.build(
            model, tuning_seconds=0, timing_cache=f"{folder}/timing.sqlite", progress=False
        )
    text = plan_text(engine.plan)
    parts["steps"] = text[text.index("\nsteps\n") + 1 :]
    parts["layer_count"] = len(engine.plan.steps)
    return TEXT.format(**parts)


def comparable(page: str) -> str:
    """A page without what depends on the machine: which tactic, and its parameters."""
    return re.sub(r"^(    at .*?: ).*$", r"\1…", page, flags=re.MULTILINE)


def _onnx_lines(model: onnx.ModelProto) -> list[str]:
    return [
        f"{n.op_type:20}{n.name:10}({', '.join(n.input)}) -> {', '.join(n.output)}"
        for n in model.graph.node
    ]


def main() -> None:
    page = render()
    if "--check" not in sys.argv:
        PAGE.write_text(page)
    elif comparable(PAGE.read_text()) != comparable(page):
        sys.exit(f"{PAGE} is out of date: run python {Path(__file__).name}")


if __name__ == "__main__":
    main()

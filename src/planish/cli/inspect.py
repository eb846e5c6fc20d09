"""``planish inspect``: the layers of a plan, its graph as text, its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli.console import Json, command, note, table
from planish.cli.models import DeviceCode, describe, is_plan, open_engine, sizes
from planish.cli.options import BuildOptions, with_build_options
from planish.errors import InputError

if TYPE_CHECKING:
    from planish.runtime.bind import BoundPlan
    from planish.runtime.engine import Engine

EPILOG = """Examples

planish inspect m.plan

planish inspect m.plan --layers --profile

planish inspect m.plan --memory --batch 8

planish inspect model.onnx --graph --stage import

Stages of a model: import, every pass by its name, passes (after all of them), tasks, plan."""

RUNS = 20
"""Executions whose median `--profile` shows."""


@command
@with_build_options()
def inspect(
    plan: Annotated[str, typer.Argument(metavar="PLAN_OR_MODEL", help="A plan file, or a model.")],
    layers: Annotated[bool, typer.Option("--layers", help="The layers with tactic and time.")] = (
        False
    ),
    graph: Annotated[bool, typer.Option("--graph", help="The graph as text.")] = False,
    stage: Annotated[
        str | None,
        typer.Option(help="With --graph: which stage. (default: passes; of a plan file: plan)"),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Weights, arena, packed weights.")] = (
        False
    ),
    profile: Annotated[
        bool, typer.Option("--profile", help="Run it, and show measured times of the layers.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Size of the batch, for --memory and --profile.")
    ] = None,
    allow_device_code: DeviceCode = False,
    json_output: Json = False,
    *,
    options: BuildOptions,
) -> dict[str, Any]:
    """Shows what is in a plan, or what becomes of a model on its way to one.

    Without --layers, --graph, --memory or --profile: a summary and the layers.
    """
    if graph and not (layers or memory or profile):
        text = _graph_text(plan, stage, options)
        if not json_output:
            typer.echo(text)
        return {"stage": stage, "graph": text}
    if stage and not graph:
        raise typer.BadParameter("--stage needs --graph")
    engine = open_engine(plan, options, allow_device_code)
    result: dict[str, Any] = {
        "device": engine.device,
        "precision": engine.precision,
        "inputs": [describe(i) for i in engine.inputs],
        "outputs": [describe(o) for o in engine.outputs],
        "about": dict(engine.plan.about),
    }
    if is_plan(plan):
        from planish.plan.file import read_device_code

        result["device_code"] = read_device_code(plan)
    if not json_output:
        typer.echo(engine.summary())
        if result.get("device_code"):
            typer.echo(f"  device code: {result['device_code']}")
    at = _sizes(engine, batch)
    if layers or profile or not (graph or memory):
        result["layers"] = _layers(engine, at, options, profile)
        if not json_output:
            _show_layers(result["layers"], measured=profile)
    if memory:
        result["memory"] = _memory(engine, at)
        if not json_output:
            table(["memory", ">bytes"], [(k, f"{v:,}") for k, v in result["memory"].items()])
    if graph:
        from planish.cli.stages import plan_text

        if stage not in (None, "plan"):
            raise typer.BadParameter("--stage goes with --graph alone")
        result["graph"] = plan_text(engine.plan)
        if not json_output:
            typer.echo(result["graph"])
    return result


def _graph_text(path: str, stage: str | None, options: BuildOptions) -> str:
    from planish.cli.stages import graph_at, plan_text

    if is_plan(path):
        if stage not in (None, "plan"):
            raise InputError(
                f"A plan file has no stage {stage!r}",
                where=path,
                why="it holds the plan and not the model it was made from",
                cure="inspect the model",
            )
        return plan_text(open_engine(path, options).plan)
    if stage == "plan":
        return plan_text(open_engine(path, options).plan)
    arguments = options.arguments
    return graph_at(path, stage or "passes", arguments["inputs"], arguments["outputs"])


def _sizes(engine: Engine, batch: int | None) -> dict[str, int]:
    """Sizes of all dimensions, the first of every input being the batch."""
    given: dict[str, int] = {}
    if batch is not None:
        first = [i.shape[0] for i in engine.inputs if i.shape]
        given = {str(d): batch for d in first if not isinstance(d, int)}
        if not given:
            raise InputError(
                "The batch of this engine is fixed",
                where="--batch",
                why=f"its inputs are {', '.join(map(str, engine.inputs))}",
                cure="leave out --batch, or build it with a symbolic batch: --input x=Nx…",
            )
    return sizes(engine, given)


def _layers(
    engine: Engine, at: Mapping[str, int], options: BuildOptions, measured: bool
) -> list[dict[str, Any]]:
    from planish.runtime.layers import rate

    limits = engine.ceilings(measure=False)
    if limits is None and engine.was_tuned_here:
        note("measuring what this machine can reach, once")
        limits = engine.ceilings()
    rows = engine.layers()
    if measured:
        times = _profile(engine, at, options.arguments["threads"])
        for row in rows:
            row["microseconds"] = times.get(row["name"], 0.0)
            rate(row, limits)
    total = sum(row["microseconds"] or 0.0 for row in rows)
    for row in rows:
        time = row["microseconds"]
        row["share"] = time / total if total and time is not None else None
    return rows


def _profile(engine: Engine, at: Mapping[str, int], threads: int | None) -> dict[str, float]:
    """The median microseconds of each layer over several executions."""
    from statistics import median

    from planish.cli.arrays import read_inputs

    arrays, _ = read_inputs([], engine.inputs, at)
    times: dict[str, list[float]] = {}
    with engine.create_execution_context(threads) as context:
        context.execute(arrays)
        context.profiler = lambda name, ms: times.setdefault(name, []).append(ms * 1e3)
        for _ in range(RUNS):
            context.execute(arrays)
    return {name: median(values) for name, values in times.items()}


def _show_layers(rows: list[dict[str, Any]], measured: bool) -> None:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    units = any(row["tensor_cores"] is not None for row in rows)
    more = ["tensor cores"] if units else []
    table(
        [
            *("layer", "what it fuses", "tactic", "precision", "output", ">µs", ">share"),
            *(">GFLOP/s", ">GB/s", ">of ceiling", *more),
        ],
        [
            (
                row["name"],
                row["origin"],
                row["tactic"],
                row["precision"],
                row["output"],
                shown(row["microseconds"], ".1f"),
                shown(row["share"], ".1%"),
                shown(row["gigaflops_per_second"], ",.0f"),
                shown(row["gigabytes_per_second"], ",.0f"),
                shown(row["of_ceiling"], ".0%"),
                *(["yes" if row["tensor_cores"] else row["why_no_tensor_cores"]] if units else []),
            )
            for row in rows
        ],
    )
    total = sum(row["microseconds"] or 0 for row in rows)
    if measured:
        typer.echo(f"total {total / 1e3:.3f} ms, median of {RUNS} runs")
    elif total:
        typer.echo(f"total {total / 1e3:.3f} ms as measured layer by layer while tuning")
    else:
        note("no times: the engine was not tuned; --profile measures them")


def _memory(engine: Engine, at: Mapping[str, int]) -> dict[str, int]:
    stages = engine.bound_stages(at)
    weights = sum(v.data.nbytes for v in engine.plan.graph.constants() if v.data is not None)
    return {
        "weights": weights,
        "packed weights": engine.packed_bytes,
        "arena": max(s.arena_bytes for s in stages),
        "largest live set": max(s.live_bytes for s in stages),
        **({"between stages": _handed_over(engine, stages)} if len(stages) > 1 else {}),
    }


def _handed_over(engine: Engine, stages: list[BoundPlan]) -> int:
    """Bytes that stages hand to later ones, besides the outputs."""
    kept, outputs = engine.plan.stages.kept, len(engine.plan.graph.outputs)
    total = 0
    for part, bound in zip(engine.plan.stages.parts, stages, strict=True):
        for index, shape in zip(part.writes, bound.output_shapes, strict=True):
            total += math.prod(shape) * kept[index].dtype.size if index >= outputs else 0
    return total

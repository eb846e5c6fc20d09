"""``planish compare --data``: a plan against its model in float32, the worst layers first."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from planish.cli.console import note, table
from planish.cli.images import as_data, read_labels

if TYPE_CHECKING:
    from planish.cli.options import BuildOptions
    from planish.quantization.comparison import Comparison
    from planish.runtime.engine import Engine

SHOWN = 10
"""So many layers are shown where not all were asked for."""

ROWS = 8
"""Images of a batch, where the engine takes any number."""


@dataclass(frozen=True)
class JudgedBy:
    """Labels, if there are any: their file, the classes before the first, the output."""

    labels: str | None
    classes_before: int
    output: str | None


def compare_with_data(
    model: str, engine: Engine, data: str, judged_by: JudgedBy, options: BuildOptions
) -> Comparison:
    """Runs `planish.quantization.compare_layers` by what the flags say."""
    from planish.quantization import compare_layers

    first = engine.inputs[0].shape[0] if engine.inputs[0].shape else 1
    batch = first if isinstance(first, int) else ROWS
    given = as_data(data, options.images, "--data", batch)
    files = None if isinstance(given, str) else given.files
    return compare_layers(
        model,
        engine,
        given,
        labels=None if judged_by.labels is None else read_labels(judged_by.labels, files),
        classes_before=judged_by.classes_before,
        output=judged_by.output,
        inputs=options.arguments.get("inputs"),
        outputs=options.arguments["outputs"],
        threads=options.arguments["threads"],
        progress=options.arguments["progress"],
    )


def show(found: Comparison, everything: bool) -> None:
    """Prints the outputs, and the worst layers or all of them."""
    labelled = any(o.accuracy is not None for o in found.outputs)
    table(
        ["output", ">SQNR dB", ">1 - cosine", ">relative to scale", ">same top-1"]
        + ([">top-1 fp32", ">top-1 plan"] if labelled else []),
        [
            (
                o.name,
                _decibels(o.sqnr),
                f"{1 - o.cosine:.2g}",
                f"{o.relative:.3g}",
                "-" if o.top1 is None else f"{o.top1:.1%}",
                *((_percent(o.accuracy_fp32), _percent(o.accuracy)) if labelled else ()),
            )
            for o in found.outputs
        ],
        title=f"Planish against its own float32, {found.samples} samples",
    )
    layers = found.layers if everything else found.layers[:SHOWN]
    table(
        [
            *("layer", "op", "kept as", ">SQNR dB", ">made here", ">by channel"),
            *(">inherited", ">off by 10 %", ">beyond", ">lost to 0", ">1 - cosine", "likely cause"),
        ],
        [
            (
                layer.layer,
                layer.op,
                layer.form,
                _decibels(layer.sqnr),
                _decibels(layer.own_sqnr),
                _decibels(layer.channel_sqnr),
                f"{layer.inherited:.1%}",
                f"{layer.off:.1%}",
                f"{layer.saturated:.2%}",
                f"{layer.vanished:.1%}",
                f"{1 - layer.cosine:.2g}",
                layer.cause,
            )
            for layer in layers
        ],
        title="The worst layers first",
    )
    if len(layers) < len(found.layers):
        note(f"{len(found.layers) - len(layers)} more layers: --layers shows them")


def as_dict(found: Comparison) -> dict[str, Any]:
    """A comparison for scripts.

    JSON has no infinities: without an error SQNR is null, and with NaN or infinity, where
    ``broken`` says so.
    """
    document = dataclasses.asdict(found)
    for item in (*document["layers"], *document["outputs"]):
        item["broken"] = item["sqnr"] == -math.inf
    return {"reference": "planish fp32", **document}


def worst_output(found: Comparison) -> tuple[str, float]:
    """The output that deviates most by its scale, and how much."""
    worst = max(found.outputs, key=lambda o: o.relative)
    return worst.name, worst.relative


def refuse_mixed(data: str | None, labels: str | None, others: dict[str, object]) -> None:
    """Complains about flags that do not go together.

    Raises
    ------
    typer.BadParameter
        See there.
    """
    if data is None and labels is not None:
        raise typer.BadParameter("--labels needs --data, whose classes they are")
    given = [name for name, value in others.items() if value]
    if data is not None and given:
        raise typer.BadParameter(f"--data and {given[0]} cannot be combined")


def _decibels(number: float) -> str:
    if math.isinf(number):
        return "exact" if number > 0 else "broken"
    return f"{number:.1f}"


def _percent(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"

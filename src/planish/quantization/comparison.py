"""What a comparison finds, and how it is collected batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.errors import InputError
from planish.graph.graph import Node, Value
from planish.precision.kinds import Kind, kind_of
from planish.quantization.causes import Evidence, Work, cause
from planish.quantization.differences import Differences
from planish.quantization.evaluators import whole_numbers
from planish.quantization.forms import Match
from planish.quantization.holding import Holding
from planish.runtime.engine import Engine


@dataclass(frozen=True)
class LayerError:
    """How far a layer's results are from float32.

    Attributes
    ----------
    layer, origin, op : str
        Its name, as `layer_precision` takes it, the user's ops, and what it computes.
    tensor : str
        Its result, by the name that `dynamic_ranges` takes.
    form : str
        What the plan keeps it as: "fp32", "fp16", "bf16", "int8".
    sqnr : float
        Signal to noise in dB, errors of earlier layers included; -inf with NaN or infinity.
    own_sqnr : float
        The same of the error that this layer makes, its inputs being right.
    channel_sqnr : float
        That of the middle one of its channels, which a few large ones do not hide.
    off : float
        The share of values off by more than 10 %.
    saturated, vanished : float
        The shares of the right values that the plan cannot hold: beyond the ends, and too small, so
        that they become 0.
    cosine : float
        Of the angle to the right values.
    inherited : float
        The share of the error that earlier layers made.
    cause : str
        The likely cause of what this layer makes, with the numbers that speak for it.
    """

    layer: str
    origin: str
    op: str
    tensor: str
    form: str
    sqnr: float
    own_sqnr: float
    channel_sqnr: float
    off: float
    saturated: float
    vanished: float
    cosine: float
    inherited: float
    cause: str


@dataclass(frozen=True)
class OutputError:
    """How far an output is from float32.

    Attributes
    ----------
    name : str
    sqnr, cosine : float
        As those of a layer.
    relative : float
        The largest difference by the largest magnitude.
    top1 : float or None
        For outputs ``[N, classes]``: in what share of the rows the largest is the same.
    accuracy_fp32, accuracy : float or None
        Where labels were given: top-1 accuracy in percent, in float32 and of the plan.
    """

    name: str
    sqnr: float
    cosine: float
    relative: float
    top1: float | None
    accuracy_fp32: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A plan against its model in float32.

    Attributes
    ----------
    layers : tuple of LayerError
        The worst first: by `own_sqnr` or `channel_sqnr`, whichever is less.
    outputs : tuple of OutputError
    samples : int
        Rows of the data, or runs where batches are no rows.
    """

    layers: tuple[LayerError, ...]
    outputs: tuple[OutputError, ...]
    samples: int


@dataclass(frozen=True)
class Labels:
    """The classes of all samples, by the model's numbers, and the output with their scores."""

    classes: np.ndarray
    output: str


def checked_labels(
    labels: Sequence[int] | np.ndarray, classes_before: int, output: str | None, engine: Engine
) -> Labels:
    """Labels as a user gives them.

    Raises
    ------
    InputError
        They are no labels, or the engine has no scores to judge by them.
    """
    wanted = whole_numbers(labels, "labels=")
    scores = [info.name for info in engine.outputs if len(info.shape) == 2]
    if output not in scores and (output is not None or len(scores) != 1):
        names = ", ".join(f"{info.name} {info.shape}" for info in engine.outputs)
        raise InputError(
            f"There is no output {output!r} with scores"
            if output is not None
            else f"{len(scores) or 'None'} of the outputs could be the scores of classes",
            where="output=",
            why=f"scores have the shape [N, classes], and the outputs are {names}",
            cure="name the one with the scores" if scores else "leave out the labels",
        )
    return Labels(wanted + classes_before, output or scores[0])


class Rows:
    """What is collected about tensors and outputs.

    Parameters
    ----------
    engine : Engine
    found : sequence of Match
        The tensors, in the order in which they are computed.
    labels : Labels, optional

    Attributes
    ----------
    evidence : list of Evidence
        One for each tensor; to be added to.
    """

    def __init__(self, engine: Engine, found: Sequence[Match], labels: Labels | None) -> None:
        self._found, self._labels = found, labels
        cuts = {one.reference for one in found}
        tasks = {node: step.task for step in engine.plan.steps for node in step.task.nodes}
        self._parts = [_nodes_behind(one.reference, cuts) for one in found]
        self.evidence: list[Evidence] = []
        for one, nodes in zip(found, self._parts, strict=True):
            last = one.reference.shape[-1] if one.reference.type.rank > 1 else None
            channels = last if isinstance(last, int) and last else None
            task = tasks.get(one.held.producer) if one.held.producer else None
            self.evidence.append(
                Evidence(
                    Differences(channels),
                    Differences(channels),
                    Holding(one.form, channels),
                    Work(task.precision if task else "", _product(nodes)),
                )
            )
        names = [info.name for info in engine.outputs]
        self._outputs = {name: Differences() for name in names}
        self._same = dict.fromkeys(names, 0)
        self._rows = dict.fromkeys(names, 0)
        self._hits = np.zeros(2, int)
        self._samples = 0

    def add_outputs(self, right: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]) -> None:
        """Adds the outputs of a batch, in float32 and of the plan."""
        rows = 1
        for name, sums in self._outputs.items():
            a, b = right[name], have[name]
            rows = len(a) if a.ndim else 1
            if a.shape != b.shape:  # how many there are depends on the data
                continue
            sums.add(a, b)
            if a.ndim == 2 and a.shape[1] > 1:
                first, second = a.argmax(1), b.argmax(1)
                self._same[name] += int((first == second).sum())
                self._rows[name] += len(a)
                if self._labels is not None and self._labels.output == name:
                    known = self._labels.classes[self._samples :][: len(a)]
                    self._hits += [(f[: len(known)] == known).sum() for f in (first, second)]
        self._samples += rows

    def result(self) -> Comparison:
        """The comparison, the worst layers first.

        Raises
        ------
        InputError
            There are more or fewer labels than samples.
        """
        if self._labels is not None and len(self._labels.classes) != self._samples:
            raise InputError(
                f"There are {len(self._labels.classes)} labels for {self._samples} samples",
                where="labels=",
                why="each sample has one label",
                cure="pass as many labels as samples, in the same order",
            )
        layers = [
            _layer(one, nodes, evidence)
            for one, nodes, evidence in zip(self._found, self._parts, self.evidence, strict=True)
            if any(kind_of(node) is not Kind.MOVE for node in nodes) or not nodes
        ]
        layers.sort(key=lambda layer: min(layer.own_sqnr, layer.channel_sqnr))
        outputs = [self._output(name, sums) for name, sums in self._outputs.items()]
        return Comparison(tuple(layers), tuple(outputs), self._samples)

    def _output(self, name: str, sums: Differences) -> OutputError:
        rows = self._rows[name]
        scored = self._labels is not None and self._labels.output == name and rows
        return OutputError(
            name,
            sums.sqnr,
            sums.cosine,
            sums.relative,
            self._same[name] / rows if rows else None,
            100.0 * self._hits[0] / rows if scored else None,
            100.0 * self._hits[1] / rows if scored else None,
        )


def _layer(one: Match, nodes: Sequence[Node], found: Evidence) -> LayerError:
    main = found.work.product or one.reference.producer
    total, held = found.total, found.held
    return LayerError(
        main.name if main else one.reference.name,
        " + ".join(dict.fromkeys(n.origin or n.name for n in nodes)),
        main.op.name if main else "input",
        one.reference.name,
        str(one.form),
        total.sqnr,
        found.own.sqnr,
        found.own.channel_sqnr,
        total.share(total.off + total.broken),
        held.beyond / held.count if held.count else 0.0,
        held.vanished / held.count if held.count else 0.0,
        total.cosine,
        found.inherited,
        cause(found),
    )


def _nodes_behind(value: Value, cuts: Collection[Value]) -> list[Node]:
    """What computes a value from others at which the graph is cut, in order."""
    found: dict[Node, None] = {}
    work = [value.producer]
    while work:
        node = work.pop()
        if node is None or node in found:
            continue
        found[node] = None
        work += [v.producer for v in node.inputs if v not in cuts]
    return list(reversed(found))


def _product(nodes: Sequence[Node]) -> Node | None:
    """The last product or convolution among nodes."""
    products = [node for node in nodes if kind_of(node) is Kind.PRODUCT]
    return products[-1] if products else None

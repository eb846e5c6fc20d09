"""Ops that hand their input on, constants, and ops that only an unfinished model has."""

from __future__ import annotations

from collections.abc import Sequence

from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value


@converter(
    "Identity",
    "StopGradient",
    "Snapshot",
    "PreventGradient",
    "CheckNumerics",
    "CheckNumericsV2",
    "PlaceholderWithDefault",
    "Print",
)
def _first_input(ctx: Context, x: Value, *rest: Value) -> Value:
    return x


@converter("IdentityN")
def _all_inputs(ctx: Context, *inputs: Value) -> Sequence[Value]:
    return inputs


@converter("NoOp", "Assert")
def _nothing(ctx: Context, *inputs: Value) -> Sequence[Value]:
    return []


@converter("Const")
def _const(ctx: Context) -> Value:
    return ctx.graph.constant(graphdef.constant(ctx.attr("value"), ctx.origin), ctx.name)


@converter("Placeholder", "PlaceholderV2")
def _placeholder(ctx: Context) -> Value:
    raise UnsupportedOpError(
        f"Placeholder {ctx.name!r} is not among the inputs",
        where=ctx.origin,
        why="the outputs need it, but it was not named as an input",
        cure="name it in inputs={name: shape}",
    )


_VARIABLES = (
    "ReadVariableOp",
    "VarHandleOp",
    "VariableV2",
    "Variable",
    "AutoReloadVariable",
    "ResourceGather",
    "ResourceGatherNd",
    "AssignVariableOp",
    "AssignAddVariableOp",
    "AssignSubVariableOp",
)


@converter(*_VARIABLES)
def _variable(ctx: Context, *inputs: Value) -> Value:
    raise ctx.unsupported(
        "it uses a variable whose value may change while the model runs, or is not in the graph",
        "let TensorFlow run it; where the variable is never written, give the SavedModel folder or "
        "the Keras model instead of the bare graph, or freeze that",
    )


_CONTROL_FLOW = (
    "Switch",
    "Merge",
    "RefSwitch",
    "RefMerge",
    "Enter",
    "Exit",
    "NextIteration",
    "LoopCond",
    "If",
    "StatelessIf",
    "While",
    "StatelessWhile",
    "Case",
    "StatelessCase",
    "For",
)


REFUSED = frozenset((*_VARIABLES, *_CONTROL_FLOW))
"""Ops that are refused whatever their inputs are."""


@converter(*_CONTROL_FLOW)
def _control_flow(ctx: Context, *inputs: Value) -> Value:
    raise ctx.unsupported(
        "which ops run depends on the values of tensors",
        "let TensorFlow run this part of the model, or export it with the decision made",
    )

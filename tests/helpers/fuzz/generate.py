"""Random graphs: valid, of ops drawn from the registry, with results worth comparing."""

from __future__ import annotations

from helpers.fuzz.draft import FLOATS, Draft, Skip
from helpers.fuzz.recipe import Recipe, Ref, Step
from helpers.fuzz.specs import has_spec, spec_of
from planish.graph.types import DType
from planish.ops.base import OPS
from planish.ops.elementwise import Elementwise

SMALLEST, LARGEST = 15, 28
"""Ops of a graph."""

ELEMENTWISE = 0.4
"""Share of elementwise ops."""

COMMON = 0.35
"""Share of the ops that networks are made of, so that they meet each other often."""

COMMON_OPS = (
    *("conv", "mat_mul", "batch_norm", "layer_norm", "softmax", "max_pool", "avg_pool"),
    *("add", "add", "mul", "mul", "sub", "relu", "relu", "clip", "sigmoid", "tanh", "gelu"),
    *("cast", "cast", "cast"),
    *("reduce_mean", "reshape", "transpose", "transpose", "concat", "concat", "slice", "pad"),
)

FOLLOWS = 0.4
"""How often an op is given what the one before it made: rewrites want neighbours."""

FOLLOWERS = {
    "pad": ("conv", "conv", "avg_pool", "max_pool", "pad"),
    "transpose": (*("transpose",) * 3, "reshape", "mat_mul", "conv", "add", "reduce_mean"),
    "reshape": ("reshape", "transpose", "mat_mul", "concat", "slice", "layer_norm"),
    "concat": ("slice", "concat", "conv", "transpose"),
    "slice": ("slice", "concat", "pad"),
    "conv": ("add", "mul", "batch_norm", "relu", "clip", "slice", "pad"),
    "mat_mul": ("add", "add", "gelu", "softmax", "reshape", "transpose"),
    "batch_norm": ("relu", "conv", "clip", "add"),
    "add": ("mul", "add", "relu", "clip", "conv", "layer_norm"),
    "mul": ("add", "mul", "conv", "mat_mul", "reduce_sum"),
    "sub": ("square", "mul", "div"),
    "relu": ("conv", "clip", "max_pool", "pad", "add"),
    "clip": ("clip", "mul", "relu", "cast"),
    "sigmoid": ("mul", "mul", "sub"),
    "reduce_mean": ("sub", "mul", "reshape", "add"),
    "cast": ("cast", "add", "clip"),
    "resize": ("resize", "concat", "conv"),
    "gather": ("reshape", "add", "cast"),
    "encode_float8": ("mat_mul_float8", "mat_mul_float8", "transpose"),
    "mat_mul_float8": ("decode_float8", "add"),
}
"""What networks, and what importers make of them, put behind an op."""

ATTEMPTS = 600


def _names() -> tuple[list[str], list[str]]:
    known = [op for op in OPS.values() if has_spec(op)]
    elementwise = [op.name for op in known if issubclass(op, Elementwise)]
    return elementwise, [op.name for op in known if op.name not in elementwise]


def random_recipe(seed: int, size: int | None = None) -> Recipe:
    """The graph of a seed."""
    draft = Draft(seed, dynamic=seed % 3 == 0)
    wanted = size or draft.integer(SMALLEST, LARGEST)
    elementwise, others = _names()
    draft.input(draft.shape(4), DType.FLOAT32)
    draft.input(draft.shape(draft.integer(2, 3)), draft.dtype(FLOATS))
    if draft.chance(0.5):
        draft.input(draft.shape(draft.integer(1, 4)), draft.one_of(tuple(DType)))
    steps, last = 0, ""
    for _ in range(ATTEMPTS):
        if steps >= wanted:
            break
        before = len(draft.entries)
        rest = elementwise if draft.chance(ELEMENTWISE) else others
        name = draft.one_of(COMMON_OPS if draft.chance(COMMON) else rest)
        draft.focus = None
        if last in FOLLOWERS and draft.chance(FOLLOWS):
            name, draft.focus = draft.one_of(FOLLOWERS[last]), Ref(len(draft.entries) - 1)
        try:
            op, operands = spec_of(OPS[name])(draft)
            taken = draft.apply(op, *operands)
        except Skip:
            taken = False
        if taken:
            steps, last = steps + 1, name
        else:
            last = ""
            draft.forget(before)
    return draft.recipe(_outputs(draft))


def op_recipe(name: str, seed: int, after: int = 2) -> Recipe:
    """A small graph around one op, with elementwise ops behind it.

    Raises
    ------
    Skip
        The op could not be applied.
    """
    draft = Draft(seed, dynamic=False)
    for _ in range(200):
        before = len(draft.entries)
        try:
            if draft.apply(*_applied(spec_of(OPS[name])(draft))):
                break
        except Skip:
            pass
        draft.forget(before)
    else:
        raise Skip(f"{name} could not be applied")
    for _ in range(3 * after):
        last = Ref(len(draft.entries) - 1)
        before = len(draft.entries)
        try:
            op, operands = spec_of(OPS[draft.one_of(_BEHIND)])(draft)
            if last in operands and draft.apply(op, *operands):
                continue
        except Skip:
            pass
        draft.forget(before)
    return draft.recipe(_outputs(draft))


def op_recipes(name: str, count: int) -> list[tuple[int, Recipe]]:
    """Small graphs around an op with their seeds, those seeds left out that do not do."""
    found: list[tuple[int, Recipe]] = []
    for seed in range(10 * count):
        if len(found) == count:
            break
        try:
            found.append((seed, op_recipe(name, seed)))
        except Skip:
            continue
    assert found, f"{name} could not be applied"
    return found


_BEHIND = ("add", "mul", "relu", "clip", "sigmoid", "sub", "maximum", "neg")


def _applied(choice: tuple) -> tuple:
    op, operands = choice
    return (op, *operands)


def _outputs(draft: Draft) -> list[Ref]:
    """All results that nothing reads, and a few that something reads too."""
    used = {a for e in draft.entries if isinstance(e, Step) for a in e.args}
    made = [r for r in draft.refs() if isinstance(draft.entries[r.entry], Step)]
    return [r for r in made if r not in used or draft.chance(0.08)]

"""Imports run downwards only, in the order of the table in docs/design.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "planish"

UPWARDS = {
    ("graph/graph.py", "ops"): "for type checkers only: a node holds an op",
    ("graph/interpret.py", "ops"): "for type checkers only: the interpreter runs ops",
    ("plan/load.py", "runtime"): "planish.load makes an engine of the plan it reads",
    ("plan/load.py", "builder.py"): "retune=True tunes again, as a build does",
    ("quantization/observe.py", "builder.py"): "calibration builds the engine that it observes",
    ("quantization/taps.py", "builder.py"): "a comparison builds the model that it compares with",
}
"""Imports inside functions, or for type checkers only, that go upwards: (file, layer), and why."""

OUTSIDE = {"__main__.py", "_native"}
"""``python -m planish``, and the compiled library."""


class Import(NamedTuple):
    file: str
    layer: str
    lazy: bool


def layers() -> list[str]:
    """The folders and files of the table, in order."""
    text = (ROOT / "docs" / "design.md").read_text()
    table = text.split("| folder | what it holds |\n|---|---|\n")[1].split("\n\n")[0]
    names: list[str] = []
    for row in table.splitlines():
        if "outside" not in row.split("|")[1]:
            names += re.findall(r"`([\w./]+)`", row.split("|")[1])
    return [name.rstrip("/") for name in names]


def layer_of(module: str) -> str:
    """What the table calls the place of a module: "graph", "errors.py"."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__.py"
    return parts[1] if (SOURCE / parts[1]).is_dir() or parts[1] == "_native" else f"{parts[1]}.py"


def imports_of(name: str, text: str) -> Iterator[Import]:
    """What a file imports of the package; lazy is what is imported inside a function."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "planish":
                    yield Import(name, layer_of(alias.name), lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            module = node.module or ""
            if module == "planish":
                for alias in node.names:
                    inner = SOURCE / alias.name
                    known = inner.is_dir() or inner.with_suffix(".py").is_file()
                    known = known or alias.name == "_native"
                    yield Import(name, layer_of(f"planish.{alias.name}" if known else module), lazy)
            elif module.split(".")[0] == "planish":
                yield Import(name, layer_of(module), lazy)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy or inside)

    yield from visit(ast.parse(text), False)


def upward_imports() -> list[Import]:
    """All imports of what stands lower in the table, or not in it at all."""
    order = {name: i for i, name in enumerate(layers())}
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        own = layer_of("planish." + path.relative_to(SOURCE).parts[0].removesuffix(".py"))
        if own in OUTSIDE:
            continue
        name = path.relative_to(SOURCE).as_posix()
        for item in imports_of(name, path.read_text()):
            if item.layer == own or item.layer == "_native":
                continue
            if item.layer not in order or order[item.layer] > order[own]:
                found.append(item)
    return found


def test_the_table_names_every_folder_and_file() -> None:
    present = {
        p.name for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert present - OUTSIDE == set(layers())
    assert len(layers()) == len(set(layers()))


def test_imports_run_downwards() -> None:
    wrong = [i for i in upward_imports() if not i.lazy or (i.file, i.layer) not in UPWARDS]
    assert not wrong, "\n".join(
        f"{i.file} imports {i.layer}{' inside a function' if i.lazy else ''}" for i in wrong
    )


def test_no_exception_is_left_over() -> None:
    used = {(i.file, i.layer) for i in upward_imports()}
    assert set(UPWARDS) == used


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import planish.graph.dims", Import("x.py", "graph", False)),
        ("from planish.errors import PlanError", Import("x.py", "errors.py", False)),
        ("from planish import native", Import("x.py", "native.py", False)),
        ("from planish import build", Import("x.py", "__init__.py", False)),
        ("def f():\n    from planish.cli import app", Import("x.py", "cli", True)),
        ("if TYPE_CHECKING:\n    import planish.runtime.engine", Import("x.py", "runtime", True)),
        ("if True:\n    import planish.runtime.engine", Import("x.py", "runtime", False)),
    ],
)
def test_imports_are_found(text: str, expected: Import) -> None:
    assert list(imports_of("x.py", text)) == [expected]

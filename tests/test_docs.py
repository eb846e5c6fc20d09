"""The documentation runs: code blocks in order, commands too; links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [
    "README.md",
    "docs/int8.md",
    "docs/tutorial.md",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/howto/*.md")),
]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the command `planish` on the path and a cache of its own."""
    commands, folder = tmp_path / "bin", tmp_path / "work"
    commands.mkdir()
    folder.mkdir()
    planish = commands / "planish"
    planish.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m planish "$@"\n')
    planish.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    # what is tested is that the code runs, not how well it tunes where it names no time
    monkeypatch.setattr("planish.builder.LEAST_BUDGET", 1.0)
    monkeypatch.setattr("planish.builder.MOST_BUDGET", 1.0)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", RUN)
def test_code_blocks_run(name: str, shell: Path) -> None:
    text = (ROOT / name).read_text()
    if "import torch" in text:
        pytest.importorskip("torch", reason="needs PyTorch: pip install 'planish[torch]'")
    else:
        pytest.importorskip("tensorflow")
    if "model.onnx" in text:  # a page that leaves the making of a model to others
        shutil.copy(_small_model(shell), shell / "model.onnx")
    names: dict[str, Any] = {"__name__": "__main__"}
    for found in BLOCK.finditer(text):
        language, code = found.groups()
        line = text[: found.start()].count("\n") + 1
        if language == "python":
            exec(compile("\n" * line + code, name, "exec"), names)
        elif language == "sh" and not code.startswith("make "):
            subprocess.run(["sh", "-e", "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_how_it_works_is_what_planish_prints() -> None:
    pytest.importorskip("onnx")
    make = _script(ROOT / "docs" / "make_how_it_works.py")
    page = make.PAGE.read_text()
    assert make.comparable(page) == make.comparable(make.render()), (
        "run python docs/make_how_it_works.py"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"`((?:src|tests|docs|examples|native)/[\w/.-]+)`", text):
        assert (ROOT / target).exists(), target


def test_commands_of_the_readme_are_the_makefiles() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= used <= targets


def _script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _small_model(folder: Path) -> Path:
    import onnx

    path = folder / "small.onnx"
    onnx.save(_script(ROOT / "docs" / "make_how_it_works.py").small_net(), path)
    return path

"""Architectures of Transformers, torchvision and timm with random weights, as programs of
``torch.export`` and as ONNX files that PyTorch's exporter writes, against PyTorch and ONNX Runtime.

    python tests/campaigns/torch_architectures.py [--only REGEX] [-o docs/torch-architectures.md]

Each model is traced with a changing batch where its code allows, built without tuning, and run at
two batch sizes. A row tells layers, host steps, and the largest difference by the output's scale.
With ``-o`` rows of models that are not tried again stay, and with ``--new`` only those without a
row are tried, so that a campaign goes on where it was. Ends with 1 where a model is refused, has
host steps, or differs by more than rounding does. Needs what `make test-torch` installs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import re
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.torch_models import FAMILIES, Case
from helpers.torch_routes import Outcome, outcomes

HEAD = """\
| model | program: layers | host steps | to PyTorch | file: layers | host steps | to PyTorch \
| to ONNX Runtime | ONNX Runtime to PyTorch |
|---|---|---|---|---|---|---|---|---|
"""
TITLE = """\
# PyTorch architectures

One of each family, usually the smallest, with random weights: as a program of `torch.export` and as
the ONNX file that `torch.onnx.export` writes. No tuning, a changing batch; the largest difference
by the output's scale at batches of 1 and 3. Where differences are above 1e-5, the network magnifies
rounding errors: the last column tells how far ONNX Runtime is from PyTorch there. Without a program
are those that `torch.export` cannot trace; PyTorch's older exporter recorded their files.
Written by `tests/campaigns/torch_architectures.py`"""
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnxruntime")


def row(case: Case) -> tuple[str, bool]:
    """A line of the table, and whether all is right."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = outcomes(case, Path(folder))
        except Exception as error:
            what = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            return f"| {case.name} | failed: {what} | | | | | | | |", False
    program, file = found.get("program"), found["file"]
    cells = [case.name, *(_cells(program) if program else ("", "", "")), *_cells(file)]
    cells += [f"{file.to_runtime:.1e}", f"{file.runtime_to_pytorch:.1e}"]
    return f"| {' | '.join(cells)} |", all(o.is_right for o in found.values())


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return str(outcome.layers), str(outcome.host_steps), f"{outcome.to_pytorch:.1e}"


def write(path: Path, rows: dict[str, str]) -> None:
    """Writes the page; sections after the table stay."""
    old = path.read_text() if path.exists() else ""
    rest = old[old.index("\n## ") :] if "\n## " in old else ""
    versions = ", ".join(f"{n} {importlib.import_module(n).__version__}" for n in PACKAGES)
    text = f"{TITLE}, {date.today()}, with\n{versions}.\n\n{HEAD}"
    path.write_text(text + "".join(f"{line}\n" for line in rows.values()) + rest)


def known_rows(path: Path) -> dict[str, str]:
    """The rows of a table that is there."""
    text = path.read_text() if path.exists() else ""
    table = text.partition(HEAD)[2].partition("\n## ")[0]
    return {m[1]: m[0] for m in re.finditer(r"^\| (\w+ \w.*?) \|.*$", table, re.M)}


def main() -> int:
    """Runs the cases one after the other, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--new", action="store_true", help="only models without a row")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    known = known_rows(arguments.output) if arguments.output else {}
    rows: dict[str, str] = {}
    right = True
    cases = [case for cases in FAMILIES.values() for case in cases()]
    for case in cases:
        wanted = re.search(arguments.only, case.name)
        if wanted and not (arguments.new and case.name in known):
            known[case.name], is_right = row(case)
            right = right and is_right
            print(known[case.name], "" if is_right else "WRONG", flush=True)
            gc.collect()
        rows = {c.name: known[c.name] for c in cases if c.name in known}
        if arguments.output:
            write(arguments.output, rows)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

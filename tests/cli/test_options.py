"""The flags that are the arguments of `planish.build`."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from planish.cli.options import BuildOptions, _flags, with_build_options


def test_values_become_arguments_of_build(tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text("def accuracy(engine):\n    return 0.5\n")
    arguments = _flags(
        input=["x=2x3"],
        output_name=["y"],
        precision="fp16, int8",
        layer_precision=["conv*=fp32"],
        evaluate=f"{file}:accuracy",
        max_workspace_size="1MiB",
        allow_fallback=False,
    ).arguments
    assert arguments["inputs"] == {"x": (2, 3)}
    assert arguments["outputs"] == ["y"]
    assert arguments["precision"] == {"fp16", "int8"}
    assert arguments["layer_precision"] == {"conv*": "fp32"}
    assert arguments["evaluate"](None) == 0.5
    assert arguments["max_workspace_size"] == 1 << 20
    assert arguments["allow_fallback"] is False


@pytest.mark.parametrize("reference", ["accuracy", "no_such_file.py:f", "no.such.module:f", "os:"])
def test_functions_that_are_not_there(reference: str) -> None:
    with pytest.raises(typer.BadParameter):
        _flags(evaluate=reference)


def test_a_command_can_have_a_flag_of_its_own() -> None:
    seen = []

    @with_build_options("input")
    def work(input: str, *, options: BuildOptions) -> None:
        seen.append((input, options.arguments["threads"], options.arguments["inputs"]))

    work(input="mine", threads=3)
    assert seen == [("mine", 3, None)]

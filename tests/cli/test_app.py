"""The command as a whole: help, version, usage errors, exit codes."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import planish
from planish.cli.options import _flags

COMMANDS = ["build", "run", "bench", "inspect", "compare", "convert"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples(cli, command: str) -> None:
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert f"planish {command} " in outcome.out


def test_help_names_every_command(cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    assert all(command in outcome.out for command in COMMANDS)


def test_version(cli) -> None:
    assert cli("--version").out == f"planish {planish.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["build"],
        ["build", "m.onnx", "--nonsense"],
        ["build", "m.onnx", "--threads", "0"],
        ["build", "m.onnx", "--input", "x"],
        ["bench", "m.onnx", "--against", "nothing-known"],
        ["bench", "m.onnx", "--batch", "one"],
        ["inspect", "m.onnx", "--stage", "import"],
    ],
)
def test_wrong_usage_exits_with_2(cli, arguments: list[str]) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Error" in outcome.err


def test_every_argument_of_build_is_a_flag() -> None:
    renamed = {"inputs": "input", "outputs": "output_name"}
    wanted = set(inspect.signature(planish.build).parameters) - {"model"}
    assert {renamed.get(name, name) for name in wanted} == set(inspect.signature(_flags).parameters)
    assert set(_flags().arguments) == wanted


def test_defaults_are_those_of_build() -> None:
    parameters = inspect.signature(planish.build).parameters
    for name, value in _flags().arguments.items():
        assert value == parameters[name].default, name


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "planish", "build", "no-such-model.onnx"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: There is no model 'no-such-model.onnx'\n  where: ")
    assert "Traceback" not in done.stderr

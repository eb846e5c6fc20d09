"""Arrays on the command line: read from .npy and .npz files, made at random, written again.

An input is given as ``FILE.npy`` (the only input, or the next one), ``NAME=FILE.npy``, ``FILE.npz``
(inputs by name) or ``NAME=8x224x224x3`` (random values of that shape).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from planish.cli.shapes import parse_shape
from planish.errors import InputError
from planish.files import replaced

if TYPE_CHECKING:
    import numpy as np

    from planish.runtime.arrays import TensorInfo

INTEGERS = {"uint8": 256}
"""Random integers are below this: bytes are pixels; any other may be a mask, or an index into a
table of two rows."""


def read_inputs(
    specs: Iterable[str],
    infos: Sequence[TensorInfo],
    sizes: Mapping[str, int],
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays for an engine's inputs, and the names of those that were made at random.

    Parameters
    ----------
    specs : iterable of str
        See the top of this file.
    infos : sequence of TensorInfo
        The inputs.
    sizes : mapping
        Sizes of symbolic dimensions, for inputs that are made at random. A dimension that a given
        array fixes has that size in the others too.
    seed : int
        Of the random values.

    Raises
    ------
    InputError
        A file cannot be read, or a name is unknown.
    typer.BadParameter
        An argument is malformed.
    """
    names = [info.name for info in infos]
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        name, value = _split(spec, names)
        if name is None and value.endswith(".npz"):
            for key, array in _read(value).items():
                arrays[_known(key, names)] = array
            continue
        if name is None:
            free = [n for n in names if n not in arrays and n not in shapes]
            if not free:
                raise InputError(
                    f"{value} is one array too many", why=f"the inputs are {', '.join(names)}"
                )
            name = free[0]
        if _is_file(value):
            found = _read(value)
            arrays[_known(name, names)] = next(iter(found.values()))
        else:
            shapes[_known(name, names)] = _fixed_shape(value)
    sizes = {**sizes, **_sizes_of(infos, {n: a.shape for n, a in arrays.items()} | shapes)}
    made = []
    for index, info in enumerate(infos):
        if info.name not in arrays:
            shape = shapes.get(info.name) or concrete(info, sizes)
            arrays[info.name] = random_array(shape, info.dtype, seed + index)
            made.append(info.name)
    return arrays, made


def concrete(info: TensorInfo, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input for given sizes of its dimensions."""
    from planish.graph.dims import evaluate

    return tuple(int(evaluate(d, sizes)) for d in info.shape)


def random_array(shape: Sequence[int], dtype: Any, seed: int = 0) -> np.ndarray:
    """Random values: floats of the normal distribution, bytes, zeros and ones."""
    import numpy as np

    generator = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return generator.random(tuple(shape)) < 0.5
    if dtype.kind in "iu":
        return generator.integers(0, INTEGERS.get(dtype.name, 2), tuple(shape)).astype(dtype)
    return generator.standard_normal(tuple(shape)).astype(dtype)


def write_outputs(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one array as .npy, or several as .npz, replacing the file atomically.

    Raises
    ------
    InputError
        Several arrays do not fit into an .npy file, or the file cannot be written.
    """
    import numpy as np

    if path.suffix not in (".npy", ".npz"):
        raise InputError(
            f"{path.name} is neither .npy nor .npz", where="--output", cure="use one of these"
        )
    if path.suffix == ".npy" and len(arrays) > 1:
        raise InputError(
            f"The engine has {len(arrays)} outputs, and an .npy file holds one array",
            where=str(path),
            cure="write to an .npz file",
        )
    try:
        with replaced(path) as file:
            if path.suffix == ".npy":
                np.save(file, next(iter(arrays.values())))
            else:
                np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(
            "The outputs cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            cure="pass another path",
        ) from error


def _split(spec: str, names: Sequence[str]) -> tuple[str | None, str]:
    """``NAME=VALUE``, or only a value: a file's name may hold a "=" too."""
    name, equals, value = spec.rpartition("=")
    if not equals or (name not in names and Path(spec).exists()):
        if not _is_file(spec):
            raise typer.BadParameter(
                f"{spec!r} is neither a .npy or .npz file nor NAME=FILE or NAME=SHAPE"
            )
        return None, spec
    return name, value


def _is_file(value: str) -> bool:
    return value.endswith((".npy", ".npz")) or os.sep in value


def _fixed_shape(text: str) -> tuple[int, ...]:
    shape = parse_shape(text)
    if not isinstance(shape, tuple) or not all(isinstance(d, int) for d in shape):
        raise typer.BadParameter(f"{text!r} is not a shape of sizes only")
    return shape  # type: ignore[return-value]


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise InputError(
            f"There is no input {name!r}",
            where="--input",
            why=f"the inputs are {', '.join(names)}",
            cure="use these names",
        )
    return name


def _sizes_of(infos: Sequence[TensorInfo], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of plain symbols that given shapes determine."""
    found = {}
    for info in infos:
        for dim, size in zip(info.shape, shapes.get(info.name, ()), strict=False):
            if not isinstance(dim, int) and str(dim).isidentifier():
                found[str(dim)] = size
    return found


def _read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file, by name; unpickles nothing."""
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        missing = not Path(path).exists()
        raise InputError(
            "There is no such file" if missing else "The file holds no arrays that can be read",
            where=path,
            why="" if missing else str(error),
            cure="check the path" if missing else "write it with numpy.save or numpy.savez",
        ) from error
    if not arrays:
        raise InputError("The file holds no arrays", where=path, cure="write it with numpy.savez")
    return arrays

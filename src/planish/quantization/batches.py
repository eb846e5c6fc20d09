"""Calibration data, of whatever kind, as batches: for each input an array that fits it.

What is wrong with data is said here, before or while they are used: nothing there, wrong shapes,
dtypes, names and numbers, NaN and infinity, and data that are the same everywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from planish.errors import CalibrationError, PlanishError
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.quantization.calibrator import Calibrator, is_calibrator
from planish.quantization.paths import read_path

log = logging.getLogger("planish")

ROWS = 8
"""Rows of a batch, where the data are one array and the model takes any number."""

Batch = dict[str, np.ndarray]


class Batches:
    """Batches of calibration data, once. Iterate over it.

    Parameters
    ----------
    inputs : sequence of Value
        The inputs that the batches are for.
    data : array, mapping, iterable, function, path, or calibrator
        An array of all samples, or a mapping from the names of inputs to such; an iterable of
        batches (each an array, a tuple in the order of the inputs, or a mapping) or of samples; a
        function that gives one of these; the path of an .npz file; an object with TensorRT's
        `get_batch`.

    Attributes
    ----------
    total : int
        How many batches there are; 0 where nobody knows.

    Raises
    ------
    CalibrationError
        The data are of another kind, or do not fit; most is found while iterating.
    """

    def __init__(self, inputs: Sequence[Value], data: Any) -> None:
        self._inputs = tuple(inputs)
        self._constant: dict[str, float | None] = {}
        self.total = 0
        if isinstance(data, type):
            raise CalibrationError(
                f"calibration= is the class {data.__name__}",
                where="calibration=",
                why="a class has no data, its objects do",
                cure=f"pass an object: {data.__name__}(...)",
            )
        ready = isinstance(data, Iterable) or _is_array(data) or is_calibrator(data)
        if callable(data) and not ready:
            data = self._called(data)
        if isinstance(data, str | os.PathLike):
            data = read_path(data)
        if is_calibrator(data):
            self._source = self._from_calibrator(data)
        elif _is_array(data):
            self._source = self._split(self._by_name({self._only("one array"): data}))
        elif isinstance(data, Mapping):
            self._source = self._split(self._by_name(data))
        elif isinstance(data, Iterable) and not isinstance(data, bytes):
            self.total = _length(data)
            self._source = (self._fitting(self._by_name(i, n), n) for n, i in enumerate(data))
        else:
            raise CalibrationError(
                "These are no calibration data",
                where="calibration=",
                why=f"it is {_kind(data)}",
                cure="pass an array, an iterable of batches, a function that gives one, a "
                "calibrator, or the path of an .npz file or a calibration cache",
            )

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        source = iter(self._source)
        while True:
            try:
                batch = next(source)
            except StopIteration:
                break
            except PlanishError:
                raise
            except Exception as error:
                raise CalibrationError(
                    f"The calibration data raised {type(error).__name__}",
                    where=f"calibration=, batch {number}",
                    why=str(error) or "it says nothing more",
                    cure="mend what yields the batches; the traceback above shows where",
                ) from error
            if not all(array.size for array in batch.values()):
                _refuse(number, "Batch {} is empty", "an array has no elements", "leave it out")
            self._look(batch, number)
            yield batch
            number += 1
        if not number:
            raise no_data()
        self._refuse_constant()

    # ---- from data to batches -------------------------------------------------------------

    def _called(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except PlanishError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"The function of calibration data raised {type(error).__name__}",
                where="calibration=",
                why=str(error) or "it says nothing more",
                cure="mend it; it is called without arguments and gives an array or an iterable",
            ) from error

    def _from_calibrator(self, calibrator: Any) -> Iterator[Batch]:
        if isinstance(calibrator, Calibrator) and calibrator.data is not None:
            own = Batches(self._inputs, calibrator.data)
            self.total = own.total
            return own._source
        return self._asked_of(calibrator)

    def _asked_of(self, calibrator: Any) -> Iterator[Batch]:
        names = [value.name for value in self._inputs]
        number = 0
        while True:
            given = calibrator.get_batch(names)
            if given is None or (isinstance(given, Sequence) and not len(given)):
                return
            addresses = isinstance(given, Sequence) and all(
                isinstance(item, int) and not isinstance(item, bool) for item in given
            )
            if addresses:
                _refuse(
                    number,
                    "get_batch gave addresses",
                    "TensorRT's calibrators give addresses of device memory",
                    "return the arrays themselves, in the order of the names",
                )
            yield self._fitting(self._by_name(given, number), number)
            number += 1

    def _split(self, arrays: Mapping[str, Any]) -> Iterator[Batch]:
        """All samples of each input in batches."""
        whole = {name: np.asarray(array) for name, array in arrays.items()}
        counts = {name: len(a) if a.ndim else 0 for name, a in whole.items()}
        if len(set(counts.values())) > 1:
            raise CalibrationError(
                "The inputs have different numbers of samples",
                where="calibration=",
                why=", ".join(f"{name}: {count}" for name, count in counts.items()),
                cure="pass as many samples for each input",
            )
        (samples,) = set(counts.values())
        fixed = {v.shape[0] for v in self._inputs if v.shape and isinstance(v.shape[0], int)}
        rows = min(fixed) if fixed else ROWS
        assert isinstance(rows, int)
        usable = samples - samples % rows if fixed and samples > rows else samples
        if usable < samples:
            log.warning(
                "calibration: the last %d of %d samples are left out, as the model's batch is %d",
                samples - usable,
                samples,
                rows,
            )
        self.total = -(-usable // max(rows, 1))

        def parts() -> Iterator[Batch]:
            for number, at in enumerate(range(0, usable, max(rows, 1))):
                part = {name: a[at : min(at + rows, usable)] for name, a in whole.items()}
                yield self._fitting(part, number)

        return parts()

    def _only(self, what: str, number: int | None = None) -> str:
        """The name of the only input."""
        if len(self._inputs) == 1:
            return self._inputs[0].name
        names = ", ".join(v.name for v in self._inputs)
        _refuse(
            number,
            "The model has {n} inputs, and {place} is {what}".format(
                n=len(self._inputs),
                place="calibration=" if number is None else f"batch {number}",
                what=what,
            ),
            f"its inputs are {names}",
            "pass a mapping from their names to arrays",
        )

    def _by_name(self, given: Any, number: int | None = None) -> dict[str, Any]:
        """What is given for each input."""
        names = [value.name for value in self._inputs]
        shown = ", ".join(map(_declared, self._inputs))
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in names]
            if unknown:
                _refuse(
                    number,
                    f"There is no input {unknown[0]!r}",
                    f"the model's inputs are {shown}",
                    "use their names",
                )
            missing = [name for name in names if name not in given]
            if missing:
                _refuse(
                    number,
                    f"Input {missing[0]!r} has no data",
                    f"the model's inputs are {shown}",
                    "pass an array for each",
                )
            return {name: given[name] for name in names}
        if isinstance(given, tuple | list) and given and all(map(_is_array, given)):
            if len(given) != len(names):
                _refuse(
                    number,
                    f"Batch {number} has {len(given)} arrays for {len(names)} input(s)",
                    f"the model's inputs are {shown}",
                    "yield one array for each input, without labels",
                )
            return dict(zip(names, given, strict=True))
        return {self._only("one array", number): given}

    # ---- checks ---------------------------------------------------------------------------

    def _fitting(self, given: Mapping[str, Any], number: int) -> Batch:
        """The arrays of a batch, converted where nothing is lost."""
        return {v.name: self._array(given[v.name], v, number) for v in self._inputs}

    def _array(self, given: Any, value: Value, number: int) -> np.ndarray:
        where = f"Batch {number}" if len(self._inputs) == 1 else f"Batch {number}, {value.name!r},"
        try:
            array = np.asarray(given)
            DType.of(array.dtype)
        except (TypeError, ValueError):
            _refuse(
                number,
                f"{where} is no array of numbers",
                f"it is {_kind(given)}",
                f"yield arrays for {_declared(value)}",
            )
        wanted = value.dtype.numpy
        if array.dtype != wanted:
            same = _family(array.dtype) == _family(wanted)
            converted = array.astype(wanted) if same else array
            if not same or (wanted.kind in "iu" and not np.array_equal(converted, array)):
                _refuse(
                    number,
                    f"{where} has dtype {array.dtype}, not {wanted}",
                    "calibration needs the data as the model gets them, pre-processed",
                    "apply the pre-processing that the model was trained with"
                    if array.dtype == np.uint8
                    else f"pass array.astype({wanted.name!r})",
                )
            array = converted
        if array.ndim == len(value.shape) - 1:
            array = array[None]  # a sample: a batch of one
        misfit = array.ndim != len(value.shape) or any(
            isinstance(dim, int) and dim != size
            for dim, size in zip(value.shape, array.shape, strict=False)
        )
        if misfit:
            _refuse(
                number,
                f"{where} has shape {tuple(np.shape(given))}",
                f"the model declares {_declared(value)}",
                "yield arrays of that shape, pre-processed as the model was trained",
            )
        return np.asarray(array, order="C")

    def _look(self, batch: Batch, number: int) -> None:
        """Refuses NaN and infinity, and notes what is constant."""
        for value in self._inputs:
            array = batch[value.name]
            if not value.dtype.is_float:
                continue
            finite = np.isfinite(array)
            if not finite.all():
                _refuse(
                    number,
                    f"Batch {number} has values that are NaN or infinite",
                    f"input {value.name!r}: {int((~finite).sum())} of {array.size}",
                    "check the pre-processing: divisions by zero, damaged files",
                )
            low, high = float(array.min()), float(array.max())
            before = self._constant.setdefault(value.name, low)
            if low != high or before != low:
                self._constant[value.name] = None

    def _refuse_constant(self) -> None:
        values = self._constant.values()
        if values and all(value is not None for value in values):
            name, value = next(iter(self._constant.items()))
            raise CalibrationError(
                "The calibration data are the same number everywhere",
                where=f"input {name!r}",
                why=f"every element of every batch is {value:g}",
                cure="pass data as they come in use; a few hundred samples of all kinds",
            )


def no_data() -> CalibrationError:
    """What is said where there was no batch."""
    return CalibrationError(
        "There are no calibration data",
        where="calibration=",
        why="it is empty, or a generator that something else has consumed already",
        cure="pass a function that makes a new one: calibration=lambda: batches()",
    )


def _length(data: Any) -> int:
    """How many items there are; 0 where the data do not know."""
    try:
        return len(data)
    except TypeError:  # TensorFlow's data sets have a length that they may refuse to tell
        return 0


def _family(dtype: np.dtype) -> str:
    return "b" if dtype.kind == "b" else "i" if dtype.kind in "iu" else "f"


def _is_array(given: Any) -> bool:
    return isinstance(given, np.ndarray) or (
        hasattr(given, "__array__") and not isinstance(given, type)
    )


def _declared(value: Value) -> str:
    return f"{value.name}: {value.dtype.numpy}[{', '.join(map(str, value.shape))}]"


def _kind(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"a {type(given).__name__}"


def _refuse(number: int | None, what: str, why: str, cure: str) -> NoReturn:
    place = "" if number is None else f", batch {number}"
    what = what.replace("{}", str(number))
    raise CalibrationError(what, where=f"calibration={place}", why=why, cure=cure)

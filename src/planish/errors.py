"""Every exception Planish raises on purpose, each saying what, where, why and how to cure it."""

from __future__ import annotations


class PlanishError(Exception):
    """Base class of all errors of Planish.

    Parameters
    ----------
    what : str
        What went wrong, in one sentence.
    where : str
        Where, in the user's terms: the name of their file, op, tensor or argument.
    why : str
        The reason, where it is known.
    cure : str
        What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", cure: str = "") -> None:
        self.what, self.where, self.why, self.cure = what, where, why, cure
        lines = [what]
        lines += [f"  where: {where}"] if where else []
        lines += [f"  why:   {why}"] if why else []
        lines += [f"  cure:  {cure}"] if cure else []
        super().__init__("\n".join(lines))

    def __reduce__(self):  # exceptions cross process borders by pickling their arguments
        fields = {"where": self.where, "why": self.why, "cure": self.cure}
        return _rebuild, (type(self), self.what, fields)


def _rebuild(kind: type[PlanishError], what: str, fields: dict[str, str]) -> PlanishError:
    return kind(what, **fields)


class ModelError(PlanishError):
    """The model cannot be read, or is not a valid model."""


class UnsupportedOpError(ModelError):
    """The model uses an operator, or an attribute of one, that cannot be converted."""


class ShapeError(PlanishError):
    """Shapes do not fit: inside a graph, or of an input against its optimization profile."""


class PrecisionError(PlanishError):
    """A precision was asked for that is unknown or cannot be obeyed."""


class CalibrationError(PlanishError):
    """Calibration data or a calibration cache is unusable."""


class TuningError(PlanishError):
    """Tuning could not find a correct tactic for a task."""


class PlanError(PlanishError):
    """A plan file is damaged, foreign, or does not fit this version or machine."""


class DeviceError(PlanishError):
    """The device does not exist, or ran out of memory."""


class DeviceLostError(DeviceError):
    """A kernel failed on the device, or does not end: this process cannot use it any longer."""


class InputError(PlanishError):
    """The caller passed a wrong argument: name, dtype, shape or kind."""

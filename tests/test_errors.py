from __future__ import annotations

import pickle

import pytest

import planish
from planish import errors
from planish.errors import PlanError, PlanishError

KINDS = [
    errors.ModelError,
    errors.UnsupportedOpError,
    errors.ShapeError,
    errors.PrecisionError,
    errors.CalibrationError,
    errors.TuningError,
    errors.PlanError,
    errors.DeviceError,
    errors.InputError,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_public_and_ours(kind: type[PlanishError]) -> None:
    assert issubclass(kind, PlanishError)
    assert getattr(planish, kind.__name__) is kind
    assert kind.__name__ in planish.__all__
    assert kind.__doc__


def test_it_says_what_where_why_and_how_to_cure() -> None:
    error = PlanError("It broke", where="file m.plan", why="it is old", cure="make it anew")
    assert (error.what, error.where, error.why, error.cure) == (
        "It broke",
        "file m.plan",
        "it is old",
        "make it anew",
    )
    assert str(error) == (
        "It broke\n  where: file m.plan\n  why:   it is old\n  cure:  make it anew"
    )


def test_what_is_unknown_is_left_out() -> None:
    assert str(PlanishError("It broke")) == "It broke"
    assert str(PlanishError("It broke", cure="mend it")) == "It broke\n  cure:  mend it"


@pytest.mark.parametrize("kind", [PlanishError, *KINDS])
def test_it_crosses_borders_between_processes(kind: type[PlanishError]) -> None:
    error = kind("It broke", where="here", why="age", cure="rest")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.where, copy.why, copy.cure) == ("here", "age", "rest")


def test_one_except_catches_all() -> None:
    for kind in KINDS:
        with pytest.raises(PlanishError):
            raise kind("It broke")
    assert issubclass(errors.UnsupportedOpError, errors.ModelError)

"""The cache as text: exact, stable, and nothing else is taken for one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.networks import residual_net
from planish.errors import CalibrationError
from planish.passes import optimize
from planish.quantization.cache import check_network, decode, encode
from planish.quantization.fingerprint import fingerprint
from planish.quantization.ranges import VERSION, Ranges

RANGES = Ranges(
    {"x": (-1.5, 2.25), 'odd "name"\n\t\u00e9 %s': (0.0, 6.0), "tiny": (-1e-38, 0.0)},
    "0123456789abcdef",
    "percentile 99.99",
)
TEXT = encode(RANGES)

limits = st.floats(0, width=32, allow_infinity=False, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.tuples(limits, limits), max_size=6))
def test_what_is_read_is_what_was_written(tensors: dict[str, tuple[float, float]]) -> None:
    ranges = Ranges({n: (-a, b) for n, (a, b) in tensors.items()}, "0" * 16, "entropy")
    assert decode(encode(ranges)) == ranges


def test_people_can_read_it() -> None:
    assert TEXT.decode().splitlines()[:5] == [
        "planish calibration cache 1",
        "network 0123456789abcdef",
        "calibrator percentile 99.99",
        "tensors 3",
        '-1.5 2.25 "x"',
    ]


def test_means_are_kept() -> None:
    ranges = Ranges({"x": (-1.0, 2.0)}, "n", "c", means={"x": (0.12345, -1e-30, 3.0)})
    assert b'"x" 0.12345 -1e-30 3.0\n' in encode(ranges)
    assert decode(encode(ranges)) == ranges


def test_extremes_of_channels_are_kept() -> None:
    extremes = {"x": ((-1.0, 2.0), (0.0, 1e-9))}
    ranges = Ranges({"x": (-1.0, 2.0)}, "n", "c", means={"x": (0.5, 0.0)}, extremes=extremes)
    assert b'"x" 0.5:-1.0:2.0 0.0:0.0:1e-09\n' in encode(ranges)
    assert decode(encode(ranges)) == ranges


def test_order_is_kept() -> None:
    assert list(decode(TEXT).tensors) == list(RANGES.tensors)
    assert encode(decode(TEXT)) == TEXT


@pytest.mark.parametrize("cut", range(len(TEXT)))
def test_every_cut_is_noticed(cut: int) -> None:
    with pytest.raises(CalibrationError):
        decode(TEXT[:cut])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"cache 1", b"cache 2", "of version 2"),
        (b"planish calibration", b"planish plan", "not a calibration cache"),
        (b"-1.5", b"1.5", "line 5 has no range around zero"),
        (b"2.25", b"-2.25", "line 5 has no range around zero"),
        (b"2.25", b"inf", "line 5 has no range around zero"),
        (b"2.25", b"nan", "line 5 has no range around zero"),
        (b"2.25", b"1e999", "line 5 has no range around zero"),
        (b"2.25", b"two", "line 5 is not two numbers and a name"),
        (b'"x"', b"x", "line 5 is not two numbers and a name"),
        (b'"x"', b"[]", "line 5 has no name"),
        (b'"x"', b'""', "line 5 has no name"),
        (b'"x"', b"[" * 9000, "line 5 is not two numbers and a name"),
        (b'"x"', b'"tiny"', "line 7 names a tensor that another line names"),
        (b'"x"', b'"x" 1.5 inf', "line 5 has means that are not finite"),
        (b'"x"', b'"x" one', "line 5 is not two numbers and a name"),
        (b'"x"', b'"x" 1:-1:inf', "line 5 has means that are not finite"),
        (b'"x"', b'"x" 1:2:-2', "line 5 does not say what its channels reach"),
        (b'"x"', b'"x" 1:2', "line 5 does not say what its channels reach"),
        (b'"x"', b'"x" 1:-2:2 1', "line 5 does not say what its channels reach"),
        (b'"x"', b'"x"1.5', "line 5 has no name"),
        (b"tensors 3", b"tensors 4", "line 4 says 4 tensors, and 3 follow"),
        (b"tensors 3", b"tensors 9999999", "line 4 says '9999999' tensors"),
        (b"tensors 3", b"tensors -3", "line 4 says '-3' tensors"),
        (b"network ", b"", "line 2 does not say network"),
        (b"planish", b"\xff", "not a calibration cache"),
    ],
)
def test_damage_is_named(old: bytes, new: bytes, message: str) -> None:
    assert old in TEXT
    with pytest.raises(CalibrationError) as caught:
        decode(TEXT.replace(old, new, 1), "my.cache")
    assert message in str(caught.value)
    assert caught.value.where == "my.cache"


def test_tensorrts_caches_are_recognized() -> None:
    with pytest.raises(CalibrationError, match="of TensorRT"):
        decode(b"TRT-8601-EntropyCalibration2\ninput: 3c010a14\n")


def test_version_is_this_one() -> None:
    assert f"cache {VERSION}\n".encode() in TEXT


def test_other_networks_are_refused() -> None:
    graph, other = residual_net(), residual_net(seed=1)
    optimize(graph)
    optimize(other)
    ranges = Ranges({"x": (-1.0, 1.0)}, fingerprint(graph))
    check_network(ranges, graph)
    with pytest.raises(CalibrationError, match="another network") as caught:
        check_network(ranges, other)
    assert "its weights or outputs are others" in caught.value.why


def test_numbers_are_float32() -> None:
    third = float(np.float32(1 / 3))
    assert decode(encode(Ranges({"x": (0.0, third)}, "n", "c"))).tensors["x"][1] == third
    assert math.copysign(1, decode(TEXT).tensors["x"][0]) == -1

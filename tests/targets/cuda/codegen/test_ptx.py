"""PTX written by running the text of expressions, against NumPy, in the interpreter for PTX."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from planish.targets.cuda.codegen.ptx import Assembly, Lanes, NotExpressible, run
from planish.targets.cuda.ptx_interpreter import Grid

KINDS = {np.dtype(np.float32): "float32", np.dtype(np.int32): "int32", np.dtype(np.int8): "int8"}
EACH = 4
"""Elements of a thread."""


def computed(text: str, **arrays: np.ndarray) -> np.ndarray:
    """`y` of a text, for arrays ``[32, 4]`` of what 32 threads hold, or of one number each."""
    a = Assembly()
    lanes, registers = {}, {}
    for name, array in arrays.items():
        held = array.view(np.uint32) if array.dtype == np.int8 else array
        names = tuple(a.registers(held.shape[1]))
        lanes[name] = Lanes(a, KINDS[array.dtype], names)
        registers |= {n: held[:, i].copy().view(np.uint32) for i, n in enumerate(names)}
    made = run(a, text, lanes)["y"]
    a.line("ret;")
    grid = Grid(f".maxntid 32, 1, 1\n{{\n{a.body()}}}\n", [], [], [], (), 1, 1, 0)
    (warp,) = grid.blocks[0].warps
    warp.registers |= registers
    grid.run()
    words = np.stack([warp.get(n) for n in made.names], 1)
    if made.kind in ("int8", "float8e4nv"):
        return words.view(np.int8)
    return words.view(np.float32 if made.kind == "float32" else np.int32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(61)


FLOATS: dict[str, Callable[..., np.ndarray]] = {
    "y = a + b * 2.0": lambda a, b: a + b * np.float32(2),
    "y = 1.0 - a": lambda a, b: 1 - a,
    "y = a / b": lambda a, b: a / b,
    "y = tl.fma(a, b, a)": lambda a, b: a * b + a,
    "y = tl.where(a < b, a, 0.5)": lambda a, b: np.where(a < b, a, np.float32(0.5)),
    "y = tl.where((a > 0.0) & (b != b), a, b)": lambda a, b: b,
    "y = tl.minimum(tl.abs(a), 1.5)": lambda a, b: np.minimum(np.abs(a), np.float32(1.5)),
    "y = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)": np.maximum,
    "y = tl.exp(a)": lambda a, b: np.exp(a),
    "y = libdevice.exp2(a)": lambda a, b: np.exp2(a),
    "y = libdevice.rint(a * 3.0)": lambda a, b: np.rint(a * np.float32(3)),
    "y = tl.floor(a)": lambda a, b: np.floor(a),
    "y = tl.rsqrt(tl.abs(a))": lambda a, b: 1 / np.sqrt(np.abs(a)),
    "y = a.to(tl.float16).to(tl.float32)": lambda a, b: a.astype(np.float16).astype(np.float32),
    "y = a.to(tl.bfloat16).to(tl.float32)": lambda a, b: a.astype(ml_dtypes.bfloat16).astype(
        np.float32
    ),
    "y = libdevice.float2int_rn(a * 9.0)": lambda a, b: np.rint(a * 9).astype(np.int32),
    "y = a.to(tl.int32, bitcast=True)": lambda a, b: a.view(np.int32),
}


@pytest.mark.parametrize("text", FLOATS)
def test_floats(text, rng):
    a, b = (rng.standard_normal((32, EACH)).astype(np.float32) for _ in range(2))
    want = FLOATS[text](a, b)
    have = computed(text, a=a, b=b)
    assert have.dtype == want.dtype
    np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-6)


INTEGERS: dict[str, Callable[..., np.ndarray]] = {
    "y = a * b - 7": lambda a, b: a * b - 7,
    "y = ((a >> 3) & 31) | (b << 2)": lambda a, b: ((a >> 3) & 31) | (b << 2),
    "y = a ^ b": lambda a, b: a ^ b,
    "y = tl.minimum(tl.maximum(a, -5), b)": lambda a, b: np.minimum(np.maximum(a, -5), b),
    "y = tl.where(a >= b, a, b)": np.maximum,
    "y = a.to(tl.float32)": lambda a, b: a.astype(np.float32),
    "y = a.to(tl.int8)": lambda a, b: a.astype(np.int8),
}


@pytest.mark.parametrize("text", INTEGERS)
def test_integers(text, rng):
    a, b = (rng.integers(-9999, 9999, (32, EACH)).astype(np.int32) for _ in range(2))
    want = INTEGERS[text](a, b)
    have = computed(text, a=a, b=b)
    assert have.dtype == want.dtype
    np.testing.assert_array_equal(have, want)


def test_one_number_stands_for_all(rng):
    a = rng.standard_normal((32, EACH)).astype(np.float32)
    b = rng.standard_normal((32, 1)).astype(np.float32)
    np.testing.assert_array_equal(computed("y = a * b", a=a, b=b), a * b)


def test_instructions_for_four_bytes(rng):
    text = (
        'y = tl.inline_asm_elementwise("prmt.b32 $0, $1, 0, 0x0123;", "=r,r", [a], '
        "dtype=tl.int8, is_pure=True, pack=4)"
    )
    a = rng.integers(-128, 128, (32, 8)).astype(np.int8)
    want = a.reshape(32, 2, 4)[..., ::-1].reshape(32, 8)
    np.testing.assert_array_equal(computed(text, a=a), want)


def test_codes_of_float8(rng):
    a = (rng.standard_normal((32, EACH)) * 100).astype(np.float32)
    want = np.clip(a, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    have = computed("y = a.to(tl.float8e4nv).to(tl.int8, bitcast=True)", a=a)
    np.testing.assert_array_equal(have, want.view(np.int8))
    back = computed("y = a.to(tl.float8e4nv, bitcast=True).to(tl.float32)", a=have)
    np.testing.assert_array_equal(back, want.astype(np.float32))


@pytest.mark.parametrize(
    "text", ["y = tl.erf(a)", "y = a % 2.0", "y = a & a", "y = a.to(tl.float64)", "y = a + a.b"]
)
def test_what_cannot_be_expressed(text, rng):
    with pytest.raises(NotExpressible):
        computed(text, a=np.ones((32, EACH), np.float32))

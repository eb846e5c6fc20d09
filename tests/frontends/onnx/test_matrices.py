"""Einsum of every kind, determinants and Fourier transforms, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.onnx_graph import compare, compare_op, model, node

RNG = np.random.default_rng(15)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


EQUATIONS = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "bij,bjk->bik": [(2, 3, 4), (2, 4, 5)],
    "bhqd,bhkd->bhqk": [(2, 2, 3, 4), (2, 2, 5, 4)],
    "i,i->": [(4,), (4,)],
    "i,j->ij": [(3,), (4,)],
    "ij->ji": [(2, 3)],
    "ij->": [(2, 3)],
    "ij->j": [(2, 3)],
    "ii->i": [(4, 4)],
    "ii": [(4, 4)],
    "bii->b": [(2, 3, 3)],
    "iji->ij": [(3, 2, 3)],
    "iii->i": [(3, 3, 3)],
    "ii,ij->j": [(3, 3), (3, 4)],
    "ij,ji->": [(3, 4), (4, 3)],
    "...ij,...jk->...ik": [(2, 3, 4), (2, 4, 5)],
    "...i,i->...": [(2, 3, 4), (4,)],
    "i...->...": [(2, 3, 4)],
    "ij,jk,kl->il": [(2, 3), (3, 4), (4, 5)],
    "abc,bd,ce->ade": [(2, 3, 4), (3, 5), (4, 2)],
    "ab,b": [(2, 3), (3,)],
    "aBc,Bd->dca": [(2, 3, 4), (3, 5)],
    "ij,ij->ij": [(2, 3), (2, 3)],
    "abcd,cde,bf->aef": [(2, 3, 4, 2), (4, 2, 3), (3, 5)],
    " i j , j k -> i k ": [(2, 3), (3, 4)],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    arrays = [floats(*shape) for shape in EQUATIONS[equation]]
    expected = [np.asarray(np.einsum(equation.replace(" ", ""), *arrays))]
    compare_op("Einsum", arrays, equation=equation, symbolic=False, expected=expected)


@pytest.mark.parametrize("shapes", [((2, 1), (3, 4)), ((2, 3), (1, 4)), ((1, 3), (3, 4))])
def test_einsum_broadcasts_what_it_sums_over(shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [floats(*s) for s in shapes]
    expected = [np.einsum("ij,jk->ik", *arrays)]
    compare_op("Einsum", arrays, equation="ij,jk->ik", symbolic=False, expected=expected)


@pytest.mark.parametrize("equation", ["ij,jk->iz", "ij->ijk", "ij->ii"])
def test_einsum_that_makes_no_sense_is_refused(equation: str) -> None:
    arrays = [floats(2, 2)] * len(equation.split("->")[0].split(","))
    with pytest.raises(Exception, match="Einsum"):
        compare_op("Einsum", arrays, equation=equation, expected=[arrays[0]])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_determinants(size: int) -> None:
    compare_op("Det", [floats(2, 3, size, size)])
    compare_op("Det", [floats(size, size)], symbolic=False)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("length", [None, 5, 9])
def test_fourier_transforms(parts: int, inverse: int, length: int | None) -> None:
    x = floats(2, 7, 3, parts)
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    transform = np.fft.ifft if inverse else np.fft.fft
    result = transform(signal, length, axis=1)
    wanted = np.stack([result.real, result.imag], -1).astype(np.float32)
    size = None if length is None else np.int64(length)
    compare_op("DFT", [x, size, np.int64(1)], constant=[1, 2], opset=20, inverse=inverse,
               expected=[wanted])  # fmt: skip
    compare_op("DFT", [x, size], constant=[1], opset=17, inverse=inverse, axis=1,
               expected=[wanted])  # fmt: skip


@pytest.mark.parametrize("length", [6, 7])
def test_one_sided_transforms(length: int) -> None:
    x = floats(3, length, 1)
    spectrum = np.fft.rfft(x[..., 0], axis=1)
    wanted = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)
    compare_op("DFT", [x, None, np.int64(1)], constant=[2], opset=20, onesided=1,
               expected=[wanted])  # fmt: skip
    back = np.fft.irfft(spectrum, length, axis=1)[..., None].astype(np.float32)
    compare_op("DFT", [wanted, np.int64(length), np.int64(1)], constant=[1, 2], opset=20,
               onesided=1, inverse=1, expected=[back])  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("one_sided", [0, 1])
def test_short_time_transforms(known: bool, one_sided: int) -> None:
    signal, window = floats(2, 40, 1), np.hanning(8).astype(np.float32)
    constants = [1, 2, 3] if known else [1, 3]
    inputs = [signal, np.int64(4), window, np.int64(8)]
    compare_op("STFT", inputs, constant=constants, opset=17, onesided=one_sided, symbolic=known)


def test_short_time_transforms_of_complex_signals() -> None:
    signal = floats(2, 24, 2)
    frames = np.stack([signal[:, s : s + 6, 0] + 1j * signal[:, s : s + 6, 1]
                       for s in range(0, 19, 3)], 1)  # fmt: skip
    result = np.fft.fft(frames, axis=-1)
    wanted = np.stack([result.real, result.imag], -1).astype(np.float32)
    compare_op("STFT", [signal, np.int64(3), None, np.int64(6)], constant=[1, 3], opset=17,
               onesided=0, expected=[wanted])  # fmt: skip


def test_a_signal_of_unknown_length() -> None:
    nodes = [node("STFT", "x step _ size", "y")]
    constants = {"step": np.int64(4), "size": np.int64(8)}
    proto = model(nodes, {"x": (np.float32, ["N", "L", 1])}, ["y"], constants, opset=17)
    graph = compare(proto, {"x": floats(2, 40, 1)})
    assert str(graph.outputs[0].shape[1]).startswith("floordiv(")

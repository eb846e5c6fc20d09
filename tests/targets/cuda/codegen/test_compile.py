"""Device code as it is stored: given back as it was, and refused where it is damaged."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from planish.errors import DeviceError, TuningError
from planish.fusion.expression import Expression, Leaf
from planish.graph.types import DType
from planish.targets.cuda.codegen.compile import DeviceCode, triton
from planish.targets.cuda.machine import H200

CODE = DeviceCode("kernel_1", 4, 49152, "sm_90", True, True, b"\x7fELF\n\x00 and more\n")
EXPRESSION = Expression((Leaf(DType.FLOAT32),), (), (0,))


def stored(**changes) -> bytes:
    about = {"symbol": "k", "warps": 4, "shared": 0, "arch": "sm_90"} | changes
    return json.dumps({k: v for k, v in about.items() if v is not None}).encode() + b"\n\x7fELF"


def test_round_trip():
    assert DeviceCode.from_bytes(CODE.to_bytes()) == CODE
    assert CODE.to_bytes() == replace(CODE).to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n\x7fELF",
        b"[]\n\x7fELF",
        b"null\n\x7fELF",
        b"\xff\xfe\n\x7fELF",
        b"[" * 100_000 + b"\n\x7fELF",
        CODE.to_bytes().replace(b"\x7fELF", b"\x7fELG"),
        CODE.to_bytes().partition(b"\n")[0],
        CODE.to_bytes()[:40],
        stored(symbol=3),
        stored(arch=None),
        stored(arch=["sm_90"]),
        stored(warps=0),
        stored(warps=64),
        stored(warps=True),
        stored(warps="4"),
        stored(shared=-1),
        stored(shared=1 << 30),
        stored(shared=1.5),
        stored(more=1),
        stored(cubin=""),
        stored(overlaps=1, tensor_cores=True),
        stored(overlaps=True, tensor_cores=1),
    ],
)
def test_damaged_code_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011  (also what JSON and Unicode raise)
        DeviceCode.from_bytes(data)


def test_missing_triton_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(DeviceError, match="Triton is not installed"):
        triton()


def test_compile(expression_kernel):
    pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")
    kernel = expression_kernel(2, 1, EXPRESSION, 128)
    code = DeviceCode.from_bytes(kernel.compile(H200))
    assert (code.symbol, code.warps, code.shared, code.arch) == (kernel.symbol, 2, 0, "sm_90")
    assert code.symbol.encode() in code.cubin


def test_errors_name_the_kernel(expression_kernel, monkeypatch):
    pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")
    kernel = expression_kernel(2, 1, EXPRESSION, 96)  # ranges must be powers of two
    with pytest.raises(TuningError, match="does not compile") as caught:
        kernel.compile(H200)
    assert "expression on NVIDIA H200" in str(caught.value)

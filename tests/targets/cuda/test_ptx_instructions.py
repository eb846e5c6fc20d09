"""Where the interpreter's products find factors, beside what the PTX ISA says of descriptors."""

from __future__ import annotations

import numpy as np
import pytest

from planish.targets.cuda.ptx_instructions import _factor_across


@pytest.mark.parametrize(("columns", "line"), [(64, 128), (128, 128), (96, 128), (32, 64)])
def test_a_factor_across(columns, line):
    """PTX ISA, "Asynchronous Warpgroup Level Canonical Layouts", MN-major: in units of T = 8 halves
    ``((T,w,m),(8,k)) : ((1,T,LBO),(wT,SBO))``, w = 8 for 128 bytes and 4 for 64; Swizzle<3,4,3> or
    <2,4,3> changes as many bits of an address from the fourth on by those three places further.
    """
    rng = np.random.default_rng(0)
    w, bits = line // 16, {128: 3, 64: 2}[line]
    start, leading, stride = 2048, 8192, 8 * line
    b = rng.standard_normal((16, columns)).astype(np.float16)
    memory = np.zeros(32768, np.uint8)
    for k in range(16):
        for n in range(columns):
            inside, chunk, part = n % 8, n // 8 % w, n // (8 * w)
            place = start + 2 * inside + 16 * chunk + leading * part
            place += k % 8 * 16 * w + k // 8 * stride
            place ^= (place >> 7 & (1 << bits) - 1) << 4
            memory[place : place + 2] = b[k, n : n + 1].view(np.uint8)
    pattern = {128: 1, 64: 2}[line]
    descriptor = start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | pattern << 62
    found = _factor_across(memory, descriptor, np.arange(columns), np.float16)
    np.testing.assert_array_equal(found, b.T)

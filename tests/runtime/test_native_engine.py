"""Engines for callers in C: binding, the cache of programs, failures."""

from __future__ import annotations

import ctypes
import gc
import threading
import time

import numpy as np
import pytest

from planish import native
from planish.errors import InputError, PlanishError, ShapeError
from planish.graph.types import DType, TensorType
from planish.native import FIRST_INPUT, HOST, HostKernel, Program, Step
from planish.runtime.native_engine import Bound, NativeEngine, Trim, dtype_of_code


def adder(bound_shapes=None, delay=0.0, host=lambda: None):
    """A bind function whose programs add one to float32, by a host step."""

    def bind(inputs):
        if bound_shapes is not None:
            bound_shapes.append(inputs[0].shape)
        time.sleep(delay)
        count = int(inputs[0].elements)

        def add(pointers, params, begin, end):
            host()
            read, write = (
                np.ctypeslib.as_array(
                    ctypes.cast(pointers[i], ctypes.POINTER(ctypes.c_float)), (count,)
                )
                for i in range(2)
            )
            write[:] = read + 1

        kernel = HostKernel(add)
        step = Step(kernel.address, 1, 1, [(FIRST_INPUT, 0), (FIRST_INPUT + 1, 0)], (), HOST)
        program = Program([step], input_count=1, output_count=1, arena_bytes=100, keep=kernel)
        return Bound(program, inputs)

    return bind


def test_binds_once_per_shape_and_forgets_the_least_recently_used():
    seen = []
    engine = NativeEngine(adder(seen), capacity=2)
    for n in (2, 3, 2, 2, 3, 4, 3, 2):
        x = np.arange(n, dtype=np.float32).reshape(1, n)
        (y,) = engine.run([x])
        np.testing.assert_array_equal(y, x + 1)
        assert y.shape == (1, n)
    assert seen == [(1, 2), (1, 3), (1, 4), (1, 2)]
    assert len(engine) == 2


def test_rank_and_dtype_are_part_of_the_key():
    seen = []
    engine = NativeEngine(adder(seen), capacity=4)
    engine.run([np.zeros((6,), np.float32)])
    engine.run([np.zeros((2, 3), np.float32)])
    engine.run([np.zeros((6, 1), np.int32)])
    assert len(seen) == 3


def test_programs_are_freed_with_what_they_keep():
    gc.collect()
    before = len(native._kept)
    engine = NativeEngine(adder(), capacity=1)
    for n in range(1, 6):
        engine.run([np.zeros(n, np.float32)])
    gc.collect()
    assert len(native._kept) == before + 1
    del engine
    gc.collect()
    assert len(native._kept) == before


def test_a_program_evicted_while_it_runs_lives_until_it_is_done():
    entered, go_on = threading.Event(), threading.Event()

    def wait():
        entered.set()
        assert go_on.wait(20)

    engine = NativeEngine(adder(host=wait), capacity=1)
    results = []
    runner = threading.Thread(target=lambda: results.append(engine.run([np.zeros(3, np.float32)])))
    runner.start()
    assert entered.wait(20)
    engine.bind = adder()
    np.testing.assert_array_equal(engine.run([np.zeros(5, np.float32)])[0], np.ones(5))
    gc.collect()
    go_on.set()
    runner.join()
    np.testing.assert_array_equal(results[0][0], np.ones(3))


def test_concurrent_misses_bind_once():
    seen = []
    engine = NativeEngine(adder(seen, delay=0.05))
    threads = [
        threading.Thread(target=engine.run, args=([np.zeros(7, np.float32)],)) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(7,)]


def test_errors_of_bind_and_of_steps_reach_the_caller():
    def refuse(inputs):
        raise ShapeError("Input x must have 3 channels.", cure="Pass 3.")

    with pytest.raises(InputError, match="3 channels"):
        NativeEngine(refuse).run([np.zeros(2, np.float32)])

    def explode(inputs):
        raise RuntimeError("no disk")

    with pytest.raises(PlanishError, match="no disk"):
        NativeEngine(explode).run([np.zeros(2, np.float32)])

    def fail():
        raise ValueError("step says no")

    with pytest.raises(PlanishError, match="ValueError: step says no"):
        NativeEngine(adder(host=fail)).run([np.zeros(2, np.float32)])


def test_bind_with_the_wrong_number_of_outputs_is_refused():
    bound = adder()((TensorType((2,), DType.FLOAT32),))
    engine = NativeEngine(lambda inputs: Bound(bound.program, bound.outputs * 2))
    with pytest.raises(InputError, match="1 inputs and 1 outputs, the signature 1 and 2"):
        engine.run([np.zeros(2, np.float32)])


def test_ready():
    inputs = (TensorType((2,), DType.FLOAT32),)
    assert NativeEngine(adder()).ready(inputs)
    engine = NativeEngine(adder(), can_bind=lambda types: types[0].shape == (3,))
    assert not engine.ready(inputs)
    assert engine.ready((TensorType((3,), DType.FLOAT32),))
    engine.add(inputs, adder()(inputs))
    assert engine.ready(inputs)


def test_dtype_numbers_are_tensorflows():
    assert dtype_of_code(1) is DType.FLOAT32
    assert dtype_of_code(19) is DType.FLOAT16
    with pytest.raises(InputError, match="number 7"):
        dtype_of_code(7)


def counting(shape, trims, count=2, visible=(1, 2), dtype=DType.INT64):
    """A bind function of programs that give a count, and their input twice, once to be cut."""

    def bind(inputs):
        size = int(inputs[0].elements)

        def fill(pointers, params, begin, end):
            kind = ctypes.c_int64 if dtype is DType.INT64 else ctypes.c_int32
            ctypes.cast(pointers[1], ctypes.POINTER(kind))[0] = count
            read, whole, cut = (
                np.ctypeslib.as_array(
                    ctypes.cast(pointers[i], ctypes.POINTER(ctypes.c_float)), (size,)
                )
                for i in (0, 2, 3)
            )
            whole[:], cut[:] = read, read + 1

        kernel = HostKernel(fill)
        pointers = [(FIRST_INPUT + i, 0) for i in range(4)]
        step = Step(kernel.address, 1, 1, pointers, (), HOST)
        program = Program([step], input_count=1, output_count=3, keep=kernel)
        kinds = (TensorType((), dtype), inputs[0], inputs[0])
        return Bound(program, kinds, visible, tuple(Trim(*t) for t in trims))

    return bind


@pytest.mark.parametrize("dtype", [DType.INT32, DType.INT64])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_outputs_are_cut_to_what_was_counted(axes, count, dtype):
    x = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)
    factors = {0: 1, 1: 1, 2: 2}
    trims = [(2, axis, 0, factors[axis]) for axis in axes]
    engine = NativeEngine(counting(x.shape, trims, count, dtype=dtype))
    for _ in range(2):
        whole, cut = engine.run([x])
        np.testing.assert_array_equal(whole, x)
        place = tuple(slice(count * factors[a]) if a in axes else slice(None) for a in range(3))
        np.testing.assert_array_equal(cut, x[place] + 1)


@pytest.mark.parametrize("count", [-1, 4])
def test_impossible_counts_are_refused(count):
    engine = NativeEngine(counting((3,), [(2, 0, 0, 1)], count))
    with pytest.raises(InputError, match="size of a dimension"):
        engine.run([np.zeros(3, np.float32)])


@pytest.mark.parametrize("trim", [(3, 0, 0, 1), (2, 1, 0, 1), (2, 0, 1, 1), (2, 0, 0, -1)])
def test_impossible_cuts_are_refused(trim):
    engine = NativeEngine(counting((3,), [trim]))
    with pytest.raises(InputError):
        engine.run([np.zeros(3, np.float32)])

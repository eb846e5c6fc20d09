"""The C runtime: programs on one and many threads, host steps, profiles, forks, bad tables."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import weakref

import llvmlite.binding as llvm
import numpy as np
import pytest

from planish import native
from planish.errors import DeviceError, InputError
from planish.native import (
    ABSOLUTE,
    ARENA,
    FIRST_INPUT,
    HOST,
    SERIAL,
    Arena,
    HostKernel,
    Program,
    Step,
    aligned_empty,
)

# y[i] = a * x[i] + b over a task of params[0] elements.
AFFINE = """
#include <stdint.h>
void affine(void *const *p, const int64_t *q, int64_t begin, int64_t end, void *scratch) {
    const float *x = p[0];
    float *y = p[1];
    for (int64_t i = begin * q[0]; i < end * q[0]; i++) y[i] = q[1] * x[i] + q[2];
}
void through_scratch(void *const *p, const int64_t *q, int64_t begin, int64_t end, void *scratch) {
    float *s = scratch;
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < q[0]; i++) s[i] = ((const float *)p[0])[t * q[0] + i];
        for (int64_t i = 0; i < q[0]; i++) ((float *)p[1])[t * q[0] + i] = s[q[0] - 1 - i];
    }
}
void alignment(void *const *p, const int64_t *q, int64_t begin, int64_t end, void *scratch) {
    for (int64_t t = begin; t < end; t++) ((int64_t *)p[0])[t] = (uintptr_t)scratch % 64;
}
"""

NEGATE = """
define void @negate(ptr %pointers, ptr %params, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %in = load ptr, ptr %pointers
  %slot = getelementptr ptr, ptr %pointers, i64 1
  %out = load ptr, ptr %slot
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %from = getelementptr float, ptr %in, i64 %i
  %value = load float, ptr %from
  %negative = fneg float %value
  %to = getelementptr float, ptr %out, i64 %i
  store float %negative, ptr %to
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "k.c").write_text(AFFINE)
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "k.c", "-o", "k.so"], cwd=folder, check=True, timeout=60
    )
    library = ctypes.CDLL(str(folder / "k.so"))

    def address(name):
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value

    return address


def chain(affine, tasks, size, steps, grain=1):
    """x -> 2x + 1, ``steps`` times, through the arena."""
    last = FIRST_INPUT + 1
    table = []
    for i in range(steps):
        source = (FIRST_INPUT, 0) if i == 0 else (ARENA, (i % 2) * tasks * size * 4)
        target = (last, 0) if i == steps - 1 else (ARENA, ((i + 1) % 2) * tasks * size * 4)
        table.append(Step(affine, tasks, grain, [source, target], [size, 2, 1]))
    return Program(table, input_count=1, output_count=1, arena_bytes=2 * tasks * size * 4)


def test_numbers_beyond_64_bits_are_refused(kernels):
    step = Step(kernels("affine"), 1, 1, [], [2**63])
    with pytest.raises(DeviceError, match="does not fit in 64 bits"):
        Program([step], input_count=0, output_count=0, arena_bytes=0)


def run(program, x, threads=1, profile=None):
    y = np.full_like(x, np.nan)
    program.execute(Arena(program.arena_bytes), [x.ctypes.data], [y.ctypes.data], threads, profile)
    return y


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("tasks", "grain"), [(1, 1), (2, 1), (5, 1), (64, 1), (64, 7), (3, 100)])
def test_every_split_gives_the_same_bits(kernels, threads, tasks, grain):
    program = chain(kernels("affine"), tasks, 16, 5, grain)
    x = np.random.default_rng(0).standard_normal(tasks * 16, dtype=np.float32)
    expected = x
    for _ in range(5):
        expected = 2 * expected + np.float32(1)
    np.testing.assert_array_equal(run(program, x, threads), expected)


def test_many_callers_at_once(kernels):
    program = chain(kernels("affine"), 32, 64, 9)
    inputs = [np.random.default_rng(i).standard_normal(2048, dtype=np.float32) for i in range(6)]
    expected = [run(program, x) for x in inputs]
    wrong = []

    def caller(i):
        for _ in range(300):
            if not np.array_equal(run(program, inputs[i], threads=1 + i % 4), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_llvm_kernel():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    compiler = llvm.create_mcjit_compiler(llvm.parse_assembly(NEGATE), machine)
    compiler.finalize_object()
    program = Program(
        [Step(compiler.get_function_address("negate"), 1000, 10, [(2, 0), (3, 0)])],
        input_count=1,
        output_count=1,
        keep=compiler,
    )
    x = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(run(program, x, 2), -x)


def test_absolute_pointers_and_output_offsets(kernels):
    weights = np.arange(8, dtype=np.float32)
    program = Program(
        [
            Step(
                kernels("affine"),
                2,
                1,
                [(ABSOLUTE, weights.ctypes.data), (FIRST_INPUT, 16)],
                [4, 3, 0],
            )
        ],
        input_count=0,
        output_count=1,
        keep=weights,
    )
    y = np.zeros(12, np.float32)
    program.execute(Arena(0), [], [y.ctypes.data], 2)
    np.testing.assert_array_equal(y, np.concatenate([np.zeros(4), 3 * weights]))


@pytest.mark.parametrize("threads", [1, 4])
def test_scratch_is_private_and_aligned(kernels, threads):
    program = Program(
        [Step(kernels("through_scratch"), 64, 1, [(2, 0), (3, 0)], [4096])],
        input_count=1,
        output_count=1,
        scratch_bytes=4096 * 4,
    )
    x = np.random.default_rng(1).standard_normal((64, 4096), dtype=np.float32)
    np.testing.assert_array_equal(run(program, x, threads), x[:, ::-1])
    remainders = np.full(64, -1)
    probe = Program(
        [Step(kernels("alignment"), 64, 1, [(2, 0)])],
        input_count=0,
        output_count=1,
        scratch_bytes=9,
    )
    probe.execute(Arena(0), [], [remainders.ctypes.data], threads)
    assert not remainders.any()


def test_host_step_between_kernels(kernels):
    calls = []

    def double(pointers, params, begin, end):
        calls.append((begin, end, params[0], threading.get_ident()))
        view = np.ctypeslib.as_array(
            ctypes.cast(pointers[0], ctypes.POINTER(ctypes.c_float)), (32,)
        )
        view *= 2

    host = HostKernel(double)
    program = Program(
        [
            Step(kernels("affine"), 8, 1, [(2, 0), (ARENA, 0)], [4, 1, 1]),
            Step(host.address, 3, 1, [(ARENA, 0)], [42], HOST),
            Step(kernels("affine"), 8, 1, [(ARENA, 0), (3, 0)], [4, 1, 0], SERIAL),
        ],
        input_count=1,
        output_count=1,
        arena_bytes=128,
        keep=host,
    )
    x = np.arange(32, dtype=np.float32)
    np.testing.assert_array_equal(run(program, x, 2), 2 * (x + 1))
    assert calls == [(0, 3, 42, threading.get_ident())]


def test_host_step_may_run_another_program(kernels):
    inner = chain(kernels("affine"), 16, 4, 3)
    x = np.arange(64, dtype=np.float32)
    results = []
    host = HostKernel(lambda *_: results.append(run(inner, x, 3)))
    outer = Program(
        [
            Step(kernels("affine"), 16, 1, [(2, 0), (3, 0)], [4, 1, 1]),
            Step(host.address, 1, flags=HOST),
            Step(kernels("affine"), 16, 1, [(3, 0), (3, 0)], [4, 1, 1]),
        ],
        input_count=1,
        output_count=1,
        keep=host,
    )
    np.testing.assert_array_equal(run(outer, x, 3), x + 2)
    np.testing.assert_array_equal(results[0], 8 * x + 7)


@pytest.mark.parametrize("threads", [1, 2])
def test_host_step_that_raises_ends_the_execution(kernels, threads):
    def fail(*_):
        raise KeyError("the user's own error")

    host = HostKernel(fail)
    program = Program(
        [
            Step(kernels("affine"), 4, 1, [(2, 0), (ARENA, 0)], [4, 2, 1]),
            Step(host.address, 1, flags=HOST),
            Step(kernels("affine"), 4, 1, [(ARENA, 0), (3, 0)], [4, 2, 1]),
        ],
        input_count=1,
        output_count=1,
        arena_bytes=64,
        keep=host,
    )
    x, y = np.ones(16, np.float32), np.zeros(16, np.float32)
    for _ in range(3):
        with pytest.raises(KeyError, match="the user's own error"):
            program.execute(Arena(64), [x.ctypes.data], [y.ctypes.data], threads)
        with pytest.raises(KeyError):
            program.measure(Arena(64), [x.ctypes.data], [y.ctypes.data], threads, 2)
    assert not y.any()
    np.testing.assert_array_equal(run(chain(kernels("affine"), 4, 4, 1), x, threads), 3 * x)


def test_profile_has_rising_times(kernels):
    program = chain(kernels("affine"), 16, 256, 4)
    profile = np.zeros((4, 2), np.int64)
    run(program, np.ones(4096, np.float32), 2, profile)
    times = profile.reshape(-1)
    assert times[0] > 0
    assert (np.diff(times) >= 0).all()
    with pytest.raises(InputError, match="shape"):
        run(program, np.ones(4096, np.float32), 2, profile[:2])


def test_measure(kernels):
    program = chain(kernels("affine"), 16, 256, 4)
    x = np.ones(4096, np.float32)
    seconds = program.measure(
        Arena(program.arena_bytes), [x.ctypes.data], [x.ctypes.data], threads=2, repeats=5
    )
    assert seconds.shape == (5,)
    assert (seconds > 0).all()
    assert (seconds < 1).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bytes_", [0, 1, 64, (1 << 16) + 1, 5 << 20])
def test_memory_is_touched_before_each_run(kernels, threads, bytes_):
    """Also where it is no whole number of cache lines or of what a thread reads at once."""
    program = chain(kernels("affine"), 16, 256, 4)
    x = np.ones(4096, np.float32)
    other = np.arange(bytes_ % 251, bytes_ % 251 + bytes_, dtype=np.uint8)
    touched = [(other.ctypes.data, other.nbytes), (x.ctypes.data, x.nbytes)]
    before = other.copy()
    arena = Arena(program.arena_bytes)
    pointers = [x.ctypes.data], [x.ctypes.data]
    seconds = program.measure(arena, *pointers, threads, 3, touched)
    assert seconds.shape == (3,)
    assert (seconds > 0).all()
    np.testing.assert_array_equal(other, before)


def test_forked_child_can_execute(kernels):
    program = chain(kernels("affine"), 32, 16, 20)
    x = np.arange(512, dtype=np.float32)
    expected = run(program, x, 3)  # the pool is running when we fork
    child = os.fork()
    if child == 0:
        good = all(np.array_equal(run(program, x, 3), expected) for _ in range(50))
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(run(program, x, 3), expected)


def test_fork_inside_a_host_step(kernels):
    child = []
    host = HostKernel(lambda *_: child.append(os.fork()))
    program = Program(
        [
            Step(kernels("affine"), 64, 1, [(2, 0), (3, 0)], [8, 1, 1]),
            Step(host.address, 1, flags=HOST),
            Step(kernels("affine"), 64, 1, [(3, 0), (3, 0)], [8, 1, 1]),
        ],
        input_count=1,
        output_count=1,
        keep=host,
    )
    x = np.arange(512, dtype=np.float32)
    y = run(program, x, 3)
    if child[0] == 0:
        os._exit(0 if np.array_equal(y, x + 2) else 1)
    assert os.waitpid(child[0], 0)[1] == 0
    np.testing.assert_array_equal(y, x + 2)


def test_what_a_program_points_to_lives_as_long_as_it(kernels):
    class Resource:
        pass

    resource = Resource()
    alive = weakref.ref(resource)
    program = Program([], input_count=0, output_count=0, keep=resource)
    del resource
    assert alive() is not None
    del program
    assert alive() is None


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Step(0, 1), "has no kernel"),
        (Step(1, -1), "tasks >= 0"),
        (Step(1, 1, 0), "grain >= 1"),
        (Step(1, 1, 1, [(9, 0)]), "no base 9"),
        (Step(1, 1, 1, [(-1, 0)]), "no base -1"),
        (Step(1, 1, 1, [(ARENA, 101)]), "outside the arena"),
        (Step(1, 1, 1, [(FIRST_INPUT, -4)]), "offset below zero"),
        (Step(1, 1, 1, [(ARENA, 0)] * 33), "too many pointers"),
    ],
)
def test_bad_tables_are_refused(step, reason):
    with pytest.raises(InputError, match=reason):
        Program([step], input_count=1, output_count=1, arena_bytes=100)


def test_wrong_arguments_are_refused(kernels):
    program = chain(kernels("affine"), 4, 4, 3)
    x = np.zeros(16, np.float32).ctypes.data
    for inputs, outputs, arena in [([], [x], 1 << 20), ([x], [x, x], 1 << 20), ([x], [x], 8)]:
        with pytest.raises(InputError, match="1 inputs, 1 outputs and an arena of 128 bytes"):
            program.execute(Arena(arena), inputs, outputs)


@pytest.mark.parametrize("nbytes", [0, 1, 64, 4095, (4 << 20) + 5, 9 << 20])
def test_aligned_empty(nbytes):
    array = aligned_empty(nbytes)
    assert array.dtype == np.uint8
    assert array.shape == (nbytes,)
    assert array.ctypes.data % 64 == 0
    array[:] = 7  # all of it is ours to write
    view = array[: nbytes // 4 * 4].view(np.float32)
    del array
    assert view.nbytes == nbytes // 4 * 4


def test_statuses_agree_with_errors():
    with pytest.raises(InputError):
        native.raise_status(native.INVALID, "what", "why")

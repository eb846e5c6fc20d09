"""The matrix kernel for bytes against the references, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.byte_tasks import F32, I8, U8, arrays_of, bytes_of, conv_task, matmul_task
from planish.fusion.task import Task, make_task
from planish.graph import Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.quantization import MatMulInteger
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cpu.codegen.dot import BYTES, BYTES_TWICE, PAIRS, Dot, fits
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.integer_matrix import IntegerMatrixFamily
from planish.targets.cpu.machine import Machine, generic, host
from planish.targets.cpu.run import run_tactic

FAMILY = IntegerMatrixFamily()


def check(task: Task, rng, *, binding: Binding | None = None, most: int = 2) -> None:
    binding = binding or Binding({})
    arrays = arrays_of(task, rng)
    (expected,) = task.evaluate(arrays)
    tactics = list(FAMILY.tactics(task, binding))
    assert tactics
    step = max(len(tactics) // most, 1)
    for tactic in [*tactics[::step], tactics[-1]]:
        (have,) = run_tactic(tactic, binding, arrays)
        np.testing.assert_array_equal(have, expected, err_msg=str(tactic))


CONVS = [
    dict(shape=(1, 14, 14, 32), filters=48, window=1),
    dict(shape=(2, 5, 7, 33), filters=17, window=1),
    dict(shape=(2, 9, 11, 3), filters=24, window=3, stride=2, pad=1, residual=True),
    dict(shape=(1, 10, 13, 16), filters=40, window=3, pad=2, dilation=2),
    dict(shape=(2, 8, 8, 16), filters=24, window=3, pad=1, groups=2),
    dict(shape=(2, 8, 8, 15), filters=24, window=3, pad=1, groups=3, source=I8, zero=-7),
    dict(shape=(1, 8, 8, 24), filters=32, window=1, stride=2, zero=255),
    dict(shape=(1, 12, 12, 3), filters=16, window=3, stride=2, pad=1, prologue=True, zero=114),
    dict(shape=(1, 9, 9, 20), filters=32, window=1, prologue=True, residual=True),
    dict(shape=(1, 9, 9, 20), filters=16, window=3, pad=1, prologue=True, source=I8, zero=-128),
    dict(shape=(2, 6, 6, 8), filters=16, window=3, pad=1, source=I8, zero=0),
    dict(shape=(1, 30, 30, 3), filters=8, window=7, stride=2, pad=3),
    dict(shape=(1, 1, 1, 40), filters=100, window=1),
    dict(shape=(1, 3, 3, 1024), filters=16, window=1),
    dict(shape=(1, 7, 7, 16), filters=16, window=3, pad=1, weights=U8, weight_zero=131),
]


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolutions(case) -> None:
    rng = np.random.default_rng(0)
    check(conv_task(rng, **case), rng)


@pytest.mark.parametrize(
    "case",
    [
        dict(a=(5, 64), b=(64, 40)),
        dict(a=(1, 129), b=(129, 1001)),
        dict(a=(2, 7, 33), b=(33, 24), source=I8),
        dict(a=(9, 48), b=(31, 48), transpose_b=True, column_zeros=True),
    ],
    ids=str,
)
def test_matrix_products(case) -> None:
    rng = np.random.default_rng(1)
    check(matmul_task(rng, **case), rng)


def test_rows_and_channels_that_lie_apart() -> None:
    """A part of something wider is read, and a part of something wider written."""
    rng = np.random.default_rng(2)
    task = conv_task(rng, shape=(2, 6, 7, 12), filters=16, window=3, pad=1)
    (x,), (y,) = [v for v in task.inputs if not v.is_constant], task.outputs
    wide = {x: 20, y: 48}
    layouts = {}
    for value, channels in wide.items():
        shape = tuple(value.shape)
        layouts[value] = Layout(shape, dense_strides((*shape[:-1], channels)), alignment=1)
    check(task, rng, binding=Binding({}, layouts))


def test_small_tiles_come_first_where_there_is_little_to_sum() -> None:
    """The end of a tall tile would not be done beside the next one's products."""
    rng = np.random.default_rng(3)
    features = (*generic("avx512").features, "+avx512vnni")
    family = IntegerMatrixFamily(replace(generic("avx512"), features=features))

    def first(depth: int) -> int:
        task = conv_task(rng, shape=(1, 28, 28, depth), filters=256, window=1, residual=True)
        best = next(iter(family.tactics(task, Binding({}))))
        return best.pixels * best.vectors

    assert first(64) <= 16 < first(4096)


def test_computed_weights_are_left_to_others() -> None:
    graph = Graph()
    a = graph.input("a", TensorType((4, 8), U8))
    b = graph.input("b", TensorType((8, 4), I8))
    zeros = graph.constant(np.uint8(0)), graph.constant(np.int8(0))
    y = graph.add(MatMulInteger(), a, b, *zeros)
    assert not list(FAMILY.tactics(make_task([y.producer], y.producer), Binding({})))


# ---- machines that this one need not be ----------------------------------------------------------

VNNI = [
    pytest.param(generic("avx512"), "+avx512vnni", "zmm", id="avx512"),
    pytest.param(generic("avx2"), "+avxvnni", "ymm", id="avx2"),
]


def _without_vnni(machine: Machine) -> Machine:
    return replace(machine, features=tuple(f for f in machine.features if "vnni" not in f))


@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(1, 14, 14, 32), filters=48, window=1),
        dict(shape=(2, 5, 7, 33), filters=17, window=1),
        dict(shape=(2, 9, 11, 6), filters=24, window=3, stride=2, pad=1, residual=True),
        dict(shape=(2, 8, 8, 30), filters=24, window=3, pad=1, groups=3, source=I8, zero=-7),
        dict(shape=(1, 3, 3, 1024), filters=16, window=1, zero=255),
        dict(shape=(1, 12, 12, 3), filters=16, window=3, stride=2, pad=1, prologue=True),
        dict(shape=(1, 14, 14, 32), filters=48, window=1, added=4),
        dict(shape=(2, 7, 7, 24), filters=40, window=1, stride=2, residual=True, added=4),
        dict(shape=(2, 9, 11, 8), filters=24, window=3, stride=2, pad=1, zero=255, added=4),
        dict(shape=(1, 9, 9, 48), filters=24, window=3, pad=1, groups=2, source=I8, added=4),
        dict(shape=(1, 9, 9, 16), filters=33, window=3, pad=2, dilation=2, added=4),
        dict(shape=(1, 3, 3, 1032), filters=16, window=1, prologue=True, added=4),
    ],
    ids=str,
)
def test_bytes_without_vnni(case) -> None:
    """Weights that fit are multiplied as bytes: no sum of 16 bits saturates, 255 and -128 times 128
    together included.
    """
    if host().isa == "neon":
        pytest.skip("this CPU has no instructions of x86")
    machine = _without_vnni(host())
    rng = np.random.default_rng(6)
    task = conv_task(rng, **{"added": 2, **case})
    dot = BYTES_TWICE if "added" in case else BYTES
    arrays = arrays_of(task, rng)
    (expected,) = task.evaluate(arrays)
    tactics = list(FAMILY.on(machine).tactics(task, Binding({})))
    for tactic in (tactics[0], tactics[len(tactics) // 2], tactics[-1]):
        assert tactic.dot == dot
        (have,) = run_tactic(tactic, Binding({}), arrays, machine)
        np.testing.assert_array_equal(have, expected, err_msg=str(tactic))


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_what_bytes_are_multiplied_by_without_vnni(isa: str) -> None:
    machine = _without_vnni(generic(isa))
    for added, dot in ((0, PAIRS), (2, BYTES), (4, BYTES_TWICE)):
        task = conv_task(np.random.default_rng(7), **CONVS[0], added=added)
        tactic = next(iter(FAMILY.on(machine).tactics(task, Binding({}))))
        text = _disassembled(tactic.launches(Binding({}))[0].kernel, machine)
        assert tactic.dot == dot
        of_bytes, widened = text.count("vpmaddubsw"), text.count("vpmaddwd")
        assert of_bytes == (dot.together if added else 0) * widened and widened


def test_weights_that_fit() -> None:
    def of(dot: Dot, *depth: int, taps: int = 1) -> bool:
        return fits(dot, np.array(depth).reshape(taps, -1, 1))

    assert of(BYTES, 127, 1) and of(BYTES, -128, 0) and of(BYTES, 127, -128) and of(BYTES, 127)
    assert not of(BYTES, 127, 2) and not of(BYTES, -128, -1)
    assert of(BYTES, 0, 127, 127, 0) and not of(BYTES, 0, 127, 127, 0, 0)
    assert of(BYTES_TWICE, *[32] * 8) and of(BYTES_TWICE, *[64] * 4, *[-64] * 4)
    assert not of(BYTES_TWICE, *[32] * 4) and not of(BYTES_TWICE, *[32] * 4, *[33] * 4)
    assert of(BYTES_TWICE, 0, 0, 64, 64, 64, 64, 0, 0)
    assert not of(BYTES_TWICE, 64, 64, 0, 0, 64, 1, 0, 0)


@pytest.mark.parametrize(("machine", "feature", "register"), VNNI)
def test_vnni_multiplies_bytes(machine, feature, register) -> None:
    """Four products a lane and step, of what was packed and of what lies in place."""
    machine = replace(machine, features=tuple(sorted((*machine.features, feature))))
    rng = np.random.default_rng(3)
    # with one pixel behind the other, only packed, and with every second one, either way
    for case, ways in ((CONVS[0], {False}), (CONVS[2], {True}), (CONVS[6], {True, False})):
        task = conv_task(rng, **case)
        tactics = list(FAMILY.on(machine).tactics(task, Binding({})))
        assert {t.packed for t in tactics} == ways
        for tactic in (tactics[0], tactics[-1]):
            (launch,) = tactic.launches(Binding({}))
            text = _disassembled(launch.kernel, machine)
            assert "vpdpbusd" in text and register in text
            assert "vpmaddwd" not in text


def _disassembled(kernel: CpuKernel, machine) -> str:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(machine.triple)
    code = target.create_target_machine(cpu="", features=",".join(machine.features), opt=2)
    return code.emit_assembly(llvm.parse_assembly(kernel.assembly(machine)))


@pytest.mark.parametrize("case", [CONVS[2], CONVS[5], CONVS[8]], ids=str)
def test_first_sums_of_bytes(case) -> None:
    """What VNNI would compute from the packed weights, computed by NumPy."""
    machine = generic("avx512")
    machine = replace(machine, features=tuple(sorted((*machine.features, "+avx512vnni"))))
    rng = np.random.default_rng(4)
    task = conv_task(rng, **{**case, "window": 1, "pad": 0, "stride": 1})
    tactic = next(t for t in FAMILY.on(machine).tactics(task, Binding({})))
    assert task.anchor is not None
    groups = task.anchor.op.groups
    (packed,) = tactic.constants()
    width = tactic.vectors * machine.lanes
    source = task.anchor.inputs[0].dtype
    x = bytes_of(rng, source, 10, task.anchor.inputs[0].shape[-1])
    zero = int(task.anchor.inputs[2].data)
    unsigned = (x.astype(np.int32) + (128 if source is I8 else 0)).reshape(10, groups, -1)
    filters = task.anchor.inputs[1].data.shape[-1] // groups
    for group in range(groups):
        blocks = []
        for block in packed[group]:
            first = block[: 4 * width].view(np.int32)
            steps = block[4 * width :].reshape(-1, width, 4).astype(np.int32)
            depth = np.zeros((10, steps.shape[0] * 4), np.int32)
            depth[:, : unsigned.shape[-1]] = unsigned[:, group]
            blocks.append(first + np.einsum("nsg,swg->nw", depth.reshape(10, -1, 4), steps))
        have = np.concatenate(blocks, axis=-1)[:, :filters]
        w = task.anchor.inputs[1].data.reshape(-1, groups, filters)[:, group].astype(np.int32)
        split = x.astype(np.int32).reshape(10, groups, -1)[:, group] - zero
        np.testing.assert_array_equal(have, split @ w)


def test_float_convolutions_are_not_its() -> None:
    graph = Graph()
    x = graph.input("x", TensorType((1, 4, 4, 8), F32))
    w = graph.constant(np.ones((1, 1, 8, 8), np.float32))
    y = graph.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), x, w)
    assert not list(FAMILY.tactics(make_task([y.producer], y.producer), Binding({})))
    assert host().isa

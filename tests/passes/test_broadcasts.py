"""Broadcasts disappear before elementwise ops, or come after them."""

import numpy as np

from planish.graph.dims import symbol
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import Select, ew
from planish.ops.shape import BroadcastTo
from planish.passes import optimize
from planish.passes.broadcasts import move_broadcasts

N = symbol("N")


def test_an_operand_broadcasts_by_itself(net, check):
    row = net.add(BroadcastTo((N, 3, 4)), net.input(N, 1, 4, name="row"))
    net.output(net.add(ew.Mul(), net.input(N, 3, 4), row))
    assert check(net, move_broadcasts) == ["mul"]


def test_what_makes_up_the_shape_comes_last(net, check):
    row = net.add(BroadcastTo((N, 3, 4)), net.input(N, 1, 4, name="row"))
    net.output(net.add(ew.Relu(), net.add(ew.Exp(), row)))
    assert check(net, move_broadcasts) == ["exp", "relu", "broadcast_to"]


def test_two_of_different_axes_need_none(net, check):
    row = net.add(BroadcastTo((N, 3, 4)), net.input(N, 1, 4, name="row"))
    column = net.add(BroadcastTo((N, 3, 4)), net.input(3, 1, name="column"))
    net.output(net.add(ew.Add(), row, column))
    assert check(net, move_broadcasts) == ["add"]


def test_new_axes_in_front_are_kept(net, check):
    x = net.add(BroadcastTo((2, N, 4)), net.input(N, 4))
    net.output(net.add(ew.Neg(), x))
    assert check(net, move_broadcasts) == ["neg", "broadcast_to"]


def test_a_mask_written_out_for_all_heads(net, check):
    """As Keras has it: all of the heads and queries, and the keys that are there."""
    scores = net.input(N, 3, 5, 5, name="scores")
    keys = net.graph.input("keys", TensorType((N, 1, 1, 5), DType.BOOL))
    every = net.add(BroadcastTo((N, 3, 5, 5)), net.graph.constant(np.asarray(True)))
    mask = net.add(ew.LogicalAnd(), every, keys)
    net.output(net.add(Select(), mask, scores, net.constant(-1e9)))
    assert check(net, optimize) == ["select"]

"""Nodes that read only constants are computed, unless the result is far larger."""

import numpy as np

from planish.graph.dims import symbol
from planish.ops.elementwise import ew
from planish.ops.indexing import Gather
from planish.ops.reduce import ReduceSum, TopK
from planish.ops.shape import BroadcastTo, Concat, Slice
from planish.passes.constant_folding import fold_constants

N = symbol("N")


def test_chains_fold(net, check):
    c = net.add(ew.Exp(), net.add(ew.Mul(), net.weights(3), net.weights(3)))
    net.output(net.add(ew.Add(), net.input(N, 3), net.add(Concat(0), c)))
    assert check(net, fold_constants) == ["add"]


def test_an_output_may_become_constant(net, check):
    net.input(N, 1)
    net.output(net.add(ew.Exp(), net.weights(3)))
    assert check(net, fold_constants) == []


def test_several_outputs(net, check):
    node = net.graph.add_node(TopK(2), [net.weights(5)])
    net.output(net.add(ew.Add(), net.input(N, 2), node.outputs[0]), node.outputs[1])
    assert check(net, fold_constants) == ["add"]


def test_large_broadcasts_stay(net):
    x = net.input(N, 1, 1)
    big = net.add(BroadcastTo((1024, 1024)), net.constant([1.0]))
    net.output(net.add(ew.Add(), x, big))
    assert not fold_constants(net.graph)


def test_symbolic_sizes_stay(net, check):
    x = net.input(N, 1)
    net.output(net.add(ew.Add(), x, net.add(BroadcastTo((N, 3)), net.weights(3))))
    assert check(net, fold_constants) == ["broadcast_to", "add"]


def test_what_fails_is_left_to_run_time(net):
    index = net.graph.constant(np.array([7], np.int64))
    net.output(net.add(Gather(0), net.weights(3), index))
    assert not fold_constants(net.graph)


def test_what_has_no_elements_is_constant(net, check):
    x = net.input(N, 4)
    nothing = net.add(Slice((0, 1), (2, 0), (1, 1)), net.input(2, 4, name="y"))
    joined = net.add(Concat(1), net.add(ew.Exp(), nothing), net.weights(2, 4))
    net.output(net.add(ew.Add(), x, net.add(ReduceSum((0,)), joined)), nothing)
    assert check(net, fold_constants) == ["add"]

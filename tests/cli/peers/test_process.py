"""Peers in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planish.cli.peers.process import PeerError, PeerProcess
from planish.cli.peers.worker import _matched


def test_planish_as_a_peer(plan: Path) -> None:
    with PeerProcess("planish") as peer:
        peer.open(str(plan), "plan", ["x"], ["y", "z"], threads=1)
        peer.feed([np.ones((2, 6), np.float32)])
        y, z = peer.run()
        np.testing.assert_array_equal(z, 2 * y)
        assert len(peer.measure(0.0, least=4)) == 4
        assert peer.version


def test_a_request_that_fails_leaves_the_peer_alive(plan: Path) -> None:
    with PeerProcess("planish") as peer:
        with pytest.raises(PeerError, match="cannot do this: open"):
            peer.open("/no/such.plan", "plan", ["x"], ["y"], threads=1)
        peer.open(str(plan), "plan", ["x"], ["y", "z"], threads=1)


def test_a_process_that_ends() -> None:
    with (
        PeerProcess("planish", python="/bin/false") as peer,
        pytest.raises(PeerError, match="ended"),
    ):
        peer.open("m.plan", "plan", ["x"], ["y"], threads=1)


def test_a_python_that_is_not_there() -> None:
    with pytest.raises(PeerError, match="cannot be started") as caught:
        PeerProcess("openvino", python="/no/such/python")
    assert "--python-for openvino=" in caught.value.cure


def test_ends_are_matched_by_name_or_else_by_order() -> None:
    assert _matched(["b", "a"], [["a:0", "x"], ["b"]]) == [1, 0]
    assert _matched(["u", "v"], [["a"], ["b"]]) == [0, 1]
    with pytest.raises(ValueError, match="not among"):
        _matched(["a", "v"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="not among"):
        _matched(["v"], [["a"], ["b"]])

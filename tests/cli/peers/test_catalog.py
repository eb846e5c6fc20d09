"""Which peer reads what."""

from __future__ import annotations

from planish.cli.peers.catalog import BENCHED, READS, runtime
from planish.cli.peers.worker import PEERS


def test_every_peer_that_is_measured_has_a_process_and_models() -> None:
    for peer in BENCHED:
        assert peer in PEERS
        assert READS[peer] == READS[runtime(peer)]


def test_precisions_of_a_runtime_share_its_python() -> None:
    assert {runtime(p) for p in BENCHED} == {"tensorflow", "onnxruntime", "openvino"}
    assert runtime("openvino-int8") == "openvino"

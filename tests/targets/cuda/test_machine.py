"""Described machines: what code and times depend on."""

from __future__ import annotations

from dataclasses import replace

from planish.targets.cuda.machine import H200


def test_names_and_keys():
    assert H200.arch == "sm_90"
    assert replace(H200, capability=(12, 1)).arch == "sm_121"
    smaller = replace(H200, multiprocessors=66)
    assert smaller.code_key == H200.code_key  # the same code, with other times
    assert smaller.timing_key != H200.timing_key
    assert replace(H200, capability=(10, 0)).code_key != H200.code_key

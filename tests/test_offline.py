"""Proves that the tests cannot reach the network: neither in their own process nor in the ones they start."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_a_connection_is_refused(method: str):
    with socket.socket() as client, pytest.raises(ConnectionRefusedError, match="nothing may leave"):
        getattr(client, method)(("127.0.0.1", 9))


def test_a_connection_is_refused_in_a_process_of_a_test():
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "nothing may leave the machine" in run.stderr


def test_processes_may_still_talk_to_each_other():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"

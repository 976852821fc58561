"""Loaded by Python at start-up wherever this folder is on PYTHONPATH: no test, and no process of a test, opens a connection."""

from __future__ import annotations

import os
import socket
from typing import Any

LOOPBACK = "DAGMAN_TESTS_LOOPBACK"
"""Set by a test whose own processes talk to one another as they would over a network, on this machine."""


def _refuse(method: str) -> Any:
    original = getattr(socket.socket, method)

    def connect(self: socket.socket, address: Any) -> Any:
        inside = os.environ.get(LOOPBACK) == "1" and isinstance(address, tuple) and address[0] == "127.0.0.1"
        if self.family != socket.AF_UNIX and not inside:
            raise ConnectionRefusedError(f"a test tried to connect to {address!r}; nothing may leave the machine")
        return original(self, address)

    return connect


for _method in ("connect", "connect_ex"):
    setattr(socket.socket, _method, _refuse(_method))

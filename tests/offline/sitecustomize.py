"""Loaded by Python at start-up wherever this folder is on PYTHONPATH: no test, and no process of a test, opens a connection."""

from __future__ import annotations

import socket
from typing import Any


def _refuse(method: str) -> Any:
    original = getattr(socket.socket, method)

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            raise ConnectionRefusedError(f"a test tried to connect to {address!r}; nothing may leave the machine")
        return original(self, address)

    return connect


for _method in ("connect", "connect_ex"):
    setattr(socket.socket, _method, _refuse(_method))

"""Runs SimpleITK in a child process, which reads many files and is replaced if it crashes.

Some headers crash the process that reads them (20 of 2,600 mutated files did); the parent then rejects the file and continues.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman.errors import ScanError

_SCRIPT = Path(__file__).with_name("serving.py")
_TIMEOUT_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 2e6
_CONVERT_AGAIN = "Convert the scan again, or exclude it"


@dataclass(frozen=True, kw_only=True)
class ItkImage:
    """An image as SimpleITK reads it."""

    size: tuple[int, ...]
    "X Y Z ..."
    spacing: tuple[float, ...]
    "mm."
    origin: tuple[float, ...]
    "LPS mm."
    direction: tuple[float, ...]
    "Row-major matrix of direction cosines, LPS."
    components: int
    "Number of values per voxel."
    pixel: str
    "SimpleITK's name of the pixel type."
    voxels: NDArray | None = None
    "Z Y X; None if only the header was read."


class UnreadableError(Exception):
    """SimpleITK could not read the file; the message is SimpleITK's."""


def read_with_itk(path: Path, *, voxels: bool, claimed: int = 0) -> ItkImage:
    """Read an image, or only its header, in the child process.

    Args:
        path: the file.
        voxels: whether to read voxels.
        claimed: number of bytes of voxels according to the header, by which the time limit is set.

    Raises:
        UnreadableError: with SimpleITK's message, if it cannot read the file.
        ScanError: if the file crashed the child, or took too long.
    """
    with _lock:
        child = _get_child()
        try:
            return child.read(path, voxels, claimed)
        except _EndedError as ended:
            raise ScanError(f"{ended} (damaged or malicious)", do=_CONVERT_AGAIN) from None
        except UnreadableError:
            raise
        except BaseException:
            # After Ctrl-C between request and answer, the next answer would belong to the wrong request.
            child.end()
            raise


class _EndedError(Exception):
    """The child crashed, or was killed for taking too long; the message states which."""


class _Child:
    def __init__(self) -> None:
        self.process_id = os.getpid()
        # -P: without the script's folder in sys.path.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.buffer = b""
        self.deadline = 0.0
        self._set_deadline(_TIMEOUT_SECONDS)
        self._read_line()

    def is_alive(self) -> bool:
        return self.process_id == os.getpid() and self.process.poll() is None

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def read(self, path: Path, voxels: bool, claimed: int) -> ItkImage:
        self._set_deadline(_TIMEOUT_SECONDS + claimed / _SLOWEST_BYTES_PER_SECOND)
        try:
            self.requests.write(json.dumps({"path": str(path), "voxels": voxels}).encode() + b"\n")
        except BrokenPipeError:
            self._report_end()
        answer: dict[str, Any] = json.loads(self._read_line())
        if "error" in answer:
            raise UnreadableError(answer["error"])
        values = None
        if voxels:
            values = np.empty(answer["shape"], np.dtype(answer["dtype"]))
            self._read_into(values.reshape(-1).view(np.uint8).data)
        return ItkImage(
            size=tuple(answer["size"]),
            spacing=tuple(answer["spacing"]),
            origin=tuple(answer["origin"]),
            direction=tuple(answer["direction"]),
            components=answer["components"],
            pixel=answer["pixel"],
            voxels=values,
        )

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def _wait(self) -> None:
        """Wait until there is an answer to read."""
        if not select.select([self.answers], [], [], max(0.0, self.deadline - time.monotonic()))[0]:
            self.end()
            raise _EndedError("could not be read in a reasonable time")

    def _read_line(self) -> bytes:
        while b"\n" not in self.buffer:
            self._wait()
            piece = os.read(self.answers.fileno(), 1 << 16)
            if not piece:
                self._report_end()
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _read_into(self, target: memoryview) -> None:
        filled = min(len(self.buffer), len(target))
        target[:filled], self.buffer = self.buffer[:filled], self.buffer[filled:]
        while filled < len(target):
            self._wait()
            count = os.readv(self.answers.fileno(), [target[filled:]])
            if not count:
                self._report_end()
            filled += count

    def _report_end(self) -> None:
        self.end()
        code = self.process.returncode
        raise _EndedError(f"crashes its reader, with {f'signal {-code}' if code < 0 else f'code {code}'}")


_lock = threading.Lock()
_child: _Child | None = None


def _get_child() -> _Child:
    global _child
    if _child is None or not _child.is_alive():
        try:
            _child = _Child()
        except _EndedError as ended:
            raise ScanError(f"SimpleITK cannot be started in a separate process: it {ended}", do="Reinstall it") from None
    return _child


def _forget_lock() -> None:
    """Replace the lock in a forked process, since a thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


@atexit.register
def _end_child() -> None:
    # A forked process has a copy of the parent's child, which is_alive() excludes.
    if _child is not None and _child.is_alive():
        _child.end()


def count_bytes(image: ItkImage) -> int:
    """Return the number of bytes of the image's voxels; 0 for pixel types without a fixed size."""
    bits = {"8-bit": 1, "16-bit": 2, "32-bit": 4, "64-bit": 8}
    return math.prod(image.size) * image.components * next((size for name, size in bits.items() if name in image.pixel), 0)

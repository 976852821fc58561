"""SimpleITK in a child process that may die: one child reads many files, and another takes its place when it ends.

Some headers end the process that reads them (20 of 2,600 mutated files did); the parent goes on, and the file has its reason.
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
_PATIENCE_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 2e6
_CONVERT_AGAIN = "Convert the scan again, or exclude it"


@dataclass(frozen=True, kw_only=True)
class ItkImage:
    """What SimpleITK reads of a file: size X Y Z ..., spacing, origin, direction (LPS mm), the name of its pixel type.

    `voxels` is Z Y X, None where only the header was read.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    components: int
    pixel: str
    voxels: NDArray | None = None


class UnreadableError(Exception):
    """SimpleITK refused the file; the message is its own."""


def read_with_itk(path: Path, *, voxels: bool, claimed: int = 0) -> ItkImage:
    """Header, and voxels if asked for, by the child of this process; `claimed` is how many bytes of voxels there should be.

    Raises UnreadableError with SimpleITK's words, ScanError when the file ended the child or held it up.
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
            # Ctrl-C between question and answer: the next answer would be to the wrong question.
            child.end()
            raise


class _EndedError(Exception):
    """The child died, or was ended for taking too long; the message says how."""


class _Child:
    def __init__(self) -> None:
        self.process_id = os.getpid()
        # -P: the folder of the script is no place to import from.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout
        self.buffer = b""
        self.deadline = 0.0
        self._allow(_PATIENCE_SECONDS)
        self._read_line()

    def is_alive(self) -> bool:
        return self.process_id == os.getpid() and self.process.poll() is None

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.questions, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def read(self, path: Path, voxels: bool, claimed: int) -> ItkImage:
        self._allow(_PATIENCE_SECONDS + claimed / _SLOWEST_BYTES_PER_SECOND)
        try:
            self.questions.write(json.dumps({"path": str(path), "voxels": voxels}).encode() + b"\n")
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

    def _allow(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def _wait(self) -> None:
        """Until an answer is there to read."""
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
    """In a fork: another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


@atexit.register
def _end_child() -> None:
    # A fork's copy belongs to its parent.
    if _child is not None and _child.is_alive():
        _child.end()


def count_bytes(image: ItkImage) -> int:
    """Bytes that the image's voxels take; 0 for types that have no fixed size."""
    bits = {"8-bit": 1, "16-bit": 2, "32-bit": 4, "64-bit": 8}
    return math.prod(image.size) * image.components * next((size for name, size in bits.items() if name in image.pixel), 0)

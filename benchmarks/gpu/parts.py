"""Parts of the benchmark, each alone: one that fails, hangs or takes its process with it is named, and costs no other.

A worker measures the parts in turn and writes all that is found after each. An error costs its part. One that no process outlives
(an illegal access on a card, a crash, a part beyond its time) costs the worker: a new one goes on with the next part.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Found = dict[str, Any]
"""All that was measured: lists of rows by name, `parts` by name (seconds or why it failed), `planned`, `running`."""
POLL = 0.5
"""Seconds between two looks at a worker."""


@dataclass(frozen=True)
class Part:
    """What is measured at once; its rows go to the list `into`."""

    name: str
    into: str
    measure: Callable[[Found], dict[str, Any] | list[dict[str, Any]]]
    most: float = 60.0
    "Seconds after which it is stopped."


def run_parts(parts: Sequence[Part], found: Found, write: Callable[[Found], None], *, device: str, ends: float) -> bool:
    """Measure the parts that `found` does not have yet, until the time `ends`; False where this process can measure no more.

    Writes before and after each part, so that whoever watches knows which one is running, and a process that ends costs one part.
    """
    found["planned"] = [part.name for part in parts]
    for part in parts:
        if part.name in found["parts"]:
            continue
        if time.time() >= ends:
            break
        began = time.time()
        found["running"] = {"part": part.name, "until": min(began + part.most, ends)}
        write(found)
        try:
            rows = part.measure(found)
            found.setdefault(part.into, []).extend(rows if isinstance(rows, list) else [rows])
            outcome: dict[str, Any] = {"seconds": round(time.time() - began, 2)}
        except Exception as error:
            outcome = {"failed": say(error)}
        alive = empty_memory(device)
        found["parts"][part.name], found["running"] = outcome, None
        write(found)
        print(f"{part.name}: {outcome.get('failed') or format(outcome['seconds'], '.1f') + ' s'}", flush=True)
        if not alive:
            return False
    return True


def supervise(command: Sequence[str], read: Callable[[], Found], write: Callable[[Found], None], *, ends: float) -> None:
    """Start workers until one has come to the end of the parts; a part that ended its worker or ran over its time is named.

    Raises RuntimeError where a worker ends without having begun a part.
    """
    while True:
        worker = subprocess.Popen(list(command))
        stopped = _watch(worker, read, ends)
        found = read()
        running = found.get("running")
        if worker.returncode == 0:
            return
        if running is not None:
            reason = stopped or f"it ended its process (code {worker.returncode})"
            found["parts"][running["part"]], found["running"] = {"failed": reason}, None
            write(found)
            print(f"{running['part']}: {reason}", flush=True)
        elif stopped is None and worker.returncode != DEAD:
            raise RuntimeError(f"a worker ended with code {worker.returncode} before it began a part")
        if time.time() >= ends:
            return


DEAD = 86
"""Code with which a worker ends whose card answers no more."""


def _watch(worker: subprocess.Popen[bytes], read: Callable[[], Found], ends: float) -> str | None:
    """Wait for the worker; why it was stopped, if it was."""
    while True:
        try:
            worker.wait(POLL)
            return None
        except subprocess.TimeoutExpired:
            running = read().get("running")
        until = ends if running is None else running["until"]
        # A moment more: a part that ends on time still has its rows to write.
        if time.time() > until + 2 * POLL:
            worker.kill()
            worker.wait()
            return "stopped: the time of the whole was up" if until >= ends else "stopped: it ran over its time"


def empty_memory(device: str) -> bool:
    """Give back what the part before held; False where the card answers no more."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    except Exception as error:
        print(f"the card answers no more: {say(error)}", flush=True)
        return False
    return True


def say(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

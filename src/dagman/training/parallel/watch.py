"""Who notices that a rank hangs: a thread in each process that says it lives, and ends its process where another does not.

A rank that was stopped, or whose host is gone, says nothing; one that is stuck in its own work says so but is behind the others.
Either is named within the time that was set, instead of all waiting for it for as long as the network allows.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

REQUEUE = 75
"""Exit code that means "start me again": EX_TEMPFAIL of sysexits.h."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What is known of a rank: how long ago it last said anything, how long it has been where it is, and where (step, stage)."""

    silent_s: float
    stuck_s: float
    place: tuple[int, int]
    who: str


STAGES = ("at the monitors before", "reading the views of", "computing")
"""What a rank does in a step, in order."""


def name_hung(signs: Sequence[Sign], own: int, timeout_s: float) -> str | None:
    """A sentence that names the ranks for which rank `own` waits in vain, or None while nothing is wrong."""
    silent = [rank for rank, sign in enumerate(signs) if rank != own and sign.silent_s > timeout_s]
    if silent:
        return "; ".join(f"rank {rank} ({signs[rank].who}) has not answered for {signs[rank].silent_s:.0f} s" for rank in silent)
    mine = signs[own]
    if mine.stuck_s <= timeout_s:
        return None
    behind = [rank for rank, sign in enumerate(signs) if sign.place < mine.place and sign.stuck_s > timeout_s]
    return (
        "; ".join(
            f"rank {rank} ({sign.who}) has been {STAGES[sign.place[1]]} step {sign.place[0] + 1} for {sign.stuck_s:.0f} s"
            for rank, sign in ((rank, signs[rank]) for rank in behind)
        )
        or None
    )


class Watch:
    """Publishes where this rank is, and looks where the others are.

    Args:
        rank: This process's number.
        size: How many there are.
        timeout_s: After which a rank that does not answer, or does not move while another waits for it, is given up.
        who: Host and process, for the message.
        name: Of this start of the ranks.
    """

    def __init__(self, rank: int, size: int, timeout_s: float, who: str, name: str) -> None:
        self.rank, self.size, self.timeout_s, self.who = rank, size, timeout_s, who
        self.place = (0, 0)
        self.beats = 0
        self.ended = threading.Event()
        self.store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=timeout_s)
        )
        self.prefix = f"{name}/watch"
        self.seen: dict[int, tuple[int, float, tuple[int, int], float]] = {}
        self.thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def move(self, step: int, stage: int) -> None:
        """Say that this rank is now at a stage (index of STAGES) of a step."""
        self.place = (step, stage)

    def publish(self) -> None:
        """Say that this rank lives, and where it is."""
        self.beats += 1
        value: dict[str, Any] = {"beat": self.beats, "place": self.place, "who": self.who}
        self.store.set(f"{self.prefix}/{self.rank}", json.dumps(value))

    def start(self) -> None:
        """Begin to watch; every rank must have published by now."""
        self.thread.start()

    def end(self) -> None:
        """Stop watching."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join(timeout=self.timeout_s)

    def look(self) -> list[Sign]:
        """What is known of every rank now."""
        now, signs = time.monotonic(), []
        for rank in range(self.size):
            value = json.loads(self.store.get(f"{self.prefix}/{rank}"))
            beat, place = int(value["beat"]), (int(value["place"][0]), int(value["place"][1]))
            before = self.seen.get(rank, (-1, now, (-1, -1), now))
            heard = now if beat != before[0] else before[1]
            moved = now if place != before[2] else before[3]
            self.seen[rank] = (beat, heard, place, moved)
            signs.append(Sign(silent_s=now - heard, stuck_s=now - moved, place=place, who=str(value["who"])))
        return signs

    def _run(self) -> None:
        while not self.ended.wait(min(10.0, self.timeout_s / 5)):
            try:
                self.publish()
                hung = name_hung(self.look(), self.rank, self.timeout_s)
            except (RuntimeError, dist.DistError):
                hung = (
                    None if self.ended.is_set() else f"the rendezvous has not answered rank {self.rank} for {self.timeout_s:.0f} s"
                )
            if hung is not None and not self.ended.is_set():
                _give_up(hung)


def _give_up(hung: str) -> None:
    """End this process at once: its main thread waits in an exchange that nothing interrupts."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"dagman: {hung}. Start all ranks again to resume from the last checkpoint.\n")
        sys.stderr.flush()
    os._exit(REQUEUE)

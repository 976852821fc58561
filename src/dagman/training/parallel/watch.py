"""Detects ranks that hang: a thread in each process reports that it is alive, and ends the process if another rank is not.

A rank that was stopped, or whose host is gone, reports nothing; one that is stuck in its own work keeps reporting, but falls behind
the others. Either is named within `train.rank_timeout`, so that the others do not wait for as long as the network allows.
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
"""Exit code that asks for a restart: EX_TEMPFAIL in sysexits.h."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What is known of a rank: seconds since it last reported, seconds since it last moved, and its place (step, stage)."""

    silent_s: float
    stuck_s: float
    place: tuple[int, int]
    who: str


STAGES = ("evaluating the monitors before", "reading the views of", "computing")
"""The stages of a step, in order."""


def name_hung(signs: Sequence[Sign], own: int, timeout_s: float) -> str | None:
    """A sentence that names the ranks that rank `own` waits for in vain, or None if nothing is wrong."""
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
    """Publishes where this rank is, and checks where the others are.

    Args:
        rank: This process's number.
        size: The number of ranks.
        timeout_s: Seconds after which a rank that does not report, or does not move while another waits for it, is given up.
        who: Host and process, for the message.
        name: The name of this start of the ranks.
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
        """Note that this rank is now at a stage (index of STAGES) of a step."""
        self.place = (step, stage)

    def publish(self) -> None:
        """Report that this rank is alive, and where it is."""
        self.beats += 1
        value: dict[str, Any] = {"beat": self.beats, "place": self.place, "who": self.who}
        self.store.set(f"{self.prefix}/{self.rank}", json.dumps(value))

    def start(self) -> None:
        """Start watching; every rank must have published before."""
        self.thread.start()

    def end(self) -> None:
        """Stop watching."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join(timeout=self.timeout_s)

    def look(self) -> list[Sign]:
        """Read what every rank has published."""
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
                hung = f"rank {self.rank} can no longer reach the rendezvous, whose process or host has probably ended"
            if hung is not None and not self.ended.is_set():
                _give_up(hung)


def _give_up(hung: str) -> None:
    """End this process at once: its main thread waits in an exchange that cannot be interrupted."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"dagman: {hung}. Start all ranks again to resume from the last checkpoint.\n")
        sys.stderr.flush()
    os._exit(REQUEUE)

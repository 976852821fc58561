"""When a run ends before its last step: at one step for all its processes."""

from __future__ import annotations

from typing import Literal

from dagman.training.parallel.group import Group

Reason = Literal["interrupt", "requeue"]
"""Why: someone wants it to end, or a cluster takes its place away."""


class Ending:
    """What this process was asked for, and what all have agreed on.

    Attributes:
        asked: Why this process was asked to end, if it was.
        reason: Why the run ends; None while it goes on.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.asked: Reason | None = None
        self.reason: Reason | None = None

    def ask(self, reason: Reason) -> None:
        """Ask for an end after the current step, of this and of all other processes."""
        self.asked = reason

    def is_due(self) -> bool:
        """Whether the run ends here."""
        if self.group.size == 1:
            self.reason = self.asked
        return self.reason is not None

    def settle(self, waited: float, unreadable: int) -> tuple[float, int]:
        """After a step: agree on an end; the mean of the seconds that were waited for views, and the sum of unreadable scans."""
        mine = [self.asked == "interrupt", self.asked == "requeue", waited, unreadable]
        interrupts, requeues, waits, lost = self.group.add_up(mine)
        if self.group.size > 1:
            self.reason = "interrupt" if interrupts else "requeue" if requeues else None
        return waits / self.group.size, int(lost)

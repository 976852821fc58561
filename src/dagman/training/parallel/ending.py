"""Ending a run before its last step, at the same step in all its processes."""

from __future__ import annotations

from typing import Literal

from dagman.training.parallel.group import Group

Reason = Literal["interrupt", "requeue"]
"""Why a run ends early: a user interrupted it, or a cluster takes the job's place away."""


class Ending:
    """The request that this process received to end, and what all processes have agreed on.

    Attributes:
        asked: Why this process was asked to end, if it was.
        reason: Why the run ends; None while it continues.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.asked: Reason | None = None
        self.reason: Reason | None = None

    def ask(self, reason: Reason) -> None:
        """Ask for an end of all processes after the current step."""
        self.asked = reason

    def is_due(self) -> bool:
        """Whether the run ends here."""
        if self.group.size == 1:
            self.reason = self.asked
        return self.reason is not None

    def settle(self, waited: float, unreadable: int) -> tuple[float, int]:
        """Agree on an end after a step; returns the mean of the seconds waited for views and the sum of unreadable scans."""
        mine = [self.asked == "interrupt", self.asked == "requeue", waited, unreadable]
        interrupts, requeues, waits, lost = self.group.add_up(mine)
        if self.group.size > 1:
            self.reason = "interrupt" if interrupts else "requeue" if requeues else None
        return waits / self.group.size, int(lost)

"""Scans that turn out to be unreadable during a run: they are listed and counted, and too many of them end the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dagman.errors import RunError
from dagman.records.journal import append_row
from dagman.training.parallel.group import Group

FILE = "unreadable.jsonl"


class Unreadable:
    """The scans that could not be read since this process started.

    Args:
        folder: The run folder.
        scans: Number of scans that the run reads.
        share: Fraction of them that may be unreadable; one always may.
        group: The processes of the run, which all count the same scans.
    """

    def __init__(self, folder: Path, scans: int, share: float, group: Group) -> None:
        self.folder, self.scans, self.share, self.group = folder, scans, share, group
        self.found: set[str] = set()

    def add(self, unreadable: Mapping[str, str], step: int) -> list[tuple[str, str]]:
        """Count the unreadable scans of a step in all processes (scan to reason), and list new ones; returns a warning for each.

        Raises:
            RunError: They are more than the share allows.
        """
        met = {scan: why for own in self.group.share(dict(unreadable)) for scan, why in own.items()}
        new = {scan: why for scan, why in sorted(met.items()) if scan not in self.found}
        self.found |= set(new)
        count = len(self.found)
        if self.group.writes:
            for scan, why in new.items():
                append_row(self.folder / FILE, {"step": step, "scan": scan, "reason": why})
        if count > max(1, self.share * self.scans):
            with self.group.together():
                raise RunError(
                    f"{count} of {self.scans} scans cannot be read, more than train.unreadable = {self.share:g} allows",
                    where=self.folder,
                    do=f"See {self.folder / FILE}; prepare these scans again, then repeat the command",
                )
        return [
            (f"unreadable-{scan}", f"A scan cannot be read, and others are used instead ({count} of {self.scans} so far): {why}")
            for scan, why in new.items()
        ]

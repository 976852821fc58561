"""A run's curves for TensorBoard, and also for W&B or MLflow if the run requests one of them (`train.track`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from dagman.settings import Settings
from dagman.training.monitoring.trackers import Tracker, open_tracker


class Curves:
    """Writes scalars to `RUN/tensorboard` and to the tracker; those that an earlier process wrote after `step` are hidden.

    Raises MissingExtraError if the tracker's library is not installed.
    """

    def __init__(self, folder: Path, step: int, settings: Settings | None = None) -> None:
        self.tracker: Tracker | None = None if settings is None else open_tracker(folder, settings)
        with _hide_host():
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row of `metrics.jsonl` or `timing.jsonl`."""
        self._write(step, {f"step/{name}": value for name, value in row.items() if name != "step"})

    def add_monitor(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row of `monitors.jsonl`, with nested names joined by slashes."""
        self._write(step, dict(_flatten(row, "monitor")))

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.add(step, values)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()
        if self.tracker is not None:
            self.tracker.close()


def _flatten(row: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}/{name}")
        elif name != "step":
            yield f"{prefix}/{name}", value


@contextlib.contextmanager
def _hide_host() -> Iterator[None]:
    """TensorBoard puts the host's name, which may name a hospital, into its file names, and has no setting to prevent it."""
    before = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")
    try:
        yield
    finally:
        event_file_writer.socket = before

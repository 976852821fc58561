"""The same curves for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter


class Curves:
    """Writes scalars under `RUN/tensorboard`; what an earlier process wrote after `step` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        with _hide_host():
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """A row of `metrics.jsonl` or `timing.jsonl`."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(f"step/{name}", value, step)

    def add_monitor(self, step: int, row: Mapping[str, Any], prefix: str = "monitor") -> None:
        """A row of `monitors.jsonl`, its nested names joined by slashes."""
        for name, value in row.items():
            if isinstance(value, Mapping):
                self.add_monitor(step, value, f"{prefix}/{name}")
            elif name != "step":
                self.writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


@contextlib.contextmanager
def _hide_host() -> Iterator[None]:
    """TensorBoard puts the host's name into its files' names, where it may name a hospital; it has no setting for that."""
    before = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")
    try:
        yield
    finally:
        event_file_writer.socket = before

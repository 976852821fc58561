"""Writes checkpoints and encoders in the background, from a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.errors import is_full_disk
from dagman.training.checkpoints import Snapshot, write_checkpoint
from dagman.training.recovery.background import Background


class Saver:
    """Writes one checkpoint at a time in the background.

    Args:
        folder: The run folder.
        keep: Number of checkpoints to keep.
        on_written: Called in the main thread with the step of a checkpoint that has been written.
        on_full_disk: Called in the same way if the disk was too full for it; the previous checkpoint is intact.
    """

    def __init__(self, folder: Path, keep: int, on_written: Callable[[int], None], on_full_disk: Callable[[int], None]) -> None:
        self.folder, self.keep, self.on_written, self.on_full_disk = folder, keep, on_written, on_full_disk
        self.background = Background()
        self.step = 0

    def save(
        self, step: int, snapshot: Snapshot, student: EncoderConfig, teacher: EncoderConfig | None, state: Mapping[str, Any]
    ) -> None:
        """Start writing the encoders and the checkpoint of a step, after the previous ones have been written."""
        self.follow(wait=True)
        self.step = step
        self.background.start(partial(self._write, step, snapshot, student, teacher, state))

    def _write(
        self, step: int, snapshot: Snapshot, student: EncoderConfig, teacher: EncoderConfig | None, state: Mapping[str, Any]
    ) -> None:
        # The encoder first, so that it is never older than the newest checkpoint. It is the teacher if there is one.
        write_encoder(self.folder / ("encoder" if teacher is None else "encoder-student"), student, snapshot.student)
        if teacher is not None and snapshot.teacher is not None:
            write_encoder(self.folder / "encoder", teacher, snapshot.teacher)
        write_checkpoint(self.folder, step, snapshot, state, self.keep)

    def follow(self, *, wait: bool = False, last: bool = False) -> None:
        """Report the checkpoint once it has been written; wait: wait until then.

        A full disk is only reported, unless this is the `last` checkpoint, for which it is an error.
        """
        try:
            ended = self.background.finish() if wait else self.background.has_ended()
        except (OSError, SafetensorError) as error:
            if last or not is_full_disk(error):
                raise
            self.on_full_disk(self.step)
            return
        if ended:
            self.on_written(self.step)

    def close(self) -> None:
        """Wait for a checkpoint that is still being written; its errors would hide the one that ends the training."""
        with contextlib.suppress(OSError, SafetensorError):
            self.background.finish()

"""Checkpoints and encoders, written beside the training from a copy."""

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
        keep: Checkpoints kept.
        on_written: Called, by the thread that looks, with the step of a checkpoint that has been written.
        on_full_disk: Called alike where the disk had no room for it; the checkpoint before is whole.
    """

    def __init__(self, folder: Path, keep: int, on_written: Callable[[int], None], on_full_disk: Callable[[int], None]) -> None:
        self.folder, self.keep, self.on_written, self.on_full_disk = folder, keep, on_written, on_full_disk
        self.background = Background()
        self.step = 0

    def save(
        self, step: int, snapshot: Snapshot, student: EncoderConfig, teacher: EncoderConfig | None, state: Mapping[str, Any]
    ) -> None:
        """Begin to write the encoders and the checkpoint of a step, once the one before is written."""
        self.follow(wait=True)
        self.step = step
        self.background.start(partial(self._write, step, snapshot, student, teacher, state))

    def _write(
        self, step: int, snapshot: Snapshot, student: EncoderConfig, teacher: EncoderConfig | None, state: Mapping[str, Any]
    ) -> None:
        # The encoder first: whoever finds a checkpoint finds an encoder that is not older. It is the teacher if there is one.
        write_encoder(self.folder / ("encoder" if teacher is None else "encoder-student"), student, snapshot.student)
        if teacher is not None and snapshot.teacher is not None:
            write_encoder(self.folder / "encoder", teacher, snapshot.teacher)
        write_checkpoint(self.folder, step, snapshot, state, self.keep)

    def follow(self, *, wait: bool = False, last: bool = False) -> None:
        """Look whether the checkpoint has been written, and report it once; wait: until it has.

        A full disk is reported and no error, unless it is the `last` checkpoint.
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
        """Wait for what is still being written when the training ends; its own error is reported, not what this raises."""
        with contextlib.suppress(OSError, SafetensorError):
            self.background.finish()

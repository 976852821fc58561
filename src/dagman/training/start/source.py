"""From a name to weights to continue from. Only `resolve_source` knows what may be named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from dagman.encoder.folder import EncoderConfig, read_config
from dagman.encoder.foreign import split_statement
from dagman.encoder.loading import load_encoder
from dagman.records.hashes import hash_array, hash_bytes
from dagman.settings import Settings
from dagman.training.checkpoints import list_checkpoints, read_checkpoint
from dagman.training.run import Run

_FILES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Weights to continue from.

    Attributes:
        name: As given by the user.
        kind: run if there is a checkpoint, which also holds heads and centres; otherwise encoder.
        config: The encoder's configuration: sizes, preprocessing, and what it was pretrained on.
        student, teacher: Weights by name; the teacher's are None for an encoder, and for a run without a teacher.
        targets: Centres and queues by name, and the logarithms of the temperatures; None for an encoder.
        settings: The run's settings, resolved; None for an encoder.
    """

    name: str
    kind: Literal["run", "encoder"]
    config: EncoderConfig
    student: dict[str, Tensor] = field(repr=False)
    teacher: dict[str, Tensor] | None = field(default=None, repr=False)
    targets: tuple[dict[str, Tensor], dict[str, float | None]] | None = field(default=None, repr=False)
    settings: Settings | None = None

    @property
    def digest(self) -> str:
        """A hash of all the weights."""
        parts = [f"{name}:{hash_array(value.numpy())}" for name, value in sorted(self.student.items())]
        parts += [f"t.{name}:{hash_array(value.numpy())}" for name, value in sorted((self.teacher or {}).items())]
        return hash_bytes("|".join(parts).encode())


def resolve_source(name: str) -> Source:
    """The weights behind a name: a run (its newest checkpoint), an encoder folder, a MONAI file, or any name of `load_encoder`.

    Raises:
        EncoderError, RunError: It does not exist or is damaged.
        MissingExtraError: A MONAI file is given and MONAI is not installed.
    """
    path = Path(name)
    if (path / "settings.toml").is_file() and list_checkpoints(path):
        return _read_run(name)
    foreign = split_statement(name)[0].suffix in _FILES and not name.startswith("monai:")
    encoder = load_encoder(f"monai:{name}" if foreign else name, device="cpu")
    return Source(name=name, kind="encoder", config=encoder.config, student=dict(encoder.network.state_dict()))


def _read_run(name: str) -> Source:
    values, files = read_checkpoint(name)
    heads = files["heads"]

    def join(owner: str) -> dict[str, Tensor]:
        prefix = f"{owner}."
        return files[owner] | {key.removeprefix(prefix): value for key, value in heads.items() if key.startswith(prefix)}

    run = Run(name)
    tensors = {key.removeprefix("targets."): value for key, value in heads.items() if key.startswith("targets.")}
    return Source(
        name=name,
        kind="run",
        config=read_config(run.encoder_folder),
        student=join("student"),
        teacher=join("teacher") if files["teacher"] else None,
        targets=(tensors, values["log_temperatures"]),
        settings=run.settings,
    )

"""From a name to weights to go on from. `resolve_source` is the one place that knows what may be named."""

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
    """Weights to go on from.

    Attributes:
        name: As it was given.
        kind: run where a checkpoint was found, which holds heads and centres as well; else encoder.
        config: Of its encoder: sizes, preprocessing, and what it was pretrained on.
        student, teacher: Weights by name; an encoder's are those of both, and None where a run had no teacher.
        targets: Centres and queues by name, and the logarithms of the temperatures; of a run alone.
        settings: Of the run, resolved.
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
    """The weights behind a name: a run (its newest checkpoint), an encoder folder, a file of MONAI, or any name of `load_encoder`.

    Raises:
        EncoderError, RunError: There is nothing, or it is damaged; MissingExtraError for MONAI's where it is not installed.
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

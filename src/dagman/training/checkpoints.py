"""Full-state checkpoints, written whole or not at all, without pickles.

`checkpoints/step-N/` holds `student`, `teacher`, `heads` and `optimizer` as safetensors, and `state.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dagman.errors import RunError
from dagman.method.centering import Temperature
from dagman.method.networks import Network
from dagman.method.targets import Targets
from dagman.records.files import write_whole
from dagman.records.hashes import hash_bytes, matches_file, sum_file

FORMAT = 2
"""Format 1 had SHA-256 checksums; format 2 has CRC-32."""
READ = (1, FORMAT)
"""Formats that can be read."""
_FILES = ("student", "teacher", "heads", "optimizer")
_NAMES = ("state.json", *(f"{name}.safetensors" for name in _FILES))
_HEADS = ("projectors.", "reconstruction.")


class DamagedCheckpointError(RunError):
    """A file of a checkpoint is missing, or is not what was written."""


def list_checkpoints(run: str | Path, under: str = "checkpoints") -> list[int]:
    """Steps that have a checkpoint, ascending; under: the folder of the run to look in."""
    # Whichever file it has lost: a damaged checkpoint is to be noticed, not passed over.
    names = {path.parent.name.removeprefix("step-") for path in (Path(run) / under).glob("step-*/*") if path.name in _NAMES}
    return sorted(int(name) for name in names if name.isdigit())


def read_state(run: str | Path) -> dict[str, Any]:
    """The values of the newest checkpoint's `state.json`.

    Raises:
        RunError: There is no checkpoint, or it is damaged or of another format version.
    """
    return _read_values(_find_newest(run))


def _read_values(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = values["format"]
    except FileNotFoundError:
        raise _explain_damage(folder, "state.json is missing") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _explain_damage(folder, f"state.json cannot be read ({error})") from None
    if version not in READ:
        raise RunError(f"is of checkpoint format {version}; this dagman reads {' and '.join(map(str, READ))}", where=folder)
    step = values.get("step")
    if not isinstance(step, int) or folder.name != f"step-{step:06d}":
        raise _explain_damage(folder, f"its state.json is that of step {step}")
    # Absent from checkpoints of earlier releases.
    if values.pop("checksum", None) not in (None, _sum_values(values)):
        raise _explain_damage(folder, "state.json does not match its own checksum")
    if not isinstance(values.get("log_temperatures"), dict) or not isinstance(values.get("checksums", {}), dict):
        raise _explain_damage(folder, "state.json lacks its temperatures or checksums")
    return values


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy on the CPU of all that changes from step to step, so that training can continue while it is written."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    targets: dict[str, Tensor]
    log_temperatures: dict[str, float | None]


def copy_state(
    student: Network,
    teacher: Network | None,
    optimizer: torch.optim.Optimizer,
    targets: tuple[Mapping[str, Tensor], Mapping[str, Temperature | None]],
) -> Snapshot:
    """Copy what a resume needs; targets: as `Targets.state` returns them."""
    return Snapshot(
        student=_copy(student.state_dict()),
        teacher=None if teacher is None else _copy(teacher.state_dict()),
        optimizer=_copy(_pack_optimizer(student, optimizer)),
        targets=_copy(targets[0]),
        log_temperatures={name: None if value is None else float(value) for name, value in targets[1].items()},
    )


def write_checkpoint(
    run: str | Path, step: int, snapshot: Snapshot, state: Mapping[str, Any], keep: int, *, under: str = "checkpoints"
) -> Path:
    """Write a snapshot to the run's folder `under`, then remove all but the newest `keep` checkpoints in it."""
    files = {
        "student": _select(snapshot.student, heads=False),
        "teacher": _select(snapshot.teacher or {}, heads=False),
        "heads": {
            **{f"student.{k}": v for k, v in _select(snapshot.student, heads=True).items()},
            **{f"teacher.{k}": v for k, v in _select(snapshot.teacher or {}, heads=True).items()},
            **{f"targets.{k}": v for k, v in snapshot.targets.items()},
        },
        "optimizer": snapshot.optimizer,
    }
    folder = Path(run) / under / f"step-{step:06d}"
    with write_whole(folder) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            save_file(content, temporary / f"{name}.safetensors")
        checksums = {name: sum_file(temporary / f"{name}.safetensors") for name in files}
        values = {
            "format": FORMAT,
            "step": step,
            "log_temperatures": snapshot.log_temperatures,
            "checksums": checksums,
            **state,
        }
        values["checksum"] = _sum_values(values)
        (temporary / "state.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for old in list_checkpoints(run, under)[:-keep]:
        shutil.rmtree(Path(run) / under / f"step-{old:06d}")
    return folder


def set_damaged_aside(run: str | Path) -> list[str]:
    """Rename damaged checkpoints that are newer than the newest intact one; returns a line for each.

    If none is intact, all are left in place, and `read_state` explains what is wrong with the newest.
    """
    damaged: list[tuple[Path, DamagedCheckpointError]] = []
    for step in reversed(list_checkpoints(run)):
        folder = Path(run) / "checkpoints" / f"step-{step:06d}"
        try:
            _check_files(folder, _read_values(folder))
            break
        except DamagedCheckpointError as error:
            damaged.append((folder, error))
    else:
        return []
    lines = []
    for folder, damage in damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        lines.append(
            f"The checkpoint {folder.name} {damage.what}. The previous one is used instead; "
            f"the damaged one was renamed to {aside.name}."
        )
    return lines


def load_checkpoint(
    run: str | Path, student: Network, teacher: Network | None, optimizer: torch.optim.Optimizer, targets: Targets
) -> dict[str, Any]:
    """Load the newest checkpoint into the given objects; returns the values of `state.json`.

    Raises:
        RunError: There is none, or it is damaged or of another format version.
    """
    folder = _find_newest(run)
    values, files = read_folder(folder)
    fill_state(folder, values, files, student, teacher, targets)
    try:
        _unpack_optimizer(student, optimizer, files["optimizer"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise _explain_damage(folder, error) from None
    return values


def fill_state(
    folder: Path,
    values: Mapping[str, Any],
    files: Mapping[str, dict[str, Tensor]],
    student: Network,
    teacher: Network | None,
    targets: Targets,
) -> None:
    """Load a checkpoint's weights and targets into the given objects. Raises RunError if they do not fit."""
    try:
        _fill(student, files["student"], _take(files["heads"], "student."))
        if teacher is not None:
            _fill(teacher, files["teacher"], _take(files["heads"], "teacher."))
        targets.restore(_take(files["heads"], "targets."), values["log_temperatures"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise _explain_damage(folder, error) from None


def read_checkpoint(run: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read the newest checkpoint: the values of `state.json`, and the tensors of each file by the file's name.

    Raises:
        RunError: There is none, or it is damaged or of another format version.
    """
    return read_folder(_find_newest(run))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read the checkpoint in a folder, as `read_checkpoint` does."""
    values = _read_values(folder)
    _check_files(folder, values, needed=False)
    try:
        return values, {name: load_file(folder / f"{name}.safetensors") for name in _FILES}
    except (SafetensorError, OSError) as error:
        raise _explain_damage(folder, error) from None


def _check_files(folder: Path, values: Mapping[str, Any], *, needed: bool = True) -> None:
    for name, checksum in values.get("checksums", {}).items():
        path = folder / f"{name}.safetensors"
        if needed and not path.is_file():
            raise _explain_damage(folder, f"{path.name} is missing")
        if path.is_file() and not matches_file(path, checksum):
            raise _explain_damage(folder, f"the checksum of {path.name} differs from that in state.json")


def _sum_values(values: Mapping[str, Any]) -> str:
    return hash_bytes(json.dumps(values, sort_keys=True).encode())


def _find_newest(run: str | Path) -> Path:
    steps = list_checkpoints(run)
    if not steps:
        raise RunError("holds no checkpoint to resume from", where=run, do="Start again in another folder")
    return Path(run) / "checkpoints" / f"step-{steps[-1]:06d}"


def _explain_damage(folder: Path, error: Exception | str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"is damaged: {error}", where=folder, do="Remove this checkpoint, and resume from the previous one"
    )


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def _select(weights: Mapping[str, Tensor], *, heads: bool) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k.startswith(_HEADS) == heads}


def _take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _fill(network: Network, body: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
    network.load_state_dict({**body, **heads}, strict=True)


def _pack_optimizer(student: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    packed = {}
    for name, parameter in student.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            packed[f"{key}:{name}"] = value
    return packed


def _unpack_optimizer(student: Network, optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    parameters = dict(student.named_parameters())
    optimizer.state.clear()
    for key, value in packed.items():
        kind, name = key.split(":", 1)
        parameter = parameters[name]
        # AdamW keeps its step counter on the CPU unless it is fused; its moments are on the weights' device.
        moves = kind != "step" or bool(optimizer.defaults.get("fused"))
        optimizer.state[parameter][kind] = value.to(parameter.device) if moves else value

"""Full-state checkpoints: whole or absent, nothing pickled.

`checkpoints/step-N/` holds `student`, `teacher`, `heads` and `optimizer` as safetensors and `state.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dagman.errors import RunError
from dagman.method.networks import Network
from dagman.method.targets import Targets
from dagman.records.files import write_whole
from dagman.records.hashes import hash_file

FORMAT = 1
_HEADS = ("projectors.", "reconstruction.")


def list_checkpoints(run: str | Path) -> list[int]:
    """Steps at which there is a whole checkpoint, ascending."""
    found = (Path(run) / "checkpoints").glob("step-*/state.json")
    numbers = (p.parent.name.removeprefix("step-") for p in found)
    return sorted(int(number) for number in numbers if number.isdigit())


def read_state(run: str | Path) -> dict[str, Any]:
    """The values of the newest checkpoint's `state.json`.

    Raises:
        RunError: There is no checkpoint, or it is damaged or of another format version.
    """
    folder = _find_newest(run)
    try:
        values: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = values["format"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _explain_damage(folder, error) from None
    if version != FORMAT:
        raise RunError(f"is of checkpoint format {version}; this dagman reads {FORMAT}", where=folder)
    step = values.get("step")
    if not isinstance(step, int) or folder.name != f"step-{step:06d}":
        raise _explain_damage(folder, f"state.json is of step {step}")
    if not isinstance(values.get("log_temperatures"), dict) or not isinstance(values.get("checksums", {}), dict):
        raise _explain_damage(folder, "state.json lacks its temperatures or checksums")
    return values


def save_checkpoint(
    run: str | Path,
    step: int,
    student: Network,
    teacher: Network | None,
    optimizer: torch.optim.Optimizer,
    targets: Targets,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write everything a resume needs, then remove all but the newest `keep`."""
    tensors, log_temperatures = targets.state()
    files = {
        "student": _select(student, heads=False),
        "teacher": _select(teacher, heads=False) if teacher else {},
        "heads": {
            **{f"student.{k}": v for k, v in _select(student, heads=True).items()},
            **({f"teacher.{k}": v for k, v in _select(teacher, heads=True).items()} if teacher else {}),
            **{f"targets.{k}": v for k, v in tensors.items()},
        },
        "optimizer": _pack_optimizer(student, optimizer),
    }
    folder = Path(run) / "checkpoints" / f"step-{step:06d}"
    with write_whole(folder) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in content.items()}, temporary / f"{name}.safetensors")
        checksums = {name: hash_file(temporary / f"{name}.safetensors") for name in files}
        values = {"format": FORMAT, "step": step, "log_temperatures": log_temperatures, "checksums": checksums, **state}
        (temporary / "state.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(Path(run) / "checkpoints" / f"step-{old:06d}")
    return folder


def load_checkpoint(
    run: str | Path, student: Network, teacher: Network | None, optimizer: torch.optim.Optimizer, targets: Targets
) -> dict[str, Any]:
    """Put the newest checkpoint's state into the given objects; the values of `state.json`.

    Raises:
        RunError: There is none, or it is damaged or of another format version.
    """
    values, files = read_checkpoint(run)
    try:
        _fill(student, files["student"], _take(files["heads"], "student."))
        if teacher is not None:
            _fill(teacher, files["teacher"], _take(files["heads"], "teacher."))
        targets.restore(_take(files["heads"], "targets."), values["log_temperatures"])
        _unpack_optimizer(student, optimizer, files["optimizer"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise _explain_damage(_find_newest(run), error) from None
    return values


def read_checkpoint(run: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The newest checkpoint: the values of `state.json`, and the tensors of its files by the files' names.

    Raises:
        RunError: There is none, or it is damaged or of another format version.
    """
    values, folder = read_state(run), _find_newest(run)
    for name, checksum in values.get("checksums", {}).items():
        path = folder / f"{name}.safetensors"
        if path.is_file() and hash_file(path) != checksum:
            raise _explain_damage(folder, f"the checksum of {path.name} differs from that in state.json")
    try:
        return values, {name: load_file(folder / f"{name}.safetensors") for name in ("student", "teacher", "heads", "optimizer")}
    except (SafetensorError, OSError) as error:
        raise _explain_damage(folder, error) from None


def _find_newest(run: str | Path) -> Path:
    steps = list_checkpoints(run)
    if not steps:
        raise RunError("holds no checkpoint to go on from", where=run, do="Start anew in another folder")
    return Path(run) / "checkpoints" / f"step-{steps[-1]:06d}"


def _explain_damage(folder: Path, error: Exception | str) -> RunError:
    return RunError(f"is damaged: {error}", where=folder, do="Remove this checkpoint and resume from the one before")


def _select(network: Network, *, heads: bool) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if k.startswith(_HEADS) == heads}


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
        # AdamW keeps its step counter on the CPU unless it is fused, its moments beside the weights.
        moves = kind != "step" or bool(optimizer.defaults.get("fused"))
        optimizer.state[parameter][kind] = value.to(parameter.device) if moves else value

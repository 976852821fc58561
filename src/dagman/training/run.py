"""The run folder: everything in it is read and written here.

```
RUN/  settings.toml     every setting, resolved
      command.json      version, command, fingerprints, environment
      metrics.jsonl     a row per step: losses, lr, momentum, temperatures; nothing that varies between repetitions
      monitors.jsonl    a row per evaluation of the fixed validation views
      timing.jsonl      a row per step: seconds, views and voxels per second, waiting, memory, bytes exchanged between ranks
      notes.jsonl       warnings and choices, in plain words
      summary.json      the last evaluation in words: status, verdicts and what to try, losses
      gallery/          validation views, masks, reconstructions, attention as safetensors
      checkpoints/      full state (dagman.training.checkpoints)
      broken/           steps whose loss was not finite, saved for `dagman replay` (dagman.training.recovery.broken)
      unreadable.jsonl  a row per scan that could not be read: step, scan, reason
      checked.bin       which files the run's processes have checked, while it lasts
      encoder/          the result of the run (dagman.encoder.folder)
      tensorboard/      the same curves for TensorBoard
```
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from dagman.errors import RunError
from dagman.records.files import write_json, write_text, write_whole
from dagman.records.journal import append_row, keep_rows, read_rows
from dagman.records.names import suggest_path
from dagman.settings import Settings
from dagman.settings.presets import validate_settings
from dagman.settings.resolution import list_unresolved
from dagman.training.monitoring.verdicts import Verdict, sum_up

_RESTORE = "Restore it from a copy, or start another run"
_DEFAULTS_BEFORE = {"train.skip_hidden": False}
"""What a setting was before its default changed: so were runs that were recorded without it."""
_SOURCES = "sources"
_METRICS = frozenset({"total", "lr", "grad_norm"})
LOSSES = ("total", "amip", "ampd", "aitd", "gitd")
_TIMINGS = frozenset({"seconds", "views_per_s", "voxels_per_s", "waiting_share", "memory_gib"})


class Run:
    """Reads a run folder; each access to a property reads the file again, so that a running run can be watched.

    Attributes:
        stopped: Why the call of `pretrain` that returned this ended before the last step: "interrupt", "requeue", or None.

    Raises:
        RunError: `path` is not a run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stopped: str | None = None
        if not (self.path / "settings.toml").is_file():
            do = "Give the folder that `dagman pretrain --out` wrote"
            if not self.path.exists():
                raise RunError("does not exist", where=path, do=suggest_path(path, do))
            raise RunError("is not a run: settings.toml is missing", where=path, do=do)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, step={self.last_step})"

    @property
    def settings(self) -> Settings:
        """The settings of the run, resolved. Raises RunError if the file is damaged or truncated."""
        path = self.path / "settings.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"is damaged: {error}", where=path, do=_RESTORE) from None
        for key, before in _DEFAULTS_BEFORE.items():
            section, _, name = key.rpartition(".")
            if isinstance(held := values.get(section), dict):
                held.setdefault(name, before)
        settings = validate_settings(values, where=path)
        # A truncated file may still be valid TOML, and what it lost would silently become the defaults.
        sections = [name for name, field in Settings.model_fields.items() if isinstance(field.annotation, type)]
        missing = [name for name in sections if name not in values] + list_unresolved(settings)
        if missing:
            raise RunError(f"is damaged: it lacks {', '.join(missing)}", where=path, do=_RESTORE)
        return settings

    @property
    def command(self) -> dict[str, Any]:
        """`command.json`, or nothing while the run has not begun."""
        path = self.path / "command.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        except (ValueError, TypeError) as error:
            raise RunError(f"is damaged: {error}", where=path, do="Remove it; the run does not need it") from None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl`."""
        return _read_steps(self.path / "metrics.jsonl", _METRICS)

    @property
    def monitors(self) -> list[dict[str, Any]]:
        """Rows of `monitors.jsonl`."""
        return _read_steps(self.path / "monitors.jsonl")

    @property
    def timings(self) -> list[dict[str, Any]]:
        """Rows of `timing.jsonl`."""
        return _read_steps(self.path / "timing.jsonl", _TIMINGS)

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """Warnings as rows of step, key and text, each key once."""
        return [row for row in _read_notes(self.path) if row["key"] != "choice"]

    @property
    def choices(self) -> list[str]:
        """What was printed at the start: the run's summary, and each choice with its reason."""
        return [row["text"] for row in _read_notes(self.path) if row["key"] == "choice"]

    @property
    def last_step(self) -> int:
        """Steps done."""
        # Steps that were skipped have a row without losses.
        rows = _read_steps(self.path / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0

    @property
    def encoder_folder(self) -> Path:
        """The folder of the encoder."""
        return self.path / "encoder"

    @property
    def gallery_steps(self) -> list[int]:
        """Steps at which validation views were saved."""
        return sorted(int(p.stem.removeprefix("step-")) for p in (self.path / "gallery").glob("step-*.safetensors"))

    def gallery(self, step: int) -> dict[str, np.ndarray]:
        """The arrays saved at a step: view, hidden, attention, attention_heads, reconstruction (as far as they exist), spacing."""
        try:
            return load_file(self.path / "gallery" / f"step-{step:06d}.safetensors")
        except SafetensorError as error:
            do = "Remove this file; the report is drawn without it"
            raise RunError(f"gallery of step {step} is damaged: {error}", where=self.path, do=do) from None
        except FileNotFoundError:
            kept = ", ".join(map(str, self.gallery_steps)) or "none"
            raise RunError(f"has no saved views of step {step}", where=self.path, do=f"Steps with views: {kept}") from None

    def gallery_sources(self, step: int) -> list[dict[str, str]]:
        """Scan, patient and modality of each view saved at a step; empty if they were not saved, or cannot be read."""
        try:
            with safe_open(self.path / "gallery" / f"step-{step:06d}.safetensors", "np") as file:
                sources = json.loads((file.metadata() or {}).get(_SOURCES, "[]"))
        except (OSError, ValueError, SafetensorError):
            return []
        named = [one for one in sources if isinstance(one, dict)]
        return [{key: str(one.get(key, "")) for key in ("scan", "patient", "modality")} for one in named]


def write_settings(folder: Path, settings: Settings) -> None:
    """Write `settings.toml`, with every setting resolved."""
    write_text(folder / "settings.toml", tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))


def write_note(folder: Path, step: int, key: str, text: str) -> None:
    """Add a warning or (key "choice") a choice."""
    append_row(folder / "notes.jsonl", {"step": step, "key": key, "text": text})


def write_summary(folder: Path, step: int, steps: int, losses: Mapping[str, Any], judged: Sequence[Verdict]) -> None:
    """Write `summary.json`: the progress of the run, its last losses, and the verdicts with what to try."""
    values = {"step": step, "steps": steps, "losses": pick_losses(losses), **sum_up(judged).to_json()}
    write_json(folder / "summary.json", {**values, "verdicts": [verdict.to_json() for verdict in judged]})


def pick_losses(row: Mapping[str, Any]) -> dict[str, float]:
    """The total and the losses of a row of `metrics.jsonl`."""
    return {name: row[name] for name in LOSSES if name in row}


def write_gallery(folder: Path, step: int, arrays: dict[str, np.ndarray], sources: Sequence[Mapping[str, str]] = ()) -> None:
    """Save validation views of a step; sources: scan, patient and modality of each."""
    about = {_SOURCES: json.dumps([dict(one) for one in sources])}
    with write_whole(folder / "gallery" / f"step-{step:06d}.safetensors") as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, about)


_KEPT = ("choice", "idle", "settings", "damaged", "skipped", "unreadable")
"""Prefixes of the keys of notes that stay, whatever step a run returns to."""


def rewind_run(folder: Path, step: int, warned: Collection[str]) -> None:
    """Drop what a killed run had written after the checkpoint at `step`.

    The evaluation of the validation views at `step` itself comes after the checkpoint, and is repeated. Warnings whose keys the
    checkpoint holds as `warned` stay.
    """
    for name, last in (("metrics.jsonl", step), ("timing.jsonl", step), ("monitors.jsonl", step - 1)):
        if (folder / name).exists():
            keep_rows(folder / name, partial(_is_until, last))
    if (folder / "notes.jsonl").exists():
        keep_rows(
            folder / "notes.jsonl",
            lambda row: row.get("key") in warned or str(row.get("key")).startswith(_KEPT),
        )
    for path in (folder / "gallery").glob("step-*.safetensors"):
        if int(path.stem.removeprefix("step-")) >= step:
            path.unlink()
    # Half-written files of a process that was killed, and those that they were to replace.
    places = (folder, folder / "gallery", folder / "checkpoints", folder / "broken")
    for path in (p for where in places for kind in ("partial", "old") for p in where.glob(f".*.{kind}.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_until(last: int, row: dict[str, Any]) -> bool:
    return isinstance(row.get("step"), int) and row["step"] <= last


def _read_steps(path: Path, numbers: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Rows that have a step, without damaged ones, which lack a number that every row has."""
    rows = [row for row in read_rows(path) if isinstance(row.get("step"), int)]
    return [row for row in rows if all(isinstance(row.get(name), int | float) for name in numbers)]


def _read_notes(folder: Path) -> list[dict[str, Any]]:
    """Notes, without damaged ones."""
    types = {"step": int, "key": str, "text": str}
    rows = read_rows(folder / "notes.jsonl")
    return [row for row in rows if all(isinstance(row.get(name), kind) for name, kind in types.items())]

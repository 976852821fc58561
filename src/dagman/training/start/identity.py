"""What makes two processes, or two days, one run: the settings that decide the weights, the scans, their grids, the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dagman import __version__
from dagman.errors import RunError
from dagman.records.hashes import hash_bytes
from dagman.settings import Settings
from dagman.store.manifest import Store
from dagman.training.parallel.group import Group
from dagman.training.views import Part

LATER_SETTINGS = {"train.compile": "auto", "train.read_after": "auto", "train.skip_hidden": False}
"""Settings that came after the first release whose runs are resumed, with the value that changes nothing."""
FREE_TO_CHANGE = frozenset(
    f"train.{name}"
    for name in (
        "device",
        "workers",
        "checkpoint_every",
        "keep_checkpoints",
        "many_passes",
        "rank_timeout",
        "skips",
        "unreadable",
        "track",
    )
)
"""Settings that a resume may change: they do not change the weights."""


def refuse_other_store(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RunError where a run's checkpoint (`before`) is of other scans, settings or grids than are there `now`."""
    if before["store"] != now["store"]:
        raise RunError(
            f"was trained on {before['scans']} scans, which are not the {now['scans']} of this store",
            where=out,
            do="Resume with the same store, or begin in another folder",
        )
    if before.get("settings", now["settings"]) != now["settings"]:
        raise RunError(
            "settings.toml was changed after the last checkpoint was written",
            where=out,
            do="Restore the run's own settings, or begin in another folder",
        )
    if before.get("grid", now["grid"]) != now["grid"]:
        raise RunError(
            "was trained on the same scans prepared in another way, so that views would lie elsewhere",
            where=out,
            do="Resume with the same store, or begin in another folder",
        )


def hash_scans(usable: Sequence[str], parts: Sequence[Part]) -> str:
    """A fingerprint of which scans are read, and with several stores of each one's scans and weight."""
    mixed = [] if len(parts) == 1 else [f"{part.weight}: {' '.join(part.scans)}" for part in parts]
    return hash_bytes("\n".join([*usable, *mixed]).encode())


def hash_settings(settings: Settings) -> str:
    """A fingerprint of the settings that decide the weights."""
    values = settings.model_dump(mode="json")
    # The modality decides which scans are read, and those have a fingerprint of their own, which earlier runs hold, too.
    for key in FREE_TO_CHANGE | {"view.modality"}:
        section, _, name = key.rpartition(".")
        del values[section][name]
    # Settings of a later release, at what they were before: runs of an earlier one hold a fingerprint without them.
    for key, before in LATER_SETTINGS.items():
        section, _, name = key.rpartition(".")
        if values[section][name] == before:
            del values[section][name]
    return hash_bytes(json.dumps(values, sort_keys=True).encode())


def hash_grids(store: Store, usable: Sequence[str]) -> str:
    """A fingerprint of where in its scan each stored voxel lies, and of what its value means."""
    chosen = set(usable)
    rows = sorted((row.id, row.shape, row.crop_start, row.crop_stop, row.scale) for row in store.rows if row.id in chosen)
    return hash_bytes(repr(rows).encode())


def list_changed_precision(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What rounds differently from the process that wrote the checkpoint."""
    return [
        f"{name}: {now[name]}, but {before[name]} up to here, so the weights will differ from a run in one go."
        for name in ("precision", "threads")
        if before.get(name, now[name]) != now[name]
    ]


def refuse_other_ranks(group: Group, settings: Settings, state: Mapping[str, Any], kernels: str) -> None:
    """Raise RunError where the ranks are not of one run: other settings, scans, versions or arithmetic."""
    values = settings.model_dump(mode="json")
    nested = {name: value for name, value in values.items() if isinstance(value, dict)}
    flat = {key: value for key, value in values.items() if key not in nested}
    flat |= {f"{name}.{key}": value for name, section in nested.items() for key, value in section.items()}
    versions = {"dagman": __version__, "torch": torch.__version__}
    found = {name: state[name] for name in ("scans", "precision")} | {
        "the list of scans": state["store"],
        "their grid": state["grid"],
    }
    group.compare({**versions, **flat, **found, "kernels": kernels})

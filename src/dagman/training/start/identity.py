"""What makes two processes, or two days, one run: the settings that decide the weights, the scans, their grids, the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dagman import __version__
from dagman.errors import RunError
from dagman.records.counts import count_noun
from dagman.records.hashes import hash_bytes
from dagman.settings import Settings
from dagman.store.manifest import Store
from dagman.training.parallel.group import Group
from dagman.training.views import Part

LATER_SETTINGS = {
    "train.kernels": "auto",
    "train.recompute": 0,
    "train.compile": "auto",
    "train.read_after": "auto",
    "train.skip_hidden": False,
}
"""Settings that came after runs had been recorded by a fingerprint of them, in their order, with the value that changes nothing."""
ROUNDING = frozenset(f"train.{name}" for name in ("precision", "micro_batch", *(key.partition(".")[2] for key in LATER_SETTINGS)))
"""Settings that change how numbers are rounded and nothing else: a resume may change them, and says so."""
FAST_PATHS = ("kernels", "compile", "read after", "hidden windows")
"""What is chosen for a machine besides its precision, by the names of the choices."""
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


def refuse_other_store(out: Path, before: Mapping[str, Any], now: Mapping[str, Any], settings: Settings) -> None:
    """Raise RunError where a run's checkpoint (`before`) is of other scans, settings or grids than are there `now`."""
    if before["store"] != now["store"]:
        raise RunError(
            f"was trained on {before['scans']} scans, which are not the {now['scans']} of this store",
            where=out,
            do="Resume with the same store, or start in another folder",
        )
    if changed := _list_changed(before.get("settings"), settings):
        raise RunError(
            f"was changed after the last checkpoint was written: {'; '.join(changed)}",
            where=out,
            do="Restore the run's own settings, or start in another folder",
        )
    if before.get("grid", now["grid"]) != now["grid"]:
        raise RunError(
            "was trained on the same scans prepared differently, so views would be cropped elsewhere",
            where=out,
            do="Resume with the same store, or start in another folder",
        )


def hash_scans(usable: Sequence[str], parts: Sequence[Part]) -> str:
    """A fingerprint of which scans are read, and with several stores of each one's scans and weight."""
    mixed = [] if len(parts) == 1 else [f"{part.weight}: {' '.join(part.scans)}" for part in parts]
    return hash_bytes("\n".join([*usable, *mixed]).encode())


def list_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide the weights, to rounding, by key."""
    # The modality decides which scans are read, and those have a fingerprint of their own, which earlier runs hold, too.
    left_out = FREE_TO_CHANGE | ROUNDING | {"view.modality"}
    return {key: value for key, value in _flatten(settings).items() if key not in left_out}


def list_changed_rounding(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What rounds differently from the process that wrote the checkpoint."""
    return [
        f"{name}: {now[name]}, but {before[name]} up to here, so the weights will differ from those of an uninterrupted run."
        for name in ("precision", "threads", *FAST_PATHS, "micro-batch")
        if before.get(name, now.get(name)) != now.get(name)
    ]


def refuse_other_ranks(group: Group, settings: Settings, state: Mapping[str, Any]) -> None:
    """Raise RunError where the ranks are not of one run: other settings, scans, versions or arithmetic."""
    versions = {"dagman": __version__, "torch": torch.__version__}
    fingerprint = hash_bytes(f"{state['store']} {state['grid']}".encode())[:8]
    store = f"{count_noun(state['scans'], 'scan')} with fingerprint {fingerprint}"
    found = {name: state[name] for name in ("precision", *FAST_PATHS)}
    group.compare({**versions, **_flatten(settings), "store": store, **found})


def hash_grids(store: Store, usable: Sequence[str]) -> str:
    """A fingerprint of where in its scan each stored voxel lies, and of what its value means."""
    chosen = set(usable)
    rows = sorted((row.id, row.shape, row.crop_start, row.crop_stop, row.scale) for row in store.rows if row.id in chosen)
    return hash_bytes(repr(rows).encode())


def _list_changed(before: Mapping[str, Any] | str | None, settings: Settings) -> list[str]:
    """Settings that differ from those of a checkpoint, in words.

    before: As `list_settings` gave them then; what is absent there came later, and was at its default. Or a fingerprint of all, as
    earlier runs hold it.
    """
    if before is None:
        return []
    if isinstance(before, str):
        return [] if before in _hash_as_before(settings) else ["settings.toml"]
    defaults = _flatten(Settings())
    return [
        f"{key} from {before.get(key, defaults[key])} to {value}"
        for key, value in list_settings(settings).items()
        if before.get(key, defaults[key]) != value
    ]


def _hash_as_before(settings: Settings) -> set[str]:
    """The fingerprints under which earlier releases would have recorded these settings, which knew fewer of them.

    A setting of `ROUNDING` that is at its default there may have been changed since.
    """
    hashes = set()
    for at_first in ({}, LATER_SETTINGS, LATER_SETTINGS | {"train.precision": "auto"}):
        values = {key: value for key, value in (_flatten(settings) | at_first).items() if key not in FREE_TO_CHANGE}
        del values["view.modality"]
        for key in [None, *reversed(LATER_SETTINGS)]:
            if key is not None and values[key] == LATER_SETTINGS[key]:
                del values[key]
            hashes.add(hash_bytes(json.dumps(_nest(values), sort_keys=True).encode()))
    return hashes


def _flatten(settings: Settings) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(mode="json").items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested

"""The settings of a run: as requested, as an existing run has them, and as the store decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dagman.errors import DagmanError, RunError
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.settings.resolution import list_idle_settings
from dagman.store.manifest import Store
from dagman.store.upkeep.remarks import describe_mixture
from dagman.training.run import Run
from dagman.training.start.adoption import adopt_settings, choose_presets
from dagman.training.start.identity import FREE_TO_CHANGE, ROUNDING
from dagman.training.start.source import Source, resolve_source
from dagman.training.views import select_rows


def load_asked(
    size: str | None, method: str | None, config: str | Path | None, assignments: Iterable[str], continue_from: str | None
) -> tuple[Settings, frozenset[str], Source | None, DagmanError | None]:
    """Settings, the keys that were given, what the run continues from, and the error if they are rejected.

    The error is returned, not raised, so that one rank reports it for all.
    """
    try:
        start = None if continue_from is None else resolve_source(continue_from)
        if start is not None:
            size, method = choose_presets(start, size, method)
        settings, given = load_settings(size, method, config=config, assignments=assignments)
        return settings if start is None else adopt_settings(settings, given, start), given, start, None
    except DagmanError as error:
        return Settings(), frozenset(), None, error


def settle_settings(
    out: Path, settings: Settings, given: frozenset[str], *, exists: bool, resume: bool
) -> tuple[Settings, list[str], list[str]]:
    """Resolved settings, the reasons for automatic choices, and settings without effect; exists: whether the run exists already."""
    if out.exists() and not out.is_dir():
        raise RunError("is a file", where=out, do="Choose another folder for --out")
    if resume and not exists:
        raise RunError("holds no run to resume", where=out, do="Omit --resume to start one, or give the folder of a run")
    if not exists and out.exists() and any(p.name not in {".lock", "store"} for p in out.iterdir()):
        raise RunError("exists and is not a run", where=out, do="Choose another folder for --out")
    if exists:
        return _settle_with_run(out, settings, given), [], []
    settings, reasons = resolve_settings(settings)
    return settings, reasons, list_idle_settings(settings, given)


def _settle_with_run(out: Path, asked: Settings, given: frozenset[str]) -> Settings:
    """The run's settings, with requested changes of those that may change; other differences are rejected by name."""
    stored = Run(out).settings
    values = stored.model_dump()
    differing = []
    for key in sorted(given):
        wanted, had = _look_up(asked.model_dump(), key), _look_up(values, key)
        if wanted in ("auto", had):
            continue
        if key in FREE_TO_CHANGE | ROUNDING:
            section, _, name = key.rpartition(".")
            values[section][name] = wanted
        else:
            differing.append(f"{key} is {had} in the run and {wanted} here")
    if differing:
        raise RunError("; ".join(differing), where=out, do="Resume with the run's own settings, or choose another folder")
    return Settings.model_validate(values)


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def settle_spacing(settings: Settings, store: Store, *, asked: bool) -> Settings:
    """The settings with the store's spacing, which is that of the views; raises RunError if another one was requested."""
    wanted, found = settings.view.spacing, store.preparation.spacing
    if asked and wanted != found:
        raise RunError(
            f"view.spacing = {wanted:g}, but the store was prepared at {found:g} mm",
            where=store.path,
            do=f"Set view.spacing={found:g}, or prepare the scans again with --spacing {wanted:g}",
        )
    return settings.model_copy(update={"view": settings.view.model_copy(update={"spacing": found})})


def settle_modality(settings: Settings, store: Store) -> Settings:
    """The settings with the store's modality. Raises RunError for a store of several modalities if none was chosen."""
    held = {row.modality for row in store.rows}
    if settings.view.modality != "auto":
        select_rows(store.rows, settings.view, where=store.path)
        return settings
    if len(held) > 1:
        do = "Choose what to train on: --modality ct, mr, or all"
        raise RunError(f"the store holds {describe_mixture(store.rows)} scans", where=store.path, do=do)
    chosen = next((name.lower() for name in held if name in ("CT", "MR")), "all")
    return settings.model_copy(update={"view": settings.view.model_copy(update={"modality": chosen})})

"""Settings that a store decides: the spacing of its voxels, and the modality of its scans."""

from __future__ import annotations

from dagman.errors import RunError
from dagman.settings import Settings
from dagman.store.manifest import Store
from dagman.store.upkeep.remarks import describe_mixture
from dagman.training.views import select_rows


def settle_spacing(settings: Settings, store: Store, *, asked: bool) -> Settings:
    """The settings with the store's spacing, which is that of the views; another one that was asked for is refused."""
    wanted, found = settings.view.spacing, store.preparation.spacing
    if asked and wanted != found:
        raise RunError(
            f"view.spacing = {wanted:g}, but the store was prepared at {found:g} mm",
            where=store.path,
            do=f"Set view.spacing={found:g}, or prepare the scans again with --spacing {wanted:g}",
        )
    return settings.model_copy(update={"view": settings.view.model_copy(update={"spacing": found})})


def settle_modality(settings: Settings, store: Store) -> Settings:
    """The settings with the store's modality; a store of several is read only as the user asks. Raises RunError."""
    held = {row.modality for row in store.rows}
    if settings.view.modality != "auto":
        select_rows(store.rows, settings.view, where=store.path)
        return settings
    if len(held) > 1:
        do = "Choose what to train on: --modality ct, mr, or all"
        raise RunError(f"the store holds {describe_mixture(store.rows)} scans", where=store.path, do=do)
    chosen = next((name.lower() for name in held if name in ("CT", "MR")), "all")
    return settings.model_copy(update={"view": settings.view.model_copy(update={"modality": chosen})})

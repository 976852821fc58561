"""Selects scans of a store by patient and modality."""

from __future__ import annotations

from collections.abc import Collection

from dagman.errors import StoreError
from dagman.records.names import suggest_name
from dagman.store.manifest import ManifestRow, Store


def select_rows(store: Store, *, patients: Collection[str] = (), modality: str | None = None) -> list[ManifestRow]:
    """Select rows by patient and modality, in the store's order.

    Args:
        store: the store.
        patients: pseudonyms; all patients if empty.
        modality: in upper or lower case; all modalities if None.

    Raises:
        StoreError: if a patient or the modality has no scan in the store.
    """
    known = {row.patient for row in store.rows}
    for patient in patients:
        if patient not in known:
            raise StoreError(f"holds no scans of patient {patient!r}", where=store.path, do="dagman store list shows them all")
    modalities = {row.modality.lower() for row in store.rows}
    if modality is not None and modality.lower() not in modalities:
        do = suggest_name(modality.lower(), modalities)
        raise StoreError(f"holds no scans of modality {modality!r}", where=store.path, do=do)
    return [
        row
        for row in store.rows
        if (not patients or row.patient in patients) and (modality is None or row.modality.lower() == modality.lower())
    ]

"""Notes of a preparation on what matters for later runs: small scans, mixed modalities, assumed patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from dagman.records.counts import count_noun, list_some
from dagman.settings.presets import list_presets, load_settings
from dagman.store.manifest import ManifestRow
from dagman.tables.patients import note_assumed

_SHOWN = 10
"""Number of scans named in a note."""


def remark_on_scans(given: Mapping[str, ManifestRow], rows: Iterable[ManifestRow]) -> list[str]:
    """Return notes on scans.

    Args:
        given: the scans of this preparation, by source.
        rows: all scans of the store.
    """
    named = dict(zip(_shorten(given), given.values(), strict=True))
    assumed = sum(row.patient_from == "assumed" for row in given.values())
    return [*note_assumed(assumed, len(given)), *_remark_on_sizes(named), *_remark_on_modalities(named, list(rows))]


def describe_mixture(rows: Iterable[ManifestRow]) -> str:
    """Return the number of scans per modality, such as "3 CT and 1 MR"."""
    counts = Counter(row.modality for row in rows)
    return " and ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _remark_on_sizes(given: Mapping[str, ManifestRow]) -> list[str]:
    """Return one note per model size, on the scans that are too small for its views but not for those of smaller models."""
    notes = []
    remaining = dict(given)
    views = {name: load_settings(name)[0].view for name in list_presets("sizes")}
    largest = max(views, key=lambda name: views[name].side)
    for size, view in sorted(views.items(), key=lambda entry: entry[1].side):
        small = {name: row for name, row in remaining.items() if min(row.shape) < view.least}
        if small:
            shown = list_some((f"{name} ({' x '.join(map(str, row.shape))} voxels)" for name, row in small.items()), limit=_SHOWN)
            spacing = next(iter(small.values())).spacing[0]
            scans = count_noun(len(small), "scan is", "scans are")
            notes.append(
                f"{scans} too small for a view of {view.side} voxels at {spacing:g} mm, and excluded by pretrain --size {size}"
                f"{'' if size == largest else ' and larger'} ({view.least} voxels are needed along each axis): {shown}"
            )
        remaining = {name: row for name, row in remaining.items() if name not in small}
    return notes


def _remark_on_modalities(given: Mapping[str, ManifestRow], rows: list[ManifestRow]) -> list[str]:
    counts = Counter(row.modality for row in rows)
    if len(counts) < 2:
        return []
    rarest = min(counts, key=lambda name: (counts[name], name))
    shown = list_some((name for name, row in given.items() if row.modality == rarest), limit=_SHOWN)
    of_which = f" ({rarest}: {shown})" if shown else ""
    return [f"the store holds {describe_mixture(rows)}{of_which}: dagman pretrain will need --modality ct, mr or all"]


def _shorten(sources: Iterable[str]) -> list[str]:
    """Return file names if they distinguish all sources, otherwise the sources themselves."""
    sources = list(sources)
    names = [Path(source).name for source in sources]
    return names if len(set(names)) == len(names) else sources

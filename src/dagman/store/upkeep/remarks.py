"""What a preparation remarks on, so that it is known before a run: small scans, mixed modalities, assumed patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from dagman.records.counts import count_noun, list_some
from dagman.settings.presets import list_presets, load_settings
from dagman.store.manifest import ManifestRow
from dagman.tables.patients import note_assumed

_SHOWN = 10
"""Scans named in one sentence."""


def remark_on_scans(given: Mapping[str, ManifestRow], rows: Iterable[ManifestRow]) -> list[str]:
    """Sentences on the scans given, by their sources, and on the store that holds `rows`."""
    named = dict(zip(given, _shorten(given), strict=True))
    assumed = sum(row.patient_from == "assumed" for row in given.values())
    return [
        *note_assumed(assumed, len(given)),
        *_remark_on_sizes({named[source]: row for source, row in given.items()}),
        *_remark_on_modalities({named[source]: row for source, row in given.items()}, list(rows)),
    ]


def describe_mixture(rows: Iterable[ManifestRow]) -> str:
    """How many scans there are of each modality: "3 CT and 1 MR"."""
    counts = Counter(row.modality for row in rows)
    return " and ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _remark_on_sizes(given: Mapping[str, ManifestRow]) -> list[str]:
    """One sentence a size of the model for the scans that its views are too large for, and no smaller size's."""
    notes = []
    left = dict(given)
    views = {name: load_settings(name)[0].view for name in list_presets("sizes")}
    largest = max(views, key=lambda name: views[name].side)
    for size, view in sorted(views.items(), key=lambda one: one[1].side):
        small = {name: row for name, row in left.items() if min(row.shape) < view.least}
        if small:
            shown = list_some((f"{name} ({' x '.join(map(str, row.shape))} voxels)" for name, row in small.items()), limit=_SHOWN)
            spacing = next(iter(small.values())).spacing[0]
            scans = count_noun(len(small), "scan is", "scans are")
            notes.append(
                f"{scans} too small for a view of {view.side} voxels at {spacing:g} mm, and excluded by pretrain --size {size}"
                f"{'' if size == largest else ' and larger'} ({view.least} voxels are needed along each axis): {shown}"
            )
        left = {name: row for name, row in left.items() if name not in small}
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
    """File names where they tell all sources apart, else the sources as they stand."""
    sources = list(sources)
    names = [Path(source).name for source in sources]
    return names if len(set(names)) == len(names) else sources

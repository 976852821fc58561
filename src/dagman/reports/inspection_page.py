"""The report of `dagman inspect`: a summary, pictures, and a row for each series, worst first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dagman.records.counts import count_noun
from dagman.reports.figures.planes import AXIAL
from dagman.reports.page import Block, DataTable, Figure, FigureGrid, Listing, Section, Text, Verdict, render_page
from dagman.reports.volumes import find_levels, list_levels
from dagman.scans.inspection import Inspection

MOST_PICTURES = 600
"""Pictures on one page; with more, browsers become slow."""
_MOST_REASONS = 8
_LEAST_PIXELS = 40
"""Smallest width and height of a picture, so that the orientation letters do not cover a thin scan; padded with black."""
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_UID = re.compile(r"#[\d.]{12,}([\d.]{8})")
_CELLS = ("modality", "size", "spacing_mm", "values", "patient")
_HEADINGS = ("series", "verdict", "notes", "modality", "size", "spacing (mm)", "values", "patient")


def render_inspection(
    rows: Sequence[Inspection], describe: Callable[[Inspection], Mapping[str, str]], *, lead: str, scans: Sequence[str]
) -> str:
    """Render the report as HTML.

    Args:
        rows: The inspected series.
        describe: Returns the cells of a row by column.
        lead: The counts, in one sentence.
        scans: Paths that were searched.
    """
    names = shorten_names([row.source for row in rows])
    ranked = sorted(zip(rows, names, strict=True), key=lambda pair: (rank_badness(pair[0]), pair[1]))
    sections = [
        Section("Summary", _sum_up(rows)),
        Section("Images, worst first", _show_pictures([(row, name) for row, name in ranked if row.picture is not None])),
        Section("All series, worst first", [_tabulate(ranked, describe)] if ranked else []),
    ]
    searched = ", ".join(f"`{scan}`" for scan in scans)
    return render_page("Inspection of scans", f"{lead} Searched: {searched}.", sections, footer="Made by `dagman inspect`.")


def rank_badness(row: Inspection) -> int:
    """Rank a series: 0 if rejected, 1 if accepted with notes, 2 if accepted without notes."""
    return 0 if not row.accepted else 1 if row.notes else 2


def shorten_names(sources: Sequence[str]) -> list[str]:
    """Shorten each path to as many of its last parts as distinguish it from all others."""
    parts = [PurePath(source).parts or (source,) for source in sources]
    shortened = ["/".join(own[-1:]) for own in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        counts = Counter(shortened)
        shortened = [name if counts[name] == 1 else "/".join(own[-depth:]) for name, own in zip(shortened, parts, strict=True)]
    short = [_UID.sub(r"#…\1", name) for name in shortened]
    return short if len(set(short)) == len(set(shortened)) else shortened


def state_notes(row: Inspection) -> str:
    """State why a series was rejected, or the notes about it; never empty."""
    notes = [row.reason] if row.reason else list(row.notes)
    if row.accepted and row.patient_from == "assumed":
        notes.append("names no patient: treated as a separate patient")
    return "; ".join(notes) or "no remarks"


def _sum_up(rows: Sequence[Inspection]) -> list[Block]:
    accepted = [row for row in rows if row.accepted]
    noted = [row for row in accepted if row.notes]
    refused = [row for row in rows if not row.accepted]
    blocks: list[Block] = []
    if refused:
        blocks.append(
            Verdict(
                "warn" if accepted else "bad", f"**{count_noun(len(refused), 'series', 'series')} of {len(rows)} cannot be used.**"
            )
        )
        blocks.append(_list_reasons([row.reason for row in refused]))
    if accepted:
        kinds = Counter(row.modality or "unknown modality" for row in accepted)
        modalities = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        blocks.append(
            Verdict("ok", f"{count_noun(len(accepted), 'series', 'series')} can be used: {modalities}. {_state_spacings(accepted)}")
        )
    if noted:
        blocks.append(Text(f"{len(noted)} of them with notes:"))
        blocks.append(_list_reasons([note for row in noted for note in row.notes]))
    return blocks


def _list_reasons(reasons: Sequence[str]) -> Listing:
    # Sentences that differ only in their numbers count as one reason.
    alike: dict[str, Counter[str]] = {}
    for reason in reasons:
        alike.setdefault(_NUMBER.sub("#", reason), Counter())[reason] += 1
    counts = sorted(alike.values(), key=Counter.total, reverse=True)
    shown = []
    for group in counts[:_MOST_REASONS]:
        others = " (other values in the others)" if len(group) > 1 else ""
        shown.append(f"{group.total()} × {group.most_common(1)[0][0].removeprefix('is ')}{others}")
    rest = len(counts) - _MOST_REASONS
    return Listing([*shown, *([f"and {rest} others, in the table below"] if rest > 0 else [])])


def _state_spacings(rows: Sequence[Inspection]) -> str:
    spacings = np.array([row.spacing_mm for row in rows if row.spacing_mm])
    if not len(spacings):
        return ""
    finest, coarsest = spacings.min(axis=1), spacings.max(axis=1)
    return f"Their smallest voxel dimensions are {_state_range(finest)} mm, their largest {_state_range(coarsest)} mm."


def _state_range(values: NDArray) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _show_pictures(rows: Sequence[tuple[Inspection, str]]) -> list[Block]:
    if not rows:
        return []
    cut = f" The first {MOST_PICTURES} of {len(rows)} are shown." if len(rows) > MOST_PICTURES else ""
    text = (
        "The middle axial slice, with the patient's left on the image's right and anterior at the top. CT is shown in a wide "
        f"window until another is chosen; other scans are scaled from their 1st to their 99th percentile.{cut}"
    )
    return [Text(text), FigureGrid([_draw_picture(row, name) for row, name in rows[:MOST_PICTURES]], narrow=True)]


def _draw_picture(row: Inspection, name: str) -> Figure:
    assert row.picture is not None
    ct = row.modality == "CT"
    if ct:
        grey = find_levels(row.picture, list_levels(row.picture, hounsfield=True))
    else:
        low, high = np.percentile(row.picture, (1, 99))
        grey = np.rint(np.clip((row.picture - low) / max(high - low, 1e-6), 0, 1) * 255)
    beyond = [(short // 2, short - short // 2) for short in (max(0, _LEAST_PIXELS - side) for side in grey.shape)]
    image = Image.fromarray(np.pad(grey.astype(np.uint8), beyond).T[::-1, ::-1].copy())
    width, height = image.size
    draw = ImageDraw.Draw(image)
    places = {"lm": (3, height / 2), "rm": (width - 3, height / 2), "ma": (width / 2, 2), "md": (width / 2, height - 2)}
    for (anchor, place), letter in zip(places.items(), (AXIAL.left, AXIAL.right, AXIAL.top, AXIAL.bottom), strict=True):
        draw.text(place, letter, fill=255, anchor=anchor, stroke_width=1, stroke_fill=0)
    buffer = BytesIO()
    image.save(buffer, format="png")
    patient = f", patient `{row.patient}`" if row.patient else ""
    notes = f": {'; '.join(row.notes)}" if row.notes else ""
    words, alt = f"`{name}`{patient}{notes}.", f"middle axial slice of {name}"
    return Figure(buffer.getvalue(), words, alt, scale=1.7, kind="slices windowed" if ct else "slices")


def _tabulate(ranked: Sequence[tuple[Inspection, str]], describe: Callable[[Inspection], Mapping[str, str]]) -> DataTable:
    cells = []
    for row, name in ranked:
        held = describe(row)
        cells.append([name, held["verdict"], state_notes(row), *(held[key] for key in _CELLS)])
    caption = "Names are shortened to what distinguishes them; `inspect.csv` has them in full, with formats and axes."
    return DataTable(_HEADINGS, cells, caption, filtered=True)

"""The viewer next to a report: all examples of the report in one file, and links to each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.evaluation.results import Results
from dagman.records.files import write_text
from dagman.reports.page import Links
from dagman.reports.run.pictures import find_modality
from dagman.reports.style import GREEN, ORANGE, SKY, YELLOW
from dagman.reports.viewer.layers import AttentionLayer, LabelLayer, coarsen_affine
from dagman.reports.viewer.page import Exhibit, render_viewers
from dagman.scans.affine import Affine
from dagman.scans.scan import Modality, Scan, narrow_voxels
from dagman.settings import Settings
from dagman.settings.tree import UNIT
from dagman.store.preparation import SCALED_RANGE
from dagman.tasks.inputs import examples as items
from dagman.tasks.segment import examples as scans

MOST_VOXELS = 12_000_000
"""Voxels of all scans in one file (about 15 MB), shared evenly among them; larger scans are downsampled by averaging."""


def write_viewer(page: Path, title: str, exhibits: Sequence[Exhibit]) -> None:
    """Write `PAGE-viewer.html` next to a page; no file is written if there are no exhibits."""
    if exhibits:
        write_text(name_viewer(page), render_viewers(title, exhibits, most=MOST_VOXELS // len(exhibits)))


def link_viewer(page: Path, exhibits: Sequence[Exhibit]) -> list[Links]:
    """Link to the exhibits; empty if the viewer's file is missing, such as when only the page was copied."""
    path = name_viewer(page)
    if not exhibits or not path.is_file():
        return []
    under = "HU" if all(exhibit.scan.modality == "CT" for exhibit in exhibits) else "value"
    size = path.stat().st_size / 1e6
    text = f"In three planes, with the {under} under the crosshair ({path.name}, {size:.0f} MB, next to this page):"
    return [Links(text, [(exhibit.title, f"{path.name}#{exhibit.name}") for exhibit in exhibits])]


def name_viewer(page: Path) -> Path:
    """Return the path of the viewer next to a page: `report-viewer.html` for `report.html`."""
    return page.with_name(f"{page.stem}-viewer.html")


def exhibit_scans(results: Results) -> list[Exhibit]:
    """Prepare the best, median and worst scan of a segmentation, cropped around the structures, with both sets of labels."""
    extra = results.summary.extra
    structures = {code: structure["name"] for code, structure in enumerate(extra["structures"], start=1)}
    # As in the report: a single structure has one colour for the model and another for the reader.
    lone = {"model": {1: ORANGE}, "reader": {1: GREEN}} if len(structures) == 1 else {"model": {}, "reader": {}}
    exhibits = []
    for kind, example in scans.read_examples(results.path, extra["examples"]).items():
        scan = _place(example.voxels, example.affine, example.modality)
        layers = [
            LabelLayer(labels=_place(codes, example.affine, "other"), names=structures, called=called, colors=lone[called])
            for called, codes in (("model", example.predicted), ("reader", example.truth))
        ]
        point = example.affine.to_world([example.point])[0]
        words = "The region around the structures; press m to switch between the model's and the reader's labels."
        exhibits.append(Exhibit(scan=scan, title=f"{kind}: {example.item}", name=kind, words=words, labels=layers, point=point))
    return exhibits


def exhibit_items(results: Results) -> list[Exhibit]:
    """Prepare the most and least certain items, with their structure and the attention averaged over heads."""
    exhibits: list[Exhibit] = []
    for number, example in enumerate(items.read_examples(results.path)[1], start=1):
        grid = Affine(np.diag([example.spacing] * 3 + [1.0]))
        # Voxels beyond the scan are mirrored padding for the network rather than anatomy.
        reach = example.within or [(0, size) for size in example.voxels.shape]
        box = tuple(slice(max(round(start), 0), round(stop)) for start, stop in reach)
        matrix = grid.matrix.copy()
        matrix[:3, 3] = grid.to_world([[part.start for part in box]])[0]
        affine = Affine(matrix)
        structure = _place(example.inside[box].astype(np.uint8), affine, "other")
        layer = LabelLayer(labels=structure, names={1: "the structure"}, colors={1: YELLOW})
        name = re.sub(r"\W+", "-", example.kind).strip("-")
        exhibits.append(
            Exhibit(
                scan=_place(example.voxels[box], affine, example.modality),
                title=f"{example.kind}: {example.name}",
                name=f"{name}-{number}",
                words="A resampled crop around the item; mm are relative to its first voxel.",
                attention=None if example.attention is None else _spread(example.attention[None], example.voxels.shape, grid),
                labels=[] if example.inside.all() else [layer],
            )
        )
    return exhibits


def exhibit_views(
    gallery: Mapping[str, NDArray], settings: Settings, sources: Sequence[Mapping[str, str]] = (), most: int = 4
) -> list[Exhibit]:
    """Prepare the views of a run with the attention of each head and the masked units.

    Args:
        gallery: Arrays of one step of the run's gallery.
        settings: Settings of the run.
        sources: Scan, patient and modality of each view; views of CT are shown in HU.
        most: Maximum number of views.
    """
    spacing = np.broadcast_to(np.asarray(gallery["spacing"], dtype=float).reshape(-1), 3)
    affine = Affine(np.diag([*spacing, 1.0]))
    exhibits = []
    for number, view in enumerate(gallery["view"][:most, 0], start=1):
        units = tuple(side // UNIT for side in view.shape)
        hidden = gallery["hidden"][number - 1].astype(np.int16).reshape(units)
        heads = gallery.get("attention_heads")
        mean = gallery.get("attention")
        maps = heads[number - 1] if heads is not None and number <= len(heads) else None if mean is None else mean[number - 1][None]
        attention = None
        if maps is not None:
            attention = _spread((maps * maps.shape[-1]).reshape(-1, *units), view.shape, affine)
        masked = _place(hidden, coarsen_affine(affine, (UNIT,) * 3), "other")
        modality = find_modality(sources, number, settings)
        low, high = SCALED_RANGE if modality == "MR" else (settings.view.low, settings.view.high)
        values = f"{low:g} to {high:g}, the 0.5 and 99.5 percentile of its scan" if modality == "MR" else f"{low:g} to {high:g} HU"
        voxels = np.rint(low + view * (high - low)).astype(np.int16)
        exhibits.append(
            Exhibit(
                scan=_place(voxels, affine, modality),
                title=f"view {number}",
                name=f"view-{number}",
                words=f"A view of the validation set, cut off at {values}; mm count from its first voxel.",
                attention=attention,
                labels=[LabelLayer(labels=masked, names={1: "masked units"}, colors={1: SKY})],
                window=(low, high),
            )
        )
    return exhibits


def _place(voxels: NDArray, affine: Affine, modality: str) -> Scan:
    known: dict[str, Modality] = {"CT": "CT", "MR": "MR"}
    return Scan(voxels=narrow_voxels(voxels), affine=affine, modality=known.get(modality, "other"), patient="", source="")


def _spread(heads: NDArray, shape: Sequence[int], affine: Affine) -> AttentionLayer:
    """Place attention maps (H x y z), whose units divide a crop of `shape` voxels evenly."""
    steps = [size / count for size, count in zip(shape, heads.shape[1:], strict=True)]
    return AttentionLayer(heads=np.asarray(heads, dtype=np.float32), affine=coarsen_affine(affine, steps))

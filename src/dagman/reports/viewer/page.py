"""Render the viewer: scans, shown one at a time, with attention, labels and marks as overlays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from dagman.reports.assets import read_asset
from dagman.reports.figures.windows import WINDOWS, Window, choose_window
from dagman.reports.page import allow_script
from dagman.reports.viewer.layers import (
    AttentionLayer,
    LabelLayer,
    coarsen_affine,
    describe_attention,
    describe_labels,
    encode_volume,
    state_attention,
)
from dagman.reports.volumes import choose_steps, shrink_volume
from dagman.scans.scan import Scan, reorient_scan
from dagman.tables.marks import Mark

MOST_VOXELS = 16_000_000
"""Voxels of a scan in the file (about 15 to 30 MB); larger scans are downsampled by averaging blocks."""
_AIR_HU = -950
"""Voxels below are air around the body, and are ignored when the window is chosen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """A scan with its overlays.

    Attributes:
        scan: The scan.
        title: Entry in the list of scans.
        name: Fragment identifier for links (`viewer.html#name`).
        words: Remark below the scan.
        attention: Attention over the scan.
        labels: Label maps over the scan.
        marks: Marked points.
        point: Position in RAS mm at which it opens; None for the centre.
        window: Initial window; None to choose it by the intensities of the scan.
    """

    scan: Scan = field(repr=False)
    title: str
    name: str = "scan"
    words: str = ""
    attention: AttentionLayer | None = None
    labels: Sequence[LabelLayer] = ()
    marks: Sequence[Mark] = ()
    point: Sequence[float] | None = None
    window: Window | None = None


def render_viewer(exhibit: Exhibit, *, most: int = MOST_VOXELS, made_by: str = "dagman") -> str:
    """Render the viewer of one scan as HTML; the arguments are those of `render_viewers`."""
    return render_viewers(exhibit.title, [exhibit], most=most, made_by=made_by)


def render_viewers(title: str, exhibits: Sequence[Exhibit], *, most: int = MOST_VOXELS, made_by: str = "dagman") -> str:
    """Render a viewer of several scans, which are chosen from a list, as HTML.

    Args:
        title: Title of the page.
        exhibits: The scans.
        most: Maximum number of voxels of each; larger scans are downsampled.
        made_by: Command that is named in the page.
    """
    script, niivue = read_asset("viewer.js"), read_asset("niivue/niivue.umd.js.gz")
    environment = Environment(
        loader=PackageLoader("dagman.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("viewer.html.j2").render(
        title=title,
        made_by=made_by,
        layered=any(exhibit.attention is not None or exhibit.labels for exhibit in exhibits),
        maps=max(len(exhibit.labels) for exhibit in exhibits),
        marked=any(exhibit.marks for exhibit in exhibits),
        data=Markup(json.dumps([_describe_exhibit(exhibit, most) for exhibit in exhibits]).replace("<", "\\u003c")),
        niivue=Markup(niivue),
        script=Markup(script),
        scripts=Markup(" ").join([allow_script(niivue), allow_script(script)]),
    )


def describe_size(shape: Sequence[int], steps: Sequence[int]) -> str:
    """State the number of voxels, and whether blocks were averaged."""
    whole = " x ".join(map(str, shape))
    if tuple(steps) == (1, 1, 1):
        return f"{whole} voxels, as in the scan."
    return f"{whole} voxels, downsampled by averaging blocks of {' x '.join(map(str, steps))}: values are block means."


def choose_body_window(voxels: NDArray, *, hounsfield: bool) -> Window:
    """Choose a window by the voxels that are not air; with the air around the body, every scan would get a lung window."""
    body = voxels[voxels > _AIR_HU] if hounsfield else voxels
    return choose_window(body if body.size else voxels, hounsfield=hounsfield)


def _describe_exhibit(exhibit: Exhibit, most: int) -> dict[str, Any]:
    scan = exhibit.scan
    upright = reorient_scan(scan)
    # Voxels of four bytes count twice.
    steps = choose_steps(upright.shape, upright.spacing, most * 2 // upright.voxels.itemsize)
    ct = scan.modality == "CT"
    sample = upright.voxels[:: max(steps[0], 2), :: max(steps[1], 2), :: max(steps[2], 2)]
    window = exhibit.window or choose_body_window(sample, hounsfield=ct)
    voxels = upright.voxels if steps == (1, 1, 1) else shrink_volume(upright.voxels, steps)
    if upright.voxels.dtype == np.int16:
        voxels = np.rint(voxels).astype(np.int16)
    attended = "" if exhibit.attention is None else state_attention(exhibit.attention)
    windows = {str(name): ends for name, ends in WINDOWS.items()} if ct else {"own range": window}
    return {
        "name": exhibit.name,
        "title": exhibit.title,
        "words": " ".join(filter(None, [exhibit.words, describe_size(upright.shape, steps), attended])),
        "scan": encode_volume(voxels, coarsen_affine(upright.affine, steps)),
        "window": list(window),
        "windows": {name: list(ends) for name, ends in windows.items()},
        "unit": " HU" if ct else "",
        "point": None if exhibit.point is None else [float(value) for value in exhibit.point],
        "attention": None if exhibit.attention is None else describe_attention(exhibit.attention),
        "labels": [describe_labels(layer, most) for layer in exhibit.labels],
        "marks": [{"name": mark.name, "mm": list(mark.center_mm), "diameter": mark.diameter_mm} for mark in exhibit.marks],
    }

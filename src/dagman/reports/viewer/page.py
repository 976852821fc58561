"""The viewer's file: scans, one shown at a time, with attention, labels and marks over them."""

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
"""Of the scan in the file, about 15 to 30 MB; of larger ones blocks of voxels are averaged."""
_AIR_HU = -950
"""Below it lies the air around a body, which says nothing of what a scan is read for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """A scan of the viewer and what lies over it.

    `name` is how a page's link calls it (`viewer.html#name`), `title` what stands in the list, `words` a remark below the scan,
    `point` (RAS mm) where it opens: at its middle when None. `window` is shown at first, the scan's own choice when None.
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
    """The page of one scan as HTML; of more than `most` voxels blocks are averaged. made_by: the command, to be found in it."""
    return render_viewers(exhibit.title, [exhibit], most=most, made_by=made_by)


def render_viewers(title: str, exhibits: Sequence[Exhibit], *, most: int = MOST_VOXELS, made_by: str = "dagman") -> str:
    """The page of several scans, chosen from a list, as HTML; `most` is of each."""
    script, niivue = read_asset("viewer.js"), read_asset("niivue/niivue.umd.js.gz")
    environment = Environment(
        loader=PackageLoader("dagman.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("viewer.html.j2").render(
        title=title,
        made_by=made_by,
        layered=any(one.attention is not None or one.labels for one in exhibits),
        maps=max(len(one.labels) for one in exhibits),
        marked=any(one.marks for one in exhibits),
        data=Markup(json.dumps([_describe_exhibit(one, most) for one in exhibits]).replace("<", "\\u003c")),
        niivue=Markup(niivue),
        script=Markup(script),
        scripts=Markup(" ").join([allow_script(niivue), allow_script(script)]),
    )


def describe_size(shape: Sequence[int], steps: Sequence[int]) -> str:
    """How many voxels are shown, and what was averaged."""
    whole = " x ".join(map(str, shape))
    if tuple(steps) == (1, 1, 1):
        return f"{whole} voxels, as in the scan."
    return f"{whole} voxels, downsampled by averaging blocks of {' x '.join(map(str, steps))}: values are block means."


def choose_body_window(voxels: NDArray, *, hounsfield: bool) -> Window:
    """The window that suits what is not air: a whole scan holds so much of it that each would open as one of the lung."""
    body = voxels[voxels > _AIR_HU] if hounsfield else voxels
    return choose_window(body if body.size else voxels, hounsfield=hounsfield)


def _describe_exhibit(exhibit: Exhibit, most: int) -> dict[str, Any]:
    scan = exhibit.scan
    upright = reorient_scan(scan)
    # Floats are twice the bytes.
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

"""One HTML file that shows a scan in three planes with attention or labels over it; NiiVue draws, and nothing is fetched."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from dagman.encoder.attention import Attention
from dagman.reports.assets import read_asset
from dagman.reports.figures.windows import WINDOWS, choose_window
from dagman.reports.page import allow_script
from dagman.reports.style import CYCLE
from dagman.reports.volumes import choose_steps, shrink_volume
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, reorient_scan

MOST_VOXELS = 16_000_000
"""Of the scan in the file, about 15 to 30 MB; of larger ones blocks of voxels are averaged."""


def render_viewer(
    scan: Scan,
    *,
    title: str,
    attention: Attention | None = None,
    labels: Scan | None = None,
    names: Mapping[int, str] | None = None,
) -> str:
    """The page as HTML; `labels` is a map on any grid, `names` says what its values are called."""
    upright = reorient_scan(scan)
    steps = choose_steps(upright.shape, upright.spacing, MOST_VOXELS)
    window = choose_window(upright.voxels[:: steps[0], :: steps[1], :: steps[2]], hounsfield=scan.modality == "CT")
    shrunk = upright.voxels if steps == (1, 1, 1) else np.rint(shrink_volume(upright.voxels, steps)).astype(upright.voxels.dtype)
    windows = {str(name): ends for name, ends in WINDOWS.items()} if scan.modality == "CT" else {"own range": window}
    data: dict[str, Any] = {
        "scan": _encode(shrunk, coarsen_affine(upright.affine, steps)),
        "window": list(window),
        "windows": {name: list(ends) for name, ends in windows.items()},
        "unit": " HU" if scan.modality == "CT" else "",
        "attention": None if attention is None else _describe_attention(attention),
        "labels": None if labels is None else _describe_labels(reorient_scan(labels), names or {}),
    }
    words = describe_size(upright.shape, steps)
    script, niivue = read_asset("viewer.js"), read_asset("niivue/niivue.umd.js.gz")
    environment = Environment(
        loader=PackageLoader("dagman.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("viewer.html.j2").render(
        title=title,
        words=f"{title}. {words}",
        data=Markup(json.dumps(data).replace("<", "\\u003c")),
        niivue=Markup(niivue),
        script=Markup(script),
        scripts=Markup(" ").join([allow_script(niivue), allow_script(script)]),
    )


def describe_size(shape: Sequence[int], steps: Sequence[int]) -> str:
    """How many voxels are shown, and what was averaged."""
    whole = " x ".join(map(str, shape))
    if tuple(steps) == (1, 1, 1):
        return f"{whole} voxels, as in the scan."
    return f"{whole} voxels, of which blocks of {' x '.join(map(str, steps))} are averaged: values are means of blocks."


def coarsen_affine(affine: Affine, steps: Sequence[int]) -> Affine:
    """The affine of blocks of voxels: its origin is the middle of the first block."""
    matrix = affine.matrix.copy()
    matrix[:3, 3] += affine.matrix[:3, :3] @ ((np.array(steps) - 1) / 2)
    matrix[:3, :3] = affine.matrix[:3, :3] * np.array(steps)
    return Affine(matrix)


def place_units(attention: Attention) -> Affine:
    """The affine of the grid of units: each covers `stride` voxels of the scan as it was prepared and padded."""
    start = [part.start or 0 for part in attention.tiling.scan_box]
    matrix = attention.prepared.affine.matrix.copy()
    matrix[:3, 3] = attention.prepared.affine.to_world([[(attention.stride - 1) / 2 - first for first in start]])[0]
    matrix[:3, :3] *= attention.stride
    return Affine(matrix)


def _describe_attention(attention: Attention) -> dict[str, Any]:
    affine = place_units(attention)
    heads = attention.heads.float().cpu().numpy()
    maps = [heads.mean(axis=0), *heads]
    reach = max(float(np.abs(maps[0] - 1).max()), 1e-3)
    return {"maps": [_encode((one - 1).astype(np.float32), affine) for one in maps], "reach": reach}


def _describe_labels(labels: Scan, names: Mapping[int, str]) -> dict[str, Any]:
    values = [int(value) for value in np.unique(labels.voxels) if value != 0]
    codes = np.searchsorted([0, *values], np.rint(labels.voxels)).astype(np.uint8)
    colors = [tuple(int(CYCLE[place % len(CYCLE)][i : i + 2], 16) for i in (1, 3, 5)) for place in range(len(values))]
    called = ["", *(names.get(value, f"label {value}") for value in values)]
    red, green, blue = ([0, *(color[channel] for color in colors)] for channel in range(3))
    table = {
        "R": red, "G": green, "B": blue, "A": [0, *[255] * len(values)], "I": list(range(len(values) + 1)), "labels": called,
    }  # fmt: skip
    return {"map": _encode(codes, labels.affine), "names": called, "colors": table}


def _encode(voxels: NDArray, affine: Affine) -> str:
    """A volume as gzipped NIfTI in base64."""
    image = nib.Nifti1Image(voxels, affine.matrix)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()

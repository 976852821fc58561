"""Convert an array with its affine, as used by other libraries, to a Scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, narrow_voxels
from dagman.scans.verdict import clip_padding, judge_modality, measure_hu

SOURCE = "array"
"""Name of an array in messages, as it has no path."""


def read_array(voxels: Any, affine: Any) -> Scan:
    """Create a scan from voxels X Y Z (HU for CT) and a 4 x 4 affine from indices to RAS mm, as in nibabel.

    Whether it is a CT is decided by its values, as for files that do not state their modality.

    Raises:
        ScanError: The shape is wrong, values are not finite, or the matrix is not an affine.
    """
    values, matrix = np.asarray(voxels), np.asarray(affine, dtype=np.float64)
    if values.ndim != 3:
        raise ScanError(f"an array of a scan has 3 axes, not {values.ndim}", where=SOURCE, do="Give one volume, X Y Z")
    if matrix.shape != (4, 4):
        shape = " x ".join(map(str, matrix.shape))
        raise ScanError(f"an affine is 4 x 4, not {shape}", where=SOURCE, do="Give the matrix from indices to RAS mm")
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ScanError("holds values that are not finite numbers", where=SOURCE, do="Replace them; outside the field: -1024")
    narrow = narrow_voxels(values)
    modality = judge_modality(measure_hu(narrow))
    # Copy, so that the caller's array is not changed.
    narrow, notes = clip_padding(narrow.copy(order="K")) if modality == "CT" else (narrow, ())
    return Scan(voxels=narrow, affine=Affine(matrix), modality=modality, patient=SOURCE, source=SOURCE, notes=notes)

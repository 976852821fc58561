"""An array with its affine, as other libraries hold a scan, to a Scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan, narrow_voxels
from dagman.scans.verdict import clip_padding, judge_modality, measure_hu

SOURCE = "array"
"""What messages call it: an array has no path."""


def read_array(voxels: Any, affine: Any) -> Scan:
    """A scan of values X Y Z (HU for CT) and a 4 x 4 affine from indices to RAS mm, as nibabel gives them.

    Whether it is CT is judged by its values, as for a file that does not state it. Raises ScanError for another shape, values that
    are not finite numbers, or a matrix that is no affine.
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
    # A copy: the caller's array stays as it is.
    narrow, notes = clip_padding(narrow.copy(order="K")) if modality == "CT" else (narrow, ())
    return Scan(voxels=narrow, affine=Affine(matrix), modality=modality, patient=SOURCE, source=SOURCE, notes=notes)

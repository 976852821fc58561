"""From whatever names a scan to a scan judged fit, and prepared as an encoder expects it; no network is needed to read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.encoder.inputs.arrays import read_array
from dagman.errors import EncoderError, ScanError
from dagman.scans.reading import read_scan
from dagman.scans.scan import Modality, Scan
from dagman.scans.verdict import judge_scan
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation, PreparedScan, prepare_scan

ScanLike = str | Path | Scan | PreparedScan | tuple[Store, str] | tuple[NDArray, NDArray]
"""A scan's path (file, or folder of one series), a scan, a prepared one, a store with an id, or an array with its affine."""


@dataclass(frozen=True, kw_only=True)
class ScanReader:
    """Reads scans of some modalities and prepares them in one way."""

    preparation: Preparation
    modalities: tuple[str, ...]

    @property
    def spacing(self) -> float:
        """Voxel size in mm of prepared scans."""
        return self.preparation.spacing

    def read(self, scan: ScanLike) -> Scan:
        """The scan as read, in its own grid, judged fit for the encoder (a stored one: as prepared).

        Raises ScanError when it cannot be used, EncoderError when the encoder was not trained on such scans.
        """
        scan = _open_pair(scan)
        if isinstance(scan, PreparedScan):
            self._check_prepared(scan)
            return Scan(voxels=scan.voxels, affine=scan.affine, modality=scan.modality, patient=scan.patient, source=scan.source)
        if not isinstance(scan, Scan):
            scan = read_scan(scan)
        if scan.modality == "other" and self.modalities == ("MR",):
            # A NIfTI does not say what it shows; an encoder that knows MR alone is given MR.
            scan = replace(scan, modality="MR")
        verdict = judge_scan(scan)
        if not verdict.accepted:
            reason, _, remedy = verdict.reason.rpartition(": ")
            if "--modality" not in remedy:
                raise ScanError(verdict.reason, where=scan.source)
            do = f"This encoder was trained on {' and '.join(self.modalities)}: give such a scan"
            raise ScanError(reason, where=scan.source, do=do)
        self._check_modality(scan.modality, scan.source)
        return scan

    def prepare(self, scan: ScanLike) -> PreparedScan:
        """A scan as the encoder was trained on: upright, at its spacing, cropped to the body, int16.

        A stored scan must have been prepared alike. Raises as `read`.
        """
        scan = _open_pair(scan)
        if isinstance(scan, PreparedScan):
            self._check_prepared(scan)
            return scan
        return prepare_scan(self.read(scan), self.preparation)

    def _check_modality(self, modality: Modality, source: str) -> None:
        if modality not in self.modalities:
            what = f"is {modality}; this encoder was trained on {' and '.join(self.modalities)}"
            raise EncoderError(what, where=source, do="Use an encoder trained on such scans")

    def _check_prepared(self, scan: PreparedScan) -> None:
        self._check_modality(scan.modality, scan.source)
        wanted = self.spacing
        if not np.allclose(scan.spacing, wanted, rtol=1e-3):
            what = f"is prepared at {scan.spacing[0]:g} mm; this encoder was trained at {wanted:g} mm"
            do = f"Prepare a store with --spacing {wanted:g}, or give the scans themselves"
            raise EncoderError(what, where=scan.source, do=do)


def _open_pair(scan: object) -> str | Path | Scan | PreparedScan:
    """What a pair stands for; anything else as it is. Raises EncoderError for what is not a scan."""
    if isinstance(scan, str | Path | Scan | PreparedScan):
        return scan
    if isinstance(scan, tuple) and len(scan) == 2:
        first, second = scan
        if isinstance(first, Store):
            return first.read(str(second))
        if isinstance(first, np.ndarray):
            return read_array(first, second)
    what = "an array has no position or spacing" if isinstance(scan, np.ndarray) else f"a {type(scan).__name__} is not a scan"
    raise EncoderError(what, do="Give a path, a Scan, an array with its affine as (array, affine), or a store with an id")


ANY_SCAN = ScanReader(preparation=Preparation(), modalities=("CT", "MR", "other"))
"""Reads scans of any modality, for models that have no encoder."""

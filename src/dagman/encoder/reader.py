"""Read scans in any form, check that an encoder can use them, and prepare them as in training; works without a network."""

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
"""The path of a scan (a file, or the folder of a series), a Scan, a PreparedScan, (store, id), or (array, affine)."""


@dataclass(frozen=True, kw_only=True)
class ScanReader:
    """Reads scans of the given modalities and prepares them."""

    preparation: Preparation
    modalities: tuple[str, ...]

    @property
    def spacing(self) -> float:
        """Voxel size in mm of prepared scans."""
        return self.preparation.spacing

    def read(self, scan: ScanLike) -> Scan:
        """Read a scan on its own grid (stored scans: as prepared) and check that the encoder can use it.

        Raises:
            ScanError: The scan cannot be used.
            EncoderError: The encoder was not trained on such scans.
        """
        scan = _open_pair(scan)
        if isinstance(scan, PreparedScan):
            self._check_prepared(scan)
            return Scan(voxels=scan.voxels, affine=scan.affine, modality=scan.modality, patient=scan.patient, source=scan.source)
        if not isinstance(scan, Scan):
            scan = read_scan(scan)
        if scan.modality == "other" and self.modalities == ("MR",):
            # NIfTI files do not state a modality; for an encoder that takes only MR, assume MR.
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
        """Prepare a scan as in training: in RAS+ order, resampled, cropped to the body, int16.

        Stored scans must have been prepared at the same spacing. Raises the errors of `read`.
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
    """Resolve (store, id) and (array, affine) to a scan, and pass other forms through.

    Raises:
        EncoderError: It is not a scan in any of the supported forms.
    """
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
"""A reader for scans of any modality, for models without an encoder."""

"""DICOM series: headers to series, planes to an affine, pixels to HU."""

from __future__ import annotations

from dagman.scans.dicom.series import DicomGroup, find_siblings, group_headers
from dagman.scans.dicom.volume import read_volume

__all__ = ["DicomGroup", "find_siblings", "group_headers", "read_volume"]

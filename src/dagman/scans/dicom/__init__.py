"""Reads DICOM: groups headers into series, turns planes into an affine, and pixels into HU."""

from __future__ import annotations

from dagman.scans.dicom.directory import is_directory_file, list_images
from dagman.scans.dicom.kept_headers import HEADERS, KeptHeaders
from dagman.scans.dicom.naming import (
    NamedGroup,
    SeriesName,
    list_by_uid,
    name_groups,
    name_selected,
    parse_name,
    read_series_uid,
    source_exists,
)
from dagman.scans.dicom.series import DicomGroup, group_headers
from dagman.scans.dicom.volume import measure_volume, read_volume

__all__ = [
    "HEADERS",
    "DicomGroup",
    "KeptHeaders",
    "NamedGroup",
    "SeriesName",
    "group_headers",
    "is_directory_file",
    "list_by_uid",
    "list_images",
    "measure_volume",
    "name_groups",
    "name_selected",
    "parse_name",
    "read_series_uid",
    "read_volume",
    "source_exists",
]

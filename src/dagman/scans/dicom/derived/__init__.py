"""Writes DICOM objects that are derived from a series and refer to it: segmentations and parametric maps."""

from dagman.scans.dicom.derived.parametric_map import write_parametric_map
from dagman.scans.dicom.derived.segments import names_its_patient, write_segments

__all__ = ["names_its_patient", "write_parametric_map", "write_segments"]

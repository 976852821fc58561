"""Reads NRRD (.nrrd, .nhdr with data file) and MetaImage (.mha, .mhd with data file) with SimpleITK in a separate process."""

from __future__ import annotations

from dagman.scans.itk.data_files import list_files
from dagman.scans.itk.reading import SUFFIXES, check_itk, measure_itk, read_itk

__all__ = ["SUFFIXES", "check_itk", "list_files", "measure_itk", "read_itk"]
